/*
 * What goes from a client to its server: runs of the arena as they came, and in between bytes that the pooler wrote itself.
 * Small pieces are put together, because one more system call costs more than copying them. Used by client.ts while it
 * walks one delivery; nothing stays here from one delivery to the next.
 */

import { arena, native } from '../base/native';
import { disconnectServer } from '../link/objects';
import { blockSource } from '../net/sbuf';
import type { ClientSocket, ServerSocket } from '../pool/bouncer';
import { PktBuf } from '../wire/pktbuf';

/** Runs up to this length are copied; longer ones are sent from where they are. */
const HOLD_MAX = 8 * 1024;
/** A buffer that a large statement has made larger than this is not kept for the next delivery. */
const HELD_KEEP_MAX = 256 * 1024;

/** Bytes for the server that come in front of the current run. */
export const outgoing = new PktBuf(2 * HOLD_MAX);

/** A new delivery begins: what an earlier one left behind belonged to a connection that broke. */
export function clearOutgoing(): void {
  if (outgoing.pos !== 0 || outgoing.failed) outgoing.reset();
}

/** True when it is time to send: what is held was made larger than runs ever are. */
export function outgoingIsLarge(): boolean {
  return outgoing.pos > HOLD_MAX;
}

/** Holds bytes from elsewhere than the arena. */
export function appendBytes(buf: Buffer, off: number, len: number): void {
  outgoing.putSlice(buf, off, len);
}

/** A run ends because the packet behind it is not forwarded as it is. @returns false when the server broke, and the client with it */
export function appendRun(client: ClientSocket, off: number, end: number): boolean {
  if (outgoing.pos + end - off > HOLD_MAX) return flushRun(client, off, end);
  outgoing.putSlice(arena, off, end - off);
  return true;
}

/**
 * Sends what is held, and the run [off, end) of the arena behind it.
 * @returns false when the server broke, and the client with it
 */
export function flushRun(client: ClientSocket, off: number, end: number): boolean {
  const heldLen = outgoing.pos;
  if (heldLen === 0 && end <= off) return true;
  const batch = (client.link as ServerSocket).batch;
  if (batch?.recording) {
    batch.add(outgoing.buf, 0, heldLen);
    if (end > off) batch.add(arena, off, end);
  }
  if (heldLen === 0) return sent(client, native.send((client.link as ServerSocket).handle, off, end - off));
  let left = off;
  if (end > off && heldLen + end - off <= HOLD_MAX) {
    outgoing.putSlice(arena, off, end - off);
    left = end;
  }
  const res = outgoing.failed
    ? -1
    : native.sendBytes((client.link as ServerSocket).handle, outgoing.buf, 0, outgoing.pos);
  if (outgoing.buf.length > HELD_KEEP_MAX) outgoing.buf = Buffer.allocUnsafeSlow(2 * HOLD_MAX);
  outgoing.reset();
  if (!sent(client, res)) return false;
  return end <= left || sent(client, native.send((client.link as ServerSocket).handle, left, end - left));
}

function sent(client: ClientSocket, res: number): boolean {
  if (res === 0) return true;
  if (res < 0) {
    disconnectServer(client.link as ServerSocket, false, 'server connection closed');
    return false;
  }
  blockSource(client);
  return true;
}
