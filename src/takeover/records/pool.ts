/*
 * The record of a pool: its counters, its welcome message, and the outcome of its last connects and logins.
 */

import type { WallTime } from '../../core/base/time';
import { dnsPeerAt, usesPeersDns } from '../../core/link/peers-dns';
import type { PgPool } from '../../core/pool/bouncer';
import { findDatabase, findPeer } from '../../core/pool/database';
import { poolListening } from '../../core/pool/listening';
import { getPeerPool, getPool } from '../../core/pool/pool';
import { receivedTime, sentTime } from '../clock';
import { bytesOf, bytesText } from './bytes';
import { type CredentialsRef, credentialsRef, readCredentials } from './credentials';
import type { Frame } from './frame';

export interface PoolRecord {
  k: 'pool';
  /** number that sockets refer to */
  n: number;
  db: string;
  /** > 0: the pool of a peer */
  peerId: number;
  /** the address of a peer that peers_dns has found; missing in other pools, and from versions before 0.2 */
  peerHost?: string;
  user: CredentialsRef | null;
  stats: number[];
  newerStats: number[];
  olderStats: number[];
  /** raw bytes, null = not known */
  welcomeMsg: string | null;
  origVars: readonly (string | null)[];
  lastLifetimeDisconnect: WallTime;
  lastConnectTime: WallTime;
  lastActiveTime: WallTime;
  lastConnectFailed: boolean;
  lastConnectFailedMessage: string;
  lastLoginFailed: boolean;
  /** clients wait until a host fits target_session_attrs; missing if they do not, and from versions before 0.2 */
  holding?: boolean;
  rrcounter: number;
  /** its place among the pools whose clients wait for room in its database; missing if they do not */
  claim?: number;
  /** from format 3 on: the encoding of the notifications for its clients that share a listening connection */
  listenEncoding?: string;
}

/** The place of a pool in the order of claims (link/shares.ts), -1 = it has none. */
function claimOf(pool: PgPool): number {
  const { claims } = pool.db;
  return claims?.has(pool) ? [...claims].indexOf(pool) : -1;
}

export function poolRecord(pool: PgPool, n: number): PoolRecord {
  const claim = claimOf(pool);
  return {
    k: 'pool',
    n,
    db: pool.db.name,
    peerId: pool.db.peerId,
    ...(pool.db.fromDns ? { peerHost: pool.db.name } : {}),
    user: pool.user === null ? null : credentialsRef(pool.user, pool.db),
    stats: [...pool.stats],
    newerStats: [...pool.newerStats],
    olderStats: [...pool.olderStats],
    welcomeMsg: pool.welcomeMsgReady && pool.welcomeMsg !== null ? bytesText(pool.welcomeMsg) : null,
    origVars: pool.origVars.values,
    lastLifetimeDisconnect: sentTime(pool.lastLifetimeDisconnect),
    lastConnectTime: sentTime(pool.lastConnectTime),
    lastActiveTime: sentTime(pool.lastActiveTime),
    lastConnectFailed: pool.lastConnectFailed,
    lastConnectFailedMessage: pool.lastConnectFailedMessage,
    lastLoginFailed: pool.lastLoginFailed,
    ...(pool.holding ? { holding: true } : {}),
    rrcounter: pool.rrcounter,
    ...(claim < 0 ? {} : { claim }),
    ...(pool.listening === null ? {} : { listenEncoding: pool.listening.encoding }),
  };
}

function poolOf(record: PoolRecord, frame: Frame): PgPool | null {
  if (record.peerHost !== undefined) return usesPeersDns() ? getPeerPool(dnsPeerAt(record.peerHost)) : null;
  if (record.peerId > 0) {
    const peer = findPeer(record.peerId);
    return peer === null ? null : getPeerPool(peer);
  }
  const db = findDatabase(record.db);
  // of an idle auto-database, which has no place in this config: the pool has no connections
  if (db === null) return null;
  if (record.user === null) throw new Error(`pool of database ${record.db} without a user`);
  const credentials = readCredentials(record.user, db, frame);
  // a pool is that of a user who has logged in, or of auth_user
  if (credentials.globalUser !== null) credentials.globalUser.provisional = false;
  return getPool(db, credentials);
}

export function readPool(record: PoolRecord, frame: Frame): void {
  const pool = poolOf(record, frame);
  // its peer or database is no longer configured
  if (pool === null) return;
  frame.pools.set(record.n, pool);
  frame.described.add(record.n);
  frame.statsOf(record.stats, pool.stats);
  frame.statsOf(record.newerStats, pool.newerStats);
  frame.statsOf(record.olderStats, pool.olderStats);
  pool.lastLifetimeDisconnect = receivedTime(record.lastLifetimeDisconnect);
  pool.lastActiveTime = receivedTime(record.lastActiveTime);
  pool.rrcounter = record.rrcounter;
  if (record.claim === undefined) frame.claims.delete(pool);
  else frame.claims.set(pool, record.claim);
  if (record.listenEncoding !== undefined) poolListening(pool).encoding = record.listenEncoding;
  // the console's welcome message, and results of connecting under another config, do not apply here
  if (pool.db.admin || frame.changed.has(pool.db.name)) return;
  pool.lastConnectTime = receivedTime(record.lastConnectTime);
  pool.lastConnectFailed = record.lastConnectFailed;
  pool.lastConnectFailedMessage = record.lastConnectFailedMessage;
  pool.lastLoginFailed = record.lastLoginFailed;
  pool.holding = record.holding === true;
  if (record.welcomeMsg === null) return;
  pool.welcomeMsg = bytesOf(record.welcomeMsg);
  pool.welcomeMsgReady = true;
  frame.varsOf(record.origVars, pool.origVars);
}
