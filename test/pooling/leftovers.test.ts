/*
 * dirty_session: what clients leave behind in the session of a server in transaction pooling. A pool has one server, so
 * the next client always meets what the last one has left.
 */

import assert from 'node:assert/strict';
import { type Bouncer, type BouncerOptions, it, PgCluster } from '../harness';
import { ask, login, withPooler } from '../harness/answers';
import { backendPid, fails } from '../harness/expect';
import { after, before } from '../harness/limits';
import { bind, EXECUTE, FLUSH, parse, prepare, SYNC, use } from '../harness/prepared-packets';
import { errorFields, letters, message } from '../harness/raw-client';
import { withRebootChain } from '../harness/reboot-chain';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
  await pg.sql('CREATE ROLE other; CREATE TABLE kept (id int)');
});
after(() => pg.stop());

const ONE_SERVER = { pool_mode: 'transaction', default_pool_size: 1, verbose: 1 };

/** A pooler with that dirty_session. */
function withMode(mode: string, body: (pooler: Bouncer) => Promise<void>, more: BouncerOptions = {}): Promise<void> {
  const settings = { ...ONE_SERVER, dirty_session: mode, ...more.settings };
  return withPooler({ cluster: pg, ...more, settings }, body);
}

/** For each kind of leftover: what a client does, how the next client sees it, and what it sees without it. */
const KINDS: Record<string, [sql: string, look: string, clean: string]> = {
  SET: ["SET work_mem = '5MB'", "SELECT current_setting('work_mem')", '4MB'],
  'SET of a parameter without a type': [
    "SET app.tenant = 'a'",
    "SELECT coalesce(current_setting('app.tenant', true), '')",
    '',
  ],
  'SET ROLE': ['SET ROLE other', 'SELECT current_user::text', 'postgres'],
  'SET SESSION AUTHORIZATION': [
    'SET SESSION AUTHORIZATION other',
    "SELECT session_user || ' ' || current_user",
    'postgres postgres',
  ],
  'SET SESSION AUTHORIZATION and SET ROLE': [
    'SET ROLE other; SET SESSION AUTHORIZATION other; SET ROLE other',
    "SELECT session_user || ' ' || current_user || ' ' || current_setting('role')",
    'postgres postgres none',
  ],
  'SET SESSION CHARACTERISTICS': [
    'SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE',
    "SELECT current_setting('transaction_isolation')",
    'read committed',
  ],
  PREPARE: ['PREPARE left_behind AS SELECT 1', 'SELECT count(*)::text FROM pg_prepared_statements', '0'],
  LISTEN: ['LISTEN left_behind', 'SELECT count(*)::text FROM pg_listening_channels()', '0'],
  'DECLARE CURSOR WITH HOLD': [
    'DECLARE left_behind CURSOR WITH HOLD FOR SELECT 1',
    'SELECT count(*)::text FROM pg_cursors',
    '0',
  ],
};

it('reset: the next client does not meet what a client has left, in a transaction or not, on the same server', async () => {
  await withMode('reset', async (pooler) => {
    const [one, two] = [await login(pooler), await login(pooler)];
    const pid = await ask(two, 'SELECT pg_backend_pid()');
    for (const [kind, [sql, look, clean]] of Object.entries(KINDS)) {
      for (const text of [sql, `BEGIN; ${sql}; COMMIT`]) {
        const from = pooler.log.text.length;
        assert.doesNotMatch(letters(await one.query(text)), /E/, kind);
        assert.equal(await ask(two, look), clean, kind);
        // session_authorization is a tracked parameter
        if (text !== 'SET SESSION AUTHORIZATION other') await pooler.logWait(/resetting: /, from);
      }
    }
    assert.equal(await ask(two, 'SELECT pg_backend_pid()'), pid);
  });
});

it('reset: a server with a library that a client has loaded is closed', async () => {
  await withMode('reset', async (pooler) => {
    const one = await pooler.connect();
    const pid = await backendPid(one);
    await one.query("LOAD '$libdir/plpgsql'");
    assert.notEqual(await backendPid(one), pid);
  });
});

it('reset: only servers that were altered are reset, and tracked parameters do not count', async () => {
  await withMode('reset', async (pooler) => {
    const [one, two] = [await login(pooler), await login(pooler)];
    for (const sql of [
      'SELECT 1',
      'BEGIN; INSERT INTO kept VALUES (1); ROLLBACK',
      'DISCARD ALL',
      "SET application_name = 'one'",
      "SET TimeZone = 'Asia/Tokyo'; SET DateStyle = 'German'",
      'RESET work_mem',
    ])
      assert.doesNotMatch(letters(await one.query(sql)), /E/);
    await ask(two, 'SELECT 1');
    assert.equal(await ask(one, "SELECT current_setting('application_name')"), 'one');
    assert.equal(await ask(one, "SELECT current_setting('TimeZone')"), 'Asia/Tokyo');
    // undone by the client itself
    await one.query('BEGIN; PREPARE a AS SELECT 1; DECLARE c CURSOR FOR SELECT 1');
    await one.query('DEALLOCATE ALL; CLOSE ALL; COMMIT');
    await one.query('DECLARE c CURSOR WITH HOLD FOR SELECT 1; CLOSE ALL');
    assert.equal(pooler.log.count(/resetting: /), 0);
    // the client's own values come back after a reset
    await one.query("SET work_mem = '5MB'");
    await ask(two, 'SELECT 1');
    assert.equal(await ask(one, "SELECT current_setting('TimeZone') || current_setting('work_mem')"), 'Asia/Tokyo4MB');
    assert.equal(pooler.log.count(/resetting: RESET SESSION AUTHORIZATION;RESET ROLE;RESET ALL;$/m), 1);
  });
});

it("reset: other clients' prepared statements work on, although PREPARE is undone by DEALLOCATE ALL", async () => {
  await withMode('reset', async (pooler) => {
    const [one, two] = [await login(pooler), await login(pooler)];
    await prepare(one, 'mine', 'SELECT 42');
    assert.equal(await use(one, 'mine'), '42');
    await two.query('PREPARE theirs AS SELECT 1');
    assert.equal(await use(one, 'mine'), '42');
    await one.query('PREPARE own AS SELECT 1');
    assert.equal(await use(one, 'mine'), '42');
    assert.equal(pooler.log.count(/resetting: DEALLOCATE ALL;$/m), 2);
  });
});

it('reset: what connect_query has set is set again', async () => {
  const query = "SET work_mem = '6MB'; PREPARE mine AS SELECT 7";
  const databases = { postgres: `host=127.0.0.1 port=${pg.port} connect_query='${query.replaceAll("'", "''")}'` };
  const look = "SELECT current_setting('work_mem') || count(*)::text FROM pg_prepared_statements";
  await withMode(
    'reset',
    async (pooler) => {
      const [one, two] = [await login(pooler), await login(pooler)];
      const pid = await ask(one, 'SELECT pg_backend_pid()');
      for (const sql of ["SET work_mem = '5MB'", 'RESET ALL', 'PREPARE other AS SELECT 1']) {
        assert.equal(await ask(two, look), '6MB1');
        assert.doesNotMatch(letters(await one.query(sql)), /E/);
      }
      assert.equal(await ask(two, look), '6MB1');
      assert.equal(await ask(two, 'SELECT pg_backend_pid()'), pid);
    },
    { databases },
  );
});

it('a server whose reset fails is closed, and the log says why', async () => {
  const databases = { postgres: `host=127.0.0.1 port=${pg.port} connect_query='CREATE TEMP TABLE twice (id int)'` };
  await withMode(
    'reset',
    async (pooler) => {
      const one = await pooler.connect();
      const pid = await backendPid(one);
      await one.query("SET work_mem = '5MB'");
      assert.notEqual(await backendPid(one), pid);
      await pooler.logWait(/WARNING .*reset of dirty_session failed: .*relation "twice" already exists/);
      await pooler.logWait(/closing because: reset query failed/);
    },
    { databases },
  );
});

it('log: one line names what is left for certain, and repeats are limited', async () => {
  await withMode(
    'log',
    async (pooler) => {
      const one = await pooler.connect({ user: 'postgres' });
      await one.query("BEGIN; SET LOCAL work_mem = '5MB'; SET TRANSACTION READ ONLY; COMMIT");
      await one.query("SET application_name = 'one'");
      await one.query('SET nothing_at_all = 1').catch(() => {});
      for (let i = 0; i < 5; i++) await one.query(`SET work_mem = '${i + 1}MB'`);
      await one.query('BEGIN; PREPARE a AS SELECT 1; LISTEN b; COMMIT');
      await one.query("BEGIN; SET work_mem = '7MB'; COMMIT");
      await pooler.logWait(/session state left behind on the server: PREPARE, LISTEN/);
      const lines = pooler.log.text.match(/WARNING .*session state left behind.*/g) ?? [];
      assert.equal(lines.length, 3, lines.join('\n'));
      assert.match(lines[0] ?? '', /C-0x\w+: postgres\/postgres@\S+ session state left behind on the server: SET$/);
      assert.equal(pooler.log.count(/resetting: /), 0);
    },
    { settings: { log_repeat_limit: 2 } },
  );
});

const REFUSED: Record<string, string> = {
  SET: "SET work_mem = '5MB'",
  PREPARE: 'PREPARE left_behind AS SELECT 1',
  LISTEN: 'LISTEN left_behind',
  'DECLARE CURSOR WITH HOLD': 'DECLARE left_behind CURSOR WITH HOLD FOR SELECT 1',
  LOAD: "LOAD '$libdir/plpgsql'",
};

it('refuse: a command that outlasts its transaction ends the client with an error, and the server', async () => {
  await withMode('refuse', async (pooler) => {
    for (const [command, sql] of Object.entries(REFUSED)) {
      const [one, two] = [await pooler.connect(), await pooler.connect()];
      const pid = await backendPid(two);
      const reason = `${command} is not allowed: it outlasts the transaction (dirty_session = refuse)`;
      await fails(one.query(sql), reason, '0A000');
      assert.notEqual(await backendPid(two), pid);
      // by the extended protocol
      await fails(two.query({ text: sql, values: [] }), reason, '0A000');
    }
  });
});

it('refuse: what ends with its transaction is allowed', async () => {
  await withMode('refuse', async (pooler) => {
    const one = await pooler.connect();
    const pid = await backendPid(one);
    for (const sql of [
      "BEGIN; SET LOCAL work_mem = '5MB'; SET TRANSACTION READ ONLY; DECLARE c CURSOR FOR SELECT 1; COMMIT",
      'BEGIN',
      "SET LOCAL work_mem = '5MB'",
      'DECLARE c CURSOR FOR SELECT 1',
      'COMMIT',
      "SET application_name = 'one'",
      'RESET ALL',
      'NOTIFY somebody',
      'UNLISTEN *',
    ])
      await one.query(sql);
    await fails(one.query("SET nothing_at_all.x.y = '"), /unterminated/, '42601');
    // undone by the error
    await fails(one.query("SET work_mem = '5MB'; SELECT 1 / 0"), /division by zero/, '22012');
    assert.equal(await backendPid(one), pid);
  });
});

it('refuse: answers before the refused command arrive, a transaction is undone', async () => {
  await withMode('refuse', async (pooler) => {
    const one = await login(pooler);
    const pipeline = [
      parse('', 'SELECT 41'),
      bind(''),
      EXECUTE,
      SYNC,
      message('Q', Buffer.from('PREPARE a AS SELECT 1\0')),
    ];
    await one.send(...pipeline);
    const answer = await one.until('E');
    assert.equal(letters(answer), '12DCZE');
    assert.equal(errorFields(answer.at(-1) as never).C, '0A000');
    assert.equal(await one.next(), null);
    const two = await login(pooler);
    await two.query('BEGIN; INSERT INTO kept VALUES (1)');
    await two.send(message('Q', Buffer.from('LISTEN a\0')));
    assert.equal(letters(await two.until('E')), 'E');
    assert.equal((await pg.sql('SELECT count(*)::int AS n FROM kept')).rows[0].n, 0);
  });
});

it('databases and users have their own dirty_session, the default is ignore, and RELOAD changes it', async () => {
  const at = `host=127.0.0.1 port=${pg.port} dbname=postgres`;
  const options = {
    settings: { dirty_session: null },
    databases: { postgres: `${at} dirty_session=refuse`, free: at },
    users: { other: 'dirty_session=ignore' },
    userlist: { other: '' },
  };
  await pg.sql('ALTER ROLE other LOGIN');
  await withMode(
    'ignore',
    async (pooler) => {
      const set = (database: string, user: string) => pooler.sql("SET work_mem = '5MB'", { database, user });
      await fails(set('postgres', 'postgres'), /^SET is not allowed/, '0A000');
      await set('postgres', 'other');
      const one = await pooler.connect({ database: 'free' });
      await one.query("SET work_mem = '5MB'");
      // by default it stays
      const two = await pooler.connect({ database: 'free' });
      assert.equal((await two.query('SHOW work_mem')).rows[0].work_mem, '5MB');
      pooler.rewrite({ settings: { dirty_session: 'refuse' } });
      await pooler.admin('RELOAD');
      await fails(one.query("SET work_mem = '6MB'"), /^SET is not allowed/, '0A000');
      assert.equal((await pooler.admin('SHOW CONFIG')).find(({ key }) => key === 'dirty_session')?.value, 'refuse');
    },
    options,
  );
});

it('with server_reset_query_always, that query is enough', async () => {
  await withMode(
    'reset',
    async (pooler) => {
      const [one, two] = [await login(pooler), await login(pooler)];
      await one.query("SET work_mem = '5MB'");
      assert.equal(await ask(two, "SELECT current_setting('work_mem')"), '4MB');
      assert.equal(pooler.log.count(/resetting: (?!DISCARD ALL)/), 0);
    },
    { settings: { server_reset_query_always: 1 } },
  );
});

it('session pooling is as before', async () => {
  await withMode(
    'refuse',
    async (pooler) => {
      const one = await pooler.connect();
      await one.query("SET work_mem = '5MB'");
      assert.equal((await one.query('SHOW work_mem')).rows[0].work_mem, '5MB');
    },
    { settings: { pool_mode: 'session' } },
  );
});

it('a server that is recovered from a client that left is reset too', async () => {
  await withMode(
    'reset',
    async (pooler) => {
      const one = await login(pooler);
      const pid = await ask(one, 'SELECT pg_backend_pid()');
      await one.query('BEGIN; PREPARE left_behind AS SELECT 1');
      await one.send(parse('', 'LISTEN left_behind'), bind(''), EXECUTE, FLUSH);
      await one.until('C');
      await one.destroy(true);
      const two = await login(pooler);
      assert.equal(await ask(two, 'SELECT count(*)::text FROM pg_prepared_statements'), '0');
      assert.equal(await ask(two, 'SELECT pg_backend_pid()'), pid);
      await pooler.logWait(/resetting: DEALLOCATE ALL;UNLISTEN \*;$/m);
    },
    { settings: { server_recovery_timeout: 5 } },
  );
});

it('what was done before an online reboot is undone after it', async () => {
  const settings = { ...ONE_SERVER, dirty_session: 'reset' };
  await withRebootChain({ cluster: pg, settings }, async (chain) => {
    await chain.start('ts');
    const one = await chain.connect();
    const pid = await backendPid(one);
    await one.query("BEGIN; SET work_mem = '5MB'; PREPARE left_behind AS SELECT 1");
    const { log } = await chain.reboot('ts');
    await one.query('COMMIT');
    await log.wait(/resetting: RESET SESSION AUTHORIZATION;RESET ROLE;RESET ALL;DEALLOCATE ALL;$/m);
    const { rows } = await chain.sql(
      "SELECT current_setting('work_mem') AS mem, pg_backend_pid() AS pid, count(*)::int AS n FROM pg_prepared_statements",
    );
    assert.deepEqual(rows[0], { mem: '4MB', pid, n: 0 });
  });
});
