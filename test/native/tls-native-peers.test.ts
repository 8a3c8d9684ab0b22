/*
 * TLS in the addon: key updates and renegotiation of peers, and protocols without a common version.
 */

import assert from 'node:assert/strict';
import type { ChildProcessWithoutNullStreams } from 'node:child_process';
import { setImmediate as nextTick } from 'node:timers/promises';
import { Ev, Family, native } from '../../src/core/base/native';
import { startTestLoop } from '../harness/backend';
import { test, withTimeout } from '../harness/limits';
import { startProgram } from '../harness/machine';
import { itUnless, noProgram } from '../harness/needs';
import {
  accepting,
  closeAll,
  connecting,
  failure,
  type Happened,
  put,
  receive,
  site,
  TLS12,
  TLS13,
  tlsPair,
  turn,
  until,
} from '../harness/tls-driver';
import { move } from '../harness/tls-moves';

const RECV_MAX = 4096;
startTestLoop(RECV_MAX);

test('TLS connections outlive their context', () => {
  const clientCtx = connecting();
  const serverCtx = accepting(site);
  const [client, server] = tlsPair(clientCtx, serverCtx);
  native.tlsCtxFree(clientCtx);
  native.tlsCtxFree(serverCtx);
  native.tlsCtxFree(serverCtx);
  put(client, Buffer.from('still'));
  assert.equal(receive(server, 5).toString(), 'still');
  closeAll(client, server);
});

/** Runs `body` with openssl s_client and the accepted handle after the handshake. */
async function withOpenssl(
  args: string[],
  body: (server: number, type: (text: string) => void, said: () => string) => Promise<number | undefined>,
): Promise<void> {
  const fd = native.listenTcp({ family: Family.INET, host: '127.0.0.1', port: 0 }, 16, 0);
  const { port } = native.sockName(fd);
  const listener = native.listenOpen(fd);
  native.listenStart(listener, 1);
  const all = ['s_client', '-connect', `127.0.0.1:${port}`, ...args];
  const child = startProgram('openssl', all, {}) as ChildProcessWithoutNullStreams;
  const closed = new Promise((settle) => child.once('close', settle));
  let said = '';
  child.stdout.on('data', (text) => {
    said += text;
  });
  let server = native.open(until(Ev.ACCEPT, listener).result);
  native.tlsAccept(server, accepting(site), 0, 0);
  assert.equal(until(Ev.TLS, server).result, 0);
  native.recvStart(server);
  try {
    const type = (text: string): void => void child.stdin.write(text);
    server = (await body(server, type, () => said)) ?? server;
  } finally {
    closeAll(server, listener);
    child.kill();
    await withTimeout(closed, 'openssl to end');
  }
}

async function arrives(handle: number): Promise<Happened> {
  const end = Date.now() + 10_000;
  for (;;) {
    const hit = turn(0).find((h) => h.handle === handle && h.kind === Ev.RECV);
    if (hit) return hit;
    assert.ok(Date.now() < end, 'nothing arrives');
    await nextTick();
  }
}

itUnless(noProgram('openssl'))('a second handshake on the same connection ends it', async () => {
  await withOpenssl(['-tls1_2'], async (server, type) => {
    type('hello\n');
    assert.equal((await arrives(server)).bytes.toString(), 'hello\n');
    type('R\n');
    assert.ok((await arrives(server)).result < 0);
    assert.equal(native.tlsError(server), 'unexpected handshake, closing connection');
    return undefined;
  });
});

itUnless(noProgram('openssl'))('a second handshake on a continued connection ends it too', async () => {
  await withOpenssl(['-tls1_2'], async (server, type) => {
    type('hello\n');
    assert.equal((await arrives(server)).bytes.toString(), 'hello\n');
    const next = move(server, -1);
    type('R\n');
    assert.ok((await arrives(next)).result < 0);
    assert.equal(native.tlsError(next), 'unexpected handshake, closing connection');
    return next;
  });
});

itUnless(noProgram('openssl'))('openssl changes keys on a continued connection, again and again', async () => {
  await withOpenssl(['-tls1_3'], async (first, type, said) => {
    let server = first;
    for (let i = 0; i < 4; i++) {
      // K asks for a key update in return, k does not
      type(i % 2 === 0 ? 'K\n' : 'k\n');
      const end = Date.now() + 10_000;
      while (native.tlsInfo(server)?.keyUpdatesRead !== i + 1 && Date.now() < end) {
        turn(0);
        await nextTick();
      }
      type(`line ${i}\n`);
      assert.equal((await arrives(server)).bytes.toString(), `line ${i}\n`);
      server = move(server, -1);
      put(server, Buffer.from(`answer ${i}\n`));
      while (!said().includes(`answer ${i}\n`) && Date.now() < end) {
        turn(0);
        await nextTick();
      }
      assert.ok(said().includes(`answer ${i}\n`), said());
      const info = native.tlsInfo(server);
      assert.deepEqual([info?.keyUpdatesRead, info?.keyUpdatesWritten], [i + 1, Math.floor(i / 2) + 1]);
    }
    return server;
  });
});

itUnless(noProgram('openssl'))('a continued connection keeps to the length of records that was agreed on', async () => {
  for (const version of ['-tls1_2', '-tls1_3']) {
    await withOpenssl([version, '-maxfraglen', '512'], async (first, type, said) => {
      type('hello\n');
      assert.equal((await arrives(first)).bytes.toString(), 'hello\n');
      const server = move(first, -1);
      put(server, Buffer.from(`${'x'.repeat(5000)}end\n`));
      const end = Date.now() + 10_000;
      while (!said().includes('xend\n') && Date.now() < end) {
        turn(0);
        await nextTick();
      }
      assert.ok(said().includes(`${'x'.repeat(5000)}end\n`));
      assert.equal(native.tlsInfo(server)?.recordsWritten, version === '-tls1_2' ? 11 : 10);
      return server;
    });
  }
});

itUnless(noProgram('openssl'))('TLS 1.3 may change keys, and the sequence numbers begin again', async () => {
  await withOpenssl(['-tls1_3'], async (server, type) => {
    type('hello\n');
    assert.equal((await arrives(server)).bytes.toString(), 'hello\n');
    assert.equal(native.tlsInfo(server)?.recordsRead, 1);
    // K: a key update that requests another in return
    type('K\n');
    const end = Date.now() + 10_000;
    while (native.tlsInfo(server)?.keyUpdatesRead === 0 && Date.now() < end) {
      turn(0);
      await nextTick();
    }
    assert.equal(native.tlsInfo(server)?.recordsRead, 0);
    type('more\n');
    assert.equal((await arrives(server)).bytes.toString(), 'more\n');
    const info = native.tlsInfo(server);
    assert.equal(info?.keyUpdatesRead, 1);
    assert.equal(info?.recordsRead, 1);
    put(server, Buffer.from('answer'));
    // bytes are encrypted when they leave
    assert.equal(native.unsent(server), 0);
    assert.equal(native.tlsInfo(server)?.keyUpdatesWritten, 1);
    assert.equal(native.tlsInfo(server)?.recordsWritten, 1);
    return undefined;
  });
});

itUnless(noProgram('openssl'))(
  'a peer that only changes keys is disconnected; data between the changes allows more',
  async () => {
    await withOpenssl(['-tls1_3'], async (server, type) => {
      const changes = async (from: number, to: number) => {
        for (let i = from; i < to; i++) {
          type('k\n');
          const end = Date.now() + 10_000;
          while (native.tlsInfo(server)?.keyUpdatesRead !== i + 1 && Date.now() < end) {
            turn(0);
            await nextTick();
          }
        }
      };
      await changes(0, 32);
      type('data\n');
      assert.equal((await arrives(server)).bytes.toString(), 'data\n');
      await changes(32, 64);
      type('k\n');
      assert.ok((await arrives(server)).result < 0);
      assert.equal(native.tlsError(server), 'read failed: too many records without data');
      return undefined;
    });
  },
);

test('peers without a common TLS protocol are not connected', () => {
  assert.match(
    failure(connecting({ protocols: TLS12 }), accepting(site, { protocols: TLS13 })).why,
    /protocol version/,
  );
});

itUnless(noProgram('openssl'))('ALPN: postgresql is chosen, anything else is refused', async () => {
  await withOpenssl(['-alpn', 'postgresql'], async () => undefined);
  await assert.rejects(withOpenssl(['-alpn', 'http/1.1'], async () => undefined));
});
