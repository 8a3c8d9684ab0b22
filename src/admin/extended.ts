/*
 * The console in the extended protocol: Parse, Bind, Describe, Execute, Close, Flush and Sync, as drivers send them. A
 * statement is the text of a query; the first Execute of its portal runs it through the same handlers as a simple
 * query. Called by admin.ts.
 */

import { asciiLower } from '../core/base/strutil';
import { sbufContinue, sbufPause, sendPacket } from '../core/net/sbuf';
import type { ClientSocket } from '../core/pool/bouncer';
import type { ConsolePortal, ConsoleSession } from '../core/pool/console-session';
import { consoleSession } from '../core/pool/socket';
import {
  type ColumnFormats,
  writeBare,
  writeNoParameters,
  writeReadyForQuery,
  writeRowDescription,
} from '../core/wire/messages';
import { PqMsg, PqTarget } from '../core/wire/packets';
import { pktbufTemp } from '../core/wire/pktbuf';
import type { PktReader } from '../core/wire/reader';
import type { Columns } from './columns';
import { readQuery } from './fake-params';
import { isEmptyQuery, QueryKind } from './parse';
import {
  adminError,
  adminFlush,
  dropPortal,
  endPipeline,
  LIMIT_EXCEEDED,
  NO_SUCH_STATEMENT,
  sendRest,
  setCurrentQuery,
  syntaxError,
} from './reply';
import { columnsOf } from './show';

/** Statements and portals that one client may have. Drivers cache some hundred statements; portals end with Sync. */
const STATEMENTS_MAX = 1024;
const PORTALS_MAX = 64;
/** Longest name of a statement or portal, and longest stored query, in bytes. Commands are much shorter. */
const NAME_MAX = 256;
const QUERY_MAX = 1024;

/* SQLSTATEs and texts are PostgreSQL's. */
const PROTOCOL_VIOLATION = '08P01';
const NOT_SUPPORTED = '0A000';
const INVALID_PARAMETER = '22023';
const NO_SUCH_CURSOR = '34000';
const DUPLICATE_CURSOR = '42P03';
const DUPLICATE_STATEMENT = '42P05';
const NAME_TOO_LONG = '42622';
const NOT_IN_STATE = '55000';

/** Runs a command. @returns false if the client has to be disconnected */
type RunQuery = (query: string) => boolean;

/** Called for a simple query, which replaces the unnamed statement and closes all portals. */
export function endExtendedProtocol(session: ConsoleSession): void {
  session.extended = false;
  session.statements.delete('');
  endPipeline(session);
}

/**
 * Decides about a packet that arrives while a command waits. A Sync is recorded and reading continues, so that the end
 * of the connection is still noticed. Any later packet stays buffered until the command is answered.
 */
export function mustWait(admin: ClientSocket, type: number): boolean {
  if (type === PqMsg.Terminate) return false;
  if (admin.console?.extended === true) {
    if (type === PqMsg.Flush || (type === PqMsg.Sync && !admin.console.syncWaits)) return false;
  } else if (type === PqMsg.Query) {
    // as in PgBouncer, the client that waits for PAUSE may itself send RESUME
    return false;
  }
  consoleSession(admin).held = true;
  sbufPause(admin);
  return true;
}

/** Resumes reading once the command that waited is answered. */
export function continueReading(admin: ClientSocket): void {
  if (admin.console?.held !== true) return;
  admin.console.held = false;
  sbufContinue(admin);
}

/** The columns of the answer; null if it has none. */
function describe(query: string): Columns | null {
  const parsed = readQuery(query);
  const word = asciiLower(parsed.name);
  if (parsed.kind !== QueryKind.COMMAND || (word !== 'show' && word !== 'select')) return null;
  return columnsOf(parsed.arg) ?? null;
}

/** Refuses at Parse a query that no Execute could run. @returns null if the query is valid, else adminError's result */
function refuseQuery(admin: ClientSocket, query: string, isCommand: (word: string) => boolean): boolean | null {
  if (isEmptyQuery(query)) return null;
  const parsed = readQuery(query);
  if (parsed.kind === QueryKind.BAD_ARGUMENTS) return adminError(admin, 'bad arguments');
  const word = asciiLower(parsed.name);
  const known = parsed.kind === QueryKind.SET || (parsed.kind === QueryKind.COMMAND && isCommand(word));
  const shown = (word !== 'show' && word !== 'select') || columnsOf(parsed.arg) !== undefined;
  if (known && shown) return null;
  setCurrentQuery(query);
  const alive = syntaxError(admin);
  setCurrentQuery(null);
  return alive;
}

function answer(admin: ClientSocket, type: PqMsg): boolean {
  const buf = pktbufTemp();
  writeBare(buf, type);
  return sendPacket(admin, buf);
}

function badFormat(admin: ClientSocket): boolean {
  return adminError(admin, 'invalid message format', PROTOCOL_VIOLATION);
}

function handleParse(
  admin: ClientSocket,
  session: ConsoleSession,
  reader: PktReader,
  isCommand: (word: string) => boolean,
): boolean {
  const name = reader.str();
  const query = reader.str();
  const parameters = reader.u16();
  if (name === null || query === null || reader.fail) return badFormat(admin);
  if (parameters > 0) return adminError(admin, 'the admin console takes no parameters', NOT_SUPPORTED);
  if (name === '') session.statements.delete('');
  else if (name.length > NAME_MAX) return adminError(admin, 'name of prepared statement too long', NAME_TOO_LONG);
  else if (session.statements.has(name)) {
    return adminError(admin, `prepared statement "${name}" already exists`, DUPLICATE_STATEMENT);
  }
  const refused = refuseQuery(admin, query, isCommand);
  if (refused !== null) return refused;
  const kept = isEmptyQuery(query) ? '' : query;
  if (kept.length > QUERY_MAX) return adminError(admin, 'query too long', LIMIT_EXCEEDED);
  if (session.statements.size >= STATEMENTS_MAX) {
    return adminError(admin, 'too many prepared statements on the admin console', LIMIT_EXCEEDED);
  }
  session.statements.set(name, kept);
  return answer(admin, PqMsg.ParseComplete);
}

function noStatement(admin: ClientSocket, name: string): boolean {
  const text =
    name === '' ? 'unnamed prepared statement does not exist' : `prepared statement "${name}" does not exist`;
  return adminError(admin, text, NO_SUCH_STATEMENT);
}

function readCodes(reader: PktReader): number[] {
  const codes: number[] = [];
  for (let left = reader.u16(); left > 0 && !reader.fail; left--) codes.push(reader.u16());
  return codes;
}

/**
 * Checks the result format codes of Bind: without a code all columns are text, a single code applies to all columns.
 * @returns the error, or null
 */
function checkFormats(codes: readonly number[], columns: Columns | null): { text: string; sqlstate: string } | null {
  const wrong = codes.find((code) => code > 1);
  if (wrong !== undefined) return { text: `unsupported format code: ${wrong}`, sqlstate: INVALID_PARAMETER };
  const count = columns?.types.length ?? 0;
  if (columns === null || codes.length <= 1 || codes.length === count) return null;
  const text = `bind message has ${codes.length} result formats but query has ${count} columns`;
  return { text, sqlstate: PROTOCOL_VIOLATION };
}

function formatsOf(codes: readonly number[], columns: Columns | null): ColumnFormats {
  if (columns === null || !codes.includes(1)) return null;
  return [...columns.types].map((_, i) => (codes.length === 1 ? codes[0] : codes[i]) === 1);
}

function handleBind(admin: ClientSocket, session: ConsoleSession, reader: PktReader): boolean {
  const name = reader.str();
  const statement = reader.str();
  readCodes(reader);
  const values = reader.u16();
  if (name === null || statement === null || reader.fail) return badFormat(admin);
  const query = session.statements.get(statement);
  if (query === undefined) return noStatement(admin, statement);
  if (values > 0) {
    const text = `bind message supplies ${values} parameters, but prepared statement "${statement}" requires 0`;
    return adminError(admin, text, PROTOCOL_VIOLATION);
  }
  const codes = readCodes(reader);
  if (reader.fail) return badFormat(admin);
  if (name.length > NAME_MAX) return adminError(admin, 'name of portal too long', NAME_TOO_LONG);
  if (name === '') dropPortal(session, name);
  else if (session.portals.has(name)) return adminError(admin, `cursor "${name}" already exists`, DUPLICATE_CURSOR);
  if (session.portals.size >= PORTALS_MAX)
    return adminError(admin, 'too many portals on the admin console', LIMIT_EXCEEDED);
  const columns = describe(query);
  const wrong = checkFormats(codes, columns);
  if (wrong !== null) return adminError(admin, wrong.text, wrong.sqlstate);
  session.portals.set(name, { query, formats: formatsOf(codes, columns), done: false, rest: null, limit: 0 });
  return answer(admin, PqMsg.BindComplete);
}

function handleDescribe(admin: ClientSocket, session: ConsoleSession, reader: PktReader): boolean {
  const kind = reader.u8();
  const name = reader.str();
  if (name === null) return badFormat(admin);
  const buf = pktbufTemp();
  let query: string | undefined;
  let formats: ColumnFormats = null;
  if (kind === PqTarget.Statement) {
    query = session.statements.get(name);
    if (query === undefined) return noStatement(admin, name);
    writeNoParameters(buf);
  } else if (kind === PqTarget.Portal) {
    const portal = session.portals.get(name);
    if (portal === undefined) return noPortal(admin, name);
    query = portal.query;
    formats = portal.formats;
  } else {
    return adminError(admin, `invalid DESCRIBE message subtype ${kind}`, PROTOCOL_VIOLATION);
  }
  const columns = describe(query);
  if (columns === null) writeBare(buf, PqMsg.NoData);
  else writeRowDescription(buf, columns.types, columns.names, formats);
  return sendPacket(admin, buf);
}

function noPortal(admin: ClientSocket, name: string): boolean {
  return adminError(admin, `portal "${name}" does not exist`, NO_SUCH_CURSOR);
}

/** Execute of a portal that was run before: returns the rest of its rows. Only SHOW can run twice. */
function executeAgain(admin: ClientSocket, session: ConsoleSession, name: string, portal: ConsolePortal): boolean {
  if (portal.rest !== null) return sendRest(admin, session, portal);
  if (portal.query === '') return answer(admin, PqMsg.EmptyQueryResponse);
  if (describe(portal.query) === null) return adminError(admin, `portal "${name}" cannot be run`, NOT_IN_STATE);
  return adminFlush(admin, pktbufTemp(), 'SHOW');
}

function handleExecute(admin: ClientSocket, session: ConsoleSession, reader: PktReader, run: RunQuery): boolean {
  const name = reader.str();
  const limit = reader.i32();
  if (name === null || reader.fail) return badFormat(admin);
  const portal = session.portals.get(name);
  if (portal === undefined) return noPortal(admin, name);
  portal.limit = Math.max(limit, 0);
  if (portal.done) return executeAgain(admin, session, name, portal);
  portal.done = true;
  if (portal.query === '') return answer(admin, PqMsg.EmptyQueryResponse);
  session.executing = portal;
  return run(portal.query);
}

function handleClose(admin: ClientSocket, session: ConsoleSession, reader: PktReader): boolean {
  const kind = reader.u8();
  const name = reader.str();
  if (name === null) return badFormat(admin);
  if (kind === PqTarget.Statement) session.statements.delete(name);
  else if (kind === PqTarget.Portal) dropPortal(session, name);
  else return adminError(admin, `invalid CLOSE message subtype ${kind}`, PROTOCOL_VIOLATION);
  return answer(admin, PqMsg.CloseComplete);
}

function handleSync(admin: ClientSocket, session: ConsoleSession): boolean {
  // the command still waits for its completion, or is SHUTDOWN, which gets no answer
  if (session.waitsFor !== null || session.executing !== null) {
    session.syncWaits = true;
    return true;
  }
  endPipeline(session);
  const buf = pktbufTemp();
  writeReadyForQuery(buf);
  return sendPacket(admin, buf);
}

/**
 * Handles one packet of the extended protocol.
 * @param isCommand whether a word begins a command
 * @returns false if the client has to be disconnected
 */
export function handleExtended(
  admin: ClientSocket,
  type: number,
  reader: PktReader,
  run: RunQuery,
  isCommand: (word: string) => boolean,
): boolean {
  const session = consoleSession(admin);
  session.extended = true;
  switch (type) {
    case PqMsg.Parse:
      return handleParse(admin, session, reader, isCommand);
    case PqMsg.Bind:
      return handleBind(admin, session, reader);
    case PqMsg.Describe:
      return handleDescribe(admin, session, reader);
    case PqMsg.Execute:
      return handleExecute(admin, session, reader, run);
    case PqMsg.Close:
      return handleClose(admin, session, reader);
    case PqMsg.Sync:
      return handleSync(admin, session);
    default:
      // Flush: every answer has already been sent
      return true;
  }
}
