/*
 * The messages between the loop thread and its worker threads (src/workers). Types only: a worker imports no module of
 * the pooler at run time. Texts are JavaScript strings, while the pooler's own strings hold one byte per character.
 */

import type { MessagePort } from 'node:worker_threads';

/** The data that every worker is started with. */
export interface WorkerData {
  port: MessagePort;
  /** eventfd of the loop: a write wakes it */
  wakeFd: number;
}

/** A login to be decided by an LDAP server. */
export interface LdapRequest {
  id: number;
  user: string;
  password: string;
  tls: boolean;
  scheme: string;
  server: string;
  port: number;
  baseDn: string | null;
  bindDn: string;
  bindPasswd: string;
  /** attribute that holds the user name; null if there is a filter */
  searchAttribute: string | null;
  searchFilter: string | null;
  scope: 'base' | 'one' | 'sub';
  /** the DN to bind as if there is no search */
  directDn: string;
}

export interface LdapAnswer {
  id: number;
  allowed: boolean;
  /** lines for the log */
  warnings: string[];
}

/** A command that prints a password. */
export interface CommandRequest {
  id: number;
  /** program and arguments */
  words: string[];
  limitMs: number;
  /** most bytes that it may print */
  outputMax: number;
}

export interface CommandAnswer {
  id: number;
  /** why it has failed, as the rest of a sentence; '' = it has not */
  error: string;
  /** what it has printed, a character for each byte; '' if it has failed */
  stdout: string;
  /** lines for the log, from stderr */
  lines: string[];
}

export interface NameQuestion {
  id: number;
  /** the addresses of a host, or the serial number of a zone */
  kind: 'host' | 'zone';
  name: string;
}

/** An address in text form. */
export interface NameAddress {
  family: 4 | 6;
  host: string;
}

export interface NameAnswer {
  /** id of the request; 0 when the thread is ending */
  id: number;
  /** c-ares's text for the failure; '' on success */
  error: string;
  /** addresses of a host */
  addresses: NameAddress[];
  /** serial number of a zone */
  serial: number;
}

export interface NameWorkerData extends WorkerData {
  /** path of the resolv.conf as bytes */
  resolvConf: Uint8Array;
}

/** What the numbers of a report are. */
export interface MetricsLayout {
  /** columns of a pool; times in usec */
  pool: readonly string[];
  database: readonly string[];
  /** what is counted for the whole process: a family, and labels as `name=value` */
  tallies: readonly (readonly [family: string, ...labels: string[]])[];
  /** the histograms of a pool */
  timings: readonly string[];
  /** the upper bounds of their buckets, usec; another bucket without a bound is behind them */
  timingBounds: readonly number[];
}

/** What the metrics thread needs from files. It is told again when they have changed. */
export interface MetricsSecrets {
  /** bearer token that a scrape has to send; '' = none */
  token: string;
  /** certificates and key as PEM; null = no TLS */
  tls: { cert: string; key: string } | null;
}

export interface MetricsWorkerData extends WorkerData {
  /** address to listen on; '' = all. It may be the path of a Unix socket. */
  host: string;
  listenPort: number;
  secrets: MetricsSecrets;
  layout: MetricsLayout;
}

/** A pool that the thread does not know yet. */
export interface MetricsPool {
  /** its number in reports */
  id: number;
  database: string;
  user: string;
}

/** The labels of a database. */
export interface MetricsLabels {
  name: string;
  host: string;
  port: string;
  database: string;
  force_user: string;
  pool_mode: string;
}

/** A database that is new, or whose labels have changed. */
export interface MetricsDatabase {
  /** its number in reports */
  id: number;
  labels: MetricsLabels;
}

/** A line of the log. */
export interface LogLine {
  /** wall time, ms since 1970 */
  at: number;
  level: string;
  text: string;
}

/** What only the live page needs. */
export interface LiveReport {
  /** of tsbouncer itself */
  version: string;
  /** monotonic clock, in usec, and the same instant as wall time, in ms since 1970 */
  time: number;
  wall: number;
  /** how long the process has run, in ms */
  up: number;
  /** lines of level WARNING and above since the last report, and how many more there were */
  lines: LogLine[];
  linesLeftOut: number;
  reboots: readonly { at: number; from: number; to: number; version: string; outcome: string }[];
}

/** What a thread of the loop has done so far. */
interface MetricsThread {
  name: string;
  turns: number;
  /** bytes */
  received: number;
  sent: number;
  cpuUsec: number;
}

/** What the loop tells the metrics thread once a second: what has changed. */
export interface MetricsReport {
  version: string;
  /** why no clients should be sent here; '' = they should */
  notReady: string;
  lists: Record<string, number>;
  maxClientConn: number;
  maxUserConnections: number;
  /** how many logins have used auth_query, by the source of the answer */
  authQuery: Record<string, number>;
  /** by MetricsLayout.tallies */
  tallies: Float64Array;
  threads: MetricsThread[];
  /** of the loop since the last report, usec */
  longestTurn: number;
  /** more changes follow in a moment */
  more: boolean;
  newPools: MetricsPool[];
  /** for each pool that may have changed its id, then a number for each column */
  pools: Float64Array;
  /**
   * For each pool with new times its id, then for each histogram the count of each bucket, and the sum in usec.
   */
  timings: Float64Array;
  /** the ids of pools that were removed */
  gonePools: number[];
  newDatabases: MetricsDatabase[];
  /** for each database that may have changed its id, then a number for each column */
  databases: Float64Array;
  goneDatabases: number[];
  live: LiveReport;
}

/** What the metrics thread has for the log. */
export interface MetricsNews {
  failed: boolean;
  /** '' = nothing: a report has arrived */
  text: string;
}
