/*
 * What clients listen on by the listening connection of their pool (listen_mode = share): parts of the records of clients
 * and of listening servers. From format 3 on.
 */

import { nextOf } from '../../core/base/list';
import type { WallTime } from '../../core/base/time';
import { type ClientSocket, type PgPool, type ServerSocket, SocketState } from '../../core/pool/bouncer';
import type { ClientListening } from '../../core/pool/channels';
import { clientListening, insertChannel, poolListening } from '../../core/pool/listening';
import { poolList } from '../../core/pool/pool';
import { PktBuf } from '../../core/wire/pktbuf';
import { receivedTime, sentTime } from '../clock';
import { bytesOf, bytesText } from './bytes';

/** Whether it is a LISTEN, and the channel; null = all. */
type StatementTuple = [boolean, string | null];

/** Fields are left out where they are empty or false. */
export interface ClientListeningRecord {
  channels: string[];
  expected?: StatementTuple[];
  changes?: StatementTuple[];
  doubtful?: number;
  bound?: StatementTuple;
  missing?: boolean;
  /** since when its ReadyForQuery has been withheld */
  waiting?: WallTime;
  told?: boolean;
  noticeDue?: boolean;
  /** it has to end because notifications may have been lost */
  ending?: boolean;
  /** the notifications that wait for it, raw bytes */
  queue?: string;
}

export interface ServerListeningRecord {
  inForce: string[];
  /** the channels of the LISTENs that the server has not answered yet */
  sending: string[] | null;
  failure: string | null;
  /** it may still listen on other channels */
  tainted?: boolean;
}

type Statement = ClientListening['changes'][number];

function tuple({ listen, channel }: Statement): StatementTuple {
  return [listen, channel];
}

function statement([listen, channel]: StatementTuple): Statement {
  return { listen, channel };
}

export function clientListeningRecord(client: ClientSocket, own: ClientListening): ClientListeningRecord {
  const record: ClientListeningRecord = { channels: [...own.channels] };
  if (own.expected.length > 0) record.expected = own.expected.map(tuple);
  if (own.changes.length > 0) record.changes = own.changes.map(tuple);
  if (own.doubtful > 0) record.doubtful = own.doubtful;
  if (own.bound !== null) record.bound = tuple(own.bound);
  if (own.missing) record.missing = true;
  if (own.waiting) record.waiting = sentTime(own.waitStart);
  if (own.told) record.told = true;
  if (own.noticeDue) record.noticeDue = true;
  if (client.pool?.listening?.ending.has(client)) record.ending = true;
  if (own.queue !== null) record.queue = bytesText(own.queue.written());
  return record;
}

/** Restores what a client listens on; it must have its pool. */
export function readClientListening(record: ClientListeningRecord, client: ClientSocket): void {
  const own = clientListening(client);
  const shared = poolListening(client.pool as PgPool);
  for (const channel of record.channels) insertChannel(client, own, shared, channel);
  own.expected = (record.expected ?? []).map(statement);
  own.changes = (record.changes ?? []).map(statement);
  own.doubtful = record.doubtful ?? 0;
  own.bound = record.bound === undefined ? null : statement(record.bound);
  own.missing = record.missing === true;
  own.told = record.told === true;
  own.noticeDue = record.noticeDue === true;
  if (record.queue !== undefined) {
    own.queue = new PktBuf();
    own.queue.putBytes(bytesOf(record.queue));
    own.narrowed = true;
  }
  if (own.noticeDue) shared.noticeDue = true;
  if (record.ending) shared.ending.add(client);
  if (record.waiting === undefined) return;
  own.waiting = true;
  own.waitStart = receivedTime(record.waiting);
  shared.waiting.add(client);
}

/** @returns undefined for a server that does not listen for its pool */
export function serverListeningRecord(server: ServerSocket): ServerListeningRecord | undefined {
  const shared = server.pool.listening;
  if (server.state !== SocketState.SV_LISTEN || shared === null) return undefined;
  const { inForce, sending, failure, tainted } = shared;
  return { inForce: [...inForce], sending, failure, ...(tainted ? { tainted } : {}) };
}

/** Restores a listening server. @param dirty it must not be used for anything else */
export function readServerListening(record: ServerListeningRecord, server: ServerSocket, dirty: boolean): void {
  const shared = poolListening(server.pool);
  shared.server = server;
  for (const channel of record.inForce) shared.inForce.add(channel);
  shared.sending = record.sending;
  shared.failure = record.failure;
  shared.tainted = dirty || record.tainted === true;
}

/** After the last socket: finds out what the listening connections still have to do. */
export function settleListening(): void {
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    const shared = pool.listening;
    if (shared === null) continue;
    // the connection has not been handed over
    if (shared.server === null && shared.listeners.size > 0) shared.lost = true;
    const asked = new Set([...shared.inForce, ...(shared.sending ?? [])]);
    shared.dirty.clear();
    for (const channel of shared.channels.keys()) if (!asked.has(channel)) shared.dirty.add(channel);
    for (const channel of asked) if (!shared.channels.has(channel)) shared.dirty.add(channel);
  }
}
