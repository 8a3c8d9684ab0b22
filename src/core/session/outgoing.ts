/*
 * The output from a client to its server: runs of the arena, and bytes written by the pooler in between. Small pieces
 * are joined, because a system call costs more than copying them. Used by client.ts while it handles one delivery; the
 * output is empty between deliveries.
 */

import { arena, native } from '../base/native';
import { disconnectServer } from '../link/objects';
import { blockSource } from '../net/sbuf';
import type { ClientSocket, ServerSocket } from '../pool/bouncer';
import { PktBuf } from '../wire/pktbuf';

/** Runs up to this length are copied; longer runs are sent in place. */
const HOLD_MAX = 8 * 1024;
/** A buffer that a large statement has made larger than this is not kept for the next delivery. */
const HELD_KEEP_MAX = 256 * 1024;

/** Bytes for the server that precede the current run. */
export const outgoing = new PktBuf(2 * HOLD_MAX);

/** Begins a new delivery. Remaining output belongs to a connection that broke. */
export function clearOutgoing(): void {
  if (outgoing.pos !== 0 || outgoing.failed) outgoing.reset();
}

/** True if the output must be sent now: it has grown larger than any run. */
export function outgoingIsLarge(): boolean {
  return outgoing.pos > HOLD_MAX;
}

/**
 * Appends the run [off, end), which ends because the next packet is not forwarded unchanged.
 * @returns false if the server's connection broke; the client was disconnected too
 */
export function appendRun(client: ClientSocket, off: number, end: number): boolean {
  if (outgoing.pos + end - off > HOLD_MAX) return flushRun(client, off, end);
  outgoing.putSlice(arena, off, end - off);
  return true;
}

/**
 * Sends the output, followed by the run [off, end) of the arena.
 * @returns false if the server's connection broke; the client was disconnected too
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
