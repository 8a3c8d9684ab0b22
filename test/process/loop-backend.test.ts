/* loop_backend: which backend a process uses, and that connections change between backends in a reboot. */

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { Bouncer, it, itUnless, noProgram, PgCluster, run, runSync, tempDir } from '../harness';
import { after, before, describe } from '../harness/limits';
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
});
