/*
 * Sends notifications of a listening connection to a client (listen_mode = share). As PostgreSQL does, only between two
 * transactions: until then they are queued here.
 */

import { native } from '../base/native';
import { sendPacket } from '../net/sbuf';
import type { ClientSocket } from '../pool/bouncer';
import type { ClientListening } from '../pool/channels';
import { findNul, nameText } from '../wire/names';
import { NEW_HEADER_LEN, PqMsg } from '../wire/packets';
import { PktBuf } from '../wire/pktbuf';

/** Initial size of a queue. */
const QUEUE_MIN = 256;

/** Where the channel of a NotificationResponse begins: after the process id. */
export const CHANNEL_AT = NEW_HEADER_LEN + 4;

/** The channel of a NotificationResponse at [off, off + len); null = the packet is malformed. */
export function channelOf(buf: Buffer, off: number, len: number): string | null {
  const start = off + CHANNEL_AT;
  const end = findNul(buf, start, off + len);
  return end < 0 ? null : nameText(buf, start, end);
}

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

/** The packets of a queue without notifications on channels that the client has left, as in PostgreSQL. */
function narrowed({ channels }: ClientListening, queue: PktBuf): PktBuf {
  const { buf, pos } = queue;
  const kept = new PktBuf(QUEUE_MIN);
  for (let off = 0; off < pos; ) {
    const len = 1 + buf.readUInt32BE(off + 1);
    const channel = buf[off] === PqMsg.NotificationResponse ? channelOf(buf, off, len) : null;
    if (channel === null || channels.has(channel)) kept.putSlice(buf, off, len);
    off += len;
  }
  return kept;
}

/** Sends what was queued: the client's transaction has ended. A connection that is broken reports that later. */
export function sendNotifications(client: ClientSocket): void {
  const own = client.listening;
  if (own === null || own.queue === null || !isBetween(client, own)) return;
  const queue = own.narrowed ? narrowed(own, own.queue) : own.queue;
  own.queue = null;
  own.narrowed = false;
  if (queue.pos > 0 && !sendPacket(client, queue)) client.leaving = true;
}
