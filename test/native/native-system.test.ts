/*
 * The addon beyond streams: descriptors, signals, threads, names, bad arguments, CPUs.
 */

import assert from 'node:assert/strict';
import { createHash, createHmac } from 'node:crypto';
import { mkdtempSync, openSync, readdirSync, readSync, rmSync, writeSync } from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { arena, Ev, Family, native } from '../../src/core/base/native';
import { LOOP_BACKEND } from '../harness/backend';
import { after, runSync, test, withTimeout } from '../harness/limits';
import { closeAll, pair, put, RECV_MAX, turn, until } from '../harness/loop-driver';

const E = constants.errno;
native.loopInit(LOOP_BACKEND, RECV_MAX);
const dir = mkdtempSync(join(tmpdir(), 'tsb-native-'));
after(() => rmSync(dir, { recursive: true }));

const descriptors = (): number => readdirSync('/proc/self/fd').length;

const NATIVE = JSON.stringify(require.resolve('../../src/core/base/native'));

/** Runs a script in a child process that may have 64 descriptors: the limit of this process is unchanged. */
function withFewDescriptors(script: string): ReturnType<typeof runSync> {
  // a shell does not run with every library that is loaded before a program, such as that of ThreadSanitizer
  const { LD_PRELOAD: preload = '', ...env } = process.env;
  const limited = 'ulimit -n 64; LD_PRELOAD="$2" exec "$0" -e "$1"';
  return runSync('/bin/sh', ['-c', limited, process.execPath, script, preload], { env });
}

test('running out of descriptors is reported as one ACCEPT event per turn', () => {
  const child = withFewDescriptors(`
    const { native, ring } = require(${NATIVE});
    native.loopInit(${JSON.stringify(LOOP_BACKEND)}, 65536);
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
    console.log(native.wait(1000), ring[0], ring[2] > 0);`);
  assert.equal(child.stdout, `1 1 ${-E.EMFILE} 1 0 0\n1 1 true\n`, child.stderr);
});

test('signals are reported, including SIGUSR1 and repeated starts', () => {
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

test('a signal that arrives before another one is started is not lost', () => {
  const { SIGUSR1, SIGWINCH } = constants.signals;
  assert.equal(native.signalStart(SIGUSR1), 0);
  process.kill(process.pid, 'SIGUSR1');
  assert.equal(native.signalStart(SIGWINCH), 0);
  assert.equal(until(Ev.SIGNAL, SIGUSR1).result, 0);
});

test('a worker thread wakes the wait, and loopBreak ends the next wait', () => {
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
  assert.deepEqual(turn(10_000), []);
  // a busy machine may let the process wait
  assert.ok(performance.now() - start < 5000);
});

test('a worker has its own loop, which is released when the worker ends', async () => {
  const before = descriptors();
  const code = `
    const { native, ring } = require(${JSON.stringify(require.resolve('../../src/core/base/native'))});
    native.loopInit(${JSON.stringify(LOOP_BACKEND)}, 65536);
    const [a, b] = native.socketPair().map((fd) => native.open(fd));
    native.signalStart(${constants.signals.SIGUSR2});
    native.recvStart(b);
    native.sendBytes(a, Buffer.from('hi'), 0, 2);
    const count = native.wait(1000);
    require('worker_threads').parentPort.postMessage([count, ring[0], ring[2]]);`;
  for (let i = 0; i < 5; i++) {
    const worker = new Worker(code, { eval: true });
    // Node can deliver the last message and the exit in the same tick
    const ended = new Promise((resolve) => worker.once('exit', resolve));
    const answer = await new Promise((resolve, reject) => {
      worker.once('message', resolve);
      worker.once('error', reject);
    });
    assert.deepEqual(answer, [1, Ev.RECV, 2]);
    await withTimeout(ended, 'the worker to end');
  }
  assert.ok(descriptors() <= before + 2, `${before} -> ${descriptors()}`);
});

test('a wait ends at its timeout, and an idle wait uses no CPU', () => {
  for (const ms of [1, 10, 50, 1000]) {
    const cpu = process.cpuUsage();
    const start = performance.now();
    assert.equal(native.wait(ms), 0);
    const took = performance.now() - start;
    const used = process.cpuUsage(cpu);
    // a busy machine may let the process wait
    assert.ok(took >= ms - 1 && took < ms + 5000, `${took} for ${ms}`);
    assert.ok(used.user + used.system < 20_000, `${used.user + used.system} usec of CPU`);
  }
  assert.equal(native.wait(0), 0);
});

test('names are resolved outside the loop thread', () => {
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

test('up to 250 descriptors can be sent over a Unix socket at once', () => {
  const [a, b] = native.socketPair();
  const [c, d] = native.socketPair();
  const sent = native.sendFds(a, Buffer.from('take'), [c]);
  assert.equal(sent, 4);
  const into = Buffer.alloc(100);
  const got = native.recvFds(b, into);
  assert.deepEqual([got.result, into.toString('latin1', 0, 4), got.fds.length], [4, 'take', 1]);
  const [through = -1] = got.fds;
  writeSync(through, 'through');
  const text = Buffer.alloc(20);
  assert.equal(readSync(d, text), 7);
  native.closeFd(through);
  assert.equal(native.sendFds(a, Buffer.from('x'), Array(250).fill(c)), 1);
  const many = native.recvFds(b, into.subarray(0, 1));
  assert.equal(many.fds.length, 250);
  for (const fd of many.fds) native.closeFd(fd);
  assert.equal(native.sendFds(a, Buffer.from('x'), Array(251).fill(c)), -E.EINVAL);
  native.closeFd(a);
  assert.equal(native.recvFds(b, into).result, 0);
  assert.equal(native.recvFds(b, into.subarray(0, 0)).result, -E.EINVAL);
  for (const fd of [b, c, d]) native.closeFd(fd);
});

test('without room for all descriptors, none is received', () => {
  const { status, stdout, stderr } = withFewDescriptors(`
    const { native } = require(${NATIVE});
    const [a, b] = native.socketPair();
    const open = () => require('fs').readdirSync('/proc/self/fd').length;
    native.sendFds(a, Buffer.from('x'), Array(100).fill(a));
    const before = open();
    const { result, fds } = native.recvFds(b, Buffer.alloc(10));
    console.log(result, fds.length, open() - before);
    native.sendFds(a, Buffer.from('y'), [a]);
    console.log(native.recvFds(b, Buffer.alloc(10)).fds.length);`);
  assert.equal(stdout, `${-E.EMFILE} 0 0\n1\n`, stderr);
  assert.equal(status, 0);
});

test('detach returns the descriptor with its unread bytes', () => {
  const [a, b] = pair();
  put(a, 'left');
  const fd = native.detach(b);
  const again = native.open(fd);
  native.recvStart(again);
  assert.equal(until(Ev.RECV, again).text, 'left');
  assert.notEqual(again, b);
  closeAll(a, again);
});

test('500 saturated streams get equal shares, and a small query is not delayed by them', () => {
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

// epoll refuses regular files (EPERM), and io_uring does not receive from them (ENOTSOCK), which stands in for every refusal of the kernel, such as lack of memory
const unwatchable = () => openSync(join(dir, 'unwatchable'), 'w+');

test('a connection that the kernel refuses to watch ends with an error', () => {
  const handle = native.open(unwatchable());
  native.recvStart(handle);
  assert.ok(until(Ev.RECV, handle).result < 0);
  assert.deepEqual(turn(0), []);
  native.recvStart(handle);
  assert.ok(until(Ev.RECV, handle).result < 0, 'and again for who insists');
  closeAll(handle);
});

test('an error on a stopped handle is reported once receiving starts', () => {
  const handle = native.open(unwatchable());
  native.recvStart(handle);
  native.recvStop(handle);
  assert.deepEqual(turn(0), []);
  native.recvStart(handle);
  assert.ok(until(Ev.RECV, handle).result < 0);
  closeAll(handle);
});

test('a descriptor that cannot be watched gets no handle', () => {
  const fd = unwatchable();
  assert.equal(native.watchFd(fd), -E.EPERM);
  native.closeFd(fd);
});

test('bad handles and arguments are errors and never crash', () => {
  const [a, b] = pair();
  native.close(b);
  for (const bad of [-1, 0, b, 99999, 2 ** 31, Number.NaN, undefined as unknown as number, {} as unknown as number]) {
    assert.equal(native.recvStart(bad), -E.EBADF);
    assert.equal(native.recvStop(bad), -E.EBADF);
    assert.equal(native.recvLimit(bad, 1), -E.EBADF);
    assert.equal(native.keep(bad, 0, 1), -E.EBADF);
    assert.equal(native.keptLength(bad), -E.EBADF);
    assert.equal(native.resume(bad), -E.EBADF);
    assert.equal(native.recvFirst(bad), -E.EBADF);
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
  assert.throws(() => native.loopInit(LOOP_BACKEND, 4096), /twice/);
  assert.throws(() => native.peerName(-1), { syscall: 'getpeername', errno: E.EBADF });
  assert.throws(() => native.setUpSocket(-1), { syscall: 'socket_setup', errno: E.EBADF });
  assert.throws(() => native.tuneTcp(-1, 0, 0, 0, 0, 0, 0), { syscall: 'socket_set_keepalive', errno: E.EBADF });
  assert.equal(native.openAccepted(-1), -E.EBADF);
  native.close(a);
});

test('the hashes are those of Node, for keys and texts of all lengths', () => {
  for (const length of [0, 1, 31, 32, 63, 64, 65, 300]) {
    const key = Buffer.alloc(length, 7);
    const text = '\xff\0a'.repeat(length);
    const digest = Buffer.alloc(33, 1);
    assert.equal(native.hmacSha256(key, text, digest), true);
    assert.deepEqual(digest.subarray(0, 32), createHmac('sha256', key).update(text, 'latin1').digest());
    assert.equal(native.sha256(key, digest), true);
    assert.deepEqual(digest.subarray(0, 32), createHash('sha256').update(key).digest());
    assert.equal(digest[32], 1, 'nothing is written behind the digest');
  }
  assert.equal(native.sha256(Buffer.alloc(4), Buffer.alloc(31)), false);
  assert.equal(native.hmacSha256('x' as unknown as Uint8Array, '', Buffer.alloc(32)), false);
});

test('the POSIX functions return the values of the system', () => {
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

test('1000 connections leak neither descriptors nor handle numbers', () => {
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

test('a handle number is not reused before the next wait', () => {
  const [a, b] = pair();
  closeAll(a, b);
  const [c, d] = pair();
  assert.ok(![a, b].includes(c) && ![a, b].includes(d));
  closeAll(c, d);
});

test('recvStopAll stops all handles except one and returns those with unsent bytes', () => {
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

test('rest stops a handle, and stirred returns those of them that have received bytes', () => {
  const [a, b] = pair();
  const [c, d] = pair();
  const [e, f] = pair();
  for (const handle of [b, d]) native.recvStart(handle);
  turn(0);
  put(a, 'before');
  for (const handle of [b, d, f]) assert.equal(native.rest(handle), 0);
  turn(0);
  for (const handle of [a, c]) put(handle, 'after');
  assert.ok(turn(20).every(({ kind }) => kind !== Ev.RECV));
  native.recvStopAll(-1);
  // what has not been received stays in the socket
  const had = native.buffered(b) > 0;
  assert.deepEqual(native.stirred(), had ? [b] : []);
  native.recvStart(b);
  assert.match(until(Ev.RECV, b).text, /^before/);
  native.recvStart(d);
  assert.equal(until(Ev.RECV, d).text, 'after');
  assert.deepEqual(native.stirred(), []);
  assert.equal(native.rest(0), -E.EBADF);
  closeAll(a, b, c, d, e, f);
});

test('a process can restrict all its threads to some CPUs, and undo it', () => {
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
