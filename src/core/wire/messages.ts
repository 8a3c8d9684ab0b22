/*
 * All packets that the pooler itself writes, to clients and to servers. Each function appends one packet to a buffer;
 * constant packets are built once, at the end. Formats: chapter "Message Formats" of PostgreSQL's manual.
 */
import { fatal } from '../base/log';
import type { WallTime } from '../base/time';
import { formatTimeS } from '../base/timefmt';
import { AuthReq, ErrField, Pkt, PqMsg, PqTarget, TxStatus, TypeOid } from './packets';
import { PktBuf } from './pktbuf';

/** SQLSTATE of an error that has none of its own: protocol_violation. */
export const SQLSTATE_DEFAULT = '08P01';

/** An error of the pooler, as sent by PgBouncer's send_pooler_error(). */
export interface PoolerError {
  severity: 'FATAL' | 'ERROR';
  /** null = SQLSTATE_DEFAULT */
  sqlstate: string | null;
  /** byte string */
  msg: string;
  /** byte strings; null or undefined = none */
  detail?: string | null;
  hint?: string | null;
}

/** A column: number for i, q, N, T (usec); BigInt for q, N; byte string for s; bytes for b; null for SQL's NULL. */
export type ColumnValue = string | number | bigint | Uint8Array | WallTime | null;

/** A packet that consists of its type only: ParseComplete, BindComplete, NoData and others. */
export function writeBare(buf: PktBuf, type: number): void {
  buf.startPacket(type);
  buf.finishPacket();
}

function putField(buf: PktBuf, field: ErrField, value: string | null | undefined): void {
  if (value === null || value === undefined) return;
  buf.putChar(field);
  buf.putString(value);
}

export function writeErrorResponse(buf: PktBuf, error: PoolerError): void {
  buf.startPacket(PqMsg.ErrorResponse);
  putField(buf, ErrField.Severity, error.severity);
  putField(buf, ErrField.SqlState, error.sqlstate ?? SQLSTATE_DEFAULT);
  putField(buf, ErrField.Message, error.msg);
  putField(buf, ErrField.Detail, error.detail);
  putField(buf, ErrField.Hint, error.hint);
  buf.putChar(0);
  buf.finishPacket();
}

function writeNoticeOf(buf: PktBuf, severity: string, msg: string, sqlstate: string): void {
  buf.startPacket(PqMsg.NoticeResponse);
  putField(buf, ErrField.Severity, severity);
  putField(buf, ErrField.SqlState, sqlstate);
  putField(buf, ErrField.Message, msg);
  buf.putChar(0);
  buf.finishPacket();
}

export function writeNotice(buf: PktBuf, msg: string): void {
  writeNoticeOf(buf, 'NOTICE', msg, '00000');
}

export function writeWarning(buf: PktBuf, msg: string, sqlstate: string): void {
  writeNoticeOf(buf, 'WARNING', msg, sqlstate);
}

/** The session is idle: only the server says anything else. */
export function writeReadyForQuery(buf: PktBuf): void {
  buf.startPacket(PqMsg.ReadyForQuery);
  buf.putChar(TxStatus.Idle);
  buf.finishPacket();
}

export function writeParameterStatus(buf: PktBuf, name: string, value: string): void {
  buf.startPacket(PqMsg.ParameterStatus);
  buf.putString(name);
  buf.putString(value);
  buf.finishPacket();
}

export function writeCommandComplete(buf: PktBuf, tag: string): void {
  buf.startPacket(PqMsg.CommandComplete);
  buf.putString(tag);
  buf.finishPacket();
}

/** @param key BACKENDKEY_LEN bytes, or up to BACKENDKEY_MAX for a client that speaks 3.2 */
export function writeBackendKeyData(buf: PktBuf, key: Buffer): void {
  buf.startPacket(PqMsg.BackendKeyData);
  buf.putSlice(key, 0, key.length);
  buf.finishPacket();
}

/**
 * Tells the client which version the session has, and that the pooler supports no protocol extensions.
 * @param version Pkt.STARTUP_V3 or STARTUP_V32
 * @param extensions the names of the extensions (_pq_. parameters) that the client requested
 */
export function writeNegotiateProtocolVersion(buf: PktBuf, version: Pkt, extensions: readonly string[]): void {
  buf.startPacket(PqMsg.NegotiateProtocolVersion);
  buf.putUint32(version);
  buf.putUint32(extensions.length);
  for (const name of extensions) buf.putString(name);
  buf.finishPacket();
}

function startAuth(buf: PktBuf, code: AuthReq): void {
  buf.startPacket(PqMsg.AuthenticationRequest);
  buf.putUint32(code);
}

export function writeAuthenticationOk(buf: PktBuf): void {
  startAuth(buf, AuthReq.OK);
  buf.finishPacket();
}

export function writeAuthCleartext(buf: PktBuf): void {
  startAuth(buf, AuthReq.PASSWORD);
  buf.finishPacket();
}

/** @param salt 4 random bytes */
export function writeAuthMd5(buf: PktBuf, salt: Uint8Array): void {
  startAuth(buf, AuthReq.MD5);
  buf.putBytes(salt);
  buf.finishPacket();
}

/** @param mechanisms names in order of preference */
export function writeAuthSASL(buf: PktBuf, mechanisms: readonly string[]): void {
  startAuth(buf, AuthReq.SASL);
  for (const mechanism of mechanisms) buf.putString(mechanism);
  buf.putChar(0);
  buf.finishPacket();
}

export function writeAuthSASLContinue(buf: PktBuf, message: string): void {
  startAuth(buf, AuthReq.SASL_CONT);
  buf.putChars(message);
  buf.finishPacket();
}

export function writeAuthSASLFinal(buf: PktBuf, message: string): void {
  startAuth(buf, AuthReq.SASL_FIN);
  buf.putChars(message);
  buf.finishPacket();
}

function putColumnType(buf: PktBuf, letter: string): void {
  switch (letter) {
    case 'i':
      buf.putUint32(TypeOid.INT4);
      buf.putUint16(4);
      break;
    case 'q':
      buf.putUint32(TypeOid.INT8);
      buf.putUint16(8);
      break;
    case 'N':
      buf.putUint32(TypeOid.NUMERIC);
      buf.putUint16(-1);
      break;
    case 's':
    case 'T':
      buf.putUint32(TypeOid.TEXT);
      buf.putUint16(-1);
      break;
    case 'b':
      buf.putUint32(TypeOid.BYTEA);
      buf.putUint16(-1);
      break;
    default:
      fatal('bad tupdesc');
  }
}

/** The format of each column of a result: true = binary. Null = all columns are text. */
export type ColumnFormats = readonly boolean[] | null;

/**
 * Describes the columns of a result set.
 * @param tupdesc one letter per column: i = int4, q = int8, s = text, b = bytea, N = uint64 as numeric, T = wall time
 *   as text
 * @param names one per letter
 */
export function writeRowDescription(
  buf: PktBuf,
  tupdesc: string,
  names: readonly string[],
  formats: ColumnFormats = null,
): void {
  if (names.length !== tupdesc.length) fatal(`tupdesc ${tupdesc} with ${names.length} names`);
  buf.startPacket(PqMsg.RowDescription);
  buf.putUint16(tupdesc.length);
  for (let i = 0; i < tupdesc.length; i++) {
    buf.putString(names[i] as string);
    buf.putUint32(0); // not a table's column
    buf.putUint16(0); // no attribute number
    putColumnType(buf, tupdesc[i] as string);
    buf.putUint32(-1); // no type modifier
    buf.putUint16(formats?.[i] === true ? 1 : 0);
  }
  buf.finishPacket();
}

function columnText(letter: string, value: NonNullable<ColumnValue>): string {
  switch (letter) {
    case 'i':
      return `${Number(value) | 0}`;
    case 'q':
    case 'N':
      // unsigned 64 bits, like PgBouncer's %llu
      return Number(value) < 0 ? `${BigInt.asUintN(64, BigInt(value as number | bigint))}` : `${value}`;
    case 's':
      return value as string;
    case 'b':
      return `\\x${Buffer.from(value as Uint8Array).toString('hex')}`;
    case 'T':
      return formatTimeS(value as WallTime);
    default:
      return fatal(`bad tupdesc: ${letter}`);
  }
}

/** A non-negative integer in numeric's binary format: base-10000 digits, without trailing zeros. */
function putNumeric(buf: PktBuf, text: string): void {
  const digits: number[] = [];
  for (let end = text.length; end > 0; end -= 4) digits.unshift(Number(text.slice(Math.max(0, end - 4), end)));
  const weight = digits.length - 1;
  while (digits.at(-1) === 0) digits.pop();
  buf.putUint32(8 + 2 * digits.length);
  buf.putUint16(digits.length);
  buf.putUint16(digits.length === 0 ? 0 : weight);
  buf.putUint16(0); // positive
  buf.putUint16(0); // no digits after the decimal point
  for (const digit of digits) buf.putUint16(digit);
}

function putBinary(buf: PktBuf, letter: string, value: NonNullable<ColumnValue>): void {
  switch (letter) {
    case 'i':
      buf.putUint32(4);
      buf.putUint32(Number(value));
      break;
    case 'q':
      buf.putUint32(8);
      buf.putUint64(typeof value === 'bigint' ? value : Math.trunc(value as number));
      break;
    case 'N':
      putNumeric(buf, columnText(letter, value));
      break;
    case 'b':
      buf.putUint32((value as Uint8Array).length);
      buf.putBytes(value as Uint8Array);
      break;
    default:
      putText(buf, columnText(letter, value));
  }
}

function putText(buf: PktBuf, text: string): void {
  buf.putUint32(text.length);
  buf.putChars(text);
}

/** One row of a result set; tupdesc as in writeRowDescription(). */
export function writeDataRow(
  buf: PktBuf,
  tupdesc: string,
  values: readonly ColumnValue[],
  formats: ColumnFormats = null,
): void {
  if (values.length !== tupdesc.length) fatal(`tupdesc ${tupdesc} with ${values.length} values`);
  buf.startPacket(PqMsg.DataRow);
  buf.putUint16(tupdesc.length);
  for (let i = 0; i < tupdesc.length; i++) {
    const value = values[i] as ColumnValue;
    if (value === null) buf.putUint32(-1);
    else if (formats?.[i] === true) putBinary(buf, tupdesc[i] as string, value);
    else putText(buf, columnText(tupdesc[i] as string, value));
  }
  buf.finishPacket();
}

/** ParameterDescription of a statement without parameters. */
export function writeNoParameters(buf: PktBuf): void {
  buf.startPacket(PqMsg.ParameterDescription);
  buf.putUint16(0);
  buf.finishPacket();
}

/** Begins a StartupMessage; the parameters and finishStartup() follow. @param version Pkt.STARTUP_V3 or STARTUP_V32 */
export function startStartup(buf: PktBuf, version: Pkt): void {
  buf.startPacket(version);
}

export function putStartupParam(buf: PktBuf, name: string, value: string): void {
  buf.putString(name);
  buf.putString(value);
}

export function finishStartup(buf: PktBuf): void {
  buf.putChar(0);
  buf.finishPacket();
}

/** @param key the server's complete cancel key */
export function writeCancelRequest(buf: PktBuf, key: Buffer): void {
  buf.startPacket(Pkt.CANCEL);
  buf.putSlice(key, 0, key.length);
  buf.finishPacket();
}

/** @param password in plain text, or its MD5 form */
export function writePassword(buf: PktBuf, password: string): void {
  buf.startPacket(PqMsg.PasswordMessage);
  buf.putString(password);
  buf.finishPacket();
}

export function writeSASLInitialResponse(buf: PktBuf, mechanism: string, message: string): void {
  buf.startPacket(PqMsg.SASLInitialResponse);
  buf.putString(mechanism);
  buf.putUint32(message.length);
  buf.putChars(message);
  buf.finishPacket();
}

export function writeSASLResponse(buf: PktBuf, message: string): void {
  buf.startPacket(PqMsg.SASLResponse);
  buf.putChars(message);
  buf.finishPacket();
}

export function writeQuery(buf: PktBuf, sql: string): void {
  buf.startPacket(PqMsg.Query);
  buf.putString(sql);
  buf.finishPacket();
}

/** @param queryAndParameters the query with its NUL, the number of parameter types and the types, as received */
export function writeParse(buf: PktBuf, statement: string, queryAndParameters: Uint8Array): void {
  buf.startPacket(PqMsg.Parse);
  buf.putString(statement);
  buf.putBytes(queryAndParameters);
  buf.finishPacket();
}

export function writeDescribeStmt(buf: PktBuf, statement: string): void {
  buf.startPacket(PqMsg.Describe);
  buf.putChar(PqTarget.Statement);
  buf.putString(statement);
  buf.finishPacket();
}

export function writeCloseStmt(buf: PktBuf, statement: string): void {
  buf.startPacket(PqMsg.Close);
  buf.putChar(PqTarget.Statement);
  buf.putString(statement);
  buf.finishPacket();
}

/** Parse and Bind of the unnamed statement, with text parameters. */
function writeUnnamed(buf: PktBuf, query: string, args: readonly string[]): void {
  buf.startPacket(PqMsg.Parse);
  buf.putChar(0); // unnamed statement
  buf.putString(query);
  buf.putUint16(0); // the server infers the types
  buf.finishPacket();

  buf.startPacket(PqMsg.Bind);
  buf.putChar(0); // unnamed portal
  buf.putChar(0); // unnamed statement
  buf.putUint16(0); // all parameters are text
  buf.putUint16(args.length);
  for (const arg of args) {
    buf.putUint32(arg.length);
    buf.putChars(arg);
  }
  buf.putUint16(0); // all results are text
  buf.finishPacket();
}

function writeExecute(buf: PktBuf): void {
  buf.startPacket(PqMsg.Execute);
  buf.putChar(0);
  buf.putUint32(0); // no row limit
  buf.finishPacket();
}

/** Parse, Bind and Execute of a command without a result, before the packets of writeExtQuery(). */
export function writeExtCommand(buf: PktBuf, command: string): void {
  writeUnnamed(buf, command, []);
  writeExecute(buf);
}

/** Parse, Bind, Describe, Execute and Sync of a query with text parameters: the packets that auth_query sends. */
export function writeExtQuery(buf: PktBuf, query: string, args: readonly string[]): void {
  writeUnnamed(buf, query, args);
  buf.startPacket(PqMsg.Describe);
  buf.putChar(PqTarget.Portal);
  buf.putChar(0);
  buf.finishPacket();
  writeExecute(buf);
  writeBare(buf, PqMsg.Sync);
}

/* Packets that never vary. */

function constant(type: number): Buffer {
  const buf = new PktBuf(16);
  writeBare(buf, type);
  return buf.copy();
}

function readyForQuery(): Buffer {
  const buf = new PktBuf(16);
  writeReadyForQuery(buf);
  return buf.copy();
}

export const PACKET_SYNC = constant(PqMsg.Sync);
export const PACKET_FLUSH = constant(PqMsg.Flush);
export const PACKET_TERMINATE = constant(PqMsg.Terminate);
export const PACKET_PARSE_COMPLETE = constant(PqMsg.ParseComplete);
export const PACKET_CLOSE_COMPLETE = constant(PqMsg.CloseComplete);
export const PACKET_SSL_REQUEST = constant(Pkt.SSLREQ);
export const PACKET_READY_IDLE = readyForQuery();
