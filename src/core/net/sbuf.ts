/*
 * The stream of a socket: pausing and continuing its input, sending to it, and the bookkeeping between handles of the
 * loop and PgSockets. Clients and servers (session/) decide what the bytes mean.
 *
 * Flow control: whoever forwards to a socket that could not take everything stops reading its own source, and goes on when
 * the loop reports that the queue is empty. So no connection ever queues more than one received chunk plus what the
 * pooler itself has to say.
 */

import { logNoise } from '../base/log';
import { native } from '../base/native';
import type { AnySocket } from '../pool/bouncer';
import { isDead } from '../pool/socket';
import type { PktBuf } from '../wire/pktbuf';

/** Socket of each handle; null = none, late events of the handle are dropped. */
export const socketsByHandle: (AnySocket | null)[] = [];

/** Sockets whose kept bytes are to be processed when the event in progress is over. */
const continueQueue: AnySocket[] = [];

/** Gives a socket its handle. */
export function attachHandle(sk: AnySocket, handle: number): void {
  while (socketsByHandle.length <= handle) socketsByHandle.push(null);
  socketsByHandle[handle] = sk;
  sk.handle = handle;
}

/** Closes the descriptor; events of it that are still in the ring find nobody. */
export function sbufClose(sk: AnySocket): void {
  if (sk.handle < 0) return;
  socketsByHandle[sk.handle] = null;
  native.close(sk.handle);
  sk.handle = -1;
  sk.reading = false;
  sk.hasKept = false;
}

/** Stops reading. What was received and not processed has to be given back with keepInput(). */
export function sbufPause(sk: AnySocket): void {
  sk.reading = false;
  native.recvStop(sk.handle);
}

/** Reads again; bytes kept meanwhile are processed first, when the event in progress is over. */
export function sbufContinue(sk: AnySocket): void {
  sk.reading = true;
  if (sk.blocked) return;
  if (sk.hasKept) queueContinue(sk);
  else native.recvStart(sk.handle);
}

function queueContinue(sk: AnySocket): void {
  if (sk.queued) return;
  sk.queued = true;
  continueQueue.push(sk);
}

/** The unprocessed tail of a delivery: comes again in front of what arrives next, or when reading goes on. */
export function keepInput(sk: AnySocket, offset: number, end: number): void {
  if (end <= offset) return;
  native.keep(sk.handle, offset, end - offset);
  sk.hasKept = true;
}

/** Like keepInput, for a packet that has to be looked at again as soon as reading is on. */
export function keepForLater(sk: AnySocket, offset: number, end: number): void {
  keepInput(sk, offset, end);
  // whoever paused the socket may have continued it already
  if (sk.reading && !sk.blocked && sk.hasKept) queueContinue(sk);
}

/** Hands the kept bytes of continued sockets to `input`, in order. Called after every event and after the maintenance. */
export function runContinueQueue(input: (sk: AnySocket, offset: number, length: number) => void): void {
  if (continueQueue.length === 0) return;
  for (let i = 0; i < continueQueue.length; i++) {
    const sk = continueQueue[i] as AnySocket;
    sk.queued = false;
    if (sk.handle < 0 || isDead(sk) || !sk.reading || sk.blocked) continue;
    const length = native.keptLength(sk.handle);
    const offset = length > 0 ? native.takeKept(sk.handle) : -1;
    native.recvStart(sk.handle);
    // no room in the arena: the loop delivers them itself on the next turn
    if (offset < 0) continue;
    sk.hasKept = false;
    input(sk, offset, length);
  }
  continueQueue.length = 0;
}

/** The source of a transfer stops until its destination has sent everything. */
export function blockSource(src: AnySocket): void {
  src.blocked = true;
  native.recvStop(src.handle);
}

/** The destination has sent everything: the source may read again, unless it is paused for another reason. */
export function unblockSource(src: AnySocket): void {
  src.blocked = false;
  if (src.reading) sbufContinue(src);
}

/** True when nothing of this socket's input is waiting anywhere: no partial packet, no bytes kept, none unsent. */
export function sbufIsEmpty(sk: AnySocket): boolean {
  return sk.pktRemain === 0 && !sk.hasKept && !sk.blocked;
}

/**
 * Sends a finished packet of the pooler's own; what the socket does not take now is queued.
 * @returns false when the socket failed; the caller disconnects it
 */
export function sendPacket(sk: AnySocket, buf: PktBuf): boolean {
  return sendBytes(sk, buf.buf, buf.pos);
}

/** Likewise for a constant packet. */
export function sendBytes(sk: AnySocket, bytes: Uint8Array, length: number): boolean {
  if (sk.handle < 0) return false;
  const res = native.sendBytes(sk.handle, bytes, 0, length);
  if (res < 0) logNoise(`send failed: ${native.strerror(-res)}`);
  return res >= 0;
}
