/*
 * Every SHOW over the wire, with connections in every state. Checks columns and their types as drivers see them, and
 * values that agree with those of PostgreSQL and the operating system. admin.test.ts checks the column names against
 * the documentation.
 */

import assert from 'node:assert/strict';
import type { Client } from 'pg';
import { showColumns } from '../../src/admin/columns';
import { Bouncer, eventually, it, PgCluster, STATS_PASSWORD, STATS_USER } from '../harness';
import { backendPid, fails } from '../harness/expect';
import { after, before, describe } from '../harness/limits';

type Row = Record<string, string | number | Buffer | null>;

let pg: PgCluster;
let bouncer: Bouncer;
let con: Client;

/** Type OIDs of the system catalogue by type letter. */
const oids: Record<string, number> = { s: 25, i: 23, q: 20, N: 1700, T: 25, b: 17 };

before(async () => {
  pg = await PgCluster.start({ settings: { listen_addresses: 'localhost' } });
  await pg.createUser('reader', 'x');
  const databases = {
    app: pg.connstr('postgres', 'pool_size=2 max_db_connections=9 max_db_client_connections=8'),
    sess: pg.connstr('postgres', 'pool_mode=session server_lifetime=90 reserve_pool_size=4 min_pool_size=0'),
    forced: pg.connstr('postgres', 'user=reader'),
    many: `host=127.0.0.1,localhost port=${pg.port} dbname=postgres load_balance_hosts=disable`,
    named: `host=localhost port=${pg.port} dbname=postgres`,
    slow: pg.connstr('postgres', "connect_query='SELECT pg_sleep(600)'"),
  };
  bouncer = await Bouncer.start({
    cluster: pg,
    databases,
    users: { reader: 'pool_size=3 pool_mode=statement max_user_connections=5 max_user_client_connections=6' },
    peers: { 2: 'host=127.0.0.1 port=1 pool_size=7', 1: 'host=127.0.0.1 port=2' },
    settings: { pool_mode: 'transaction', peer_id: 3, server_lifetime: 1800, stats_period: 1 },
  });
  con = await bouncer.console();
});

after(async () => {
  await con.end();
  await bouncer.stop();
  await pg.stop();
});

async function show(word: string): Promise<Row[]> {
  return (await con.query(`SHOW ${word}`)).rows;
}

/** The row with that value in that column; there must be exactly one. */
async function row(word: string, column: string, value: string | number): Promise<Row> {
  const rows = (await show(word)).filter((candidate) => candidate[column] === value);
  assert.equal(rows.length, 1, `rows of SHOW ${word} with ${column}=${value}`);
  return rows[0] as Row;
}

/** Runs the body with a connection and closes it. */
async function withClient<T>(config: object, body: (client: Client) => Promise<T>): Promise<T> {
  const client = await bouncer.connect(config);
  try {
    return await body(client);
  } finally {
    await client.end();
  }
}

function localPort(client: Client): number {
  return (client as unknown as { connection: { stream: { localPort: number } } }).connection.stream.localPort;
}

describe('every SHOW', () => {
  for (const [word, columns] of Object.entries(showColumns)) {
    it(`SHOW ${word.toUpperCase()} has its columns and values of their types`, async () => {
      const result = await con.query(`SHOW ${word}`);
      assert.equal(result.command, 'SHOW');
      assert.deepEqual(
        result.fields.map((field) => field.name),
        columns.names,
      );
      assert.deepEqual(
        result.fields.map((field) => field.dataTypeID),
        [...columns.types].map((letter) => oids[letter]),
      );
      for (const values of result.rows as Row[]) {
        for (const [at, name] of columns.names.entries()) {
          const value = values[name] as string | number | Buffer | null;
          const type = columns.types[at];
          if (type === 'i') assert.ok(Number.isInteger(value), `${name}: ${value}`);
          if (type === 'q' || type === 'N') assert.match(String(value), /^-?\d+$/, name);
          if (type === 'T') assert.match(String(value), /^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \w+)?$/, name);
        }
      }
    });
  }
});

describe('CLIENTS, SERVERS, SOCKETS', () => {
  it('SHOW CLIENTS and SHOW SERVERS link a client in a transaction with its server', async () => {
    await withClient({ database: 'app', application_name: 'busy one' }, async (client) => {
      await client.query('BEGIN');
      const pid = await backendPid(client);
      const mine = await row('CLIENTS', 'application_name', 'busy one');
      assert.deepEqual(
        [mine.type, mine.user, mine.database, mine.replication, mine.state, mine.tls, mine.prepared_statements],
        ['C', 'postgres', 'app', 'none', 'active', '', 0],
      );
      assert.deepEqual(
        [mine.addr, mine.port, mine.local_addr, mine.local_port],
        ['127.0.0.1', localPort(client), '127.0.0.1', bouncer.port],
      );
      const server = await row('SERVERS', 'remote_pid', pid);
      assert.deepEqual(
        [server.type, server.user, server.database, server.state, server.addr, server.port, server.close_needed],
        ['S', 'postgres', 'app', 'active', '127.0.0.1', pg.port, 0],
      );
      assert.deepEqual([server.ptr, server.link], [mine.link, mine.ptr]);
      assert.equal(server.application_name, 'busy one');
      const { rows } = await pg.sql(`SELECT client_port FROM pg_stat_activity WHERE pid = ${pid}`);
      assert.equal(server.local_port, rows[0].client_port);
      const sockets = (await show('SOCKETS')).filter((socket) => socket.ptr === mine.ptr || socket.ptr === server.ptr);
      assert.deepEqual(sockets.map((socket) => socket.state).sort(), ['cl_active', 'sv_active']);
      await client.query('ROLLBACK');
      const idle = await row('CLIENTS', 'application_name', 'busy one');
      assert.deepEqual([idle.state, idle.link, idle.id], ['idle', '', mine.id]);
      assert.deepEqual((await row('SERVERS', 'remote_pid', pid)).state, 'idle');
    });
  });

  it('SHOW CLIENTS numbers connections and shows their times in wall time', async () => {
    await withClient({ database: 'app', application_name: 'first' }, async () => {
      await withClient({ database: 'app', application_name: 'second' }, async (second) => {
        const one = await row('CLIENTS', 'application_name', 'first');
        await second.query('SELECT 1');
        const two = await row('CLIENTS', 'application_name', 'second');
        assert.ok(Number(two.id) > Number(one.id));
        for (const text of [two.connect_time, two.request_time]) {
          const age = Date.now() - new Date(String(text)).getTime();
          assert.ok(age >= 0 && age < 60_000, `${text}`);
        }
      });
    });
  });

  it('SHOW CLIENTS shows a waiting client and how long it has waited', async () => {
    const pair = await Promise.all([1, 2].map(() => bouncer.connect({ database: 'app' })));
    for (const client of pair) await client.query('BEGIN');
    await withClient({ database: 'app', application_name: 'waiter' }, async (waiter) => {
      const answer = waiter.query('SELECT 1');
      const shown = await eventually('the wait to count', async () => {
        const mine = await row('CLIENTS', 'application_name', 'waiter');
        return mine.state === 'waiting' && Number(mine.wait_us) > 0 ? mine : null;
      });
      assert.equal(shown.link, '');
      const pool = (await show('POOLS')).find((candidate) => candidate.database === 'app') as Row;
      assert.deepEqual(
        [pool.user, pool.cl_active, pool.cl_waiting, pool.sv_active, pool.sv_idle, pool.sv_login, pool.pool_mode],
        ['postgres', 2, 1, 2, 0, 0, 'transaction'],
      );
      assert.ok(Number(pool.maxwait) * 1_000_000 + Number(pool.maxwait_us) > 0);
      assert.ok((await show('SOCKETS')).some((socket) => socket.state === 'cl_waiting'));
      for (const client of pair) await client.end();
      await answer;
    });
  });

  it('SHOW SERVERS shows a server that logs in as new, and its client waits', async () => {
    const login = fails(bouncer.connect({ database: 'slow', application_name: 'patient' }), 'database removed');
    await eventually('connect_query to run', async () =>
      (await show('SERVERS')).some((server) => server.database === 'slow' && server.state === 'new'),
    );
    const pool = await row('POOLS', 'database', 'slow');
    assert.equal(pool.sv_login, 1);
    assert.ok(Number(pool.maxwait) * 1_000_000 + Number(pool.maxwait_us) > 0);
    assert.equal((await row('CLIENTS', 'application_name', 'patient')).state, 'waiting');
    assert.ok((await show('SOCKETS')).some((socket) => socket.state === 'sv_login'));
    await con.query('KILL slow');
    await login;
  });

  it('a client that has not logged in yet appears only in SHOW SOCKETS and SHOW LISTS', async () => {
    const raw = await bouncer.raw();
    await raw.request(80877103);
    const socket = await row('SOCKETS', 'state', 'cl_login');
    assert.deepEqual([socket.user, socket.database], ['(nouser)', '(nodb)']);
    assert.equal((await row('LISTS', 'list', 'login_clients')).items, 1);
    assert.equal(
      (await show('CLIENTS')).some((client) => client.ptr === socket.ptr),
      false,
    );
    await raw.destroy();
  });

  it('SHOW SERVERS shows a server whose reset query runs as tested', async () => {
    const own = await Bouncer.start({
      cluster: pg,
      settings: { pool_mode: 'session', server_reset_query: 'SELECT pg_sleep(600)' },
    });
    await own.sql('SELECT 1');
    const [server] = await own.admin('SHOW SERVERS');
    assert.equal(server?.state, 'tested');
    assert.equal((await own.admin('SHOW POOLS')).find((pool) => pool.database === 'postgres')?.sv_tested, 1);
    await own.stop();
  });

  it('SHOW SERVERS shows a server that needs a check before use as used', async () => {
    const own = await Bouncer.start({
      cluster: pg,
      settings: { pool_mode: 'transaction', server_check_delay: 0 },
    });
    await own.sql('SELECT 1');
    assert.equal((await own.admin('SHOW SERVERS'))[0]?.state, 'used');
    assert.equal((await own.admin('SHOW POOLS')).find((pool) => pool.database === 'postgres')?.sv_used, 1);
    await own.sql('SELECT 1');
    await own.stop();
  });

  it('SHOW ACTIVE_SOCKETS lists the sockets with bytes in their buffers', async () => {
    const raw = await bouncer.raw();
    await raw.login({ database: 'app', params: { application_name: 'half' } });
    await raw.send(Buffer.from('Q\0\0\0\x20SELECT'));
    await eventually('the rest of the packet to be missing', async () =>
      (await show('ACTIVE_SOCKETS')).some(
        (socket) => socket.application_name === 'half' && socket.type === 'C' && socket.pkt_remain === 0x20 + 1 - 11,
      ),
    );
    await raw.destroy();
  });
});

describe('what is configured', () => {
  it('SHOW DATABASES shows limits and counts', async () => {
    await withClient({ database: 'app' }, async (client) => {
      await client.query('SELECT 1');
      const app = await row('DATABASES', 'name', 'app');
      assert.deepEqual(
        [app.host, app.port, app.database, app.force_user, app.pool_size, app.pool_mode, app.server_lifetime],
        ['127.0.0.1', pg.port, 'postgres', null, 2, null, 1800],
      );
      assert.deepEqual(
        [app.max_connections, app.max_client_connections, app.current_client_connections, app.paused, app.disabled],
        [9, 8, 1, 0, 0],
      );
      const servers = (await show('SERVERS')).filter((server) => server.database === 'app').length;
      assert.equal(app.current_connections, servers);
    });
    const sess = await row('DATABASES', 'name', 'sess');
    assert.deepEqual(
      [sess.pool_mode, sess.server_lifetime, sess.reserve_pool_size, sess.min_pool_size, sess.pool_size],
      ['session', 90, 4, 0, 20],
    );
    assert.equal((await row('DATABASES', 'name', 'forced')).force_user, 'reader');
    assert.equal((await row('DATABASES', 'name', 'many')).load_balance_hosts, 'disable');
    const admin = await row('DATABASES', 'name', 'pgbouncer');
    assert.deepEqual([admin.force_user, admin.pool_mode, admin.port], ['pgbouncer', 'statement', bouncer.port]);
  });

  it('SHOW USERS shows limits and counts', async () => {
    await withClient({ database: 'forced' }, async (client) => {
      await client.query('SELECT 1');
      const reader = await row('USERS', 'name', 'reader');
      assert.deepEqual(
        [reader.pool_size, reader.reserve_pool_size, reader.pool_mode, reader.max_user_connections],
        ['        3', '', 'statement', 5],
      );
      assert.deepEqual([reader.current_connections, reader.max_user_client_connections], [1, 6]);
      assert.equal((await row('USERS', 'name', 'postgres')).current_client_connections, 1);
    });
    assert.equal((await row('USERS', 'name', 'postgres')).current_client_connections, 0);
  });

  it('SHOW PEERS orders peers by id, and their pools start empty', async () => {
    assert.deepEqual(await show('PEERS'), [
      { peer_id: 1, host: '127.0.0.1', port: 2, pool_size: 20 },
      { peer_id: 2, host: '127.0.0.1', port: 1, pool_size: 7 },
    ]);
    for (const pool of await show('PEER_POOLS')) assert.equal(pool.sv_login, 0);
  });

  it('SHOW CONFIG shows the current value, the default, and whether a setting is reloadable', async () => {
    const shown = new Map((await show('CONFIG')).map((setting) => [setting.key, setting]));
    const setting = (key: string) => {
      const { value, default: def, changeable } = shown.get(key) as Row;
      return [value, def, changeable];
    };
    assert.deepEqual(setting('pool_mode'), ['transaction', 'session', 'yes']);
    assert.deepEqual(setting('listen_port'), [String(bouncer.port), '6432', 'no']);
    assert.deepEqual(setting('peer_id'), ['3', '0', 'yes']);
    assert.deepEqual(setting('server_lifetime'), ['1800', '3600', 'yes']);
    assert.deepEqual(setting('admin_users'), ['admin', '', 'yes']);
    assert.ok(shown.size > 90);
  });
});

describe('what has happened', () => {
  const counted = ['xact_count', 'query_count', 'client_login_count', 'server_assignment_count'];

  async function totals(): Promise<Record<string, number>> {
    const stats = (await show('STATS')).find((candidate) => candidate.database === 'app') ?? {};
    return Object.fromEntries(Object.entries(stats).map(([name, value]) => [name, Number(value)]));
  }

  it('SHOW STATS counts logins, transactions, queries, bytes and times', async () => {
    await bouncer.sql('SELECT 1', { database: 'app' });
    const begin = await totals();
    await withClient({ database: 'app' }, async (client) => {
      await client.query('BEGIN');
      await client.query("SELECT pg_sleep(0.05), repeat('x', 100000)");
      await client.query('COMMIT');
      await client.query('SELECT 1');
    });
    const end = await totals();
    const grown = (name: string) => (end[`total_${name}`] as number) - (begin[`total_${name}`] as number);
    assert.deepEqual(counted.map(grown), [2, 4, 1, 2]);
    assert.ok(grown('sent') > 100_000 && grown('sent') < 102_000, `${grown('sent')}`);
    assert.ok(grown('received') > 70 && grown('received') < 1000, `${grown('received')}`);
    assert.ok(grown('query_time') >= 50_000, `${grown('query_time')}`);
    assert.ok(grown('xact_time') >= grown('query_time'));
  });

  it('SHOW STATS_TOTALS, STATS_AVERAGES and TOTALS agree with SHOW STATS', async () => {
    const stats = (await show('STATS')).find((candidate) => candidate.database === 'app') as Row;
    const sums = (await show('STATS_TOTALS')).find((candidate) => candidate.database === 'app') as Row;
    for (const name of counted) assert.equal(sums[name], stats[`total_${name}`], name);
    assert.deepEqual([sums.bytes_received, sums.bytes_sent], [stats.total_received, stats.total_sent]);
    const all = new Map((await show('TOTALS')).map(({ name, value }) => [name, Number(value)]));
    const sum = (await show('STATS')).reduce((total, each) => total + Number(each.total_query_count), 0);
    // the console's own queries are counted too, including this query
    assert.ok((all.get('total_query_count') as number) >= sum - 1);
    assert.ok(all.has('avg_query_count') && all.has('total_client_bytes'));
  });

  it('SHOW STATS averages cover the last period', async () => {
    await withClient({ database: 'app' }, async (client) => {
      await eventually('an average', async () => {
        for (let i = 0; i < 20; i++) await client.query('SELECT 1');
        const averages = (await show('STATS_AVERAGES')).find((each) => each.database === 'app');
        return Number(averages?.query_count) > 0 && Number(averages?.bytes_sent) > 0;
      });
    });
    await bouncer.logWait(
      /LOG stats: \d+ xacts\/s, \d+ queries\/s, .* in \d+ B\/s, out \d+ B\/s, xact \d+ us, query \d+ us, wait \d+ us/,
    );
  });

  it('SHOW LISTS counts the rows of the other commands', async () => {
    await withClient({ database: 'app' }, async (client) => {
      await client.query('SELECT 1');
      const lists = Object.fromEntries((await show('LISTS')).map(({ list, items }) => [list, items]));
      for (const word of ['databases', 'users', 'peers', 'pools', 'peer_pools']) {
        assert.equal(lists[word], (await show(word)).length, word);
      }
      assert.equal(lists.used_clients, (await show('CLIENTS')).length);
      assert.equal(lists.used_servers, (await show('SERVERS')).length);
      assert.equal(lists.dns_pending, 0);
    });
  });

  it('SHOW MEM agrees with SHOW LISTS', async () => {
    const lists = Object.fromEntries((await show('LISTS')).map(({ list, items }) => [list, items]));
    const mem = new Map((await show('MEM')).map((cache) => [cache.name, cache]));
    assert.equal(mem.get('client_cache')?.used, lists.used_clients);
    assert.equal(mem.get('server_cache')?.used, lists.used_servers);
    assert.equal(mem.get('pool_cache')?.used, lists.pools);
    for (const { size, used, free, memtotal } of mem.values()) {
      assert.equal(memtotal, Number(size) * (Number(used) + Number(free)));
    }
  });

  it('SHOW DNS_HOSTS lists the names that were looked up', async () => {
    await bouncer.sql('SELECT 1', { database: 'named' });
    const host = await row('DNS_HOSTS', 'hostname', 'localhost');
    assert.match(String(host.addrs), /^(127\.0\.0\.1|\[::1\]):0(,|$)/);
    const ttl = Number(host.ttl);
    assert.ok(ttl > 0 && ttl <= 15, `${ttl}`);
    assert.equal((await row('LISTS', 'list', 'dns_names')).items, (await show('DNS_HOSTS')).length);
    assert.deepEqual(await show('DNS_ZONES'), []);
  });

  it('SHOW FDS lists the listening sockets and all connections, for administrators only', async () => {
    await withClient({ database: 'app' }, async (client) => {
      await client.query('BEGIN');
      const fds = await show('FDS');
      assert.equal(fds.filter((fd) => fd.task === 'pooler').length, 2);
      const mine = fds.find((fd) => fd.task === 'client' && fd.port === localPort(client)) as Row;
      assert.deepEqual([mine.user, mine.database, mine.client_encoding], ['postgres', 'app', 'UTF8']);
      const server = fds.find((fd) => fd.fd === mine.link) as Row;
      assert.deepEqual([server.task, server.link], ['server', mine.fd]);
      assert.equal(new Set(fds.map((fd) => fd.fd)).size, fds.length);
    });
    const stats = { user: STATS_USER, password: STATS_PASSWORD };
    await fails(bouncer.admin('SHOW FDS', stats), 'admin access needed');
  });

  it('SHOW VERSION and SHOW STATE show the version and the pause state', async () => {
    assert.match(String((await show('VERSION'))[0]?.version), /^PgBouncer \d+\.\d+\.\d+$/);
    const state = Object.fromEntries((await show('STATE')).map(({ key, value }) => [key, value]));
    assert.deepEqual(state, { active: 'yes', paused: 'no', suspended: 'no' });
  });
});
