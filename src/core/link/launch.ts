/*
 * Launches server connections: whether another connection is allowed, which server is evicted for it, and its host.
 */

import { nextOf } from '../base/list';
import { logDebug, slogWarning, wantDebug } from '../base/log';
import { Tally, tally } from '../base/tallies';
import { getCachedTime, USEC } from '../base/time';
import { cf } from '../config/settings';
import {
  countServer,
  databaseMaxConnections,
  poolLoginLimit,
  poolPoolSize,
  poolResPoolSize,
  userMaxConnections,
} from '../pool/admission';
import {
  type ClientSocket,
  type PgGlobalUser,
  type PgPool,
  Replication,
  type ServerSocket,
  SocketState,
} from '../pool/bouncer';
import { poolServerCount, touchPool } from '../pool/pool';
import { sendingAuthQuery } from '../pool/socket';
import { changeServerState, newServer } from '../pool/states';
import { connectBeside, connectToHost } from './connect';
import { attemptContinues, cancelMayConnect, endAttempt, pickHost, retryWait } from './hosts';
import { disconnectServer } from './objects';
import { awaitsPassword } from './password-command';
import { claimBefore, claimShare, settleClaim } from './shares';

function leastRecentlyUsed(a: ServerSocket | null, b: ServerSocket | null): ServerSocket | null {
  if (a === null) return b;
  if (b === null) return a;
  return a.requestTime < b.requestTime ? a : b;
}

/**
 * Closes the longest idle server in these pools.
 * @param limit the setting that is full, for the log
 * @returns false if none can be closed
 */
function evictFrom(pools: readonly PgPool[], limit: 'max_db_connections' | 'max_user_connections'): boolean {
  let oldest: ServerSocket | null = null;
  for (const pool of pools) {
    oldest = leastRecentlyUsed(oldest, pool.idleServerList.tail);
    // do not evict servers being tested while clients wait: they are about to become idle
    if (pool.waitingClientList.count > 0) continue;
    oldest = leastRecentlyUsed(oldest, pool.usedServerList.tail);
    oldest = leastRecentlyUsed(oldest, pool.testedServerList.tail);
  }
  if (oldest === null) return false;
  tally(limit === 'max_db_connections' ? Tally.EVICTED_FOR_DATABASE : Tally.EVICTED_FOR_USER);
  disconnectServer(oldest, true, `evicted for ${limit}`);
  return true;
}

function evictPoolConnection(pool: PgPool): boolean {
  const oldest = pool.idleServerList.tail;
  if (oldest === null) return false;
  tally(Tally.EVICTED_FOR_POOL);
  disconnectServer(oldest, true, 'evicted for pool_size');
  return true;
}

function databaseHasRoom(pool: PgPool, evict: boolean): boolean {
  const db = pool.db;
  const max = databaseMaxConnections(db);
  if (max <= 0) return true;
  while (evict && db.connectionCount >= max) if (!evictFrom(db.pools, 'max_db_connections')) break;
  if (db.connectionCount < max) {
    const other = claimBefore(pool);
    if (other === null) return true;
    touchPool(other);
  }
  claimShare(pool);
  if (wantDebug()) logDebug(`launch_new_connection: database '${db.name}' full (${db.connectionCount} >= ${max})`);
  return false;
}

function userHasRoom(user: PgGlobalUser, evict: boolean): boolean {
  const max = userMaxConnections(user);
  if (max <= 0) return true;
  while (evict && user.connectionCount >= max) if (!evictFrom(user.pools, 'max_user_connections')) break;
  if (user.connectionCount < max) return true;
  if (wantDebug()) logDebug(`launch_new_connection: user '${user.name}' full (${user.connectionCount} >= ${max})`);
  return false;
}

/** True if pool_size, the reserve pool, or an eviction for a replication client leaves room. */
function poolHasRoom(pool: PgPool, evict: boolean): boolean {
  const size = poolPoolSize(pool);
  let count = poolServerCount(pool);
  if (size <= 0 || count < size) return true;
  const waiter = pool.waitingClientList.head;
  const forReplication = waiter !== null && waiter.replication !== Replication.NONE && !sendingAuthQuery(waiter);
  // the first ordinary server is needed for the welcome message
  if (!pool.welcomeMsgReady && !forReplication) return true;
  const reserve = poolResPoolSize(pool);
  if (cf.reservePoolTimeout > 0 && reserve > 0 && waiter !== null) {
    if (getCachedTime() - waiter.requestTime >= cf.reservePoolTimeout && count < size + reserve) {
      slogWarning(waiter, 'taking connection from reserve_pool');
      return true;
    }
  }
  if (forReplication) {
    while (evict && count >= size && evictPoolConnection(pool)) count = poolServerCount(pool);
    if (count < size) return true;
  }
  if (wantDebug()) logDebug(`launch_new_connection: pool full (${count} >= ${size})`);
  return false;
}

/** Failures belong to one attempt for so long, whatever server_login_retry is: it may be 0. usec */
const ATTEMPT_AGE_MIN = USEC;

/**
 * Opens one more connection of a pool if the limits allow it. While server_login_concurrency connections log in, the
 * next one is opened after one of them has logged in.
 * @param evictIfNeeded close idle connections of other pools when the database or the user is at its limit
 * @returns whether a connection was opened
 */
export function launchNewConnection(pool: PgPool, evictIfNeeded: boolean): boolean {
  if (pool.newServerList.count >= poolLoginLimit(pool)) {
    logDebug('launch_new_connection: already progress');
    return false;
  }
  const cancelWaits = pool.waitingCancelReqList.count > pool.newServerList.count;
  const forCancel = cancelWaits && cancelMayConnect(pool);
  if (cancelWaits && !forCancel && pool.waitingClientList.count === 0) return false;
  const wait = forCancel ? 0 : retryWait(pool);
  if (wait > 0) {
    if (wantDebug()) {
      const left = Math.floor(wait / USEC);
      logDebug(`launch_new_connection: last failed, not launching new connection yet, still waiting ${left} s`);
    }
    return false;
  }
  if (awaitsPassword(pool) && !forCancel) return false;
  if (!hasRoom(pool, evictIfNeeded, forCancel)) return false;
  openConnection(pool, forCancel);
  return true;
}

/**
 * The limit of connections, cancel requests included, is twice this; 0 = none. Without pool_size, other limits may be
 * full.
 */
function cancelLimit({ db, user }: PgPool, size: number): number {
  if (size > 0) return size;
  const ofUser = user?.globalUser ?? null;
  const limits = [databaseMaxConnections(db), ofUser === null ? 0 : userMaxConnections(ofUser)];
  const set = limits.filter((limit) => limit > 0);
  return set.length === 0 ? 0 : Math.min(...set);
}

function hasRoom(pool: PgPool, evictIfNeeded: boolean, forCancel: boolean): boolean {
  const count = poolServerCount(pool);
  const size = poolPoolSize(pool);
  if (pool.db.peerId > 0) {
    if (size <= 0 || count < size) return true;
    if (wantDebug()) logDebug(`launch_new_connection: peer pool full (${count} >= ${size})`);
    return false;
  }
  const most = cancelLimit(pool, size);
  if (forCancel && (most <= 0 || count < 2 * most)) {
    logDebug('launch_new_connection: bypass pool limitations for cancel request');
    return true;
  }
  if (!poolHasRoom(pool, evictIfNeeded)) return false;
  if (!databaseHasRoom(pool, evictIfNeeded)) return false;
  const globalUser = pool.user?.globalUser ?? null;
  return globalUser === null || userHasRoom(globalUser, evictIfNeeded);
}

/**
 * Opens connections until so many log in at a time.
 * @param evictIfNeeded see launchNewConnection()
 * @returns whether one was opened, which may have failed at once
 */
export function launchUpTo(pool: PgPool, wanted: number, evictIfNeeded: boolean): boolean {
  let opened = false;
  for (let count = pool.newServerList.count; count < wanted; count = pool.newServerList.count) {
    if (!launchNewConnection(pool, evictIfNeeded)) break;
    opened = true;
    // it has failed at once, and so would the next one: without server_login_retry nothing else would end this loop
    if (pool.newServerList.count <= count && !attemptContinues(pool)) break;
  }
  return opened;
}

/**
 * Opens connections for clients or cancel requests.
 * @param wanted number of those that wait for a connection
 * @returns whether one was opened, which may have failed at once
 */
export function launchFor(pool: PgPool, wanted: number): boolean {
  return launchUpTo(pool, wanted, true);
}

/** Opens connections for the cancel requests whose query still runs, and for nothing else: the pool is paused. */
export function launchForCancels(pool: PgPool): void {
  let wanted = 0;
  for (let req = pool.waitingCancelReqList.head; req !== null; req = nextOf(req))
    if (req.canceledServer !== null) wanted++;
  if (wanted > pool.newServerList.count) launchUpTo(pool, wanted, true);
}

/** The first cancel request that no connection is being opened for, and whose server still runs the query. */
function uncarriedCancel(pool: PgPool): ClientSocket | null {
  for (let req = pool.waitingCancelReqList.head; req !== null; req = nextOf(req)) {
    if (req.canceledServer !== null && !isCarried(pool, req)) return req;
  }
  return null;
}

function isCarried(pool: PgPool, req: ClientSocket): boolean {
  for (let server = pool.newServerList.head; server !== null; server = nextOf(server)) {
    if (server.login?.cancelRequest === req) return true;
  }
  return false;
}

/** @param forCancel cancel requests wait for a connection, and it may be opened for one of them */
function openConnection(pool: PgPool, forCancel: boolean): void {
  const request = forCancel ? uncarriedCancel(pool) : null;
  const server = newServer(pool);
  const now = getCachedTime();
  // failures that long ago do not belong to this attempt; connecting to a silent host may itself have taken that long
  if (attemptContinues(pool) && now - pool.targetFailedAt >= Math.max(ATTEMPT_AGE_MIN, cf.serverLoginRetry))
    endAttempt(pool);
  if (server.login !== null) {
    server.login.attempt = pool.attempt;
    server.login.cancelRequest = request;
  }
  server.loginUser = pool.user;
  server.connectTime = now;
  // the next login need not wait because of a cancel request
  if (forCancel) pool.lastCancelTime = now;
  else pool.lastConnectTime = now;
  pool.lastActiveTime = now;
  changeServerState(server, SocketState.SV_LOGIN);
  countServer(server);
  settleClaim(pool);
  // a cancel request goes to the server that runs the query, not to the next host of a list
  const running = request?.canceledServer ?? null;
  if (running !== null) {
    connectBeside(server, running);
    return;
  }
  const { host, port } = pickHost(pool);
  connectToHost(server, host, port);
}
