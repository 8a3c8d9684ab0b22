/*
 * The native addon through its TypeScript interface: the events that a wait() reports and their order, without losses,
 * leaks or busy loops. The loop runs on this thread; tests that need another actor use a worker or a child process.
 */

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { acceptedNames, arena, Ev, Family, native, resumedLength } from '../../src/core/base/native';
import { startTestLoop } from '../harness/backend';
import { after, test } from '../harness/limits';
import { closeAll, pair, put, RECV_MAX, receive, turn, until } from '../harness/loop-driver';

const E = constants.errno;
startTestLoop(RECV_MAX);
const dir = mkdtempSync(join(tmpdir(), 'tsb-native-'));
after(() => rmSync(dir, { recursive: true }));

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
        server = native.openAccepted(h.result);
      } else {
        assert.deepEqual([h.kind, h.handle, h.result], [Ev.CONNECT, client, 0]);
        done = true;
      }
    }
  }
  return [listener, client, server];
}

for (const family of [Family.UNIX, Family.INET, Family.INET6]) {
  test(`the addon connects, accepts and echoes with family ${family}`, () => {
    const [listener, client, server] = connectedThrough(family);
    native.setUpSocket(native.fdOf(client));
    if (family !== Family.UNIX) native.tuneTcp(native.fdOf(client), 1, 60, 10, 3, 5000, 65536);
    native.recvStart(client);
    native.recvStart(server);
    assert.equal(put(client, 'hello'), 0);
    const there = until(Ev.RECV, server);
    assert.equal(there.text, 'hello');
    assert.equal(native.send(server, there.offset + 1, 3), 0);
    assert.equal(until(Ev.RECV, client).text, 'ell');
    const peer = native.peerName(native.fdOf(client));
    assert.deepEqual(peer, native.sockName(native.fdOf(listener)));
    const loopback = 0x7f000001;
    const names = [loopback, native.sockName(native.fdOf(client)).port, loopback, peer.port];
    if (family === Family.INET) assert.deepEqual([...acceptedNames], names);
    else assert.equal(acceptedNames[1], 0);
    closeAll(listener, client, server);
  });
}

test('abstract Unix sockets work, and paths that are too long are refused', () => {
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

test('kept bytes are delivered together with the next bytes, not earlier', () => {
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

test('stop and start deliver kept bytes at once, together with waiting bytes', () => {
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

test('a receive limit applies to one delivery, and the rest follows without another event from the kernel', () => {
  const [a, b] = pair();
  put(a, 'abcdef');
  native.recvLimit(b, 2);
  assert.equal(until(Ev.RECV, b).text, 'ab');
  native.recvLimit(b, 3);
  assert.equal(until(Ev.RECV, b).text, 'cde');
  const last = until(Ev.RECV, b);
  assert.equal(last.text, 'f');
  assert.deepEqual(turn(20), []);
  // kept bytes do not count towards the limit
  native.recvStop(b);
  native.keep(b, last.offset, 1);
  put(a, 'ghi');
  // sent now: the next wait() may send and receive at the same time
  assert.equal(native.unsent(a), 0);
  native.recvLimit(b, 1);
  native.recvStart(b);
  assert.equal(until(Ev.RECV, b).text, 'fg');
  native.recvLimit(b, 1);
  native.recvLimit(b, 0);
  assert.equal(until(Ev.RECV, b).text, 'hi');
  closeAll(a, b);
});

test('a start that is stopped again before the wait delivers nothing', () => {
  const [a, b] = pair();
  put(a, 'abc');
  const first = until(Ev.RECV, b);
  native.recvStop(b);
  native.keep(b, first.offset, 3);
  native.recvStart(b);
  native.recvStop(b);
  assert.deepEqual(turn(20), []);
  put(a, 'def');
  assert.equal(native.unsent(a), 0);
  native.recvStart(b);
  assert.equal(until(Ev.RECV, b).text, 'abcdef');
  closeAll(a, b);
});

test('resume returns the kept bytes once, and too many kept bytes are an error', () => {
  const [a, b] = pair();
  put(a, 'abcdef');
  const first = until(Ev.RECV, b);
  native.keep(b, first.offset, 3);
  native.keep(b, first.offset + 3, 3);
  assert.equal(native.keptLength(b), 6);
  const offset = native.resume(b);
  assert.ok(offset > 0);
  assert.equal(resumedLength[0], 6);
  assert.equal(arena.toString('latin1', offset, offset + 6), 'abcdef');
  assert.equal(native.resume(b), -1);
  native.keep(b, 0, 1 << 20);
  native.keep(b, 0, 1);
  put(a, 'x');
  assert.equal(until(Ev.RECV, b).result, -E.EMSGSIZE);
  closeAll(a, b);
});

test('park keeps bytes and stops, and resume gives them back and starts', () => {
  const [a, b] = pair();
  put(a, 'abc');
  const first = until(Ev.RECV, b);
  native.park(b, first.offset, first.result);
  put(a, 'def');
  assert.equal(turn(20).length, 0);
  const offset = native.resume(b);
  // the backend may have received ahead
  const resumed = arena.toString('latin1', offset, offset + (resumedLength[0] as number));
  assert.match(resumed, /^abc/);
  assert.equal(resumed + receive(b, 6 - resumed.length), 'abcdef');
  closeAll(a, b);
});

test('recvFirst gives what a new connection has sent at once, and starts receiving', () => {
  const [listener, client, server] = connectedThrough(Family.INET);
  assert.equal(put(client, 'abc'), 0);
  assert.equal(native.unsent(client), 0);
  const offset = native.recvFirst(server);
  assert.equal(arena.toString('latin1', offset, offset + (resumedLength[0] as number)), 'abc');
  put(client, 'def');
  assert.equal(until(Ev.RECV, server).text, 'def');
  closeAll(listener, client, server);
});

test('recvFirst leaves what comes later, the end, and what the arena has no room for, to the next turns', () => {
  const late = connectedThrough(Family.INET);
  assert.equal(native.recvFirst(late[2]), -1);
  put(late[1], 'late');
  assert.equal(until(Ev.RECV, late[2]).text, 'late');

  const ended = connectedThrough(Family.INET);
  closeAll(ended[1]);
  assert.equal(native.recvFirst(ended[2]), -1);
  assert.equal(until(Ev.RECV, ended[2]).result, 0);

  const crowded = connectedThrough(Family.INET);
  put(crowded[1], 'crowded');
  assert.equal(native.unsent(crowded[1]), 0);
  const [a, b] = pair();
  for (let i = 0; i < 2; i++) {
    native.keep(b, 0, 1 << 20);
    assert.ok(native.resume(b) > 0);
  }
  assert.equal(native.recvFirst(crowded[2]), -1);
  assert.equal(until(Ev.RECV, crowded[2]).text, 'crowded');
  closeAll(a, b, ...late, ended[0], ended[2], ...crowded);
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

test('full receives of 100 handles share the arena, and the rest follows in later turns', () => {
  const pairs = Array.from({ length: 100 }, pair);
  const block = Buffer.alloc(RECV_MAX);
  const fill = (b: number): string => String.fromCharCode(32 + (b % 90));
  for (const [a, b] of pairs) {
    block.fill(fill(b), 0, RECV_MAX, 'latin1');
    assert.equal(native.sendBytes(a, block, 0, RECV_MAX), 0);
  }
  const got = new Map<number, number>();
  while ([...got.values()].reduce((x, y) => x + y, 0) < 100 * RECV_MAX) {
    for (const h of turn(1000)) {
      assert.ok(h.offset % 8 === 0 && h.offset + h.result <= arena.length);
      assert.equal(h.text, fill(h.handle).repeat(h.result));
      got.set(h.handle, (got.get(h.handle) ?? 0) + h.result);
    }
  }
  for (const [a, b] of pairs) closeAll(a, b);
});

test('output to a slow reader is queued, and drained without loss', () => {
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
    for (const h of turn(2000)) {
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

test('takeUnsent removes the output queue without a drain event', () => {
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

test('the end of a stream is reported once, and a failed output queue drains with an error', () => {
  const [a, b] = pair();
  native.recvStop(a);
  const queued = native.sendBytes(a, Buffer.alloc(2 << 20), 0, 2 << 20);
  assert.ok(queued > 0);
  native.close(b);
  assert.equal(until(Ev.DRAIN, a).result, -E.EPIPE);
  assert.equal(native.unsent(a), 0);
  assert.deepEqual(turn(30), []);
  native.recvStart(a);
  // on Unix sockets, closing with unread bytes is a reset
  assert.equal(until(Ev.RECV, a).result, -E.ECONNRESET);
  assert.deepEqual(turn(30), []);
  // nothing may follow what was lost
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

test('the end of a stream behind a partial packet is reported without delivering the packet again', () => {
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

test('a TCP reset delivers the received bytes first, then ECONNRESET', () => {
  const [listener, client, server] = connectedThrough(Family.INET);
  native.recvStart(server);
  put(server, 'never read');
  turn(20);
  native.close(client);
  assert.equal(until(Ev.RECV, server).result, -E.ECONNRESET);
  closeAll(listener, server);
});

test('a hang-up on a stopped handle causes no busy loop', () => {
  const [listener, client, server] = connectedThrough(Family.INET);
  native.recvStart(server);
  native.recvStop(server);
  put(server, 'unread');
  turn(10);
  native.close(client);
  const cpu = process.cpuUsage();
  assert.deepEqual(turn(1000), []);
  // a busy loop would use all of the time; V8's threads use some of it
  const used = process.cpuUsage(cpu);
  assert.ok(used.user + used.system < 500_000, `${used.user + used.system} usec`);
  native.recvStart(server);
  assert.equal(until(Ev.RECV, server).result, -E.ECONNRESET);
  closeAll(listener, server);
});

test('connect reports refused connections, missing paths, full backlogs and bad addresses', () => {
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

test('bytes sent while connecting are sent after the connect', () => {
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

test('a burst of 500 connections is accepted in few turns without loss, and a stopped listener accepts none', () => {
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
  let most = 0;
  while (accepted < 500 || connected < 500) {
    const list = turn(2000);
    assert.ok(list.length > 0);
    most = Math.max(most, list.filter((h) => h.kind === Ev.ACCEPT).length);
    for (const h of list) {
      assert.ok(h.result >= 0);
      if (h.kind === Ev.CONNECT) connected++;
      else {
        accepted++;
        native.closeFd(h.result);
      }
    }
  }
  // a turn must empty at least a queue of PgBouncer's length (listen_backlog = 128), or it overflows
  assert.ok(most >= 128 && most <= 256, `${most} in one turn`);
  closeAll(listener, ...clients);
});

test('samePackets walks over complete packets of one type, and stops at what is none', () => {
  const packet = (type: string, length: number) => {
    const bytes = Buffer.alloc(length + 1, 'x');
    bytes.write(type, 0, 'latin1');
    bytes.writeUInt32BE(length, 1);
    return bytes;
  };
  const walk = (parts: Buffer[], most = 1000) => {
    const bytes = Buffer.concat(parts);
    bytes.copy(arena, 64);
    return native.samePackets(64, 64 + bytes.length, most) - 64;
  };
  const [row, empty, other] = [packet('D', 20), packet('D', 4), packet('C', 20)];
  assert.equal(walk([row, empty, row]), 21 + 5 + 21);
  assert.equal(walk([row, other, row]), 21);
  for (let cut = 1; cut < 21; cut++) assert.equal(walk([row, row, row.subarray(0, cut)]), 42);
  // lengths that a packet cannot have, or may not have
  for (const length of [0, 3, 0x80000000, 0xffffffff]) {
    const bad = packet('D', 20);
    bad.writeUInt32BE(length, 1);
    assert.equal(walk([row, bad, row, row]), 21);
  }
  assert.equal(walk([row, row], 21), 42);
  assert.equal(walk([row, row], 20), 0);
  assert.equal(native.samePackets(64, 60, 1000), 64);
  assert.equal(native.samePackets(64, arena.length + 1, 1000), 64);
});
