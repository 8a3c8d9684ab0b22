/*
 * The listening server connection of a pool (listen_mode = share). An idle server of the pool becomes it, and listens
 * on the channels of all clients. When it ends, another server does. life/janitor.ts calls this at the end of a turn,
 * for each pool that has changed. session/listening.ts calls this when the server has answered.
 */

import { nextOf } from '../base/list';
import { slogDebug, slogInfo, slogWarning, wantDebug } from '../base/log';
import { equalNoCase, hasNonAscii, pgQuoteLiteral } from '../base/strutil';
import { Tally, tally } from '../base/tallies';
import { getCachedTime } from '../base/time';
import { ListenLoss } from '../config/choices';
import { cf } from '../config/settings';
import { sbufContinue, sendPacket } from '../net/sbuf';
import { poolPoolSize } from '../pool/admission';
import { type ClientSocket, type PgPool, type ServerSocket, SocketState } from '../pool/bouncer';
import type { ClientListening } from '../pool/channels';
import { isInForce, type PoolListening, wantsListener } from '../pool/listening';
import { poolServerCount } from '../pool/pool';
import { isDead } from '../pool/socket';
import { changeServerState } from '../pool/states';
import { Var } from '../pool/varcache';
import { writeQuery, writeReadyForQuery, writeWarning } from '../wire/messages';
import { PKTBUF_MAX, PktBuf, pktbufTemp } from '../wire/pktbuf';
import { launchFor } from './launch';
import { notifyClient, sendNotifications } from './notifications';
import { disconnectClient, disconnectServer } from './objects';

/** The limit of a queue without listen_queue_size: what a packet buffer holds. */
const QUEUE_MOST = PKTBUF_MAX;
/** Most channels in one query. */
const BATCH_MAX = 500;
const LOST = 'notifications may have been lost: the listening server connection has ended';
/** SQLSTATE connection_failure */
const CONNECTION_FAILURE = '08006';
const SLOW = 'listen_queue_size exceeded: the client does not read its notifications';
/** SQLSTATE configuration_limit_exceeded */
const CONFIGURATION_LIMIT_EXCEEDED = '53400';

function quoteChannel(channel: string): string {
  return `"${channel.replaceAll('"', '""')}"`;
}

/** At the end of a turn: does what the clients of a pool want of its listening connection. */
export function serveListeners(pool: PgPool): void {
  const shared = pool.listening;
  if (shared === null) return;
  if (shared.lost) tellLost(shared);
  endClients(shared);
  if (wantsListener(pool)) takeServer(pool, shared);
  if (shared.server !== null && shared.sending === null) sendChanges(shared.server, shared);
  if (shared.server === null && shared.listeners.size === 0) pool.listening = null;
}

/** An idle server that can listen: a standby cannot. */
function usableServer(pool: PgPool): ServerSocket | null {
  for (let server = pool.idleServerList.head; server !== null; server = nextOf(server))
    if (!server.closeNeeded && server.ready && server.hotStandby !== true) return server;
  return null;
}

/** Makes an idle server the listening connection, or opens one. */
function takeServer(pool: PgPool, shared: PoolListening): void {
  if (getCachedTime() < shared.retryAt) return;
  const server = usableServer(pool);
  if (server === null) {
    launchFor(pool, 1);
    return;
  }
  changeServerState(server, SocketState.SV_LISTEN);
  server.ready = false;
  server.leftovers = null;
  server.unnamedSeq = 0;
  shared.server = server;
  slogInfo(server, 'listens for the clients of its pool');
}

/** Clients that rely on being notified have to know of the loss. */
function tellLost(shared: PoolListening): void {
  shared.lost = false;
  tally(Tally.LISTENER_LOST);
  for (const client of shared.listeners) {
    const own = client.listening;
    if (own === null || !own.told) continue;
    if (cf.listenLoss === ListenLoss.NOTICE) own.noticeDue = shared.noticeDue = true;
    else shared.ending.add(client);
  }
}

/** Ends the clients that have to be told so, and have no transaction in progress. */
function endClients(shared: PoolListening): void {
  for (const client of shared.ending) {
    if (isDead(client)) shared.ending.delete(client);
    else if (client.link === null) disconnectClient(client, true, LOST, CONNECTION_FAILURE);
  }
}

/** Gives the server the encoding of the notifications, with its first LISTEN. */
function encodingQuery(server: ServerSocket, { inForce, encoding }: PoolListening): string {
  const current = server.vars.get(Var.CLIENT_ENCODING) ?? '';
  if (encoding === '' || inForce.size > 0 || equalNoCase(encoding, current)) return '';
  return `SET client_encoding TO ${pgQuoteLiteral(encoding)};`;
}

/** Sends LISTEN and UNLISTEN for the channels that have changed. */
function sendChanges(server: ServerSocket, shared: PoolListening): void {
  if (shared.dirty.size === 0) {
    if (shared.channels.size === 0) giveBack(server, shared);
    return;
  }
  const encoding = encodingQuery(server, shared);
  // the server reads a whole query in the encoding that it had before
  const alone = encoding !== '' && [...shared.dirty].some(hasNonAscii);
  if (alone) {
    server.vars.set('client_encoding', shared.encoding);
    sendQuery(server, shared, encoding, []);
    return;
  }
  const sending: string[] = [];
  let sql = '';
  let count = 0;
  for (const channel of shared.dirty) {
    if (count === BATCH_MAX) break;
    shared.dirty.delete(channel);
    const wanted = shared.channels.has(channel);
    if (wanted === shared.inForce.has(channel)) continue;
    count++;
    sql += `${wanted ? 'LISTEN' : 'UNLISTEN'} ${quoteChannel(channel)};`;
    if (wanted) sending.push(channel);
    else shared.inForce.delete(channel);
  }
  if (count > 0) sendQuery(server, shared, encoding + sql, sending);
}

/** @param sending the channels that are in force when the query is answered */
function sendQuery(server: ServerSocket, shared: PoolListening, sql: string, sending: string[]): void {
  shared.sending = sending;
  const buf = pktbufTemp();
  if (wantDebug()) slogDebug(server, `listening: ${sql}`);
  writeQuery(buf, sql);
  if (!sendPacket(server, buf)) disconnectServer(server, false, 'LISTEN failed');
}

/** No client listens any more: the server goes back to its pool. */
function giveBack(server: ServerSocket, shared: PoolListening): void {
  const { pool } = server;
  const size = poolPoolSize(pool);
  shared.server = null;
  if (shared.tainted || (size > 0 && poolServerCount(pool) >= size)) {
    shared.tainted = false;
    disconnectServer(server, true, 'no client listens any more');
    return;
  }
  server.ready = true;
  changeServerState(server, SocketState.SV_IDLE);
}

/** The server has rejected a LISTEN that another server of the pool has accepted: ends the clients that wanted it. */
function listenFailed(server: ServerSocket, shared: PoolListening, sending: string[], failure: string): void {
  shared.sending = null;
  shared.failure = null;
  shared.tainted = true;
  for (const channel of sending)
    for (const client of shared.channels.get(channel) ?? [])
      disconnectClient(client, true, `LISTEN failed: ${failure}`);
  sendChanges(server, shared);
}

/** The server has executed what it was sent, or has failed to. */
export function listenerAnswered(server: ServerSocket, shared: PoolListening): void {
  const { sending, failure } = shared;
  if (sending === null) {
    disconnectServer(server, true, 'unexpected answer to LISTEN');
    return;
  }
  if (failure !== null) {
    listenFailed(server, shared, sending, failure);
    return;
  }
  shared.failures = 0;
  shared.sending = null;
  for (const channel of sending) shared.inForce.add(channel);
  for (const client of shared.waiting) {
    const own = client.listening;
    if (own !== null && isInForce(own, shared)) answer(client, own, shared);
  }
  sendChanges(server, shared);
  if (shared.noticeDue && shared.sending === null) tellListeners(shared);
}

/** Sends the client the ReadyForQuery that it waits for. */
function answer(client: ClientSocket, own: ClientListening, shared: PoolListening): void {
  shared.waiting.delete(client);
  own.waiting = own.missing = false;
  own.told = true;
  const buf = pktbufTemp();
  writeReadyForQuery(buf);
  if (!sendPacket(client, buf)) {
    disconnectClient(client, false, 'unexpected eof');
    return;
  }
  sendNotifications(client);
  sbufContinue(client);
}

/** All channels are in force again: the clients get a notice. */
function tellListeners(shared: PoolListening): void {
  shared.noticeDue = false;
  const notice = new PktBuf();
  writeWarning(notice, LOST, CONNECTION_FAILURE);
  for (const client of shared.listeners) {
    const own = client.listening;
    if (own === null || !own.noticeDue) continue;
    own.noticeDue = false;
    sendTo(client, own, notice.buf, 0, notice.pos, false);
  }
}

/** Sends a packet to a listening client, and ends a client that does not read. */
export function sendTo(
  client: ClientSocket,
  own: ClientListening,
  buf: Buffer,
  off: number,
  len: number,
  inArena: boolean,
): void {
  const waiting = notifyClient(client, own, buf, off, len, inArena);
  if (waiting <= (cf.listenQueueSize > 0 ? cf.listenQueueSize : QUEUE_MOST)) return;
  tally(Tally.LISTENER_SLOW);
  slogWarning(client, SLOW);
  disconnectClient(client, true, SLOW, CONFIGURATION_LIMIT_EXCEEDED);
}
