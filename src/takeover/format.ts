/*
 * The format of the full handover: what both sides must agree on. docs/online-reboot.md describes it for readers.
 *
 * The old process answers `HANDOVER <n>;` with CopyData messages, one record each: the length of a JSON text (4 bytes), the
 * text (latin1: one char is one byte), then raw bytes that the text announces. A record that says `fd` owns the next of the
 * descriptors that came along as SCM_RIGHTS. After the record `aheadEnd` it waits, still serving, for `HANDOVER READY;`.
 * CommandComplete `HANDOVER` ends it.
 *
 * To stay readable across versions: fields of sockets travel as lists whose names the first record gives, states and kinds
 * travel by name, readers pass over what they do not know and take defaults for what they miss. FORMAT goes up only
 * when that is not enough.
 */

import type { WallTime } from '../core/base/time';
import { hostsOf } from '../core/link/hosts';
import type { PgDatabase } from '../core/pool/bouncer';

/** Newest format that this version writes and reads. */
export const FORMAT = 1;

/** What the taker says when it has read everything up to `aheadEnd`: nothing stands still while it catches up. */
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

/** What can be said ahead of time was said: the reader asks to go on (READY) when it has made sense of it. */
interface AheadEndRecord {
  k: 'aheadEnd';
}

/** Everything stands still now. What came before were idle clients only, ahead of time. */
export interface StillRecord {
  k: 'still';
  since: WallTime;
  /** it was in PAUSE */
  paused: boolean;
  /** begin of the last and of the current statistics period */
  statsStamps: [WallTime, WallTime];
  /** number of the newest prepared statement: its servers know them as PGBOUNCER_<number> */
  newestQueryId: number;
}

interface ListenerRecord {
  k: 'listener';
  fd: true;
  /** systemd made it, and removes its file */
  inherited: boolean;
}

/** A secret and what was learnt with it; keys are raw bytes. */
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

/** Whose credentials: of auth_file, forced by the database, found by auth_query, PAM's, of nobody, or left by a RELOAD. */
export interface CredentialsRef {
  kind: 'global' | 'forced' | 'dynamic' | 'pam' | 'mock' | 'own';
  name: string;
  db: string | null;
  /** where no other record has it */
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

/** A query that was prepared by somebody: its raw bytes are the text, the number of parameter types and the types. */
interface StatementRecord {
  k: 'statement';
  queryId: number;
  length: number;
}

/** A client's prepared statement: its name, whether its state is unsure, the number of its query. */
export type ClientStatementTuple = [string, boolean, number];

/**
 * What hangs on an outstanding request: its place, whether it takes the statements away, the statements of server and client;
 * true for a DEALLOCATE, which is a Close to version 0.1.0.
 */
type RequestNoteTuple = [number, boolean, number | null, ClientStatementTuple | null, boolean?];

/** family, host, port, uid, pid */
export type AddrTuple = [number, string, number, number, number];

/** A portal of the console: its name, its query, whether it ran, which columns are binary. */
export type ConsolePortalTuple = [string, string, boolean, readonly boolean[] | null];

/** What a client of the console has prepared, and how far its pipeline is. */
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
  /** `ahead`: sent while the old process still serves; holds unless a later record says otherwise */
  k: 'socket' | 'ahead';
  /** false: it came with the record sent ahead, which this one replaces */
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
  /** lengths of the raw bytes behind the text: received and not processed, queued and not sent, of a packet that is put
   *  together */
  kept: number;
  unsent: number;
  collected: number;
  /* only where there is something to say */
  link?: number;
  /** cancel request: the server it is aimed at */
  canceled?: number;
  db?: string;
  /** the database does not exist: mock authentication */
  fake?: boolean;
  /** who logged in; left out = the user of the pool, null = nobody yet */
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
  /** server: number of the query whose statement each of the requests uses, 0 = none */
  subjects?: number[];
  /** server: numbers of statements that are prepared again in front of their next use */
  staleStatements?: number[];
  /** client: the body of its Parse of the unnamed statement, raw bytes */
  unnamed?: string;
  ldapOptions?: string;
  /** client of the console that speaks the extended protocol; 0.1.0 has none of it */
  console?: ConsoleRecord;
  /** state of TLS: not built yet */
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

/** Where connectText() has the hosts. */
const HOST_PLACE = 1;

/**
 * What the servers of a database depend on: when it differs between two processes, the config was changed, and servers
 * that were opened under the old one are closed as after RELOAD.
 */
export function connectText(db: PgDatabase): string {
  const { dbname, host, port, connectQuery, authDbname, authQuery, startupParams } = db;
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
 * What differs between the config that another process described by connectText() and the database here.
 * @returns 'hosts' when it is the list of hosts alone, and some of them are in both
 */
export function connectChange(before: string, db: PgDatabase): 'nothing' | 'hosts' | 'all' {
  if (connectText(db) === before) return 'nothing';
  const old: unknown[] = JSON.parse(before);
  const now: unknown[] = JSON.parse(connectText(db));
  const oldHosts = hostsOf(old[HOST_PLACE] as string | null);
  const hosts = hostsOf(db.host);
  old[HOST_PLACE] = now[HOST_PLACE] = null;
  const same = JSON.stringify(old) === JSON.stringify(now);
  return same && oldHosts.some((host) => hosts.includes(host)) ? 'hosts' : 'all';
}
