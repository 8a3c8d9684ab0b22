/*
 * Takeovers with TLS clients other than Node's own: openssl, which changes its keys, psql with the libpq of the machine and with
 * that of PostgreSQL 18, and node-postgres.
 */

import assert from 'node:assert/strict';
import type { ChildProcessWithoutNullStreams } from 'node:child_process';
import { copyFileSync, existsSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { embeddedPostgres } from '../../tools/postgres';
import { giveTo, spawnAs } from '../../tools/unprivileged';
import { eventually, it, itUnless, noPsql, PgCluster, psql, startProgram, tempDir, user } from '../harness';
import { recordsOf } from '../harness/handover-records';
import { after, before, withTimeout } from '../harness/limits';
import { LogTail } from '../harness/log-tail';
import { noProgram } from '../harness/needs';
import { cstring, int16, int32, message, PROTOCOL_30, startupPacket } from '../harness/raw-client';
import { type ChainOptions, type RebootChain, withRebootChain } from '../harness/reboot-chain';
import { TlsPlace } from '../harness/tls-place';

const place = new TlsPlace();

let pg: PgCluster;
before(async () => {
  pg = await PgCluster.start({ settings: place.ofServers });
});
after(() => pg.stop());

/** Runs `body` with a started pooler that offers TLS. */
async function withTls(
  settings: NonNullable<ChainOptions['settings']>,
  body: (chain: RebootChain) => Promise<void>,
): Promise<void> {
  await withRebootChain({ cluster: pg, settings: { ...place.toClients, ...settings } }, async (chain) => {
    await chain.start('ts');
    await body(chain);
  });
}

/* ---- openssl ---- */

interface Openssl {
  /** K asks for a key update in return, k does not; resolves when openssl has sent it */
  changeKeys(how: 'K' | 'k'): Promise<void>;
  /** Runs a query and waits for its answer. */
  select(text: string): Promise<void>;
}

/** Runs `body` with openssl s_client as a logged-in client. */
async function withOpenssl(chain: RebootChain, body: (client: Openssl) => Promise<void>): Promise<void> {
  const args = ['s_client', '-starttls', 'postgres', '-connect', `127.0.0.1:${chain.port}`];
  const child = startProgram('openssl', args, {}) as ChildProcessWithoutNullStreams;
  const closed = new Promise((settle) => child.once('close', settle));
  let said = '';
  let updates = 0;
  child.stdout.on('data', (bytes: Buffer) => {
    said += bytes.toString('latin1');
  });
  child.stderr.on('data', (bytes: Buffer) => {
    updates += bytes.toString('latin1').split('KEYUPDATE').length - 1;
  });
  const client: Openssl = {
    async changeKeys(how) {
      const before = updates;
      child.stdin.write(`${how}\n`);
      // openssl takes no command and data from one piece of its input
      await eventually('openssl to have changed its keys', () => updates > before);
    },
    async select(text) {
      const parse = message('P', cstring(''), cstring(`SELECT '${text}'`), int16(0));
      const bind = message('B', cstring(''), cstring(''), int16(0), int16(0), int16(0));
      child.stdin.write(Buffer.concat([parse, bind, message('E', cstring(''), int32(0)), message('S')]));
      await eventually('the answer', () => said.includes(`${text}C\0`));
    },
  };
  try {
    child.stdin.write(startupPacket(PROTOCOL_30, { user: 'postgres', database: 'postgres' }));
    await eventually('the login', () => said.includes('Z\0\0\0\x05I'));
    await body(client);
  } finally {
    child.kill();
    await withTimeout(closed, 'openssl to end');
  }
}

const itOpenssl = itUnless(noProgram('openssl'));

itOpenssl('openssl s_client changes its keys before and after each of three takeovers', () =>
  withTls({ ...place.toServers, client_tls_protocols: 'tlsv1.3' }, (chain) =>
    withOpenssl(chain, async (client) => {
      for (let i = 0; i < 3; i++) {
        for (const how of ['K', 'k'] as const) {
          await client.changeKeys(how);
          await client.select(`answer ${i} ${how}`);
        }
        await chain.reboot('ts');
      }
      await client.select('the last answer');
    }),
  ),
);

itOpenssl('an idle client that changes its keys after it was described ahead is described again', () =>
  withTls({ pool_mode: 'transaction' }, (chain) =>
    withOpenssl(chain, async (client) => {
      await client.select('first');
      const { ahead, frozen } = await recordsOf(chain, 2, async () => {
        await client.changeKeys('k');
        // the pooler has read it once it answers what came later
        await chain.show('VERSION');
      });
      assert.equal(ahead.filter((text) => text.startsWith('{"k":"ahead"')).length, 1);
      assert.equal(frozen.filter((text) => text.includes('"state":"cl_active"')).length, 1);
      await client.select('second');
      await chain.reboot('ts');
      await client.select('third');
    }),
  ),
);

/* ---- psql ---- */

/** A folder with the libpq of the npm package, and the libraries that it needs: PostgreSQL 18. */
function newestLibpq(): string {
  const from = join(dirname(embeddedPostgres(user, tempDir('pgbin'))), 'lib');
  const dir = tempDir('libpq');
  for (const name of ['libpq.so.5', 'libssl.so.1.1', 'libcrypto.so.1.1']) {
    if (existsSync(join(from, name))) copyFileSync(join(from, name), join(dir, name));
  }
  giveTo(user, dir);
  return dir;
}

/** Writes a script that waits in a transaction until `done` exists, and then copies in both directions. */
function writeScript(chain: RebootChain): { script: string; begun: string; done: string } {
  const [begun, done, script] = ['begun', 'done', 'script.sql'].map((name) => join(chain.dir, name)) as [
    string,
    string,
    string,
  ];
  const lines = [
    'BEGIN;',
    'CREATE TEMP TABLE t AS SELECT 1 AS x;',
    `\\! touch '${begun}'; while [ ! -e '${done}' ]; do sleep 0.05; done`,
    'COPY t FROM STDIN;',
    ...Array.from({ length: 20_000 }, (_, i) => String(i)),
    '\\.',
    'SELECT count(*), sum(x) FROM t;',
    'COMMIT;',
    'COPY (SELECT generate_series(1, 50000)) TO STDOUT;',
  ];
  writeFileSync(script, `${lines.join('\n')}\n`);
  giveTo(user, chain.dir);
  return { script, begun, done };
}

/**
 * psql is in a transaction during three takeovers, and then copies in both directions.
 * @param options more of a connect string
 */
async function psqlGoesOn(chain: RebootChain, options: string, env: NodeJS.ProcessEnv = {}): Promise<void> {
  const { script, begun, done } = writeScript(chain);
  const connection = `${place.libpq} port=${chain.port} user=postgres dbname=postgres ${options}`;
  const child = startProgram(psql as string, ['-X', '-q', '-A', '-t', '-f', script, connection], {
    cwd: chain.dir,
    env: { ...process.env, HOME: chain.dir, ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
    ...spawnAs(user),
  });
  const errors = new LogTail(child);
  let said = '';
  child.stdout?.on('data', (bytes: Buffer) => {
    said += bytes.toString('latin1');
  });
  const ended = new Promise<number | null>((settle) => child.once('close', settle));
  let over = false;
  void ended.then(() => {
    over = true;
  });
  await eventually('psql to be in its transaction', () => existsSync(begun) || over);
  assert.equal(over, false, errors.text);
  for (let i = 0; i < 3; i++) await chain.reboot('ts');
  writeFileSync(done, '');
  assert.equal(await withTimeout(ended, 'psql to end'), 0, errors.text);
  const answers = said.trim().split('\n');
  assert.equal(answers[0], '20001|199990001');
  assert.deepEqual(
    answers.slice(1),
    Array.from({ length: 50_000 }, (_, i) => String(i + 1)),
  );
}

itUnless(noPsql)('psql goes on after three takeovers, with TLS on both sides', () =>
  withTls(place.toServers, (chain) => psqlGoesOn(chain, '')),
);

// the last option exists from PostgreSQL 18 on: an older libpq would refuse it
for (const options of ['sslnegotiation=direct max_protocol_version=3.2', 'max_protocol_version=latest']) {
  itUnless(noPsql)(`psql with the libpq of PostgreSQL 18 goes on after three takeovers: ${options}`, () =>
    withTls(place.toServers, (chain) => psqlGoesOn(chain, options, { LD_LIBRARY_PATH: newestLibpq() })),
  );
}

/* ---- node-postgres ---- */

it('node-postgres goes on after three takeovers: in a transaction, idle, and with prepared statements', () =>
  withTls({ ...place.toServers, pool_mode: 'transaction' }, async (chain) => {
    const config = { host: 'localhost', ssl: { ...place.trusting, rejectUnauthorized: true } };
    const [busy, idle] = [await chain.connect(config), await chain.connect(config)];
    const prepared = (n: number) => ({ name: 'plus', text: 'SELECT $1::int + 1 AS sum', values: [n] });
    assert.equal((await idle.query(prepared(1))).rows[0].sum, 2);
    await busy.query('BEGIN');
    const pid = (await busy.query('SELECT pg_backend_pid() AS pid')).rows[0].pid;
    for (let i = 0; i < 3; i++) {
      const long = busy.query(`SELECT repeat('x', 1000000) AS x, pg_sleep(0.5)`);
      await chain.reboot('ts');
      assert.equal((await long).rows[0].x.length, 1_000_000);
      assert.equal((await busy.query('SELECT pg_backend_pid() AS pid')).rows[0].pid, pid);
      assert.equal((await idle.query(prepared(i))).rows[0].sum, i + 1);
    }
    await busy.query('COMMIT');
    const rows = (await chain.show('CLIENTS')).filter((row) => row.database !== 'pgbouncer');
    assert.ok(rows.length === 2 && rows.every((row) => String(row.tls).startsWith('TLSv1.3/')));
    for (const client of [busy, idle]) await client.end();
  }));
