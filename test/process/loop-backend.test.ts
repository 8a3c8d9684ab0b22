/*
 * loop_backend and io_threads: which backend and threads a process uses, and that connections change between them in a
 * reboot.
 */

import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { Bouncer, it, itUnless, noProgram, PgCluster, run, runSync, tempDir } from '../harness';
import { after, before, describe, eventually } from '../harness/limits';
import { installed, PROJECT_DIR } from '../harness/machine';

const SOURCE = join(PROJECT_DIR, 'test', 'process', 'without-uring.c');
const UP = /process up: .* \((\w+)\), tls/;
const REFUSED = /io_uring is not available, using epoll: io_uring_setup: Operation not permitted/;

/** Why io_uring cannot be tested here, or null: asked in another process, because a process has one loop. */
function refusalOfKernel(): string | null {
  const path = JSON.stringify(require.resolve('../../src/core/base/native'));
  const code = `const { native } = require(${path}); native.loopInit('uring', 65536); console.log(native.loopRefusal())`;
  const refusal = runSync(process.execPath, ['-e', code]).stdout.trim();
  return refusal === '' ? null : `this kernel refuses io_uring: ${refusal}`;
}

function backendOf(bouncer: Bouncer): string {
  return UP.exec(bouncer.log.text)?.[1] as string;
}

describe('loop_backend', () => {
  let cluster: PgCluster;
  before(async () => {
    cluster = await PgCluster.start();
  });
  after(() => cluster.stop());

  itUnless(noProgram('cc'))('where io_uring is refused, the pooler says why and serves with epoll', async () => {
    const dir = tempDir('without-uring');
    const program = join(dir, 'without-uring');
    const built = await run('cc', ['-o', program, SOURCE], { asSelf: true });
    assert.equal(built.code, 0, built.stderr);
    const { node, mainJs } = installed();
    for (const wanted of ['auto', 'uring']) {
      const command = [program, node, mainJs];
      const bouncer = await Bouncer.start({ cluster, command, settings: { loop_backend: wanted } });
      assert.match(bouncer.log.text, REFUSED);
      assert.equal(backendOf(bouncer), 'epoll');
      assert.equal((await bouncer.sql('SELECT 41 + 1 AS n')).rows[0]?.n, 42);
      await bouncer.stop();
    }
  });

  it('epoll does not ask the kernel for io_uring', async () => {
    const bouncer = await Bouncer.start({ cluster, settings: { loop_backend: 'epoll' } });
    assert.equal(backendOf(bouncer), 'epoll');
    assert.doesNotMatch(bouncer.log.text, /io_uring/);
    await bouncer.stop();
  });

  it('an unknown backend is refused with the values that are known', async () => {
    const bouncer = await Bouncer.start({ cluster, wait: false, settings: { loop_backend: 'kqueue' } });
    assert.equal((await bouncer.expectEnd()).code, 1);
    assert.match(bouncer.log.text, /loop_backend/);
    await bouncer.stop();
  });

  itUnless(refusalOfKernel())('a reboot changes the backend, and no connection notices', async () => {
    let bouncer = await Bouncer.start({ cluster, settings: { loop_backend: 'epoll', pool_mode: 'session' } });
    const client = await bouncer.connect();
    const { pid } = (await client.query('SELECT pg_backend_pid() AS pid')).rows[0];
    for (const backend of ['uring', 'epoll', 'uring', 'uring']) {
      bouncer.rewrite({ settings: { loop_backend: backend } });
      const next = bouncer.beside(['-R']);
      await next.waitUp();
      await bouncer.expectEnd();
      assert.equal(backendOf(next), backend);
      bouncer = next;
      assert.equal((await client.query('SELECT pg_backend_pid() AS pid')).rows[0].pid, pid);
    }
    await client.end();
    await bouncer.stop();
  });

  it('a reboot changes the number of threads under load, and no connection notices', async () => {
    const always = { io_threads_load: 0, pool_mode: 'session' };
    let bouncer = await Bouncer.start({ cluster, settings: { ...always, io_threads: 0 } });
    const clients = await Promise.all(Array.from({ length: 12 }, () => bouncer.connect()));
    let ending = false;
    const busy = clients.map(async (client, i) => {
      for (let n = 0; !ending; n++) {
        const { rows } = await client.query(`SELECT ${n} AS n, repeat('x', ${1000 * i}) AS x`);
        assert.equal(rows[0].n, n);
        assert.equal(rows[0].x.length, 1000 * i);
      }
    });
    const backends = refusalOfKernel() === null ? ['epoll', 'uring', 'uring', 'epoll'] : ['epoll', 'epoll'];
    for (const [i, backend] of backends.entries()) {
      bouncer.rewrite({ settings: { ...always, loop_backend: backend, io_threads: [2, 3, 0, 1][i] as number } });
      const next = bouncer.beside(['-R']);
      await next.waitUp();
      await bouncer.expectEnd();
      bouncer = next;
      await delay(100);
    }
    ending = true;
    await Promise.all(busy);
    await Promise.all(clients.map((client) => client.end()));
    await bouncer.stop();
  });

  it('SHOW THREADS tells what each thread has done', async () => {
    const bouncer = await Bouncer.start({ cluster, settings: { io_threads: 2, io_threads_load: 0 } });
    const clients = await Promise.all(Array.from({ length: 8 }, () => bouncer.connect()));
    let rows = await bouncer.admin('SHOW THREADS');
    // with epoll, threads work only when several connections have something to do in the same turn
    await eventually('each thread to work', async () => {
      await Promise.all(clients.map((client) => client.query("SELECT repeat('x', 10000)")));
      rows = await bouncer.admin('SHOW THREADS');
      return rows.every((row) => Number(row.turns) > 0);
    });
    assert.deepEqual(
      rows.map((row) => row.thread),
      ['main', 'io-1', 'io-2'],
    );
    // the clients, the console, and their servers
    const [main, ...others] = rows;
    assert.ok(others.every((row) => Number(row.handles) >= 2));
    assert.ok(others.reduce((sum, row) => sum + Number(row.sent), 0) > 30_000);
    assert.equal(Number(main?.received), 0);
    assert.ok(rows.every((row) => Number(row.turns) > 0 && Number(row.cpu_us) > 0));
    const names = readdirSync(`/proc/${bouncer.pid}/task`).map((task) =>
      readFileSync(`/proc/${bouncer.pid}/task/${task}/comm`, 'latin1').trim(),
    );
    assert.equal(names.filter((name) => /^io-[12]$/.test(name)).length, 2);
    await Promise.all(clients.map((client) => client.end()));
    await bouncer.stop();
  });

  it('the threads begin to work under load, and end when there is none', async () => {
    const bouncer = await Bouncer.start({
      cluster,
      settings: { io_threads: 1, io_threads_load: 8, pool_mode: 'transaction' },
    });
    const turns = async () => Number((await bouncer.admin('SHOW THREADS')).find((row) => row.thread === 'io-1')?.turns);
    const clients = await Promise.all(Array.from({ length: 24 }, () => bouncer.connect()));
    await eventually('the thread to work', async () => {
      for (let i = 0; i < 50; i++) await Promise.all(clients.map((client) => client.query('SELECT 1')));
      return (await turns()) > 10;
    });
    await eventually('the thread to end', async () => {
      const before = await turns();
      await delay(1500);
      return (await turns()) === before;
    });
    for (const client of clients) {
      assert.equal((await client.query('SELECT 41 + 1 AS n')).rows[0].n, 42);
      await client.end();
    }
    await bouncer.stop();
  });
});
