/*
 * psql through the pooler and on the console: statements, the catalogue queries of its backslash commands, \copy,
 * Ctrl-C, and connecting.
 */

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { createReadStream, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { giveTo, spawnAs } from '../../tools/unprivileged';
import {
  Bouncer,
  eventually,
  it,
  noPsql,
  type Outcome,
  PgCluster,
  psql,
  run,
  startProgram,
  tempDir,
  user,
  withTimeout,
} from '../harness';
import { after, before, describe } from '../harness/limits';

const MODES = ['session', 'transaction', 'statement'];
const COPY_LINES = 100_000;

describe('psql', { skip: noPsql ?? false }, () => {
  let pg: PgCluster;
  let bouncer: Bouncer;
  let dir: string;

  before(async () => {
    dir = tempDir('psql');
    pg = await PgCluster.start();
    for (const secret of ['scram', 'md5'] as const) await pg.createUser(`user_${secret}`, 'the password', secret);
    const databases = Object.fromEntries(MODES.map((mode) => [mode, pg.connstr('postgres', `pool_mode=${mode}`)]));
    bouncer = await Bouncer.start({
      cluster: pg,
      databases,
      settings: { auth_type: 'md5' },
      userlist: {
        postgres: 'postgres-password',
        user_scram: (await pg.storedSecret('user_scram')) ?? '',
        user_md5: (await pg.storedSecret('user_md5')) ?? '',
      },
    });
  });
  after(async () => {
    await bouncer.stop();
    await pg.stop();
  });

  function environment(more: NodeJS.ProcessEnv = {}): NodeJS.ProcessEnv {
    const base = {
      PGHOST: bouncer.host,
      PGPORT: String(bouncer.port),
      PGUSER: 'postgres',
      PGPASSWORD: 'postgres-password',
    };
    return { ...process.env, PGCONNECT_TIMEOUT: '10', HOME: dir, LC_ALL: 'C.UTF-8', ...base, ...more };
  }

  /** Runs a script; unaligned rows only. */
  function script(database: string, input: string, env: NodeJS.ProcessEnv = {}): Promise<Outcome> {
    const args = ['-X', '-q', '-A', '-t', '-v', 'ON_ERROR_STOP=1', '-d', database];
    return run(psql as string, args, { input, env: environment(env), cwd: dir, timeoutMs: 60_000 });
  }

  /** The output of the script, which must succeed. */
  async function output(database: string, input: string, env: NodeJS.ProcessEnv = {}): Promise<string> {
    const outcome = await script(database, input, env);
    assert.equal(outcome.code, 0, outcome.stderr);
    return outcome.stdout;
  }

  function admin(input: string): Promise<string> {
    return output('pgbouncer', input, { PGUSER: 'admin', PGPASSWORD: 'admin-password' });
  }

  for (const mode of MODES) {
    it(`psql runs statements, variables and several statements in one string: ${mode} pooling`, async () => {
      const text = await output(
        mode,
        `SELECT 'naïve 象';
         SELECT 6 * 7 AS answer \\gset
         SELECT :answer + 1, :'answer';
         SELECT 1\\; SELECT 2;
         SELECT format('SELECT %s', n) FROM generate_series(1, 3) n \\gexec
         SELECT repeat('x', 5000000);`,
      );
      const lines = Buffer.from(text, 'latin1').toString('utf8').split('\n');
      assert.deepEqual(lines.slice(0, 7), ['naïve 象', '43|42', '1', '2', '1', '2', '3']);
      assert.equal(lines[7]?.length, 5_000_000);
    });

    it(`psql stops a script at an error and shows its position: ${mode} pooling`, async () => {
      const outcome = await script(mode, 'SELECT 1;\nSELECT nonsense;\nSELECT 3;\n');
      assert.equal(outcome.code, 3);
      assert.equal(outcome.stdout, '1\n');
      assert.match(outcome.stderr, /ERROR: {2}column "nonsense" does not exist\nLINE 1: SELECT nonsense;\n/);
    });

    it(`psql runs COPY with data in the script: ${mode} pooling`, async () => {
      const table = `inline_${mode}`;
      await output(mode, `CREATE TABLE ${table} (i int, t text);\nCOPY ${table} FROM stdin;\n1\tone\n2\t\\N\n\\.\n`);
      assert.equal(await output(mode, `COPY ${table} TO stdout;\n`), '1\tone\n2\t\\N\n');
    });

    it(`psql copies 100 MB in and out with \\copy: ${mode} pooling`, async () => {
      const [from, to, table] = [join(dir, `${mode}.in`), join(dir, `${mode}.out`), `big_${mode}`];
      const lines: string[] = [];
      for (let n = 0; n < COPY_LINES; n++) lines.push(`${n}\t${String(n * 7919).padEnd(1000, 'abc')}\n`);
      writeFileSync(from, lines.join(''));
      giveTo(user, dir);
      await pg.sql(`CREATE UNLOGGED TABLE ${table} (n int, line text)`);
      await output(mode, `\\copy ${table} FROM '${from}'\n\\copy ${table} TO '${to}'\n`);
      assert.equal(await sha256(to), await sha256(from));
      await pg.sql(`DROP TABLE ${table}`);
    });

    it(`psql cancels a query on Ctrl-C: ${mode} pooling`, async () => {
      const args = ['-X', '-d', mode, '-c', `SELECT pg_sleep(600) /* ${mode} */`];
      const child = startProgram(psql as string, args, { env: environment(), ...spawnAs(user) });
      let stderr = '';
      child.stderr?.on('data', (chunk: Buffer) => {
        stderr += chunk;
      });
      const ended = new Promise<number | null>((settle) => child.once('close', settle));
      const running = `SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND query LIKE '%/* ${mode} */'`;
      await eventually('the query to run', async () => (await pg.sql(running)).rowCount === 1);
      child.kill('SIGINT');
      assert.equal(await withTimeout(ended, 'psql to end'), 1);
      assert.match(stderr, /ERROR: {2}canceling statement due to user request/);
    });
  }

  it('psql runs transactions, \\d and \\l', async () => {
    const text = await output(
      'transaction',
      `BEGIN; CREATE TABLE described (id int PRIMARY KEY, t text DEFAULT 'x'); COMMIT;
       BEGIN; DROP TABLE described; ROLLBACK;
       \\d described
       \\dt described
       \\l
       \\du user_md5
       \\conninfo
       DROP TABLE described;`,
    );
    for (const part of ["t|text|||'x'::text", 'public|described|table|postgres', 'template1|postgres', 'user_md5']) {
      assert.ok(text.includes(part), `${part} is missing in:\n${text}`);
    }
  });

  it('a psql session keeps its settings, temporary tables and prepared statements', async () => {
    const text = await output(
      'session',
      `SET work_mem = '9MB';
       CREATE TEMP TABLE mine AS SELECT 5 AS five;
       PREPARE twice(int) AS SELECT $1 * 2;
       SHOW work_mem;
       SELECT five FROM mine;
       EXECUTE twice(21);`,
    );
    assert.equal(text, '9MB\n5\n42\n');
  });

  it('psql logs in over TCP and the Unix socket, with md5 and SCRAM secrets', async () => {
    for (const host of [bouncer.host, bouncer.socketDir]) {
      const owner = { PGHOST: host };
      assert.equal(await output('session', 'SELECT current_user;', owner), 'postgres\n');
      for (const name of ['user_scram', 'user_md5']) {
        const env = { PGHOST: host, PGUSER: name, PGPASSWORD: 'the password' };
        assert.equal(await output('session', 'SELECT current_user;', env), `${name}\n`);
        const outcome = await script('session', 'SELECT 1;', { ...env, PGPASSWORD: 'wrong' });
        assert.equal(outcome.code, 2);
        assert.match(outcome.stderr, /FATAL: {2}(password|SASL) authentication failed/);
      }
    }
  });

  it('psql shows the errors of failed logins', async () => {
    const cases: [NodeJS.ProcessEnv, string, RegExp][] = [
      [{}, 'nowhere', /FATAL: {2}no such database: nowhere/],
      [{ PGUSER: 'nobody_known' }, 'session', /FATAL: {2}password authentication failed/],
      [{ PGSSLMODE: 'require' }, 'session', /server does not support SSL, but SSL was required/],
      [
        { PGOPTIONS: '-c no_such_setting=1' },
        'session',
        /FATAL: {2}unsupported startup parameter in options: no_such_setting/,
      ],
    ];
    for (const [env, database, message] of cases) {
      const outcome = await script(database, 'SELECT 1;', env);
      assert.equal(outcome.code, 2, String(message));
      assert.match(outcome.stderr, message);
    }
  });

  it('parameters that psql sets on connecting reach the server', async () => {
    const env = { PGOPTIONS: '-c timezone=Asia/Tokyo', PGAPPNAME: 'my psql', PGCLIENTENCODING: 'LATIN1' };
    const asked = 'SHOW timezone; SHOW application_name; SHOW client_encoding;';
    for (const mode of MODES) assert.equal(await output(mode, asked, env), 'Asia/Tokyo\nmy psql\nLATIN1\n', mode);
  });

  it('psql on the console shows tables, help and errors', async () => {
    const names = (await admin('SHOW DATABASES;')).split('\n').map((line) => line.split('|')[0]);
    assert.deepEqual(names.slice(0, 4), ['pgbouncer', ...MODES].sort());
    assert.match(await admin('\\x\nSHOW POOLS;'), /(^|\n)database\|pgbouncer\nuser\|pgbouncer\ncl_active\|1\n/);
    assert.equal(await admin('SHOW VERSION;'), `${await versionOf()}\n`);
    const help = await run(psql as string, ['-X', '-d', 'pgbouncer', '-c', 'SHOW HELP'], {
      env: environment({ PGUSER: 'admin', PGPASSWORD: 'admin-password' }),
    });
    assert.match(help.stderr, /NOTICE: {2}Console usage\nDETAIL: {2}\n\tSHOW HELP\|CONFIG\|/);
    const wrong = await script('pgbouncer', 'SHOW nothing;', { PGUSER: 'admin', PGPASSWORD: 'admin-password' });
    assert.equal(wrong.code, 3);
    assert.match(wrong.stderr, /ERROR: {2}invalid command 'SHOW nothing;', use SHOW HELP;/);
  });

  it('psql on the console runs commands in a script', async () => {
    await admin('PAUSE session;\nRESUME session;\nRECONNECT;\nWAIT_CLOSE;\nSET verbose = 0;\nRELOAD;\n');
    assert.equal(await output('session', 'SELECT 1;'), '1\n');
  });

  async function versionOf(): Promise<string> {
    return String((await bouncer.admin('SHOW VERSION'))[0]?.version);
  }
});

async function sha256(path: string): Promise<string> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(path), hash);
  return hash.digest('hex');
}
