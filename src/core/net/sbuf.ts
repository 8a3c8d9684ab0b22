/*
 * The stream of a socket: stopping and resuming its input, sending to it, and the mapping from the loop's handles to
 * sockets. Clients and servers (session/) interpret the bytes.
 *
 * Flow control: when the destination of a forwarded packet could not send everything, the source stops reading. It
 * resumes when the loop reports that the destination's queue is empty. So no connection ever queues more than one
 * received chunk, plus the pooler's own packets.
 */

import { logNoise } from '../base/log';
import { native, resumedLength } from '../base/native';
import type { AnySocket } from '../pool/bouncer';
import { isDead } from '../pool/socket';
import type { PktBuf } from '../wire/pktbuf';

/** The socket of each handle; null = none: late events of that handle are dropped. */
export const socketsByHandle: (AnySocket | null)[] = [];

/**
 * Sockets whose buffered input must be processed after the current event: the first `continueCount` elements. The array
 * keeps its size, because an array that is emptied has to grow again.
 */
const continueQueue: (AnySocket | null)[] = [];
let continueCount = 0;
/** The element that is processed next. If `input` throws, the next call goes on with the socket behind. */
let continueNext = 0;

/**
 * The socket whose input is being handled, and whether reading is to stop with the end of that: then one call keeps the
 * rest and stops.
 */
let handled: AnySocket | null = null;
let stopDue = false;

/** The input of a socket is going to be handled. */
export function beginInput(sk: AnySocket): void {
  handled = sk;
  stopDue = false;
}

/** The input has been handled. */
export function endInput(): void {
  const sk = handled;
  handled = null;
  if (stopDue && sk !== null && sk.handle >= 0) native.recvStop(sk.handle);
  stopDue = false;
}

/** Gives a socket its handle. */
export function attachHandle(sk: AnySocket, handle: number): void {
  while (socketsByHandle.length <= handle) socketsByHandle.push(null);
  socketsByHandle[handle] = sk;
  sk.handle = handle;
}

/** Closes the descriptor; the loop drops events that are still in the ring. */
export function sbufClose(sk: AnySocket): void {
  if (sk.handle < 0) return;
  socketsByHandle[sk.handle] = null;
  if (sk.shared) native.hangUp(sk.handle);
  else native.close(sk.handle);
  sk.handle = -1;
  sk.reading = false;
  sk.hasKept = false;
}

/** Stops reading. Received bytes that are not processed must be buffered with keepInput(). */
export function sbufPause(sk: AnySocket): void {
  sk.reading = false;
  if (sk === handled) stopDue = true;
  else native.recvStop(sk.handle);
}

/** Starts reading from a new connection. @returns where the resumedLength bytes are that it has sent already, or -1 */
export function sbufStart(sk: AnySocket): number {
  sk.reading = true;
  return native.recvFirst(sk.handle);
}

/** Resumes reading; buffered input is processed first, after the current event. */
export function sbufContinue(sk: AnySocket): void {
  sk.reading = true;
  if (sk.blocked) return;
  if (sk === handled) stopDue = false;
  if (sk.hasKept) queueContinue(sk);
  else native.recvStart(sk.handle);
}

function queueContinue(sk: AnySocket): void {
  if (sk.queued) return;
  sk.queued = true;
  continueQueue[continueCount++] = sk;
}

/** Buffers the unprocessed tail of a delivery. It is delivered again before the next bytes, or when reading resumes. */
export function keepInput(sk: AnySocket, offset: number, end: number): void {
  if (end <= offset) return;
  const length = end - offset;
  sk.hasKept = true;
  if (stopDue && sk === handled) {
    stopDue = false;
    native.park(sk.handle, offset, length);
  } else {
    native.keep(sk.handle, offset, length);
  }
}

/** Like keepInput(), for a packet that must be handled again as soon as reading is on. */
export function keepForLater(sk: AnySocket, offset: number, end: number): void {
  keepInput(sk, offset, end);
  // reading may have been resumed already
  if (sk.reading && !sk.blocked && sk.hasKept) queueContinue(sk);
}

/** Passes the buffered input of resumed sockets to `input`, in order. Called after each event and the maintenance. */
export function runContinueQueue(input: (sk: AnySocket, offset: number, length: number) => void): void {
  if (continueCount === 0) return;
  while (continueNext < continueCount) {
    const sk = continueQueue[continueNext] as AnySocket;
    continueQueue[continueNext++] = null;
    sk.queued = false;
    if (sk.handle < 0 || isDead(sk) || !sk.reading || sk.blocked) continue;
    const offset = native.resume(sk.handle);
    // nothing, or no room in the arena: the loop delivers the bytes on the next turn
    if (offset < 0) continue;
    sk.hasKept = false;
    input(sk, offset, resumedLength[0] as number);
  }
  continueCount = continueNext = 0;
}

/** Stops reading from a source until its destination has sent everything. */
export function blockSource(src: AnySocket): void {
  src.blocked = true;
  native.recvStop(src.handle);
}

/** The destination has sent everything: resumes reading from the source, unless it is paused for another reason. */
export function unblockSource(src: AnySocket): void {
  src.blocked = false;
  if (src.reading) sbufContinue(src);
}

/** True if the socket's input is all handled and forwarded: no partial packet, nothing buffered, nothing unsent. */
export function sbufIsEmpty(sk: AnySocket): boolean {
  return sk.pktRemain === 0 && !sk.hasKept && !sk.blocked;
}

/**
 * True if a part of a packet from this socket has been forwarded. Its receiver would read an error or Terminate as the
 * rest of the packet: as a part of a row, or of a query. The end of the connection is an error to the receiver too.
 */
export function inPacket(src: AnySocket): boolean {
  return src.pktRemain > 0 && !src.pktSkip;
}

/**
 * Sends a complete packet of the pooler's own; the loop queues what cannot be sent at once.
 * @returns false if the socket failed; the caller disconnects it
 */
export function sendPacket(sk: AnySocket, buf: PktBuf): boolean {
  return sendBytes(sk, buf.buf, buf.pos);
}

/** Like sendPacket(), for a constant packet. */
export function sendBytes(sk: AnySocket, bytes: Uint8Array, length: number): boolean {
  if (sk.handle < 0) return false;
  const res = native.sendBytes(sk.handle, bytes, 0, length);
  if (res < 0) logNoise(`send failed: ${native.strerror(-res)}`);
  return res >= 0;
}
