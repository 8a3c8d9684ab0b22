/*
 * The native addon through its facade: what a wait() reports, in which order, and that nothing is lost, leaked or
 * spun on. The loop runs on this thread; tests that need somebody else use a worker or a child.
 */

import assert from 'node:assert/strict';
import { mkdtempSync, openSync, readdirSync, readSync, rmSync, writeSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { arena, Ev, Family, native, Rec, ring } from '../../src/core/base/native';
import { after, runSync, test, withTimeout } from '../harness/limits';

const RECV_MAX = 65536;
const E = constants.errno;
assert.equal(native.loopInit('libuv', RECV_MAX), 'libuv');
const dir = mkdtempSync(join(tmpdir(), 'tsb-native-'));
after(() => rmSync(dir, { recursive: true }));

interface Happened {
  kind: number;
  handle: number;
  result: number;
  offset: number;
  text: string;
}

function turn(timeoutMs: number): Happened[] {
  const list: Happened[] = [];
  const count = native.wait(timeoutMs);
  for (let i = 0; i < count; i++) {
    const at = i * Rec.SIZE;
    const kind = ring[at + Rec.KIND];
    const result = ring[at + Rec.RESULT];
    const offset = ring[at + Rec.OFFSET];
    const text = kind === Ev.RECV && result > 0 ? arena.toString('latin1', offset, offset + result) : '';
    list.push({ kind, handle: ring[at + Rec.HANDLE], result, offset, text });
  }
  return list;
}

/** Turns until a record of this kind for this handle comes; fails after 5 s. Others are dropped. */
function until(kind: Ev, handle: number): Happened {
  const end = Date.now() + 5000;
  while (Date.now() < end) {
    const hit = turn(100).find((h) => h.kind === kind && h.handle === handle);
    if (hit) return hit;
  }
  assert.fail(`no record ${kind} for handle ${handle}`);
}

/** Everything a handle receives until `length` bytes are there. */
function receive(handle: number, length: number): string {
  let text = '';
  while (text.length < length) text += until(Ev.RECV, handle).text;
  return text;
}

const put = (handle: number, text: string): number =>
  native.sendBytes(handle, Buffer.from(text, 'latin1'), 0, text.length);

/** Two connected handles, both reading. */
function pair(): [number, number] {
  const [a, b] = native.socketPair().map((fd) => native.open(fd));
  assert.ok(a > 0 && b > 0);
  native.recvStart(a);
  native.recvStart(b);
  return [a, b];
}

function closeAll(...handles: number[]): void {
  for (const handle of handles) assert.equal(native.close(handle), 0);
}

const descriptors = (): number => readdirSync('/proc/self/fd').length;

/** A listener of the family, with a connected pair of handles through it: [listener, client, server]. */
function connectedThrough(family: Family): [number, number, number] {
  const path = join(dir, `s${Math.random()}`);
  const fd =
    family === Family.UNIX
      ? native.listenUnix(path, 16)
      : native.listenTcp({ family, host: family === Family.INET ? '127.0.0.1' : '::1', port: 0 }, 16, 0);
  const name = native.sockName(fd);
  assert.equal(name.family, family);
  const listener = native.listenOpen(fd);
  native.listenStart(listener, 1);
  const client = native.connect(family, name.host, name.port);
  assert.ok(client > 0);
  let server = -1;
  let done = false;
  while (server < 0 || !done) {
    const list = turn(5000);
    assert.notEqual(list.length, 0);
    for (const h of list) {
      if (h.kind === Ev.ACCEPT) {
        assert.equal(h.handle, listener);
        assert.equal(h.offset, family === Family.UNIX ? 1 : 0);
        server = native.open(h.result);
      } else {
        assert.deepEqual([h.kind, h.handle, h.result], [Ev.CONNECT, client, 0]);
        done = true;
      }
    }
  }
  return [listener, client, server];
}

for (const family of [Family.UNIX, Family.INET, Family.INET6]) {
  test(`connects, accepts and echoes, family ${family}`, () => {
    const [listener, client, server] = connectedThrough(family);
    native.tuneSocket(native.fdOf(client), family === Family.UNIX, 1, 60, 10, 3, 5000, 65536);
    native.recvStart(client);
    native.recvStart(server);
    assert.equal(put(client, 'hello'), 0);
    const there = until(Ev.RECV, server);
    assert.equal(there.text, 'hello');
    assert.equal(native.send(server, there.offset + 1, 3), 0);
    assert.equal(until(Ev.RECV, client).text, 'ell');
    const peer = native.peerName(native.fdOf(client));
    assert.deepEqual(peer, native.sockName(native.fdOf(listener)));
    closeAll(listener, client, server);
  });
}

test('abstract Unix sockets, and paths that are too long', () => {
  const name = `@tsb-test-${process.pid}`;
  const fd = native.listenUnix(name, 4);
  assert.equal(native.sockName(fd).host, name);
  assert.equal(native.unixProbe(name), true);
  assert.equal(native.closeFd(fd), 0);
  assert.equal(native.unixProbe(name), false);
  assert.equal(native.connect(Family.UNIX, `/${'x'.repeat(107)}`, 0), -E.ENAMETOOLONG);
  assert.throws(() => native.listenUnix(`/${'x'.repeat(107)}`, 1), { syscall: 'bind', errno: E.ENAMETOOLONG });
  assert.throws(() => native.listenTcp({ family: Family.INET, host: '192.0.2.1', port: 1 }, 1, 0), {
    syscall: 'bind',
    errno: E.EADDRNOTAVAIL,
  });
});

test('kept bytes come in front of the next bytes, not before them', () => {
  const [a, b] = pair();
  put(a, 'abcdef');
  const first = until(Ev.RECV, b);
  assert.equal(native.keep(b, first.offset + 4, 2), 0);
  assert.equal(native.keptLength(b), 2);
  assert.deepEqual(turn(30), []);
  put(a, 'gh');
  assert.equal(until(Ev.RECV, b).text, 'efgh');
  assert.equal(native.keptLength(b), 0);
  closeAll(a, b);
});

test('stop and start deliver kept bytes at once, together with what waits', () => {
  const [a, b] = pair();
  put(a, 'abcdef');
  const first = until(Ev.RECV, b);
  native.recvStop(b);
  native.keep(b, first.offset + 3, 3);
  assert.deepEqual(turn(20), []);
  native.recvStart(b);
  assert.equal(until(Ev.RECV, b).text, 'def');
  const again = turn(20);
  assert.deepEqual(again, []);
  native.recvStop(b);
  put(a, 'XY');
  assert.deepEqual(turn(20), []);
  native.recvStart(b);
  assert.equal(until(Ev.RECV, b).text, 'XY');
  closeAll(a, b);
});

test('a limit holds for one delivery, and what it leaves comes without being announced again', () => {
  const [a, b] = pair();
  put(a, 'abcdef');
  native.recvLimit(b, 2);
  assert.equal(until(Ev.RECV, b).text, 'ab');
  native.recvLimit(b, 3);
  assert.equal(until(Ev.RECV, b).text, 'cde');
  const last = until(Ev.RECV, b);
  assert.equal(last.text, 'f');
  assert.deepEqual(turn(20), []);
  // kept bytes do not count
  native.recvStop(b);
  native.keep(b, last.offset, 1);
  put(a, 'ghi');
  native.recvLimit(b, 1);
  native.recvStart(b);
  assert.equal(until(Ev.RECV, b).text, 'fg');
  native.recvLimit(b, 1);
  native.recvLimit(b, 0);
  assert.equal(until(Ev.RECV, b).text, 'hi');
  closeAll(a, b);
});

test('a start that is taken back before the wait delivers nothing', () => {
  const [a, b] = pair();
  put(a, 'abc');
  const first = until(Ev.RECV, b);
  native.recvStop(b);
  native.keep(b, first.offset, 3);
  native.recvStart(b);
  native.recvStop(b);
  assert.deepEqual(turn(20), []);
  native.recvStart(b);
  put(a, 'def');
  assert.equal(until(Ev.RECV, b).text, 'abcdef');
  closeAll(a, b);
});

test('takeKept gives the bytes back once; too many kept bytes are an error', () => {
  const [a, b] = pair();
  put(a, 'abcdef');
  const first = until(Ev.RECV, b);
  native.keep(b, first.offset, 3);
  native.keep(b, first.offset + 3, 3);
  assert.equal(native.keptLength(b), 6);
  const offset = native.takeKept(b);
  assert.ok(offset > 0);
  assert.equal(arena.toString('latin1', offset, offset + 6), 'abcdef');
  assert.equal(native.takeKept(b), -1);
  native.keep(b, 0, 1 << 20);
  native.keep(b, 0, 1);
  put(a, 'x');
  assert.equal(until(Ev.RECV, b).result, -E.EMSGSIZE);
  closeAll(a, b);
});

test('1 MB of kept bytes and a receive are contiguous', () => {
  const [a, b] = pair();
  arena.fill('k', 0, 1 << 20);
  native.keep(b, 0, 1 << 20);
  put(a, 'end');
  const whole = until(Ev.RECV, b);
  assert.equal(whole.result, (1 << 20) + 3);
  assert.equal(whole.text, `${'k'.repeat(1 << 20)}end`);
  closeAll(a, b);
});

test('full receives of 100 handles in one turn share the arena, the rest comes in later turns', () => {
  const pairs = Array.from({ length: 100 }, pair);
  const block = Buffer.alloc(RECV_MAX);
  const fill = (b: number): string => String.fromCharCode(32 + (b % 90));
  for (const [a, b] of pairs) {
    block.fill(fill(b), 0, RECV_MAX, 'latin1');
    assert.equal(native.sendBytes(a, block, 0, RECV_MAX), 0);
  }
  const got = new Map<number, number>();
  while ([...got.values()].reduce((x, y) => x + y, 0) < 100 * RECV_MAX) {
    const list = turn(1000);
    assert.ok(list.length > 0);
    for (const h of list) {
      assert.ok(h.offset % 8 === 0 && h.offset + h.result <= 4 << 20);
      assert.equal(h.text, fill(h.handle).repeat(h.result));
      got.set(h.handle, (got.get(h.handle) ?? 0) + h.result);
    }
  }
  for (const [a, b] of pairs) closeAll(a, b);
});

test('a slow reader queues output, drains, and the bytes are right', () => {
  const [a, b] = pair();
  native.recvStop(b);
  const size = 8 << 20;
  const big = Buffer.alloc(size);
  for (let i = 0; i < size; i += 4) big.writeUInt32LE(i, i);
  const queued = native.sendBytes(a, big, 0, size);
  assert.ok(queued > 0 && queued < size);
  assert.equal(native.unsent(a), queued);
  assert.ok(put(a, 'tail') === queued + 4);
  assert.deepEqual(turn(30), []);
  native.recvStart(b);
  let at = 0;
  let drained = 0;
  while (at < size + 4 || drained === 0) {
    const list = turn(2000);
    assert.ok(list.length > 0);
    for (const h of list) {
      if (h.kind === Ev.DRAIN) {
        assert.deepEqual([h.handle, h.result], [a, 0]);
        drained++;
      } else {
        const want = at + h.result <= size ? big.subarray(at, at + h.result) : undefined;
        if (want) assert.ok(want.equals(arena.subarray(h.offset, h.offset + h.result)));
        else assert.ok(h.text.endsWith('tail'));
        at += h.result;
      }
    }
  }
  assert.equal(drained, 1);
  assert.equal(native.unsent(a), 0);
  closeAll(a, b);
});

test('takeUnsent takes the queue away without a drain', () => {
  const [a, b] = pair();
  native.recvStop(b);
  const queued = native.sendBytes(a, Buffer.alloc(2 << 20, 'z'), 0, 2 << 20);
  const taken = native.takeUnsent(a);
  assert.equal(taken.length, queued);
  assert.ok(taken.every((byte) => byte === 'z'.charCodeAt(0)));
  assert.equal(native.unsent(a), 0);
  native.recvStart(b);
  receive(b, (2 << 20) - queued);
  assert.deepEqual(turn(30), []);
  closeAll(a, b);
});

test('end of stream is told once, and a failed queue drains with an error', () => {
  const [a, b] = pair();
  native.recvStop(a);
  const queued = native.sendBytes(a, Buffer.alloc(2 << 20), 0, 2 << 20);
  assert.ok(queued > 0);
  native.close(b);
  assert.equal(until(Ev.DRAIN, a).result, -E.EPIPE);
  assert.equal(native.unsent(a), 0);
  assert.deepEqual(turn(30), []);
  native.recvStart(a);
  // unread bytes at the closing side are a reset on Unix sockets
  assert.equal(until(Ev.RECV, a).result, -E.ECONNRESET);
  assert.deepEqual(turn(30), []);
  assert.equal(put(a, 'x'), -E.EPIPE);
  native.close(a);

  const [c, d] = pair();
  put(c, 'bye');
  native.close(c);
  assert.equal(until(Ev.RECV, d).text, 'bye');
  assert.equal(until(Ev.RECV, d).result, 0);
  assert.deepEqual(turn(30), []);
  native.close(d);
});

test('an end behind a partial packet is told, and the packet is not delivered again', () => {
  const [a, b] = pair();
  put(a, 'half');
  const half = until(Ev.RECV, b);
  native.keep(b, half.offset, half.result);
  native.close(a);
  assert.equal(until(Ev.RECV, b).result, 0);
  assert.deepEqual(turn(30), []);
  native.close(b);

  const [c, d] = pair();
  put(c, 'half');
  native.close(c);
  const both = until(Ev.RECV, d);
  native.keep(d, both.offset, both.result);
  assert.equal(until(Ev.RECV, d).result, 0);
  native.close(d);
});

test('TCP reset: bytes first, then ECONNRESET', () => {
  const [listener, client, server] = connectedThrough(Family.INET);
  native.recvStart(server);
  put(server, 'never read');
  turn(20);
  native.close(client);
  assert.equal(until(Ev.RECV, server).result, -E.ECONNRESET);
  closeAll(listener, server);
});

test('a hang-up while stopped does not spin', () => {
  const [listener, client, server] = connectedThrough(Family.INET);
  native.recvStart(server);
  native.recvStop(server);
  put(server, 'unread');
  turn(10);
  native.close(client);
  const cpu = process.cpuUsage();
  assert.deepEqual(turn(300), []);
  const used = process.cpuUsage(cpu);
  assert.ok(used.user + used.system < 50_000, `${used.user + used.system} usec`);
  native.recvStart(server);
  assert.equal(until(Ev.RECV, server).result, -E.ECONNRESET);
  closeAll(listener, server);
});

test('connect: refused, missing path, full backlog, bad addresses', () => {
  const fd = native.listenTcp({ family: Family.INET, host: '127.0.0.1', port: 0 }, 1, 0);
  const { port } = native.sockName(fd);
  native.closeFd(fd);
  const refused = native.connect(Family.INET, '127.0.0.1', port);
  assert.equal(until(Ev.CONNECT, refused).result, -E.ECONNREFUSED);
  native.close(refused);
  const missing = native.connect(Family.UNIX, join(dir, 'nobody'), 0);
  assert.ok(missing > 0);
  assert.equal(until(Ev.CONNECT, missing).result, -E.ENOENT);
  native.close(missing);
  assert.equal(native.connect(Family.INET, 'localhost', 1), -E.EINVAL);
  assert.equal(native.connect(Family.INET6, '1::2::3', 1), -E.EINVAL);
  assert.equal(native.connect(9 as Family, '127.0.0.1', 1), -E.EINVAL);

  const path = join(dir, 'full');
  const listening = native.listenUnix(path, 0);
  const results: number[] = [];
  const handles: number[] = [];
  for (let i = 0; i < 4; i++) {
    const handle = native.connect(Family.UNIX, path, 0);
    handles.push(handle);
    results.push(until(Ev.CONNECT, handle).result);
  }
  assert.equal(results[0], 0);
  assert.equal(results[3], -E.EAGAIN);
  assert.equal(native.unixProbe(path), true);
  closeAll(...handles);
  native.closeFd(listening);
});

test('bytes sent while connecting follow the connect', () => {
  const fd = native.listenTcp({ family: Family.INET, host: '127.0.0.1', port: 0 }, 16, 0);
  const client = native.connect(Family.INET, '127.0.0.1', native.sockName(fd).port);
  native.recvStart(client);
  assert.equal(put(client, 'early'), 5);
  const listener = native.listenOpen(fd);
  native.listenStart(listener, 1);
  const seen = new Map<number, number>();
  while (!seen.has(Ev.ACCEPT) || !seen.has(Ev.DRAIN)) for (const h of turn(2000)) seen.set(h.kind, h.result);
  assert.deepEqual(
    [...seen.keys()].filter((k) => k !== Ev.ACCEPT),
    [Ev.CONNECT, Ev.DRAIN],
  );
  const server = native.open(seen.get(Ev.ACCEPT) as number);
  native.recvStart(server);
  assert.equal(until(Ev.RECV, server).text, 'early');
  closeAll(listener, client, server);
});

test('a burst of 500 connections is accepted, none lost, a stopped listener rests', () => {
  const fd = native.listenTcp({ family: Family.INET, host: '127.0.0.1', port: 0 }, 1024, 0);
  const { port } = native.sockName(fd);
  const listener = native.listenOpen(fd);
  const clients = Array.from({ length: 500 }, () => native.connect(Family.INET, '127.0.0.1', port));
  native.listenStart(listener, 1);
  native.listenStart(listener, 0);
  const early = turn(0).concat(turn(0));
  assert.equal(early.filter((h) => h.kind === Ev.ACCEPT).length, 0);
  native.listenStart(listener, 1);
  let connected = early.filter((h) => h.kind === Ev.CONNECT && h.result === 0).length;
  let accepted = 0;
  while (accepted < 500 || connected < 500) {
    const list = turn(2000);
    assert.ok(list.length > 0);
    assert.ok(list.filter((h) => h.kind === Ev.ACCEPT).length <= 128);
    for (const h of list) {
      assert.ok(h.result >= 0);
      if (h.kind === Ev.CONNECT) connected++;
      else {
        accepted++;
        native.closeFd(h.result);
      }
    }
  }
  closeAll(listener, ...clients);
});

test('running out of descriptors is one ACCEPT record a turn', () => {
  // in a child with a low limit, so that this process keeps its own
  const script = `
    const { native, ring } = require(${JSON.stringify(require.resolve('../../src/core/base/native'))});
    native.loopInit('libuv', 65536);
    const l = native.listenUnix(${JSON.stringify(join(dir, 'emfile'))}, 16);
    const h = native.listenOpen(l);
    const c = native.connect(1, ${JSON.stringify(join(dir, 'emfile'))}, 0);
    native.wait(1000);
    const held = [];
    try { for (;;) held.push(require('fs').openSync('/dev/null')); } catch {}
    native.listenStart(h, 1);
    const n = native.wait(1000);
    console.log(n, ring[0], ring[2], native.wait(0), native.listenStart(h, 0), native.wait(50));
    require('fs').closeSync(held[0]);
    native.listenStart(h, 1);
    console.log(native.wait(1000), ring[0], ring[2] > 0);`;
  const child = runSync('/bin/sh', ['-c', 'ulimit -n 64; exec "$0" -e "$1"', process.execPath, script]);
  assert.equal(child.stdout, `1 1 ${-E.EMFILE} 1 0 0\n1 1 true\n`, child.stderr);
});

test('signals arrive, SIGUSR1 and repeated starts included', () => {
  for (const name of ['SIGUSR1', 'SIGUSR2', 'SIGHUP', 'SIGTERM', 'SIGINT'] as const) {
    const signum = constants.signals[name];
    assert.equal(native.signalStart(signum), 0);
    assert.equal(native.signalStart(signum), 0);
    process.kill(process.pid, name);
    assert.equal(until(Ev.SIGNAL, signum).result, 0);
  }
  assert.equal(native.signalStart(9999), -E.EINVAL);
  assert.ok(native.signalStart(constants.signals.SIGKILL) < 0);
});

test('a worker thread wakes the wait, loopBreak ends the next one', () => {
  const code = `
    const { writeSync } = require('fs');
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 100);
    const one = Buffer.alloc(8); one.writeBigUInt64LE(1n);
    writeSync(require('worker_threads').workerData, one);`;
  const worker = new Worker(code, { eval: true, workerData: native.wakeFd() });
  assert.equal(until(Ev.WAKE, 0).kind, Ev.WAKE);
  assert.deepEqual(turn(20), []);
  void worker;
  native.loopBreak();
  const start = performance.now();
  assert.deepEqual(turn(-1), []);
  assert.ok(performance.now() - start < 50);
});

test('a worker has a loop of its own, and its end releases it', async () => {
  const before = descriptors();
  const code = `
    const { native, ring } = require(${JSON.stringify(require.resolve('../../src/core/base/native'))});
    native.loopInit('libuv', 65536);
    const [a, b] = native.socketPair().map((fd) => native.open(fd));
    native.signalStart(${constants.signals.SIGUSR2});
    native.recvStart(b);
    native.sendBytes(a, Buffer.from('hi'), 0, 2);
    const count = native.wait(1000);
    require('worker_threads').parentPort.postMessage([count, ring[0], ring[2]]);`;
  for (let i = 0; i < 5; i++) {
    const worker = new Worker(code, { eval: true });
    const answer = await new Promise((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });
    assert.deepEqual(answer, [1, Ev.RECV, 2]);
    await withTimeout(new Promise((resolve) => worker.once('exit', resolve)), 'the worker to end');
  }
  assert.ok(descriptors() <= before + 2, `${before} -> ${descriptors()}`);
});

test('timeouts are kept, and an idle wait uses no CPU', () => {
  for (const ms of [1, 10, 50, 1000]) {
    const cpu = process.cpuUsage();
    const start = performance.now();
    assert.equal(native.wait(ms), 0);
    const took = performance.now() - start;
    const used = process.cpuUsage(cpu);
    assert.ok(took >= ms - 1 && took < ms + 40, `${took} for ${ms}`);
    assert.ok(used.user + used.system < 20_000, `${used.user + used.system} usec of CPU`);
  }
  assert.equal(native.wait(0), 0);
});

test('names are resolved off the loop', () => {
  const good = native.resolve('localhost');
  const bad = native.resolve('no-such-host.invalid');
  const empty = native.resolve('');
  const long = native.resolve('x'.repeat(3000));
  const dropped = native.resolve('127.0.0.1');
  native.resolveCancel(dropped);
  const results = new Map<number, number>();
  while (results.size < 4) {
    const list = turn(20_000);
    assert.ok(list.length > 0);
    for (const h of list) {
      assert.equal(h.kind, Ev.RESOLVED);
      results.set(h.handle, h.result);
    }
  }
  const addresses = native.resolveResult(good);
  assert.ok(addresses.length > 0 && addresses.length === results.get(good));
  assert.ok(addresses.some((a) => a.host === '127.0.0.1' || a.host === '::1'));
  assert.deepEqual(native.resolveResult(good), []);
  for (const id of [bad, empty, long]) {
    const code = results.get(id) as number;
    assert.ok(code < 0, `${id}: ${code}`);
    assert.notEqual(native.gaiStrerror(code), native.gaiStrerror(-9999));
    assert.deepEqual(native.resolveResult(id), []);
  }
  assert.deepEqual(turn(30), []);
  native.resolveCancel(12345);
});

test('a watched descriptor is reported while readable and survives close', () => {
  const [read, write] = native.socketPair();
  const watch = native.watchFd(read);
  assert.deepEqual(turn(10), []);
  writeSync(write, 'x');
  assert.equal(until(Ev.READABLE, watch).result, 0);
  assert.equal(until(Ev.READABLE, watch).result, 0);
  readSync(read, Buffer.alloc(8));
  assert.deepEqual(turn(10), []);
  assert.equal(native.close(watch), 0);
  assert.equal(native.closeFd(read), 0);
  assert.equal(native.closeFd(write), 0);
});

test('descriptors travel over a Unix socket, up to 250', () => {
  const [a, b] = native.socketPair();
  const [c, d] = native.socketPair();
  const sent = native.sendFds(a, Buffer.from('take'), [c]);
  assert.equal(sent, 4);
  const got = native.recvFds(b, 100);
  assert.deepEqual([got.result, Buffer.from(got.bytes).toString(), got.fds.length], [4, 'take', 1]);
  writeSync(got.fds[0], 'through');
  const text = Buffer.alloc(20);
  assert.equal(readSync(d, text), 7);
  native.closeFd(got.fds[0]);
  assert.equal(native.sendFds(a, Buffer.from('x'), Array(250).fill(c)), 1);
  const many = native.recvFds(b, 1);
  assert.equal(many.fds.length, 250);
  for (const fd of many.fds) native.closeFd(fd);
  assert.equal(native.sendFds(a, Buffer.from('x'), Array(251).fill(c)), -E.EINVAL);
  native.closeFd(a);
  assert.equal(native.recvFds(b, 10).result, 0);
  for (const fd of [b, c, d]) native.closeFd(fd);
});

test('detach gives the descriptor back, with what waits in the socket', () => {
  const [a, b] = pair();
  put(a, 'left');
  const fd = native.detach(b);
  const again = native.open(fd);
  native.recvStart(again);
  assert.equal(until(Ev.RECV, again).text, 'left');
  assert.notEqual(again, b);
  closeAll(a, again);
});

test('500 saturated streams get equal shares, and a small query beside them waits for none of them', () => {
  const STREAMS = 500;
  const TURNS = 100;
  const [asker, answerer] = pair();
  const block = Buffer.alloc(RECV_MAX, 'x');
  const streams = Array.from({ length: STREAMS }, pair);
  const refill = (source: number): void => {
    while (native.unsent(source) === 0) native.sendBytes(source, block, 0, block.length);
  };
  for (const [source] of streams) refill(source);
  const got = new Map(streams.map(([, sink]) => [sink, 0]));
  for (let n = 0; n < TURNS; n++) {
    put(asker, 'small');
    let answered = 0;
    for (const { kind, handle, result, text } of turn(0)) {
      if (kind === Ev.DRAIN) refill(handle);
      if (kind !== Ev.RECV) continue;
      const before = got.get(handle);
      if (before !== undefined) got.set(handle, before + result);
      if (handle === answerer) answered += text.length;
    }
    assert.equal(answered, 'small'.length, `turn ${n}: the small query had to wait`);
  }
  const shares = [...got.values()].sort((a, b) => a - b);
  const [least, most] = [shares[0] as number, shares.at(-1) as number];
  assert.ok(least > 0, 'a stream got nothing');
  assert.ok(most <= 2 * least, `a stream got ${most} bytes, another ${least}`);
  closeAll(asker, answerer, ...streams.flat());
});

// the kernel watches no regular file (EPERM), which stands here for every refusal: no memory, no room in its tables
const unwatchable = () => openSync(join(dir, 'unwatchable'), 'w+');

test('a connection that the kernel refuses to watch ends with an error instead of being mute', () => {
  const handle = native.open(unwatchable());
  native.recvStart(handle);
  assert.equal(until(Ev.RECV, handle).result, -E.EPERM);
  assert.deepEqual(turn(0), []);
  native.recvStart(handle);
  assert.equal(until(Ev.RECV, handle).result, -E.EPERM, 'and again for who insists');
  closeAll(handle);
});

test('an error that comes while nobody reads waits for the next reader', () => {
  const handle = native.open(unwatchable());
  native.recvStart(handle);
  native.recvStop(handle);
  assert.deepEqual(turn(0), []);
  native.recvStart(handle);
  assert.equal(until(Ev.RECV, handle).result, -E.EPERM);
  closeAll(handle);
});

test('a descriptor that cannot be watched gives no handle', () => {
  const fd = unwatchable();
  assert.equal(native.watchFd(fd), -E.EPERM);
  native.closeFd(fd);
});

test('bad handles and arguments are errors, never crashes', () => {
  const [a, b] = pair();
  native.close(b);
  for (const bad of [-1, 0, b, 99999, 2 ** 31, Number.NaN, undefined as unknown as number, {} as unknown as number]) {
    assert.equal(native.recvStart(bad), -E.EBADF);
    assert.equal(native.recvStop(bad), -E.EBADF);
    assert.equal(native.recvLimit(bad, 1), -E.EBADF);
    assert.equal(native.keep(bad, 0, 1), -E.EBADF);
    assert.equal(native.keptLength(bad), -E.EBADF);
    assert.equal(native.takeKept(bad), -E.EBADF);
    assert.equal(native.send(bad, 0, 1), -E.EBADF);
    assert.equal(native.sendBytes(bad, Buffer.alloc(1), 0, 1), -E.EBADF);
    assert.equal(native.unsent(bad), -E.EBADF);
    assert.equal(native.takeUnsent(bad).length, 0);
    assert.equal(native.fdOf(bad), -E.EBADF);
    assert.equal(native.close(bad), -E.EBADF);
    assert.equal(native.detach(bad), -E.EBADF);
    assert.equal(native.listenStart(bad, 1), -E.EBADF);
  }
  assert.equal(native.open(-1), -E.EBADF);
  assert.equal(native.open(9999), -E.EBADF);
  assert.equal(native.listenStart(a, 1), -E.EBADF);
  assert.equal(native.send(a, arena.length - 1, 2), -E.EFAULT);
  assert.equal(native.send(a, -1, 2), -E.EFAULT);
  assert.equal(native.keep(a, 5, -1), -E.EFAULT);
  assert.equal(native.sendBytes(a, Buffer.alloc(4), 2, 3), -E.EFAULT);
  assert.equal(native.sendBytes(a, 'x' as unknown as Uint8Array, 0, 1), -E.EFAULT);
  assert.throws(() => native.loopInit('libuv', 4096), /twice/);
  assert.throws(() => native.peerName(-1), { syscall: 'getpeername', errno: E.EBADF });
  assert.throws(() => native.tuneSocket(-1, false, 0, 0, 0, 0, 0, 0), { syscall: 'socket_setup', errno: E.EBADF });
  native.close(a);
});

test('posix odds and ends', () => {
  assert.match(native.libuvVersion(), /^libuv \d+\.\d+\.\d+$/);
  assert.equal(native.strerror(E.ENOENT), 'No such file or directory');
  assert.deepEqual(native.getpwnam('root'), { uid: 0, gid: 0 });
  assert.equal(native.getpwnam('no such user'), null);
  assert.equal(native.getpwuid(0), 'root');
  assert.equal(native.getgrnam('root'), 0);
  assert.equal(native.getgrnam('no such group'), -1);
  const [soft, hard] = native.rlimitNofile();
  assert.ok(soft > 0 && (hard === -1 || hard >= soft));
  const [a, b] = native.socketPair();
  const cred = native.peerCred(a);
  assert.deepEqual(cred, [process.getuid?.(), process.getgid?.(), process.pid]);
  assert.equal(native.peerCred(-1), null);
  assert.equal(native.dup2(a, b), b);
  assert.equal(native.dup2(-1, b), -E.EBADF);
  native.closeFd(a);
  native.closeFd(b);
  const any = native.getaddrinfoPassive(null, 6432);
  assert.ok(any.some((addr) => addr.host === '0.0.0.0' && addr.port === 6432));
  assert.throws(() => native.getaddrinfoPassive('no-such-host.invalid', 1), { syscall: 'getaddrinfo' });
  assert.equal(native.openlog('tsbouncer-test', 'local3'), true);
  assert.equal(native.openlog('tsbouncer-test', 'nonsense'), false);
  native.syslog(7, 'text with %s and %n');
  native.closelog();
  assert.equal(native.chown(join(dir, 'nobody'), -1, -1), -E.ENOENT);
  const tcp = native.listenTcp({ family: Family.INET, host: '127.0.0.1', port: 0 }, 8, 1);
  assert.equal(native.deferAccept(tcp, 1), 0);
  assert.equal(native.deferAccept(tcp, 0), 0);
  native.closeFd(tcp);
});

test('1000 openings and closings leak no descriptor and no handle number', () => {
  turn(0);
  const before = descriptors();
  let highest = 0;
  for (let i = 0; i < 1000; i++) {
    const [a, b] = pair();
    put(a, 'x');
    native.keep(b, 0, 100);
    if (i % 2 === 0) assert.equal(until(Ev.RECV, b).result, 101);
    highest = Math.max(highest, a, b);
    closeAll(a, b);
    if (i % 10 === 0) turn(0);
  }
  turn(0);
  assert.equal(descriptors(), before);
  assert.ok(highest < 2000, `${highest}`);
});

test('a handle number is not given out again before the next wait', () => {
  const [a, b] = pair();
  closeAll(a, b);
  const [c, d] = pair();
  assert.ok(![a, b].includes(c) && ![a, b].includes(d));
  closeAll(c, d);
});

test('receiving stops everywhere but on one handle, and who has unsent bytes is told', () => {
  const [a, b] = pair();
  const [c, d] = pair();
  for (const handle of [a, b, c, d]) native.recvStart(handle);
  const much = Buffer.alloc(4 << 20);
  assert.ok(native.sendBytes(a, much, 0, much.length) > 0);
  assert.deepEqual(native.recvStopAll(d), [a]);
  put(a, 'x');
  put(c, 'for the one');
  assert.equal(until(Ev.RECV, d).text, 'for the one');
  assert.ok(turn(20).every(({ handle, kind }) => handle !== b || kind !== Ev.RECV));
  native.recvStart(b);
  assert.ok(until(Ev.RECV, b).result > 0);
  closeAll(a, b, c, d);
});

test('a process can keep to some of its CPUs, with all its threads, and go back', () => {
  const script = `
    const { native } = require(${JSON.stringify(require.resolve('../../src/core/base/native'))});
    const { readdirSync, readFileSync } = require('node:fs');
    const lists = () => [...new Set(readdirSync('/proc/self/task').map((thread) =>
      /Cpus_allowed_list:\\s*(\\S+)/.exec(readFileSync('/proc/self/task/' + thread + '/status', 'latin1'))[1]))];
    const all = native.cpuAffinity();
    const before = lists();
    const done = [native.setCpuAffinity([all.at(-1)]), native.cpuAffinity(), lists()];
    console.log(JSON.stringify({ all, before, done, back: [native.setCpuAffinity(all), native.cpuAffinity(), lists()] }));`;
  const child = runSync(process.execPath, ['-e', script]);
  assert.equal(child.status, 0, child.stderr);
  const { all, before, done, back } = JSON.parse(child.stdout);
  assert.ok(all.length > 0);
  assert.deepEqual(done, [0, [all.at(-1)], [String(all.at(-1))]]);
  assert.deepEqual(back, [0, all, before]);
});
