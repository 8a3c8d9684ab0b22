/*
 * The prepared statements of connections: registering them, undoing the effects of a failed pipeline, removing them,
 * and listing them for a handover. session/ calls these functions; the packets are in session/prepared.ts.
 */

import { slogNoise, wantNoise } from '../base/log';
import { PoolMode } from '../config/choices';
import { cf } from '../config/settings';
import { connectionPoolMode } from './admission';
import type { AnySocket, ClientSocket, ServerSocket } from './bouncer';
import {
  ClientStatement,
  dropUnusedStatement,
  getPreparedStatement,
  NoteKind,
  type PgPreparedStatement,
  RequestNote,
  releasePreparedStatement,
  restorePreparedStatement,
  ServerStatement,
  ServerStatements,
} from './prepare';
import { type ResponseAction, UNNAMED, UNNAMED_AGAIN } from './requests';
import { isServerSocket } from './socket';

/** True if a client's next transaction may run on another server. In session mode, statements are left alone. */
export function serversChange(sk: AnySocket): boolean {
  return connectionPoolMode(sk) !== PoolMode.SESSION;
}

/** True if packets about named statements are rewritten. */
export function preparedStatementsEnabled(sk: AnySocket): boolean {
  return cf.maxPreparedStatements !== 0 && serversChange(sk);
}

/** Number of statements known on this connection, for SHOW. */
export function preparedCount(sk: AnySocket): number {
  return isServerSocket(sk) ? (sk.statements?.count ?? 0) : (sk.statements?.size ?? 0);
}

/** Registers a client's name for a query; the name must be free or about to be removed (closing). */
export function addClientStatement(client: ClientSocket, name: string, ps: PgPreparedStatement): ClientStatement {
  if (client.statements === null) client.statements = new Map();
  const statement = new ClientStatement(name, ps);
  client.statements.set(name, statement);
  return statement;
}

/** Removes one of a client's statements. @param client null = it has disconnected */
export function dropClientStatement(client: ClientSocket | null, statement: ClientStatement): void {
  if (client?.statements?.get(statement.name) === statement) client.statements.delete(statement.name);
  statement.release();
}

/** Removes all of a client's statements, and the packet that it was sending. */
export function freeClientStatements(client: ClientSocket): void {
  client.partial = null;
  client.unnamed = null;
  client.earlierUnnamed = null;
  client.unnamedSeq = 0;
  client.deallocating = null;
  const statements = client.statements;
  if (statements === null) return;
  for (const statement of statements.values()) statement.release();
  client.statements = null;
}

/** Registers a statement on a server. */
export function addServerStatement(server: ServerSocket, statement: ServerStatement): void {
  if (server.statements === null) server.statements = new ServerStatements();
  server.statements.add(statement);
}

function dropServerStatement(server: ServerSocket, statement: ServerStatement): void {
  if (server.statements?.find(statement.ps) !== statement) return;
  server.statements.remove(statement);
  releasePreparedStatement(statement.ps);
}

/** Removes all statements of a server that is being closed, including those held by its outstanding requests. */
export function freeServerStatements(server: ServerSocket): void {
  const requests = server.requests;
  for (const note of requests.allNotes()) settleNote(server, note);
  requests.clear();
  server.batch = null;
  const statements = server.statements;
  if (statements === null) return;
  for (let item = statements.lru.pop(); item !== null; item = statements.lru.pop()) releasePreparedStatement(item.ps);
  server.statements = null;
}

/**
 * Marks statements that the server can no longer use, or may have lost, so that each is closed and prepared again
 * before its next use.
 * @param queryId null = all statements of the server
 */
export function markStale(server: ServerSocket, queryId: number | null): void {
  const statements = server.statements;
  let item = statements?.lru.head ?? null;
  for (; item !== null; item = item.next as ServerStatement | null) {
    if (queryId === null || item.ps.queryId === queryId) item.stale = true;
  }
  // a statement being closed comes back if its Close is skipped
  for (const { server: statement } of server.requests.allNotes()) {
    if (statement !== null && (queryId === null || statement.ps.queryId === queryId)) statement.stale = true;
  }
}

/** The request was executed, or its outcome no longer matters. A statement removed by Close is gone for good. */
export function settleNote(server: ServerSocket, note: RequestNote): void {
  const { client } = note;
  switch (note.kind) {
    case NoteKind.PARSE:
      // its Close may already have been sent
      if (client !== null && !client.closing) client.settle();
      return;
    case NoteKind.DEALLOCATE:
      // an executed DEALLOCATE has already released the statement
      if (client !== null) client.settle();
      return;
    case NoteKind.CLOSE:
      if (note.server !== null) releasePreparedStatement(note.server.ps);
      if (client !== null) dropClientStatement(server.link, client);
      return;
    case NoteKind.UNLISTEN:
    case NoteKind.DUPLICATE:
  }
}

/** Removes the oldest request of a server, which has been answered. */
export function settleFirst(server: ServerSocket): void {
  const requests = server.requests;
  const note = requests.firstNote();
  if (note !== null) settleNote(server, note);
  requests.shift();
}

/** A Parse was not executed: the server does not have the statement. */
function undoParse(server: ServerSocket, note: RequestNote): void {
  const statement = note.server;
  if (statement !== null) {
    statement.gone = true;
    dropServerStatement(server, statement);
    if (wantNoise()) {
      slogNoise(
        server,
        `failed prepared statement '${statement.ps.name}' removed from server cache, ${preparedCount(server)} cached items`,
      );
    }
  }
  const named = note.client;
  if (named === null) return;
  named.settle();
  named.unsure = true;
}

/**
 * A Close was not executed: both sides still have the statement.
 * @param later the outstanding Closes after it
 */
function undoClose(
  server: ServerSocket,
  note: RequestNote,
  later: ReadonlyMap<PgPreparedStatement, RequestNote>,
): void {
  const statement = note.server;
  if (statement !== null) {
    const next = later.get(statement.ps);
    if (statement.gone) {
      releasePreparedStatement(statement.ps);
    } else if (next?.server?.gone === true) {
      // the later Close is for a Parse of the same name that was skipped together with this Close; it closes this
      // statement
      releasePreparedStatement(statement.ps);
      next.server = statement;
    } else if (server.statements?.find(statement.ps) !== undefined) {
      // a Parse after this Close has registered the statement again, and fails now: the server's state is unknown
      server.closeNeeded = true;
      releasePreparedStatement(statement.ps);
    } else {
      addServerStatement(server, statement);
      if (wantNoise()) {
        slogNoise(
          server,
          `prepared statement '${statement.ps.name}' added back to server cache, ${preparedCount(server)} cached items`,
        );
      }
    }
  }
  if (note.client !== null) keepClientStatement(server.link, note.client);
}

/** Brings back a client's statement that was not removed after all. */
function keepClientStatement(client: ClientSocket | null, statement: ClientStatement): void {
  if (client === null || statement.gone) {
    statement.release();
    return;
  }
  statement.settle();
  statement.unsure = true;
  if (client.statements === null) client.statements = new Map();
  const newer = client.statements.get(statement.name);
  if (newer === statement) return;
  if (newer !== undefined && !newer.unsure) {
    statement.release();
    return;
  }
  // the Parse after the Close was skipped too, and has been undone by now
  newer?.release();
  client.statements.set(statement.name, statement);
}

/** True if the server skipped the request that replaced its client's unnamed statement. @param failedAt as its `at` */
function skippedUnnamed({ link, requests }: ServerSocket, failedAt: number): boolean {
  const at = link?.earlierUnnamed?.at ?? -1;
  return at > failedAt && at < requests.total - requests.count;
}

/** The client's unnamed statement is the one before the request that was skipped. */
function restoreEarlier(server: ServerSocket): void {
  const client = server.link;
  const earlier = client?.earlierUnnamed ?? null;
  if (client === null || earlier === null) return;
  // a Parse for this client may have been skipped, too
  server.unnamedSeq = 0;
  client.unnamedSeq = earlier.unnamedSeq;
  client.unnamed = earlier.unnamed;
  client.unnamedLen = earlier.unnamedLen;
  client.deallocating = earlier.deallocating;
  client.earlierUnnamed = null;
}

/**
 * Drops the requests that the server skipped after an error, up to and including the first of these types, and undoes
 * their effects. It undoes the newest first, because a pipeline may prepare, evict and prepare the same query again.
 */
export function clearRequestsUntil(server: ServerSocket, typeA: number, typeB: number): void {
  const requests = server.requests;
  const failedAt = requests.total - requests.count;
  // the server has no unnamed statement after a Parse that failed
  const unnamedFailed = requests.count > 0 && requests.subjectAt(0) >= UNNAMED_AGAIN;
  const dropped = requests.clearUntil(typeA, typeB);
  if (wantNoise()) slogNoise(server, `clear_outstanding_requests_until_sync: still outstanding ${requests.count}`);
  if (!unnamedFailed && skippedUnnamed(server, failedAt)) restoreEarlier(server);
  else if (requests.droppedUnnamed !== 0 && !requests.hasUnnamedParse()) {
    // the server has no unnamed statement now, or an older statement that is unknown here
    server.unnamedSeq = 0;
    const client = server.link;
    if (requests.droppedUnnamed === UNNAMED && client !== null) {
      client.unnamedSeq = 0;
      client.deallocating = null;
    }
  }
  if (dropped === null) return;
  const later = requests.closes();
  for (let i = dropped.length - 1; i >= 0; i--) {
    const note = dropped[i] as RequestNote;
    if (note.kind === NoteKind.PARSE) undoParse(server, note);
    else if (note.kind === NoteKind.CLOSE) undoClose(server, note, later);
    else settleNote(server, note);
  }
}

/**
 * DEALLOCATE ALL or DISCARD ALL was executed: removes the statements of the server and its client, except those whose
 * Parse follows in the pipeline.
 */
export function deallocateAll(server: ServerSocket): void {
  const coming = new Set<ServerStatement | ClientStatement>();
  for (const note of server.requests.allNotes()) {
    if (note.kind !== NoteKind.PARSE) {
      // the server no longer has it: a skipped Close must not bring it back
      if (note.server !== null && !coming.has(note.server)) note.server.gone = true;
      if (note.client !== null && !coming.has(note.client)) note.client.release();
      continue;
    }
    if (note.server !== null) coming.add(note.server);
    if (note.client !== null) coming.add(note.client);
  }
  const onServer = server.statements;
  for (let item = onServer?.lru.head ?? null; item !== null; ) {
    const next = item.next as ServerStatement | null;
    if (!coming.has(item)) dropServerStatement(server, item);
    item = next;
  }
  const client = server.link;
  if (client === null || client.statements === null) return;
  for (const statement of client.statements.values()) {
    if (!coming.has(statement)) dropClientStatement(client, statement);
  }
}

/** A client's statement in the form for a handover. */
export interface ClientPrepared {
  /** the client's name for it, a byte string */
  name: string;
  /** ClientStatement.unsure */
  unsure: boolean;
  /** number of the query, the same on every connection of a process */
  queryId: number;
  /** the query with its NUL, the number of parameter types and the types; read-only */
  query: Buffer;
  /** PgPreparedStatement.reading */
  reading: string;
}

/** A server's statement in the form for a handover. Its name on the server is PGBOUNCER_<queryId>. */
export interface ServerPrepared {
  queryId: number;
  query: Buffer;
  reading: string;
  /** it has to be prepared again before its next use */
  stale: boolean;
}

/** The note of a server's request in the form for a handover; `at` is its distance from the oldest request. */
export interface RequestPrepared {
  at: number;
  /** a DUPLICATE is not handed over */
  kind: NoteKind;
  server: ServerPrepared | null;
  client: ClientPrepared | null;
}

function serverPrepared(statement: ServerStatement): ServerPrepared {
  const { queryId, queryAndParameters, reading } = statement.ps;
  return { queryId, query: queryAndParameters, reading, stale: statement.stale || statement.reading !== reading };
}

function clientPrepared(statement: ClientStatement): ClientPrepared {
  return {
    name: statement.name,
    unsure: statement.unsure,
    queryId: statement.ps.queryId,
    query: statement.ps.queryAndParameters,
    reading: statement.ps.reading,
  };
}

/** A client's statements, except those that an outstanding request removes: they are handed over with that request. */
export function clientPreparedEntries(client: ClientSocket): ClientPrepared[] {
  if (client.statements === null) return [];
  const entries: ClientPrepared[] = [];
  for (const statement of client.statements.values()) {
    if (!statement.closing) entries.push(clientPrepared(statement));
  }
  return entries;
}

/** A server's statements, least recently used first. */
export function serverPreparedEntries(server: ServerSocket): ServerPrepared[] {
  const entries: ServerPrepared[] = [];
  let item = server.statements?.lru.head ?? null;
  for (; item !== null; item = item.next as ServerStatement | null) entries.push(serverPrepared(item));
  return entries;
}

export function requestPreparedEntries(server: ServerSocket): RequestPrepared[] {
  const entries: RequestPrepared[] = [];
  server.requests.eachNote((note, at) => {
    const empty = note.server === null && note.client === null && note.kind !== NoteKind.UNLISTEN;
    if (note.kind === NoteKind.DUPLICATE || empty) return;
    entries.push({
      at,
      kind: note.kind,
      server: note.server === null ? null : serverPrepared(note.server),
      client: note.client === null ? null : clientPrepared(note.client),
    });
  });
  return entries;
}

/**
 * Gives a client the statements that it had in the old process. Queries may get other numbers here, which the client
 * does not see.
 */
export function restoreClientPrepared(client: ClientSocket, entries: readonly ClientPrepared[]): void {
  for (const { name, unsure, queryId, query, reading } of entries) {
    if (client.statements?.has(name) === true) continue;
    const ps = restorePreparedStatement(queryId, query, reading) ?? getPreparedStatement(query, reading);
    addClientStatement(client, name, ps).unsure = unsure;
  }
}

/**
 * Gives a server the statements that it has, least recently used first.
 * @returns false if this process uses one of the numbers for another query, or has another number for one of the
 *   queries. The server must then be closed as soon as possible (closeNeeded)
 */
export function restoreServerPrepared(server: ServerSocket, entries: readonly ServerPrepared[]): boolean {
  let fits = true;
  for (const { queryId, query, reading, stale } of entries) {
    const ps = restorePreparedStatement(queryId, query, reading);
    if (ps === null) {
      fits = false;
    } else if (server.statements?.find(ps) === undefined) {
      const statement = new ServerStatement(ps);
      statement.stale = stale;
      addServerStatement(server, statement);
    }
  }
  return fits;
}

/**
 * Restores the outstanding requests of a server that was taken over, with their notes. The statements of the server and
 * of its client (server.link), if any, must have been restored before.
 * @param requests type | action << 8, oldest first
 * @param subjects RequestQueue.subjectAt() of each; version 0.1.0 does not send them
 */
export function restoreRequests(
  server: ServerSocket,
  requests: readonly number[],
  entries: readonly RequestPrepared[],
  subjects: readonly number[] = [],
): void {
  const queue = server.requests;
  const notes = new Map(entries.map((entry) => [entry.at, entry]));
  requests.forEach((request, at) => {
    const entry = notes.get(at);
    const note = entry === undefined ? null : restoreNote(server, entry, queue.segment);
    queue.push(request & 0xff, ((request >> 8) & 3) as ResponseAction, note, subjects[at] ?? 0);
  });
}

function restoreNote(server: ServerSocket, entry: RequestPrepared, segment: number): RequestNote | null {
  if (entry.kind === NoteKind.UNLISTEN) return new RequestNote(entry.kind, null, null);
  const closing = entry.kind !== NoteKind.PARSE;
  let ofServer: ServerStatement | null = null;
  if (entry.server !== null) {
    const { queryId, query, reading } = entry.server;
    const ps = restorePreparedStatement(queryId, query, reading);
    if (ps !== null) {
      ofServer = closing ? new ServerStatement(ps) : (server.statements?.find(ps) ?? null);
      dropUnusedStatement(ps);
    }
  }
  let ofClient: ClientStatement | null = null;
  if (entry.client !== null) {
    const { name, queryId, query, reading } = entry.client;
    const ps = restorePreparedStatement(queryId, query, reading) ?? getPreparedStatement(query, reading);
    ofClient = closing ? new ClientStatement(name, ps) : (server.link?.statements?.get(name) ?? null);
    ofClient?.awaitAnswer(entry.kind === NoteKind.DEALLOCATE ? -1 : segment, closing);
    // until its Close or DEALLOCATE is answered, the client's next packet about that name may have to wait
    if (closing && ofClient !== null) addClosing(server.link, ofClient);
    dropUnusedStatement(ps);
  }
  return ofServer === null && ofClient === null ? null : new RequestNote(entry.kind, ofServer, ofClient);
}

function addClosing(client: ClientSocket | null, statement: ClientStatement): void {
  if (client === null || client.statements?.has(statement.name) === true) return;
  if (client.statements === null) client.statements = new Map();
  client.statements.set(statement.name, statement);
}
