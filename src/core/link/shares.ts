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
import { retryWait } from './hosts';

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

/**
 * True if the pool would open a connection now, if its database had room. No pool waits for another that does not: one
 * whose clients wait for servers that are being tested opens none.
 */
function canUse(pool: PgPool): boolean {
  if (retryWait(pool) > 0 || pool.newServerList.count >= poolLoginLimit(pool)) return false;
  if (pool.waitingClientList.count <= pool.testedServerList.count + pool.usedServerList.count) return false;
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

/** True if the clients of another pool still wait for a connection that it could use. Forgets a claim that is settled. */
function isOpen(claim: PgPool, besides: PgPool): boolean {
  if (claim.waitingClientList.count > 0 && cf.fairShareTimeout !== 0) return claim !== besides && canUse(claim);
  claim.db.claims?.delete(claim);
  return false;
}

/** True if the first client of a pool has waited for fair_share_timeout. */
function isDue({ waitingClientList }: PgPool): boolean {
  const waiter = waitingClientList.head;
  return waiter !== null && getCachedTime() - waiter.waitStart >= cf.fairShareTimeout;
}

/**
 * The database of a pool has room for a connection. The order of the pools is strict, so no pools wait for each other.
 * @returns a pool that should have the connection instead, or null
 */
export function claimBefore(pool: PgPool): PgPool | null {
  const { claims } = pool.db;
  if (claims === null || claims.size === 0) return null;
  const place = placeOf(pool, poolServerCount(pool));
  let isBehind = false;
  for (const claim of claims) {
    if (claim === pool) isBehind = true;
    if (!isOpen(claim, pool)) continue;
    const difference = placeOf(claim, poolServerCount(claim)) - place;
    if (difference < 0 || (difference === 0 && !isBehind)) return claim;
  }
  return null;
}

/**
 * A server is released. If the first pool that claims has no right to it, the next one may have.
 * @returns the pool that should have a connection instead of the server's, or null
 */
export function claimOn({ pool }: ServerSocket): PgPool | null {
  const { claims } = pool.db;
  if (claims === null || claims.size === 0) return null;
  const left = poolServerCount(pool) - 1;
  // an idle connection would be evicted by the next attempt anyway
  const isSpare = pool.waitingClientList.count === 0 && left >= minimumOf(pool);
  const rest = placeOf(pool, left);
  for (const claim of claims) {
    if (!isOpen(claim, pool) || !isDue(claim)) continue;
    if (isSpare) return claim;
    const wanted = placeOf(claim, poolServerCount(claim));
    // pools with a single connection take turns
    if (wanted < rest || (wanted === 0 && rest === 0)) return claim;
  }
  return null;
}
