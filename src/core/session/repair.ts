/*
 * Errors of servers about prepared statements. A statement that a server can no longer use, or has lost, is prepared
 * again. The transaction that met the error is sent again, if the client cannot tell the difference. Names known only
 * to servers are replaced by the client's. Called by server.ts with every ErrorResponse of a server that has a client.
 */

import { slogDebug } from '../base/log';
import { arena, native } from '../base/native';
import { disconnectServer } from '../link/objects';
import { blockSource } from '../net/sbuf';
import type { ClientSocket, ServerSocket } from '../pool/bouncer';
import { NoteKind, STATEMENT_NAME_PREFIX } from '../pool/prepare';
import { type Request, type RequestQueue, ResponseAction, UNNAMED_AGAIN } from '../pool/requests';
import { markStale } from '../pool/statements';
import { ErrField, NEW_HEADER_LEN, PqMsg, TxStatus } from '../wire/packets';
import { PktBuf } from '../wire/pktbuf';
import { PktReader } from '../wire/reader';
import { closeOnServer, parseOnServer, TAKEN_NAME, UNKNOWN_PREFIX } from './prepared';

const UNDEFINED_STATEMENT = '26000';
const DUPLICATE_STATEMENT = '42P05';
/** Among others: a Bind with another number of parameters than the statement has. */
const PROTOCOL_VIOLATION = '08P01';
const NOT_SUPPORTED = '0A000';
/** Syntax error or access rule violation. A Bind reports such errors when it analyses the statement again. */
const ANALYSIS_CLASS = '42';
/** The routine in which PostgreSQL detects that a statement's result has changed; the message may be translated. */
const REVALIDATE = 'RevalidateCachedQuery';

/** Length of ReadyForQuery. */
export const READY_LEN = NEW_HEADER_LEN + 1;

/** What to do with an ErrorResponse. */
export const enum ErrorFate {
  /** forward it unchanged */
  FORWARD,
  /** send renamedError() instead */
  RENAME,
  /** wait for the ReadyForQuery after it */
  MORE,
  /** drop both: the transaction has been sent again */
  REPEATED,
  /** drop both: the server's connection broke while sending it again */
  DEAD,
}

interface Fields {
  sqlstate: string;
  routine: string;
  message: string;
  /** position of the message in the packet, including its NUL */
  from: number;
  to: number;
}

function readFields(off: number, end: number): Fields {
  const fields: Fields = { sqlstate: '', routine: '', message: '', from: 0, to: 0 };
  const reader = new PktReader(arena, off, end);
  for (let field = reader.u8(); field !== 0; field = reader.u8()) {
    const from = reader.pos;
    const value = reader.str();
    if (value === null) break;
    if (field === ErrField.SqlState) fields.sqlstate = value;
    else if (field === ErrField.Routine) fields.routine = value;
    else if (field === ErrField.Message) Object.assign(fields, { message: value, from, to: reader.pos });
  }
  return fields;
}

const renamed = new PktBuf();

/** The packet of the last ErrorFate.RENAME. */
export function renamedError(): PktBuf {
  return renamed;
}

/** The client's name for the server's PGBOUNCER_<queryId>; null if it no longer has a name for it. */
function clientName(client: ClientSocket, queryId: number): string | null {
  for (const { name, ps } of client.statements?.values() ?? []) if (ps.queryId === queryId) return name;
  return null;
}

/** The message with the client's name instead of the server's. */
function renamedMessage(server: ServerSocket, fields: Fields): string {
  const { sqlstate, message } = fields;
  const requests = server.requests;
  const note = requests.firstNote();
  if (sqlstate === DUPLICATE_STATEMENT) {
    const name = note?.kind === NoteKind.DUPLICATE ? note.client?.name : undefined;
    return name === undefined ? message : message.replace(TAKEN_NAME, () => name);
  }
  const type = requests.firstType();
  if (sqlstate !== UNDEFINED_STATEMENT && sqlstate !== PROTOCOL_VIOLATION) return message;
  if (type !== PqMsg.Bind && type !== PqMsg.Describe) return message;
  const subject = requests.subjectAt(0);
  if (subject === 0) return message.replace(UNKNOWN_PREFIX, '');
  const name = clientName(server.link as ClientSocket, subject);
  return name === null ? message : message.replace(STATEMENT_NAME_PREFIX + subject, () => name);
}

function rename(server: ServerSocket, off: number, len: number, fields: Fields): ErrorFate {
  const message = renamedMessage(server, fields);
  if (message === fields.message) return ErrorFate.FORWARD;
  renamed.reset();
  renamed.startPacket(PqMsg.ErrorResponse);
  renamed.putSlice(arena, off + NEW_HEADER_LEN, fields.from - off - NEW_HEADER_LEN);
  renamed.putString(message);
  renamed.putSlice(arena, fields.to, off + len - fields.to);
  renamed.finishPacket();
  return ErrorFate.RENAME;
}

/**
 * True if the client describes the result, so that it learns about new columns; else it would expect the old ones. When a
 * Describe of the statement fails, the client has already received the types of its parameters.
 */
function asksForResult(requests: RequestQueue): boolean {
  return requests.firstType() === PqMsg.Bind && requests.count > 1 && (requests.entryAt(1) & 0xff) === PqMsg.Describe;
}

/** Sends the batch again, after a Close and a Parse of each of its unusable statements. */
function repeat(server: ServerSocket): ErrorFate {
  const requests = server.requests;
  const batch = server.batch as NonNullable<ServerSocket['batch']>;
  const all: Request[] = requests.takeAll();
  const out = new PktBuf();
  for (const { subject } of all) {
    if (subject === 0 || subject >= UNNAMED_AGAIN) continue;
    const statement = server.statements?.findById(subject);
    if (statement?.stale !== true) continue;
    closeOnServer(server, statement, out);
    parseOnServer(server, statement.ps, null, out);
  }
  for (const { type, action, note, subject } of all) requests.push(type, action, note, subject);
  out.putBytes(batch.bytes());
  batch.drop();
  const client = server.link as ClientSocket;
  const res = out.failed ? -1 : native.sendBytes(server.handle, out.buf, 0, out.pos);
  if (res < 0) {
    disconnectServer(server, false, 'server connection closed');
    return ErrorFate.DEAD;
  }
  if (res > 0) blockSource(client);
  return ErrorFate.REPEATED;
}

/** True if ReadyForQuery (idle) is at `off`; null if it has not arrived yet. */
function readyBehind(off: number, end: number): boolean | null {
  if (end <= off) return null;
  if (arena[off] !== PqMsg.ReadyForQuery) return false;
  return end - off < READY_LEN ? null : arena[off + NEW_HEADER_LEN] === TxStatus.Idle;
}

/** True if the server already has a statement with the common name of a query: a client has run PREPARE in SQL. */
function isNameTaken({ requests }: ServerSocket, { sqlstate }: Fields): boolean {
  const note = requests.firstNote();
  return sqlstate === DUPLICATE_STATEMENT && note?.kind === NoteKind.PARSE && note.server !== null;
}

/**
 * Marks the statements that the server cannot use.
 * @returns true if sending the transaction again helps, and the client cannot tell
 */
function learn(server: ServerSocket, fields: Fields): boolean {
  const requests = server.requests;
  const type = requests.firstType();
  if (type !== PqMsg.Bind && type !== PqMsg.Describe) return false;
  const subject = requests.subjectAt(0);
  if (subject === 0 || server.statements?.findById(subject) === undefined) return false;
  if (fields.sqlstate === UNDEFINED_STATEMENT) {
    // if one statement is lost, as after DEALLOCATE ALL in a function, assume that all are
    markStale(server, null);
    return true;
  }
  const changed = fields.sqlstate === NOT_SUPPORTED && fields.routine === REVALIDATE;
  // its parameters have the types of its first Parse, with which the changed tables cannot be used
  const outdated = fields.sqlstate.startsWith(ANALYSIS_CLASS);
  if (changed || outdated) markStale(server, subject);
  return changed && asksForResult(requests);
}

/**
 * Handles an ErrorResponse of a server that has a client, in the arena at [off, off + len). The bytes received so far
 * end at `end`. The failed request is the oldest one.
 */
export function statementError(server: ServerSocket, off: number, end: number, len: number): ErrorFate {
  const requests = server.requests;
  if (requests.count === 0 || requests.firstAction() === ResponseAction.FAKE) return ErrorFate.FORWARD;
  const fields = readFields(off + NEW_HEADER_LEN, off + len);
  if (isNameTaken(server, fields)) server.closeNeeded = true;
  if (learn(server, fields) && server.batch?.repeatable(requests.total, requests.count)) {
    const ready = readyBehind(off + len, end);
    if (ready === null) return ErrorFate.MORE;
    if (ready) {
      slogDebug(server, `preparing a statement again and repeating its transaction: ${fields.message}`);
      return repeat(server);
    }
  }
  return rename(server, off, len, fields);
}
