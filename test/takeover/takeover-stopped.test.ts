/*
 * Handovers in which one of the two processes is stopped (SIGSTOP) or interrupted by signals. Clients of a running
 * process wait only briefly, no query fails, and no process waits forever.
 */

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { freePort } from '../../tools/postgres';
import { eventually, it, PgCluster } from '../harness';
import { ask, query, rowsOf } from '../harness/actor';
import { after, before } from '../harness/limits';
import { samplesBecome } from '../harness/metrics';
import { type RebootChain, withRebootChain } from '../harness/reboot-chain';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

function stopAt(step: string): NodeJS.ProcessEnv {
  return { TSBOUNCER_TEST: '1', TSBOUNCER_TAKEOVER_STOP: step };
}

const SETTINGS = { pool_mode: 'transaction', default_pool_size: 5, max_client_conn: 500 };

/** Opens idle clients whose records exceed the kernel's socket buffer between the two processes. */
async function idleClients(chain: RebootChain, count: number): Promise<void> {
  for (let i = 0; i < count; i++) await (await chain.raw(true)).login();
}

/** Starts a client that sends queries continuously; `longestMs` is the longest time to an answer. */
async function watchdog(chain: RebootChain): Promise<{ stop: () => Promise<void>; longestMs: () => number }> {
  const client = await chain.raw();
  await client.login();
  let longest = 0;
  let over = false;
  const loop = (async () => {
    while (!over) {
      const begun = performance.now();
      assert.equal(await ask(client, 'SELECT 1'), '1');
      longest = Math.max(longest, performance.now() - begun);
    }
  })();
  loop.catch(() => {});
  return {
    longestMs: () => longest,
    stop: async () => {
      over = true;
      await loop;
    },
  };
}

it('the counters of a pool that is removed while the new process is stopped count once', async () => {
  await pg.createUser('bob', '', 'none');
  const port = await freePort();
  const settings = {
    ...SETTINGS,
    pool_idle_timeout: 3,
    server_idle_timeout: 1,
    suspend_timeout: 20,
    metrics_port: port,
  };
  await withRebootChain({ cluster: pg, settings, userlist: { bob: '' } }, async (chain) => {
    const old = await chain.start('ts');
    const queries = 'pgbouncer_stats_queries_pooled_total{database="postgres"}';
    const counts = (expected: number) => (found: Map<string, number>) => found.get(queries) === expected;
    await samplesBecome(port, 'the metrics', (found) => found.size > 0);
    const bob = await chain.raw();
    await bob.login({ user: 'bob' });
    for (let i = 0; i < 10; i++) await ask(bob, 'SELECT 1');
    await bob.end();
    await samplesBecome(port, 'ten queries', counts(10));
    const next = chain.spawn('ts', ['-R'], stopAt('take-ahead'));
    await next.waitStopped();
    await old.log.wait(/cleaning up idle pool for user bob/);
    next.child.kill('SIGCONT');
    await next.waitUp();
    chain.generations.push(next);
    await old.waitEnd();
    await samplesBecome(port, 'the metrics of the new process', (found) => found.size > 0);
    const found = await samplesBecome(port, 'the counter', (all) => all.has(queries));
    assert.equal(found.get(queries), 10);
  });
});

for (const step of ['take-suspended', 'take-row', 'take-complete']) {
  it(`when the new process is stopped at ${step}, clients wait at most two seconds and no query fails`, () =>
    withRebootChain({ cluster: pg, settings: SETTINGS }, async (chain) => {
      const old = await chain.start('ts');
      await idleClients(chain, 20);
      const inTransaction = await chain.raw();
      await inTransaction.login();
      await ask(inTransaction, 'BEGIN');
      const dog = await watchdog(chain);
      const next = chain.spawn('ts', ['-R'], stopAt(step));
      await next.waitStopped();
      await old.log.wait(/handover failed, resuming work/);
      assert.equal(await ask(inTransaction, 'SELECT 2'), '2');
      await dog.stop();
      // the pooler's limit is 1.5 s; the rest is an allowance for a loaded machine
      assert.ok(dog.longestMs() < 3500, `a client waited for ${dog.longestMs()} ms`);
      next.child.kill('SIGCONT');
      assert.equal((await next.waitEnd()).code, 1);
      assert.equal(await ask(inTransaction, 'SELECT 3'), '3');
      await chain.reboot('ts');
      assert.equal(await ask(inTransaction, 'SELECT 4'), '4');
    }));
}

it('-R -d fails if the old process is stopped, and the old process works after SIGCONT', () => {
  const settings = { ...SETTINGS, server_connect_timeout: 1 };
  return withRebootChain({ cluster: pg, settings }, async (chain) => {
    chain.write({ settings: { logfile: join(chain.dir, 'log') } });
    const old = await chain.start('ts');
    const client = await chain.raw();
    await client.login();
    old.child.kill('SIGSTOP');
    await old.waitStopped();
    const outcome = await chain.run('-R', '-d');
    assert.equal(outcome.code, 1);
    assert.match(outcome.stderr, /login failed: the old process does not answer/);
    old.child.kill('SIGCONT');
    assert.equal(await ask(client, 'SELECT 1'), '1');
  });
});

/** The error of a new process that has waited in vain for ten seconds. */
const GIVES_UP: [step: string, says: RegExp][] = [
  ['give-frozen', /FATAL no answer from the old process for 10 s, giving up/],
  ['give-described', /FATAL handover failed, old process keeps running: no answer for 10 s/],
  ['give-shutdown', /FATAL handover failed, old process keeps running: no answer for 10 s/],
];

it('the new process exits if the old process is stopped during a handover, and the old process resumes after SIGCONT', async () => {
  await Promise.all(
    GIVES_UP.map(([step, says]) =>
      withRebootChain({ cluster: pg, settings: SETTINGS }, async (chain) => {
        const old = await chain.start('ts', stopAt(step));
        const client = await chain.raw();
        await client.login();
        await ask(client, 'BEGIN');
        const next = chain.spawn('ts', ['-R']);
        await old.waitStopped();
        await query(client, 'SELECT 1');
        assert.equal((await next.waitEnd()).code, 1);
        assert.match(next.log.text, says, step);
        old.child.kill('SIGCONT');
        await old.log.wait(/handover failed, resuming work/);
        assert.deepEqual(rowsOf(await client.until('Z')), [['1']], step);
        assert.equal(await ask(await newClient(chain), 'SELECT 2'), '2');
        assert.equal(old.end, null, step);
      }),
    ),
  );
});

async function newClient(chain: RebootChain) {
  const client = await chain.raw();
  await client.login();
  return client;
}

it('the new process serves and keeps its pidfile if the old process is stopped after its acknowledgement', () =>
  withRebootChain({ cluster: pg, settings: SETTINGS }, async (chain) => {
    const old = await chain.start('ts', stopAt('give-acknowledged'));
    const client = await newClient(chain);
    const next = chain.spawn('ts', ['-R']);
    chain.generations.push(next);
    await old.waitStopped();
    assert.equal(await ask(client, 'SELECT 1'), '1');
    await next.log.wait(/process up/, 0, 60_000);
    assert.equal(chain.pidInFile(), next.pid);
    old.child.kill('SIGCONT');
    assert.equal((await old.waitEnd()).code, 0);
    assert.equal(chain.pidInFile(), next.pid);
    assert.equal(await ask(client, 'SELECT 2'), '2');
  }));

it('signals during handovers do not abort them', () =>
  withRebootChain({ cluster: pg, settings: SETTINGS }, async (chain) => {
    await chain.start('ts');
    await idleClients(chain, 50);
    // unsent output of a client that does not read makes the records long, so that the old process waits for the new
    // process
    const slow = await newClient(chain);
    slow.socket.pause();
    await query(slow, "SELECT repeat('x', 1000000) FROM generate_series(1, 20)");
    const dog = await watchdog(chain);
    for (let i = 0; i < 3; i++) {
      const old = chain.now;
      const storm = setInterval(() => old.child.kill('SIGHUP'), 1);
      try {
        await chain.reboot('ts');
      } finally {
        clearInterval(storm);
      }
      assert.ok(old.log.count(/got SIGHUP/) > 0);
      assert.equal(old.log.count(/handover failed/), 0);
    }
    await dog.stop();
    slow.socket.resume();
    const rows = rowsOf(await slow.until('Z'));
    assert.equal(rows.length, 20);
  }));

it('Ctrl-C at the launcher of -R -d does not end a new process that has taken over', () =>
  withRebootChain({ cluster: pg, settings: SETTINGS }, async (chain) => {
    chain.write({ settings: { logfile: join(chain.dir, 'log') } });
    const old = await chain.start('ts', stopAt('give-acknowledged'));
    const client = await newClient(chain);
    const launcher = chain.spawn('ts', ['-R', '-d']);
    await old.waitStopped();
    // the new process serves, and waits for the end of the old one
    assert.equal(await ask(client, 'SELECT 1'), '1');
    launcher.child.kill('SIGINT');
    assert.equal((await launcher.waitEnd()).code, 0);
    assert.match(launcher.log.text, /the new process, \d+, has taken over and goes on/);
    old.child.kill('SIGCONT');
    await old.waitEnd();
    assert.equal(await ask(client, 'SELECT 2'), '2');
    assert.equal(await ask(await newClient(chain), 'SELECT 3'), '3');
    await eventually('its pidfile', () => chain.pidInFile() > 0 && chain.pidInFile() !== old.pid);
    process.kill(chain.pidInFile(), 'SIGINT');
  }));

it('a new process that is shut down before the old one has ended does not listen again', () =>
  withRebootChain({ cluster: pg, settings: SETTINGS }, async (chain) => {
    const old = await chain.start('ts', stopAt('give-acknowledged'));
    const client = await newClient(chain);
    await ask(client, 'BEGIN');
    const next = chain.spawn('ts', ['-R']);
    await old.waitStopped();
    assert.equal(await ask(client, 'SELECT 1'), '1');
    next.child.kill('SIGTERM');
    await next.log.wait(/got SIGTERM/);
    old.child.kill('SIGCONT');
    await old.waitEnd();
    await next.log.wait(/old process killed, resuming work/);
    await assert.rejects(chain.raw(), /ECONNREFUSED/);
    assert.equal(await ask(client, 'COMMIT'), null);
    await client.end();
    assert.equal((await next.waitEnd()).code, 0);
  }));

it('clients that disconnect while the new process reads are closed at once, and are not taken over', () =>
  withRebootChain({ cluster: pg, settings: SETTINGS }, async (chain) => {
    const old = await chain.start('ts');
    const [stays, leaves] = [await newClient(chain), await newClient(chain)];
    const next = chain.spawn('ts', ['-R'], stopAt('take-ahead'));
    chain.generations.push(next);
    await next.waitStopped();
    await leaves.end();
    await old.log.wait(/client close request/);
    next.child.kill('SIGCONT');
    await next.log.wait(/took over 2 listening sockets, 1 clients, 1 servers/);
    assert.equal(await ask(stays, 'SELECT 1'), '1');
  }));
