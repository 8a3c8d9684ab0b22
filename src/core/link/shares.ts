/*
 * Fair shares of max_db_connections (fair_share_timeout). Without them, a pool whose connections are always busy keeps
 * them all, and the clients of a pool that has none wait until one of those becomes idle.
 *
 * A pool whose clients wait because the database is full has a claim. A connection that is released goes to a claim if
 * the claiming pool has fewer connections for its weight: it is closed, and the other pool opens one. Claims are served
 * in the order in which the pools began to wait. Decisions only: the caller closes and opens connections.
 */

import { getCachedTime } from '../base/time';
import { cf } from '../config/settings';
import { poolLoginLimit, poolPoolSize, userMaxConnections } from '../pool/admission';
import type { PgPool, ServerSocket } from '../pool/bouncer';
import { poolServerCount } from '../pool/pool';

function weightOf(pool: PgPool): number {
  return pool.user?.globalUser?.config.shareWeight ?? 1;
}

function minimumOf(pool: PgPool): number {
  return pool.user?.globalUser?.config.shareMinimum ?? 0;
}

/** Notes that the clients of a pool wait because its database is full. */
export function claimShare(pool: PgPool): void {
  if (cf.fairShareTimeout === 0 || pool.waitingClientList.count === 0) return;
  pool.db.claims ??= new Set();
  pool.db.claims.add(pool);
}

/** A pool has got a connection: if its clients still wait, it claims again, behind the others. */
export function settleClaim(pool: PgPool): void {
  pool.db.claims?.delete(pool);
}

/** True if the pool could open a connection now, if its database had room. No pool waits for another that cannot. */
function canUse(pool: PgPool): boolean {
  if (pool.lastConnectFailed || pool.newServerList.count >= poolLoginLimit(pool)) return false;
  const size = poolPoolSize(pool);
  if (size > 0 && poolServerCount(pool) >= size) return false;
  const user = pool.user?.globalUser ?? null;
  const most = user === null ? 0 : userMaxConnections(user);
  return user === null || most <= 0 || user.connectionCount < most;
}

/**
 * A pool's place in the order of who gets a connection: the lower, the earlier. First come pools below their minimum,
 * then those without any connection, then those with few connections for their weight.
 * @param own number of its connections
 */
function placeOf(pool: PgPool, own: number): number {
  if (own < minimumOf(pool)) return -1 / (own + 1);
  return own === 0 ? 0 : (own + 1) / weightOf(pool);
}

/** The first claim of another pool of the same database that could use a connection, or null. */
function firstClaim(besides: PgPool): PgPool | null {
  const { db } = besides;
  if (db.claims === null) return null;
  for (const pool of db.claims) {
    if (pool.waitingClientList.count === 0 || cf.fairShareTimeout === 0) db.claims.delete(pool);
    else if (pool !== besides && canUse(pool)) return pool;
  }
  return null;
}

/** True if the pool's claim is not behind that of the other. */
function claimedBefore(pool: PgPool, other: PgPool): boolean {
  for (const each of other.db.claims ?? []) if (each === pool || each === other) return each === pool;
  return false;
}

/**
 * The database of a pool has room for a connection. The order of the pools is strict, so two of them never wait for
 * each other.
 * @returns the pool that should have the connection instead, or null
 */
export function claimBefore(pool: PgPool): PgPool | null {
  const claim = firstClaim(pool);
  if (claim === null) return null;
  const difference = placeOf(claim, poolServerCount(claim)) - placeOf(pool, poolServerCount(pool));
  return difference < 0 || (difference === 0 && claimedBefore(claim, pool)) ? claim : null;
}

/**
 * A server is released.
 * @returns the pool that should have a connection instead of the server's, or null
 */
export function claimOn({ pool }: ServerSocket): PgPool | null {
  if (pool.db.claims === null || pool.db.claims.size === 0) return null;
  const claim = firstClaim(pool);
  const waiter = claim?.waitingClientList.head ?? null;
  if (claim === null || waiter === null || getCachedTime() - waiter.waitStart < cf.fairShareTimeout) return null;
  const left = poolServerCount(pool) - 1;
  // an idle connection would be evicted by the next attempt anyway
  if (pool.waitingClientList.count === 0 && left >= minimumOf(pool)) return claim;
  const wanted = placeOf(claim, poolServerCount(claim));
  const rest = placeOf(pool, left);
  // pools with a single connection take turns
  return wanted < rest || (wanted === 0 && rest === 0) ? claim : null;
}
