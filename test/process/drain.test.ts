/*
 * Draining: SHUTDOWN WAIT_FOR_TRANSACTIONS and SIGTERM with sigterm_shutdown, shutdown_timeout, and RECONNECT CLIENTS.
 */

import assert from 'node:assert/strict';
import type { Client } from 'pg';
import { type Bouncer, eventually, it, PgCluster, RawClient } from '../harness';
import { backendsBecome, errorIn, login, rowsBecome, withPooler } from '../harness/answers';
import { fails, watch } from '../harness/expect';
import { after, before } from '../harness/limits';
import { message } from '../harness/raw-client';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
  await pg.sql('CREATE TABLE lasting (id int)');
});
after(() => pg.stop());

const TERMINATED = 'terminating connection due to administrator command';
const TO_EXIT = { code: 0, signal: null };

function withDatabases(
  settings: Record<string, string | number>,
  body: (pooler: Bouncer) => Promise<void>,
): Promise<void> {
  const databases = {
    app: pg.connstr(),
    sess: pg.connstr('postgres', 'pool_mode=session'),
    clients: pg.connstr(),
  };
  return withPooler({ cluster: pg, databases, settings: { pool_mode: 'transaction', ...settings } }, body);
}

interface Ended {
  readonly client: Client;
  /** the SQLSTATE of the error with which the pooler ended it */
  code: string | null;
}

/** A client that notices when the pooler ends it. */
async function watched(pooler: Bouncer, database: string): Promise<Ended> {
  const ended: Ended = { client: await pooler.connect({ database }), code: null };
  ended.client.on('error', (err: Error & { code?: string }) => {
    ended.code ??= err.code ?? 'lost';
  });
  return ended;
}

async function isEnded({ client, code }: Ended): Promise<void> {
  assert.equal(code, '57P01');
  await client.end().catch(() => {});
}

for (const begin of ['SHUTDOWN WAIT_FOR_TRANSACTIONS', 'SIGTERM'] as const) {
  it(`${begin} ends idle clients, lets transactions end, and exits`, async () => {
    await withDatabases({ sigterm_shutdown: 'wait_for_transactions' }, async (pooler) => {
      const idle = await watched(pooler, 'app');
      const session = await watched(pooler, 'sess');
      const busy = await watched(pooler, 'app');
      const busySession = await watched(pooler, 'sess');
      await session.client.query('SELECT 1');
      for (const { client } of [busy, busySession]) await client.query('BEGIN');
      // a console that stays does not keep the process
      const watcher = await pooler.console();
      watcher.on('error', () => {});
      if (begin === 'SIGTERM') pooler.signal('SIGTERM');
      else await pooler.admin(begin);
      await eventually('idle clients to be ended', async () => idle.code !== null && session.code !== null);
      assert.deepEqual([busy.code, busySession.code], [null, null]);
      await busy.client.query('INSERT INTO lasting VALUES (1)');
      await busySession.client.query('INSERT INTO lasting VALUES (1)');
      const late = await RawClient.connect({ path: `${pooler.socketDir}/.s.PGSQL.${pooler.port}` });
      assert.equal(errorIn(await late.login({ database: 'app' }))?.M, 'pooler is shutting down');
      await busy.client.query('COMMIT');
      await eventually('the client to be ended', async () => busy.code !== null);
      assert.equal(busySession.code, null);
      await busySession.client.query('COMMIT');
      assert.deepEqual(await pooler.expectEnd(), TO_EXIT);
      await pooler.logWait(/LOG transactions ended, exiting/);
      for (const ended of [idle, session, busy, busySession]) await isEnded(ended);
      assert.equal((await pg.sql('SELECT count(*)::int AS n FROM lasting')).rows[0].n, 2);
      await pg.sql('TRUNCATE lasting');
    });
  });
}

it('a client that begins one transaction after another is ended between two of them', async () => {
  await withDatabases({}, async (pooler) => {
    const errors: string[] = [];
    let done = 0;
    const work = async (client: Client): Promise<void> => {
      for (;;) {
        try {
          await client.query('BEGIN');
        } catch (err) {
          errors.push((err as { code?: string }).code ?? 'lost');
          return;
        }
        // must not fail: the transaction has begun
        await client.query('SELECT pg_sleep(0.001)');
        await client.query('COMMIT');
        done++;
      }
    };
    const clients = await Promise.all(Array.from({ length: 10 }, () => watched(pooler, 'app')));
    const working = Promise.all(clients.map(({ client }) => work(client)));
    await eventually('work', async () => done > 50);
    await pooler.admin('SHUTDOWN WAIT_FOR_TRANSACTIONS');
    await working;
    assert.deepEqual(await pooler.expectEnd(), TO_EXIT);
    // a client whose BEGIN crosses the error may only see the reset of the connection
    for (const { code } of clients) assert.match(code ?? '', /^(57P01|ECONNRESET|EPIPE|lost)$/);
    assert.equal(errors.length, 10);
  });
});

it('clients that wait for a server are served before they are ended', async () => {
  await withDatabases({ default_pool_size: 1 }, async (pooler) => {
    const holder = await pooler.connect({ database: 'app' });
    await holder.query('BEGIN');
    const waiting = await pooler.connect({ database: 'app' });
    const answer = watch(waiting.query('SELECT 7 AS seven'), 'the answer');
    await rowsBecome(pooler, 'POOLS', { database: 'app', cl_waiting: 1 }, 1);
    await pooler.admin('SHUTDOWN WAIT_FOR_TRANSACTIONS');
    assert.equal(answer.settled, false);
    await holder.query('COMMIT');
    assert.equal((await answer.done()).rows[0].seven, 7);
    assert.deepEqual(await pooler.expectEnd(), TO_EXIT);
  });
});

it('drain_rate limits how many clients are ended in a second', async () => {
  await withDatabases({ drain_rate: 1 }, async (pooler) => {
    const clients = await Promise.all(Array.from({ length: 30 }, () => watched(pooler, 'app')));
    await pooler.admin('SHUTDOWN WAIT_FOR_TRANSACTIONS');
    await eventually('the first client to be ended', async () => clients.some(({ code }) => code !== null));
    // a slow machine may notice that some seconds later
    assert.ok(clients.filter(({ code }) => code === null).length > 20);
    // a setting for the rest of the drain
    const con = await RawClient.connect({ path: `${pooler.socketDir}/.s.PGSQL.${pooler.port}` });
    await con.login({ user: 'admin', database: 'pgbouncer' });
    await con.query('SET drain_rate = 0');
    await pooler.expectEnd();
  });
});

it('SHUTDOWN WAIT_FOR_CLIENTS ends a drain: the clients that are left stay until they leave', async () => {
  await withDatabases({ drain_rate: 1 }, async (pooler) => {
    const clients = await Promise.all(Array.from({ length: 20 }, () => watched(pooler, 'app')));
    await pooler.admin('SHUTDOWN WAIT_FOR_TRANSACTIONS');
    await eventually('the first client to be ended', async () => clients.some(({ code }) => code !== null));
    const con = await RawClient.connect({ path: `${pooler.socketDir}/.s.PGSQL.${pooler.port}` });
    await con.login({ user: 'admin', database: 'pgbouncer' });
    await con.query('SHUTDOWN WAIT_FOR_CLIENTS');
    await con.end();
    const left = () => clients.filter(({ code }) => code === null);
    const ended = pooler.log.count(new RegExp(`closing because: ${TERMINATED}`));
    await eventually('the ended clients to notice', () => left().length === clients.length - ended);
    const staying = left();
    assert.ok(staying.length > 0);
    // longer than a drain needs for the next client
    const start = Date.now();
    while (Date.now() - start < 1500) await staying[0]?.client.query('SELECT pg_sleep(0.1)');
    for (const { client } of staying) await client.query('SELECT 1');
    for (const { client } of staying) await client.end();
    await pooler.expectEnd();
  });
});

it('shutdown_timeout cancels what still runs', async () => {
  await withDatabases({ shutdown_timeout: 1 }, async (pooler) => {
    const open = await watched(pooler, 'app');
    await open.client.query('BEGIN; INSERT INTO lasting VALUES (1)');
    const running = await login(pooler, { database: 'app' });
    await running.send(message('Q', Buffer.from('SELECT pg_sleep(1000)\0')));
    await backendsBecome(pg, "wait_event = 'PgSleep'", 1);
    await pooler.admin('SHUTDOWN WAIT_FOR_TRANSACTIONS');
    assert.deepEqual(await pooler.expectEnd(), TO_EXIT);
    await isEnded(open);
    assert.equal(errorIn(await running.until('E'))?.C, '57P01');
    await pooler.logWait(/WARNING shutdown_timeout reached, closing 2 client connections/);
    await backendsBecome(pg, "wait_event = 'PgSleep'", 0);
    assert.equal((await pg.sql('SELECT count(*)::int AS n FROM lasting')).rows[0].n, 0);
  });
});

for (const what of ['WAIT_FOR_CLIENTS', 'WAIT_FOR_SERVERS']) {
  it(`shutdown_timeout also ends SHUTDOWN ${what}, and a pause with it`, async () => {
    await withDatabases({ shutdown_timeout: 1 }, async (pooler) => {
      const running = await login(pooler, { database: 'app' });
      await running.send(message('Q', Buffer.from('SELECT pg_sleep(1000)\0')));
      await backendsBecome(pg, "wait_event = 'PgSleep'", 1);
      if (what === 'WAIT_FOR_CLIENTS') pooler.signal('SIGUSR1');
      await pooler.admin(`SHUTDOWN ${what}`);
      assert.deepEqual(await pooler.expectEnd(), TO_EXIT);
      await backendsBecome(pg, "wait_event = 'PgSleep'", 0);
    });
  });
}

it('RECONNECT CLIENTS ends the clients of a database, and new ones may connect', async () => {
  await withDatabases({}, async (pooler) => {
    const one = await watched(pooler, 'app');
    const other = await watched(pooler, 'sess');
    await pooler.admin('RECONNECT CLIENTS app');
    await eventually('the client to be ended', async () => one.code !== null);
    await isEnded(one);
    const again = await watched(pooler, 'app');
    await again.client.query('SELECT 1');
    await other.client.query('SELECT 1');
    await pooler.admin('reconnect clients over 0 s;');
    await eventually('the clients to be ended', async () => again.code !== null && other.code !== null);
    await pooler.sql('SELECT 1', { database: 'app' });
  });
});

it('RECONNECT CLIENTS OVER spreads the clients over that time', async () => {
  await withDatabases({}, async (pooler) => {
    const clients = await Promise.all(Array.from({ length: 4 }, () => watched(pooler, 'app')));
    await pooler.admin('RECONNECT CLIENTS "app" OVER 2000 s');
    await eventually('the first client to be ended', async () => clients.some(({ code }) => code !== null));
    assert.equal(clients.filter(({ code }) => code === null).length, 3);
    // the same command again, faster
    await pooler.admin('RECONNECT CLIENTS "app" OVER 1 s');
    await eventually('all clients to be ended', async () => clients.every(({ code }) => code !== null));
  });
});

it('RECONNECT clients is about a database of that name, if there is one', async () => {
  await withDatabases({}, async (pooler) => {
    const one = await watched(pooler, 'clients');
    await one.client.query('SELECT 1');
    await pooler.admin('RECONNECT clients');
    await pooler.logWait(/RECONNECT 'clients' command issued/);
    await one.client.query('SELECT 1');
    assert.equal(one.code, null);
    await pooler.admin('RECONNECT CLIENTS');
    await eventually('the client to be ended', async () => one.code !== null);
    const con = await pooler.console();
    await fails(con.query('RECONNECT CLIENTS none'), 'no such database: none');
    await fails(con.query('RECONNECT CLIENTS pgbouncer'), 'cannot reconnect admin db: pgbouncer');
    await con.end();
    const stats = await pooler.console({ user: 'stats', password: 'stats-password' });
    await fails(stats.query('RECONNECT CLIENTS'), /admin/);
    await stats.end();
  });
});

it('the error has the severity and the text of PostgreSQL', async () => {
  await withDatabases({}, async (pooler) => {
    const client = await login(pooler, { database: 'app' });
    await pooler.admin('RECONNECT CLIENTS');
    const error = errorIn(await client.until('E'));
    assert.deepEqual([error?.S, error?.C, error?.M], ['FATAL', '57P01', TERMINATED]);
    assert.equal(await client.next(), null);
  });
});
