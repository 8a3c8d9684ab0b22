/*
 * A pool: the connections of one database and user pair, in one list per state. Peers have pools without a user, for
 * cancel requests only.
 */
import { type ListNode, StatList } from '../base/list';
import { getCachedTime } from '../base/time';
import type { PgDatabase } from './database';
import type { PgSocket } from './socket';
import { newStats, type PgStats } from './stats';
import { compareNames, type PgCredentials } from './user';
import { newVarCache } from './varcache';

let poolSerial = 0;

export class PgPool implements ListNode {
  prev: ListNode | null = null;
  next: ListNode | null = null;
  list: StatList<ListNode> | null = null;
  db: PgDatabase;
  /** null in the pool of a peer */
  user: PgCredentials | null;

  /** logged in and listened to */
  activeClientList = new StatList<PgSocket>('active_client_list');
  /** have a query, or a login, and no server for it */
  waitingClientList = new StatList<PgSocket>('waiting_client_list');
  /** cancel requests that wait for a connection to be sent on */
  waitingCancelReqList = new StatList<PgSocket>('waiting_cancel_req_list');
  /** cancel requests sent, not finished yet */
  activeCancelReqList = new StatList<PgSocket>('active_cancel_req_list');

  /** linked with a client */
  activeServerList = new StatList<PgSocket>('active_server_list');
  /** carry a cancel request */
  activeCancelServerList = new StatList<PgSocket>('active_cancel_server_list');
  /** free, but a cancel request aimed at them is still under way, so that it may hit the next query */
  beingCanceledServerList = new StatList<PgSocket>('being_canceled_server_list');
  /** ready for the next client */
  idleServerList = new StatList<PgSocket>('idle_server_list');
  /** just unlinked, to be checked before reuse */
  usedServerList = new StatList<PgSocket>('used_server_list');
  /** running the reset query or the check query */
  testedServerList = new StatList<PgSocket>('tested_server_list');
  /** logging in; one at a time, see launchNewConnection */
  newServerList = new StatList<PgSocket>('new_server_list');

  stats: PgStats = newStats();
  newerStats: PgStats = newStats();
  olderStats: PgStats = newStats();

  /** AuthenticationOk and the parameters that are not tracked, as sent to each new client; null = not known yet */
  welcomeMsg: Uint8Array | null = null;
  welcomeMsgReady = false;
  /** ParameterStatus packets collected while the first server logs in */
  welcomeParts: [string, string][] = [];
  /** bytes of them */
  welcomePartsLen = 0;
  /** tracked variables as the server has them by default */
  origVars: (string | null)[] = newVarCache();

  /* usec */
  lastLifetimeDisconnect = 0;
  lastConnectTime = 0;
  lastActiveTime = getCachedTime();

  lastConnectFailed = false;
  lastConnectFailedMessage = '';
  lastLoginFailed = false;
  /** round-robin counter over the hosts of the database */
  rrcounter = 0;
  /** hosts, and addresses of the present host, that failed in this attempt to connect (session/hosts.ts) */
  hostsTried = 0;
  addressesTried = 0;

  /** in the list of pools that something happened to in this turn */
  touched = false;
  /** killed: a reference that is left somewhere must not bring it back */
  dead = false;
  serial = ++poolSerial;

  constructor(db: PgDatabase, user: PgCredentials | null) {
    this.db = db;
    this.user = user;
  }
}

/** Ordered by database and user, as SHOW prints them. */
export const poolList = new StatList<PgPool>('pool_list', comparePools);
/** Ordered by peer id. */
export const peerPoolList = new StatList<PgPool>('peer_pool_list', (a, b) => a.db.peerId - b.db.peerId);

function comparePools(a: PgPool, b: PgPool): number {
  if (a.db !== b.db) return compareNames(a.db.name, b.db.name);
  // credentials of two kinds may carry one name: the older pool goes first
  return compareNames((a.user as PgCredentials).name, (b.user as PgCredentials).name) || a.serial - b.serial;
}

/** The pool of a database and a user, made when there is none. */
export function getPool(db: PgDatabase, user: PgCredentials): PgPool {
  const globalUser = user.globalUser;
  if (globalUser === null) throw new Error('get_pool: credentials without a user');
  for (const pool of globalUser.pools) if (pool.db === db) return pool;
  const pool = new PgPool(db, user);
  globalUser.pools.push(pool);
  db.pools.push(pool);
  poolList.insert(pool);
  return pool;
}

/** The pool over which cancel requests go to a peer. */
export function getPeerPool(peer: PgDatabase): PgPool {
  if (peer.peerPool === null) {
    peer.peerPool = new PgPool(peer, null);
    peerPoolList.insert(peer.peerPool);
  }
  return peer.peerPool;
}

/** Takes a pool out of every index; its sockets must be gone. */
export function removePool(pool: PgPool): void {
  pool.dead = true;
  if (pool.user === null) {
    peerPoolList.remove(pool);
    pool.db.peerPool = null;
    return;
  }
  poolList.remove(pool);
  const ofUser = pool.user.globalUser?.pools;
  if (ofUser !== undefined) ofUser.splice(ofUser.indexOf(pool), 1);
  pool.db.pools.splice(pool.db.pools.indexOf(pool), 1);
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
