/*
 * The login to a server: startup packet, authentication by the server's method, parameters, connect_query.
 */

import { md5Answer } from '../auth/md5';
import { PasswordType, passwordType } from '../auth/secret';
import {
  logError,
  logNoise,
  logWarning,
  slogDebug,
  slogError,
  slogInfo,
  slogNoise,
  slogWarning,
  wantDebug,
} from '../base/log';
import { arena, native } from '../base/native';
import { cstr, detachBytes, trimSpace } from '../base/strutil';
import { getCachedTime } from '../base/time';
import { SslMode } from '../config/choices';
import { cf } from '../config/settings';
import { cancelRequestFor, forwardCancelRequest } from '../link/cancel';
import { activateClient, disconnectServer, LoginOutcome, releaseServer } from '../link/objects';
import { passwordRefused } from '../link/password-command';
import { renewPassword } from '../link/registry';
import { misfit, noteRole } from '../link/target-session';
import { addrString, fillLocalAddr, isUnixAddr } from '../net/addr';
import { sbufContinue, sendBytes, sendPacket } from '../net/sbuf';
import { sbufTlsConnect, serverSslmode, tlsConnectionInfo } from '../net/tls';
import { type PgCredentials, type PgPool, Replication, type ServerSocket } from '../pool/bouncer';
import { LoginPhase, ProtocolTry, ServerLoginPhase } from '../pool/phases';
import { isDead, replicationTypeParameters, sendingAuthQuery, serverLoginOf } from '../pool/socket';
import { eachSocket } from '../pool/states';
import { observe, Timing } from '../pool/timings';
import { upcalls } from '../pool/upcalls';
import { addOwnParameter, addWelcomeParameter, finishWelcomeMsg, forgetWelcomeParts } from '../pool/welcome';
import {
  finishStartup,
  PACKET_SSL_REQUEST,
  putStartupParam,
  startStartup,
  writePassword,
  writeQuery,
} from '../wire/messages';
import { AuthReq, BACKENDKEY_LEN, BACKENDKEY_MAX, NEW_HEADER_LEN, PqMsg } from '../wire/packets';
import { pktbufTemp } from '../wire/pktbuf';
import { PktReader, parseServerError, pktDesc, type ServerError, serverErrorLine } from '../wire/reader';
import { Verdict } from '../wire/verdict';
import { chooseProtocol, negotiateVersion, protocolRefused } from './server-protocol';
import {
  bindingRequired,
  killPoolLogins,
  loginSasl,
  loginScramCont,
  loginScramFinal,
  refuseUnbound,
  serverCredentials,
} from './server-scram';

/** The server is starting up or shutting down: clients may wait for it. */
const ERRCODE_CANNOT_CONNECT_NOW = '57P03';
/** invalid_password, and invalid_authorization_specification, with which some servers answer a wrong password */
const REFUSED_PASSWORD: readonly (string | null)[] = ['28P01', '28000'];
/** Answers to SSLRequest: 'S' and 'N'. */
const SSL_YES = 0x53;
const SSL_NO = 0x4e;
/** libpq's rule: the letter of an ErrorResponse is followed by a length between these limits, otherwise by text. */
const ERROR_LENGTH_MIN = 8;
const ERROR_LENGTH_MAX = 30000;
/** Longest text of such an error that is read. */
const FORK_ERROR_MAX = 1000;

/** Disconnects the clients that wait for a server with the server's own error. */
function killPoolLoginsServerError(pool: PgPool, { level, msg, sqlstate }: ServerError): void {
  logWarning(level !== null && msg !== null ? `server login failed: ${level} ${msg}` : 'server login failed');
  if (sqlstate !== ERRCODE_CANNOT_CONNECT_NOW) {
    logNoise(`kill_pool_logins_server_error: sqlstate: ${sqlstate ?? 'NULL'}`);
    killPoolLogins(pool, sqlstate, msg ?? 'server login failed');
  }
}

/** The connection is open: it serves a waiting cancel request, or else logs in. */
export function serverConnected(server: ServerSocket): void {
  const pool = server.pool;
  slogDebug(server, 'S: connect ok');
  serverLoginOf(server).connectedAt = getCachedTime();
  observe(pool, Timing.CONNECT, getCachedTime() - server.connectTime);
  const isUnix = isUnixAddr(server.remoteAddr);
  fillLocalAddr(server, native.fdOf(server.handle), isUnix);
  if (cf.logConnections) {
    slogInfo(
      server,
      isUnix ? 'new connection to server' : `new connection to server (from ${addrString(server.localAddr)})`,
    );
  }
  const request = cancelRequestFor(server);
  const secured = !isUnix && serverSslmode(pool.db) !== SslMode.DISABLED && request?.canceledServer?.tls === true;
  if (request !== null && !secured) {
    slogDebug(server, 'use it for pending cancel req');
    forwardCancelRequest(server, request);
  } else if (pool.db.peerId > 0) {
    const reason = 'peer server was not necessary anymore, because client cancel connection was already closed';
    disconnectServer(server, false, reason, LoginOutcome.CONNECTED);
  } else if (beginLogin(server, isUnix)) {
    sbufContinue(server);
  } else {
    disconnectServer(server, false, 'startup pkt failed');
  }
}

/** Requests TLS first, unless it is off or the connection uses a Unix socket. */
function beginLogin(server: ServerSocket, isUnix: boolean): boolean {
  if (isUnix || serverSslmode(server.pool.db) === SslMode.DISABLED) return sendStartupMessage(server);
  slogNoise(server, 'P: SSL request');
  serverLoginOf(server).phase = ServerLoginPhase.SSL_ANSWER;
  return sendBytes(server, PACKET_SSL_REQUEST, PACKET_SSL_REQUEST.length);
}

/** The text of an error without a length, from after its letter, in one line. */
function forkErrorText(buf: Buffer, off: number, end: number): string {
  const text = buf.toString('latin1', off + 1, Math.min(end, off + 1 + FORK_ERROR_MAX));
  // a line break would begin a new line of the log
  return trimSpace(cstr(text).replace(/[\r\n]+/g, ' '));
}

/**
 * Handles the error of a server that cannot fork a process for the connection. Its format is that of protocol 2: the
 * letter of an error and a text that ends with a NUL, without a length. It arrives in one piece; then the connection
 * ends.
 * @returns true if [off, end) is such an error; the server was disconnected
 */
export function handleForkError(server: ServerSocket, buf: Buffer, off: number, end: number): boolean {
  if (buf[off] !== PqMsg.ErrorResponse || end - off < NEW_HEADER_LEN) return false;
  const length = buf.readUInt32BE(off + 1);
  if (length >= ERROR_LENGTH_MIN && length <= ERROR_LENGTH_MAX) return false;
  forkFailed(server, forkErrorText(buf, off, end));
  return true;
}

function forkFailed(server: ServerSocket, text: string): void {
  logWarning(`server login failed: ${text}`);
  disconnectServer(server, false, text, LoginOutcome.HOST_FAILED);
}

/** Handles the answer to SSLRequest, in the arena at `off`: a single byte; more bytes would be unprotected. */
export function handleSslchar(server: ServerSocket, off: number, length: number): void {
  serverLoginOf(server).phase = ServerLoginPhase.STARTUP;
  const answer = arena[off];
  if (answer === PqMsg.ErrorResponse && serverSslmode(server.pool.db) < SslMode.REQUIRE) {
    forkFailed(server, forkErrorText(arena, off, off + length));
  } else if (answer !== SSL_YES && answer !== SSL_NO) {
    // if TLS is required, do not pass on a text received without it: it may have been injected
    if (answer === PqMsg.ErrorResponse) logWarning(`server login failed: ${forkErrorText(arena, off, off + length)}`);
    disconnectServer(server, false, 'bad sslreq answer');
  } else if (length > 1) {
    disconnectServer(server, false, 'received unencrypted data after SSL response');
  } else if (answer === SSL_YES) {
    slogNoise(server, 'launching tls');
    if (!sbufTlsConnect(server, server.host)) disconnectServer(server, false, 'sslreq processing failed');
  } else if (serverSslmode(server.pool.db) >= SslMode.REQUIRE) {
    disconnectServer(server, false, 'server refused SSL');
  } else if (!useConnection(server)) {
    disconnectServer(server, false, 'sslreq processing failed');
  }
}

/** The connection is as secure as it will be: it carries a cancel request that waits for it, or else logs in. */
function useConnection(server: ServerSocket): boolean {
  const request = cancelRequestFor(server);
  if (request === null) return sendStartupMessage(server);
  slogDebug(server, 'use it for pending cancel req');
  forwardCancelRequest(server, request);
  return true;
}

/** The handshake succeeded: begins the login. */
export function serverTlsReady(server: ServerSocket): void {
  const text = `SSL established: ${tlsConnectionInfo(server)}`;
  if (cf.logConnections) slogInfo(server, text);
  else slogNoise(server, text);
  server.requestTime = getCachedTime();
  if (!useConnection(server)) disconnectServer(server, false, 'TLS startup failed');
}

/** The handshake failed. As when the server refuses TLS, no other host is tried. */
export function serverTlsFailed(server: ServerSocket): void {
  disconnectServer(server, false, 'server conn crashed?');
}

function sendStartupMessage(server: ServerSocket): boolean {
  slogNoise(server, 'P: startup');
  const pool = server.pool;
  renewPassword(pool.db);
  if (!pool.welcomeMsgReady) forgetWelcomeParts(pool);
  const buf = pktbufTemp();
  startStartup(buf, chooseProtocol(server));
  for (const [name, value] of pool.db.config.startupParams) putStartupParam(buf, name, value);

  const client = pool.waitingClientList.head;
  // a client with a link has a server that is logging in for it
  const replicating =
    client !== null && client.replication !== Replication.NONE && client.link === null && !sendingAuthQuery(client);
  if (replicating) {
    server.replication = client.replication;
    slogDebug(server, 'send_startup_packet: creating replication connection');
    putStartupParam(buf, 'replication', replicationTypeParameters[server.replication] as string);
    // a physical replication connection cannot run SET, so the startup packet sets the variables
    client.vars.applyStartup(buf);
    if (client.startupOptions !== null) putStartupParam(buf, 'options', client.startupOptions);
  }
  putStartupParam(buf, 'user', (pool.user as PgCredentials).name);
  finishStartup(buf);
  if (!sendPacket(server, buf)) return false;
  if (replicating) {
    client.link = server;
    server.link = client;
  }
  return true;
}

function sendPassword(server: ServerSocket, passwd: string): boolean {
  const buf = pktbufTemp();
  writePassword(buf, passwd);
  return sendPacket(server, buf);
}

function loginMd5(server: ServerSocket, reader: PktReader): boolean {
  const salt = reader.bytes(4);
  if (salt === null) return false;
  const credentials = serverCredentials(server);
  slogDebug(server, 'P: send md5 password');
  const answer = md5Answer(server, credentials.passwd, credentials.name, salt);
  if (answer !== null) return sendPassword(server, answer);
  if (passwordType(credentials.passwd) === PasswordType.SCRAM_SHA_256) {
    killPoolLogins(server.pool, null, 'server login failed: wrong password type');
  }
  return false;
}

function answerAuthRequest(server: ServerSocket, reader: PktReader): boolean {
  const request = reader.u32();
  if (reader.fail) return false;
  // before a password is sent, and before a server is believed that asks for nothing
  const other = request === AuthReq.OK || request === AuthReq.PASSWORD || request === AuthReq.MD5;
  if (other && bindingRequired(server) && !serverLoginOf(server).channelBound) {
    return refuseUnbound(server);
  }
  switch (request) {
    case AuthReq.OK:
      // a server that ends SCRAM early has not proved that it knows the secret
      if (serverLoginOf(server).scram !== null) {
        slogError(server, 'protocol error: AuthenticationOk before the end of the SCRAM exchange');
        return false;
      }
      slogDebug(server, 'S: auth ok');
      serverLoginOf(server).phase = ServerLoginPhase.AUTHENTICATED;
      return true;
    case AuthReq.PASSWORD:
      slogDebug(server, 'S: req cleartext password');
      return sendPassword(server, serverCredentials(server).passwd);
    case AuthReq.MD5:
      slogDebug(server, 'S: req md5-crypted psw');
      return loginMd5(server, reader);
    case AuthReq.SASL:
      return loginSasl(server, reader);
    case AuthReq.SASL_CONT:
      slogDebug(server, 'S: SASL cont');
      return loginScramCont(server, reader.rest());
    case AuthReq.SASL_FIN:
      slogDebug(server, 'S: SASL final');
      return loginScramFinal(server, reader.rest());
    default:
      slogError(server, `unknown/unsupported auth method: ${request}`);
      return false;
  }
}

/** ParameterStatus during login: stored for the clients of the pool or, on a replication connection, for its client. */
function loginParameter(server: ServerSocket, reader: PktReader): Verdict {
  const name = reader.str();
  const value = reader.str();
  if (name === null || value === null) {
    disconnectServer(server, true, 'broken ParameterStatus packet');
    return Verdict.DISCONNECTED;
  }
  if (wantDebug()) slogDebug(server, `S: param: ${name} = ${value}`);
  noteRole(server, name, value);
  server.vars.report(name, value, false);
  if (server.link !== null) server.link.vars.set(name, value);
  const fits =
    server.replication === Replication.NONE
      ? addWelcomeParameter(server.pool, name, value)
      : addOwnParameter(serverLoginOf(server), name, value);
  if (fits) return Verdict.CONSUMED;
  disconnectServer(server, true, 'too many parameters from server');
  return Verdict.DISCONNECTED;
}

/** The welcome message is known: the logins that wait for it need no server, so they do not wait behind queries. */
function welcomeWaiting(pool: PgPool): void {
  finishWelcomeMsg(pool);
  eachSocket(pool.waitingClientList, (client) => {
    if (client.login?.phase === LoginPhase.WELCOME && client.replication === Replication.NONE) activateClient(client);
  });
}

function loginReady(server: ServerSocket): Verdict {
  const { pool } = server;
  const login = serverLoginOf(server);
  // after connect_query the transaction status is irrelevant: the reset query or the first BEGIN reveals it
  const asked = login.phase === ServerLoginPhase.CONNECT_QUERY;
  if (!asked && pool.db.config.connectQuery !== null && pool.db.config.connectQuery !== '') {
    login.phase = ServerLoginPhase.CONNECT_QUERY;
    slogDebug(server, 'server connect ok, send exec_on_connect');
    const buf = pktbufTemp();
    writeQuery(buf, pool.db.config.connectQuery);
    if (sendPacket(server, buf)) return Verdict.CONSUMED;
    disconnectServer(server, false, 'exec_on_connect query failed');
    return Verdict.DISCONNECTED;
  }
  const reason = misfit(server);
  if (reason !== null) {
    disconnectServer(server, true, reason, LoginOutcome.HOST_FAILED);
    return Verdict.DISCONNECTED;
  }
  slogDebug(server, 'server login ok, start accepting queries');
  observe(pool, Timing.LOGIN, getCachedTime() - login.connectedAt);
  server.ready = true;
  server.login = null;
  if (server.replication === Replication.NONE) welcomeWaiting(pool);
  else if (server.link?.login) server.link.login.welcome = login.welcome?.copy() ?? null;
  if (pool.db.admin) return upcalls.takeoverLoggedIn(server);
  releaseServer(server);
  return isDead(server) ? Verdict.DISCONNECTED : Verdict.CONSUMED;
}

/** Handles a login that the server rejected. Waiting clients get the error too, since their logins would also fail. */
function loginRefused(server: ServerSocket, buf: Buffer, off: number, end: number): Verdict {
  const error = parseServerError(buf, off, end);
  if (REFUSED_PASSWORD.includes(error.sqlstate) && passwordRefused(server)) {
    slogWarning(server, `server login failed: ${error.msg}: waiting for password_command`);
    disconnectServer(server, true, 'password refused', LoginOutcome.ABANDONED);
    return Verdict.DISCONNECTED;
  }
  const outcome = error.sqlstate === ERRCODE_CANNOT_CONNECT_NOW ? LoginOutcome.HOST_FAILED : LoginOutcome.FAILED;
  if (server.replication === Replication.NONE) {
    killPoolLoginsServerError(server.pool, error);
    disconnectServer(server, true, error.msg ?? '(null)', outcome);
  } else {
    // replication needs its own permissions, so the error does not apply to ordinary clients
    logError(serverErrorLine('S: login failed', error));
    disconnectServer(server, true, 'login failed', outcome);
  }
  return Verdict.DISCONNECTED;
}

/** Handles one complete packet of a server that is logging in, body in buf[off, end). */
export function handleServerStartup(
  server: ServerSocket,
  type: number,
  buf: Buffer,
  off: number,
  end: number,
): Verdict {
  const login = serverLoginOf(server);
  if (
    login.phase === ServerLoginPhase.CONNECT_QUERY &&
    type !== PqMsg.ReadyForQuery &&
    type !== PqMsg.ParameterStatus
  ) {
    if (type === PqMsg.ErrorResponse) {
      logError(serverErrorLine('S: error while executing exec_on_query', parseServerError(buf, off, end)));
    }
    return Verdict.CONSUMED;
  }
  if (login.protocolTry !== ProtocolTry.NONE && protocolRefused(server, type, buf, off, end))
    return Verdict.DISCONNECTED;
  // errors and notices may arrive at any time, and negotiateVersion() checks its own order; every other packet is valid
  // only before or only after AuthenticationOk
  const anyTime =
    type === PqMsg.ErrorResponse || type === PqMsg.NoticeResponse || type === PqMsg.NegotiateProtocolVersion;
  const wantsAuth = type === PqMsg.AuthenticationRequest;
  if (!anyTime && wantsAuth === login.phase >= ServerLoginPhase.AUTHENTICATED) {
    slogError(server, `protocol error: '${pktDesc(type)}' ${wantsAuth ? 'after' : 'before'} AuthenticationOk`);
    disconnectServer(server, true, 'unexpected pkt in login phase');
    return Verdict.DISCONNECTED;
  }
  switch (type) {
    case PqMsg.ErrorResponse:
      return loginRefused(server, buf, off, end);
    case PqMsg.NegotiateProtocolVersion:
      return negotiateVersion(server, new PktReader(buf, off, end)) ? Verdict.CONSUMED : Verdict.DISCONNECTED;
    case PqMsg.AuthenticationRequest:
      slogDebug(server, 'calling login_answer');
      if (answerAuthRequest(server, new PktReader(buf, off, end))) return Verdict.CONSUMED;
      disconnectServer(server, false, 'failed to answer authreq');
      return Verdict.DISCONNECTED;
    case PqMsg.ParameterStatus:
      return loginParameter(server, new PktReader(buf, off, end));
    case PqMsg.ReadyForQuery:
      return loginReady(server);
    case PqMsg.BackendKeyData:
      if (end - off < BACKENDKEY_LEN || end - off > BACKENDKEY_MAX) {
        disconnectServer(server, true, 'bad cancel key');
        return Verdict.DISCONNECTED;
      }
      server.cancelKey = detachBytes(buf, off, end);
      return Verdict.CONSUMED;
    case PqMsg.NoticeResponse:
      slogNoise(server, `skipping pkt: ${pktDesc(type)}`);
      return Verdict.CONSUMED;
    default:
      slogError(server, `unknown pkt from server: '${pktDesc(type)}'`);
      disconnectServer(server, true, 'unknown pkt from server');
      return Verdict.DISCONNECTED;
  }
}
