/*
 * Drives TLS connections of the native loop from a test: pairs of handles, certificates, and the events of each turn.
 */

import assert from 'node:assert/strict';
import { arena, Ev, native, Rec, ring, type TlsContextOptions, TlsRole, TlsVerify } from '../../src/core/base/native';
import { type Cert, CertFolder } from './certs';

export const certs = new CertFolder();
export const ca = certs.authority('ca');

export const site = certs.issue(ca, 'site', {
  cn: 'site.example',
  san: 'DNS:site.example,DNS:*.wild.example,IP:127.0.0.1,IP:::1',
});

export const TLS12 = 1 << 3;
export const TLS13 = 1 << 4;

function options(more: Partial<TlsContextOptions>): TlsContextOptions {
  const none = { ciphers: '', ciphers13: '', curve: '', dhAuto: 0, keyFile: '', certFile: '', caFile: '' };
  return { protocols: TLS12 | TLS13, verify: TlsVerify.NONE, ...none, ...more };
}

export const accepting = (cert: Cert, more: Partial<TlsContextOptions> = {}): number =>
  native.tlsCtxNew(TlsRole.ACCEPT, options({ keyFile: cert.key, certFile: cert.cert, dhAuto: 1, ...more }));
export const connecting = (more: Partial<TlsContextOptions> = {}): number =>
  native.tlsCtxNew(TlsRole.CONNECT, options(more));

export interface Happened {
  kind: number;
  handle: number;
  result: number;
  bytes: Buffer;
}

export function turn(timeoutMs: number): Happened[] {
  const list: Happened[] = [];
  const count = native.wait(timeoutMs);
  for (let i = 0; i < count; i++) {
    const at = i * Rec.SIZE;
    const kind = ring[at + Rec.KIND] as number;
    const result = ring[at + Rec.RESULT] as number;
    const offset = ring[at + Rec.OFFSET] as number;
    const received = kind === Ev.RECV && result > 0;
    const bytes = received ? Buffer.from(arena.subarray(offset, offset + result)) : Buffer.alloc(0);
    list.push({ kind, handle: ring[at + Rec.HANDLE] as number, result, bytes });
  }
  return list;
}

/** Events that have been reported and not yet consumed. */
export const stash: Happened[] = [];

export function until(kind: Ev, handle: number): Happened {
  const end = Date.now() + 10_000;
  for (;;) {
    const at = stash.findIndex((h) => h.kind === kind && h.handle === handle);
    if (at >= 0) return stash.splice(at, 1)[0] as Happened;
    assert.ok(Date.now() < end, `no record ${kind} for handle ${handle}`);
    stash.push(...turn(100));
  }
}

export function receive(handle: number, length: number): Buffer {
  const parts: Buffer[] = [];
  for (let got = 0; got < length; ) {
    const h = until(Ev.RECV, handle);
    assert.ok(h.result > 0, `the stream ended with ${h.result} after ${got} bytes`);
    parts.push(h.bytes);
    got += h.result;
  }
  return Buffer.concat(parts);
}

export const put = (handle: number, bytes: Buffer): number => native.sendBytes(handle, bytes, 0, bytes.length);

export function openPair(): [number, number] {
  const [a, b] = native.socketPair().map((fd) => native.open(fd));
  return [a as number, b as number];
}

export function start(client: number, server: number, clientCtx: number, serverCtx: number, host = ''): void {
  assert.equal(native.tlsAccept(server, serverCtx, 0, 0), 0);
  assert.equal(native.tlsConnect(client, clientCtx, host), 0);
}

/** A connected pair with TLS, both receiving: [client, server]. */
export function tlsPair(clientCtx = connecting(), serverCtx = accepting(site), host = ''): [number, number] {
  const [client, server] = openPair();
  start(client, server, clientCtx, serverCtx, host);
  assert.equal(until(Ev.TLS, client).result, 0, native.tlsError(client));
  assert.equal(until(Ev.TLS, server).result, 0, native.tlsError(server));
  native.recvStart(client);
  native.recvStart(server);
  return [client, server];
}

export function closeAll(...handles: number[]): void {
  for (const handle of handles) native.close(handle);
  stash.length = 0;
}

/** The outcome of the handshake on both sides, with the client's reason. */
export function failure(
  clientCtx: number,
  serverCtx: number,
  host = '',
): { client: number; server: number; why: string; there: string } {
  const [client, server] = openPair();
  start(client, server, clientCtx, serverCtx, host);
  const atClient = until(Ev.TLS, client).result;
  const why = native.tlsError(client);
  if (atClient === 0) native.recvStart(client);
  else native.close(client);
  const atServer = until(Ev.TLS, server).result;
  const there = native.tlsError(server);
  closeAll(client, server);
  return { client: atClient, server: atServer, why, there };
}
