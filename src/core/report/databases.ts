/*
 * Rows of databases, peers and users: their settings, with defaults applied, and their numbers of connections.
 */

import { nextOf } from '../base/list';
import { loadBalanceHostsMap, PoolMode, poolModeMap } from '../config/choices';
import { cf } from '../config/settings';
import { formatLookup } from '../config/values';
import {
  databaseMaxClientConnections,
  databaseMaxConnections,
  userMaxClientConnections,
  userMaxConnections,
} from '../pool/admission';
import type { PgDatabase, PgGlobalUser } from '../pool/bouncer';
import { databaseList, peerList } from '../pool/database';
import { userList } from '../pool/user';

/** Connections of a database or user, and their limits. */
interface ConnectionCounts {
  readonly maxConnections: number;
  readonly currentConnections: number;
  readonly maxClientConnections: number;
  readonly currentClientConnections: number;
}

interface DatabaseRow extends ConnectionCounts {
  readonly name: string;
  readonly host: string | null;
  readonly port: number;
  readonly dbname: string;
  readonly forceUser: string | null;
  readonly poolSize: number;
  readonly minPoolSize: number;
  readonly reservePoolSize: number;
  /** usec */
  readonly serverLifetime: number;
  /** null = the general setting applies */
  readonly poolMode: string | null;
  /** null if there is a single host */
  readonly loadBalanceHosts: string | null;
  readonly paused: boolean;
  readonly disabled: boolean;
}

interface PeerRow {
  readonly peerId: number;
  readonly host: string | null;
  readonly port: number;
  readonly poolSize: number;
}

interface UserRow extends ConnectionCounts {
  readonly name: string;
  /** -1 = the setting of the database applies */
  readonly poolSize: number;
  readonly reservePoolSize: number;
  /** null = the setting of the database applies */
  readonly poolMode: string | null;
}

function poolModeName(mode: PoolMode): string | null {
  return mode === PoolMode.INHERIT ? null : formatLookup(poolModeMap, mode);
}

/** @returns null for a database with a single host */
export function loadBalanceName({ config }: PgDatabase): string | null {
  return config.host?.includes(',') ? formatLookup(loadBalanceHostsMap, config.loadBalanceHosts) : null;
}

/** A value of a database or peer, or the general setting if it has none. */
export function setOr(value: number, general: number): number {
  return value >= 0 ? value : general;
}

function databaseRow(db: PgDatabase): DatabaseRow {
  const { config } = db;
  return {
    name: db.name,
    host: config.host,
    port: config.port,
    dbname: config.dbname,
    forceUser: db.forcedUser?.name ?? null,
    poolSize: setOr(config.poolSize, cf.defaultPoolSize),
    minPoolSize: setOr(config.minPoolSize, cf.minPoolSize),
    reservePoolSize: setOr(config.resPoolSize, cf.reservePoolSize),
    serverLifetime: config.serverLifetime > 0 ? config.serverLifetime : cf.serverLifetime,
    poolMode: poolModeName(config.poolMode),
    loadBalanceHosts: loadBalanceName(db),
    maxConnections: databaseMaxConnections(db),
    currentConnections: db.connectionCount,
    maxClientConnections: databaseMaxClientConnections(db),
    currentClientConnections: db.clientConnectionCount,
    paused: db.paused,
    disabled: db.disabled,
  };
}

function userRow(user: PgGlobalUser): UserRow {
  const { config } = user;
  return {
    name: user.name,
    poolSize: config.poolSize,
    reservePoolSize: config.resPoolSize,
    poolMode: poolModeName(config.poolMode),
    maxConnections: userMaxConnections(user),
    currentConnections: user.connectionCount,
    maxClientConnections: userMaxClientConnections(user),
    currentClientConnections: user.clientConnectionCount,
  };
}

export function* databaseRows(): Generator<DatabaseRow> {
  for (let db = databaseList.head; db !== null; db = nextOf(db)) yield databaseRow(db);
}

export function* peerRows(): Generator<PeerRow> {
  for (let peer = peerList.head; peer !== null; peer = nextOf(peer)) {
    const { host, port, poolSize } = peer.config;
    yield { peerId: peer.peerId, host, port, poolSize: setOr(poolSize, cf.defaultPoolSize) };
  }
}

/** Users of auth_file that were never used have a row only after wakeAllUsers(). */
export function* userRows(): Generator<UserRow> {
  for (let user = userList.head; user !== null; user = nextOf(user)) yield userRow(user);
}
