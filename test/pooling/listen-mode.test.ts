/*
 * listen_mode: LISTEN in transaction pooling.
 */

import assert from 'node:assert/strict';
import { type Bouncer, it, PgCluster } from '../harness';
import { ask, backendOf, login, rowsBecome, start, withPooler } from '../harness/answers';
import { backendPid, fails } from '../harness/expect';
import { JobWorker } from '../harness/job-queue';
import { after, before } from '../harness/limits';
import { eventually, withTimeout } from '../harness/machine';
import { bind, EXECUTE, parse, SYNC } from '../harness/prepared-packets';
import { letters, message, type RawClient } from '../harness/raw-client';
import { withRebootChain } from '../harness/reboot-chain';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

const PIN = { pool_mode: 'transaction', default_pool_size: 2, listen_mode: 'pin' };

function withListen(
  settings: Record<string, string | number>,
  body: (pooler: Bouncer) => Promise<void>,
): Promise<void> {
  return withPooler({ cluster: pg, settings: { ...PIN, ...settings } }, body);
}

/** Channel and payload of the next notification of an idle client. */
async function heard(client: RawClient): Promise<string> {
  const messages = await client.until('A');
  const body = messages.at(-1)?.body as Buffer;
  return body.toString('latin1', 4, body.length - 1).replace('\0', ' ');
}

const CHANNELS = 'SELECT count(*)::text FROM pg_listening_channels()';

it('refuse: LISTEN ends the client with an error, and the server', async () => {
  await withListen({ listen_mode: 'refuse', default_pool_size: 1 }, async (pooler) => {
    const [one, two] = [await pooler.connect(), await pooler.connect()];
    const pid = await backendPid(one);
    await one.query('NOTIFY news; UNLISTEN *; PREPARE a AS SELECT 1');
    assert.equal(await backendPid(one), pid);
    const reason = 'LISTEN is not allowed: it outlasts the transaction (listen_mode = refuse)';
    await fails(one.query('BEGIN; LISTEN news; COMMIT'), reason, '0A000');
    assert.notEqual(await backendPid(two), pid);
    await fails(two.query({ text: 'LISTEN news', values: [] }), reason, '0A000');
  });
});

it('pin: a listener keeps its server and gets notifications, until UNLISTEN *', async () => {
  await withListen({}, async (pooler) => {
    const [one, two] = [await login(pooler), await login(pooler)];
    for (const sql of ['LISTEN news', 'BEGIN; LISTEN news; COMMIT']) {
      await one.query(sql);
      const pid = await backendOf(one);
      await pooler.logWait(/LISTEN: the client keeps its server connection/);
      assert.notEqual(await backendOf(two), pid);
      await two.query("NOTIFY news, 'first'");
      assert.equal(await heard(one), 'news first');
      // neither another transaction nor UNLISTEN of one channel ends it
      await one.query('BEGIN; SELECT 1; COMMIT');
      await one.query('UNLISTEN other');
      await one.query('BEGIN; UNLISTEN *; ROLLBACK');
      for (const part of ['BEGIN', 'UNLISTEN *', 'ROLLBACK']) await one.query(part);
      await two.query("NOTIFY news, 'second'");
      assert.equal(await heard(one), 'news second');
      assert.deepEqual(
        (await pooler.admin('SHOW CLIENTS'))
          .filter(({ database, link }) => database === 'postgres' && link !== '')
          .map(({ state }) => state),
        ['active'],
      );
      await one.query(' unlisten *; ');
      await rowsBecome(pooler, 'SERVERS', { database: 'postgres', state: 'idle' }, 2);
    }
    // by the extended protocol, and in a pipeline with what follows
    await one.send(parse('', 'LISTEN news'), bind(''), EXECUTE, SYNC);
    assert.equal(letters(await one.until('Z')), '12CZ');
    await one.send(message('Q', Buffer.from('UNLISTEN *\0')), message('Q', Buffer.from('LISTEN again\0')));
    await one.until('Z');
    await one.until('Z');
    await two.query("NOTIFY again, 'third'");
    assert.equal(await heard(one), 'again third');
    await one.query('DISCARD ALL');
    await rowsBecome(pooler, 'SERVERS', { database: 'postgres', state: 'idle' }, 2);
  });
});

it('pin: when a listener leaves, the next client gets its server without its channels', async () => {
  await withListen({ default_pool_size: 1, dirty_session: 'refuse' }, async (pooler) => {
    const one = await login(pooler);
    await one.query('LISTEN news');
    const pid = await backendOf(one);
    const two = await login(pooler);
    // the pool has no other server
    await start(two, 'SELECT pg_backend_pid()');
    await rowsBecome(pooler, 'CLIENTS', { database: 'postgres', state: 'waiting' }, 1);
    await one.end();
    const answer = await two.until('Z');
    assert.match(String(answer.find(({ type }) => type === 'D')?.body), new RegExp(`${pid}$`));
    assert.equal(await ask(two, CHANNELS), '0');
  });
});

it('pin: a listener whose server ends is told so', async () => {
  await withListen({ dirty_session: 'log' }, async (pooler) => {
    const one = await pooler.connect();
    await one.query('LISTEN news');
    const ended = new Promise<Error>((settle) => one.once('error', settle));
    await pg.killBackends(`pid = ${await backendPid(one)}`);
    assert.match(
      (await withTimeout(ended, 'the error')).message,
      /terminating connection due to administrator command/,
    );
    assert.equal(pooler.log.count(/session state left behind/), 0);
  });
});

it('pin: a listener keeps its server over an online reboot', async () => {
  await withRebootChain({ cluster: pg, settings: PIN }, async (chain) => {
    await chain.start('ts');
    const one = await chain.raw();
    await one.login();
    await one.query('LISTEN news');
    const pid = await backendOf(one);
    await chain.reboot('ts');
    await chain.sql("NOTIFY news, 'after'");
    assert.equal(await heard(one), 'news after');
    assert.equal(await backendOf(one), pid);
    await one.query('UNLISTEN *');
    assert.equal((await chain.sql('SELECT pg_backend_pid() AS pid')).rows[0].pid, pid);
  });
});

it('a job queue loses and doubles nothing while its servers are killed', async () => {
  const JOBS = 300;
  await pg.sql(
    'CREATE TABLE jobs (id int PRIMARY KEY, done boolean NOT NULL DEFAULT false); CREATE TABLE results (id int)',
  );
  await withListen({ default_pool_size: 6, dirty_session: 'reset' }, async (pooler) => {
    const workers = [1, 2, 3].map(() => new JobWorker(pooler));
    const running = workers.map((worker) => worker.run());
    await eventually('listeners', async () => pooler.log.count(/LISTEN: the client keeps/) >= workers.length);
    for (let id = 0; id < JOBS; ) {
      try {
        // a client for each job: it gets any server but those of the workers
        await pooler.sql(`BEGIN; INSERT INTO jobs VALUES (${id}) ON CONFLICT DO NOTHING; NOTIFY jobs; COMMIT`);
        if (++id % 30 === 0) await pg.killBackends("backend_type = 'client backend'");
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
    for (const worker of workers) assert.ok(worker.connects > 3, `a worker connected ${worker.connects} times`);
  });
});
