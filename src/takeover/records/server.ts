/*
 * The record of a server connection. Its requests are restored when all sockets have been read, because they refer to
 * statements of the linked client.
 */

import { rememberAddress } from '../../core/link/connect';
import { countServer } from '../../core/pool/admission';
import type { ServerSocket } from '../../core/pool/bouncer';
import { Leftovers } from '../../core/pool/leftovers';
import { NoteKind } from '../../core/pool/prepare';
import type { RequestQueue } from '../../core/pool/requests';
import {
  type RequestPrepared,
  requestPreparedEntries,
  restoreRequests,
  restoreServerPrepared,
  serverPreparedEntries,
} from '../../core/pool/statements';
import { restoreUnnamedOfClient } from '../../core/session/unnamed';
import { ownBytesOf } from './bytes';
import type { Frame } from './frame';
import { readServerListening, type ServerListeningRecord, serverListeningRecord } from './listening';
import { type Described, readLoginUser, readSocket, type SocketRecord, socketRecord } from './socket';
import {
  type ClientStatementTuple,
  clientTuple,
  readClientTuple,
  readServerStatement,
  type SeeQuery,
} from './statement';

/**
 * The statements that an outstanding request affects: its index, whether it removes them, the statements of server and
 * client, and true for a DEALLOCATE, which version 0.1.0 treats as a Close. UNLISTEN * affects none, and has true at the
 * end.
 */
type RequestNoteTuple = [number, boolean, number | null, ClientStatementTuple | null, boolean?, boolean?];

/** Fields are left out where they do not apply. */
export interface ServerRecord extends SocketRecord {
  host?: string;
  /** requests: type | action << 8, the oldest first */
  requests?: number[];
  /** the queries that it has prepared, the least recently used first */
  serverStatements?: number[];
  notes?: RequestNoteTuple[];
  /* from 0.2.0 on */
  /** for each request, the number of the query whose statement it uses; 0 = none */
  subjects?: number[];
  /** numbers of statements that have to be prepared again before their next use */
  staleStatements?: number[];
  /** VarBit of each variable */
  varBits?: readonly number[];
  /** Leftovers.numbers() */
  leftovers?: number[];
  /** its unnamed statement is its client's, which may be too long for the client's record */
  unnamedOfClient?: true;
  /** what it has reported: whether it is a hot standby, and read-only by default; null = not reported */
  role?: [boolean | null, boolean | null];
  /* from format 3 on */
  /** it listens for all clients of its pool */
  listener?: ServerListeningRecord;
}

function requestList(queue: RequestQueue): number[] {
  const list: number[] = [];
  for (let at = 0; at < queue.count; at++) list.push(queue.entryAt(at));
  return list;
}

/** @param seen called for each query that the server has prepared, or that a request prepares or removes */
export function serverRecord(server: ServerSocket, described: Described, seen: SeeQuery): ServerRecord {
  const record: ServerRecord = socketRecord(server, described);
  const { host, hotStandby, link, readOnly, requests, unnamedSeq } = server;
  if (host !== null) record.host = host;
  if (hotStandby !== null || readOnly !== null) record.role = [hotStandby, readOnly];
  record.varBits = server.vars.bits;
  if (server.leftovers !== null) record.leftovers = server.leftovers.numbers();
  if (unnamedSeq !== 0 && link?.unnamedSeq === unnamedSeq) record.unnamedOfClient = true;
  const listener = serverListeningRecord(server);
  if (listener !== undefined) record.listener = listener;
  if (requests.count > 0) {
    record.requests = requestList(requests);
    record.subjects = record.requests.map((_, at) => requests.subjectAt(at));
  }
  if (server.statements !== null) addStatements(record, server, seen);
  const notes = requestPreparedEntries(server);
  if (notes.length > 0) record.notes = notes.map((note) => noteTuple(note, seen));
  return record;
}

function addStatements(record: ServerRecord, server: ServerSocket, seen: SeeQuery): void {
  const entries = serverPreparedEntries(server);
  entries.forEach(seen);
  record.serverStatements = entries.map((entry) => entry.queryId);
  const stale = entries.filter((entry) => entry.stale).map((entry) => entry.queryId);
  if (stale.length > 0) record.staleStatements = stale;
}

function noteTuple({ at, kind, server, client }: RequestPrepared, seen: SeeQuery): RequestNoteTuple {
  if (server !== null) seen(server);
  if (client !== null) seen(client);
  return [
    at,
    kind !== NoteKind.PARSE,
    server?.queryId ?? null,
    client === null ? null : clientTuple(client),
    kind === NoteKind.DEALLOCATE,
    kind === NoteKind.UNLISTEN,
  ];
}

/** Restores a server, except for its list, its bytes, its links and its requests. */
export function readServer(record: ServerRecord, server: ServerSocket, frame: Frame): void {
  readSocket(record, server, frame);
  frame.varBitsOf(record.varBits, server);
  if (record.leftovers !== undefined) {
    server.leftovers = new Leftovers();
    server.leftovers.restore(record.leftovers);
  }
  server.login = null;
  server.cancelKey = ownBytesOf(record.cancelKey);
  server.host = record.host ?? null;
  rememberAddress(server, server.host);
  [server.hotStandby, server.readOnly] = record.role ?? [null, null];
  server.loginUser = readLoginUser(record, server.pool.user, null, frame);
  countServer(server);
  if (frame.isOutdated(server)) server.closeNeeded = true;
  const untracked = frame.hasUntracked(record.v, record.varBits);
  if (record.listener !== undefined) readServerListening(record.listener, server, untracked);
  else if (untracked) server.closeNeeded = true;
  if (record.serverStatements === undefined) return;
  const stale = new Set(record.staleStatements ?? []);
  const entries = record.serverStatements.map((queryId) => readServerStatement(queryId, stale.has(queryId), frame));
  if (!restoreServerPrepared(server, entries)) server.closeNeeded = true;
}

/** For a server that is linked again: restores its requests, and that its unnamed statement is its client's. */
export function readRequests(record: ServerRecord, server: ServerSocket, frame: Frame): void {
  if (record.requests !== undefined) {
    const notes = (record.notes ?? []).map((note) => readNote(note, frame));
    restoreRequests(server, record.requests, notes, record.subjects);
  }
  if (record.unnamedOfClient) restoreUnnamedOfClient(server);
}

function kindOf([, closing, , , deallocate, unlisten]: RequestNoteTuple): NoteKind {
  if (unlisten) return NoteKind.UNLISTEN;
  if (deallocate) return NoteKind.DEALLOCATE;
  return closing ? NoteKind.CLOSE : NoteKind.PARSE;
}

function readNote(tuple: RequestNoteTuple, frame: Frame): RequestPrepared {
  const [at, , server, client] = tuple;
  return {
    at,
    kind: kindOf(tuple),
    server: server === null ? null : readServerStatement(server, false, frame),
    client: client === null ? null : readClientTuple(client, frame),
  };
}
