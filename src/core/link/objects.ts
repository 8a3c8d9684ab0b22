/*
 * Disconnecting clients and servers, and releasing a server from its client. They are in one file because they call one
 * another; link/, login/, session/ and life/ call them.
 */

import { getShutdownMode, ShutdownMode } from '../base/lifecycle';
import { fatal, slogDebug, slogInfo, slogNoise, wantDebug, wantNoise } from '../base/log';
import { native } from '../base/native';
import { getCachedTime, USEC } from '../base/time';
import { TargetSession } from '../config/choices';
import { cf } from '../config/settings';
import { dnsCancel } from '../net/dnslookup';
import {
  inPacket,
  sbufClose,
  sbufContinue,
  sbufIsEmpty,
  sbufPause,
  sendBytes,
  sendPacket,
  unblockSource,
} from '../net/sbuf';
import {
  databaseMinPoolSize,
  poolPoolSize,
  poolServerLifetime,
  serverLifetime,
  uncountServer,
} from '../pool/admission';
import {
  type AnySocket,
  type ClientSocket,
  type PgPool,
  Replication,
  type ServerSocket,
  SocketState,
} from '../pool/bouncer';
import { forgetCancelKey } from '../pool/cancel-keys';
import { ended } from '../pool/ended';
import { forgetListener, listenerClosed, wantsListener } from '../pool/listening';
import { Recovery } from '../pool/phases';
import { poolConnectedServerCount, touchPool } from '../pool/pool';
import { uncountClient } from '../pool/provisional';
import { cancelCount, dropUnsentCancels, isDead, sendingAuthQuery } from '../pool/socket';
import { freeClientStatements, freeServerStatements } from '../pool/statements';
import { changeClientState, changeServerState } from '../pool/states';
import { count, Stat } from '../pool/stats';
import { observe, Timing } from '../pool/timings';
import { PACKET_TERMINATE, writeQuery } from '../wire/messages';
import { pktbufTemp } from '../wire/pktbuf';
import { endAttempt, nextTarget } from './hosts';
import { queryOnRelease, settleLeftovers, usesResetQuery } from './leftovers';
import { sendNotifications } from './notifications';
import { logPoolerError, sendPoolerError } from './pooler-error';
import { beginRecovery, isRecoverable, RecoveryStep, recoveryStep } from './recovery';
import { isSettling, startSettling } from './settling';
import { claimOn } from './shares';

/** Longest reason in bytes: PgBouncer's buffer has 128. */
const REASON_MAX = 127;
/** Longest cached reason in bytes, sent to clients while servers cannot be reached: PgBouncer's buffer has 100. */
const CACHED_REASON_MAX = 99;

function logClosing(sk: AnySocket, reason: string): void {
  const age = Math.floor((getCachedTime() - sk.connectTime) / USEC);
  slogInfo(sk, `closing because: ${reason} (age=${age}s)`);
}

/** Releases the server of a client that is being disconnected, or closes it if it is not clean. */
function dropLinkedServer(client: ClientSocket): void {
  const server = client.link;
  if (server === null) return;
  const whole = !inPacket(client);
  if (server.ready && server.requests.count === 0 && whole && sbufIsEmpty(server)) {
    if (client.vanished) startSettling(server.pool);
    releaseServer(server);
    return;
  }
  const recoverable = isRecoverable(server, client);
  server.link = null;
  client.link = null;
  if (recoverable && beginRecovery(server)) continueRecovery(server);
  else if (!server.ready) disconnectServer(server, whole, 'client disconnect while server was not ready');
  else if (server.requests.count > 0) disconnectServer(server, whole, 'client disconnected with query in progress');
  else disconnectServer(server, whole, 'client disconnect before everything was sent to the server');
}

/** Takes the next step of a server's recovery. */
export function continueRecovery(server: ServerSocket): void {
  const step = recoveryStep(server);
  if (step === RecoveryStep.DONE) releaseServer(server);
  else if (step === RecoveryStep.FAILED) disconnectServer(server, true, 'recovery failed');
}

/** Drops a cancel request: closes its connection, and releases the server to be canceled if that waited for it. */
function dropCancelRequest(req: ClientSocket): void {
  const carrier = req.link;
  if (carrier !== null) {
    carrier.link = null;
    req.link = null;
    const reason = 'client gave up on cancel request, so we also give up forwarding to server';
    disconnectServer(carrier, false, reason, LoginOutcome.CONNECTED);
  }
  const target = req.canceledServer;
  if (target === null) return;
  req.canceledServer = null;
  target.cancelingClients?.splice(target.cancelingClients.indexOf(req), 1);
  if (target.recovery !== Recovery.NONE) continueRecovery(target);
  else if (target.state === SocketState.SV_BEING_CANCELED && cancelCount(target) === 0) releaseServer(target);
}

/**
 * Disconnects a client. No other function closes a client connection.
 * @param notify send the reason as an error, unless the client has received a part of a packet; false if the stream is
 *   broken
 * @param reason for the log and the client; null = neither
 * @param sqlstate null = protocol_violation
 * @param source the server whose packets it receives; it may have been unlinked
 */
export function disconnectClient(
  client: ClientSocket,
  notify: boolean,
  reason: string | null,
  sqlstate: string | null = null,
  source: ServerSocket | null = client.link,
): void {
  if (isDead(client)) return;
  const text = reason === null ? null : reason.slice(0, REASON_MAX);
  if (cf.logDisconnections && text !== null) logClosing(client, text);
  const inAnswer = source !== null && inPacket(source);

  switch (client.state) {
    case SocketState.CL_ACTIVE:
    case SocketState.CL_LOGIN:
      dropLinkedServer(client);
      break;
    case SocketState.CL_ACTIVE_CANCEL:
    case SocketState.CL_WAITING_CANCEL:
      dropCancelRequest(client);
      break;
    case SocketState.CL_WAITING:
    case SocketState.CL_WAITING_LOGIN:
      observe(client.pool as PgPool, Timing.WAIT, getCachedTime() - client.waitStart);
      // a replication client is linked while its server is still logging in
      if (client.replication !== Replication.NONE && client.link !== null) {
        const server = client.link;
        server.link = null;
        client.link = null;
        disconnectServer(server, false, 'replication client disconnected', LoginOutcome.ABANDONED);
      }
      break;
    default:
      fatal(`bad client state: ${client.state}, ${text ?? 'NULL'}`);
  }

  // with ReadyForQuery, the client would not notice that the connection is closed
  if (notify && text !== null && client.state !== SocketState.CL_WAITING_CANCEL) {
    if (inAnswer) logPoolerError(client, text);
    else sendPoolerError(client, false, true, sqlstate, text);
  }

  forgetCancelKey(client);
  forgetListener(client);
  freeClientStatements(client);
  uncountClient(client);
  changeClientState(client, SocketState.CL_JUSTFREE);
  sbufClose(client);
}

/** What the end of a connection that has not logged in means for its server. */
export const enum LoginOutcome {
  /** The login failed: clients are told why, and the next attempt waits for server_login_retry. */
  FAILED,
  /**
   * The host cannot be reached, or does not accept connections now. The next host is tried at once; the login fails
   * only if all hosts fail. These failures are:
   * - a name without an address
   * - a connect that is refused or times out, and a connection that breaks before the login is complete
   * - "the database system is starting up" and similar errors (57P03)
   * - a server that cannot fork
   *
   * A rejected password, rejected or failed TLS, and all other errors of a server are not: using another host would
   * hide a fault of this host.
   */
  HOST_FAILED,
  /** The pooler closed it (PAUSE, RELOAD, RECONNECT, SUSPEND, KILL): no conclusion. */
  ABANDONED,
  /** The server can be reached: the connection was for a cancel request, or the server wants an older version. */
  CONNECTED,
}

/** Disconnects the client of a server that is being closed. A logged-in client is told the reason. */
function unlinkServer(server: ServerSocket, reason: string): void {
  const client = server.link;
  if (client === null) return;
  client.link = null;
  server.link = null;
  if (client.state === SocketState.CL_ACTIVE || client.state === SocketState.CL_WAITING) {
    disconnectClient(client, true, reason, null, server);
  } else if (client.state === SocketState.CL_ACTIVE_CANCEL) {
    disconnectClient(client, false, 'successfully sent cancel request');
  } else {
    disconnectClient(client, true, 'bouncer config error');
  }
}

/** Makes the replication client of a failed login wait for the next login. */
function unlinkForRetry(server: ServerSocket): void {
  if (server.link !== null) server.link.link = null;
  server.link = null;
}

/** Handles the end of a connection that has not logged in: whether clients are told, and when the next is launched. */
function loginEnded(server: ServerSocket, reason: string, outcome: LoginOutcome): void {
  const pool = server.pool;
  switch (outcome) {
    case LoginOutcome.HOST_FAILED:
      // several logins were in progress, and another of them has reported this failure, or has succeeded
      if (server.login !== null && server.login.attempt !== pool.attempt) {
        unlinkForRetry(server);
        return;
      }
      if (nextTarget(server)) {
        unlinkForRetry(server);
        return;
      }
      break;
    case LoginOutcome.FAILED:
      endAttempt(pool);
      break;
    case LoginOutcome.CONNECTED:
      pool.lastConnectFailed = false;
      return;
    case LoginOutcome.ABANDONED:
      unlinkForRetry(server);
      return;
  }
  pool.lastLoginFailed = true;
  pool.lastConnectFailed = true;
  pool.holding = outcome === LoginOutcome.HOST_FAILED && pool.db.config.targetSession !== TargetSession.ANY;
  pool.lastConnectFailedMessage = reason.slice(0, CACHED_REASON_MAX);
  if (pool.holding) unlinkForRetry(server);
  else unlinkServer(server, reason);
}

/**
 * Disconnects a server. No other function closes a server connection.
 * @param sendTerm send Terminate first, unless the server has received a part of a packet; false if the stream is broken
 * @param outcome what the end means for the server if the connection has not logged in; ignored otherwise
 */
export function disconnectServer(
  server: ServerSocket,
  sendTerm: boolean,
  reason: string,
  outcome: LoginOutcome = LoginOutcome.FAILED,
): void {
  if (isDead(server)) return;
  const text = reason.slice(0, REASON_MAX);
  if (cf.logDisconnections) logClosing(server, text);
  const inRequest = server.link !== null && inPacket(server.link);

  switch (server.state) {
    case SocketState.SV_ACTIVE_CANCEL:
    case SocketState.SV_ACTIVE:
      unlinkServer(server, text);
      break;
    case SocketState.SV_TESTED:
    case SocketState.SV_USED:
    case SocketState.SV_IDLE:
    case SocketState.SV_BEING_CANCELED:
      break;
    case SocketState.SV_LOGIN:
      loginEnded(server, text, outcome);
      break;
    case SocketState.SV_LISTEN:
      listenerClosed(server, getCachedTime() + cf.serverLoginRetry);
      break;
    default:
      fatal(`bad server state: ${server.state}, ${text}`);
  }
  if (isDead(server)) return;

  if (server.cancelingClients !== null) {
    for (const req of server.cancelingClients) req.canceledServer = null;
    server.cancelingClients = null;
  }
  if (sendTerm && !inRequest && server.handle >= 0) sendBytes(server, PACKET_TERMINATE, PACKET_TERMINATE.length);
  if (server.login !== null && server.login.dnsToken >= 0) dnsCancel(server.login.dnsToken);
  server.login = null;
  freeServerStatements(server);
  uncountServer(server);
  changeServerState(server, SocketState.SV_JUSTFREE);
  sbufClose(server);
}

/**
 * True if a server has reached its lifetime. Such closings are spread over the lifetime, so that the connections of a
 * pool are not all replaced at once.
 */
export function lifetimeExceeded(server: ServerSocket): boolean {
  const pool = server.pool;
  const now = getCachedTime();
  const lifetime = serverLifetime(server);
  if (now - server.connectTime < lifetime) return false;
  const size = poolPoolSize(pool);
  const gap = size > 0 ? lifetime / size : 0;
  return now - pool.lastLifetimeDisconnect >= gap && !waitsForReplacement(server, now - lifetime);
}

/**
 * True if a server at the end of its lifetime must be replaced first, because its pool would have fewer than
 * min_pool_size. The maintenance launches the replacement.
 * @param since usec; a server that connected before that has reached its lifetime
 */
function waitsForReplacement(server: ServerSocket, since: number): boolean {
  const pool = server.pool;
  const overdue = since - server.connectTime;
  if (pool.lastConnectFailed || overdue > Math.min(cf.serverConnectTimeout, poolServerLifetime(pool))) return false;
  const connected = poolConnectedServerCount(pool);
  const size = poolPoolSize(pool);
  if (connected > databaseMinPoolSize(pool.db) || (size > 0 && connected >= size)) return false;
  pool.replacing = true;
  return true;
}

function resetOnRelease(server: ServerSocket): void {
  const query = queryOnRelease(server);
  if (wantDebug()) slogDebug(server, `resetting: ${query}`);
  // until the reset query is answered: a flush later in this turn must not release the server again
  server.ready = false;
  server.resetting = true;
  server.unnamedSeq = 0;
  const buf = pktbufTemp();
  writeQuery(buf, query);
  if (!sendPacket(server, buf)) disconnectServer(server, false, 'reset query failed');
}

/**
 * Disconnects a waiting client whose connection has ended. The pooler does not read from a waiting client, so the loop
 * does not report the end. It is checked before the client gets a server: otherwise the server would have to be closed,
 * because its client disappears in the middle of a query.
 * @returns true if the client was disconnected
 */
export function dropIfEnded(client: ClientSocket): boolean {
  if (native.ended(client.handle) <= 0) return false;
  disconnectClient(client, false, 'client unexpected eof');
  return true;
}

/** Wakes the first waiting client of the pool that is still connected, so that it gets the released server. */
function reuseOnRelease(server: ServerSocket): void {
  const pool = server.pool;
  if (isSettling(pool) || wantsListener(pool)) return;
  const waiting = pool.waitingClientList;
  while (waiting.head !== null && dropIfEnded(waiting.head));
  const client = waiting.head;
  if (client !== null && (client.replication === Replication.NONE || sendingAuthQuery(client))) activateClient(client);
}

/** Unlinks a server from its client. @returns the next state of a server that need not be closed */
function unlinkOnRelease(server: ServerSocket): SocketState {
  const client = server.link;
  if (client !== null) {
    client.link = null;
    server.link = null;
    client.earlierUnnamed = null;
    if (ended.wanted) ended.clients.push(client);
    if (client.listening !== null) sendNotifications(client);
    // the client waited until this server had sent its bytes, and no further event would wake it
    if (client.blocked) unblockSource(client);
  }
  if (usesResetQuery(server) || settleLeftovers(server, client)) return SocketState.SV_TESTED;
  if (cf.serverCheckDelay === 0 && cf.serverCheckQuery !== '') return SocketState.SV_USED;
  return SocketState.SV_IDLE;
}

function stateOnRelease(server: ServerSocket): SocketState {
  switch (server.state) {
    case SocketState.SV_BEING_CANCELED:
    case SocketState.SV_ACTIVE:
      return unlinkOnRelease(server);
    case SocketState.SV_TESTED:
      if (server.recovery === Recovery.NONE) return SocketState.SV_IDLE;
      server.recovery = Recovery.NONE;
      return unlinkOnRelease(server);
    case SocketState.SV_USED:
      return SocketState.SV_IDLE;
    case SocketState.SV_LOGIN: {
      const pool = server.pool;
      pool.lastLoginFailed = pool.holding = false;
      pool.lastConnectFailed = false;
      endAttempt(pool);
      return SocketState.SV_IDLE;
    }
    default:
      return fatal(`bad server state in release_server (${server.state})`);
  }
}

/** Closes a server that must not be reused. @returns false if the server is kept */
function closeOnRelease(server: ServerSocket): boolean {
  if (server.state !== SocketState.SV_LOGIN && lifetimeExceeded(server)) {
    disconnectServer(server, true, 'server lifetime over');
    server.pool.lastLifetimeDisconnect = getCachedTime();
    return true;
  }
  if (server.requests.count > 0) {
    // the answers would reach the next client
    disconnectServer(server, true, 'client disconnected with queries in progress');
    return true;
  }
  if (server.closeNeeded) {
    disconnectServer(server, true, 'close_needed', LoginOutcome.ABANDONED);
    return true;
  }
  const claim = server.state === SocketState.SV_LOGIN ? null : claimOn(server);
  if (claim !== null) {
    disconnectServer(server, true, 'evicted for a fair share');
    touchPool(claim);
    return true;
  }
  return false;
}

/** A replication connection has logged in: links it to its client. */
function releaseToReplicationClient(server: ServerSocket): void {
  if (server.link === null) {
    disconnectServer(server, true, 'replication client was closed', LoginOutcome.ABANDONED);
    return;
  }
  if (wantDebug()) slogDebug(server, 'release_server: new replication connection ready');
  changeServerState(server, SocketState.SV_ACTIVE);
  activateClient(server.link);
}

/**
 * Releases a server that has logged in, or whose client is done with it: to the next waiting client, to the reset
 * query, or to the idle list. It is closed instead if it must not be reused.
 */
export function releaseServer(server: ServerSocket): void {
  const newState = stateOnRelease(server);
  dropUnsentCancels(server);
  if (closeOnRelease(server)) return;

  if (cancelCount(server) > 0) {
    changeServerState(server, SocketState.SV_BEING_CANCELED);
    return;
  }
  if (server.replication !== Replication.NONE) {
    releaseToReplicationClient(server);
    return;
  }

  if (wantNoise()) slogNoise(server, `release_server: new state=${newState}`);
  changeServerState(server, newState);
  if (newState === SocketState.SV_IDLE) reuseOnRelease(server);
  else if (newState === SocketState.SV_TESTED) resetOnRelease(server);
}

/** Puts a client without a server in the queue. */
export function pauseClient(client: ClientSocket): void {
  if (wantDebug()) slogDebug(client, 'pause_client');
  if (getShutdownMode() === ShutdownMode.WAIT_FOR_SERVERS) {
    disconnectClient(client, true, 'server shutting down');
    return;
  }
  changeClientState(client, SocketState.CL_WAITING);
  sbufPause(client);
}

/** Takes a client out of the queue; the packet that made it wait is handled again. */
export function activateClient(client: ClientSocket): void {
  const pool = client.pool as PgPool;
  const waited = getCachedTime() - client.waitStart;
  count(pool.stats, Stat.WAIT_TIME, waited);
  observe(pool, Timing.WAIT, waited);
  if (wantDebug()) slogDebug(client, 'activate_client');
  changeClientState(client, SocketState.CL_ACTIVE);
  sbufContinue(client);
}
