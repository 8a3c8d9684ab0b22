/*
 * The limits: how many servers a pool, a database and a user may have, how many clients may come, and what happens to
 * a client beyond a limit. Each limit is tested as a general setting, per database and per user, and which takes precedence.
 */

import assert from 'node:assert/strict';
import {
  ask,
  backendOf,
  backends,
  errorIn,
  login,
  refusal,
  rowsBecome,
  show,
  start,
  thrownOut,
  valueIn,
  withPooler,
} from '../harness/answers';
import type { Bouncer } from '../harness/bouncer';
import { clusterWithUsers } from '../harness/fixtures';
import { describe } from '../harness/limits';
import { eventually, it } from '../harness/machine';
import { cancelRequest, cstring, type Login, message, type RawClient } from '../harness/raw-client';

const pg = clusterWithUsers('ann', 'ben');

const TX = { pool_mode: 'transaction', server_check_query: '' };
const USERS = { ann: '', ben: '' };
const DEFAULT_POOL_SIZE = 20;

/** Logs in clients that each hold a server in a transaction. */
async function hold(pooler: Bouncer, count: number, who: Login = {}): Promise<RawClient[]> {
  const clients: RawClient[] = [];
  for (let i = 0; i < count; i++) {
    const client = await login(pooler, who);
    await ask(client, 'BEGIN');
    clients.push(client);
  }
  return clients;
}

/** Logs in another client, whose query gets no server. */
async function waiter(pooler: Bouncer, who: Login = {}): Promise<RawClient> {
  const before = (await show(pooler, 'CLIENTS', { state: 'waiting' })).length;
  const client = await login(pooler, who);
  await start(client, 'SELECT 1');
  await rowsBecome(pooler, 'CLIENTS', { state: 'waiting' }, before + 1);
  return client;
}

/** Checks that exactly `size` clients get servers, and that the next client waits until one of them is done. */
async function holdsExactly(pooler: Bouncer, size: number, who: Login = {}): Promise<void> {
  const holders = await hold(pooler, size, who);
  const late = await waiter(pooler, who);
  const match = { database: who.database ?? 'postgres', user: who.user ?? 'postgres' };
  assert.equal((await show(pooler, 'SERVERS', { ...match, state: 'active' })).length, size);
  await ask(holders[0] as RawClient, 'COMMIT');
  assert.equal(valueIn(await late.until('Z')), '1');
  for (const client of [...holders, late]) await client.end();
}

describe('pool size', () => {
  it('pool_size of the user overrides pool_size of the database, which overrides default_pool_size', async () => {
    const databases = { postgres: pg().connstr(), sized: pg().connstr('postgres', 'pool_size=2') };
    const users = { ann: 'pool_size=1' };
    const settings = { ...TX, default_pool_size: 3 };
    await withPooler({ databases, users, settings, userlist: USERS }, async (pooler) => {
      await holdsExactly(pooler, 3);
      await holdsExactly(pooler, 2, { database: 'sized' });
      await holdsExactly(pooler, 1, { user: 'ann', database: 'sized' });
      await pooler.admin('SET default_pool_size = 4');
      await holdsExactly(pooler, 4);
    });
  });

  it('a pool_size of 0 opens a server for every client', async () => {
    await withPooler({ cluster: pg(), settings: { ...TX, default_pool_size: 0 } }, async (pooler) => {
      const count = 2 * DEFAULT_POOL_SIZE;
      await hold(pooler, count);
      const [pool] = await show(pooler, 'POOLS', { database: 'postgres', user: 'postgres' });
      assert.deepEqual([pool?.sv_active, pool?.cl_active, pool?.cl_waiting], [count, count, 0]);
      assert.equal(await backends(pg(), "state = 'idle in transaction'"), count);
    });
  });

  it('a pool_size of 0 leaves min_pool_size in force', async () => {
    const settings = { ...TX, default_pool_size: 0, min_pool_size: 3, server_lifetime: 2 };
    await withPooler({ cluster: pg(), settings }, async (pooler) => {
      const client = await login(pooler);
      await rowsBecome(pooler, 'SERVERS', { database: 'postgres' }, 3);
      await pooler.logWait(/server lifetime over/);
      const [pool] = await show(pooler, 'POOLS', { database: 'postgres' });
      assert.ok(Number(pool?.sv_idle) >= 3, 'the server was not replaced first');
      await client.end();
    });
  });

  for (const [limit, value] of [
    ['max_db_connections', 1],
    ['max_user_connections', 1],
    ['max_db_connections', 0],
  ] as const) {
    it(`with a pool_size of 0, cancel requests reach the server, also by a peer: ${limit} = ${value}`, async () => {
      const home = { ...TX, default_pool_size: 0, [limit]: value, peer_id: 1 };
      await withPooler({ cluster: pg(), settings: home }, async (pooler) => {
        const peers = { 1: `host=127.0.0.1 port=${pooler.port}` };
        const other = { ...TX, default_pool_size: 0, peer_id: 2 };
        await withPooler({ cluster: pg(), settings: other, peers }, async (peer) => {
          const client = await login(pooler);
          for (const { port } of [pooler, peer]) {
            await start(client, 'SELECT pg_sleep(60)');
            await eventually('the query to run', async () => (await backends(pg(), "wait_event = 'PgSleep'")) === 1);
            await cancelRequest({ port }, client.backendPid, client.backendKey);
            assert.equal(errorIn(await client.until('Z'))?.C, '57014');
          }
          await client.end();
        });
      });
    });
  }

  it('a lowered default_pool_size closes surplus servers', async () => {
    await withPooler({ cluster: pg(), settings: { ...TX, default_pool_size: 3 } }, async (pooler) => {
      for (const client of await hold(pooler, 3)) await client.end();
      // these servers ended in a transaction and were closed, so a second round ends its transactions first
      const clients = await hold(pooler, 3);
      for (const client of clients) await ask(client, 'COMMIT');
      assert.equal((await show(pooler, 'SERVERS')).length, 3);
      await pooler.admin('SET default_pool_size = 1');
      await pooler.logWait(/closing because: too many servers in the pool/);
      await rowsBecome(pooler, 'SERVERS', {}, 1);
    });
  });

  it('min_pool_size applies once a client has connected, and at once with a forced user', async () => {
    const databases = {
      postgres: pg().connstr(),
      forced: pg().connstr('postgres', 'user=ann min_pool_size=3'),
      small: pg().connstr('postgres', 'min_pool_size=0'),
    };
    await withPooler({ databases, settings: { ...TX, min_pool_size: 2 } }, async (pooler) => {
      await rowsBecome(pooler, 'SERVERS', { database: 'forced', user: 'ann' }, 3);
      assert.equal((await show(pooler, 'SERVERS', { database: 'postgres' })).length, 0);
      const client = await login(pooler);
      await rowsBecome(pooler, 'SERVERS', { database: 'postgres' }, 2);
      await login(pooler, { database: 'small' });
      await pooler.admin('SET min_pool_size = 4');
      await rowsBecome(pooler, 'SERVERS', { database: 'postgres' }, 4);
      assert.equal((await show(pooler, 'SERVERS', { database: 'small' })).length, 1);
      await client.end();
    });
  });

  it('max_db_connections overrides min_pool_size', async () => {
    const databases = { forced: pg().connstr('postgres', 'user=ann min_pool_size=3 max_db_connections=2') };
    await withPooler({ databases, settings: { ...TX, verbose: 1 } }, async (pooler) => {
      await pooler.logWait(/database 'forced' full \(2 >= 2\)/);
      assert.equal((await show(pooler, 'SERVERS')).length, 2);
    });
  });
});

describe('reserve pool', () => {
  /** Checks that `reserve` servers beyond pool_size=1 are opened, after a delay. */
  async function reserveIs(pooler: Bouncer, reserve: number, who: Login = {}): Promise<void> {
    const [holder] = await hold(pooler, 1, who);
    const from = pooler.log.mark();
    const late: RawClient[] = [];
    for (let i = 0; i < reserve + 1; i++) {
      const client = await login(pooler, who);
      await start(client, 'BEGIN');
      late.push(client);
    }
    for (const client of late.slice(0, reserve)) await client.until('Z');
    assert.equal(pooler.log.count(/taking connection from reserve_pool/, from), reserve);
    await rowsBecome(pooler, 'CLIENTS', { state: 'waiting' }, 1);
    assert.equal((await show(pooler, 'SERVERS', { state: 'active' })).length, reserve + 1);
    for (const client of [holder as RawClient, ...late]) await client.destroy();
    await rowsBecome(pooler, 'CLIENTS', { database: who.database ?? 'postgres' }, 0);
    await rowsBecome(pooler, 'SERVERS', { state: 'active' }, 0);
  }

  it('reserve_pool_size can be set globally, per database under both names, and per user', async () => {
    const databases = {
      postgres: pg().connstr(),
      two: pg().connstr('postgres', 'reserve_pool_size=2'),
      older: pg().connstr('postgres', 'reserve_pool=2'),
    };
    const users = { ann: 'reserve_pool_size=3' };
    const settings = { ...TX, default_pool_size: 1, reserve_pool_size: 1, reserve_pool_timeout: 0.4 };
    await withPooler({ databases, users, settings, userlist: USERS }, async (pooler) => {
      await reserveIs(pooler, 1);
      await reserveIs(pooler, 2, { database: 'two' });
      await reserveIs(pooler, 2, { database: 'older' });
      await reserveIs(pooler, 3, { database: 'two', user: 'ann' });
    });
  });

  it('reserve_pool_timeout is the wait before the reserve pool is used, and 0 disables the reserve pool', async () => {
    const settings = { ...TX, default_pool_size: 1, reserve_pool_size: 5, reserve_pool_timeout: 1.5 };
    await withPooler({ cluster: pg(), settings }, async (pooler) => {
      await hold(pooler, 1);
      const sinceMs = Date.now();
      const late = await waiter(pooler);
      // before the default of 5 seconds would open the reserve
      assert.equal(valueIn(await late.until('Z', 4500)), '1');
      const tookMs = Date.now() - sinceMs;
      assert.ok(tookMs >= 1400, `a reserve connection after ${tookMs} ms`);

      await pooler.admin('SET reserve_pool_timeout = 0');
      await pooler.admin('SET query_wait_timeout = 1');
      await hold(pooler, 1);
      const never = await waiter(pooler);
      assert.equal(await thrownOut(never), 'query_wait_timeout');
    });
  });
});

describe('limits on servers', () => {
  it('max_db_connections counts all pools of a database, and the limit of the database has precedence', async () => {
    const databases = { postgres: pg().connstr(), own: pg().connstr('postgres', 'max_db_connections=3') };
    const settings = { ...TX, max_db_connections: 2 };
    await withPooler({ databases, settings, userlist: USERS }, async (pooler) => {
      for (const [database, size] of [
        ['postgres', 2],
        ['own', 3],
      ] as const) {
        const holders = await hold(pooler, size - 1, { database, user: 'ann' });
        holders.push(...(await hold(pooler, 1, { database, user: 'ben' })));
        const late = await waiter(pooler, { database, user: 'ben' });
        assert.equal((await show(pooler, 'DATABASES', { name: database }))[0]?.current_connections, size);
        assert.equal((await show(pooler, 'DATABASES', { name: database }))[0]?.max_connections, size);
        await ask(holders[0] as RawClient, 'COMMIT');
        assert.equal(valueIn(await late.until('Z')), '1', 'the idle server of ann goes for ben');
        await pooler.logWait(/S-[^\n]*\/ann@[^\n]* closing because: evicted for max_db_connections \(/);
      }
    });
  });

  it('max_user_connections counts all pools of a user, and the limit of the user has precedence', async () => {
    const databases = { postgres: pg().connstr(), other: pg().connstr() };
    const users = { ann: 'max_user_connections=3' };
    const settings = { ...TX, max_user_connections: 2 };
    await withPooler({ databases, users, settings, userlist: USERS }, async (pooler) => {
      for (const [user, size] of [
        ['ben', 2],
        ['ann', 3],
      ] as const) {
        const holders = await hold(pooler, size - 1, { user });
        holders.push(...(await hold(pooler, 1, { user, database: 'other' })));
        const from = pooler.log.mark();
        const late = await waiter(pooler, { user, database: 'other' });
        assert.equal((await show(pooler, 'SERVERS', { user })).length, size);
        assert.equal((await show(pooler, 'USERS', { name: user }))[0]?.current_connections, size);
        await ask(holders[0] as RawClient, 'COMMIT');
        assert.equal(valueIn(await late.until('Z')), '1');
        await pooler.logWait(
          new RegExp(`S-\\w+: postgres/${user}@[^\\n]* closing because: evicted for max_user_connections \\(`),
          from,
        );
      }
    });
  });

  it('eviction closes the server that has been idle longest', async () => {
    const settings = { ...TX, max_db_connections: 3 };
    await withPooler({ cluster: pg(), settings, userlist: USERS }, async (pooler) => {
      const clients = await hold(pooler, 3, { user: 'ann' });
      const pids: number[] = [];
      for (const client of clients) pids.push(await backendOf(client));
      for (const at of [1, 0, 2]) {
        await ask(clients[at] as RawClient, 'COMMIT');
        // different idle times: the loop's clock has to advance in between
        await ask(
          await login(pooler, { database: 'pgbouncer', user: 'admin', password: 'admin-password' }),
          'SHOW VERSION',
        );
      }
      await ask(await login(pooler, { user: 'ben' }), 'SELECT 1');
      await eventually('the eviction', async () => (await backends(pg(), `pid = ${pids[1]}`)) === 0);
      assert.equal(await backends(pg(), `pid IN (${pids[0]}, ${pids[2]})`), 2);
    });
  });
});

describe('limits on clients', () => {
  it('max_client_conn counts all clients, and the console stays reachable', async () => {
    await withPooler({ cluster: pg(), settings: { ...TX, max_client_conn: 2 } }, async (pooler) => {
      const first = await login(pooler);
      await login(pooler);
      assert.equal(await refusal(pooler), 'no more connections allowed (max_client_conn)');
      await pooler.admin('SHOW VERSION');
      await first.end();
      await rowsBecome(pooler, 'CLIENTS', { database: 'postgres' }, 1);
      await login(pooler);
      await pooler.admin('SET max_client_conn = 3');
      await login(pooler);
      assert.equal(await refusal(pooler), 'no more connections allowed (max_client_conn)');
    });
  });

  it('max_db_client_connections applies globally or per database, except to administrators on the console', async () => {
    const databases = { postgres: pg().connstr(), own: pg().connstr('postgres', 'max_db_client_connections=3') };
    const settings = { ...TX, max_db_client_connections: 2 };
    const message = 'client connections exceeded (max_db_client_connections)';
    await withPooler({ databases, settings, userlist: USERS }, async (pooler) => {
      for (const [database, size] of [
        ['postgres', 2],
        ['own', 3],
      ] as const) {
        const first = await login(pooler, { database });
        for (let i = 1; i < size; i++) await login(pooler, { database, user: 'ann' });
        assert.equal(await refusal(pooler, { database, user: 'ben' }), message);
        const row = (await show(pooler, 'DATABASES', { name: database }))[0];
        assert.deepEqual([row?.current_client_connections, row?.max_client_connections], [size, size]);
        await first.end();
        await rowsBecome(pooler, 'CLIENTS', { database }, size - 1);
        await login(pooler, { database });
      }
      const admins = [];
      for (let i = 0; i < 4; i++) admins.push(await pooler.console());
      const stats = { user: 'stats', password: 'stats-password', database: 'pgbouncer' };
      assert.equal(await refusal(pooler, stats), message);
      for (const admin of admins) await admin.end();
    });
  });

  it('max_user_client_connections applies globally or per user', async () => {
    const users = { ann: 'max_user_client_connections=3' };
    const settings = { ...TX, max_user_client_connections: 2 };
    const message = 'client connections exceeded (max_user_client_connections)';
    const databases = { postgres: pg().connstr(), other: pg().connstr() };
    await withPooler({ databases, users, settings, userlist: USERS }, async (pooler) => {
      for (const [user, size] of [
        ['ben', 2],
        ['ann', 3],
      ] as const) {
        const first = await login(pooler, { user });
        for (let i = 1; i < size; i++) await login(pooler, { user, database: 'other' });
        assert.equal(await refusal(pooler, { user }), message);
        const row = (await show(pooler, 'USERS', { name: user }))[0];
        assert.deepEqual([row?.current_client_connections, row?.max_user_client_connections], [size, size]);
        await first.end();
        await rowsBecome(pooler, 'CLIENTS', { user }, size - 1);
        await login(pooler, { user });
      }
      assert.equal(await refusal(pooler, { user: 'ann' }), message);
    });
  });

  it('a failed login does not count towards the client limits', async () => {
    const settings = { auth_type: 'plain', max_user_client_connections: 1, max_db_client_connections: 1 };
    await withPooler({ cluster: pg(), settings, userlist: { ann: 'right' } }, async (pooler) => {
      for (let i = 0; i < 3; i++) {
        assert.equal(await refusal(pooler, { user: 'ann', password: 'wrong' }), 'password authentication failed');
      }
      await login(pooler, { user: 'ann', password: 'right' });
    });
  });
});

describe('max_packet_size', () => {
  it('a client with a packet larger than max_packet_size is disconnected', async () => {
    await withPooler({ cluster: pg(), settings: { ...TX, max_packet_size: 2000 } }, async (pooler) => {
      const client = await login(pooler);
      const fits = `SELECT '${'x'.repeat(1000)}'`;
      assert.equal((await ask(client, fits))?.length, 1000);
      await client.send(message('Q', cstring(`SELECT '${'x'.repeat(2000)}'`)).subarray(0, 100));
      assert.match(await thrownOut(client), /^bad packet header: '51000007de/);
    });
  });

  it('a server with a packet larger than max_packet_size is closed', async () => {
    await withPooler({ cluster: pg(), settings: { ...TX, max_packet_size: 2000 } }, async (pooler) => {
      const client = await login(pooler);
      const error = errorIn(await client.query("SELECT repeat('x', 3000)"));
      assert.equal(error?.M, 'bad pkt header');
      await pooler.logWait(/S-[^\n]* closing because: bad pkt header/);
      assert.equal(await ask(await login(pooler), 'SELECT 2'), '2');
    });
  });
});
