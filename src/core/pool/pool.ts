/*
 * A pool: the connections of one database and one user, in one list per state. Peers have pools without a user, for
 * cancel requests only.
 */

import { nextOf, StatList } from '../base/list';
import { OrderedIndex } from '../base/ordered';
import { compareNames } from '../base/strutil';
import { moveServerCount } from './admission';
import { type PgCredentials, type PgDatabase, type PgGlobalUser, PgPool } from './bouncer';
import { noteChange, noteRemoval } from './changes';
import { comparePeers } from './database';
import { newStats, statAdd } from './stats';

/** Sorted by database and user, the order of SHOW. */
export const poolList = new StatList<PgPool>('pool_list');
/** Sorted by peer id. */
export const peerPoolList = new StatList<PgPool>('peer_pool_list');

function comparePools(a: PgPool, b: PgPool): number {
  if (a.db !== b.db) return compareNames(a.db.name, b.db.name);
  // two credentials may have the same user name: the older pool sorts first
  return compareNames((a.user as PgCredentials).name, (b.user as PgCredentials).name) || a.serial - b.serial;
}

const poolOrder = new OrderedIndex(poolList, comparePools);
const peerPoolOrder = new OrderedIndex(peerPoolList, (a: PgPool, b: PgPool) => comparePeers(a.db, b.db));

/** The pool of a database and a user, or null. Searches the shorter of their two arrays: either may be very long. */
export function findPool(db: PgDatabase, user: PgGlobalUser): PgPool | null {
  if (db.pools.length < user.pools.length) {
    for (const pool of db.pools) if (pool.user?.globalUser === user) return pool;
  } else {
    for (const pool of user.pools) if (pool.db === db) return pool;
  }
  return null;
}

/**
 * The pool of a database and a user, created if missing. A known one logs in with these credentials from now on: those
 * of its earlier clients may no longer be valid. The forced user of a database has its own.
 */
export function getPool(db: PgDatabase, user: PgCredentials): PgPool {
  const globalUser = user.globalUser;
  if (globalUser === null) throw new Error('get_pool: credentials without a user');
  const known = findPool(db, globalUser);
  if (known !== null) {
    known.user = db.forcedUser?.globalUser === globalUser ? db.forcedUser : user;
    return known;
  }
  const pool = new PgPool(db, user);
  pool.indexInUser = globalUser.pools.push(pool) - 1;
  pool.indexInDb = db.pools.push(pool) - 1;
  poolOrder.insert(pool);
  noteChange(pool);
  return pool;
}

/** The pool for sending cancel requests to a peer. */
export function getPeerPool(peer: PgDatabase): PgPool {
  if (peer.peerPool === null) {
    peer.peerPool = new PgPool(peer, null);
    peerPoolOrder.insert(peer.peerPool);
  }
  return peer.peerPool;
}

/** Removes a pool from all indexes; it must have no sockets. Its database keeps the sums of its counters. */
export function removePool(pool: PgPool): void {
  pool.dead = true;
  noteRemoval(pool);
  pool.db.claims?.delete(pool);
  if (pool.user === null) {
    peerPoolOrder.remove(pool);
    pool.db.peerPool = null;
    return;
  }
  poolOrder.remove(pool);
  // a console may wait for its last server
  if (pool.db.paused || pool.db.waitClose) requestFullLoopMaint();
  pool.db.removedStats ??= newStats();
  statAdd(pool.db.removedStats, pool.stats);
  // the last element of each array moves to the freed position: the order is irrelevant
  leaveUser(pool, pool.user.globalUser as PgGlobalUser);
  const ofDb = pool.db.pools;
  const lastOfDb = ofDb.pop() as PgPool;
  if (lastOfDb !== pool) {
    ofDb[pool.indexInDb] = lastOfDb;
    lastOfDb.indexInDb = pool.indexInDb;
  }
}

/** Takes a pool out of the array of its user. */
function leaveUser(pool: PgPool, { pools }: PgGlobalUser): void {
  const last = pools.pop() as PgPool;
  if (last === pool) return;
  pools[pool.indexInUser] = last;
  last.indexInUser = pool.indexInUser;
}

function isUnused(pool: PgPool): boolean {
  const requests = pool.waitingCancelReqList.count + pool.activeCancelReqList.count;
  return poolClientCount(pool) + requests + countedServers(pool) === 0;
}

/** Number of all server connections, as counted for the database and the user. */
export function countedServers(pool: PgPool): number {
  return poolServerCount(pool) + pool.listenServerList.count;
}

/**
 * A database has got another forced user: the pool of the former one, with its clients, belongs to the new one from now
 * on. The caller replaces its servers. If the new user has connections in a pool of its own, both pools stay: see
 * joinPools().
 */
export function handOverPool(db: PgDatabase, before: PgCredentials, user: PgCredentials): void {
  const [from, to] = [before.globalUser, user.globalUser];
  if (from === null || to === null || from === to) return;
  const pool = findPool(db, from);
  if (pool === null || pool.user !== before) return;
  const other = findPool(db, to);
  if (other !== null && !isUnused(other)) return;
  if (other !== null) removePool(other);
  poolOrder.remove(pool);
  leaveUser(pool, from);
  moveServerCount(from, to, countedServers(pool));
  pool.user = user;
  pool.indexInUser = to.pools.push(pool) - 1;
  poolOrder.insert(pool);
  noteChange(pool);
  touchPool(pool);
}

/**
 * Number of logged-in servers, as limited by pool_size and min_pool_size. Connections for cancel requests do not count.
 */
export function poolConnectedServerCount(pool: PgPool): number {
  return (
    pool.activeServerList.count +
    pool.beingCanceledServerList.count +
    pool.idleServerList.count +
    pool.testedServerList.count +
    pool.usedServerList.count
  );
}

/** Number of open server connections, including those for cancel requests. */
export function poolServerCount(pool: PgPool): number {
  return poolConnectedServerCount(pool) + pool.newServerList.count + pool.activeCancelServerList.count;
}

/** Number of logged-in clients. */
export function poolClientCount(pool: PgPool): number {
  return pool.activeClientList.count + pool.waitingClientList.count;
}

/** The sum over the pools of a database. @param db null = all databases except the admin database */
export function sumOfPools(db: PgDatabase | null, count: (pool: PgPool) => number): number {
  let sum = 0;
  if (db !== null) for (const pool of db.pools) sum += count(pool);
  else for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) if (!pool.db.admin) sum += count(pool);
  return sum;
}

/** The marked pools, linked by `nextTouched`: marking and taking them allocates nothing. */
let touchedHead: PgPool | null = null;
let touchedTail: PgPool | null = null;

/** Marks a pool to be handled at the end of the turn: a waiting client may be able to proceed. */
export function touchPool(pool: PgPool): void {
  if (pool.touched) return;
  pool.touched = true;
  if (touchedTail === null) touchedHead = pool;
  else touchedTail.nextTouched = pool;
  touchedTail = pool;
}

/** True if pools must be handled at the end of this turn. */
export function anyPoolTouched(): boolean {
  return touchedHead !== null;
}

/**
 * Calls `handle` with each pool marked so far, after unmarking it. A pool marked again meanwhile is handled in the next
 * turn. A connect that fails at once, again and again, therefore cannot block the loop. If `handle` throws, the pools
 * behind this one stay marked.
 */
export function handleTouchedPools(handle: (pool: PgPool) => void): void {
  const last = touchedTail;
  for (let pool = touchedHead; pool !== null; pool = touchedHead) {
    touchedHead = pool.nextTouched;
    if (touchedHead === null) touchedTail = null;
    pool.nextTouched = null;
    pool.touched = false;
    handle(pool);
    if (pool === last) return;
  }
}

/** Unmarks all pools, because all of them will be handled. */
export function forgetTouchedPools(): void {
  handleTouchedPools(() => {});
}

/** Set when all pools must be handled: a console command ran, or a mode is active that affects all pools. */
let allPools = false;

/** Makes the end of this turn handle all pools, not only the marked ones. */
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
 * Marks the pools of a database (null = of all databases). A command that changed a limit or a mode must mark them,
 * because nothing else may have happened to them.
 */
export function touchPools(db: PgDatabase | null): void {
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) if (db === null || pool.db === db) touchPool(pool);
  if (db !== null) return;
  for (let pool = peerPoolList.head; pool !== null; pool = nextOf(pool)) touchPool(pool);
}
