/*
 * Effective limits: the user's setting before the database's before the general one.
 */

import { cf, PoolMode } from '../config/settings';
import { type AnySocket, type PgDatabase, type PgGlobalUser, type PgPool, Replication } from './bouncer';

/** Pool mode of a pool's ordinary connections; replication connections differ, see connectionPoolMode. */
export function poolPoolMode(pool: PgPool): PoolMode {
  const ofUser = pool.user?.globalUser?.poolMode ?? PoolMode.INHERIT;
  if (ofUser !== PoolMode.INHERIT) return ofUser;
  if (pool.db.poolMode !== PoolMode.INHERIT) return pool.db.poolMode;
  return cf.poolMode;
}

/** Pool mode of one connection: replication works in session mode only. */
export function connectionPoolMode(sk: AnySocket): PoolMode {
  if (sk.replication !== Replication.NONE) return PoolMode.SESSION;
  return poolPoolMode(sk.pool as PgPool);
}

export function poolPoolSize(pool: PgPool): number {
  const ofUser = pool.user?.globalUser?.poolSize ?? -1;
  if (ofUser >= 0) return ofUser;
  return pool.db.poolSize >= 0 ? pool.db.poolSize : cf.defaultPoolSize;
}

export function poolResPoolSize(pool: PgPool): number {
  const ofUser = pool.user?.globalUser?.resPoolSize ?? -1;
  if (ofUser >= 0) return ofUser;
  return pool.db.resPoolSize >= 0 ? pool.db.resPoolSize : cf.reservePoolSize;
}

export function databaseMinPoolSize(db: PgDatabase): number {
  return db.minPoolSize < 0 ? cf.minPoolSize : db.minPoolSize;
}

/** usec */
export function poolServerLifetime(pool: PgPool): number {
  return pool.db.serverLifetime === 0 ? cf.serverLifetime : pool.db.serverLifetime;
}

export function databaseMaxConnections(db: PgDatabase): number {
  return db.maxDbConnections <= 0 ? cf.maxDbConnections : db.maxDbConnections;
}

export function databaseMaxClientConnections(db: PgDatabase): number {
  return db.maxDbClientConnections <= 0 ? cf.maxDbClientConnections : db.maxDbClientConnections;
}

export function userMaxConnections(user: PgGlobalUser): number {
  return user.maxUserConnections <= 0 ? cf.maxUserConnections : user.maxUserConnections;
}

export function userMaxClientConnections(user: PgGlobalUser): number {
  return user.maxUserClientConnections <= 0 ? cf.maxUserClientConnections : user.maxUserClientConnections;
}
