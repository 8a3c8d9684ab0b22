/*
 * LISTEN and UNLISTEN of a client that shares a listening connection (listen_mode = share). They are executed on the
 * client's server, whose tags and transaction status tell what has come into effect; the text tells the channels. The
 * client gets the end of the answer only when the listening connection listens, and until then none of its next requests
 * is sent: after LISTEN, a client looks for what is already there. Called by client.ts with requests, and by complete.ts
 * and server.ts with answers.
 */

import { arena } from '../base/native';
import { getCachedTime } from '../base/time';
import { ListenMode } from '../config/choices';
import { isPinned } from '../link/leftovers';
import { channelOf } from '../link/notifications';
import { sbufPause } from '../net/sbuf';
import { poolListenMode } from '../pool/admission';
import type { ClientSocket, PgPool, ServerSocket } from '../pool/bouncer';
import type { ChannelStatement, ClientListening } from '../pool/channels';
import { channelStatement, channelStatements } from '../pool/listen-text';
import {
  Added,
  addChannel,
  CHANNELS_MAX,
  clientListening,
  isInForce,
  poolListening,
  removeChannel,
  removeChannels,
} from '../pool/listening';
import { serversChange } from '../pool/statements';
import { Var } from '../pool/varcache';
import { COLLECT_MIN } from '../wire/limits';
import { findNul, nameText } from '../wire/names';
import { NEW_HEADER_LEN, PqMsg } from '../wire/packets';
import { Verdict } from '../wire/verdict';
import { holdPacket } from './inspect';
import { OTHER_ENCODING } from './listening';

/** Longest query text that is searched for LISTEN, in bytes. A LISTEN in a longer one ends its client. */
const LISTEN_TEXT_MAX = 64 * 1024;
const NOT_SUPPORTED = '0A000';
const LIMIT_EXCEEDED = '54000';

/** True if the LISTEN of this client goes to a shared connection, or earlier ones have. */
export function tracksListen(client: ClientSocket): boolean {
  if (client.listening === null && poolListenMode(client.pool as PgPool) !== ListenMode.SHARE) return false;
  return serversChange(client);
}

/** What a query needs before it gets a server. @returns NEED_MORE, REASSEMBLE, or FORWARD: enough of it has arrived */
export function awaitText(avail: number, len: number): Verdict {
  if (avail >= len || len > LISTEN_TEXT_MAX) return Verdict.FORWARD;
  return len < COLLECT_MIN ? Verdict.NEED_MORE : Verdict.REASSEMBLE;
}

/** True for the packets that begin something. */
function isRequest(type: number): boolean {
  return type !== PqMsg.Sync && type !== PqMsg.Flush && type !== PqMsg.Terminate;
}

/**
 * Makes a packet wait while an earlier LISTEN has not come into effect.
 * @returns null if the packet may be handled now
 */
export function holdBehindListen(client: ClientSocket, own: ClientListening, type: number): Verdict | null {
  if (own.waiting) {
    sbufPause(client);
    return Verdict.PAUSED;
  }
  const server = client.link;
  if (server === null || !isRequest(type)) return null;
  // after the tag of COMMIT nothing but `missing` tells of the LISTEN
  if (own.expected.length === 0 && own.changes.length === 0 && !own.missing) return null;
  if (server.requests.count === 0 || server.requests.owesSync() || server.copyMode) return null;
  return holdPacket(client, server);
}

function backslashes(client: ClientSocket): boolean {
  return client.vars.get(Var.STD_STRINGS) === 'off';
}

/**
 * What the next Execute of the unnamed portal does, by a Bind.
 * @param limit end of the bytes of the packet that have arrived; without its names nothing is known
 */
function boundStatement(client: ClientSocket, buf: Buffer, off: number, limit: number): ChannelStatement | null {
  const portal = off + NEW_HEADER_LEN;
  const name = portal + 1;
  const nameEnd = findNul(buf, name, limit);
  if (nameEnd < 0) return null;
  if (buf[portal] !== 0) return client.listening?.bound ?? null;
  if (nameEnd === name) {
    const { unnamed, unnamedLen } = client;
    if (unnamed === null || unnamedLen === 0 || unnamedLen > LISTEN_TEXT_MAX) return null;
    const first = (unnamed[0] as number) | 0x20;
    // l, u, white space, a comment: almost every other query is recognized without a copy
    if (first !== 0x6c && first !== 0x75 && first > 0x2f) return null;
    return channelStatement(unnamed.toString('latin1', 0, findNul(unnamed, 0, unnamedLen)));
  }
  const statement = client.statements?.get(nameText(buf, name, nameEnd));
  return statement?.ps.channelStatement ?? null;
}

/**
 * Notes the statements of a request that is about to be sent.
 * @param end end of the received bytes
 */
export function noteRequest(
  client: ClientSocket,
  type: number,
  buf: Buffer,
  off: number,
  end: number,
  len: number,
): void {
  if (!tracksListen(client)) return;
  if (type === PqMsg.Query) {
    if (len > LISTEN_TEXT_MAX || end - off < len) return;
    const text = buf.toString('latin1', off + NEW_HEADER_LEN, off + len - 1);
    const found = channelStatements(text, backslashes(client));
    if (found.length > 0) clientListening(client).expected.push(...found);
  } else if (type === PqMsg.Bind) {
    const bound = boundStatement(client, buf, off, Math.min(end, off + len));
    if (bound !== null || client.listening !== null) clientListening(client).bound = bound;
  } else if (type === PqMsg.Execute && client.listening !== null) {
    const { bound, expected } = client.listening;
    const unnamed = end - off <= NEW_HEADER_LEN || buf[off + NEW_HEADER_LEN] === 0;
    if (bound !== null && unnamed) expected.push(bound);
  }
}

function refuse(own: ClientListening, reason: string, sqlstate: string): void {
  own.refusal = { reason, sqlstate };
}

/** Notes LISTEN or UNLISTEN, which the next of the expected statements must be. */
function noteStatement(client: ClientSocket, listen: boolean): void {
  const statement = client.listening?.expected.shift();
  // the mode has changed: the client has channels from before
  if (listen && poolListenMode(client.pool as PgPool) !== ListenMode.SHARE) return;
  if (statement?.listen === listen) client.listening?.changes.push(statement);
  else if (listen || client.listening !== null) {
    const command = listen ? 'LISTEN' : 'UNLISTEN';
    refuse(clientListening(client), `the channel of ${command} is not known (listen_mode = share)`, NOT_SUPPORTED);
  }
}

/** Applies changes of a transaction that has been committed. @param reliable false: only LISTEN counts */
function apply(client: ClientSocket, own: ClientListening, changes: ChannelStatement[], reliable: boolean): void {
  for (const { listen, channel } of changes) {
    if (listen) {
      const added = addChannel(client, own, channel as string);
      if (added === Added.YES) continue;
      if (added === Added.ENCODING) refuse(own, OTHER_ENCODING, NOT_SUPPORTED);
      else refuse(own, `a client may listen on ${CHANNELS_MAX} channels (listen_mode = share)`, LIMIT_EXCEEDED);
      return;
    }
    if (!reliable) continue;
    if (channel === null) removeChannels(client, own);
    else removeChannel(client, own, channel);
  }
}

/** A transaction has been committed. Rather too many channels than too few, if a savepoint was rolled back. */
function commit(client: ClientSocket, own: ClientListening): void {
  const { changes, doubtful } = own;
  own.changes = [];
  own.doubtful = 0;
  apply(client, own, changes.slice(0, doubtful), false);
  apply(client, own, changes.slice(doubtful), true);
}

/** Notes a completed command by its tag. */
export function noteTag(client: ClientSocket, tag: string): void {
  const own = client.listening;
  switch (tag) {
    case 'LISTEN':
    case 'UNLISTEN':
      noteStatement(client, tag === 'LISTEN');
      return;
    case 'DISCARD ALL':
      own?.changes.push({ listen: false, channel: null });
      return;
    case 'ROLLBACK':
      if (own !== null) own.doubtful = own.changes.length;
      return;
    case 'COMMIT':
      if (own !== null) commit(client, own);
      return;
    default:
  }
}

/**
 * A query has ended: if the client listens on more than before, it has to wait until that is in force.
 * @param idle outside a transaction block
 * @param failed an error has arrived since the last ReadyForQuery
 */
export function listenQueryEnded(client: ClientSocket, server: ServerSocket, idle: boolean, failed: boolean): void {
  const own = client.listening as ClientListening;
  if (server.requests.count === 0) own.expected.length = 0;
  if (!idle) return;
  if (own.changes.length > 0) {
    // what was rolled back is gone, and so is the implicit transaction of a query that failed
    const changes = failed ? [] : own.changes.slice(own.doubtful);
    own.changes = [];
    own.doubtful = 0;
    apply(client, own, changes, true);
  }
  if (own.channels.size === 0) own.missing = false;
  if (own.channels.size === 0 || own.refusal !== null) return;
  const shared = poolListening(client.pool as PgPool);
  if (own.missing && server.requests.count === 0 && !isInForce(own, shared)) {
    own.waiting = true;
    own.waitStart = getCachedTime();
    shared.waiting.add(client);
    sbufPause(client);
    return;
  }
  own.missing = false;
  own.told = true;
}

/** What to do with a notification that arrives on a server of a client. */
export const enum Notification {
  FORWARD,
  DROP,
  MORE,
}

/**
 * Decides about a notification on an ordinary server, in the arena. The server listens until it is released, but the
 * listening connection sends the notifications, except those that precede the end of the LISTEN: its own NOTIFY.
 * @param end end of the received bytes
 */
export function serverNotification(server: ServerSocket, off: number, end: number, len: number): Notification {
  const client = server.link;
  if (client === null || poolListenMode(server.pool) !== ListenMode.SHARE || isPinned(server))
    return Notification.FORWARD;
  const own = client.listening;
  if (own === null || (own.changes.length === 0 && !own.missing)) return Notification.DROP;
  if (end - off < len) return Notification.MORE;
  const channel = channelOf(arena, off, len);
  const shared = channel !== null && poolListening(server.pool).inForce.has(channel);
  return shared ? Notification.DROP : Notification.FORWARD;
}
