/*
 * Maintenance, three times a second: timeouts, lifetimes, pool sizes, idle pools and databases.
 */

import { getPauseMode, getShutdownMode, isTakingOver, ownsListeners, PauseMode, ShutdownMode } from '../base/lifecycle';
import { nextOf, type StatList } from '../base/list';
import { fatal, logDebug, logInfo } from '../base/log';
import { native } from '../base/native';
import { getCachedTime, USEC } from '../base/time';
import { newTimer, timerStart } from '../base/timer';
import { USER_DEFAULTS } from '../config/records';
import { cf } from '../config/settings';
import { killDatabase, killPool, killUnproven } from '../link/kill';
import { launchUpTo } from '../link/launch';
import { disconnectClient, disconnectServer, dropIfEnded, LoginOutcome, lifetimeExceeded } from '../link/objects';
import { passwordCommandMaint } from '../link/password-command';
import { peersDnsMaint } from '../link/peers-dns';
import { RECOVERY_TIME_MIN, recoveryTimeout, repeatCancel } from '../link/recovery';
import { startupUnanswered } from '../login/server-protocol';
import { zoneCacheMaint } from '../net/dns-zones';
import { nameThreadMaint } from '../net/name-thread';
import { inPacket, sendBytes } from '../net/sbuf';
import { databaseMinPoolSize, poolPoolSize, poolResPoolSize, serverLifetime } from '../pool/admission';
import { type ClientSocket, type PgPool, Replication, type ServerSocket, SocketState } from '../pool/bouncer';
import { autodatabaseIdleList, databaseList, retireAutodatabase } from '../pool/database';
import type { PoolListening } from '../pool/listening';
import { LoginPhase, Recovery } from '../pool/phases';
import {
  getPool,
  peerPoolList,
  poolClientCount,
  poolConnectedServerCount,
  poolList,
  poolServerCount,
  requestFullLoopMaint,
  touchPool,
} from '../pool/pool';
import { changeServerState, eachSocket, loginClientList, socketCounts } from '../pool/states';
import { PACKET_FLUSH } from '../wire/messages';
import { brokenInvariant } from './invariants';
import { peerPoolsMaint } from './janitor';
import { memoryMaint } from './memory';
import { shutdownMaint } from './shutdown';

/** usec between runs */
const MAINT_PERIOD = Math.floor(USEC / 3);

function clientIdleMaint(pool: PgPool, now: number): void {
  // all clients of such a pool have the same user: without a limit, thousands of idle clients cost nothing
  const userLimit = pool.user?.globalUser?.config.clientIdleTimeout ?? 0;
  if (cf.clientIdleTimeout <= 0 && pool.db.forcedUser === null && userLimit <= 0) return;
  eachSocket(pool.activeClientList, (client) => {
    // a client that listens does nothing for long
    if (client.link !== null || (client.listening !== null && client.listening.channels.size > 0)) return;
    const own = client.loginUser?.globalUser?.config.clientIdleTimeout ?? 0;
    const limit = own > 0 ? own : cf.clientIdleTimeout;
    if (limit > 0 && now - client.requestTime > limit) disconnectClient(client, true, 'client_idle_timeout');
  });
}

function effectiveQueryWaitTimeout(client: ClientSocket): number {
  const user = client.loginUser?.globalUser?.config;
  if (user?.queryWaitTimeoutSet) return user.queryWaitTimeout;
  const db = client.db?.config;
  if (db?.queryWaitTimeoutSet) return db.queryWaitTimeout;
  return cf.queryWaitTimeout;
}

/** Why a login in the queue of a pool has taken too long; null = it may wait. */
function loginOverdue(client: ClientSocket, pool: PgPool, now: number): string | null {
  if (client.login === null || cf.clientLoginTimeout <= 0 || now - client.connectTime <= cf.clientLoginTimeout)
    return null;
  // it waits for a server that runs auth_query
  if (client.state === SocketState.CL_WAITING_LOGIN) return 'client_login_timeout';
  const down = client.login.phase === LoginPhase.WELCOME && !pool.welcomeMsgReady;
  return down ? 'client_login_timeout (server down)' : null;
}

function waitingClientMaint(pool: PgPool, now: number): void {
  eachSocket(pool.waitingClientList, (client) => {
    // even if no server becomes free for long: the client counts for max_client_conn
    if (dropIfEnded(client)) return;
    const age = now - (client.queryStart === 0 ? client.requestTime : client.queryStart);
    const waitLimit = effectiveQueryWaitTimeout(client);
    if (getShutdownMode() === ShutdownMode.WAIT_FOR_SERVERS) {
      disconnectClient(client, true, 'server shutting down');
    } else if (cf.queryTimeout > 0 && age > cf.queryTimeout) {
      disconnectClient(client, true, 'query_timeout');
    } else if (waitLimit > 0 && age > waitLimit) {
      disconnectClient(client, true, 'query_wait_timeout');
    } else {
      const overdue = loginOverdue(client, pool, now);
      if (overdue !== null) disconnectClient(client, true, overdue);
    }
  });
}

/** Clients that wait until their LISTEN is in force, and the listening connection itself. */
function listenMaint(pool: PgPool, shared: PoolListening, now: number): void {
  for (const client of shared.waiting) {
    const limit = effectiveQueryWaitTimeout(client);
    if (dropIfEnded(client)) continue;
    if (limit > 0 && now - (client.listening?.waitStart ?? now) > limit)
      disconnectClient(client, true, 'query_wait_timeout');
  }
  eachSocket(pool.listenServerList, (server) => {
    if (server.closeNeeded) disconnectServer(server, true, 'database configuration changed');
  });
  if (shared.server === null) touchPool(pool);
}

function cancelReqMaint(pool: PgPool, now: number): void {
  if (cf.cancelWaitTimeout <= 0) return;
  eachSocket(pool.waitingCancelReqList, (req) => {
    if (now - req.requestTime > cf.cancelWaitTimeout) disconnectClient(req, false, 'cancel_wait_timeout');
  });
  // those of the pooler have no client that would give up
  eachSocket(pool.activeCancelReqList, (req) => {
    if (req.handle >= 0 || now - (req.link?.connectTime ?? now) <= cf.cancelWaitTimeout) return;
    // the request may still arrive, and must not cancel the next client's query
    if (req.canceledServer !== null) disconnectServer(req.canceledServer, true, 'cancel_wait_timeout');
    disconnectClient(req, false, 'cancel_wait_timeout');
  });
}

function unusedServerMaint(pool: PgPool, list: StatList<ServerSocket>, idleTest: boolean, now: number): void {
  const minPoolSize = databaseMinPoolSize(pool.db);
  eachSocket(list, (server) => {
    const idle = now - server.requestTime;
    if (server.closeNeeded) {
      disconnectServer(server, true, 'database configuration changed');
    } else if (server.recovery !== Recovery.NONE) {
      const limit = Math.max(recoveryTimeout(), RECOVERY_TIME_MIN);
      if (now - server.recoveryStart > limit) disconnectServer(server, true, 'server_recovery_timeout');
      else repeatCancel(server);
    } else if (server.state === SocketState.SV_IDLE && !server.ready) {
      disconnectServer(server, true, 'SV_IDLE server got dirty');
    } else if (server.state === SocketState.SV_USED && !server.ready) {
      disconnectServer(server, true, 'SV_USED server got dirty');
    } else if (
      cf.serverIdleTimeout > 0 &&
      idle > cf.serverIdleTimeout &&
      (minPoolSize === 0 || poolConnectedServerCount(pool) > minPoolSize)
    ) {
      disconnectServer(server, true, 'server idle timeout');
    } else if (now - server.connectTime >= serverLifetime(server)) {
      if (lifetimeExceeded(server)) {
        disconnectServer(server, true, 'server lifetime over');
        pool.lastLifetimeDisconnect = now;
      }
    } else if (getPauseMode() === PauseMode.PAUSE) {
      disconnectServer(server, true, 'pause mode');
    } else if (idleTest && cf.serverCheckQuery !== '' && idle > cf.serverCheckDelay) {
      changeServerState(server, SocketState.SV_USED);
    }
  });
}

/**
 * How long a server has been waiting for the rest of a pipeline. As in an idle transaction, it holds the pipeline's
 * locks, but sends no ReadyForQuery before the Sync.
 * @returns usec, 0 = not waiting for that
 */
function pipelineIdle(server: ServerSocket, client: ClientSocket, limit: number, now: number): number {
  if (client.state !== SocketState.CL_ACTIVE || server.settingVars || server.copyMode) return 0;
  const silent = now - Math.max(client.requestTime, server.requestTime);
  const requests = server.requests;
  // taken over from PgBouncer, which does not tell whether a query is running, and silent since
  if (requests.total === 0 && client.queryStart === 0) return 0;
  if (requests.count === 0) return silent;
  if (!requests.owesSync()) return 0;
  // after an error the server skips everything up to the Sync
  if (server.queryFailed) return silent;
  // its answers may only be waiting for a Sync or Flush: request them, to find out whether the server is still working
  const quiet = client.pktRemain === 0 && native.unsent(server.handle) === 0;
  if (silent > limit / 2 && quiet && server.flushTime <= client.requestTime) {
    server.flushTime = now;
    sendBytes(server, PACKET_FLUSH, PACKET_FLUSH.length);
  }
  return 0;
}

function activeServerMaint(pool: PgPool, now: number): void {
  eachSocket(pool.activeServerList, (server) => {
    const fastClose = cf.serverFastClose && server.ready;
    // replication connections are never released, so close them now
    if (server.closeNeeded && (fastClose || server.replication !== Replication.NONE)) {
      disconnectServer(server, true, 'database configuration changed');
      return;
    }
    const client = server.link;
    // a ready server has no timeouts, unless its client is in the middle of a packet, such as the rest of a failed COPY
    if (client === null || (server.ready && !inPacket(client))) return;
    const user = server.loginUser?.globalUser?.config ?? USER_DEFAULTS;
    const queryTimeout = user.queryTimeout > 0 ? user.queryTimeout : cf.queryTimeout;
    const idleLimit = user.idleTransactionTimeout > 0 ? user.idleTransactionTimeout : cf.idleTransactionTimeout;
    const xactLimit = user.transactionTimeout > 0 ? user.transactionTimeout : cf.transactionTimeout;
    if (queryTimeout > 0 && client.queryStart !== 0 && now - client.queryStart > queryTimeout) {
      disconnectServer(server, true, 'query timeout');
    } else if (
      idleLimit > 0 &&
      (server.idleTx || server.ready ? now - server.requestTime : pipelineIdle(server, client, idleLimit, now)) >
        idleLimit
    ) {
      disconnectServer(server, true, 'idle transaction timeout');
    } else if (xactLimit > 0 && client.xactStart !== 0 && now - client.xactStart > xactLimit) {
      disconnectServer(server, true, 'transaction timeout');
    }
  });
}

function newServerMaint(pool: PgPool, now: number): void {
  eachSocket(pool.newServerList, (server) => {
    const age = now - server.connectTime;
    if (cf.serverConnectTimeout > 0 && age > cf.serverConnectTimeout) {
      startupUnanswered(server);
      disconnectServer(server, true, 'connect timeout', LoginOutcome.HOST_FAILED);
    } else if (pool.db.peerId > 0 && cf.cancelWaitTimeout > 0 && age > cf.cancelWaitTimeout) {
      disconnectServer(server, true, 'cancel_wait_timeout');
    }
  });
}

/** Closes servers in excess of limits that were lowered, and launches servers for min_pool_size. */
function checkPoolSize(pool: PgPool): void {
  const size = poolPoolSize(pool);
  let count = poolConnectedServerCount(pool);
  if (size > 0) {
    for (let many = count - (size + poolResPoolSize(pool)); many > 0; many--) {
      const server = pool.usedServerList.head ?? pool.idleServerList.head;
      if (server === null) break;
      disconnectServer(server, true, 'too many servers in the pool');
      count--;
    }
  }
  const wanted = databaseMinPoolSize(pool.db) + (pool.replacing ? 1 : 0);
  pool.replacing = false;
  const least = size > 0 ? Math.min(wanted, size) : wanted;
  if (count >= least) return;
  // a pause would close the new connection at once
  if (getPauseMode() !== PauseMode.NONE || pool.db.paused || isTakingOver()) return;
  if (poolClientCount(pool) === 0 && pool.db.forcedUser === null) return;
  // without a password, anyone could have servers opened for invented names
  if (pool.db.provisional) return;
  logDebug('launching new connection to satisfy min_pool_size');
  launchUpTo(pool, least - count, false);
}

function poolMaint(pool: PgPool, now: number): void {
  // of thousands of pools most are idle: for them, each empty list costs only a comparison
  if (poolServerCount(pool) > 0) {
    if (pool.usedServerList.head !== null) unusedServerMaint(pool, pool.usedServerList, false, now);
    if (pool.testedServerList.head !== null) unusedServerMaint(pool, pool.testedServerList, false, now);
    if (pool.idleServerList.head !== null) unusedServerMaint(pool, pool.idleServerList, true, now);
    if (pool.activeServerList.head !== null) activeServerMaint(pool, now);
    if (pool.newServerList.head !== null) newServerMaint(pool, now);
  }
  checkPoolSize(pool);
  if (pool.listening !== null) listenMaint(pool, pool.listening, now);
  if (pool.activeClientList.head !== null) clientIdleMaint(pool, now);
  const waiting = pool.waitingClientList.head !== null;
  const canceling = pool.waitingCancelReqList.head !== null;
  if (waiting) waitingClientMaint(pool, now);
  if (canceling || pool.activeCancelReqList.head !== null) cancelReqMaint(pool, now);
  // waiters may be able to proceed: retry interval, reserve pool or notification is due
  if (waiting || canceling) touchPool(pool);
}

function loginMaint(now: number): void {
  if (cf.clientLoginTimeout <= 0) return;
  // longest connected first
  for (;;) {
    const client = loginClientList.head;
    if (client === null || now - client.connectTime <= cf.clientLoginTimeout) return;
    disconnectClient(client, true, 'client_login_timeout');
  }
}

let round = 0;

function databasesMaint(now: number): void {
  for (let db = databaseList.head; db !== null; ) {
    const next = nextOf(db);
    // a client that is still logging in is in no pool
    if (db.auto && db.clientConnectionCount === 0) {
      if (db.provisional) killUnproven(db);
      else if (db.activeStamp !== round) retireAutodatabase(db, now);
    }
    db = next;
  }
  if (cf.autodbIdleTimeout <= 0) return;
  for (let db = autodatabaseIdleList.head; db !== null; ) {
    const next = nextOf(db);
    // otherwise the next client would find it neither paused nor disabled
    if (!db.paused && !db.disabled) {
      if (now - db.inactiveTime <= cf.autodbIdleTimeout) return;
      killDatabase(db);
    }
    db = next;
  }
}

function idlePoolsMaint(now: number): void {
  if (cf.poolIdleTimeout <= 0) return;
  for (let pool = poolList.head; pool !== null; ) {
    const next: PgPool | null = nextOf(pool);
    // do not remove a forced user's pool with a minimum size: the next run would create it again
    const kept = pool.db.admin || (databaseMinPoolSize(pool.db) > 0 && pool.db.forcedUser !== null);
    if (!kept) {
      if (poolClientCount(pool) > 0 || poolConnectedServerCount(pool) > 0) {
        pool.lastActiveTime = now;
      } else if (now - pool.lastActiveTime > cf.poolIdleTimeout) {
        const age = Math.floor((now - pool.lastActiveTime) / USEC);
        logInfo(
          `cleaning up idle pool for user ${pool.user?.name ?? ''} on db ${pool.db.name} because: pool idle timeout (age= ${age}s)`,
        );
        killPool(pool);
      }
    }
    pool = next;
  }
}

function fullMaint(): void {
  if (!ownsListeners()) {
    // make no changes that the new process, which is about to take over, does not expect
    requestFullLoopMaint();
    return;
  }
  round++;
  const now = getCachedTime();
  // pools of forced users are kept at min_pool_size even before their first client
  for (let db = databaseList.head; db !== null; db = nextOf(db)) {
    if (db.forcedUser !== null && !db.provisional && databaseMinPoolSize(db) > 0) getPool(db, db.forcedUser);
  }
  for (let pool = poolList.head; pool !== null; ) {
    const next: PgPool | null = nextOf(pool);
    if (!pool.db.admin) {
      poolMaint(pool, now);
      if (pool.db.auto && (poolClientCount(pool) > 0 || poolServerCount(pool) > 0)) pool.db.activeStamp = round;
    }
    pool = next;
  }
  for (let pool = peerPoolList.head; pool !== null; pool = nextOf(pool)) {
    newServerMaint(pool, now);
    cancelReqMaint(pool, now);
  }
  peerPoolsMaint();
  databasesMaint(now);
  idlePoolsMaint(now);
  loginMaint(now);
  shutdownMaint(now);
  zoneCacheMaint();
  peersDnsMaint();
  nameThreadMaint();
  passwordCommandMaint();
  // a login needs more memory than the connection does later
  memoryMaint(socketCounts.clients + socketCounts.servers - loginClientList.count);
  if (getPauseMode() !== PauseMode.NONE) requestFullLoopMaint();
}

/** A maintenance run that checks the invariants, for tests. */
function checkedMaint(): void {
  fullMaint();
  const broken = brokenInvariant();
  if (broken !== null) fatal(broken);
}

const timer = newTimer(process.env.TSBOUNCER_CHECK === '1' ? checkedMaint : fullMaint);

/** Starts the maintenance runs. */
export function janitorSetup(): void {
  timerStart(timer, MAINT_PERIOD, MAINT_PERIOD);
}
