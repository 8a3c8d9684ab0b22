/*
 * Sends notifications of a listening connection to a client (listen_mode = share). As PostgreSQL does, only between two
 * transactions: until then they are queued here.
 */

import { native } from '../base/native';
import { sendPacket } from '../net/sbuf';
import type { ClientSocket } from '../pool/bouncer';
import type { ClientListening } from '../pool/channels';
import { PktBuf } from '../wire/pktbuf';

/** Initial size of a queue. */
const QUEUE_MIN = 256;

/** True if no transaction of the client is in progress, and all its answers have been sent. */
function isBetween(client: ClientSocket, own: ClientListening): boolean {
  return client.link === null && !own.waiting;
}

/**
 * Sends a packet, or queues it.
 * @returns how many bytes wait for the client now; those that were queued for the first time in this turn do not count.
 *   Infinity: the packet could not be queued
 */
export function notifyClient(
  client: ClientSocket,
  own: ClientListening,
  buf: Buffer,
  off: number,
  len: number,
  inArena: boolean,
): number {
  if (isBetween(client, own)) {
    const unsent = inArena ? native.send(client.handle, off, len) : native.sendBytes(client.handle, buf, off, len);
    return unsent < 0 ? Number.POSITIVE_INFINITY : unsent;
  }
  own.queue ??= new PktBuf(QUEUE_MIN);
  own.queue.putSlice(buf, off, len);
  return own.queue.failed ? Number.POSITIVE_INFINITY : own.queue.pos;
}

/** Sends what was queued: the client's transaction has ended. A connection that is broken reports that later. */
export function sendNotifications(client: ClientSocket): void {
  const own = client.listening;
  if (own === null || own.queue === null || !isBetween(client, own)) return;
  const { queue } = own;
  own.queue = null;
  if (queue.pos > 0 && !sendPacket(client, queue)) client.leaving = true;
}
