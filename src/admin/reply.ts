/*
 * How the console answers: a result set, a command tag, an error. Every handler of a command returns what these return:
 * false means that the answer could not be delivered, and that the caller has to end the connection.
 */
import { logError } from '../core/base/log';
import { sendPacket } from '../core/net/sbuf';
import { isDead, type PgSocket } from '../core/pool/socket';
import { sendPoolerError } from '../core/session/objects';
import {
  type ColumnValue,
  writeCommandComplete,
  writeDataRow,
  writeReadyForQuery,
  writeRowDescription,
} from '../core/wire/messages';
import { type PktBuf, pktbufTemp } from '../core/wire/pktbuf';
import type { Columns } from './columns';

/** Longest error text in bytes; it may quote a whole query. */
const ERROR_MAX = 1023;

/** The query that is being handled, for the message about one that makes no sense. */
let currentQuery: string | null = null;

export function setCurrentQuery(query: string | null): void {
  currentQuery = query;
}

/** Logs and sends an ERROR, SQLSTATE 08P01 unless another is named, and is ready for the next query. */
export function adminError(admin: PgSocket, message: string, sqlstate: string | null = null): boolean {
  const text = message.slice(0, ERROR_MAX);
  logError(text);
  return sendPoolerError(admin, true, false, sqlstate, text);
}

/** What a user who only may look gets for a command that changes something. */
export function accessError(admin: PgSocket): boolean {
  return adminError(admin, 'admin access needed');
}

export function syntaxError(admin: PgSocket): boolean {
  return adminError(admin, `invalid command '${currentQuery ?? '<no query>'}', use SHOW HELP;`);
}

/** Ends the answer in `buf` with a command tag and sends it. */
export function adminFlush(admin: PgSocket, buf: PktBuf, tag: string): boolean {
  writeCommandComplete(buf, tag);
  writeReadyForQuery(buf);
  if (buf.failed) return sendPoolerError(admin, true, false, null, 'result prepare failed');
  return sendPacket(admin, buf);
}

/** Answers a command that has no result but its tag. */
export function adminReady(admin: PgSocket, tag: string): boolean {
  // the command may have been the end of this very connection (KILL_CLIENT)
  if (isDead(admin)) return false;
  return adminFlush(admin, pktbufTemp(), tag);
}

/** Takes the values of one row, in the order of the columns. */
export type PutRow = (...values: ColumnValue[]) => void;

/** Answers with a result set. @param rows calls its parameter once a row */
export function sendResult(admin: PgSocket, columns: Columns, rows: (put: PutRow) => void): boolean {
  const buf = pktbufTemp();
  writeRowDescription(buf, columns.types, columns.names);
  rows((...values) => writeDataRow(buf, columns.types, values));
  return adminFlush(admin, buf, 'SHOW');
}
