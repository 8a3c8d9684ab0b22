/*
 * Packets of clients that are handled as a whole and are too large to be looked at again and again: put together in
 * memory that grows with what has arrived, not with what the header promises. Used by client.ts.
 */

import { slogDebug, wantDebug } from '../base/log';
import type { PgSocket } from '../pool/bouncer';

/** First size in bytes. */
const COLLECT_START = 64 * 1024;

/** The packet that is beginning will be put together. @param len of the whole packet */
export function startCollect(client: PgSocket, len: number): void {
  if (wantDebug()) slogDebug(client, `buffering complete packet, len=${len}`);
  client.collect = Buffer.allocUnsafeSlow(Math.min(len, COLLECT_START));
  client.collectLen = 0;
  client.pktRemain = len;
  client.pktSkip = true;
}

/** Takes `n` bytes of it, which pktRemain counts as here already. @returns the buffer, valid up to collectLen */
export function collectBytes(client: PgSocket, src: Buffer, off: number, n: number): Buffer {
  let buf = client.collect as Buffer;
  const need = client.collectLen + n;
  if (need > buf.length) {
    const bigger = Buffer.allocUnsafeSlow(Math.min(need + client.pktRemain, Math.max(need, buf.length * 2)));
    buf.copy(bigger, 0, 0, client.collectLen);
    client.collect = buf = bigger;
  }
  src.copy(buf, client.collectLen, off, off + n);
  client.collectLen = need;
  return buf;
}
