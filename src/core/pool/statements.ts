/*
 * The prepared statements of connections: registering, undoing what a failed pipeline left undone, forgetting, and lists
 * of them for a handover. session/ calls it; the packets are in session/prepared.ts.
 */
import { slogNoise, wantNoise } from '../base/log';
import { cf, PoolMode } from '../config/settings';
import { connectionPoolMode } from './limits';
import {
  ClientStatement,
  dropUnusedStatement,
  getPreparedStatement,
  type PgPreparedStatement,
  RequestNote,
  releasePreparedStatement,
  restorePreparedStatement,
  ServerStatement,
  ServerStatements,
} from './prepare';
import type { RequestQueue } from './requests';
import { isServerSocket, type PgSocket } from './socket';

/** Whether packets about named statements are rewritten: session pooling leaves them to client and server. */
export function preparedStatementsEnabled(sk: PgSocket): boolean {
  return cf.maxPreparedStatements !== 0 && connectionPoolMode(sk) !== PoolMode.SESSION;
}

/** Statements known on this connection: what SHOW prints. */
export function preparedCount(sk: PgSocket): number {
  return isServerSocket(sk) ? (sk.serverStatements?.count ?? 0) : (sk.clientStatements?.size ?? 0);
}

/* ---- clients ---- */

/** Remembers a client's name for a query; it must be free. */
export function addClientStatement(client: PgSocket, name: string, ps: PgPreparedStatement): ClientStatement {
  if (client.clientStatements === null) client.clientStatements = new Map();
  const statement = new ClientStatement(name, ps);
  client.clientStatements.set(name, statement);
  return statement;
}

/** Forgets one of a client's names. */
export function dropClientStatement(client: PgSocket, statement: ClientStatement): void {
  if (client.clientStatements?.get(statement.name) !== statement) return;
  client.clientStatements.delete(statement.name);
  releasePreparedStatement(statement.ps);
}

/** Forgets everything a client prepared, and the packet it was sending. */
export function freeClientStatements(client: PgSocket): void {
  client.collect = null;
  const statements = client.clientStatements;
  if (statements === null) return;
  for (const statement of statements.values()) releasePreparedStatement(statement.ps);
  client.clientStatements = null;
}

/* ---- servers ---- */

/** Remembers that a server has a statement. */
export function addServerStatement(server: PgSocket, statement: ServerStatement): void {
  if (server.serverStatements === null) server.serverStatements = new ServerStatements();
  server.serverStatements.add(statement);
}

function dropServerStatement(server: PgSocket, statement: ServerStatement): void {
  if (server.serverStatements?.find(statement.ps) !== statement) return;
  server.serverStatements.remove(statement);
  releasePreparedStatement(statement.ps);
}

/** Forgets everything about a server that goes away, with what its unanswered requests hold. */
export function freeServerStatements(server: PgSocket): void {
  const requests = server.requests as RequestQueue;
  for (const note of requests.allNotes()) settleNote(note);
  requests.clear();
  const statements = server.serverStatements;
  if (statements === null) return;
  for (let item = statements.lru.pop(); item !== null; item = statements.lru.pop()) releasePreparedStatement(item.ps);
  server.serverStatements = null;
}

/* ---- requests ---- */

/** A request was carried out: what a Close took away is gone for good. */
export function settleNote(note: RequestNote): void {
  if (!note.closing) return;
  if (note.server !== null) releasePreparedStatement(note.server.ps);
  if (note.client !== null) releasePreparedStatement(note.client.ps);
}

/** Takes the oldest request off a queue; it was answered. */
export function settleFirst(requests: RequestQueue): void {
  const note = requests.firstNote();
  if (note !== null) settleNote(note);
  requests.shift();
}

/** A Parse was not carried out: the server has no such statement. */
function undoParse(server: PgSocket, note: RequestNote): void {
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
  if (note.client !== null) note.client.unsure = true;
}

/** A Close was not carried out: both sides still have what it should have taken away. */
function undoClose(server: PgSocket, note: RequestNote): void {
  const statement = note.server;
  if (statement !== null) {
    if (statement.gone) {
      releasePreparedStatement(statement.ps);
    } else if (server.serverStatements?.find(statement.ps) !== undefined) {
      // prepared anew behind it, which fails now: what the server has then is unclear
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
  const named = note.client;
  if (named === null) return;
  const client = server.link;
  if (client !== null && client.clientStatements?.has(named.name) !== true) {
    if (client.clientStatements === null) client.clientStatements = new Map();
    named.unsure = true;
    client.clientStatements.set(named.name, named);
  } else {
    releasePreparedStatement(named.ps);
  }
}

/**
 * Drops requests that the server skipped after an error, up to and including the first of these types, and undoes what
 * they should have done: the last first, because a pipeline may prepare, evict and prepare the same again.
 */
export function clearRequestsUntil(server: PgSocket, typeA: number, typeB: number): void {
  const requests = server.requests as RequestQueue;
  const dropped = requests.clearUntil(typeA, typeB);
  if (wantNoise()) slogNoise(server, `clear_outstanding_requests_until_sync: still outstanding ${requests.count}`);
  if (dropped === null) return;
  for (let i = dropped.length - 1; i >= 0; i--) {
    const note = dropped[i] as RequestNote;
    if (note.closing) undoClose(server, note);
    else undoParse(server, note);
  }
}

/**
 * DEALLOCATE ALL or DISCARD ALL was carried out: forgets the statements of the server and its client, except those whose
 * Parse comes behind it in the pipeline.
 */
export function deallocateAll(server: PgSocket): void {
  const coming = new Set<ServerStatement | ClientStatement>();
  for (const note of (server.requests as RequestQueue).allNotes()) {
    if (note.closing) {
      // nothing there any more to add back
      if (note.server !== null && !coming.has(note.server)) note.server.gone = true;
      continue;
    }
    if (note.server !== null) coming.add(note.server);
    if (note.client !== null) coming.add(note.client);
  }
  const onServer = server.serverStatements;
  for (let item = onServer?.lru.head ?? null; item !== null; ) {
    const next = item.next as ServerStatement | null;
    if (!coming.has(item)) dropServerStatement(server, item);
    item = next;
  }
  const client = server.link;
  if (client === null || client.clientStatements === null) return;
  for (const statement of client.clientStatements.values()) {
    if (!coming.has(statement)) dropClientStatement(client, statement);
  }
}

/* ---- a handover ---- */

/** A client's statement, as another process can take it. */
export interface ClientPrepared {
  /** what the client calls it, a byte string */
  name: string;
  /** ClientStatement.unsure */
  unsure: boolean;
  /** number of the query: the same on every connection of a process */
  queryId: number;
  /** the query with its NUL, the number of parameter types and the types; not to be changed */
  query: Buffer;
}

/** A server's statement: it is called PGBOUNCER_<queryId> there. */
export interface ServerPrepared {
  queryId: number;
  query: Buffer;
}

/** What hangs on the request `at` places behind the oldest of a server. */
export interface RequestPrepared {
  at: number;
  closing: boolean;
  server: ServerPrepared | null;
  client: ClientPrepared | null;
}

function serverPrepared(statement: ServerStatement): ServerPrepared {
  return { queryId: statement.ps.queryId, query: statement.ps.queryAndParameters };
}

function clientPrepared(statement: ClientStatement): ClientPrepared {
  return {
    name: statement.name,
    unsure: statement.unsure,
    queryId: statement.ps.queryId,
    query: statement.ps.queryAndParameters,
  };
}

export function clientPreparedEntries(client: PgSocket): ClientPrepared[] {
  return client.clientStatements === null ? [] : [...client.clientStatements.values()].map(clientPrepared);
}

/** A server's statements, the least recently used first. */
export function serverPreparedEntries(server: PgSocket): ServerPrepared[] {
  const entries: ServerPrepared[] = [];
  let item = server.serverStatements?.lru.head ?? null;
  for (; item !== null; item = item.next as ServerStatement | null) entries.push(serverPrepared(item));
  return entries;
}

export function requestPreparedEntries(server: PgSocket): RequestPrepared[] {
  const requests = server.requests as RequestQueue;
  const entries: RequestPrepared[] = [];
  if (requests.allNotes().length === 0) return entries;
  for (let at = 0; at < requests.count; at++) {
    const note = requests.noteAt(at);
    if (note === null) continue;
    entries.push({
      at,
      closing: note.closing,
      server: note.server === null ? null : serverPrepared(note.server),
      client: note.client === null ? null : clientPrepared(note.client),
    });
  }
  return entries;
}

/**
 * Gives a client the statements it had in another process. Here a query may have another number: the client does not
 * know it.
 */
export function restoreClientPrepared(client: PgSocket, entries: readonly ClientPrepared[]): void {
  for (const { name, unsure, queryId, query } of entries) {
    if (client.clientStatements?.has(name) === true) continue;
    const ps = restorePreparedStatement(queryId, query) ?? getPreparedStatement(query);
    addClientStatement(client, name, ps).unsure = unsure;
  }
}

/**
 * Gives a server the statements it has, the least recently used first.
 * @returns false when this process uses one of the numbers for another query, or another number for one of the queries:
 *   the server must be closed as soon as possible (closeNeeded)
 */
export function restoreServerPrepared(server: PgSocket, entries: readonly ServerPrepared[]): boolean {
  let fits = true;
  for (const { queryId, query } of entries) {
    const ps = restorePreparedStatement(queryId, query);
    if (ps === null) fits = false;
    else if (server.serverStatements?.find(ps) === undefined) addServerStatement(server, new ServerStatement(ps));
  }
  return fits;
}

/**
 * The requests of a server that was taken over, with what hangs on them; after the statements of the server and, when it
 * has one, of its client (server.link) were restored.
 * @param requests type | action << 8, the oldest first
 */
export function restoreRequests(
  server: PgSocket,
  requests: readonly number[],
  entries: readonly RequestPrepared[],
): void {
  const queue = server.requests as RequestQueue;
  const notes = new Map(entries.map((entry) => [entry.at, entry]));
  requests.forEach((request, at) => {
    const entry = notes.get(at);
    queue.push(request & 0xff, (request >> 8) & 3, entry === undefined ? null : restoreNote(server, entry));
  });
}

function restoreNote(server: PgSocket, entry: RequestPrepared): RequestNote | null {
  const { closing } = entry;
  let ofServer: ServerStatement | null = null;
  if (entry.server !== null) {
    const ps = restorePreparedStatement(entry.server.queryId, entry.server.query);
    if (ps !== null) {
      ofServer = closing ? new ServerStatement(ps) : (server.serverStatements?.find(ps) ?? null);
      dropUnusedStatement(ps);
    }
  }
  let ofClient: ClientStatement | null = null;
  if (entry.client !== null) {
    const { name, queryId, query } = entry.client;
    const ps = restorePreparedStatement(queryId, query) ?? getPreparedStatement(query);
    ofClient = closing ? new ClientStatement(name, ps) : (server.link?.clientStatements?.get(name) ?? null);
    dropUnusedStatement(ps);
  }
  return ofServer === null && ofClient === null ? null : new RequestNote(closing, ofServer, ofClient);
}

export { newestQueryId, raiseQueryId } from './prepare';
