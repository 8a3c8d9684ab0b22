/*
 * One line of [databases], [users] or [peers] as a plain record. Called by the loader, and by link/registry.ts when it
 * creates an auto-database from the "*" line. Nothing here changes an existing database or user.
 */

import { logError, logWarning } from '../base/log';
import { MAX_DBNAME, MAX_PASSWORD, MAX_USERNAME } from '../wire/limits';
import {
  DirtySession,
  dirtySessionMap,
  ListenMode,
  LoadBalanceHosts,
  listenModeMap,
  loadBalanceHostsMap,
  PoolMode,
  poolModeMap,
  TargetSession,
  targetSessionMap,
} from './choices';
import { parseConnstr } from './connstr';
import { type DatabaseTls, tlsParams } from './database-tls';
import { findPassword } from './password-source';
import { isReservedDatabase } from './settings';
import { atoi, atoiSecondsUsec, parseLookup, parseTimeUsec } from './values';

/** A line of [databases]. If not given, numbers are -1 and times 0, unless noted otherwise. */
export interface DatabaseConfig {
  /** the name that clients ask for; '*' for the line that stands for all other names */
  name: string;
  /** names or addresses, comma-separated; a path or @name = Unix socket; null = the default Unix socket directory */
  host: string | null;
  port: number;
  /** a port for each host; null = `port` for all */
  ports: number[] | null;
  targetSession: TargetSession;
  /** name on the server */
  dbname: string;
  poolSize: number;
  minPoolSize: number;
  resPoolSize: number;
  poolMode: PoolMode;
  dirtySession: DirtySession;
  listenMode: ListenMode;
  maxDbConnections: number;
  maxDbClientConnections: number;
  /** usec */
  serverLifetime: number;
  serverLoginConcurrency: number;
  /** max_protocol_version */
  maxProtocol32: boolean;
  connectQuery: string | null;
  authUser: string | null;
  authQuery: string | null;
  authDbname: string | null;
  /** usec */
  authQueryCacheTime: number;
  /** forced user: server connections log in as this user; null = the client's user */
  user: string | null;
  /** password of the forced user, from wherever it comes; null = not given */
  password: string | null;
  /** where the password comes from, if it is not in the line itself */
  passwordFile: string | null;
  passwordEnv: string | null;
  passwordCommand: string | null;
  /** the state of the file when it was read, see fileMark() */
  passwordMark: string;
  loadBalanceHosts: LoadBalanceHosts;
  /** null = all as in the settings */
  tls: DatabaseTls | null;
  /** usec; valid only with queryWaitTimeoutSet, since 0 means "never" */
  queryWaitTimeout: number;
  queryWaitTimeoutSet: boolean;
  /** the parameters of the startup packet, except the user, in the order they are sent */
  startupParams: [key: string, value: string][];
  /** the line's value as written */
  connstr: string;
}

/** A line of [users]. If not given, numbers are -1 and times 0. */
export interface UserConfig {
  name: string;
  poolMode: PoolMode;
  dirtySession: DirtySession;
  listenMode: ListenMode;
  poolSize: number;
  resPoolSize: number;
  maxUserConnections: number;
  maxUserClientConnections: number;
  /** usec */
  transactionTimeout: number;
  /** usec */
  idleTransactionTimeout: number;
  /** usec */
  queryTimeout: number;
  /** usec; valid only with queryWaitTimeoutSet */
  queryWaitTimeout: number;
  queryWaitTimeoutSet: boolean;
  /** usec */
  clientIdleTimeout: number;
  /** see link/shares.ts; 1 if not given */
  shareWeight: number;
  /** connections; 0 if not given */
  shareMinimum: number;
}

/** A line of [peers]. */
export interface PeerConfig {
  id: number;
  host: string;
  port: number;
  /** -1 = default_pool_size */
  poolSize: number;
}

/** A database without its own line: the console, a mock database, a database that is not configured yet. */
export const DATABASE_DEFAULTS: Readonly<DatabaseConfig> = Object.freeze({
  name: '',
  host: null,
  port: 5432,
  ports: null,
  targetSession: TargetSession.ANY,
  dbname: '',
  poolSize: -1,
  minPoolSize: -1,
  resPoolSize: -1,
  poolMode: PoolMode.INHERIT,
  dirtySession: DirtySession.INHERIT,
  listenMode: ListenMode.INHERIT,
  maxDbConnections: -1,
  maxDbClientConnections: -1,
  serverLifetime: 0,
  serverLoginConcurrency: -1,
  maxProtocol32: true,
  connectQuery: null,
  authUser: null,
  authQuery: null,
  authDbname: null,
  authQueryCacheTime: -1,
  user: null,
  password: null,
  passwordFile: null,
  passwordEnv: null,
  passwordCommand: null,
  passwordMark: '',
  loadBalanceHosts: LoadBalanceHosts.ROUND_ROBIN,
  tls: null,
  queryWaitTimeout: 0,
  queryWaitTimeoutSet: false,
  startupParams: [],
  connstr: '',
});

/** A user without a line in [users]. */
export const USER_DEFAULTS: Readonly<UserConfig> = Object.freeze({
  name: '',
  poolMode: PoolMode.INHERIT,
  dirtySession: DirtySession.INHERIT,
  listenMode: ListenMode.INHERIT,
  poolSize: -1,
  resPoolSize: -1,
  maxUserConnections: -1,
  maxUserClientConnections: -1,
  transactionTimeout: 0,
  idleTransactionTimeout: 0,
  queryTimeout: 0,
  queryWaitTimeout: 0,
  queryWaitTimeoutSet: false,
  clientIdleTimeout: 0,
  shareWeight: 1,
  shareMinimum: 0,
});

/** The hosts of a connect string; null stands for the local Unix socket. */
export function hostNames(host: string | null): (string | null)[] {
  if (host === null || !host.includes(',')) return [host];
  const hosts = host.split(',').filter((name) => name !== '');
  // a host list without names is an error; only an absent host means the Unix socket
  return hosts.length === 0 ? [''] : hosts;
}

const PEER_ID_MAX = 0xffff;
const PORT_MAX = 65535;

/** Stores one value in a record. @returns null, or the error message */
type ApplyParam<T> = (config: T, value: string) => string | null;

/** Applies a connect string by means of a table of keys. @returns false after logging the error */
function applyConnstr<T>(
  config: T,
  connstr: string,
  params: ReadonlyMap<string, ApplyParam<T>>,
  syntaxError: string,
  unknownKey: string,
): boolean {
  const pairs = parseConnstr(connstr);
  if (pairs === null) {
    logError(syntaxError);
    return false;
  }
  for (const [key, value] of pairs) {
    const apply = params.get(key);
    const error = apply === undefined ? `${unknownKey}: ${key}` : apply(config, value);
    if (error !== null) {
      logError(error);
      return false;
    }
  }
  return true;
}

/** Table entry for a value that is always valid. */
function plain<T>(store: (config: T, value: string) => void): ApplyParam<T> {
  return (config, value) => {
    store(config, value);
    return null;
  };
}

function applyPort(config: { port: number }, value: string): string | null {
  const port = atoi(value);
  if (port <= 0 || port > PORT_MAX) return `invalid port: ${value}`;
  config.port = port;
  return null;
}

/** One port, or a comma-separated list with one for each host. */
function applyPorts(config: { port: number; ports: number[] | null }, value: string): string | null {
  if (!value.includes(',')) {
    config.ports = null;
    return applyPort(config, value);
  }
  const ports: number[] = [];
  for (const part of value.split(',')) {
    const error = applyPort(config, part);
    if (error !== null) return `invalid port: ${value}`;
    ports.push(config.port);
  }
  config.ports = ports;
  config.port = ports[0] as number;
  return null;
}

function applyPoolMode(config: { poolMode: PoolMode }, value: string): string | null {
  const mode = parseLookup(poolModeMap, value);
  if (mode === null) return `invalid pool mode: ${value}`;
  config.poolMode = mode;
  return null;
}

function applyDirtySession(config: { dirtySession: DirtySession }, value: string): string | null {
  const mode = parseLookup(dirtySessionMap, value);
  if (mode === null) return `invalid dirty_session: ${value}`;
  config.dirtySession = mode;
  return null;
}

function applyListenMode(config: { listenMode: ListenMode }, value: string): string | null {
  const mode = parseLookup(listenModeMap, value);
  if (mode === null) return `invalid listen_mode: ${value}`;
  config.listenMode = mode;
  return null;
}

/** Rejects names and passwords that are too long; PgBouncer truncates them and logs a bug. */
function limited<T>(what: string, limit: number, store: (config: T, value: string) => void): ApplyParam<T> {
  return (config, value) => {
    if (value.length >= limit) return `${what} too long in connection string`;
    store(config, value);
    return null;
  };
}

/** A database record under construction: the parameters that have a fixed place in the startup packet. */
interface DatabaseDraft extends DatabaseConfig {
  clientEncoding: string | null;
  datestyle: string | null;
  timezone: string | null;
  applicationName: string | null;
}

const databaseParams: ReadonlyMap<string, ApplyParam<DatabaseDraft>> = new Map<string, ApplyParam<DatabaseDraft>>([
  ['dbname', plain((db, v) => (db.dbname = v))],
  ['host', plain((db, v) => (db.host = v))],
  ['port', applyPorts],
  [
    'target_session_attrs',
    (db, v) => {
      const kind = parseLookup(targetSessionMap, v);
      if (kind === null) return `invalid target_session_attrs: ${v}`;
      db.targetSession = kind;
      return null;
    },
  ],
  ['user', limited('user name', MAX_USERNAME, (db, v) => (db.user = v))],
  ['password', limited('password', MAX_PASSWORD, (db, v) => (db.password = v))],
  ['password_file', plain((db, v) => (db.passwordFile = v))],
  ['password_env', plain((db, v) => (db.passwordEnv = v))],
  ['password_command', plain((db, v) => (db.passwordCommand = v))],
  ['auth_user', limited('auth_user', MAX_USERNAME, (db, v) => (db.authUser = v))],
  ['auth_dbname', plain((db, v) => (db.authDbname = v))],
  ['client_encoding', plain((db, v) => (db.clientEncoding = v))],
  ['datestyle', plain((db, v) => (db.datestyle = v))],
  ['timezone', plain((db, v) => (db.timezone = v))],
  ['pool_size', plain((db, v) => (db.poolSize = atoi(v)))],
  ['min_pool_size', plain((db, v) => (db.minPoolSize = atoi(v)))],
  // older name of the next key
  ['reserve_pool', plain((db, v) => (db.resPoolSize = atoi(v)))],
  ['reserve_pool_size', plain((db, v) => (db.resPoolSize = atoi(v)))],
  [
    'query_wait_timeout',
    plain((db, v) => {
      db.queryWaitTimeout = atoiSecondsUsec(v);
      db.queryWaitTimeoutSet = true;
    }),
  ],
  ['max_db_connections', plain((db, v) => (db.maxDbConnections = atoi(v)))],
  ['max_db_client_connections', plain((db, v) => (db.maxDbClientConnections = atoi(v)))],
  [
    'server_login_concurrency',
    (db, v) => {
      db.serverLoginConcurrency = atoi(v);
      return db.serverLoginConcurrency > 0 ? null : `invalid server_login_concurrency: ${v}`;
    },
  ],
  ['server_lifetime', plain((db, v) => (db.serverLifetime = atoiSecondsUsec(v)))],
  [
    'load_balance_hosts',
    (db, v) => {
      const strategy = parseLookup(loadBalanceHostsMap, v);
      if (strategy === null) return `invalid load_balance_hosts: ${v}`;
      db.loadBalanceHosts = strategy;
      return null;
    },
  ],
  [
    'max_protocol_version',
    (db, v) => {
      if (v !== '3.0' && v !== '3.2' && v !== 'latest') return `invalid max_protocol_version: ${v}`;
      db.maxProtocol32 = v !== '3.0';
      return null;
    },
  ],
  ...tlsParams,
  ['pool_mode', applyPoolMode],
  ['dirty_session', applyDirtySession],
  ['listen_mode', applyListenMode],
  ['connect_query', plain((db, v) => (db.connectQuery = v))],
  ['application_name', plain((db, v) => (db.applicationName = v))],
  ['auth_query', plain((db, v) => (db.authQuery = v))],
  [
    'auth_query_cache_time',
    (db, v) => {
      const usec = parseTimeUsec(v);
      if (usec === null) return `invalid auth_query_cache_time: ${v}`;
      db.authQueryCacheTime = usec;
      return null;
    },
  ],
]);

/**
 * A line of [databases]. An auto-database is made with parseDatabase(requested name, autodb.connstr).
 * @param name key of the line
 * @param connstr value of the line
 * @returns the record, or null after logging the error
 */
export function parseDatabase(name: string, connstr: string): DatabaseConfig | null {
  if (isReservedDatabase(name)) {
    logError(`database name "${name}" is reserved`);
    return null;
  }
  const draft: DatabaseDraft = {
    ...DATABASE_DEFAULTS,
    name,
    dbname: name,
    startupParams: [],
    connstr,
    clientEncoding: null,
    datestyle: null,
    timezone: null,
    applicationName: null,
  };
  const unknownKey = 'unrecognized connection parameter';
  if (!applyConnstr(draft, connstr, databaseParams, 'syntax error in connection string', unknownKey)) return null;
  if (name.length >= MAX_DBNAME) {
    logWarning(`too long db name: ${name}`);
    logError('cannot create database, no memory?');
    return null;
  }
  const passwordError = findPassword(draft);
  if (passwordError !== null) {
    logError(passwordError);
    return null;
  }
  const hostCount = hostNames(draft.host).length;
  if (draft.ports !== null && draft.ports.length !== hostCount) {
    logError(`could not match ${draft.ports.length} port numbers to ${hostCount} hosts`);
    return null;
  }
  const { clientEncoding, datestyle, timezone, applicationName, ...config } = draft;
  config.startupParams.push(['database', config.dbname]);
  if (clientEncoding !== null) config.startupParams.push(['client_encoding', clientEncoding]);
  if (datestyle !== null) config.startupParams.push(['datestyle', datestyle]);
  if (timezone !== null) config.startupParams.push(['timezone', timezone]);
  if (applicationName !== null) config.startupParams.push(['application_name', applicationName]);
  return config;
}

const userParams: ReadonlyMap<string, ApplyParam<UserConfig>> = new Map<string, ApplyParam<UserConfig>>([
  ['pool_mode', applyPoolMode],
  ['dirty_session', applyDirtySession],
  ['listen_mode', applyListenMode],
  ['pool_size', plain((user, v) => (user.poolSize = atoi(v)))],
  ['reserve_pool_size', plain((user, v) => (user.resPoolSize = atoi(v)))],
  ['max_user_connections', plain((user, v) => (user.maxUserConnections = atoi(v)))],
  ['transaction_timeout', plain((user, v) => (user.transactionTimeout = atoiSecondsUsec(v)))],
  ['idle_transaction_timeout', plain((user, v) => (user.idleTransactionTimeout = atoiSecondsUsec(v)))],
  ['query_timeout', plain((user, v) => (user.queryTimeout = atoiSecondsUsec(v)))],
  [
    'query_wait_timeout',
    plain((user, v) => {
      user.queryWaitTimeout = atoiSecondsUsec(v);
      user.queryWaitTimeoutSet = true;
    }),
  ],
  ['client_idle_timeout', plain((user, v) => (user.clientIdleTimeout = atoiSecondsUsec(v)))],
  ['max_user_client_connections', plain((user, v) => (user.maxUserClientConnections = atoi(v)))],
  [
    'share_weight',
    (user, v) => {
      user.shareWeight = atoi(v);
      return user.shareWeight > 0 ? null : `invalid share_weight: ${v}`;
    },
  ],
  [
    'share_minimum',
    (user, v) => {
      user.shareMinimum = atoi(v);
      return user.shareMinimum >= 0 ? null : `invalid share_minimum: ${v}`;
    },
  ],
]);

/** A line of [users]. @returns the record, or null after logging the error */
export function parseUser(name: string, connstr: string): UserConfig | null {
  const user: UserConfig = { ...USER_DEFAULTS, name };
  const unknownKey = 'unrecognized user parameter';
  if (!applyConnstr(user, connstr, userParams, 'syntax error in user settings', unknownKey)) return null;
  if (name.length >= MAX_USERNAME) {
    logError(`user name too long in configuration: ${name}`);
    return null;
  }
  return user;
}

/** A peer record under construction, possibly still without a host. */
interface PeerDraft {
  host: string | null;
  port: number;
  poolSize: number;
}

const peerParams: ReadonlyMap<string, ApplyParam<PeerDraft>> = new Map<string, ApplyParam<PeerDraft>>([
  ['host', plain((peer, v) => (peer.host = v))],
  ['port', applyPort],
  ['pool_size', plain((peer, v) => (peer.poolSize = atoi(v)))],
]);

/** A line of [peers]. @returns the record, or null after logging the error */
export function parsePeer(name: string, connstr: string): PeerConfig | null {
  const id = /^[ \t-\r]*\+?[0-9]+$/.test(name) ? Number(name) : 0;
  if (id < 1 || id > PEER_ID_MAX) {
    logError('ids of peers must be a number larger than 0 and at most 65536');
    return null;
  }
  const peer: PeerDraft = { host: null, port: 6432, poolSize: -1 };
  const unknownKey = 'unrecognized connection parameter';
  if (!applyConnstr(peer, connstr, peerParams, 'syntax error in connection string', unknownKey)) return null;
  if (peer.host === null) {
    logError(`host was not provided for peer ${id}`);
    return null;
  }
  return { id, host: peer.host, port: peer.port, poolSize: peer.poolSize };
}

/** The keys allowed in a line of each section, by the section's name; for the test of the documentation. */
export const recordKeys: Readonly<Record<'databases' | 'users' | 'peers', readonly string[]>> = {
  databases: [...databaseParams.keys()],
  users: [...userParams.keys()],
  peers: [...peerParams.keys()],
};
