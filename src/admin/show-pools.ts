/*
 * SHOW POOLS, PEER_POOLS, DATABASES, PEERS and USERS: pools and their configuration, with the numbers of connections.
 */

import { nextOf } from '../core/base/list';
import { getCachedTime, USEC } from '../core/base/time';
import { cf } from '../core/config/settings';
import { loadBalanceHostsMap, PoolMode, poolModeMap } from '../core/config/settings-table';
import { formatLookup } from '../core/config/values';
import {
  databaseMaxClientConnections,
  databaseMaxConnections,
  poolPoolMode,
  userMaxClientConnections,
  userMaxConnections,
} from '../core/pool/admission';
import type { PgDatabase, PgPool } from '../core/pool/bouncer';
import { databaseList, peerList } from '../core/pool/database';
import { peerPoolList, poolList } from '../core/pool/pool';
import { userList, wakeAllUsers } from '../core/pool/user';
import type { PutRow } from './reply';

/** null = inherited from the database, or from the global setting */
function poolModeName(mode: PoolMode): string | null {
  return mode === PoolMode.INHERIT ? null : formatLookup(poolModeMap, mode);
}

/** null for a database with a single host. */
function loadBalanceName(db: PgDatabase): string | null {
  return db.config.host?.includes(',') ? formatLookup(loadBalanceHostsMap, db.config.loadBalanceHosts) : null;
}

/** How long the first client in the queue has waited, in usec. */
function maxWait(pool: PgPool, now: number): number {
  const waiter = pool.waitingClientList.head;
  return waiter !== null && waiter.queryStart > 0 ? now - waiter.queryStart : 0;
}

export function poolRows(put: PutRow): void {
  const now = getCachedTime();
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    const wait = maxWait(pool, now);
    put(
      pool.db.name,
      pool.user?.name ?? null,
      pool.activeClientList.count,
      pool.waitingClientList.count,
      pool.activeCancelReqList.count,
      pool.waitingCancelReqList.count,
      pool.activeServerList.count,
      pool.activeCancelServerList.count,
      pool.beingCanceledServerList.count,
      pool.idleServerList.count,
      pool.usedServerList.count,
      pool.testedServerList.count,
      pool.newServerList.count,
      Math.floor(wait / USEC),
      wait % USEC,
      formatLookup(poolModeMap, poolPoolMode(pool)),
      loadBalanceName(pool.db),
    );
  }
}

export function peerPoolRows(put: PutRow): void {
  for (let pool = peerPoolList.head; pool !== null; pool = nextOf(pool)) {
    put(
      pool.db.peerId,
      pool.activeCancelReqList.count,
      pool.waitingCancelReqList.count,
      pool.activeCancelServerList.count,
      pool.newServerList.count,
    );
  }
}

function setOr(value: number, general: number): number {
  return value >= 0 ? value : general;
}

export function databaseRows(put: PutRow): void {
  for (let db = databaseList.head; db !== null; db = nextOf(db)) {
    put(
      db.name,
      db.config.host,
      db.config.port,
      db.config.dbname,
      db.forcedUser?.name ?? null,
      setOr(db.config.poolSize, cf.defaultPoolSize),
      setOr(db.config.minPoolSize, cf.minPoolSize),
      setOr(db.config.resPoolSize, cf.reservePoolSize),
      Math.floor((db.config.serverLifetime > 0 ? db.config.serverLifetime : cf.serverLifetime) / USEC),
      poolModeName(db.config.poolMode),
      loadBalanceName(db),
      databaseMaxConnections(db),
      db.connectionCount,
      databaseMaxClientConnections(db),
      db.clientConnectionCount,
      db.paused ? 1 : 0,
      db.disabled ? 1 : 0,
    );
  }
}

export function peerRows(put: PutRow): void {
  for (let peer = peerList.head; peer !== null; peer = nextOf(peer)) {
    put(peer.peerId, peer.config.host, peer.config.port, setOr(peer.config.poolSize, cf.defaultPoolSize));
  }
}

/** PgBouncer prints these two values as text: right-aligned, or empty if not set. */
function paddedOrEmpty(value: number): string {
  return value >= 0 ? String(value).padStart(9) : '';
}

export function userRows(put: PutRow): void {
  wakeAllUsers();
  for (let user = userList.head; user !== null; user = nextOf(user)) {
    put(
      user.name,
      paddedOrEmpty(user.config.poolSize),
      paddedOrEmpty(user.config.resPoolSize),
      poolModeName(user.config.poolMode),
      userMaxConnections(user),
      user.connectionCount,
      userMaxClientConnections(user),
      user.clientConnectionCount,
    );
  }
}
