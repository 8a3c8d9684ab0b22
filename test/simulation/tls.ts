/*
 * The functions of the addon for TLS, over the records of records.ts. As in native/tls, a connection whose kind is `old`
 * cannot be continued by another process.
 */
import { constants } from 'node:os';
import { Ev } from '../../src/core/base/native';
import { EBADF } from './network';
import { Records } from './records';
import type { Stream } from './stream';

const { EINVAL, EPROTO } = constants.errno;

/** A kind of connection that a reboot closes, as with a CBC suite. */
export const OLD_KIND = 'old';

/** What TLS needs of the loop. */
interface TlsLoop {
  find(handle: number): Stream | null;
  all(): Iterable<Stream>;
  heat(stream: Stream): void;
  /** Queues bytes behind those that are not sent yet. */
  sendRaw(stream: Stream, bytes: Buffer): number;
  post(kind: Ev, handle: number, result: number): void;
  piece(offset: number, length: number): Buffer;
}

/** One step of a handshake, with the bytes that have arrived. */
export function shake(loop: TlsLoop, stream: Stream): void {
  const { tls, end } = stream;
  if (tls === null || end === null || !stream.handshake) return;
  while (!tls.established) {
    if (tls.next() !== null) break;
    const bytes = end.read(Number.POSITIVE_INFINITY);
    if (bytes !== null) tls.receive(bytes);
    else break;
  }
  if (!tls.established && !end.eof && end.error === 0) return;
  stream.handshake = false;
  if (tls.established && stream.accepting) loop.sendRaw(stream, tls.hello(''));
  loop.post(Ev.TLS, stream.handle, tls.established ? 0 : -EPROTO);
  loop.heat(stream);
}

function start(loop: TlsLoop, handle: number, accepting: boolean, first: Buffer): number {
  const stream = loop.find(handle);
  if (stream === null || stream.end === null || stream.tls !== null) return -EBADF;
  const tls = new Records();
  stream.accepting = accepting;
  stream.handshake = true;
  // what was sent before TLS goes out as it is
  loop.sendRaw(stream, accepting ? Buffer.alloc(0) : tls.hello(''));
  tls.receive(first);
  stream.tls = tls;
  loop.heat(stream);
  return 0;
}

function refusalOf(stream: Stream | null): string | null {
  const tls = stream?.tls ?? null;
  if (tls === null) return null;
  if (!tls.established || stream?.handshake) return 'handshake under way';
  return tls.kind === OLD_KIND ? 'cipher suite without AEAD' : null;
}

function exportOf(stream: Stream | null): Uint8Array | null {
  if (!stream?.tls || refusalOf(stream) !== null) return null;
  return stream.tls.export();
}

function proceed(loop: TlsLoop, handle: number, bytes: Uint8Array): number {
  const stream = loop.find(handle);
  if (stream === null) return -EBADF;
  try {
    stream.tls = Records.import(bytes);
  } catch {
    return -EINVAL;
  }
  return 0;
}

function freezeAll(loop: TlsLoop, except: number): number[] {
  const refused: number[] = [];
  for (const stream of loop.all()) {
    if (stream.tls === null || stream.handle === except) continue;
    if (refusalOf(stream) !== null) refused.push(stream.handle);
    else stream.tls.frozen = true;
  }
  return refused;
}

const INFO = {
  version: 'TLSv1.3',
  cipher: 'SIMULATED',
  exchange: '',
  recordsRead: 0,
  recordsWritten: 0,
  keyUpdatesRead: 0,
  keyUpdatesWritten: 0,
  secretBytes: 0,
};

/** This part of the interface `Native`. */
export function tlsCalls(loop: TlsLoop): Record<string, unknown> {
  return {
    tlsCtxNew: () => 1,
    tlsCtxFree: () => {},
    tlsKnown: () => true,
    tlsAccept: (handle: number, _context: number, offset: number, length: number) =>
      start(loop, handle, true, loop.piece(offset, length)),
    tlsConnect: (handle: number) => start(loop, handle, false, Buffer.alloc(0)),
    tlsError: () => 'simulated',
    tlsInfo: (handle: number) => (loop.find(handle)?.tls ? INFO : null),
    tlsPeerCertProvided: () => false,
    tlsPeerCertSubject: () => null,
    tlsPeerCertContainsName: () => false,
    tlsCertHash: () => 'hash of a certificate',
    tlsRefusal: (handle: number) => refusalOf(loop.find(handle)),
    tlsLastingRefusal: (handle: number) => (loop.find(handle)?.tls?.established ? refusalOf(loop.find(handle)) : null),
    tlsExport: (handle: number) => exportOf(loop.find(handle)),
    tlsContinue: (handle: number, bytes: Uint8Array) => proceed(loop, handle, bytes),
    tlsFreeze: (handle: number, on: number) => {
      const tls = loop.find(handle)?.tls;
      if (tls) tls.frozen = on === 1;
    },
    tlsFreezeAll: (except: number) => freezeAll(loop, except),
    tlsThawAll: () => {
      for (const { tls } of loop.all()) if (tls !== null) tls.frozen = false;
    },
    tlsTraffic: (handle: number) => loop.find(handle)?.tls?.traffic ?? -1,
  };
}
