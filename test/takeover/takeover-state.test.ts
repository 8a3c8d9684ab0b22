/*
 * State that a handover carries besides open connections: logins in progress, learnt secrets, cancel keys, modes and
 * statistics. Also the effect of a changed config, and the messages for the operator.
 */

import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import type { Client } from 'pg';
import { eventually, it, type PgCluster } from '../harness';
import { after, before } from '../harness/limits';
import { cancelRequest, errorFields, letters, type Message } from '../harness/raw-client';
import { type RebootChain, withRebootChain } from '../harness/reboot-chain';
import { ScramClient } from '../harness/scram';
import { ask, firstValue, login, type Options, startTakeoverCluster, withStarted } from '../harness/takeover-fixtures';
import { TlsPlace, TRANSPORTS } from '../harness/tls-place';

const place = new TlsPlace();
let pg: PgCluster;

before(async () => {
  pg = await startTakeoverCluster(place.ofServers);
});
after(async () => {
  await pg.stop();
});

function started(options: Options, body: (chain: RebootChain) => Promise<void>): Promise<void> {
  return withStarted(pg, options, body);
}

/** A test without TLS, and one with TLS on both sides. */
function both(name: string, options: Options, body: (chain: RebootChain) => Promise<void>): void {
  for (const [secured, suffix] of TRANSPORTS) {
    it(`${name}${suffix}`, () => {
      const given = typeof options === 'function' ? options(pg.connstr()) : options;
      return withRebootChain(place.optionsOf({ cluster: pg, ...given }, secured), async (chain) => {
        await chain.start('ts');
        await body(chain);
      });
    });
  }
}

async function admin(chain: RebootChain): Promise<Client> {
  return chain.connect({ user: 'admin', password: 'admin', database: 'pgbouncer' });
}

/* ---- logins ---- */

both(
  'a SCRAM login begun in the old process completes in the new process',
  { settings: { auth_type: 'scram-sha-256' }, userlist: { postgres: 'pw', scrammer: 'secret' } },
  async (chain) => {
    const client = await chain.raw();
    await client.startup({ user: 'scrammer', database: 'postgres' });
    assert.equal((await client.next())?.type, 'R');
    const scram = new ScramClient('secret');
    const first = Buffer.from(scram.first(), 'latin1');
    const length = Buffer.alloc(4);
    length.writeInt32BE(first.length);
    await client.sendMessage('p', Buffer.from('SCRAM-SHA-256\0'), length, first);
    const challenge = (await client.next()) as Message;

    await chain.reboot('ts');
    await client.sendMessage('p', Buffer.from(scram.final(challenge.body.toString('latin1', 4)), 'latin1'));
    const welcome = await client.until('ZE');
    assert.equal(welcome.at(-1)?.type, 'Z', letters(welcome));
    scram.check((welcome[0] as Message).body.toString('latin1', 4));
    assert.equal(await ask(client, 'SELECT current_user'), 'scrammer');
    await client.end();
  },
);

it('a client that waits for its first server gets its welcome message from the new process', () =>
  started({ databases: { postgres: 'host=127.0.0.1 port=1 dbname=postgres' } }, async (chain) => {
    // no server listens there: the first client of the pool waits for its welcome message
    const client = await chain.raw();
    await client.startup({ user: 'postgres', database: 'postgres' });
    chain.write({ databases: { postgres: pg.connstr() } });
    await chain.reboot('ts');
    const answer = await client.until('ZE');
    // the first attempt may have been refused before the reboot
    if (answer.at(-1)?.type === 'Z') assert.equal(await ask(client, 'SELECT 1'), '1');
    await client.destroy();
  }));

both(
  'SCRAM keys learnt by the old process log in to servers in the new process',
  {
    settings: { auth_type: 'scram-sha-256', pool_mode: 'transaction' },
    userlist: { postgres: 'pw', scrammer: '' },
  },
  async (chain) => {
    const secret = (await pg.storedSecret('scrammer')) as string;
    chain.write({ userlist: { scrammer: secret } });
    const console1 = await admin(chain);
    await console1.query('RELOAD');
    const client = await chain.raw();
    assert.equal((await client.login({ user: 'scrammer', password: 'secret' })).at(-1)?.type, 'Z');
    assert.equal(await ask(client, 'SELECT 1'), '1');
    await chain.reboot('ts');
    await console1.query('RECONNECT');
    // a new server connection can only log in with the keys that the old process has learnt
    assert.equal(await ask(client, 'SELECT current_user'), 'scrammer');
    assert.match(chain.now.log.text, /new connection to server/);
    await client.end();
    await console1.end();
  },
);

it('users found by auth_query stay logged in after a takeover', () =>
  started(
    {
      settings: { auth_type: 'md5', auth_user: 'postgres' },
      userlist: { postgres: 'pw' },
    },
    async (chain) => {
      const client = await chain.raw();
      const answer = await client.login({ user: 'asked', password: 'answer' });
      assert.equal(answer.at(-1)?.type, 'Z', JSON.stringify(answer.at(-1)?.body.toString()));
      assert.equal(await ask(client, 'SELECT current_user'), 'asked');
      await chain.reboot('ts');
      assert.equal(await ask(client, 'SELECT current_user'), 'asked');
      await (await admin(chain)).query('RECONNECT');
      await client.end();
      const again = await chain.raw();
      assert.equal((await again.login({ user: 'asked', password: 'answer' })).at(-1)?.type, 'Z');
      await again.end();
    },
  ));

both(
  'logins that wait for auth_query, or for a server to run it, complete in the new process',
  {
    settings: {
      auth_type: 'md5',
      auth_user: 'postgres',
      default_pool_size: 1,
      auth_query: 'SELECT usename, passwd FROM pg_shadow WHERE usename = $1 AND pg_sleep(1.5) IS NOT NULL',
    },
    userlist: { postgres: 'pw' },
  },
  async (chain) => {
    const clients = [await chain.raw(), await chain.raw()];
    const logins = clients.map((client) => client.login({ user: 'asked', password: 'answer' }));
    await eventually('one to be asked about, one to wait', async () => {
      const pool = (await chain.show('POOLS')).find((row) => row.user === 'postgres');
      return pool?.sv_active === 1 && pool?.cl_waiting === 1;
    });
    await chain.reboot('ts');
    for (const answer of await Promise.all(logins)) assert.equal(answer.at(-1)?.type, 'Z', letters(answer));
    for (const client of clients) await client.destroy();
  },
);

/* ---- cancel ---- */

both(
  'a cancel key issued by the old process cancels a query in the new process',
  { settings: { pool_mode: 'transaction' } },
  async (chain) => {
    const client = await login(chain);
    await client.sendMessage('Q', Buffer.from('SELECT pg_sleep(30)\0'));
    await eventually('the query to run', async () => (await chain.show('POOLS')).some((row) => row.sv_active === 1));
    await chain.reboot('ts');
    await cancelRequest(await chain.raw(), client.backendPid, client.backendKey);
    const answer = await client.until('Z');
    assert.match(errorFields(answer.find((msg) => msg.type === 'E') as Message).M ?? '', /canceling statement/);
    assert.equal(await ask(client, 'SELECT 1'), '1');
    await client.end();
  },
);

/* ---- modes ---- */

it('paused and disabled databases stay so after a takeover, and their waiting clients keep waiting', () =>
  started(
    (connstr) => ({ databases: { one: connstr, two: connstr }, settings: { pool_mode: 'transaction' } }),
    async (chain) => {
      const console1 = await admin(chain);
      const client = await login(chain, { database: 'one' });
      await client.query('SELECT 1');
      await console1.query('PAUSE one');
      await console1.query('DISABLE two');
      await client.sendMessage('Q', Buffer.from("SELECT 'waited'\0"));
      await eventually('the client to wait', async () =>
        (await chain.show('POOLS')).some((row) => row.cl_waiting === 1),
      );
      const since = Number((await chain.show('CLIENTS')).find((row) => row.database === 'one')?.wait ?? 0);
      await chain.reboot('ts');
      const databases = await chain.show('DATABASES');
      assert.equal(databases.find((row) => row.name === 'one')?.paused, 1);
      assert.equal(databases.find((row) => row.name === 'two')?.disabled, 1);
      await eventually('the time in the queue to go on', async () => {
        const row = (await chain.show('CLIENTS')).find((one) => one.database === 'one');
        return Number(row?.wait) >= since && row?.state === 'waiting';
      });
      await assert.rejects(chain.sql('SELECT 1', { database: 'two' }), /disabled/);
      // the console client was handed over too
      await console1.query('RESUME one');
      assert.equal(firstValue(await client.until('Z')), 'waited');
      await console1.query('ENABLE two');
      assert.equal((await chain.sql('SELECT 1 AS one', { database: 'two' })).rows[0].one, 1);
      await console1.end();
      await client.end();
    },
  ));

it('PAUSE of all databases stays in effect after a takeover', () =>
  started({}, async (chain) => {
    const console1 = await admin(chain);
    const client = await login(chain);
    await console1.query('PAUSE');
    await client.sendMessage('Q', Buffer.from("SELECT 'after'\0"));
    await chain.reboot('ts');
    await assert.rejects(client.next(300), /waited/);
    await console1.query('RESUME');
    assert.equal(firstValue(await client.until('Z')), 'after');
    await console1.end();
  }));

it('statistics continue after a takeover, and no wrong times are logged', () =>
  started({ settings: { pool_mode: 'transaction' } }, async (chain) => {
    const client = await login(chain);
    for (let i = 0; i < 10; i++) await client.query('SELECT 1');
    await client.query('BEGIN');
    const before = (await chain.show('STATS_TOTALS')).find((row) => row.database === 'postgres');
    await chain.reboot('ts');
    const after = (await chain.show('STATS_TOTALS')).find((row) => row.database === 'postgres');
    assert.deepEqual(after, before);
    await client.query('COMMIT');
    assert.equal((await chain.show('STATS_TOTALS')).find((row) => row.database === 'postgres')?.query_count, '12');
    assert.equal(chain.now.log.count(/xact_start == 0|query_start == 0/), 0);
    await client.end();
  }));

it('a replication connection works after a takeover', () =>
  started({ settings: { pool_mode: 'transaction' } }, async (chain) => {
    const client = await login(chain, { replication: 'database' });
    const before = firstValue(await client.query('IDENTIFY_SYSTEM'));
    await chain.reboot('ts');
    assert.equal(firstValue(await client.query('IDENTIFY_SYSTEM')), before);
    await client.end();
  }));

both(
  'a replication stream across takeovers delivers every change once and in order',
  { settings: { pool_mode: 'transaction' } },
  async (chain) => {
    await pg.sql('CREATE TABLE changed (i int, t text)');
    await pg.sql('CREATE PUBLICATION everything FOR TABLE changed');
    const insert = (from: number): Promise<unknown> =>
      pg.sql(`INSERT INTO changed SELECT i, repeat('r', 1000) || i FROM generate_series(${from}, ${from + 1999}) i`);
    const client = await login(chain, { replication: 'database' });
    await client.query('CREATE_REPLICATION_SLOT stream TEMPORARY LOGICAL pgoutput');
    const options = "(proto_version '1', publication_names 'everything')";
    await client.sendMessage('Q', Buffer.from(`START_REPLICATION SLOT stream LOGICAL 0/0 ${options}\0`));
    assert.equal(letters(await client.until('WE')), 'W');
    client.pause();
    await insert(0);
    await chain.reboot('ts');
    await insert(2000);
    await chain.reboot('ts');
    client.resume();
    for (let row = 0; row < 4000; ) {
      const data = (await client.next()) as Message;
      assert.equal(data?.type, 'd');
      const kind = data.body.toString('latin1', 25, 26);
      // begin, relation, commit, keepalive
      if (data.body[0] !== 0x77 || kind !== 'I') continue;
      const text = data.body.toString('latin1');
      assert.ok(text.endsWith(`${'r'.repeat(1000)}${row}`), `row ${row}: ${text.slice(-20)}`);
      row++;
    }
    await client.sendMessage('c');
    assert.match(letters(await client.until('Z')), /^d*cd*C+Z$/);
    await client.end();
    await pg.sql('DROP PUBLICATION everything');
    await pg.sql('DROP TABLE changed');
  },
);

both(
  'PAUSE and WAIT_CLOSE that wait at a takeover are answered by the new process',
  { settings: { pool_mode: 'transaction' } },
  async (chain) => {
    const client = await login(chain);
    const console1 = await admin(chain);
    await client.query('BEGIN');
    for (const [begin, end] of [
      ['PAUSE', 'RESUME'],
      ['RECONNECT; WAIT_CLOSE', 'SHOW VERSION'],
    ] as const) {
      let done = false;
      const commands = begin.split('; ');
      const last = commands.pop() as string;
      for (const command of commands) await console1.query(command);
      const from = chain.now.log.mark();
      const waits = console1.query(last).then(() => {
        done = true;
      });
      await chain.now.log.wait(new RegExp(`${last} command issued`), from);
      await chain.reboot('ts');
      assert.equal(await ask(client, 'SELECT 1'), '1');
      assert.ok(!done, `${last} was answered too early`);
      await client.query('COMMIT');
      await waits;
      await console1.query(end);
      await client.query('BEGIN');
    }
    await console1.end();
    await client.end();
  },
);

it('PAUSE and WAIT_CLOSE that wait for different databases at a takeover are each answered when complete', () =>
  started(
    (connstr) => ({ databases: { one: connstr, two: connstr }, settings: { pool_mode: 'transaction' } }),
    async (chain) => {
      const [inOne, inTwo] = [await login(chain, { database: 'one' }), await login(chain, { database: 'two' })];
      const [first, second] = [await admin(chain), await admin(chain)];
      await inOne.query('BEGIN');
      await inTwo.query('BEGIN');
      await second.query('RECONNECT two');
      // the driver reads WAIT_CLOSE as WAIT
      const answers: string[] = [];
      const [paused, closed] = [first.query('PAUSE one'), second.query('WAIT_CLOSE two')].map((answer) =>
        answer.then(({ command }) => answers.push(command)),
      );
      await chain.now.log.wait(/PAUSE 'one' command issued/);
      await chain.now.log.wait(/WAIT_CLOSE 'two' command issued/);
      await chain.reboot('ts');
      assert.equal(await ask(inOne, 'SELECT 1'), '1');
      assert.deepEqual(answers, []);
      await inOne.query('COMMIT');
      await paused;
      assert.equal(await ask(inTwo, 'SELECT 1'), '1');
      assert.deepEqual(answers, ['PAUSE']);
      await inTwo.query('COMMIT');
      await closed;
      assert.deepEqual(answers, ['PAUSE', 'WAIT']);
      for (const each of [inOne, inTwo, first, second]) await each.end();
    },
  ));

it('a killed database stays killed after a takeover until RESUME', () =>
  started(
    (connstr) => ({ databases: { one: connstr }, settings: { pool_mode: 'transaction' } }),
    async (chain) => {
      const console1 = await admin(chain);
      const client = await login(chain, { database: 'one' });
      await client.query('SELECT 1');
      await console1.query('KILL one');
      await client.until('E');
      await chain.reboot('ts');
      assert.equal((await chain.show('DATABASES')).find((row) => row.name === 'one')?.paused, 1);
      const late = chain.sql('SELECT 1 AS one', { database: 'one' });
      await eventually('a client to wait', async () =>
        (await chain.show('POOLS')).some((row) => row.database === 'one' && row.cl_waiting === 1),
      );
      await console1.query('RESUME one');
      assert.equal((await late).rows[0].one, 1);
      await console1.end();
    },
  ));

it('the counts of clients and servers are correct after takeovers', () =>
  started({ users: { postgres: 'max_user_client_connections=3' } }, async (chain) => {
    const clients = [await login(chain), await login(chain)];
    for (const client of clients) await client.query('SELECT 1');
    for (let i = 0; i < 3; i++) await chain.reboot('ts');
    const third = await login(chain);
    const refused = await chain.raw();
    const answer = await refused.login();
    assert.match(errorFields(answer.at(-1) as Message).M ?? '', /max_user_client_connections/);
    await third.end();
    for (const client of clients) await client.end();
    await eventually('no clients', async () => {
      const row = (await chain.show('USERS')).find((one) => one.name === 'postgres');
      return row?.current_client_connections === 0;
    });
  }));

/* ---- a changed config ---- */

/* ---- for the operator ---- */

it("both processes log PgBouncer's lines in PgBouncer's order during a takeover", () =>
  started({}, async (chain) => {
    const old = chain.now;
    const from = old.log.mark();
    const next = await chain.reboot('ts');
    const lines = [
      'takeover_init: launching connection',
      'login OK, sending SUSPEND',
      'SUSPEND finished, sending SHOW FDS',
      'got pooler socket: 127.0.0.1:',
      'got pooler socket: unix:',
      'SHOW FDS finished',
      'disko over, going background',
      'sending SHUTDOWN;',
      'waiting for old pidfile to go away',
      'old process killed, resuming work',
      'process up: ',
    ];
    let at = -1;
    for (const line of lines) {
      const found = next.log.text.indexOf(line, at + 1);
      assert.ok(found > at, `"${line}" is not in its place:\n${next.log.text}`);
      at = found;
    }
    assert.equal(old.log.count(/SHUTDOWN command issued/, from), 1);
    assert.equal(Number(readFileSync(chain.pidfile, 'latin1')), next.pid);
  }));

it('-R -d prints one line: what was taken over, or why the takeover failed', () =>
  withRebootChain({ cluster: pg }, async (chain) => {
    const logged = { settings: { logfile: `${chain.dir}/pooler.log` } };
    chain.write(logged);
    assert.deepEqual(await chain.run('-d'), { code: 0, signal: null, stdout: '', stderr: '' });
    try {
      const client = await login(chain);
      await client.query('BEGIN');
      const pid = chain.pidInFile();
      const done = await chain.run('-R', '-d');
      assert.equal(done.code, 0, done.stderr);
      assert.match(done.stdout, /^took over 2 listening sockets, 1 clients, 1 servers; longest pause \d+ ms\n$/);
      assert.notEqual(chain.pidInFile(), pid);
      // the process was pinned to one CPU only during its start
      assert.deepEqual(cpusOf(chain.pidInFile()), cpusOf(process.pid));
      assert.equal(await ask(client, 'SELECT 1'), '1');
      chain.write({ settings: { ...logged.settings, listen_addr: 'no.such.host.invalid' } });
      const failed = await chain.run('-R', '-d');
      assert.equal(failed.code, 1);
      assert.match(failed.stderr, /FATAL getaddrinfo/);
      assert.equal(await ask(client, 'SELECT 1'), '1');
      await client.end();
    } finally {
      const pid = chain.pidInFile();
      if (pid > 0) process.kill(pid, 'SIGKILL');
    }
  }));

/** The CPUs on which the kernel lets the threads of a process run. */
function cpusOf(pid: number): string[] {
  const lists = readdirSync(`/proc/${pid}/task`).map((thread) => {
    const status = readFileSync(`/proc/${pid}/task/${thread}/status`, 'latin1');
    return /^Cpus_allowed_list:\s*(\S+)/m.exec(status)?.[1] ?? '';
  });
  return [...new Set(lists)];
}
