/*
 * TLS on a handle of the native loop: the handshake event, bytes in both directions in any pieces, the end of a stream,
 * and refused connections. Both ends run in this thread's loop; in some tests a relay between them simulates the
 * network.
 */

import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { writeFileSync, writeSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { arena, Ev, native, Rec, ring, type TlsContextOptions, TlsVerify } from '../../src/core/base/native';
import { startTestLoop } from '../harness/backend';
import type { Cert } from '../harness/certs';
import { test } from '../harness/limits';
import {
  accepting,
  ca,
  certs,
  closeAll,
  connecting,
  failure,
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

const E = constants.errno;
const RECV_MAX = 4096;
startTestLoop(RECV_MAX);

const otherCa = certs.authority('otherca');

const named = certs.issue(ca, 'named', { cn: 'only.example' });

const hash = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');

for (const [protocols, version, first] of [
  [TLS12, 'TLSv1.2', 1],
  [TLS13, 'TLSv1.3', 0],
] as const) {
  test(`${version} completes the handshake, carries bytes both ways, and counts its records`, () => {
    const [client, server] = tlsPair(connecting({ protocols }), accepting(site));
    for (const [from, to] of [
      [client, server],
      [server, client],
    ] as const) {
      assert.equal(put(from, Buffer.from('hello')), 0);
      assert.equal(receive(to, 5).toString(), 'hello');
      put(from, Buffer.from('again'));
      assert.equal(receive(to, 5).toString(), 'again');
    }
    const here = native.tlsInfo(client);
    const there = native.tlsInfo(server);
    assert.ok(here !== null && there !== null);
    assert.equal(here.version, version);
    assert.equal(here.cipher, there.cipher);
    assert.equal(there.exchange, version === 'TLSv1.2' ? 'ECDH=X25519' : '');
    for (const info of [here, there]) {
      assert.equal(info.recordsRead, first + 2);
      assert.equal(info.recordsWritten, first + 2);
      assert.ok(info.secretBytes >= 32);
    }
    closeAll(client, server);
  });
}

test('the TLS handshake is reported even if receiving is off, and sends wait for it', () => {
  const [client, server] = openPair();
  start(client, server, connecting(), accepting(site));
  assert.equal(put(server, Buffer.from('too early')), -E.EIO);
  assert.equal(native.tlsAccept(server, accepting(site), 0, 0), -E.EBADF);
  assert.equal(until(Ev.TLS, client).result, 0);
  put(client, Buffer.from('first words'));
  assert.equal(until(Ev.TLS, server).result, 0);
  // the bytes came with or right after the last handshake message; receiving is still off
  assert.deepEqual(turn(50), []);
  native.recvStart(server);
  assert.equal(receive(server, 11).toString(), 'first words');
  closeAll(client, server);
});

test('TLS carries megabytes in both directions, even to a slow reader', () => {
  const [client, server] = tlsPair();
  const big = randomBytes(9_000_001);
  for (const [from, to] of [
    [client, server],
    [server, client],
  ] as const) {
    native.recvStop(to);
    assert.ok(put(from, big) > 0);
    assert.ok(put(from, Buffer.from('tail')) > 0);
    turn(20);
    native.recvStart(to);
    const got = receive(to, big.length + 4);
    assert.equal(hash(got.subarray(0, big.length)), hash(big));
    assert.equal(got.subarray(big.length).toString(), 'tail');
    assert.equal(until(Ev.DRAIN, from).result, 0);
    assert.equal(native.unsent(from), 0);
  }
  closeAll(client, server);
});

test('a TLS record larger than one delivery arrives in pieces without further network input', () => {
  const [client, server] = tlsPair();
  const record = randomBytes(16_000);
  put(client, record);
  assert.equal(hash(receive(server, record.length)), hash(record));
  assert.deepEqual(turn(20), []);
  closeAll(client, server);
});

test('kept TLS bytes are delivered first, and stopping loses nothing', () => {
  const [client, server] = tlsPair();
  const text = randomBytes(40_000);
  put(client, text);
  const parts: Buffer[] = [];
  let got = 0;
  while (got < text.length) {
    // each delivery takes only 100 bytes and keeps the rest
    native.wait(1000);
    assert.equal(ring[Rec.KIND], Ev.RECV);
    const length = ring[Rec.RESULT] as number;
    const offset = ring[Rec.OFFSET] as number;
    const taken = Math.min(length, got < 3000 ? 100 : length);
    parts.push(Buffer.from(arena.subarray(offset, offset + taken)));
    got += taken;
    native.keep(server, offset + taken, length - taken);
    native.recvStop(server);
    assert.equal(native.wait(0), 0);
    native.recvStart(server);
  }
  assert.equal(hash(Buffer.concat(parts)), hash(text));
  closeAll(client, server);
});

/** Relays bytes between two handles until `done`; `cut` splits them into pieces. */
function relay(a: number, b: number, cut: (bytes: Buffer) => Buffer[], done: () => boolean): void {
  const end = Date.now() + 20_000;
  while (!done()) {
    assert.ok(Date.now() < end, 'the relay goes on for ever');
    for (const h of turn(100)) {
      const other = h.handle === a ? b : h.handle === b ? a : 0;
      if (other === 0 || h.kind !== Ev.RECV) {
        stash.push(h);
        continue;
      }
      for (const piece of h.result > 0 ? cut(h.bytes) : []) {
        put(other, piece);
        // so that the receiver gets it separately
        stash.push(...turn(0).filter((late) => late.handle !== a && late.handle !== b));
      }
    }
  }
}

test('TLS works over a network that delivers single bytes', () => {
  const [client, near] = openPair();
  const [far, server] = openPair();
  native.recvStart(near);
  native.recvStart(far);
  start(client, server, connecting(), accepting(site));
  const got: Buffer[] = [];
  const text = randomBytes(1500);
  let told = 0;
  const single = (bytes: Buffer) => [...bytes].map((byte) => Buffer.from([byte]));
  relay(near, far, single, () => {
    for (const h of stash) {
      if (h.kind === Ev.TLS && h.handle === client) {
        native.recvStart(server);
        put(client, text);
      }
      if (h.kind === Ev.TLS) assert.equal(h.result, 0);
      if (h.kind === Ev.TLS) told++;
      if (h.kind === Ev.RECV && h.handle === server) got.push(h.bytes);
    }
    stash.length = 0;
    return told === 2 && Buffer.concat(got).length === text.length;
  });
  assert.equal(hash(Buffer.concat(got)), hash(text));
  closeAll(client, near, far, server);
});

test('a TLS close is reported once, after the last bytes', () => {
  const [client, server] = tlsPair();
  put(client, Buffer.from('good-bye'));
  native.close(client);
  assert.equal(receive(server, 8).toString(), 'good-bye');
  assert.equal(until(Ev.RECV, server).result, 0);
  assert.deepEqual(turn(20), []);
  closeAll(server);
});

test('an end without close_notify is reported as an ordinary end', () => {
  const [client, server] = tlsPair();
  native.closeFd(native.detach(client));
  assert.equal(until(Ev.RECV, server).result, 0);
  assert.equal(native.tlsError(server), '');
  closeAll(server);
});

test('the end of a TLS connection that is not received from can be asked for', () => {
  const [client, server] = tlsPair();
  native.recvStop(server);
  assert.equal(native.ended(server), 0);
  native.closeFd(native.detach(client));
  for (let left = 100; native.ended(server) === 0 && left > 0; left--) turn(20);
  assert.equal(native.ended(server), 1);
  closeAll(server);
});

test('a connection that breaks within a TLS record ends with the error of the socket', () => {
  const [client, server] = tlsPair();
  // closing a Unix socket with unread bytes resets the other end
  put(server, Buffer.from('unread'));
  assert.equal(native.unsent(server), 0);
  const fd = native.detach(client);
  assert.equal(writeSync(fd, Buffer.from([0x17, 3, 3, 0, 64, 1, 2, 3])), 8);
  native.closeFd(fd);
  assert.equal(until(Ev.RECV, server).result, -E.ECONNRESET);
  assert.match(native.tlsError(server), /^read failed: Connection reset by peer/);
  closeAll(server);
});

test('bytes that are not TLS fail the handshake', () => {
  const [client, server] = openPair();
  native.tlsAccept(server, accepting(site), 0, 0);
  put(client, Buffer.from('GET / HTTP/1.0\r\n\r\n'));
  assert.ok(until(Ev.TLS, server).result < 0);
  assert.match(native.tlsError(server), /^handshake failed: error:[0-9A-F]+:SSL routines::/);
  native.close(server);
  const [gone, left] = openPair();
  native.tlsAccept(left, accepting(site), 0, 0);
  native.close(gone);
  assert.ok(until(Ev.TLS, left).result < 0);
  assert.match(native.tlsError(left), /^handshake failed: .*unexpected eof/i);
  closeAll(client, left);
});

test('forged TLS records end the stream with an error', () => {
  const [client, server] = tlsPair();
  const fd = native.fdOf(client);
  // a well-formed record that is not encrypted with the session key
  const forged = Buffer.concat([Buffer.from([0x17, 3, 3, 0, 64]), randomBytes(64)]);
  assert.equal(writeSync(fd, forged), forged.length);
  const end = until(Ev.RECV, server);
  assert.ok(end.result < 0);
  assert.match(native.tlsError(server), /^read failed: error:/);
  closeAll(client, server);
});

test('bytes received before TLS was started are its first bytes', () => {
  const [client, server] = openPair();
  native.tlsConnect(client, connecting(), '');
  native.recvStart(server);
  native.wait(1000);
  while (ring[Rec.HANDLE] !== server) native.wait(1000);
  assert.equal(ring[Rec.KIND], Ev.RECV);
  assert.equal(native.tlsAccept(server, accepting(site), ring[Rec.OFFSET] as number, ring[Rec.RESULT] as number), 0);
  assert.equal(until(Ev.TLS, client).result, 0);
  assert.equal(until(Ev.TLS, server).result, 0);
  put(client, Buffer.from('x'));
  assert.equal(receive(server, 1).toString(), 'x');
  closeAll(client, server);
});

test('the server certificate must be signed by a known CA and contain the name', () => {
  const verify = (host: string, cert: Cert, from: Cert) =>
    failure(connecting({ verify: TlsVerify.NAME, caFile: from.cert }), accepting(cert), host);
  for (const host of ['site.example', 'SITE.example', 'a.wild.example', '127.0.0.1', '::1']) {
    assert.equal(verify(host, site, ca).client, 0, host);
  }
  assert.equal(verify('only.example', named, ca).client, 0);
  for (const host of [
    'wild.example',
    'a.b.wild.example',
    '127.0.0.2',
    '::2',
    'example',
    '.wild.example',
    'only.example',
  ]) {
    const res = verify(host, site, ca);
    assert.ok(res.client < 0, host);
    assert.equal(res.why, `name \`${host}' not present in server certificate`);
  }
  const stranger = verify('site.example', site, otherCa);
  assert.ok(stranger.client < 0);
  assert.match(stranger.why, /certificate verify failed/);
  const [handle] = openPair();
  assert.equal(native.tlsConnect(handle, connecting({ verify: TlsVerify.NAME, caFile: ca.cert }), ''), -E.EINVAL);
  closeAll(handle);
});

test('a client certificate can be optional or required, and is verified in both cases', () => {
  const mine = certs.issue(ca, 'mine', { cn: 'ann' });
  const strange = certs.issue(otherCa, 'strange', { cn: 'ann' });
  const server = (verify: TlsVerify) => accepting(site, { verify, caFile: ca.cert });
  const client = (cert: Cert | null) => connecting(cert === null ? {} : { keyFile: cert.key, certFile: cert.cert });
  assert.equal(failure(client(null), server(TlsVerify.OPTIONAL)).server, 0);
  assert.ok(failure(client(null), server(TlsVerify.REQUIRED)).server < 0);
  for (const verify of [TlsVerify.OPTIONAL, TlsVerify.REQUIRED]) {
    assert.equal(failure(client(mine), server(verify)).server, 0);
    assert.match(failure(client(strange), server(verify)).there, /certificate verify failed/);
  }
  const [a, b] = tlsPair(client(mine), server(TlsVerify.REQUIRED));
  assert.equal(native.tlsPeerCertProvided(b), true);
  assert.equal(native.tlsPeerCertSubject(b), '/O=tests/CN=ann');
  assert.equal(native.tlsPeerCertContainsName(b, 'ann'), true);
  assert.equal(native.tlsPeerCertContainsName(b, 'ben'), false);
  assert.equal(native.tlsPeerCertContainsName(b, 'ann\0'), false);
  closeAll(a, b);
  const [c, d] = tlsPair(client(null), server(TlsVerify.OPTIONAL));
  assert.equal(native.tlsPeerCertProvided(d), false);
  assert.equal(native.tlsPeerCertSubject(d), null);
  assert.equal(native.tlsPeerCertContainsName(d, 'ann'), false);
  closeAll(c, d);
});

test('TLS contexts report errors in their settings', () => {
  const junk = join(certs.dir, 'junk.pem');
  writeFileSync(junk, 'no certificate\n');
  const why = (cert: Cert, more: Partial<TlsContextOptions> = {}) => {
    try {
      accepting(cert, more);
    } catch (err) {
      return (err as Error).message;
    }
    return '';
  };
  const none = join(certs.dir, 'none');
  assert.match(
    why({ ...site, cert: none }),
    /^failed to load certificate file ".*": error:[0-9A-F]+:.*No such file or directory$/,
  );
  assert.match(
    why({ ...site, key: none }),
    /^failed to load private key file ".*": error:.*No such file or directory$/,
  );
  assert.match(why({ ...site, cert: junk }), /^failed to load certificate file/);
  assert.match(why({ ...site, key: named.key }), /mismatch/);
  assert.match(why(site, { verify: TlsVerify.REQUIRED, caFile: none }), /^failed to load CA: error:/);
  assert.equal(why(site, { ciphers: 'NO-SUCH' }), 'failed to set ciphers');
  assert.equal(why(site, { ciphers13: 'NO_SUCH' }), 'failed to set the TLSv1.3 cipher suites');
  assert.equal(why(site, { curve: 'no-such' }), 'failed to set ECDHE curve');
  assert.equal(why(site, { curve: 'prime256v1' }), '');
  assert.equal(native.tlsKnown('ciphers', 'NO-SUCH'), false);
  assert.equal(native.tlsKnown('ciphers', 'HIGH:!aNULL'), true);
  assert.equal(native.tlsKnown('curve', 'secp384r1'), true);
  assert.equal(native.tlsKnown('curve', 'no-such'), false);
});
