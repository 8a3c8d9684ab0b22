/*
 * A pool: the connections of one database and user pair, in one list per state. Peers have pools without a user, for
 * cancel requests only.
 */

import { nextOf, StatList } from '../base/list';
import { OrderedIndex } from '../base/ordered';
import { type PgCredentials, type PgDatabase, type PgGlobalUser, PgPool } from './bouncer';
import { compareNames } from './user';

/** Ordered by database and user, as SHOW prints them. */
export const poolList = new StatList<PgPool>('pool_list');
/** Ordered by peer id. */
export const peerPoolList = new StatList<PgPool>('peer_pool_list');

function comparePools(a: PgPool, b: PgPool): number {
  if (a.db !== b.db) return compareNames(a.db.name, b.db.name);
  // credentials of two kinds may carry one name: the older pool goes first
  return compareNames((a.user as PgCredentials).name, (b.user as PgCredentials).name) || a.serial - b.serial;
}

const poolOrder = new OrderedIndex(poolList, comparePools);
const peerPoolOrder = new OrderedIndex(peerPoolList, (a: PgPool, b: PgPool) => a.db.peerId - b.db.peerId);

/** The pool of a database and a user, or null. Looks through the shorter list: either may be very long. */
function findPool(db: PgDatabase, user: PgGlobalUser): PgPool | null {
  if (db.pools.length < user.pools.length) {
    for (const pool of db.pools) if (pool.user?.globalUser === user) return pool;
  } else {
    for (const pool of user.pools) if (pool.db === db) return pool;
  }
  return null;
}

/** The pool of a database and a user, made when there is none. */
export function getPool(db: PgDatabase, user: PgCredentials): PgPool {
  const globalUser = user.globalUser;
  if (globalUser === null) throw new Error('get_pool: credentials without a user');
  const known = findPool(db, globalUser);
  if (known !== null) return known;
  const pool = new PgPool(db, user);
  pool.indexInUser = globalUser.pools.push(pool) - 1;
  pool.indexInDb = db.pools.push(pool) - 1;
  poolOrder.insert(pool);
  return pool;
}

/** The pool over which cancel requests go to a peer. */
export function getPeerPool(peer: PgDatabase): PgPool {
  if (peer.peerPool === null) {
    peer.peerPool = new PgPool(peer, null);
    peerPoolOrder.insert(peer.peerPool);
  }
  return peer.peerPool;
}

/** Takes a pool out of every index; its sockets must be gone. */
export function removePool(pool: PgPool): void {
  pool.dead = true;
  if (pool.user === null) {
    peerPoolOrder.remove(pool);
    pool.db.peerPool = null;
    return;
  }
  poolOrder.remove(pool);
  // the last of each array takes the place that becomes free: their order means nothing
  const ofUser = (pool.user.globalUser as PgGlobalUser).pools;
  const lastOfUser = ofUser.pop() as PgPool;
  if (lastOfUser !== pool) {
    ofUser[pool.indexInUser] = lastOfUser;
    lastOfUser.indexInUser = pool.indexInUser;
  }
  const ofDb = pool.db.pools;
  const lastOfDb = ofDb.pop() as PgPool;
  if (lastOfDb !== pool) {
    ofDb[pool.indexInDb] = lastOfDb;
    lastOfDb.indexInDb = pool.indexInDb;
  }
}

/** Servers that are logged in: what pool_size and min_pool_size count. Connections that carry a cancel request are not. */
export function poolConnectedServerCount(pool: PgPool): number {
  return (
    pool.activeServerList.count +
    pool.beingCanceledServerList.count +
    pool.idleServerList.count +
    pool.testedServerList.count +
    pool.usedServerList.count
  );
}

/** Every open connection to the server, those for cancel requests included. */
export function poolServerCount(pool: PgPool): number {
  return poolConnectedServerCount(pool) + pool.newServerList.count + pool.activeCancelServerList.count;
}

/** Clients that finished login. */
export function poolClientCount(pool: PgPool): number {
  return pool.activeClientList.count + pool.waitingClientList.count;
}

let touchedPools: PgPool[] = [];

/** Something happened to this pool: the end of the turn has to look whether a waiting client can go on. */
export function touchPool(pool: PgPool): void {
  if (pool.touched) return;
  pool.touched = true;
  touchedPools.push(pool);
}

/** True when the end of this turn has pools to look at. */
export function anyPoolTouched(): boolean {
  return touchedPools.length > 0;
}

/**
 * The pools that were touched so far. One that is touched again while they are handled comes up in the next turn, so that
 * a connect which fails at once, again and again, cannot hold the loop.
 */
export function takeTouchedPools(): PgPool[] {
  const pools = touchedPools;
  touchedPools = [];
  for (const pool of pools) pool.touched = false;
  return pools;
}

/** Set when every pool has to be looked at: a console command ran, or a mode is on that concerns all of them. */
let allPools = false;

/** The end of this turn looks at every pool, not only at those that something happened to. */
export function requestFullLoopMaint(): void {
  allPools = true;
}

export function isFullLoopMaintRequested(): boolean {
  return allPools;
}

export function endFullLoopMaintRequest(): void {
  allPools = false;
}

/**
 * Has the end of this turn look at the pools of a database (null = at all): only touched pools are looked at, and what
 * the command changed concerns those that nothing else happened to.
 */
export function touchPools(db: PgDatabase | null): void {
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) if (db === null || pool.db === db) touchPool(pool);
  if (db !== null) return;
  for (let pool = peerPoolList.head; pool !== null; pool = nextOf(pool)) touchPool(pool);
}
