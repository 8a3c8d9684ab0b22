/*
 * A PostgreSQL client for a few queries, on Node's own sockets: for commands that run without the pooler's event loop. It
 * authenticates by trust, password, md5 or SCRAM-SHA-256, and uses TLS as sslmode specifies. Strings are byte strings.
 * Called by mkauth.ts, --check and top.ts.
 */

import { readFileSync } from 'node:fs';
import { connect as connectSocket, isIP, type Socket } from 'node:net';
import { type ConnectionOptions, connect as connectTls, checkServerIdentity as hostProblem } from 'node:tls';
import { pgMd5Encrypt } from '../core/auth/md5';
import { SCRAM_SHA_256, ScramState } from '../core/auth/scram';
import {
  buildClientFinalMessage,
  buildClientFirstMessage,
  readServerFinalMessage,
  readServerFirstMessage,
  verifyServerSignature,
} from '../core/auth/scram-client';
import { PasswordType, passwordType } from '../core/auth/secret';
import { strerror } from '../core/base/log';
import { AuthReq, NEW_HEADER_LEN, Pkt, PqMsg } from '../core/wire/packets';
import type { ConnInfo, Target } from './connect-info';

/** Longest message that is accepted; answers to the queries of these commands are shorter. */
const MESSAGE_MAX = 1024 * 1024;
/** Most bytes of rows. */
const ANSWER_MAX = 256 * 1024 * 1024;

interface Message {
  type: number;
  body: Buffer;
}

/** An ErrorResponse. */
class ServerError extends Error {
  constructor(
    message: string,
    readonly sqlstate: string,
  ) {
    super(message);
  }
}

/** The server has not answered in time. */
class TimedOut extends Error {
  constructor() {
    super('timeout expired');
  }
}

function cstring(text: string): Buffer {
  return Buffer.from(`${text}\0`, 'latin1');
}

function int32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeInt32BE(value);
  return bytes;
}

/** Sends and receives the messages of one connection. */
class Wire {
  private readonly messages: Message[] = [];
  private partial: Buffer = Buffer.alloc(0);
  private failure: Error | null = null;
  private wake: () => void = () => {};

  constructor(private readonly socket: Socket) {
    socket.on('data', (chunk: Buffer) => this.receive(chunk));
    socket.on('error', (err) => this.fail(err));
    socket.on('close', () => this.fail(new Error('server closed the connection unexpectedly')));
    socket.resume();
  }

  send(type: number, ...body: Buffer[]): void {
    const bytes = Buffer.concat(body);
    this.socket.write(Buffer.concat([Buffer.from([type]), int32(bytes.length + 4), bytes]));
  }

  /** Sends the first packet of a session, which has no type byte. */
  sendStartup(code: number, body: Buffer): void {
    this.socket.write(Buffer.concat([int32(body.length + 8), int32(code), body]));
  }

  async next(): Promise<Message> {
    for (;;) {
      const message = this.messages.shift();
      if (message !== undefined) return message;
      if (this.failure !== null) throw this.failure;
      await new Promise<void>((wake) => {
        this.wake = wake;
      });
    }
  }

  private fail(err: Error): void {
    this.failure ??= err;
    this.wake();
  }

  private receive(chunk: Buffer): void {
    let rest = this.partial.length === 0 ? chunk : Buffer.concat([this.partial, chunk]);
    while (rest.length >= NEW_HEADER_LEN) {
      const length = rest.readUInt32BE(1);
      if (length < 4 || length > MESSAGE_MAX) {
        this.fail(new Error(`invalid length of a message from the server: ${length}`));
        this.socket.destroy();
        return;
      }
      if (rest.length < length + 1) break;
      this.messages.push({ type: rest[0] as number, body: rest.subarray(NEW_HEADER_LEN, length + 1) });
      rest = rest.subarray(length + 1);
    }
    this.partial = rest;
    this.wake();
  }
}

function serverError(body: Buffer): ServerError {
  const fields = new Map<string, string>();
  for (const field of body.toString('latin1').split('\0')) fields.set(field.charAt(0), field.slice(1));
  const lines = [`${fields.get('S') ?? 'ERROR'}:  ${fields.get('M') ?? ''}`];
  if (fields.has('D')) lines.push(`DETAIL:  ${fields.get('D')}`);
  if (fields.has('H')) lines.push(`HINT:  ${fields.get('H')}`);
  return new ServerError(lines.join('\n'), fields.get('C') ?? '');
}

function protocolError(type: number): Error {
  return new Error(`expected another message from the server than "${String.fromCharCode(type)}"`);
}

/** The login of one session: answers the server's requests until authentication is complete. */
class Login {
  /** the server has accepted the login, and with SCRAM has proved that it knows the password too */
  done = false;
  private scram: ScramState | null = null;
  private serverVerified = false;

  constructor(
    private readonly wire: Wire,
    private readonly user: string,
    private readonly givenPassword: string | null,
    /** the password is from auth_file: an md5 hash is used as such */
    private readonly storedSecret: boolean,
  ) {}

  answer(body: Buffer): void {
    const code = body.readInt32BE(0);
    const rest = body.subarray(4);
    switch (code) {
      case AuthReq.OK:
        if (this.scram !== null && !this.serverVerified) throw new Error('server did not complete authentication');
        this.done = true;
        break;
      case AuthReq.PASSWORD:
        this.wire.send(PqMsg.PasswordMessage, cstring(this.password()));
        break;
      case AuthReq.MD5:
        this.wire.send(PqMsg.PasswordMessage, cstring(this.md5(rest)));
        break;
      case AuthReq.SASL:
        this.scramFirst(rest);
        break;
      case AuthReq.SASL_CONT:
        this.scramContinue(rest.toString('latin1'));
        break;
      case AuthReq.SASL_FIN:
        this.scramFinal(rest.toString('latin1'));
        break;
      default:
        throw new Error(`authentication method ${code} not supported`);
    }
  }

  private password(): string {
    if (this.givenPassword === null) throw new Error('fe_sendauth: no password supplied');
    return this.givenPassword;
  }

  private md5(salt: Buffer): string {
    const password = this.password();
    const isHash = this.storedSecret && passwordType(password) === PasswordType.MD5;
    const inner = isHash ? password : pgMd5Encrypt(password, this.user);
    const outer = inner === null ? null : pgMd5Encrypt(inner.slice(3), salt.subarray(0, 4));
    if (outer === null) throw new Error('could not encrypt password');
    return outer;
  }

  private scramFirst(mechanisms: Buffer): void {
    if (!mechanisms.toString('latin1').split('\0').includes(SCRAM_SHA_256)) {
      throw new Error("none of the server's SASL authentication mechanisms are supported");
    }
    this.password();
    this.scram = new ScramState();
    const first = Buffer.from(buildClientFirstMessage(this.scram), 'latin1');
    this.wire.send(PqMsg.SASLInitialResponse, cstring(SCRAM_SHA_256), int32(first.length), first);
  }

  private scramContinue(text: string): void {
    if (this.scram === null) throw protocolError(PqMsg.AuthenticationRequest);
    const problem = readServerFirstMessage(this.scram, text);
    if (problem !== null) throw new Error(problem);
    const login = { passwd: this.password(), scramClientKey: null, scramServerKey: null, scramPassthroughValid: false };
    this.wire.send(PqMsg.SASLResponse, Buffer.from(buildClientFinalMessage(this.scram, login), 'latin1'));
  }

  private scramFinal(text: string): void {
    if (this.scram === null) throw protocolError(PqMsg.AuthenticationRequest);
    const problem = readServerFinalMessage(this.scram, text);
    if (problem !== null) throw new Error(problem);
    if (!verifyServerSignature(this.scram)) throw new Error('incorrect server signature');
    this.serverVerified = true;
  }
}

async function logIn(wire: Wire, info: ConnInfo, target: Target): Promise<void> {
  const parameters = Object.entries(info.startup).flat().map(cstring);
  wire.sendStartup(Pkt.STARTUP_V3, Buffer.concat([...parameters, Buffer.alloc(1)]));
  const login = new Login(wire, info.user, target.password, target.storedSecret === true);
  for (;;) {
    const { type, body } = await wire.next();
    if (type === PqMsg.ErrorResponse) throw serverError(body);
    if (type === PqMsg.AuthenticationRequest && !login.done) login.answer(body);
    else if (type === PqMsg.ReadyForQuery && login.done) return;
    else if (!isAside(type) && !(type === PqMsg.BackendKeyData && login.done)) throw protocolError(type);
  }
}

/** Messages that may arrive at any time and are ignored. */
function isAside(type: number): boolean {
  return type === PqMsg.NoticeResponse || type === PqMsg.ParameterStatus || type === PqMsg.NegotiateProtocolVersion;
}

function columns(row: Buffer): (string | null)[] {
  const values: (string | null)[] = [];
  let at = 2;
  for (let left = row.readUInt16BE(0); left > 0; left--) {
    const length = row.readInt32BE(at);
    at += 4;
    values.push(length < 0 ? null : row.toString('latin1', at, at + length));
    at += Math.max(length, 0);
  }
  return values;
}

/** The names in a RowDescription. */
function columnNames(body: Buffer): string[] {
  const names: string[] = [];
  let at = 2;
  for (let left = body.readUInt16BE(0); left > 0; left--) {
    const end = body.indexOf(0, at);
    names.push(body.toString('latin1', at, end));
    // table, column, type, size, modifier, format
    at = end + 1 + 18;
  }
  return names;
}

/** The answer to one query. */
export interface Answer {
  names: string[];
  rows: (string | null)[][];
}

/** Reads the answer to what was sent, up to ReadyForQuery. */
async function readAnswer(wire: Wire): Promise<Answer> {
  const rows: (string | null)[][] = [];
  let names: string[] = [];
  let failure: ServerError | null = null;
  let size = 0;
  for (;;) {
    const { type, body } = await wire.next();
    switch (type) {
      case PqMsg.DataRow:
        size += body.length;
        if (size > ANSWER_MAX) throw new Error(`the answer has more than ${ANSWER_MAX} bytes`);
        rows.push(columns(body));
        break;
      case PqMsg.ErrorResponse:
        failure ??= serverError(body);
        break;
      case PqMsg.ReadyForQuery:
        if (failure !== null) throw failure;
        return { names, rows };
      case PqMsg.RowDescription:
        names = columnNames(body);
        break;
      case PqMsg.CommandComplete:
      case PqMsg.EmptyQueryResponse:
      case PqMsg.ParseComplete:
      case PqMsg.BindComplete:
      case PqMsg.NoData:
        break;
      default:
        if (!isAside(type)) throw protocolError(type);
    }
  }
}

function query(wire: Wire, sql: string): Promise<Answer> {
  wire.send(PqMsg.Query, cstring(sql));
  return readAnswer(wire);
}

/** Runs a query with one parameter, $1. */
function queryWith(wire: Wire, sql: string, parameter: string): Promise<Answer> {
  const value = Buffer.from(parameter, 'latin1');
  const int16 = (number: number) => int32(number).subarray(2);
  wire.send(PqMsg.Parse, cstring(''), cstring(sql), int16(0));
  wire.send(PqMsg.Bind, cstring(''), cstring(''), int16(0), int16(1), int32(value.length), value, int16(0));
  wire.send(PqMsg.Describe, Buffer.from('P'), cstring(''));
  wire.send(PqMsg.Execute, cstring(''), int32(0));
  wire.send(PqMsg.Sync);
  return readAnswer(wire);
}

/** Waits for the event, or throws the socket's error. */
function once(socket: Socket, event: string): Promise<unknown> {
  return new Promise((settle, reject) => {
    socket.once('error', reject);
    socket.once('close', () => reject(new Error('server closed the connection unexpectedly')));
    socket.once(event, settle);
  });
}

function tlsOptions(info: ConnInfo, target: Target, socket: Socket): ConnectionOptions {
  const { sslmode, sslrootcert, sslcert } = info;
  // as in libpq, `require` checks the certificate if there is a file of CA certificates
  const verify = sslmode.startsWith('verify') || (sslmode === 'require' && sslrootcert !== '');
  if (verify && sslrootcert === '') {
    throw new Error('no root certificate file; name one with sslrootcert, or use sslrootcert=system');
  }
  const file = (path: string) => readFileSync(Buffer.from(path, 'latin1'));
  return {
    socket,
    ...(isIP(target.host) === 0 ? { servername: target.host } : {}),
    ...(verify && sslrootcert !== 'system' ? { ca: file(sslrootcert) } : {}),
    ...(sslcert === '' ? {} : { cert: file(sslcert), key: file(info.sslkey) }),
    rejectUnauthorized: verify,
    checkServerIdentity: (_, cert) => (sslmode === 'verify-full' ? hostProblem(target.host, cert) : undefined),
  };
}

/** Asks the server for TLS. @returns the encrypted socket, or null if the server does not support TLS */
async function startTls(socket: Socket, info: ConnInfo, target: Target): Promise<Socket | null> {
  socket.write(Buffer.concat([int32(8), int32(Pkt.SSLREQ)]));
  const answer = (await once(socket, 'data')) as Buffer;
  socket.pause();
  // bytes behind the answer are unencrypted and may have been injected (CVE-2021-23222)
  if (answer.length !== 1) throw new Error('received unencrypted data after SSL response');
  if (answer[0] === 0x4e /* N */) return null;
  if (answer[0] !== 0x53 /* S */) throw new Error(`received invalid response to SSL negotiation: ${answer[0]}`);
  const inside = connectTls(tlsOptions(info, target, socket));
  await once(inside, 'secureConnect');
  return inside;
}

interface OpenConnection {
  wire: Wire;
  socket: Socket;
}

/** Opens a session with one server, with or without TLS. */
async function open(info: ConnInfo, target: Target, tls: boolean): Promise<OpenConnection> {
  const { socketPath, address, port } = target;
  const socket = socketPath === null ? connectSocket({ host: address, port }) : connectSocket({ path: socketPath });
  let timedOut = false;
  const giveUp = () => {
    timedOut = true;
    socket.destroy();
  };
  const timer = info.connectTimeoutMs > 0 ? setTimeout(giveUp, info.connectTimeoutMs) : undefined;
  try {
    await once(socket, 'connect');
    const inside = tls ? await startTls(socket, info, target) : null;
    if (inside === null && tls && info.sslmode !== 'prefer') {
      throw new Error('server does not support SSL, but SSL was required');
    }
    const wire = new Wire(inside ?? socket);
    await logIn(wire, info, target);
    return { wire, socket: inside ?? socket };
  } catch (err) {
    // the socket may emit another error while it closes
    socket.on('error', () => {});
    socket.destroy();
    throw timedOut ? new TimedOut() : err;
  } finally {
    clearTimeout(timer);
  }
}

/** The order in which sslmode tries connections with and without TLS. */
function tlsChoices(info: ConnInfo, target: Target): boolean[] {
  // TLS is never used on a Unix socket, as in libpq
  if (target.socketPath !== null || info.sslmode === 'disable') return [false];
  if (info.sslmode === 'allow') return [false, true];
  return info.sslmode === 'prefer' ? [true, false] : [true];
}

/** Whether to try again with or without TLS: not if the server has refused the password, or does not answer. */
function mayRetry(err: unknown): boolean {
  if (err instanceof TimedOut) return false;
  return !(err instanceof ServerError) || err.sqlstate === '28000';
}

function causeOf(err: unknown, target: Target): string {
  // for a name with several addresses, Node reports one error per address
  const cause: NodeJS.ErrnoException = err instanceof AggregateError ? err.errors[0] : err;
  if (cause.syscall === 'getaddrinfo') {
    const text = cause.code === 'ENOTFOUND' ? 'Name or service not known' : cause.code;
    return `could not translate host name "${target.address}" to address: ${text}`;
  }
  return strerror(cause);
}

function describe(target: Target, err: unknown): string {
  const { host, address, port, socketPath } = target;
  const at = host === address ? `"${host}"` : `"${host}" (${address})`;
  const where = socketPath === null ? `at ${at}, port ${port}` : `on socket "${socketPath.replace('\0', '@')}"`;
  return `connection to server ${where} failed: ${causeOf(err, target)}`;
}

/** Opens a session with the first server in the list that accepts the login. */
async function openAny(info: ConnInfo): Promise<OpenConnection> {
  const failures = new Set<string>();
  for (const target of info.targets) {
    for (const tls of tlsChoices(info, target)) {
      try {
        return await open(info, target, tls);
      } catch (err) {
        failures.add(describe(target, err));
        if (!mayRetry(err)) break;
      }
    }
  }
  throw new Error([...failures].join('\n'));
}

/**
 * Runs one query. Throws if no server can be reached or the server reports an error.
 * @returns its rows
 */
export async function fetchRows(info: ConnInfo, sql: string): Promise<(string | null)[][]> {
  const { wire, socket } = await openAny(info);
  try {
    const { rows } = await query(wire, sql);
    wire.send(PqMsg.Terminate);
    return rows;
  } finally {
    socket.destroySoon();
  }
}

/** Runs queries in one session. */
export interface Session {
  /** @param parameter the value of $1, if the query has one */
  ask(sql: string, parameter?: string): Promise<Answer>;
}

/**
 * Opens a session, runs `act` and closes the session. Throws what `act` throws, and if no server can be reached.
 * @param limitMs for all of it
 * @param connectMs for the connection
 */
export async function withSession<T>(
  info: ConnInfo,
  limitMs: number,
  act: (session: Session) => Promise<T>,
  connectMs = limitMs,
): Promise<T> {
  const { wire, socket } = await openAny({ ...info, connectTimeoutMs: connectMs });
  const timer = setTimeout(() => socket.destroy(new Error('timeout expired')), limitMs);
  try {
    const ask = (sql: string, parameter?: string) =>
      parameter === undefined ? query(wire, sql) : queryWith(wire, sql, parameter);
    const result = await act({ ask });
    wire.send(PqMsg.Terminate);
    return result;
  } finally {
    clearTimeout(timer);
    socket.destroySoon();
  }
}
