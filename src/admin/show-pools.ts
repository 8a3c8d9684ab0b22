/*
 * SHOW POOLS, WAITS, PEER_POOLS, DATABASES, PEERS and USERS: pools and their configuration, with the numbers of
 * connections.
 */

import { USEC } from '../core/base/time';
import { wakeAllUsers } from '../core/pool/user';
import { databaseRows, peerRows, userRows } from '../core/report/databases';
import { peerPoolRows, poolRows } from '../core/report/pools';
import { waitRows } from '../core/report/waits';
import type { PutRow } from './reply';

export function putPools(put: PutRow): void {
  for (const pool of poolRows()) {
    put(
      pool.database,
      pool.user,
      pool.clActive,
      pool.clWaiting,
      pool.clActiveCancelReq,
      pool.clWaitingCancelReq,
      pool.svActive,
      pool.svActiveCancel,
      pool.svBeingCanceled,
      pool.svIdle,
      pool.svUsed,
      pool.svTested,
      pool.svLogin,
      Math.floor(pool.maxWait / USEC),
      pool.maxWait % USEC,
      pool.poolMode,
      pool.loadBalanceHosts,
    );
  }
}

export function putWaits(put: PutRow): void {
  for (const { database, user, clWaiting, maxWait, waitsFor, heldBy } of waitRows())
    put(database, user, clWaiting, Math.floor(maxWait / USEC), maxWait % USEC, waitsFor, heldBy);
}

export function putPeerPools(put: PutRow): void {
  for (const pool of peerPoolRows()) {
    put(pool.peerId, pool.clActiveCancelReq, pool.clWaitingCancelReq, pool.svActiveCancel, pool.svLogin);
  }
}

export function putDatabases(put: PutRow): void {
  for (const db of databaseRows()) {
    put(
      db.name,
      db.host,
      db.port,
      db.dbname,
      db.forceUser,
      db.poolSize,
      db.minPoolSize,
      db.reservePoolSize,
      Math.floor(db.serverLifetime / USEC),
      db.poolMode,
      db.loadBalanceHosts,
      db.maxConnections,
      db.currentConnections,
      db.maxClientConnections,
      db.currentClientConnections,
      db.paused ? 1 : 0,
      db.disabled ? 1 : 0,
    );
  }
}

export function putPeers(put: PutRow): void {
  for (const { peerId, host, port, poolSize } of peerRows()) put(peerId, host, port, poolSize);
}

/** PgBouncer prints these two values as text: right-aligned, or empty if not set. */
function paddedOrEmpty(value: number): string {
  return value >= 0 ? String(value).padStart(9) : '';
}

export function putUsers(put: PutRow): void {
  wakeAllUsers();
  for (const user of userRows()) {
    put(
      user.name,
      paddedOrEmpty(user.poolSize),
      paddedOrEmpty(user.reservePoolSize),
      user.poolMode,
      user.maxConnections,
      user.currentConnections,
      user.maxClientConnections,
      user.currentClientConnections,
    );
  }
}
