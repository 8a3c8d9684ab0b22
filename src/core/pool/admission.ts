/*
 * Limits, and the counts that they are compared with; no other module changes these counts. Decisions only: a caller
 * disconnects what is refused.
 *
 * The limits and modes in effect: the user's setting takes precedence over the database's, which takes precedence over
 * the general setting.
 */

import { Family } from '../base/native';
import { DirtySession, ListenMode, PoolMode } from '../config/choices';
import { cf } from '../config/settings';
import {
  type AnySocket,
  type ClientSocket,
  type PgDatabase,
  type PgGlobalUser,
  type PgPool,
  Replication,
  type ServerSocket,
} from './bouncer';

/** Pool mode of a pool's ordinary connections; for replication connections see connectionPoolMode(). */
export function poolPoolMode(pool: PgPool): PoolMode {
  const ofUser = pool.user?.globalUser?.config.poolMode ?? PoolMode.INHERIT;
  if (ofUser !== PoolMode.INHERIT) return ofUser;
  if (pool.db.config.poolMode !== PoolMode.INHERIT) return pool.db.config.poolMode;
  return cf.poolMode;
}

/** Pool mode of a connection: replication connections always use session mode. */
export function connectionPoolMode(sk: AnySocket): PoolMode {
  if (sk.replication !== Replication.NONE) return PoolMode.SESSION;
  return poolPoolMode(sk.pool as PgPool);
}

export function poolDirtySession(pool: PgPool): DirtySession {
  const ofUser = pool.user?.globalUser?.config.dirtySession ?? DirtySession.INHERIT;
  if (ofUser !== DirtySession.INHERIT) return ofUser;
  const ofDb = pool.db.config.dirtySession;
  return ofDb === DirtySession.INHERIT ? cf.dirtySession : ofDb;
}

export function poolListenMode(pool: PgPool): ListenMode {
  const ofUser = pool.user?.globalUser?.config.listenMode ?? ListenMode.INHERIT;
  if (ofUser !== ListenMode.INHERIT) return ofUser;
  const ofDb = pool.db.config.listenMode;
  return ofDb === ListenMode.INHERIT ? cf.listenMode : ofDb;
}

export function poolPoolSize(pool: PgPool): number {
  const ofUser = pool.user?.globalUser?.config.poolSize ?? -1;
  if (ofUser >= 0) return ofUser;
  return pool.db.config.poolSize >= 0 ? pool.db.config.poolSize : cf.defaultPoolSize;
}

export function poolResPoolSize(pool: PgPool): number {
  const ofUser = pool.user?.globalUser?.config.resPoolSize ?? -1;
  if (ofUser >= 0) return ofUser;
  return pool.db.config.resPoolSize >= 0 ? pool.db.config.resPoolSize : cf.reservePoolSize;
}

export function databaseMinPoolSize(db: PgDatabase): number {
  return db.config.minPoolSize < 0 ? cf.minPoolSize : db.config.minPoolSize;
}

/** usec */
export function poolServerLifetime(pool: PgPool): number {
  return pool.db.config.serverLifetime === 0 ? cf.serverLifetime : pool.db.config.serverLifetime;
}

const GOLDEN_RATIO = 0.6180339887498949;

/**
 * Lifetime of one server, usec: up to server_lifetime_jitter percent less than that of its pool. Multiples of the golden
 * ratio spread the servers evenly, whatever their number.
 */
export function serverLifetime(server: ServerSocket): number {
  const lifetime = poolServerLifetime(server.pool);
  if (cf.serverLifetimeJitter === 0) return lifetime;
  return lifetime * (1 - (cf.serverLifetimeJitter / 100) * ((server.id * GOLDEN_RATIO) % 1));
}

/**
 * Most logins of a pool at a time. After a failure, and until the first login has succeeded, it is one: a server that
 * rejects logins is not flooded, and the hosts of a list are tried in order.
 */
export function poolLoginLimit(pool: PgPool): number {
  if (pool.lastConnectFailed || !pool.welcomeMsgReady || pool.hostsTried > 0 || pool.failedAddresses.length > 0)
    return 1;
  const ofDb = pool.db.config.serverLoginConcurrency;
  return ofDb > 0 ? ofDb : cf.serverLoginConcurrency;
}

export function databaseMaxConnections(db: PgDatabase): number {
  return db.config.maxDbConnections <= 0 ? cf.maxDbConnections : db.config.maxDbConnections;
}

export function databaseMaxClientConnections(db: PgDatabase): number {
  return db.config.maxDbClientConnections <= 0 ? cf.maxDbClientConnections : db.config.maxDbClientConnections;
}

export function userMaxConnections(user: PgGlobalUser): number {
  return user.config.maxUserConnections <= 0 ? cf.maxUserConnections : user.config.maxUserConnections;
}

export function userMaxClientConnections(user: PgGlobalUser): number {
  return user.config.maxUserClientConnections <= 0 ? cf.maxUserClientConnections : user.config.maxUserClientConnections;
}

/** Counts a client among those of its database, once. */
export function countForDatabase(client: ClientSocket, db: PgDatabase): void {
  if (client.countedDb !== null) return;
  client.countedDb = db;
  db.clientConnectionCount++;
  countForHost(client);
}

/** Number of clients by address, of those counted for a database. Unix sockets have no address. */
const clientsByHost = new Map<string, number>();

function countForHost(client: ClientSocket): void {
  const { family, host } = client.remoteAddr;
  if (family === Family.UNIX) return;
  client.countedHost = host;
  clientsByHost.set(host, hostClientCount(host) + 1);
}

function uncountForHost(client: ClientSocket): void {
  const host = client.countedHost;
  if (host === null) return;
  client.countedHost = null;
  const left = hostClientCount(host) - 1;
  if (left > 0) clientsByHost.set(host, left);
  else clientsByHost.delete(host);
}

export function hostClientCount(host: string): number {
  return clientsByHost.get(host) ?? 0;
}

/** Counts a client among those of its user, once. */
export function countForUser(client: ClientSocket, user: PgGlobalUser): void {
  if (client.countedUser !== null) return;
  client.countedUser = user;
  user.clientConnectionCount++;
}

export function uncountForDatabase(client: ClientSocket): void {
  if (client.countedDb !== null) client.countedDb.clientConnectionCount--;
  client.countedDb = null;
  uncountForHost(client);
}

export function uncountForUser(client: ClientSocket): void {
  if (client.countedUser !== null) client.countedUser.clientConnectionCount--;
  client.countedUser = null;
}

/** Counts a server connection for the database and the user of its pool. */
export function countServer({ pool }: ServerSocket): void {
  pool.db.connectionCount++;
  const user = pool.user?.globalUser ?? null;
  if (user !== null) user.connectionCount++;
}

export function uncountServer({ pool }: ServerSocket): void {
  pool.db.connectionCount--;
  const user = pool.user?.globalUser ?? null;
  if (user !== null) user.connectionCount--;
}

/** The pool of one user, with that many server connections, becomes the pool of another. */
export function moveServerCount(from: PgGlobalUser, to: PgGlobalUser, count: number): void {
  from.connectionCount -= count;
  to.connectionCount += count;
}
