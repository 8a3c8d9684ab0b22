/*
 * What the metrics thread is told: the pools and databases that may have changed since the last report, at most a limited
 * number at a time. So a report never holds up the loop, however many pools there are.
 */

import { getPauseMode, getShutdownMode, PauseMode, ShutdownMode } from '../base/lifecycle';
import { nextOf } from '../base/list';
import { utf8Of } from '../base/strutil';
import { tallies, tallyNames, turns } from '../base/tallies';
import { getCachedTime } from '../base/time';
import type {
  MetricsDatabase,
  MetricsLabels,
  MetricsLayout,
  MetricsPool,
  MetricsReport,
} from '../base/worker-messages';
import { PoolMode, poolModeMap } from '../config/choices';
import { shownVersion } from '../config/compat';
import type { DatabaseConfig } from '../config/records';
import { cf } from '../config/settings';
import { formatLookup } from '../config/values';
import { authQueryCounts } from '../login/auth-cache';
import { databaseMaxClientConnections, databaseMaxConnections, poolPoolSize } from '../pool/admission';
import type { PgCredentials, PgDatabase, PgPool } from '../pool/bouncer';
import { changes, noteChange } from '../pool/changes';
import { autodatabaseIdleList, databaseList } from '../pool/database';
import { poolList } from '../pool/pool';
import { newStats, statNames } from '../pool/stats';
import { TIMING_COLUMNS, Timing, timingBounds, timingNames, timings } from '../pool/timings';
import { setOr } from './databases';
import { listCounts } from './lists';
import { liveReport, watchLog } from './live';
import { maxWait } from './pools';
import { threadUses } from './threads';

/** Most pools, and most databases, of one report. */
const POOLS_MAX = 250;
const DATABASES_MAX = 250;

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
  'pool_size',
];
/** The numbers of a database; behind them are the counters of its pools that were removed. */
const DATABASE_STATES = [
  'pool_size',
  'min_pool_size',
  'reserve_pool_size',
  'max_connections',
  'current_connections',
  'max_client_connections',
  'current_client_connections',
  'paused',
  'disabled',
  // an auto-database without connections, which SHOW DATABASES leaves out
  'idle',
];

export const metricsLayout: MetricsLayout = {
  pool: [...POOL_STATES, ...statNames],
  database: [...DATABASE_STATES, ...statNames],
  tallies: tallyNames,
  timings: timingNames,
  timingBounds,
};
/* with the id */
const POOL_WIDTH = 1 + POOL_STATES.length + statNames.length;
const DATABASE_WIDTH = 1 + DATABASE_STATES.length + statNames.length;
const TIMINGS_WIDTH = 1 + Timing.SIZE * TIMING_COLUMNS;

const noStats = newStats();

/** What the thread knows of a database. */
interface ToldDatabase {
  readonly id: number;
  config: Readonly<DatabaseConfig>;
  forcedUser: PgCredentials | null;
}

/** changed pools that are still to be reported, from `next` on */
let pending: PgPool[] = [];
let next = 0;
/** with the name of the user, which RELOAD may change */
const toldPools = new Map<PgPool, string>();
const toldDatabases = new Map<PgDatabase, ToldDatabase>();
let lastDatabaseId = 0;
/** the database that the next report begins with; null = the first */
let cursor: PgDatabase | null = null;
/** the thread knows all databases, apart from the newest */
let walked = false;

/** All pools have to be reported, because a setting has changed. */
export function reportAllPools(): void {
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) noteChange(pool);
}

/** Begins to collect: all pools are new. */
export function beginMetricsReports(): void {
  changes.wanted = timings.wanted = turns.wanted = true;
  turns.longest = 0;
  watchLog(true);
  reportAllPools();
}

/** Forgets all that was collected, and what the thread was told. */
export function endMetricsReports(): void {
  changes.wanted = timings.wanted = turns.wanted = false;
  watchLog(false);
  for (const pool of [...changes.pools, ...pending.slice(next)]) pool.noted = false;
  changes.removed = [];
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) pool.timings = null;
  changes.pools = [];
  pending = [];
  next = 0;
  toldPools.clear();
  toldDatabases.clear();
  cursor = null;
  walked = false;
}

function writePool(into: Float64Array, at: number, pool: PgPool, now: number): void {
  into[at] = pool.serial;
  into[at + 1] = pool.activeClientList.count;
  into[at + 2] = pool.waitingClientList.count;
  into[at + 3] = pool.activeCancelReqList.count;
  into[at + 4] = pool.waitingCancelReqList.count;
  into[at + 5] = pool.activeServerList.count;
  into[at + 6] = pool.activeCancelServerList.count;
  into[at + 7] = pool.beingCanceledServerList.count;
  into[at + 8] = pool.idleServerList.count;
  into[at + 9] = pool.usedServerList.count;
  into[at + 10] = pool.testedServerList.count;
  into[at + 11] = pool.newServerList.count;
  into[at + 12] = maxWait(pool, now);
  into[at + 13] = poolPoolSize(pool);
  into.set(pool.stats, at + 1 + POOL_STATES.length);
}

/** Takes pools that are to be reported, and unmarks them unless their figures go on changing. */
function takePools(): PgPool[] {
  if (next === pending.length) {
    pending = changes.pools;
    changes.pools = [];
    next = 0;
  }
  const marked = pending.slice(next, next + POOLS_MAX);
  next += marked.length;
  for (const pool of marked) pool.noted = false;
  // cancel requests to peers have pools without a user
  const taken = marked.filter((pool) => !pool.dead && pool.user !== null);
  for (const pool of taken) if (pool.activeServerList.count > 0 || pool.waitingClientList.count > 0) noteChange(pool);
  return taken;
}

function tellPool(pool: PgPool, newPools: MetricsPool[]): void {
  const user = pool.user?.name ?? '';
  if (toldPools.get(pool) === user) return;
  toldPools.set(pool, user);
  newPools.push({ id: pool.serial, database: utf8Of(pool.db.name), user: utf8Of(user) });
}

function changedPools(taken: PgPool[]): Pick<MetricsReport, 'newPools' | 'pools' | 'timings'> {
  const timed = taken.filter((pool) => pool.timings !== null);
  const pools = new Float64Array(taken.length * POOL_WIDTH);
  const times = new Float64Array(timed.length * TIMINGS_WIDTH);
  const newPools: MetricsPool[] = [];
  const now = getCachedTime();
  for (let i = 0; i < taken.length; i++) {
    const pool = taken[i] as PgPool;
    tellPool(pool, newPools);
    writePool(pools, i * POOL_WIDTH, pool, now);
  }
  for (let i = 0; i < timed.length; i++) {
    const pool = timed[i] as PgPool;
    times[i * TIMINGS_WIDTH] = pool.serial;
    times.set(pool.timings as Float64Array, i * TIMINGS_WIDTH + 1);
  }
  return { newPools, pools, timings: times };
}

function writeDatabase(into: Float64Array, at: number, id: number, db: PgDatabase): void {
  const { config } = db;
  into[at] = id;
  into[at + 1] = setOr(config.poolSize, cf.defaultPoolSize);
  into[at + 2] = setOr(config.minPoolSize, cf.minPoolSize);
  into[at + 3] = setOr(config.resPoolSize, cf.reservePoolSize);
  into[at + 4] = databaseMaxConnections(db);
  into[at + 5] = db.connectionCount;
  into[at + 6] = databaseMaxClientConnections(db);
  into[at + 7] = db.clientConnectionCount;
  into[at + 8] = db.paused ? 1 : 0;
  into[at + 9] = db.disabled ? 1 : 0;
  into[at + 10] = db.inactiveTime !== 0 ? 1 : 0;
  into.set(db.removedStats ?? noStats, at + 1 + DATABASE_STATES.length);
}

function databaseLabels(db: PgDatabase): MetricsLabels {
  const { config } = db;
  return {
    name: utf8Of(db.name),
    host: utf8Of(config.host ?? ''),
    port: String(config.port),
    database: utf8Of(config.dbname),
    force_user: utf8Of(db.forcedUser?.name ?? ''),
    pool_mode: config.poolMode === PoolMode.INHERIT ? '' : formatLookup(poolModeMap, config.poolMode),
  };
}

/** @returns the id of a database, after its labels if they are new */
function tellDatabase(db: PgDatabase, newDatabases: MetricsDatabase[]): number {
  const known = toldDatabases.get(db);
  if (known !== undefined && known.config === db.config && known.forcedUser === db.forcedUser) return known.id;
  const id = known?.id ?? ++lastDatabaseId;
  toldDatabases.set(db, { id, config: db.config, forcedUser: db.forcedUser });
  newDatabases.push({ id, labels: databaseLabels(db) });
  return id;
}

/** The database behind this one, over both lists. */
function databaseAfter(db: PgDatabase): PgDatabase | null {
  return nextOf(db) ?? (db.inactiveTime === 0 ? autodatabaseIdleList.head : null);
}

/** Databases by turns: if there are few, all of them. */
function takeDatabases(): PgDatabase[] {
  // removed meanwhile
  if (cursor === null || cursor.list === null) cursor = databaseList.head ?? autodatabaseIdleList.head;
  const taken: PgDatabase[] = [];
  while (cursor !== null && taken.length < DATABASES_MAX) {
    taken.push(cursor);
    cursor = databaseAfter(cursor);
  }
  walked ||= cursor === null;
  return taken;
}

function changedDatabases(taken: PgDatabase[]): Pick<MetricsReport, 'databases' | 'newDatabases'> {
  const newDatabases: MetricsDatabase[] = [];
  const databases = new Float64Array(taken.length * DATABASE_WIDTH);
  for (let i = 0; i < taken.length; i++) {
    const db = taken[i] as PgDatabase;
    writeDatabase(databases, i * DATABASE_WIDTH, tellDatabase(db, newDatabases), db);
  }
  return { databases, newDatabases };
}

/** The pools that were removed, and the databases whose sums have changed by that. */
function takeRemoved(): { gonePools: number[]; databases: PgDatabase[] } {
  const removed = changes.removed;
  changes.removed = [];
  const gonePools: number[] = [];
  for (const pool of removed) if (toldPools.delete(pool)) gonePools.push(pool.serial);
  return { gonePools, databases: removed.map((pool) => pool.db) };
}

/** Forgets databases that were removed. @param some those to look at @returns their ids */
function forgetGone(some: Iterable<PgDatabase>): number[] {
  const gone: number[] = [];
  for (const db of some) {
    const told = toldDatabases.get(db);
    if (told === undefined || db.list !== null) continue;
    gone.push(told.id);
    toldDatabases.delete(db);
  }
  return gone;
}

/** Why a load balancer should send no clients here; '' = it should. */
function notReady(): string {
  if (getShutdownMode() !== ShutdownMode.NONE) return 'shutting down';
  if (getPauseMode() !== PauseMode.NONE) return 'paused';
  return '';
}

/** What has changed since the last report, or as much of it as a report may have. */
export function nextMetricsReport(): MetricsReport {
  // The counters of a removed pool move to its database in one report: a sum that falls in between would be taken for
  // that of a new process, and counted again. The same for a database that was removed with its pools.
  const { gonePools, databases } = takeRemoved();
  const atEnd = cursor === null;
  const goneDatabases = forgetGone(atEnd ? toldDatabases.keys() : databases);
  const alive = databases.filter((db) => db.list !== null && db.peerId === 0);
  const pools = takePools();
  const longestTurn = turns.longest;
  turns.longest = 0;
  return {
    version: shownVersion(),
    notReady: notReady(),
    lists: { ...listCounts() },
    maxClientConn: cf.maxClientConn,
    maxUserConnections: cf.maxUserConnections,
    authQuery: { ...authQueryCounts },
    tallies: tallies.slice(),
    threads: threadUses().map(({ name, turns, received, sent, cpuUsec }) => ({ name, turns, received, sent, cpuUsec })),
    longestTurn,
    ...changedPools(pools),
    gonePools,
    ...changedDatabases([...new Set([...alive, ...pools.map((pool) => pool.db), ...takeDatabases()])]),
    goneDatabases,
    live: liveReport(),
    more: next < pending.length || !walked,
  };
}
