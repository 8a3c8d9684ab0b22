/*
 * Reassembles client packets that must be handled as a whole, but are too large to be examined again with each part.
 * Their memory grows with the bytes that have arrived, not with the length in the header. Used by client.ts.
 */

import { slogDebug, wantDebug } from '../base/log';
import type { ClientSocket, PartialPacket } from '../pool/bouncer';

/** Initial size in bytes. */
const COLLECT_START = 64 * 1024;

/** Begins to reassemble a packet. @param len length of the whole packet in bytes */
export function startCollect(client: ClientSocket, len: number): void {
  if (wantDebug()) slogDebug(client, `buffering complete packet, len=${len}`);
  client.partial = { buf: Buffer.allocUnsafeSlow(Math.min(len, COLLECT_START)), length: 0 };
  client.pktRemain = len;
  client.pktSkip = true;
}

/**
 * Adds `n` bytes of the packet.
 * @param remain bytes of the packet that follow these
 * @returns the packet's memory, valid up to partial.length
 */
export function collectBytes(partial: PartialPacket, src: Buffer, off: number, n: number, remain: number): Buffer {
  const need = partial.length + n;
  if (need > partial.buf.length) {
    const bigger = Buffer.allocUnsafeSlow(Math.min(need + remain, Math.max(need, partial.buf.length * 2)));
    partial.buf.copy(bigger, 0, 0, partial.length);
    partial.buf = bigger;
  }
  src.copy(partial.buf, partial.length, off, off + n);
  partial.length = need;
  return partial.buf;
}
