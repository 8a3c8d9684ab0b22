/*
 * SCRAM with a server, with or without channel binding, and what fails all logins of a pool.
 */

import { SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramState } from '../auth/scram';
import {
  buildClientFinalMessage,
  buildClientFirstMessage,
  checkScramLogin,
  readServerFinalMessage,
  readServerFirstMessage,
  verifyServerSignature,
} from '../auth/scram-client';
import { slogDebug, slogError, wantDebug } from '../base/log';
import { ChannelBindingMode } from '../config/choices';
import { cf } from '../config/settings';
import { disconnectClient } from '../link/objects';
import { isUnixAddr } from '../net/addr';
import { sendPacket } from '../net/sbuf';
import { tlsCertHash } from '../net/tls';
import type { PgCredentials, PgPool, ServerSocket } from '../pool/bouncer';
import { poolConnectedServerCount } from '../pool/pool';
import { serverLoginOf } from '../pool/socket';
import { findGlobalCredentials } from '../pool/user';
import { writeSASLInitialResponse, writeSASLResponse } from '../wire/messages';
import { pktbufTemp } from '../wire/pktbuf';
import type { PktReader } from '../wire/reader';

const BINDING_REQUIRED = 'channel binding is required, but the server does not bind the login to its TLS connection';

/** Disconnects the clients that wait for a server, since no login succeeds, unless usable servers are left. */
export function killPoolLogins(pool: PgPool, sqlstate: string | null, msg: string): void {
  if (poolConnectedServerCount(pool) !== 0 && pool.welcomeMsgReady) return;
  while (pool.waitingClientList.head !== null) disconnectClient(pool.waitingClientList.head, true, msg, sqlstate);
}

/** The credentials to log in with: a forced user without a password has that of auth_file. */
export function serverCredentials(server: ServerSocket): PgCredentials {
  const pool = server.pool;
  // the pool may have got others in the middle of this login
  const credentials = server.loginUser ?? (pool.user as PgCredentials);
  if (credentials.passwd === '' && pool.db.forcedUser !== null)
    return findGlobalCredentials(credentials.name) ?? credentials;
  return credentials;
}

/** Logs an error that every login to this server would meet, and disconnects the clients that wait for one. */
function loginImpossible(server: ServerSocket, reason: string): false {
  slogError(server, reason);
  killPoolLogins(server.pool, null, `server login failed: ${reason}`);
  return false;
}

/** True if a login must be bound to the TLS connection. A Unix socket never has TLS, so nothing is asked of it. */
export function bindingRequired(server: ServerSocket): boolean {
  return cf.serverChannelBinding === ChannelBindingMode.REQUIRE && !isUnixAddr(server.remoteAddr);
}

/** The server has to prove itself by channel binding, and does not. */
export function refuseUnbound(server: ServerSocket): false {
  return loginImpossible(server, BINDING_REQUIRED);
}

/** @param certHash the exchange is bound to it; null = it is not bound */
function loginScram(server: ServerSocket, flag: 'n' | 'y' | 'p', certHash: Buffer | null): boolean {
  const error = checkScramLogin(serverCredentials(server));
  if (error !== null) {
    slogError(server, error);
    killPoolLogins(server.pool, null, 'server login failed: wrong password type');
    return false;
  }
  const login = serverLoginOf(server);
  if (login.scram !== null) {
    slogError(server, 'protocol error: duplicate AuthenticationSASL message from server');
    return false;
  }
  login.scram = new ScramState();
  const message = buildClientFirstMessage(login.scram, flag, certHash);
  if (wantDebug()) slogDebug(server, `SCRAM client-first-message = "${message}"`);
  const buf = pktbufTemp();
  writeSASLInitialResponse(buf, certHash === null ? SCRAM_SHA_256 : SCRAM_SHA_256_PLUS, message);
  return sendPacket(server, buf);
}

/** Chooses one of the mechanisms that the server offers. @returns false if the login is over */
export function loginSasl(server: ServerSocket, reader: PktReader): boolean {
  slogDebug(server, 'S: req SASL');
  const offered = new Set<string>();
  for (;;) {
    const mechanism = reader.str();
    if (mechanism === null) return false;
    if (mechanism === '') break;
    if (wantDebug()) slogDebug(server, `S: SASL advertised mechanism: ${mechanism}`);
    offered.add(mechanism);
  }
  const able = server.tls && cf.serverChannelBinding !== ChannelBindingMode.DISABLE;
  const certHash = able && offered.has(SCRAM_SHA_256_PLUS) ? tlsCertHash(server, false) : null;
  if (certHash !== null) return loginScram(server, 'p', certHash);
  if (bindingRequired(server)) return refuseUnbound(server);
  if (!offered.has(SCRAM_SHA_256)) {
    return loginImpossible(server, "none of the server's SASL authentication mechanisms are supported");
  }
  // 'y' lets a server that does offer it notice that the offer was removed on the way
  return loginScram(server, able && !offered.has(SCRAM_SHA_256_PLUS) ? 'y' : 'n', null);
}

/** Answers the server's first message. @returns false if the login is over */
export function loginScramCont(server: ServerSocket, message: string): boolean {
  const state = serverLoginOf(server).scram;
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

/** Checks the server's last message. @returns false if the login is over */
export function loginScramFinal(server: ServerSocket, message: string): boolean {
  const login = serverLoginOf(server);
  const state = login.scram;
  login.scram = null;
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
  if (verifyServerSignature(state)) {
    login.channelBound = state.certHash !== null;
    return true;
  }
  slogError(server, 'invalid server signature');
  killPoolLogins(server.pool, null, 'server login failed: invalid server signature');
  return false;
}
