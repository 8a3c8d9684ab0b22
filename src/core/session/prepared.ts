/*
 * Prepared statements in transaction and statement pooling. Parse, Bind, Describe and Close of named statements are
 * rewritten to names that are the same on every server. A statement that a server lacks is prepared on it before use.
 * Called by client.ts with a packet, and by server.ts when made-up answers are due. Follows PgBouncer's prepare.c, and
 * the chapter "Extended Query" of PostgreSQL's protocol.
 */

import { slogDebug, slogError, slogInfo, slogNoise, wantDebug, wantNoise } from '../base/log';
import { native } from '../base/native';
import { Tally, tally } from '../base/tallies';
import { cf } from '../config/settings';
import { disconnectClient } from '../link/objects';
import { blockSource } from '../net/sbuf';
import { Batch } from '../pool/batch';
import type { ClientSocket, PgPool, ServerSocket } from '../pool/bouncer';
import { readingOf, readsClock } from '../pool/constants';
import {
  type ClientStatement,
  getPreparedStatement,
  NoteKind,
  type PgPreparedStatement,
  RequestNote,
  ServerStatement,
} from '../pool/prepare';
import { ResponseAction } from '../pool/requests';
import {
  addClientStatement,
  addServerStatement,
  dropClientStatement,
  preparedCount,
  settleFirst,
  settleNote,
} from '../pool/statements';
import { count, Stat } from '../pool/stats';
import {
  PACKET_CLOSE_COMPLETE,
  PACKET_PARSE_COMPLETE,
  writeCloseStmt,
  writeDescribeStmt,
  writeParse,
} from '../wire/messages';
import { findNul, nameAt, nameOf, nameText } from '../wire/names';
import { NEW_HEADER_LEN, PqMsg } from '../wire/packets';
import { type PktBuf, pktbufTemp } from '../wire/pktbuf';
import { pktDesc } from '../wire/reader';
import { Verdict } from '../wire/verdict';
import { parseDeallocation, queryDeallocation, sendDeallocate, substituteParse } from './deallocate';
import { supplyUnnamed, unnamedPacket } from './unnamed';

/** Most outstanding requests of a server. Closes are never sent to it, so without a limit they could pile up. */
const REQUESTS_MAX = 1 << 22;

/** A statement prepared on servers to make the Parse of a name already in use fail. No query has the number 0. */
export const TAKEN_NAME = 'PGBOUNCER_0';
/** Prefix for a name that the client does not have: no server has such a statement. */
export const UNKNOWN_PREFIX = 'PGBOUNCER_0_';
/** An empty query without parameters, as in Parse. */
const EMPTY_QUERY = Buffer.alloc(3);

function fakePacket(type: number): Buffer {
  return type === PqMsg.Parse ? PACKET_PARSE_COMPLETE : PACKET_CLOSE_COMPLETE;
}

/**
 * Sends the client bytes of the pooler. If it reads them slowly, `source` waits: they must not pile up here.
 * @returns false if the client's connection broke
 */
export function sendToClient(
  client: ClientSocket,
  source: ClientSocket | ServerSocket,
  bytes: Buffer,
  len: number,
): boolean {
  const res = native.sendBytes(client.handle, bytes, 0, len);
  if (res < 0) {
    disconnectClient(client, false, 'unexpected eof');
    return false;
  }
  if (res > 0) blockSource(source);
  return true;
}

/** Sends a made-up answer now. @returns false if the client's connection broke */
function answerNow(client: ClientSocket, type: number): boolean {
  const packet = fakePacket(type);
  return sendToClient(client, client, packet, packet.length);
}

/**
 * Answers a Parse or Close that is not sent to the server: at once if no request is outstanding, else after the
 * requests before it.
 * @returns false if the client was disconnected
 */
function answerInTurn(client: ClientSocket, server: ServerSocket, type: number, note: RequestNote): boolean {
  const requests = server.requests;
  if (requests.count === 0 && server.pktRemain === 0) {
    if (wantNoise()) slogNoise(client, `add_outstanding_request: queueing fake response right away ${pktDesc(type)}`);
    settleNote(server, note);
    return answerNow(client, type);
  }
  if (requests.count >= REQUESTS_MAX) {
    settleNote(server, note);
    disconnectClient(client, true, 'too many requests without an answer');
    return false;
  }
  requests.push(type, ResponseAction.FAKE, note);
  return true;
}

/**
 * Sends the made-up answers that are due, between two packets of the server.
 * @returns false if the client's connection broke; the server was disconnected too
 */
export function answerDueFakes(server: ServerSocket): boolean {
  const { requests, link } = server;
  return (
    requests.fakes === 0 || link === null || requests.firstAction() !== ResponseAction.FAKE || answerFakes(server, link)
  );
}

function answerFakes(server: ServerSocket, client: ClientSocket): boolean {
  const requests = server.requests;
  const buf = pktbufTemp();
  while (requests.count > 0 && requests.firstAction() === ResponseAction.FAKE) {
    const type = requests.firstType();
    if (wantDebug())
      slogDebug(client, `Queuing fake ${type === PqMsg.Parse ? 'ParseComplete' : 'CloseComplete'} packet`);
    buf.putBytes(fakePacket(type));
    settleFirst(server);
  }
  return sendToClient(client, server, buf.buf, buf.pos);
}

/** The query of a statement for a log line, as a C string. */
function queryText(ps: PgPreparedStatement): string {
  const bytes = ps.queryAndParameters;
  return bytes.toString('latin1', 0, bytes.indexOf(0));
}

/** Registers a statement to be prepared on a server; above the limit, closes the least recently used statements. */
function registerOnServer(server: ServerSocket, statement: ServerStatement, out: PktBuf): void {
  addServerStatement(server, statement);
  const statements = server.statements as NonNullable<ServerSocket['statements']>;
  if (wantNoise()) {
    const { name } = statement.ps;
    slogNoise(server, `prepared statement ${name} added to server cache, ${statements.count} cached items`);
  }
  while (statements.count > cf.maxPreparedStatements) {
    const oldest = statements.lru.head as ServerStatement;
    if (wantNoise()) slogNoise(server, `prepared statement '${oldest.ps.name}' deleted from server cache`);
    closeOnServer(server, oldest, out);
  }
}

/** Closes a statement on a server, which has too many of them or is about to prepare it again. */
export function closeOnServer(server: ServerSocket, statement: ServerStatement, out: PktBuf): void {
  writeCloseStmt(out, statement.ps.name);
  const note = new RequestNote(NoteKind.CLOSE, statement, null);
  server.requests.push(PqMsg.Close, ResponseAction.SKIP, note);
  server.statements?.remove(statement);
}

/** How the server would read the constants of a statement now: its client has not changed its variables for most. */
function currentReading(server: ServerSocket, ps: PgPreparedStatement): string {
  return ps.reading === '' || server.link === null ? ps.reading : readingOf(ps.queryAndParameters, server.link);
}

/** Prepares a statement on a server. @param named the client's statement, if the client gets the answer; else null */
export function parseOnServer(
  server: ServerSocket,
  ps: PgPreparedStatement,
  named: ClientStatement | null,
  out: PktBuf,
): void {
  count(server.pool.stats, Stat.PS_SERVER_PARSE_COUNT, 1);
  const fresh = new ServerStatement(ps);
  if (named === null) fresh.reading = currentReading(server, ps);
  const action = named === null ? ResponseAction.SKIP : ResponseAction.FORWARD;
  const requests = server.requests;
  requests.push(PqMsg.Parse, action, new RequestNote(NoteKind.PARSE, fresh, named));
  writeParse(out, ps.name, ps.queryAndParameters);
  registerOnServer(server, fresh, out);
}

/** Handles Parse of a name already in use: the server must reject it, unless it rejects it for another reason. */
function refuseParse(
  client: ClientSocket,
  server: ServerSocket,
  old: ClientStatement,
  body: Buffer,
  out: PktBuf,
): void {
  slogInfo(client, `prepared statement '${old.name}' was already prepared`);
  const requests = server.requests;
  writeCloseStmt(out, TAKEN_NAME);
  requests.push(PqMsg.Close, ResponseAction.SKIP);
  writeParse(out, TAKEN_NAME, EMPTY_QUERY);
  requests.push(PqMsg.Parse, ResponseAction.SKIP);
  writeParse(out, TAKEN_NAME, body);
  requests.push(PqMsg.Parse, ResponseAction.FORWARD, new RequestNote(NoteKind.DUPLICATE, null, old));
}

/** The part of a Parse after the name: query and parameter types; null = malformed. */
export function parseBody(packet: Buffer): Buffer | null {
  const nameEnd = packet.indexOf(0, NEW_HEADER_LEN);
  const queryEnd = packet.indexOf(0, nameEnd + 1);
  const typesAt = queryEnd + 3;
  if (queryEnd < 0 || typesAt > packet.length) return null;
  const bodyEnd = typesAt + 4 * packet.readUInt16BE(queryEnd + 1);
  return bodyEnd > packet.length ? null : packet.subarray(nameEnd + 1, bodyEnd);
}

/**
 * Handles a complete Parse of a named statement: forwards it under the common name, or answers it if the server already
 * has the statement.
 * @returns false if the client was disconnected
 */
function handleParse(
  client: ClientSocket,
  server: ServerSocket,
  buf: Buffer,
  off: number,
  len: number,
  out: PktBuf,
): boolean {
  const body = parseBody(buf.subarray(off, off + len));
  if (body === null) {
    disconnectClient(client, true, 'broken Parse packet');
    return false;
  }
  const name = nameOf(PqMsg.Parse, buf, off);
  count((client.pool as PgPool).stats, Stat.PS_CLIENT_PARSE_COUNT, 1);
  const old = client.statements?.get(name);
  if (old?.unsure === true) {
    dropClientStatement(client, old);
  } else if (old !== undefined && !old.closing) {
    refuseParse(client, server, old, body, out);
    return true;
  }

  const ps = getPreparedStatement(body, readingOf(body, client));
  const named = addClientStatement(client, name, ps);
  named.awaitAnswer(server.requests.segment, false);
  const there = server.statements?.find(ps);
  const dated = ps.reading !== '' && readsClock(body);
  const known = there !== undefined && isUsable(server, there) && !server.failedTx && !dated;
  if (wantDebug()) {
    const what = known ? 'mapping' : 'creating mapping for';
    slogDebug(client, `handle_parse_command: ${what} statement '${name}' to '${ps.name}' (query '${queryText(ps)}')`);
  }
  tally(known ? Tally.PREPARED_HIT : Tally.PREPARED_MISS);
  if (known) return answerInTurn(client, server, PqMsg.Parse, new RequestNote(NoteKind.PARSE, null, named));
  // in a failed transaction the server must reject it; 'today' may have become yesterday
  if (there !== undefined) closeOnServer(server, there, out);
  parseOnServer(server, ps, named, out);
  return true;
}

/** True if the server's statement is what its client has prepared, or would prepare now. */
function isUsable(server: ServerSocket, { stale, reading, ps }: ServerStatement): boolean {
  return !stale && (reading === ps.reading || reading === currentReading(server, ps));
}

/** The client's statement of that name, or null. */
function clientStatement(client: ClientSocket, name: string): PgPreparedStatement | null {
  const statement = client.statements?.get(name);
  if (statement !== undefined && !statement.closing) return statement.ps;
  slogInfo(client, `prepared statement '${name}' not found`);
  return null;
}

/** Prepares a statement that the server lacks; the client does not get the answer. */
function ensurePrepared(server: ServerSocket, ps: PgPreparedStatement, out: PktBuf): void {
  const statements = server.statements;
  const statement = statements?.find(ps);
  if (statement !== undefined && isUsable(server, statement)) {
    statements?.touch(statement);
    tally(Tally.PREPARED_HIT);
    return;
  }
  tally(Tally.PREPARED_MISS);
  if (wantDebug()) {
    slogDebug(
      server,
      `handle_bind_command: prepared statement '${ps.name}' (query '${queryText(ps)}') not available on server, ` +
        `preparing '${ps.name}' before bind`,
    );
  }
  if (statement !== undefined) closeOnServer(server, statement, out);
  parseOnServer(server, ps, null, out);
}

/** Starts recording at the start of a transaction, which is sent again if the server can no longer use a statement. */
function recordBatch(server: ServerSocket): void {
  const requests = server.requests;
  if (!requests.atStart()) return;
  if (server.batch === null) server.batch = new Batch();
  server.batch.begin(requests.total);
}

/**
 * With prepared_errors_fatal, disconnects a client that prepares a name already in use, or uses an unknown name.
 * @returns true if the client was disconnected
 */
function endForName(client: ClientSocket, type: number, name: string): boolean {
  const statement = client.statements?.get(name);
  const has = statement !== undefined && !statement.closing;
  if (type === PqMsg.Parse) {
    if (!has || statement.unsure) return false;
    slogError(client, `prepared statement '${name}' was already prepared`);
    disconnectClient(client, true, 'prepared statement name is already in use');
    return true;
  }
  if (has) return false;
  slogError(client, `prepared statement '${name}' not found`);
  disconnectClient(client, true, 'prepared statement did not exist');
  return true;
}

/**
 * Rewrites a Bind: a new header with the common name.
 * @returns number of bytes of the packet that it replaces, -1 if the client was disconnected
 */
function handleBind(
  client: ClientSocket,
  server: ServerSocket,
  buf: Buffer,
  off: number,
  len: number,
  out: PktBuf,
): number {
  const portal = off + NEW_HEADER_LEN;
  const at = nameAt(PqMsg.Bind, buf, off);
  const nameEnd = findNul(buf, at, buf.length);
  count((client.pool as PgPool).stats, Stat.PS_BIND_COUNT, 1);
  const name = nameText(buf, at, nameEnd);
  const ps = clientStatement(client, name);
  const requests = server.requests;
  const common = ps === null ? UNKNOWN_PREFIX + name : ps.name;
  // the next Execute is not of the unnamed statement
  client.deallocating = null;
  if (ps === null) {
    requests.push(PqMsg.Bind, ResponseAction.FORWARD);
  } else {
    recordBatch(server);
    ensurePrepared(server, ps, out);
    if (wantDebug()) {
      slogDebug(client, `handle_bind_command: mapped statement '${name}' (query '${queryText(ps)}') to '${common}'`);
    }
    requests.push(PqMsg.Bind, ResponseAction.FORWARD, null, ps.queryId);
  }
  out.putChar(PqMsg.Bind);
  // the length includes itself, but not the type byte
  out.putUint32(len - 1 - name.length + common.length);
  out.putSlice(buf, portal, at - portal);
  out.putString(common);
  return nameEnd + 1 - off;
}

/** Rewrites a Describe of a named statement. */
function handleDescribe(client: ClientSocket, server: ServerSocket, buf: Buffer, off: number, out: PktBuf): void {
  const name = nameOf(PqMsg.Describe, buf, off);
  const ps = clientStatement(client, name);
  const requests = server.requests;
  if (ps === null) {
    requests.push(PqMsg.Describe, ResponseAction.FORWARD);
    writeDescribeStmt(out, UNKNOWN_PREFIX + name);
    return;
  }
  recordBatch(server);
  ensurePrepared(server, ps, out);
  if (wantDebug()) {
    slogDebug(client, `handle_describe_command: mapped statement '${name}' (query '${queryText(ps)}') to '${ps.name}'`);
  }
  requests.push(PqMsg.Describe, ResponseAction.FORWARD, null, ps.queryId);
  writeDescribeStmt(out, ps.name);
}

/**
 * Rewrites Bind or Describe of an unnamed statement that the server lacks, a Parse of the unnamed statement, or a query
 * that deallocates.
 */
function rewriteOther(
  client: ClientSocket,
  server: ServerSocket,
  type: number,
  buf: Buffer,
  off: number,
  len: number,
  out: PktBuf,
): number {
  if (type === PqMsg.Query) {
    const what = queryDeallocation(client, buf, off, len);
    if (what === null) return 0;
    sendDeallocate(server, what, buf, off, len, out);
    return len;
  }
  if (type !== PqMsg.Parse) {
    supplyUnnamed(client, server, type, out);
    return 0;
  }
  const what = parseDeallocation(client, buf, off, len);
  const from = out.pos;
  if (what?.statement) substituteParse(buf, off, len, out);
  else out.putSlice(buf, off, len);
  if (!out.failed) unnamedPacket(client, type, out.buf, from, out.pos, out.pos - from);
  client.deallocating = what;
  return len;
}

/**
 * Rewrites a packet (Verdict.REWRITE) of a client that has a server.
 * @param out gets the bytes for the server
 * @returns number of bytes of the packet that these replace, from its start; -1 if the client was disconnected
 */
export function rewritePacket(
  client: ClientSocket,
  type: number,
  buf: Buffer,
  off: number,
  len: number,
  out: PktBuf,
): number {
  const server = client.link as ServerSocket;
  if (type === PqMsg.Query || buf[nameAt(type, buf, off)] === 0) {
    return rewriteOther(client, server, type, buf, off, len, out);
  }
  if (cf.preparedErrorsFatal !== 0 && endForName(client, type, nameOf(type, buf, off))) return -1;
  if (type === PqMsg.Bind) return handleBind(client, server, buf, off, len, out);
  if (type === PqMsg.Parse) return handleParse(client, server, buf, off, len, out) ? len : -1;
  handleDescribe(client, server, buf, off, out);
  return len;
}

/**
 * Handles Close of a named statement: frees the client's name. The statement stays on the servers, because other
 * clients may use it.
 */
export function closeStatement(client: ClientSocket, buf: Buffer, off: number): Verdict {
  const name = nameOf(PqMsg.Close, buf, off);
  const found = client.statements?.get(name);
  const named = found === undefined || found.closing ? null : found;
  if (named !== null && wantNoise()) {
    const left = preparedCount(client) - 1;
    slogNoise(
      client,
      `handle_close_command: removed '${name}' from cached prepared statements, items remaining ${left}`,
    );
  }
  const server = client.link;
  if (server === null) {
    if (named !== null) dropClientStatement(client, named);
    slogDebug(client, 'handle_close_statement_command: no outstanding requests so instantly answering client');
    return answerNow(client, PqMsg.Close) ? Verdict.CONSUMED : Verdict.DISCONNECTED;
  }
  // removed once the server has executed the requests before this one
  named?.awaitAnswer(server.requests.segment, true);
  const note = new RequestNote(NoteKind.CLOSE, null, named);
  return answerInTurn(client, server, PqMsg.Close, note) ? Verdict.CONSUMED : Verdict.DISCONNECTED;
}
