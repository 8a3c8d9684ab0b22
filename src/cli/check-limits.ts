/*
 * The part of --check about numbers: descriptors, sizes of pools, limits of connections, and timeouts that cancel each
 * other out. Each finding is a warning: the pooler starts with it, but probably does not do what was intended.
 */

import type { ParsedConfig } from '../core/config/loader';
import { DATABASE_DEFAULTS, type DatabaseConfig } from '../core/config/records';
import { cf } from '../core/config/settings';

/** A setting, or a line of another section, that does not do what it seems to say. */
export interface Warning {
  /** `section/key` */
  key: string;
  text: string;
}

/** Sockets that listen, log, pidfile, the loop's own, as in the pooler's line about descriptors. */
const OTHER_DESCRIPTORS = 10;

export const general = (name: string): string => `pgbouncer/${name}`;

function given(value: number, otherwise: number): number {
  return value >= 0 ? value : otherwise;
}

/** A limit of a database or a user; with 0, as without one, the general setting applies. */
export function givenLimit(value: number, otherwise: number): number {
  return value > 0 ? value : otherwise;
}

function poolSizeOf(db: DatabaseConfig): number {
  return given(db.poolSize, cf.defaultPoolSize);
}

/** The databases of a config, with the `*` line as one of them. */
export function allDatabases(parsed: ParsedConfig): DatabaseConfig[] {
  return parsed.autodb === null ? parsed.databases : [...parsed.databases, parsed.autodb];
}

/**
 * The most server connections that a database opens, reserve included.
 * @param users how many users may log in; each has a pool of its own unless the database has a forced user
 */
export function mostConnections(db: DatabaseConfig, users: number): number {
  const reserve = cf.reservePoolTimeout > 0 ? given(db.resPoolSize, cf.reservePoolSize) : 0;
  const pools = db.user === null ? Math.max(users, 1) : 1;
  const size = poolSizeOf(db);
  // 0 is no limit: a server for each client
  const most = size === 0 ? cf.maxClientConn : pools * (size + Math.max(reserve, 0));
  const limit = givenLimit(db.maxDbConnections, cf.maxDbConnections);
  return limit > 0 ? Math.min(limit, most) : most;
}

function findDescriptorWarnings(parsed: ParsedConfig, users: number, softLimit: number): Warning[] {
  let pools = 0;
  for (const db of allDatabases(parsed)) pools += mostConnections(db, users);
  let peers = 0;
  for (const peer of parsed.peers) if (peer.id !== cf.peerId) peers += given(peer.poolSize, cf.defaultPoolSize);
  const most = cf.maxClientConn + pools + peers + OTHER_DESCRIPTORS;
  if (most <= softLimit) return [];
  const sum = `max_client_conn ${cf.maxClientConn}, pools ${pools}, peers ${peers}`;
  const text = `clients and servers can need ${most} file descriptors (${sum}), but the limit is ${softLimit}`;
  return [{ key: general('max_client_conn'), text }];
}

/** What contradicts the size of the pools of a database, or of all that have no sizes of their own. */
function poolProblems(db: DatabaseConfig | null): string[] {
  const { poolSize, minPoolSize, maxDbConnections } = db ?? DATABASE_DEFAULTS;
  // the warnings about the general settings are not repeated for each database
  const own = (value: number) => db === null || value >= 0 || poolSize >= 0;
  const size = given(poolSize, cf.defaultPoolSize);
  const named = `${db === null ? 'default_pool_size' : 'pool_size'} ${size}`;
  const min = given(minPoolSize, cf.minPoolSize);
  const limit = givenLimit(maxDbConnections, cf.maxDbConnections);
  const found: string[] = [];
  if (size > 0 && min > size && own(minPoolSize)) found.push(`min_pool_size ${min} is more than ${named}`);
  if (limit > 0 && limit < size && own(givenLimit(maxDbConnections, -1))) {
    found.push(`max_db_connections ${limit} is less than ${named}, so no pool reaches its size`);
  }
  return found;
}

function findPoolWarnings(parsed: ParsedConfig): Warning[] {
  const found: Warning[] = poolProblems(null).map((text) => ({ key: general(text.replace(/ .*/, '')), text }));
  for (const db of allDatabases(parsed)) {
    for (const text of poolProblems(db)) found.push({ key: `databases/${db.name}`, text });
  }
  if (cf.maxUserConnections > 0 && cf.maxUserConnections < cf.defaultPoolSize) {
    const limits = `max_user_connections ${cf.maxUserConnections} is less than default_pool_size ${cf.defaultPoolSize}`;
    found.push({ key: general('max_user_connections'), text: `${limits}, so no pool reaches its size` });
  }
  const reserves = [cf.reservePoolSize, ...allDatabases(parsed).map((db) => db.resPoolSize)];
  reserves.push(...parsed.users.map((user) => user.resPoolSize));
  if (Math.max(...reserves) > 0) found.push(...reserveWarnings());
  const sum = allDatabases(parsed).reduce((before, db) => before + Math.min(mostConnections(db, 1), poolSizeOf(db)), 0);
  if (cf.maxClientConn < sum) {
    const text = `max_client_conn ${cf.maxClientConn} is less than ${sum}, the sum of the pool sizes`;
    found.push({ key: general('max_client_conn'), text });
  }
  return found;
}

function reserveWarnings(): Warning[] {
  const key = general('reserve_pool_timeout');
  if (cf.reservePoolTimeout === 0) {
    return [{ key, text: 'reserve_pool_size has no effect, because reserve_pool_timeout is 0' }];
  }
  if (cf.queryWaitTimeout > 0 && cf.reservePoolTimeout >= cf.queryWaitTimeout) {
    return [
      { key, text: 'reserve_pool_size has no effect, because query_wait_timeout ends before reserve_pool_timeout' },
    ];
  }
  return [];
}

function findClientLimitWarnings(): Warning[] {
  const limits: [name: string, value: number][] = [
    ['max_client_conn_per_host', cf.maxClientConnPerHost],
    ['max_db_client_connections', cf.maxDbClientConnections],
    ['max_user_client_connections', cf.maxUserClientConnections],
  ];
  return limits
    .filter(([, value]) => value > cf.maxClientConn)
    .map(([name, value]) => ({
      key: general(name),
      text: `${name} ${value} has no effect, because max_client_conn is ${cf.maxClientConn}`,
    }));
}

function findTimeoutWarnings(): Warning[] {
  const found: Warning[] = [];
  if (cf.queryWaitTimeout === 0) {
    found.push({ key: general('query_wait_timeout'), text: 'query_wait_timeout 0 lets clients wait for ever' });
  }
  const pairs: [longer: string, number, shorter: string, number][] = [
    ['server_idle_timeout', cf.serverIdleTimeout, 'server_lifetime', cf.serverLifetime],
    ['idle_transaction_timeout', cf.idleTransactionTimeout, 'transaction_timeout', cf.transactionTimeout],
    ['query_timeout', cf.queryTimeout, 'transaction_timeout', cf.transactionTimeout],
  ];
  for (const [name, value, limitedBy, limit] of pairs) {
    if (limit === 0 || value <= limit) continue;
    found.push({ key: general(name), text: `${name} has no effect, because ${limitedBy} is shorter` });
  }
  return found;
}

/**
 * All warnings about numbers.
 * @param users how many users auth_file has
 * @param softLimit of file descriptors
 */
export function findLimitWarnings(parsed: ParsedConfig, users: number, softLimit: number): Warning[] {
  return [
    ...findDescriptorWarnings(parsed, users, softLimit),
    ...findPoolWarnings(parsed),
    ...findClientLimitWarnings(),
    ...findTimeoutWarnings(),
  ];
}
