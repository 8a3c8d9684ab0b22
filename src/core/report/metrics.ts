/*
 * Metrics: while metrics_port is set, a thread (src/workers/metrics.ts) answers HTTP, and the loop tells it the numbers once
 * a second. So a scrape costs the loop nothing, and a second costs the same however many scrapes it has. Names go to the
 * thread only when they may have changed.
 */

import { readFileSync } from 'node:fs';
import { receiveMessageOnPort } from 'node:worker_threads';
import { getPauseMode, getShutdownMode, PauseMode, ShutdownMode } from '../base/lifecycle';
import { nextOf } from '../base/list';
import { logInfo, logWarning, strerror } from '../base/log';
import { trimSpace } from '../base/strutil';
import { startThread, type Thread } from '../base/thread';
import { getCachedTime, USEC } from '../base/time';
import { newTimer, timerStart, timerStop } from '../base/timer';
import type { MetricsDatabase, MetricsNews, MetricsReport, MetricsWorkerData } from '../base/worker-messages';
import { PoolMode, poolModeMap } from '../config/choices';
import { shownVersion } from '../config/compat';
import { cf } from '../config/settings';
import { formatLookup } from '../config/values';
import { databaseMaxClientConnections, databaseMaxConnections } from '../pool/admission';
import type { PgDatabase, PgPool } from '../pool/bouncer';
import { databaseList } from '../pool/database';
import { poolList } from '../pool/pool';
import { statNames } from '../pool/stats';
import { setOr } from './databases';
import { listCounts } from './lists';
import { maxWait } from './pools';

/** Between two reports, in usec. */
const PERIOD = USEC;
/** The labels of databases are sent again after so many reports: a RELOAD may have changed them. */
const LABELS_EVERY = 10;

/** The numbers of a pool in a report; behind them are the counters. */
const POOL_STATES = [
  'cl_active',
  'cl_waiting',
  'cl_active_cancel_req',
  'cl_waiting_cancel_req',
  'sv_active',
  'sv_active_cancel',
  'sv_being_canceled',
  'sv_idle',
  'sv_used',
  'sv_tested',
  'sv_login',
  'maxwait',
];
const POOL_COLUMNS = [...POOL_STATES, ...statNames];
const DATABASE_COLUMNS = [
  'pool_size',
  'min_pool_size',
  'reserve_pool_size',
  'max_connections',
  'current_connections',
  'max_client_connections',
  'current_client_connections',
  'paused',
  'disabled',
];

let thread: Thread | null = null;
let startedWith = '';
let reports = 0;
/** the pools and databases of the last report, to see whether names must be sent */
const lastPools: PgPool[] = [];
const lastDatabases: PgDatabase[] = [];

const timer = newTimer(tell);

function decoded(name: string): string {
  return Buffer.from(name, 'latin1').toString('utf8');
}

/** True if the list has other members than `last`, which becomes its copy. */
function changed<T>(last: T[], members: readonly T[]): boolean {
  let same = last.length === members.length;
  for (let i = 0; same && i < members.length; i++) same = last[i] === members[i];
  if (!same) last.splice(0, last.length, ...members);
  return !same;
}

function writePool(into: Float64Array, at: number, pool: PgPool, now: number): void {
  into[at] = pool.activeClientList.count;
  into[at + 1] = pool.waitingClientList.count;
  into[at + 2] = pool.activeCancelReqList.count;
  into[at + 3] = pool.waitingCancelReqList.count;
  into[at + 4] = pool.activeServerList.count;
  into[at + 5] = pool.activeCancelServerList.count;
  into[at + 6] = pool.beingCanceledServerList.count;
  into[at + 7] = pool.idleServerList.count;
  into[at + 8] = pool.usedServerList.count;
  into[at + 9] = pool.testedServerList.count;
  into[at + 10] = pool.newServerList.count;
  into[at + 11] = maxWait(pool, now);
  into.set(pool.stats, at + POOL_STATES.length);
}

function writeDatabase(into: Float64Array, at: number, db: PgDatabase): void {
  const { config } = db;
  into[at] = setOr(config.poolSize, cf.defaultPoolSize);
  into[at + 1] = setOr(config.minPoolSize, cf.minPoolSize);
  into[at + 2] = setOr(config.resPoolSize, cf.reservePoolSize);
  into[at + 3] = databaseMaxConnections(db);
  into[at + 4] = db.connectionCount;
  into[at + 5] = databaseMaxClientConnections(db);
  into[at + 6] = db.clientConnectionCount;
  into[at + 7] = db.paused ? 1 : 0;
  into[at + 8] = db.disabled ? 1 : 0;
}

function databaseLabels(db: PgDatabase): MetricsDatabase {
  const { config } = db;
  return {
    name: decoded(db.name),
    host: decoded(config.host ?? ''),
    port: String(config.port),
    database: decoded(config.dbname),
    force_user: decoded(db.forcedUser?.name ?? ''),
    pool_mode: config.poolMode === PoolMode.INHERIT ? '' : formatLookup(poolModeMap, config.poolMode),
  };
}

/** Why a load balancer should send no clients here; '' = it should. */
function notReady(): string {
  if (getShutdownMode() !== ShutdownMode.NONE) return 'shutting down';
  if (getPauseMode() !== PauseMode.NONE) return 'paused';
  return '';
}

function newReport(): MetricsReport {
  const pools: PgPool[] = [];
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) pools.push(pool);
  const databases: PgDatabase[] = [];
  for (let db = databaseList.head; db !== null; db = nextOf(db)) databases.push(db);
  const poolNumbers = new Float64Array(pools.length * POOL_COLUMNS.length);
  const databaseNumbers = new Float64Array(databases.length * DATABASE_COLUMNS.length);
  const now = getCachedTime();
  for (let i = 0; i < pools.length; i++) writePool(poolNumbers, i * POOL_COLUMNS.length, pools[i] as PgPool, now);
  for (let i = 0; i < databases.length; i++)
    writeDatabase(databaseNumbers, i * DATABASE_COLUMNS.length, databases[i] as PgDatabase);
  const newPools = changed(lastPools, pools);
  const newDatabases = changed(lastDatabases, databases) || reports % LABELS_EVERY === 0;
  reports++;
  return {
    version: shownVersion(),
    notReady: notReady(),
    lists: { ...listCounts() },
    maxClientConn: cf.maxClientConn,
    maxUserConnections: cf.maxUserConnections,
    poolColumns: POOL_COLUMNS,
    poolNumbers,
    pools: newPools ? pools.map((pool) => [decoded(pool.db.name), decoded(pool.user?.name ?? '')]) : null,
    databaseColumns: DATABASE_COLUMNS,
    databaseNumbers,
    databases: newDatabases ? databases.map(databaseLabels) : null,
  };
}

/** Logs what the thread has to say. */
function hear(from: Thread): void {
  for (;;) {
    const got = receiveMessageOnPort(from.port);
    if (got === undefined) return;
    const { failed, text } = got.message as MetricsNews;
    if (failed) logWarning(text);
    else logInfo(text);
  }
}

function tell(): void {
  if (thread === null) return;
  hear(thread);
  const report = newReport();
  thread.port.postMessage(report, [
    report.poolNumbers.buffer as ArrayBuffer,
    report.databaseNumbers.buffer as ArrayBuffer,
  ]);
}

/** The bearer token in the first line of a file; null after a warning. */
function readToken(path: string): string | null {
  if (path === '') return '';
  try {
    const token = trimSpace(readFileSync(Buffer.from(path, 'latin1'), 'utf8').split('\n')[0] ?? '');
    if (token !== '') return token;
    logWarning(`metrics: ${path} has no token`);
  } catch (err) {
    logWarning(`metrics: could not open metrics_token_file ${path}: ${strerror(err)}`);
  }
  return null;
}

/** Starts, restarts or ends the thread, as the settings say: at start, and when one of them has changed. */
export function metricsSetup(): void {
  const token = cf.metricsPort === 0 ? '' : readToken(cf.metricsTokenFile);
  // a config that wants a token gets no metrics without it
  const on = cf.metricsPort !== 0 && token !== null;
  const wanted = on ? JSON.stringify([cf.metricsAddr, cf.metricsPort, token]) : '';
  if (wanted === startedWith) return;
  startedWith = wanted;
  thread?.end();
  thread = null;
  timerStop(timer);
  if (!on) return;
  const data: Omit<MetricsWorkerData, 'port' | 'wakeFd'> = {
    host: cf.metricsAddr === '*' ? '' : cf.metricsAddr,
    listenPort: cf.metricsPort,
    token: token as string,
  };
  try {
    thread = startThread('metrics.js', data);
  } catch (err) {
    logWarning(`could not start the metrics thread: ${(err as Error).message}`);
    return;
  }
  reports = 0;
  lastPools.length = 0;
  lastDatabases.length = 0;
  tell();
  timerStart(timer, PERIOD, PERIOD);
}
