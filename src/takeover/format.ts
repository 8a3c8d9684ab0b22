/*
 * The format of the full handover, which both processes must agree on. docs/online-reboot.md explains the exchange.
 *
 * The old process answers `HANDOVER <n>;` with CopyData messages, one record each: the length of a JSON text (4 bytes),
 * the text (latin1: one char is one byte), then the raw bytes that the text announces. A record with `fd` owns the next
 * of the descriptors that were received as SCM_RIGHTS. After the record `aheadEnd` the old process keeps serving and
 * waits for `HANDOVER READY;`. CommandComplete `HANDOVER` ends the exchange.
 *
 * For compatibility across versions, fields of sockets are sent as lists whose names the first record gives, and states
 * and kinds are sent by name. Readers ignore what they do not know and use defaults for what is missing. FORMAT is
 * raised only when that is not enough.
 */

import type { WallTime } from '../core/base/time';
import { hostsOf } from '../core/link/hosts';
import type { PgDatabase } from '../core/pool/bouncer';

/** Newest format that this version writes and reads. */
export const FORMAT = 1;

/** Sent by the new process once it has read everything up to `aheadEnd`; the old process serves until then. */
export const READY = 'READY';

export interface BeginRecord {
  k: 'begin';
  format: number;
  version: string;
  /** process id of the old process */
  pid: number;
  flags: string[];
  numbers: string[];
  vars: string[];
  stats: string[];
  /** where systemd listens, or null */
  notifySocket: string | null;
}

/** Ends the records sent ahead; the reader answers READY once it has processed them. */
interface AheadEndRecord {
  k: 'aheadEnd';
}

/** The old process is frozen now. The records before this one described only idle clients, ahead of time. */
export interface StillRecord {
  k: 'still';
  since: WallTime;
  /** the old process was in PAUSE */
  paused: boolean;
  /** begin of the last and of the current statistics period */
  statsStamps: [WallTime, WallTime];
  /** number of the newest prepared statement; on servers the statements are named PGBOUNCER_<number> */
  newestQueryId: number;
}

interface ListenerRecord {
  k: 'listener';
  fd: true;
  /** systemd created the socket, and removes its file */
  inherited: boolean;
}

/** A secret and the SCRAM keys learnt with it; keys are raw bytes. */
export interface SecretRecord {
  name: string;
  passwd: string;
  scramClientKey: string | null;
  scramServerKey: string | null;
}

export interface UserRecord extends SecretRecord {
  k: 'user';
}

export interface DatabaseRecord {
  k: 'database';
  name: string;
  paused: boolean;
  disabled: boolean;
  waitClose: boolean;
  auto: boolean;
  /** 0 = in use */
  inactiveTime: WallTime;
  /** see connectText() */
  connect: string;
  /** users found by auth_query */
  dynamicUsers: SecretRecord[];
}

/**
 * The origin of credentials: auth_file, forced by the database, auth_query, PAM, an unknown user, or left over from a
 * RELOAD.
 */
export interface CredentialsRef {
  kind: 'global' | 'forced' | 'dynamic' | 'pam' | 'mock' | 'own';
  name: string;
  db: string | null;
  /** only if no other record contains it */
  passwd: string | null;
}

export interface PoolRecord {
  k: 'pool';
  /** number that sockets refer to */
  n: number;
  db: string;
  /** > 0: the pool of a peer */
  peerId: number;
  user: CredentialsRef | null;
  stats: number[];
  newerStats: number[];
  olderStats: number[];
  /** raw bytes, null = not known */
  welcomeMsg: string | null;
  origVars: (string | null)[];
  lastLifetimeDisconnect: WallTime;
  lastConnectTime: WallTime;
  lastActiveTime: WallTime;
  lastConnectFailed: boolean;
  lastConnectFailedMessage: string;
  lastLoginFailed: boolean;
  rrcounter: number;
}

/** A query that a client has prepared: its raw bytes are the text, the number of parameter types and the types. */
interface StatementRecord {
  k: 'statement';
  queryId: number;
  length: number;
}

/** A client's prepared statement: its name, whether its state is unsure, the number of its query. */
export type ClientStatementTuple = [string, boolean, number];

/**
 * The statements that an outstanding request affects: its index, whether it removes them, the statements of server and
 * client, and true for a DEALLOCATE, which version 0.1.0 treats as a Close.
 */
type RequestNoteTuple = [number, boolean, number | null, ClientStatementTuple | null, boolean?];

/** family, host, port, uid, pid */
export type AddrTuple = [number, string, number, number, number];

/** A portal of the console: its name, its query, whether it was run, which columns are binary. */
export type ConsolePortalTuple = [string, string, boolean, readonly boolean[] | null];

/** Prepared statements, portals and pipeline state of a console client. */
export interface ConsoleRecord {
  /** names and queries */
  statements: [string, string][];
  portals: ConsolePortalTuple[];
  extended: boolean;
  skipping: boolean;
  syncWaits: boolean;
  held: boolean;
}

export interface SocketRecord {
  /** `ahead`: sent while the old process still serves; valid unless a later record replaces it */
  k: 'socket' | 'ahead';
  /** false: the descriptor came with the record sent ahead, which this record replaces */
  fd: boolean;
  id: number;
  state: string;
  /** number of its pool, -1 = none yet */
  pool: number;
  /** bits of flagFields */
  f: number;
  n: (number | WallTime)[];
  v: (string | null)[];
  /** raw bytes */
  cancelKey: string;
  remote: AddrTuple;
  local: AddrTuple;
  /** lengths of the raw bytes behind the text: buffered input, unsent output, partial packet */
  kept: number;
  unsent: number;
  collected: number;
  /* left out where they do not apply */
  link?: number;
  /** cancel request: the server whose query it cancels */
  canceled?: number;
  db?: string;
  /** the database does not exist: mock authentication */
  fake?: boolean;
  /** the user who logged in; left out = the user of the pool, null = not known yet */
  user?: CredentialsRef | null;
  host?: string;
  startupOptions?: string;
  loginSalt?: string;
  /** fields of ScramState; bytes as `{ bytes }` */
  scram?: Record<string, unknown>;
  /** requests of a server: type | action << 8, the oldest first */
  requests?: number[];
  /** client: its prepared statements; server: the queries it has prepared, the least recently used first */
  clientStatements?: ClientStatementTuple[];
  serverStatements?: number[];
  notes?: RequestNoteTuple[];
  /* from 0.2.0 on */
  /** server: for each request, the number of the query whose statement it uses; 0 = none */
  subjects?: number[];
  /** server: numbers of statements that have to be prepared again before their next use */
  staleStatements?: number[];
  /** client: the body of its Parse of the unnamed statement, raw bytes */
  unnamed?: string;
  ldapOptions?: string;
  /** console client that uses the extended protocol, which version 0.1.0 does not support */
  console?: ConsoleRecord;
  /** TLS state: not supported yet */
  tls?: null;
}

/** Clients that were described ahead and have left since. */
interface GoneRecord {
  k: 'gone';
  ids: number[];
}

interface EndRecord {
  k: 'end';
  listeners: number;
  sockets: number;
}

export type HandoverRecord =
  | BeginRecord
  | AheadEndRecord
  | StillRecord
  | ListenerRecord
  | UserRecord
  | DatabaseRecord
  | PoolRecord
  | StatementRecord
  | SocketRecord
  | GoneRecord
  | EndRecord;

/** Index of the host list in connectText(). */
const HOST_PLACE = 1;

/**
 * The settings that the servers of a database depend on. If they differ between the two processes, the config has
 * changed, and servers opened under the old config are closed as after RELOAD.
 */
export function connectText(db: PgDatabase): string {
  const { dbname, host, port, connectQuery, authDbname, authQuery, startupParams } = db.config;
  return JSON.stringify([
    dbname,
    host,
    port,
    db.forcedUser?.name ?? null,
    connectQuery,
    authDbname,
    authQuery,
    startupParams,
  ]);
}

/**
 * Compares connectText() of the old process with the database in this process.
 * @returns 'hosts' if only the host lists differ and they have a host in common
 */
export function connectChange(before: string, db: PgDatabase): 'nothing' | 'hosts' | 'all' {
  if (connectText(db) === before) return 'nothing';
  const old: unknown[] = JSON.parse(before);
  const now: unknown[] = JSON.parse(connectText(db));
  const oldHosts = hostsOf(old[HOST_PLACE] as string | null);
  const hosts = hostsOf(db.config.host);
  old[HOST_PLACE] = now[HOST_PLACE] = null;
  const same = JSON.stringify(old) === JSON.stringify(now);
  return same && oldHosts.some((host) => hosts.includes(host)) ? 'hosts' : 'all';
}
