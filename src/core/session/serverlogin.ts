/*
 * Logging in to a server: startup packet, authentication in the way the server asks for, parameters, connect_query.
 */
import { md5Answer, PasswordType, passwordType } from '../auth/md5';
import { SCRAM_SHA_256, ScramState } from '../auth/scram';
import {
  buildClientFinalMessage,
  buildClientFirstMessage,
  checkScramLogin,
  readServerFinalMessage,
  readServerFirstMessage,
  verifyServerSignature,
} from '../auth/scramClient';
import { logError, logNoise, logWarning, slogDebug, slogError, slogInfo, slogNoise, wantDebug } from '../base/log';
import { arena, native } from '../base/native';
import { getCachedTime } from '../base/time';
import { cf, SslMode } from '../config/settings';
import { addrString, fillLocalAddr, isUnixAddr } from '../net/addr';
import { sbufContinue, sendBytes, sendPacket } from '../net/sbuf';
import { sbufTlsConnect, tlsConnectionInfo, tlsState } from '../net/tls';
import { type PgPool, poolConnectedServerCount } from '../pool/pool';
import { isDead, type PgSocket, Replication, replicationTypeParameters, sendingAuthQuery } from '../pool/socket';
import { findGlobalCredentials, type PgCredentials } from '../pool/user';
import { varcacheApplyStartup, varcacheSet } from '../pool/varcache';
import {
  finishStartup,
  PACKET_SSL_REQUEST,
  putStartupParam,
  startStartup,
  writePassword,
  writeQuery,
  writeSASLInitialResponse,
  writeSASLResponse,
} from '../wire/messages';
import { AuthReq, BACKENDKEY_LEN, PqMsg } from '../wire/packets';
import { pktbufTemp } from '../wire/pktbuf';
import { PktReader, parseServerError, pktDesc, serverErrorLine } from '../wire/reader';
import { Act } from './act';
import { forwardCancelRequest } from './cancel';
import { disconnectClient, disconnectServer, releaseServer } from './objects';
import { addWelcomeParameter, finishWelcomeMsg, forgetWelcomeParts } from './welcome';

/** The server is starting up or shutting down: clients may wait for it. */
const ERRCODE_CANNOT_CONNECT_NOW = '57P03';
/** Answers to SSLRequest: 'S' and 'N'. */
const SSL_YES = 0x53;
const SSL_NO = 0x4e;

/** The console's pseudo-server of a handover (src/takeover) takes over here when its login is done or fails. */
export const adminServerSlot: { loginDone: (server: PgSocket) => Act } = { loginDone: () => Act.DEAD };

/** Nobody can log in: clients that wait for a server of this pool are told so, unless usable ones are left. */
function killPoolLogins(pool: PgPool, sqlstate: string | null, msg: string): void {
  if (poolConnectedServerCount(pool) !== 0 && pool.welcomeMsgReady) return;
  while (pool.waitingClientList.head !== null) disconnectClient(pool.waitingClientList.head, true, msg, sqlstate);
}

/** Likewise, in the server's own words. @returns them, or null */
function killPoolLoginsServerError(pool: PgPool, buf: Buffer, off: number, end: number): string | null {
  const { level, msg, sqlstate } = parseServerError(buf, off, end);
  logWarning(level !== null && msg !== null ? `server login failed: ${level} ${msg}` : 'server login failed');
  if (sqlstate !== ERRCODE_CANNOT_CONNECT_NOW) {
    logNoise(`kill_pool_logins_server_error: sqlstate: ${sqlstate ?? 'NULL'}`);
    killPoolLogins(pool, sqlstate, msg ?? 'server login failed');
  }
  return msg;
}

/* ---- connect ---- */

/** The connection is open: a waiting cancel request goes first, else login begins. */
export function serverConnected(server: PgSocket): void {
  const pool = server.pool as PgPool;
  slogDebug(server, 'S: connect ok');
  const isUnix = isUnixAddr(server.remoteAddr);
  fillLocalAddr(server, native.fdOf(server.handle), isUnix);
  if (cf.logConnections) {
    slogInfo(
      server,
      isUnix ? 'new connection to server' : `new connection to server (from ${addrString(server.localAddr)})`,
    );
  }
  if (pool.waitingCancelReqList.count > 0) {
    slogDebug(server, 'use it for pending cancel req');
    forwardCancelRequest(server);
  } else if (pool.db.peerId > 0) {
    // tells disconnectServer that the connect did not fail
    server.ready = true;
    const reason = 'peer server was not necessary anymore, because client cancel connection was already closed';
    disconnectServer(server, false, reason);
  } else if (beginLogin(server, isUnix)) {
    sbufContinue(server);
  } else {
    disconnectServer(server, false, 'startup pkt failed');
  }
}

/** Asks for TLS first, unless that is off; over a Unix socket nobody listens. */
function beginLogin(server: PgSocket, isUnix: boolean): boolean {
  if (isUnix || tlsState.serverConnectSslmode === SslMode.DISABLED) return sendStartupMessage(server);
  slogNoise(server, 'P: SSL request');
  server.waitSslchar = true;
  return sendBytes(server, PACKET_SSL_REQUEST, PACKET_SSL_REQUEST.length);
}

/** The answer to SSLRequest, in the arena at `off`: one byte, and nothing else that TLS would not protect. */
export function handleSslchar(server: PgSocket, off: number, length: number): void {
  server.waitSslchar = false;
  const answer = arena[off];
  if (answer !== SSL_YES && answer !== SSL_NO) {
    disconnectServer(server, false, 'bad sslreq answer');
  } else if (length > 1) {
    disconnectServer(server, false, 'received unencrypted data after SSL response');
  } else if (answer === SSL_YES) {
    slogNoise(server, 'launching tls');
    if (!sbufTlsConnect(server, server.host)) disconnectServer(server, false, 'sslreq processing failed');
  } else if (tlsState.serverConnectSslmode >= SslMode.REQUIRE) {
    disconnectServer(server, false, 'server refused SSL');
  } else if (!sendStartupMessage(server)) {
    disconnectServer(server, false, 'sslreq processing failed');
  }
}

/** The handshake is done: login begins. */
export function serverTlsReady(server: PgSocket): void {
  const text = `SSL established: ${tlsConnectionInfo(server)}`;
  if (cf.logConnections) slogInfo(server, text);
  else slogNoise(server, text);
  server.requestTime = getCachedTime();
  if (!sendStartupMessage(server)) disconnectServer(server, false, 'TLS startup failed');
}

function sendStartupMessage(server: PgSocket): boolean {
  slogNoise(server, 'P: startup');
  const pool = server.pool as PgPool;
  if (!pool.welcomeMsgReady) forgetWelcomeParts(pool);
  const buf = pktbufTemp();
  startStartup(buf);
  for (const [name, value] of pool.db.startupParams) putStartupParam(buf, name, value);

  const client = pool.waitingClientList.head;
  const replicating = client !== null && client.replication !== Replication.NONE && !sendingAuthQuery(client);
  if (replicating) {
    server.replication = client.replication;
    slogDebug(server, 'send_startup_packet: creating replication connection');
    putStartupParam(buf, 'replication', replicationTypeParameters[server.replication] as string);
    // SET is not possible on a physical replication connection, so the variables go along here
    varcacheApplyStartup(buf, client.vars);
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

/* ---- authentication ---- */

/** The credentials to log in with: a forced user without a password takes that of auth_file. */
function serverCredentials(server: PgSocket): PgCredentials {
  const pool = server.pool as PgPool;
  const credentials = pool.user as PgCredentials;
  if (credentials.passwd === '' && pool.db.forcedUser !== null)
    return findGlobalCredentials(credentials.name) ?? credentials;
  return credentials;
}

function sendPassword(server: PgSocket, passwd: string): boolean {
  const buf = pktbufTemp();
  writePassword(buf, passwd);
  return sendPacket(server, buf);
}

function loginMd5(server: PgSocket, reader: PktReader): boolean {
  const salt = reader.bytes(4);
  if (salt === null) return false;
  const credentials = serverCredentials(server);
  slogDebug(server, 'P: send md5 password');
  const answer = md5Answer(server, credentials.passwd, credentials.name, salt);
  if (answer !== null) return sendPassword(server, answer);
  if (passwordType(credentials.passwd) === PasswordType.SCRAM_SHA_256) {
    killPoolLogins(server.pool as PgPool, null, 'server login failed: wrong password type');
  }
  return false;
}

function loginScram(server: PgSocket): boolean {
  const error = checkScramLogin(serverCredentials(server));
  if (error !== null) {
    slogError(server, error);
    killPoolLogins(server.pool as PgPool, null, 'server login failed: wrong password type');
    return false;
  }
  if (server.scram !== null) {
    slogError(server, 'protocol error: duplicate AuthenticationSASL message from server');
    return false;
  }
  server.scram = new ScramState();
  const message = buildClientFirstMessage(server.scram);
  if (wantDebug()) slogDebug(server, `SCRAM client-first-message = "${message}"`);
  const buf = pktbufTemp();
  writeSASLInitialResponse(buf, SCRAM_SHA_256, message);
  return sendPacket(server, buf);
}

function loginSasl(server: PgSocket, reader: PktReader): boolean {
  slogDebug(server, 'S: req SASL');
  for (;;) {
    const mechanism = reader.str();
    if (mechanism === null) return false;
    if (mechanism === '') break;
    if (wantDebug()) slogDebug(server, `S: SASL advertised mechanism: ${mechanism}`);
    if (mechanism === SCRAM_SHA_256) return loginScram(server);
  }
  const reason = "none of the server's SASL authentication mechanisms are supported";
  slogError(server, reason);
  killPoolLogins(server.pool as PgPool, null, `server login failed: ${reason}`);
  return false;
}

function loginScramCont(server: PgSocket, message: string): boolean {
  const state = server.scram;
  if (state === null) {
    slogError(server, 'protocol error: AuthenticationSASLContinue without prior AuthenticationSASL');
    return false;
  }
  if (state.serverFirstMessage !== null) {
    slogError(server, 'SCRAM exchange protocol error: received second AuthenticationSASLContinue');
    return false;
  }
  if (wantDebug()) slogDebug(server, `SCRAM server-first-message = "${message}"`);
  const error = readServerFirstMessage(state, message);
  if (error !== null) {
    slogError(server, error);
    return false;
  }
  const answer = buildClientFinalMessage(state, serverCredentials(server));
  if (wantDebug()) slogDebug(server, `SCRAM client-final-message = "${answer}"`);
  const buf = pktbufTemp();
  writeSASLResponse(buf, answer);
  return sendPacket(server, buf);
}

function loginScramFinal(server: PgSocket, message: string): boolean {
  const state = server.scram;
  server.scram = null;
  if (state === null || state.serverFirstMessage === null) {
    slogError(server, 'protocol error: AuthenticationSASLFinal without prior AuthenticationSASLContinue');
    return false;
  }
  if (wantDebug()) slogDebug(server, `SCRAM server-final-message = "${message}"`);
  const error = readServerFinalMessage(state, message);
  if (error !== null) {
    slogError(server, error);
    return false;
  }
  if (verifyServerSignature(state)) return true;
  slogError(server, 'invalid server signature');
  killPoolLogins(server.pool as PgPool, null, 'server login failed: invalid server signature');
  return false;
}

/** A server that leaves out the end of SCRAM has not shown that it knows the secret. */
function authenticationOk(server: PgSocket): boolean {
  if (server.scram !== null) {
    slogError(server, 'protocol error: AuthenticationOk before the end of the SCRAM exchange');
    return false;
  }
  slogDebug(server, 'S: auth ok');
  server.authOk = true;
  return true;
}

function answerAuthRequest(server: PgSocket, reader: PktReader): boolean {
  const request = reader.u32();
  if (reader.fail) return false;
  switch (request) {
    case AuthReq.OK:
      return authenticationOk(server);
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

/* ---- packets ---- */

/** ParameterStatus during login: remembered for the clients of the pool. */
function loginParameter(server: PgSocket, reader: PktReader): Act {
  const name = reader.str();
  const value = reader.str();
  if (name === null || value === null) {
    disconnectServer(server, true, 'broken ParameterStatus packet');
    return Act.DEAD;
  }
  if (wantDebug()) slogDebug(server, `S: param: ${name} = ${value}`);
  varcacheSet(server.vars, name, value);
  if (server.link !== null) varcacheSet(server.link.vars, name, value);
  if (addWelcomeParameter(server.pool as PgPool, name, value)) return Act.SKIP;
  disconnectServer(server, true, 'too many parameters from server');
  return Act.DEAD;
}

function loginReady(server: PgSocket): Act {
  const pool = server.pool as PgPool;
  if (server.execOnConnect) {
    // its transaction status does not matter: the reset query or the first BEGIN will tell
    server.execOnConnect = false;
  } else if (pool.db.connectQuery !== null && pool.db.connectQuery !== '') {
    server.execOnConnect = true;
    slogDebug(server, 'server connect ok, send exec_on_connect');
    const buf = pktbufTemp();
    writeQuery(buf, pool.db.connectQuery);
    if (sendPacket(server, buf)) return Act.SKIP;
    disconnectServer(server, false, 'exec_on_connect query failed');
    return Act.DEAD;
  }
  slogDebug(server, 'server login ok, start accepting queries');
  server.ready = true;
  finishWelcomeMsg(pool);
  if (pool.db.admin) return adminServerSlot.loginDone(server);
  releaseServer(server);
  return isDead(server) ? Act.DEAD : Act.SKIP;
}

/** The server refused the login. Waiting clients hear it too, since they would meet the same. */
function loginRefused(server: PgSocket, buf: Buffer, off: number, end: number): Act {
  if (server.replication === Replication.NONE) {
    const msg = killPoolLoginsServerError(server.pool as PgPool, buf, off, end);
    disconnectServer(server, true, msg ?? '(null)');
  } else {
    // replication needs rights of its own: says nothing about ordinary clients
    logError(serverErrorLine('S: login failed', parseServerError(buf, off, end)));
    disconnectServer(server, true, 'login failed');
  }
  return Act.DEAD;
}

/** The order of a login: what comes before AuthenticationOk, and what behind it. @returns why this packet breaks it, or null */
function outOfOrder(server: PgSocket, type: number): string | null {
  switch (type) {
    case PqMsg.AuthenticationRequest:
      return server.authOk ? 'authentication request after AuthenticationOk' : null;
    case PqMsg.ParameterStatus:
    case PqMsg.BackendKeyData:
    case PqMsg.ReadyForQuery:
      return server.authOk ? null : `${pktDesc(type)} before AuthenticationOk`;
    default:
      return null;
  }
}

/** One complete packet of a server that is logging in, body in buf[off, end). */
export function handleServerStartup(server: PgSocket, type: number, buf: Buffer, off: number, end: number): Act {
  const fault = outOfOrder(server, type);
  if (fault !== null) {
    slogError(server, `protocol error: ${fault}`);
    disconnectServer(server, true, 'server broke the order of its login');
    return Act.DEAD;
  }
  if (server.execOnConnect && type !== PqMsg.ReadyForQuery && type !== PqMsg.ParameterStatus) {
    if (type === PqMsg.ErrorResponse) {
      logError(serverErrorLine('S: error while executing exec_on_query', parseServerError(buf, off, end)));
    }
    return Act.SKIP;
  }
  switch (type) {
    case PqMsg.ErrorResponse:
      return loginRefused(server, buf, off, end);
    case PqMsg.AuthenticationRequest:
      slogDebug(server, 'calling login_answer');
      if (answerAuthRequest(server, new PktReader(buf, off, end))) return Act.SKIP;
      disconnectServer(server, false, 'failed to answer authreq');
      return Act.DEAD;
    case PqMsg.ParameterStatus:
      return loginParameter(server, new PktReader(buf, off, end));
    case PqMsg.ReadyForQuery:
      return loginReady(server);
    case PqMsg.BackendKeyData:
      if (end - off < BACKENDKEY_LEN) {
        disconnectServer(server, true, 'bad cancel key');
        return Act.DEAD;
      }
      server.cancelKey = Buffer.from(buf.subarray(off, off + BACKENDKEY_LEN));
      return Act.SKIP;
    case PqMsg.NoticeResponse:
      slogNoise(server, `skipping pkt: ${pktDesc(type)}`);
      return Act.SKIP;
    default:
      slogError(server, `unknown pkt from server: '${pktDesc(type)}'`);
      disconnectServer(server, true, 'unknown pkt from server');
      return Act.DEAD;
  }
}
