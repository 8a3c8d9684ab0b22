/*
 * TLS connections that are continued without OpenSSL's state, as after an online reboot: every suite, both roles, with bytes in
 * flight, any number of times. In most tests the peer is OpenSSL, which would end the connection at the first wrong record.
 */

import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { Socket } from 'node:net';
import { constants } from 'node:os';
import { Ev, native, type TlsContextOptions, TlsVerify } from '../../src/core/base/native';
import { startTestLoop } from '../harness/backend';
import { Random } from '../harness/hostile/random';
import { test } from '../harness/limits';
import { startProgram } from '../harness/machine';
import {
  accepting,
  ca,
  certs,
  closeAll,
  connecting,
  openPair,
  put,
  receive,
  site,
  start,
  stash,
  TLS12,
  TLS13,
  tlsPair,
  turn,
  until,
} from '../harness/tls-driver';
import { describe, move, takeOver } from '../harness/tls-moves';

startTestLoop(4096);

const hash = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');
const SEEDS = 12;

const SUITES: [number, string][] = [
  [TLS13, 'TLS_AES_128_GCM_SHA256'],
  [TLS13, 'TLS_AES_256_GCM_SHA384'],
  [TLS13, 'TLS_CHACHA20_POLY1305_SHA256'],
  [TLS13, 'TLS_AES_128_CCM_SHA256'],
  [TLS13, 'TLS_AES_128_CCM_8_SHA256'],
  [TLS12, 'ECDHE-ECDSA-AES128-GCM-SHA256'],
  [TLS12, 'ECDHE-ECDSA-AES256-GCM-SHA384'],
  [TLS12, 'ECDHE-ECDSA-CHACHA20-POLY1305'],
  [TLS12, 'ECDHE-ECDSA-AES256-CCM'],
  [TLS12, 'ECDHE-ECDSA-AES128-CCM'],
  [TLS12, 'ECDHE-ECDSA-AES256-CCM8'],
];

function suite(protocols: number, name: string): Partial<TlsContextOptions> {
  // newer versions of OpenSSL refuse suites with short tags at higher levels
  return protocols === TLS13
    ? { protocols, ciphers13: name, ciphers: 'DEFAULT:@SECLEVEL=0' }
    : { protocols, ciphers: `${name}:@SECLEVEL=0` };
}

function pairWith(protocols: number, name: string): [number, number] {
  const options = suite(protocols, name);
  return tlsPair(connecting(options), accepting(site, options));
}

function carry(from: number, to: number, bytes: Buffer): void {
  assert.ok(put(from, bytes) >= 0);
  assert.equal(hash(receive(to, bytes.length)), hash(bytes));
}

for (const [protocols, name] of SUITES) {
  test(`${name} is continued at either end, again and again`, () => {
    let [client, server] = pairWith(protocols, name);
    carry(client, server, randomBytes(100));
    carry(server, client, randomBytes(100));
    const before = native.tlsInfo(server);
    for (let i = 0; i < 3; i++) {
      server = move(server, client);
      carry(client, server, randomBytes(1 + i * 20_000));
      carry(server, client, randomBytes(1 + i * 20_000));
      const { version, cipher, exchange } = native.tlsInfo(server) ?? {};
      assert.deepEqual([version, cipher, exchange], [before?.version, before?.cipher, before?.exchange]);
    }
    for (let i = 0; i < 3; i++) {
      client = move(client, server);
      carry(server, client, randomBytes(50_000));
      carry(client, server, randomBytes(50_000));
    }
    native.close(server);
    assert.equal(until(Ev.RECV, client).result, 0);
    closeAll(client);
  });
}

/** Both ends write, receive, stop and are moved in any order; every byte arrives. */
function anyOrder(protocols: number, name: string, random: Random): void {
  const ends = pairWith(protocols, name);
  const sent = [createHash('sha256'), createHash('sha256')];
  const got = [createHash('sha256'), createHash('sha256')];
  const counts = [0, 0, 0, 0];
  const take = (timeout: number): void => {
    stash.push(...turn(timeout));
    for (const event of stash.splice(0)) {
      const side = ends.indexOf(event.handle);
      if (event.kind !== Ev.RECV || side < 0) continue;
      assert.ok(event.result > 0, `${name}: ${event.result} ${native.tlsError(event.handle)}`);
      got[side]?.update(event.bytes);
      counts[2 + side] = (counts[2 + side] ?? 0) + event.bytes.length;
    }
  };
  for (let step = 0; step < 60; step++) {
    const side = random.below(2);
    const end = ends[side] as number;
    const peer = ends[1 - side] as number;
    const kind = random.below(6);
    if (kind <= 2) {
      const bytes = random.bytes(random.one(3) ? random.below(150_000) : random.below(300) + 1);
      assert.ok(put(end, bytes) >= 0);
      sent[side]?.update(bytes);
      counts[side] = (counts[side] ?? 0) + bytes.length;
    } else if (kind === 3) {
      native.recvStop(end);
      if (random.one(2)) native.recvStart(end);
    } else if (kind === 4) {
      ends[side] = move(end, peer);
    }
    take(0);
  }
  for (const end of ends) native.recvStart(end);
  const limit = Date.now() + 10_000;
  while (counts[0] !== counts[3] || counts[1] !== counts[2]) {
    assert.ok(Date.now() < limit, `${name}: ${counts.join(' ')}`);
    take(50);
  }
  assert.equal(got[1]?.digest('hex'), sent[0]?.digest('hex'));
  assert.equal(got[0]?.digest('hex'), sent[1]?.digest('hex'));
  closeAll(...ends);
}

test(`nothing is lost when ends are moved at any moment, ${SEEDS} seeds for each suite`, () => {
  for (const [at, [protocols, name]] of SUITES.entries())
    for (let seed = 1; seed <= SEEDS; seed++) anyOrder(protocols, name, new Random(seed * 100 + at));
});

/** The client says something and closes; then the server moves, and reports both. */
async function movesBeforeEnd(protocols: number, afterOpen: (client: number) => () => Promise<unknown>): Promise<void> {
  const [client, server] = tlsPair(connecting({ protocols }), accepting(site));
  native.recvStop(server);
  const finish = afterOpen(client);
  put(client, Buffer.from('last words'));
  native.close(client);
  for (let i = 0; i < 5; i++) stash.push(...turn(20));
  const next = move(server, -1);
  assert.equal(receive(next, 10).toString(), 'last words');
  assert.equal(until(Ev.RECV, next).result, 0);
  closeAll(next);
  await finish();
}

test('a stream that another process ended is reported as ended, after its last bytes', async () => {
  for (const protocols of [TLS12, TLS13]) await movesBeforeEnd(protocols, () => async () => {});
});

test('a close_notify that was read before is reported by the next process, also when the socket stays open', async () => {
  for (const protocols of [TLS12, TLS13]) {
    await movesBeforeEnd(protocols, (client) => {
      // another process keeps the client's socket open
      const holder = startProgram('sleep', ['60'], { stdio: [native.fdOf(client), 'ignore', 'ignore'] });
      return async () => {
        holder.kill();
        await new Promise((settle) => holder.once('close', settle));
      };
    });
  }
});

test('a stream that ended without close_notify is moved too, and sends no close_notify behind its alert', async () => {
  for (const protocols of [TLS12, TLS13]) {
    const [client, server] = tlsPair(connecting({ protocols }), accepting(site));
    const peer = new Socket({ fd: native.detach(client), allowHalfOpen: true });
    const said: Buffer[] = [];
    peer.on('data', (bytes: Buffer) => said.push(bytes));
    const ended = new Promise((settle) => peer.once('end', settle));
    await new Promise<void>((settle) => peer.end(settle));
    assert.equal(until(Ev.RECV, server).result, 0);
    const next = move(server, -1);
    assert.equal(until(Ev.RECV, next).result, 0);
    native.close(next);
    turn(0);
    await ended;
    const alert = Buffer.concat(said);
    assert.equal(alert.length, 5 + alert.readUInt16BE(3));
    closeAll();
  }
});

test('a connection that may have another owner sends nothing, also later: it would be missing', () => {
  const [client, server] = tlsPair();
  const moved = describe(server, [client]);
  assert.ok(put(server, Buffer.from('no')) <= 0);
  assert.ok(native.unsent(server) >= 0);
  for (let i = 0; i < 3; i++)
    assert.deepEqual(
      turn(10).filter((event) => event.handle === client),
      [],
    );
  // the handover has failed
  native.tlsFreeze(server, 0);
  moved.session.fill(0);
  assert.equal(put(server, Buffer.from('yes')), -constants.errno.EPIPE);
  closeAll(client, server);
});

test('a connection that might have had another owner goes on when it has none', () => {
  const [client, server] = tlsPair();
  const moved = describe(server, [client]);
  // the handover has failed
  native.tlsFreeze(server, 0);
  moved.session.fill(0);
  native.recvStart(server);
  carry(client, server, randomBytes(1000));
  carry(server, client, randomBytes(1000));
  // and this one has not: the end of the old process must not end the connection
  const again = describe(server, [client]);
  native.detach(server);
  const next = takeOver(again);
  carry(next, client, randomBytes(1000));
  closeAll(client, next);
});

test('a frozen connection is closed without a word, by either process', () => {
  for (const imported of [false, true]) {
    const [client, server] = tlsPair();
    const moved = describe(server, [client]);
    const raw = native.open(native.detach(client));
    native.recvStart(raw);
    let last = server;
    if (imported) {
      last = native.open(native.detach(server));
      assert.equal(native.tlsContinue(last, moved.session), 0);
    }
    native.close(last);
    assert.equal(until(Ev.RECV, raw).result, 0);
    closeAll(raw);
  }
});

test('connections that cannot be continued say why', () => {
  const cbc = suite(TLS12, 'ECDHE-ECDSA-AES128-SHA');
  const [client, server] = tlsPair(connecting(cbc), accepting(site, cbc));
  for (const handle of [client, server]) {
    assert.equal(native.tlsRefusal(handle), 'cipher suite without AEAD');
    assert.equal(native.tlsLastingRefusal(handle), 'cipher suite without AEAD');
    assert.equal(native.tlsExport(handle), null);
  }
  carry(client, server, randomBytes(10));
  closeAll(client, server);
  const [a, b] = openPair();
  start(a, b, connecting(), accepting(site));
  assert.equal(native.tlsRefusal(b), 'handshake under way');
  assert.equal(native.tlsLastingRefusal(b), null);
  closeAll(a, b);
});

test('the certificate of a client is known after it was moved', () => {
  const named = certs.issue(ca, 'moved', { cn: 'moved.example' });
  const clientCtx = connecting({ keyFile: named.key, certFile: named.cert });
  const serverCtx = accepting(site, { verify: TlsVerify.REQUIRED, caFile: ca.cert });
  const [client, server] = tlsPair(clientCtx, serverCtx);
  const subject = native.tlsPeerCertSubject(server);
  assert.match(subject ?? '', /CN=moved\.example/);
  let next = move(server, client);
  next = move(next, client);
  assert.equal(native.tlsPeerCertProvided(next), true);
  assert.equal(native.tlsPeerCertSubject(next), subject);
  assert.equal(native.tlsPeerCertContainsName(next, 'moved.example'), true);
  assert.equal(native.tlsPeerCertContainsName(next, 'other.example'), false);
  closeAll(client, next);
  const [other, anonymous] = tlsPair();
  const moved = move(anonymous, other);
  assert.equal(native.tlsPeerCertProvided(moved), false);
  assert.equal(native.tlsPeerCertSubject(moved), null);
  closeAll(other, moved);
});

test('explicit nonces go on where OpenSSL stopped, and never come twice', () => {
  for (const name of ['ECDHE-ECDSA-AES128-GCM-SHA256', 'ECDHE-ECDSA-AES128-CCM8']) {
    for (const written of [0, 1]) {
      let [client, server] = pairWith(TLS12, name);
      for (let i = 0; i < written; i++) carry(server, client, randomBytes(10));
      // from here on the records themselves are looked at
      client = native.open(native.detach(client));
      native.recvStart(client);
      const nonces: bigint[] = [];
      for (let i = 0; i < 4; i++) {
        if (i > 0 || written === 0) server = move(server, client);
        put(server, Buffer.from('x'));
        nonces.push(receive(client, name.endsWith('8') ? 22 : 30).readBigUInt64BE(5));
      }
      const first = nonces[0] as bigint;
      assert.deepEqual(
        nonces,
        [0n, 1n, 2n, 3n].map((n) => BigInt.asUintN(64, first + n)),
      );
      closeAll(client, server);
    }
  }
});

test('forged records end a continued stream with an error', () => {
  const [client, server] = tlsPair();
  const next = move(server, client);
  const fd = native.detach(client);
  const plain = native.open(fd);
  put(plain, Buffer.concat([Buffer.from([23, 3, 3, 0, 40]), randomBytes(40)]));
  const end = until(Ev.RECV, next);
  assert.ok(end.result < 0);
  assert.match(native.tlsError(next), /^read failed: decryption failed or bad record mac$/);
  // the alert
  native.recvStart(plain);
  const alert = receive(plain, 24);
  assert.equal(alert[0], 23);
  closeAll(plain, next);
});

test('the bytes of a session are checked, whatever they are', () => {
  const [client, server] = tlsPair();
  carry(client, server, randomBytes(10));
  const { session } = describe(server, [client]);
  native.tlsFreeze(server, 0);
  const valid = Buffer.from(session);
  const tryIt = (bytes: Buffer): number => {
    const [a, b] = openPair();
    const res = native.tlsContinue(a, bytes);
    if (res === 0) {
      native.recvStart(a);
      put(b, Buffer.from('garbage'));
      turn(0);
    }
    closeAll(a, b);
    return res;
  };
  assert.equal(tryIt(valid), 0);
  assert.notEqual(tryIt(Buffer.alloc(0)), 0);
  for (let length = 0; length < valid.length; length += 3) tryIt(valid.subarray(0, length));
  const random = new Random(5);
  for (let i = 0; i < 2000; i++) tryIt(random.mutate(valid));
  // an unknown field is passed over, unless the session cannot be continued without it
  assert.equal(tryIt(Buffer.concat([valid, Buffer.from([99, 0, 0, 0, 2, 1, 2])])), 0);
  assert.ok(tryIt(Buffer.concat([valid, Buffer.from([200, 0, 0, 0, 0])])) < 0);
  assert.ok(native.tlsContinue(server, valid) < 0);
  assert.ok(native.tlsContinue(9999, valid) < 0);
  closeAll(client, server);
});
