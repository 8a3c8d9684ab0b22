/*
 * Stopping by signal and by the console's SHUTDOWN: which clients are served or refused, when the process exits and
 * with which code, and the removal of its pidfile and Unix socket. Also the signals that reload, pause and resume.
 */

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { Bouncer, eventually, it, PgCluster } from '../harness';
import { fails, watch } from '../harness/expect';
import { after, before } from '../harness/limits';
import { errorFields, RawClient } from '../harness/raw-client';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(async () => {
  await pg.stop();
});

/** A pooler with a pidfile, transaction pooling on `app` and session pooling on `sess`. */
function itRuns(
  name: string,
  body: (own: Bouncer) => Promise<void>,
  settings: Record<string, string | number> = {},
): void {
  it(name, async () => {
    const own = await Bouncer.start({
      cluster: pg,
      databases: { app: pg.connstr(), sess: pg.connstr('postgres', 'pool_mode=session') },
      settings: { pool_mode: 'transaction', server_login_retry: 1, pidfile: 'pooler.pid', ...settings },
    });
    try {
      await body(own);
    } finally {
      await own.stop();
    }
  });
}

function pidfileOf(own: Bouncer): string {
  return join(own.dir, 'pooler.pid');
}

function socketOf(own: Bouncer): string {
  return join(own.socketDir, `.s.PGSQL.${own.port}`);
}

/** Checks that the process exits with 0 and leaves no files behind. */
async function endsCleanly(own: Bouncer): Promise<void> {
  assert.deepEqual(await own.expectEnd(), { code: 0, signal: null });
  assert.equal(existsSync(pidfileOf(own)), false, 'the pidfile is left');
  assert.equal(existsSync(socketOf(own)), false, 'the Unix socket is left');
}

/** Waits until TCP connections are refused, which is shortly after the log line. */
async function refusesTcp(own: Bouncer): Promise<void> {
  await eventually('TCP to be closed', async () => {
    try {
      const raw = await own.raw();
      await raw.destroy();
      return false;
    } catch (err) {
      return (err as NodeJS.ErrnoException).code === 'ECONNREFUSED';
    }
  });
}

/** Checks that the Unix socket accepts only console logins. */
async function unixIsForTheConsole(own: Bouncer): Promise<void> {
  const target = { path: socketOf(own) };
  const client = await RawClient.connect(target);
  const answer = await client.login({ database: 'app' });
  assert.equal(errorFields(answer.at(-1) as never).M, 'pooler is shutting down');
  await client.destroy();
  const con = await RawClient.connect(target);
  await con.login({ user: 'admin', database: 'pgbouncer' });
  const resume = await con.query('RESUME');
  assert.equal(errorFields(resume[0] as never).M, 'pooler is shutting down');
  assert.equal((await con.query('SHOW VERSION')).length, 4);
  await con.end();
}

/** Checks that connected clients are served, and that the process exits when the last of them disconnects. */
async function waitsForClients(own: Bouncer, begin: () => Promise<unknown>, log: RegExp): Promise<void> {
  assert.equal(Number(readFileSync(pidfileOf(own), 'latin1')), own.pid);
  const busy = await own.connect({ database: 'app' });
  const idle = await own.connect({ database: 'sess' });
  await busy.query('BEGIN');
  await begin();
  await own.logWait(log);
  await refusesTcp(own);
  await unixIsForTheConsole(own);
  await busy.query('COMMIT');
  await busy.query('SELECT 1');
  await idle.query('SELECT 1');
  await busy.end();
  await idle.query('SELECT 1');
  await idle.end();
  await endsCleanly(own);
  await own.logWait(/LOG client connections dropped, exiting/);
}

/** Checks that transactions may end, and that clients that need a server after that are refused. */
async function waitsForServers(own: Bouncer, begin: () => Promise<unknown>, log: RegExp): Promise<void> {
  const busy = await own.connect({ database: 'app' });
  const idle = await own.connect({ database: 'app' });
  const session = await own.connect({ database: 'sess' });
  await idle.query('SELECT 1');
  await busy.query('BEGIN');
  await session.query('SELECT 1');
  await begin();
  await own.logWait(log);
  await refusesTcp(own);
  await unixIsForTheConsole(own);
  await fails(idle.query('SELECT 1'), 'server shutting down');
  await busy.query('SELECT 1');
  await busy.query('COMMIT');
  await fails(busy.query('SELECT 1'), 'server shutting down');
  await session.query('SELECT 1');
  assert.equal(own.log.count(/exiting/), 0);
  await session.end();
  await endsCleanly(own);
  await own.logWait(/LOG server connections dropped, exiting/);
}

/** Opens a transaction that keeps a waiting shutdown waiting. */
async function inTransaction(own: Bouncer): Promise<void> {
  const client = await own.connect({ database: 'app' });
  await client.query('BEGIN');
}

itRuns('SIGTERM waits for all clients', async (own) => {
  const log = /LOG got SIGTERM, shutting down, waiting for all clients disconnect/;
  await waitsForClients(own, async () => own.signal('SIGTERM'), log);
});

itRuns('SHUTDOWN WAIT_FOR_CLIENTS waits for all clients', async (own) => {
  await waitsForClients(
    own,
    () => own.admin('shutdown wait_for_clients'),
    /LOG SHUTDOWN WAIT_FOR_CLIENTS command issued/,
  );
});

itRuns('SIGINT waits for all servers', async (own) => {
  const log = /LOG got SIGINT, shutting down, waiting for all servers connections to be released/;
  await waitsForServers(own, async () => own.signal('SIGINT'), log);
});

itRuns('SHUTDOWN WAIT_FOR_SERVERS waits for all servers', async (own) => {
  await waitsForServers(
    own,
    () => own.admin('SHUTDOWN WAIT_FOR_SERVERS'),
    /LOG SHUTDOWN WAIT_FOR_SERVERS command issued/,
  );
});

itRuns(
  'SIGINT refuses clients that already wait for a server',
  async (own) => {
    const busy = await own.connect({ database: 'app' });
    const waiter = await own.connect({ database: 'app' });
    await busy.query('BEGIN');
    const waiting = fails(waiter.query('SELECT 1'), 'server shutting down');
    await eventually('the second to wait', async () =>
      (await own.admin('SHOW POOLS')).some((row) => row.cl_waiting === 1),
    );
    own.signal('SIGINT');
    await waiting;
    await busy.query('COMMIT');
    await endsCleanly(own);
    await busy.end().catch(() => {});
  },
  { default_pool_size: 1 },
);

itRuns('SIGINT without clients and servers exits at once', async (own) => {
  own.signal('SIGINT');
  await endsCleanly(own);
});

itRuns('SIGTERM without clients exits at once, even with servers', async (own) => {
  await own.sql('SELECT 1', { database: 'app' });
  own.signal('SIGTERM');
  await endsCleanly(own);
});

itRuns('SIGQUIT exits at once', async (own) => {
  await inTransaction(own);
  own.signal('SIGQUIT');
  await endsCleanly(own);
  await own.logWait(/LOG got SIGQUIT, fast exit/);
});

itRuns('SHUTDOWN exits at once without an answer', async (own) => {
  await inTransaction(own);
  const raw = await own.raw();
  await raw.login({ user: 'admin', database: 'pgbouncer', password: 'admin-password' });
  assert.deepEqual(await raw.query('SHUTDOWN'), []);
  await endsCleanly(own);
  await own.logWait(/LOG SHUTDOWN command issued/);
});

for (const [first, second] of [
  ['SIGTERM', 'SIGTERM'],
  ['SIGINT', 'SIGINT'],
  ['SIGTERM', 'SIGINT'],
  ['SIGINT', 'SIGTERM'],
] as const) {
  itRuns(`${second} while ${first} waits exits at once`, async (own) => {
    await inTransaction(own);
    own.signal(first);
    await own.logWait(new RegExp(`LOG got ${first}, shutting down`));
    own.signal('SIGUSR2');
    await own.logWait(/LOG got SIGUSR2 while shutting down, ignoring/);
    own.signal(second);
    await endsCleanly(own);
    await own.logWait(new RegExp(`LOG got ${second} while shutting down, fast exit`));
  });
}

itRuns('SIGTERM after SHUTDOWN WAIT_FOR_CLIENTS exits at once', async (own) => {
  await inTransaction(own);
  await own.admin('SHUTDOWN WAIT_FOR_CLIENTS');
  own.signal('SIGTERM');
  await endsCleanly(own);
});

itRuns('SIGTERM while suspended exits with an error, because suspended clients cannot finish', async (own) => {
  const con = await own.console();
  await con.query('SUSPEND');
  own.signal('SIGTERM');
  assert.deepEqual(await own.expectEnd(), { code: 1, signal: null });
  await own.logWait(/FATAL suspend was in progress, going down immediately/);
  // a new process may own the Unix socket by now
  assert.deepEqual([existsSync(pidfileOf(own)), existsSync(socketOf(own))], [false, true]);
});

itRuns('SIGUSR1 pauses and SIGUSR2 resumes, and each logs when there is nothing to do', async (own) => {
  const busy = await own.connect({ database: 'app' });
  await busy.query('BEGIN');
  own.signal('SIGUSR1');
  await own.logWait(/LOG got SIGUSR1, pausing all activity/);
  assert.equal((await own.admin('SHOW STATE'))[1]?.value, 'yes');
  own.signal('SIGUSR1');
  await own.logWait(/LOG got SIGUSR1, but already paused\/suspended/);
  await busy.query('COMMIT');
  await eventually('the server to be closed', async () => (await own.admin('SHOW SERVERS')).length === 0);
  const late = watch(busy.query('SELECT 5 AS five'), 'the late query');
  await own.admin('SHOW STATE');
  assert.equal(late.settled, false);
  own.signal('SIGUSR2');
  await own.logWait(/LOG got SIGUSR2, continuing from PAUSE/);
  assert.equal((await late.done()).rows[0].five, 5);
  own.signal('SIGUSR2');
  await own.logWait(/LOG got SIGUSR2, but not paused\/suspended/);
  await busy.end();
});

itRuns('SIGUSR1 closes idle servers without further events', async (own) => {
  await own.sql('SELECT 1', { database: 'app' });
  own.signal('SIGUSR1');
  await own.logWait(/closing because: pause mode/);
  own.signal('SIGUSR2');
  await own.sql('SELECT 1', { database: 'app' });
});

for (const way of ['RESUME', 'SIGUSR2'] as const) {
  itRuns(`${way} resumes paused clients while a shutdown waits for them`, async (own) => {
    const con = await own.console();
    const client = await own.connect({ database: 'app' });
    await con.query('PAUSE');
    const held = watch(client.query('SELECT 5 AS five'), 'the query that is held up');
    own.signal('SIGTERM');
    await own.logWait(/LOG got SIGTERM, shutting down/);
    assert.equal(held.settled, false);
    if (way === 'RESUME') await con.query('RESUME');
    else own.signal('SIGUSR2');
    assert.equal((await held.done()).rows[0].five, 5);
    await client.end();
    await con.end();
    await endsCleanly(own);
  });
}

itRuns('SIGUSR2 also ends SUSPEND', async (own) => {
  const client = await own.connect({ database: 'app' });
  await client.query('SELECT 1');
  const con = await own.console();
  await con.query('SUSPEND');
  own.signal('SIGUSR2');
  await own.logWait(/LOG got SIGUSR2, continuing from SUSPEND/);
  await client.query('SELECT 1');
  await own.sql('SELECT 1', { database: 'app' });
  await con.end();
  await client.end();
});

itRuns('SIGHUP reloads the config repeatedly and survives a broken config', async (own) => {
  const client = await own.connect({ database: 'app' });
  await client.query('BEGIN');
  own.rewrite({ databases: { app: pg.connstr(), fresh: pg.connstr() }, settings: { default_pool_size: 3 } });
  own.signal('SIGHUP');
  await own.logWait(/LOG got SIGHUP, re-reading config/);
  await own.sql('SELECT 1', { database: 'fresh' });
  const from = own.log.mark();
  own.rewrite({ settings: { default_pool_size: 'a lot' } });
  own.signal('SIGHUP');
  await own.logWait(/LOG got SIGHUP, re-reading config/, from);
  own.signal('SIGHUP');
  const size = (await own.admin('SHOW CONFIG')).find((row) => row.key === 'default_pool_size')?.value;
  assert.equal(size, '3');
  await own.sql('SELECT 1', { database: 'fresh' });
  await client.query('COMMIT');
  await client.end();
});

itRuns('thousands of SIGHUPs in a moment do not keep a SIGTERM from ending the process', async (own) => {
  const flood = `
    for (let i = 0; i < 300_000; i++) process.kill(${own.pid}, 'SIGHUP');
    process.kill(${own.pid}, 'SIGTERM');`;
  await promisify(execFile)(process.execPath, ['-e', flood]);
  await endsCleanly(own);
});

itRuns('SIGHUP disconnects every client of a removed database with an error', async (own) => {
  const raw = await own.raw();
  await raw.login({ database: 'sess' });
  own.rewrite({ databases: { app: pg.connstr() } });
  own.signal('SIGHUP');
  assert.equal(errorFields((await raw.until('')).at(-1) as never).M, 'database removed');
  await raw.destroy();
});
