/*
 * The answers of the console: a result set, a command tag, an error. Every handler of a command returns the result of
 * one of these functions. False means that the answer could not be sent and the caller has to disconnect the client.
 *
 * The same handlers serve both protocols. In the extended protocol, Describe sends RowDescription and Sync sends
 * ReadyForQuery. Bind chooses the binary columns, and Execute the number of rows.
 */

import { logError } from '../core/base/log';
import { sendPoolerError } from '../core/link/pooler-error';
import { sendPacket } from '../core/net/sbuf';
import type { ClientSocket } from '../core/pool/bouncer';
import type { ConsolePortal, ConsoleSession } from '../core/pool/console-session';
import { isDead } from '../core/pool/socket';
import {
  type ColumnValue,
  writeBare,
  writeCommandComplete,
  writeDataRow,
  writeReadyForQuery,
  writeRowDescription,
} from '../core/wire/messages';
import { NEW_HEADER_LEN, PqMsg } from '../core/wire/packets';
import { type PktBuf, pktbufTemp } from '../core/wire/pktbuf';
import type { Columns } from './columns';

/** Longest error text in bytes; it may quote a whole query. */
const ERROR_MAX = 1023;
/** Most bytes of rows kept for further Executes, over all portals of a client. */
const REST_MAX = 16 * 1024 * 1024;
/** SQLSTATE program_limit_exceeded */
export const LIMIT_EXCEEDED = '54000';
/** SQLSTATE invalid_sql_statement_name */
export const NO_SUCH_STATEMENT = '26000';

/** The query being handled, quoted in the error about an invalid command. */
let currentQuery: string | null = null;

export function setCurrentQuery(query: string | null): void {
  currentQuery = query;
}

/** The client's session if the packet being answered belongs to the extended protocol, else null. */
export function extendedSession(admin: ClientSocket): ConsoleSession | null {
  return admin.console?.extended === true ? admin.console : null;
}

/** Drops a portal and its remaining rows. */
export function dropPortal(session: ConsoleSession, name: string): void {
  session.restBytes -= session.portals.get(name)?.rest?.length ?? 0;
  session.portals.delete(name);
}

/** Sync: ends the implicit transaction, and closes all portals with it. */
export function endPipeline(session: ConsoleSession): void {
  session.skipping = false;
  session.executing = null;
  for (const name of session.portals.keys()) dropPortal(session, name);
}

/** Ends the answer to an Execute, or to a packet that failed, and answers a Sync that arrived meanwhile. */
function endExtended(session: ConsoleSession, buf: PktBuf): void {
  session.executing = null;
  if (!session.syncWaits) return;
  session.syncWaits = false;
  endPipeline(session);
  writeReadyForQuery(buf);
}

/** @returns the offset behind the first `limit` DataRows of `rows`, or -1 if there are fewer */
function endOfRows(rows: Buffer, limit: number): number {
  let off = 0;
  for (let left = limit; left > 0; left--) {
    if (off + NEW_HEADER_LEN > rows.length) return -1;
    off += 1 + rows.readUInt32BE(off + 1);
  }
  return off;
}

/** Keeps the rows beyond the row limit of an Execute. @returns false if they exceed REST_MAX */
function keepRest(session: ConsoleSession, portal: ConsolePortal, rest: Buffer): boolean {
  session.restBytes -= portal.rest?.length ?? 0;
  portal.rest = null;
  if (session.restBytes + rest.length > REST_MAX) return false;
  portal.rest = Buffer.from(rest);
  session.restBytes += rest.length;
  return true;
}

/** Sends the rows in `buf`, which holds nothing else, up to the row limit of Execute. */
function sendRows(admin: ClientSocket, session: ConsoleSession, buf: PktBuf): boolean {
  const portal = session.executing;
  const rows = buf.written();
  const end = portal === null || portal.limit === 0 ? -1 : endOfRows(rows, portal.limit);
  if (portal === null || end < 0) return adminFlush(admin, buf, 'SHOW');
  if (!keepRest(session, portal, rows.subarray(end))) {
    return adminError(admin, 'too many rows for an Execute with a row limit', LIMIT_EXCEEDED);
  }
  buf.pos = end;
  writeBare(buf, PqMsg.PortalSuspended);
  endExtended(session, buf);
  return sendPacket(admin, buf);
}

/** Answers a further Execute of a portal, from the rows that were kept. */
export function sendRest(admin: ClientSocket, session: ConsoleSession, portal: ConsolePortal): boolean {
  const rest = portal.rest as Buffer;
  session.restBytes -= rest.length;
  portal.rest = null;
  session.executing = portal;
  const buf = pktbufTemp();
  buf.putBytes(rest);
  return sendRows(admin, session, buf);
}

/** Sends an ERROR, then ReadyForQuery; the extended protocol leaves ReadyForQuery to Sync. Does not log. */
export function adminFail(admin: ClientSocket, message: string, sqlstate: string | null): boolean {
  const session = extendedSession(admin);
  if (session === null) return sendPoolerError(admin, true, false, sqlstate, message);
  const ready = session.syncWaits;
  session.skipping = !ready;
  session.executing = null;
  session.syncWaits = false;
  if (ready) endPipeline(session);
  return sendPoolerError(admin, ready, false, sqlstate, message);
}

/** Logs and sends an ERROR, by default with SQLSTATE 08P01. */
export function adminError(admin: ClientSocket, message: string, sqlstate: string | null = null): boolean {
  const text = message.slice(0, ERROR_MAX);
  logError(text);
  return adminFail(admin, text, sqlstate);
}

/** The error for a user in stats_users that issues a command reserved for admin_users. */
export function accessError(admin: ClientSocket): boolean {
  return adminError(admin, 'admin access needed');
}

export function syntaxError(admin: ClientSocket): boolean {
  return adminError(admin, `invalid command '${currentQuery ?? '<no query>'}', use SHOW HELP;`);
}

/** Ends the answer in `buf` with a command tag and sends it. */
export function adminFlush(admin: ClientSocket, buf: PktBuf, tag: string): boolean {
  const session = extendedSession(admin);
  writeCommandComplete(buf, tag);
  if (session === null) writeReadyForQuery(buf);
  else if (!buf.failed) endExtended(session, buf);
  if (buf.failed) return adminFail(admin, 'result prepare failed', null);
  return sendPacket(admin, buf);
}

/** Answers an empty query. */
export function adminEmpty(admin: ClientSocket): boolean {
  const buf = pktbufTemp();
  const session = extendedSession(admin);
  writeBare(buf, PqMsg.EmptyQueryResponse);
  if (session === null) writeReadyForQuery(buf);
  else endExtended(session, buf);
  return sendPacket(admin, buf);
}

/** Answers a command with its tag only. */
export function adminReady(admin: ClientSocket, tag: string): boolean {
  // the command may have closed this connection itself (KILL_CLIENT)
  if (isDead(admin)) return false;
  return adminFlush(admin, pktbufTemp(), tag);
}

/** Adds a row; its values are in the order of the columns. */
export type PutRow = (...values: ColumnValue[]) => void;

/** Answers with a result set. @param rows calls its parameter once per row */
export function sendResult(admin: ClientSocket, columns: Columns, rows: (put: PutRow) => void): boolean {
  const buf = pktbufTemp();
  const session = extendedSession(admin);
  if (session === null) writeRowDescription(buf, columns.types, columns.names);
  const formats = session?.executing?.formats ?? null;
  rows((...values) => writeDataRow(buf, columns.types, values, formats));
  return session === null || buf.failed ? adminFlush(admin, buf, 'SHOW') : sendRows(admin, session, buf);
}
