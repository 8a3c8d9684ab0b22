/*
 * The channels that clients share (listen_mode = share): what each client listens on, and what the listening server
 * connection of its pool has to do. Records only: link/listen-share.ts acts on them at the end of the turn, and
 * session/listen.ts finds out what clients have executed.
 */

import { equalNoCase, hasNonAscii } from '../base/strutil';
import type { ClientSocket, PgPool, ServerSocket } from './bouncer';
import { ClientListening, Listening } from './channels';
import { touchPool } from './pool';
import { Var } from './varcache';

/** Most channels of a client: beyond, it is disconnected. PostgreSQL has no limit. */
export const CHANNELS_MAX = 1000;

/** After so many connections that ended before they listened, the next is not used at once. */
const FAILURES_MAX = 3;

/** What the clients of a pool listen on. */
export type PoolListening = Listening<ClientSocket, ServerSocket>;

/** The record of a pool, created if missing. */
export function poolListening(pool: PgPool): PoolListening {
  pool.listening ??= new Listening();
  return pool.listening;
}

/** The record of a client, created if missing. */
export function clientListening(client: ClientSocket): ClientListening {
  client.listening ??= new ClientListening();
  return client.listening;
}

/** True if a listening connection is to be opened. */
export function wantsListener({ listening }: PgPool): boolean {
  return listening !== null && listening.server === null && listening.channels.size > 0;
}

/** True if the client has the encoding in which the listening connection sends notifications. */
export function sameEncoding(client: ClientSocket, { encoding }: PoolListening): boolean {
  const own = client.vars.get(Var.CLIENT_ENCODING) ?? '';
  return own === encoding || equalNoCase(own, encoding);
}

/** What addChannel() has done. */
export const enum Added {
  YES,
  TOO_MANY,
  /** its name has characters that the listening connection would understand in another way */
  ENCODING,
}

/** A client listens on a channel from now on. */
export function addChannel(client: ClientSocket, own: ClientListening, channel: string): Added {
  if (own.channels.has(channel)) return Added.YES;
  if (own.channels.size >= CHANNELS_MAX) return Added.TOO_MANY;
  const shared = poolListening(client.pool as PgPool);
  if (shared.listeners.size === 0) shared.encoding = client.vars.get(Var.CLIENT_ENCODING) ?? '';
  else if (hasNonAscii(channel) && !sameEncoding(client, shared)) return Added.ENCODING;
  insertChannel(client, own, shared, channel);
  return Added.YES;
}

/** A client listens on a channel, which the listening connection understands as the client does. */
export function insertChannel(
  client: ClientSocket,
  own: ClientListening,
  shared: PoolListening,
  channel: string,
): void {
  own.channels.add(channel);
  shared.listeners.add(client);
  const clients = shared.channels.get(channel);
  if (clients !== undefined) clients.add(client);
  else shared.channels.set(channel, new Set([client]));
  if (shared.inForce.has(channel)) return;
  own.missing = true;
  shared.dirty.add(channel);
  touchPool(client.pool as PgPool);
}

/** A client does not listen on a channel any more. */
export function removeChannel(client: ClientSocket, own: ClientListening, channel: string): void {
  if (!own.channels.delete(channel)) return;
  own.narrowed = own.queue !== null;
  const pool = client.pool as PgPool;
  const shared = poolListening(pool);
  if (own.channels.size === 0) {
    shared.listeners.delete(client);
    shared.ending.delete(client);
    own.told = own.noticeDue = false;
  }
  const clients = shared.channels.get(channel);
  clients?.delete(client);
  if (clients === undefined || clients.size > 0) return;
  shared.channels.delete(channel);
  shared.dirty.add(channel);
  touchPool(pool);
}

/** A client listens on nothing any more. */
export function removeChannels(client: ClientSocket, own: ClientListening): void {
  for (const channel of own.channels) removeChannel(client, own, channel);
}

/** A client is being disconnected, or replaced by another record of a handover. */
export function forgetListener(client: ClientSocket): void {
  const own = client.listening;
  if (own === null) return;
  removeChannels(client, own);
  client.pool?.listening?.waiting.delete(client);
  client.listening = null;
}

/** True if the server listens on all channels of the client. */
export function isInForce(own: ClientListening, { inForce }: PoolListening): boolean {
  for (const channel of own.channels) if (!inForce.has(channel)) return false;
  return true;
}

/**
 * A listening connection is being closed. Clients that wait for their first LISTEN go on waiting.
 * @param retryAt usec; when the next connection may be used if several have failed
 */
export function listenerClosed(server: ServerSocket, retryAt: number): void {
  const { pool } = server;
  const shared = pool.listening;
  if (shared?.server !== server) return;
  if (shared.inForce.size > 0) shared.lost = true;
  else if (++shared.failures >= FAILURES_MAX) shared.retryAt = retryAt;
  shared.server = null;
  shared.tainted = false;
  shared.sending = null;
  shared.failure = null;
  shared.inForce.clear();
  shared.dirty.clear();
  for (const channel of shared.channels.keys()) shared.dirty.add(channel);
  touchPool(pool);
}
