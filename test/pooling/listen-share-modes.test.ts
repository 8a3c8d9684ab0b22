/*
 * listen_mode = share: console commands, changes of settings, and a job queue.
 */

import assert from 'node:assert/strict';
import { type Bouncer, it, PgCluster } from '../harness';
import { ask, errorIn, login, noticesIn, rowsBecome, show, start, thrownOut, withPooler } from '../harness/answers';
import { JobWorker } from '../harness/job-queue';
import { after, before } from '../harness/limits';
import { eventually, withTimeout } from '../harness/machine';
import type { Message, RawClient } from '../harness/raw-client';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

const LOST = 'notifications may have been lost: the listening server connection has ended';

function withShare(settings: Record<string, string | number>, body: (pooler: Bouncer) => Promise<void>): Promise<void> {
  const share = { pool_mode: 'transaction', default_pool_size: 2, listen_mode: 'share', server_login_retry: 1 };
  return withPooler({ cluster: pg, settings: { ...share, ...settings } }, body);
}

async function listener(pooler: Bouncer, sql = 'LISTEN news'): Promise<RawClient> {
  const client = await login(pooler);
  assert.equal(errorIn(await client.query(sql)), null);
  return client;
}

/** Notifies outside the pooler, and checks that each client gets that and nothing before. */
async function reaches(clients: RawClient[], payload: string): Promise<void> {
  await pg.sql(`NOTIFY news, '${payload}'`);
  for (const client of clients) {
    const { body } = (await client.until('A')).at(-1) as Message;
    assert.equal(body.toString('latin1', 4, body.length - 1), `news\0${payload}`);
  }
}

it('PAUSE closes the connection, and RESUME opens another, also when the server was restarted meanwhile', async () => {
  await withShare({ listen_loss: 'notice' }, async (pooler) => {
    const clients = [await listener(pooler), await listener(pooler)];
    await pooler.admin('PAUSE');
    assert.equal((await show(pooler, 'SERVERS')).length, 0);
    await pg.halt();
    await pg.resume();
    await pooler.admin('RESUME');
    for (const client of clients) assert.deepEqual(noticesIn(await client.until('N')), [LOST]);
    await reaches(clients, 'resumed');
    const admin = await pooler.console();
    await admin.query('SUSPEND');
    await pg.sql("NOTIFY news, 'suspended'");
    await admin.query('RESUME');
    await admin.end();
    for (const client of clients) assert.equal((await client.until('A')).length, 1);
    await pooler.admin('RECONNECT');
    for (const client of clients) assert.deepEqual(noticesIn(await client.until('N')), [LOST]);
    await reaches(clients, 'reconnected');
  });
});

it('listen_loss = disconnect: the clients end after RESUME', async () => {
  await withShare({}, async (pooler) => {
    const client = await listener(pooler);
    await pooler.admin('PAUSE postgres');
    const waits = await login(pooler);
    await start(waits, 'LISTEN news');
    await rowsBecome(pooler, 'CLIENTS', { database: 'postgres', state: 'waiting' }, 1);
    await pooler.admin('RESUME postgres');
    assert.equal(await thrownOut(client), LOST);
    await waits.until('Z');
    await reaches([waits], 'resumed');
    await pooler.admin('KILL postgres');
    assert.match(await thrownOut(waits), /database removed|admin/);
    assert.equal((await show(pooler, 'SERVERS')).length, 0);
  });
});

it('a change of listen_mode concerns later LISTENs only', async () => {
  await withShare({}, async (pooler) => {
    const shared = await listener(pooler);
    await pooler.admin("SET listen_mode = 'pin'");
    const pinned = await listener(pooler);
    await reaches([shared, pinned], 'both');
    assert.equal((await show(pooler, 'SERVERS', { state: 'active' })).length, 1);
    await pooler.admin("SET listen_mode = 'share'");
    await reaches([shared, pinned], 'again');
    await ask(pinned, 'SELECT 1');
    assert.equal((await show(pooler, 'SERVERS', { state: 'active' })).length, 1);
    await pinned.query('UNLISTEN *');
    await rowsBecome(pooler, 'SERVERS', { state: 'active' }, 0);
    await pinned.query('LISTEN news');
    await reaches([shared, pinned], 'shared');
    await pooler.admin("SET listen_mode = 'ignore'");
    await reaches([shared, pinned], 'still');
    await shared.query('UNLISTEN news');
    await reaches([pinned], 'one');
    await pinned.end();
    await rowsBecome(pooler, 'SERVERS', { state: 'listen' }, 0);
  });
});

it('a shutdown that waits for servers ends it, client_idle_timeout does not', async () => {
  await withShare({ client_idle_timeout: 1 }, async (pooler) => {
    const [idle, listens] = [await login(pooler), await listener(pooler)];
    assert.equal(await thrownOut(idle), 'client_idle_timeout');
    await reaches([listens], 'still here');
    await pooler.admin('SHUTDOWN WAIT_FOR_SERVERS');
    await pooler.logWait(/server connections dropped, exiting/);
  });
});

it('a job queue with more workers than servers loses and doubles nothing while its servers are killed', async () => {
  const JOBS = 300;
  await pg.sql(
    'CREATE TABLE jobs (id int PRIMARY KEY, done boolean NOT NULL DEFAULT false); CREATE TABLE results (id int)',
  );
  await withShare({ default_pool_size: 3 }, async (pooler) => {
    const workers = Array.from({ length: 8 }, () => new JobWorker(pooler));
    const running = workers.map((worker) => worker.run());
    for (let id = 0; id < JOBS; ) {
      try {
        await pooler.sql(`BEGIN; INSERT INTO jobs VALUES (${id}) ON CONFLICT DO NOTHING; NOTIFY jobs; COMMIT`);
        // the last jobs reach the workers by notifications alone
        if (++id % 30 === 0 && id < JOBS - 20) await pg.killBackends("backend_type = 'client backend'");
      } catch {
        // its server was killed: the job may be there or not, so it is inserted again
      }
    }
    await eventually('all jobs done', async () => {
      return (await pg.sql('SELECT count(*)::int AS n FROM jobs WHERE done')).rows[0].n === JOBS;
    });
    for (const worker of workers) worker.stop();
    await withTimeout(Promise.all(running), 'the workers');
    const { rows } = await pg.sql('SELECT count(*)::int AS results, count(DISTINCT id)::int AS jobs FROM results');
    assert.deepEqual(rows[0], { results: JOBS, jobs: JOBS });
    for (const worker of workers)
      assert.ok(worker.connects > 3 && worker.notified > 0, `${worker.connects} connects, ${worker.notified} notified`);
  });
});
