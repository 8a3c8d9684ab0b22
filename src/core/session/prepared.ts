/*
 * Prepared statements in transaction and statement pooling: Parse, Bind, Describe and Close of named statements are
 * rewritten to names that are the same on every server, and what a server lacks is prepared on it in front of its use.
 * Called by the client's side (client.ts) with a packet, by the server's side (server.ts) for answers to be made up.
 * Follows PgBouncer's prepare.c and the chapter "Extended Query" of PostgreSQL's protocol.
 */
import { slogDebug, slogError, slogNoise, wantDebug, wantNoise } from '../base/log';
import { native } from '../base/native';
import { cf } from '../config/settings';
import { blockSource } from '../net/sbuf';
import type { PgPool } from '../pool/pool';
import { getPreparedStatement, type PgPreparedStatement, RequestNote, ServerStatement } from '../pool/prepare';
import { type RequestQueue, ResponseAction } from '../pool/requests';
import type { PgSocket } from '../pool/socket';
import {
  addClientStatement,
  addServerStatement,
  dropClientStatement,
  preparedCount,
  settleFirst,
  settleNote,
} from '../pool/statements';
import { Stat } from '../pool/stats';
import {
  PACKET_CLOSE_COMPLETE,
  PACKET_PARSE_COMPLETE,
  writeCloseStmt,
  writeDescribeStmt,
  writeParse,
} from '../wire/messages';
import { NEW_HEADER_LEN, PqMsg, PqTarget } from '../wire/packets';
import { type PktBuf, pktbufTemp } from '../wire/pktbuf';
import { pktDesc } from '../wire/reader';
import { Act } from './act';
import { disconnectClient } from './objects';

/** Most unanswered requests of one server, so that Closes, which never reach it, cannot pile up for ever. */
const REQUESTS_MAX = 1 << 22;

/** What inspectPrepared found out about a packet. */
export const enum Inspect {
  /** not about a named statement: passes as it is */
  IGNORE,
  /** about a named statement, and enough of it is here */
  HANDLE,
  /** more of it is needed to know */
  MORE,
  /** about a named statement, and all of it is needed */
  WHOLE,
  /** all of it is here and it makes no sense */
  BROKEN,
}

/** Offset of the next NUL in [pos, limit), -1 when there is none. For names: they are short. */
function findNul(buf: Buffer, pos: number, limit: number): number {
  for (let i = pos; i < limit; i++) if (buf[i] === 0) return i;
  return -1;
}

/**
 * Looks whether Parse, Bind, Describe or Close names a statement.
 * @param off @param end the bytes that are here, from the packet's first on; may be less or more than the packet
 * @param len of the whole packet, header included
 */
export function inspectPrepared(
  client: PgSocket,
  type: number,
  buf: Buffer,
  off: number,
  end: number,
  len: number,
): Inspect {
  const whole = end - off >= len;
  const limit = whole ? off + len : end;
  const lacking = whole ? Inspect.BROKEN : Inspect.MORE;
  let name = off + NEW_HEADER_LEN;
  if (type === PqMsg.Bind) {
    name = findNul(buf, name, limit) + 1;
    if (name === 0) return lacking;
  } else if (type !== PqMsg.Parse) {
    if (name >= limit) return lacking;
    if (buf[name] !== PqTarget.Statement) return Inspect.IGNORE;
    name++;
  }
  if (name >= limit) return lacking;
  if (buf[name] === 0) return Inspect.IGNORE;
  const nameEnd = findNul(buf, name, limit);
  if (nameEnd < 0) return lacking;
  if (wantNoise()) {
    const what = type === PqMsg.Parse ? 'parse' : type === PqMsg.Bind ? 'bind' : 'describe_or_close';
    const text = buf.toString('latin1', name, nameEnd);
    slogNoise(client, `inspect_${what}_packet: type=${pktDesc(type)}, len=${len}, statement=${text}`);
  }
  // of a Bind only the names are needed; its parameters may be many
  return whole || type === PqMsg.Bind ? Inspect.HANDLE : Inspect.WHOLE;
}

/* ---- answers that no server gave ---- */

function fakePacket(type: number): Buffer {
  return type === PqMsg.Parse ? PACKET_PARSE_COMPLETE : PACKET_CLOSE_COMPLETE;
}

/** Sends a made-up answer now. @returns false when the client's connection broke */
function answerNow(client: PgSocket, type: number): boolean {
  const packet = fakePacket(type);
  const res = native.sendBytes(client.handle, packet, 0, packet.length);
  if (res < 0) {
    disconnectClient(client, false, 'unexpected eof');
    return false;
  }
  // a reader slower than its own requests must not pile up answers here
  if (res > 0) blockSource(client);
  return true;
}

/**
 * Answers a Parse or Close that the server does not get to see: now when nothing is under way, else when everything in
 * front of it is answered.
 * @returns false when the client was disconnected
 */
function answerInTurn(client: PgSocket, server: PgSocket, type: number, note: RequestNote): boolean {
  const requests = server.requests as RequestQueue;
  if (requests.count === 0 && server.pktRemain === 0) {
    if (wantNoise()) slogNoise(client, `add_outstanding_request: queueing fake response right away ${pktDesc(type)}`);
    settleNote(note);
    return answerNow(client, type);
  }
  if (requests.count >= REQUESTS_MAX) {
    settleNote(note);
    disconnectClient(client, true, 'too many requests without an answer');
    return false;
  }
  requests.push(type, ResponseAction.FAKE, note);
  return true;
}

/**
 * Sends the made-up answers whose turn has come, between two packets of the server.
 * @returns false when the client's connection broke, and the server's with it
 */
export function answerFakes(server: PgSocket, client: PgSocket): boolean {
  const requests = server.requests as RequestQueue;
  const buf = pktbufTemp();
  while (requests.count > 0 && requests.firstAction() === ResponseAction.FAKE) {
    const type = requests.firstType();
    if (wantDebug())
      slogDebug(client, `Queuing fake ${type === PqMsg.Parse ? 'ParseComplete' : 'CloseComplete'} packet`);
    buf.putBytes(fakePacket(type));
    settleFirst(requests);
  }
  const res = native.sendBytes(client.handle, buf.buf, 0, buf.pos);
  if (res < 0) {
    disconnectClient(client, false, 'unexpected eof');
    return false;
  }
  if (res > 0) blockSource(server);
  return true;
}

/* ---- packets ---- */

/** The query of a statement for a log line: as a C string. */
function queryText(ps: PgPreparedStatement): string {
  const bytes = ps.queryAndParameters;
  return bytes.toString('latin1', 0, bytes.indexOf(0));
}

/** Remembers what a server is about to prepare; above the limit the least recently used ones are closed. */
function registerOnServer(server: PgSocket, statement: ServerStatement, out: PktBuf): void {
  addServerStatement(server, statement);
  const statements = server.serverStatements as NonNullable<PgSocket['serverStatements']>;
  if (wantNoise()) {
    const { name } = statement.ps;
    slogNoise(server, `prepared statement ${name} added to server cache, ${statements.count} cached items`);
  }
  while (statements.count > cf.maxPreparedStatements) {
    const oldest = statements.lru.head as ServerStatement;
    writeCloseStmt(out, oldest.ps.name);
    const note = new RequestNote(true, oldest, null);
    (server.requests as RequestQueue).push(PqMsg.Close, ResponseAction.SKIP, note);
    if (wantNoise()) slogNoise(server, `prepared statement '${oldest.ps.name}' deleted from server cache`);
    statements.remove(oldest);
  }
}

/**
 * Parse of a named statement, all of it: sent on under the common name, or answered here when the server has it.
 * @returns false when the client was disconnected
 */
function handleParse(client: PgSocket, server: PgSocket, buf: Buffer, off: number, len: number, out: PktBuf): boolean {
  const packet = buf.subarray(off, off + len);
  const nameEnd = packet.indexOf(0, NEW_HEADER_LEN);
  const queryEnd = packet.indexOf(0, nameEnd + 1);
  const typesAt = queryEnd + 3;
  const bodyEnd = queryEnd < 0 || typesAt > len ? len + 1 : typesAt + 4 * packet.readUInt16BE(queryEnd + 1);
  if (bodyEnd > len) {
    disconnectClient(client, true, 'broken Parse packet');
    return false;
  }
  const name = packet.toString('latin1', NEW_HEADER_LEN, nameEnd);
  const old = client.clientStatements?.get(name);
  if (old?.unsure === true) {
    dropClientStatement(client, old);
  } else if (old !== undefined) {
    slogError(client, `prepared statement '${name}' was already prepared`);
    disconnectClient(client, true, 'prepared statement name is already in use');
    return false;
  }
  const stats = (client.pool as PgPool).stats;
  stats[Stat.PS_CLIENT_PARSE_COUNT] = (stats[Stat.PS_CLIENT_PARSE_COUNT] as number) + 1;

  const ps = getPreparedStatement(packet.subarray(nameEnd + 1, bodyEnd));
  const named = addClientStatement(client, name, ps);
  const known = server.serverStatements?.find(ps) !== undefined;
  if (wantDebug()) {
    const what = known ? 'mapping' : 'creating mapping for';
    slogDebug(client, `handle_parse_command: ${what} statement '${name}' to '${ps.name}' (query '${queryText(ps)}')`);
  }
  if (known) return answerInTurn(client, server, PqMsg.Parse, new RequestNote(false, null, named));

  writeParse(out, ps.name, ps.queryAndParameters);
  stats[Stat.PS_SERVER_PARSE_COUNT] = (stats[Stat.PS_SERVER_PARSE_COUNT] as number) + 1;
  const statement = new ServerStatement(ps);
  const note = new RequestNote(false, statement, named);
  (server.requests as RequestQueue).push(PqMsg.Parse, ResponseAction.FORWARD, note);
  registerOnServer(server, statement, out);
  return true;
}

/** What a client calls `name`; null when it was disconnected because that is nothing. */
function clientStatement(client: PgSocket, name: string): PgPreparedStatement | null {
  const statement = client.clientStatements?.get(name);
  if (statement !== undefined) return statement.ps;
  slogError(client, `prepared statement '${name}' not found`);
  disconnectClient(client, true, 'prepared statement did not exist');
  return null;
}

/** Has the server prepare a statement it lacks; the client does not see the answer to that. */
function ensurePrepared(client: PgSocket, server: PgSocket, ps: PgPreparedStatement, out: PktBuf): void {
  const statements = server.serverStatements;
  const statement = statements?.find(ps);
  if (statement !== undefined) {
    statements?.touch(statement);
    return;
  }
  if (wantDebug()) {
    slogDebug(
      server,
      `handle_bind_command: prepared statement '${ps.name}' (query '${queryText(ps)}') not available on server, ` +
        `preparing '${ps.name}' before bind`,
    );
  }
  const stats = (client.pool as PgPool).stats;
  stats[Stat.PS_SERVER_PARSE_COUNT] = (stats[Stat.PS_SERVER_PARSE_COUNT] as number) + 1;
  const fresh = new ServerStatement(ps);
  (server.requests as RequestQueue).push(PqMsg.Parse, ResponseAction.SKIP, new RequestNote(false, fresh, null));
  writeParse(out, ps.name, ps.queryAndParameters);
  registerOnServer(server, fresh, out);
}

/** Bind: a new header with the common name. @returns bytes of the packet that it replaces, -1 when the client is gone */
function handleBind(
  client: PgSocket,
  server: PgSocket,
  buf: Buffer,
  off: number,
  end: number,
  len: number,
  out: PktBuf,
): number {
  const limit = Math.min(end, off + len);
  const portal = off + NEW_HEADER_LEN;
  const nameAt = findNul(buf, portal, limit) + 1;
  const nameEnd = findNul(buf, nameAt, limit);
  const stats = (client.pool as PgPool).stats;
  stats[Stat.PS_BIND_COUNT] = (stats[Stat.PS_BIND_COUNT] as number) + 1;
  const name = buf.toString('latin1', nameAt, nameEnd);
  const ps = clientStatement(client, name);
  if (ps === null) return -1;
  ensurePrepared(client, server, ps, out);
  if (wantDebug()) {
    slogDebug(client, `handle_bind_command: mapped statement '${name}' (query '${queryText(ps)}') to '${ps.name}'`);
  }
  (server.requests as RequestQueue).push(PqMsg.Bind, ResponseAction.FORWARD);
  out.putChar(PqMsg.Bind);
  // the length counts itself, but not the type byte
  out.putUint32(len - 1 - name.length + ps.name.length);
  out.putSlice(buf, portal, nameAt - portal);
  out.putString(ps.name);
  return nameEnd + 1 - off;
}

/** Describe of a named statement. @returns false when the client was disconnected */
function handleDescribe(
  client: PgSocket,
  server: PgSocket,
  buf: Buffer,
  off: number,
  len: number,
  out: PktBuf,
): boolean {
  const nameAt = off + NEW_HEADER_LEN + 1;
  const name = buf.toString('latin1', nameAt, findNul(buf, nameAt, off + len));
  const ps = clientStatement(client, name);
  if (ps === null) return false;
  ensurePrepared(client, server, ps, out);
  if (wantDebug()) {
    slogDebug(client, `handle_describe_command: mapped statement '${name}' (query '${queryText(ps)}') to '${ps.name}'`);
  }
  (server.requests as RequestQueue).push(PqMsg.Describe, ResponseAction.FORWARD);
  writeDescribeStmt(out, ps.name);
  return true;
}

/**
 * A Parse, Bind or Describe that inspectPrepared said to handle, of a client that has a server.
 * @param out where the bytes for the server go
 * @returns how many bytes of the packet that replaces, from its first on (all but for Bind); -1 when the client is gone
 */
export function rewritePacket(
  client: PgSocket,
  type: number,
  buf: Buffer,
  off: number,
  end: number,
  len: number,
  out: PktBuf,
): number {
  const server = client.link as PgSocket;
  if (type === PqMsg.Bind) return handleBind(client, server, buf, off, end, len, out);
  const handle = type === PqMsg.Parse ? handleParse : handleDescribe;
  return handle(client, server, buf, off, len, out) ? len : -1;
}

/**
 * Close of a named statement: the client's name is free again; the statement stays on the servers, because other clients
 * may use it.
 */
export function closeStatement(client: PgSocket, buf: Buffer, off: number, len: number): Act {
  const nameAt = off + NEW_HEADER_LEN + 1;
  const name = buf.toString('latin1', nameAt, findNul(buf, nameAt, off + len));
  const named = client.clientStatements?.get(name) ?? null;
  if (named !== null) {
    client.clientStatements?.delete(name);
    if (wantNoise()) {
      const left = preparedCount(client);
      slogNoise(
        client,
        `handle_close_command: removed '${name}' from cached prepared statements, items remaining ${left}`,
      );
    }
  }
  // keeps the name's query until the server got past the requests in front of this one
  const note = new RequestNote(true, null, named);
  const server = client.link;
  if (server === null) {
    settleNote(note);
    slogDebug(client, 'handle_close_statement_command: no outstanding requests so instantly answering client');
    return answerNow(client, PqMsg.Close) ? Act.SKIP : Act.DEAD;
  }
  return answerInTurn(client, server, PqMsg.Close, note) ? Act.SKIP : Act.DEAD;
}
