/*
 * Ends clients between their transactions, so many a second, so that they connect again elsewhere: SHUTDOWN
 * WAIT_FOR_TRANSACTIONS and RECONNECT CLIENTS.
 */

import { getShutdownMode, ownsListeners, ShutdownMode } from '../base/lifecycle';
import { nextOf } from '../base/list';
import { native } from '../base/native';
import { getCachedTime, USEC } from '../base/time';
import { newTimer, timerStart, timerStop } from '../base/timer';
import { cf } from '../config/settings';
import { disconnectClient } from '../link/objects';
import { sbufIsEmpty } from '../net/sbuf';
import { type ClientSocket, type PgDatabase, type PgPool, SocketState } from '../pool/bouncer';
import { ended } from '../pool/ended';
import { poolList } from '../pool/pool';
import { isDead } from '../pool/socket';
import { eachSocket } from '../pool/states';

/** PostgreSQL's error for a session that an administrator ends: drivers connect again. */
export const TERMINATED = 'terminating connection due to administrator command';
/** SQLSTATE admin_shutdown */
export const ADMIN_SHUTDOWN = '57P01';
/** Interval between looks at all clients. usec */
const TICK = USEC / 20;

interface Drain {
  /** null = all databases except the admin database */
  readonly db: PgDatabase | null;
  /** usec; only clients that were connected by then */
  readonly before: number;
  /** clients a second; 0 = no limit; null = drain_rate */
  readonly rate: number | null;
  /** how many clients may be ended now */
  tokens: number;
}

let drains: Drain[] = [];
let filledAt = 0;
const timer = newTimer(tick);

function refill(drain: Drain, passed: number): void {
  const rate = drain.rate ?? cf.drainRate;
  if (rate <= 0) {
    drain.tokens = Number.POSITIVE_INFINITY;
    return;
  }
  // no more than what two ticks add: clients that were busy must not be ended all at once later
  const most = Math.max(1, (rate * 2 * TICK) / USEC);
  drain.tokens = Math.min(Number.isFinite(drain.tokens) ? drain.tokens + (rate * passed) / USEC : 1, most);
}

function concerns(drain: Drain, client: ClientSocket): boolean {
  return client.connectTime <= drain.before && (drain.db === null || client.db === drain.db);
}

/** True between two transactions: the server has nothing to do for it, and it has got all its answers. */
export function isBetweenTransactions(client: ClientSocket): boolean {
  if (isDead(client) || client.state !== SocketState.CL_ACTIVE || client.login !== null || client.queued) return false;
  const server = client.link;
  if (server !== null && (!server.ready || server.requests.count > 0 || !sbufIsEmpty(server))) return false;
  if (!sbufIsEmpty(client)) return false;
  return native.unsent(client.handle) === 0 && native.buffered(client.handle) === 0;
}

/** Ends a client if it is between two transactions and a drain allows it. @returns true if a drain concerns it */
function endIfIdle(client: ClientSocket): boolean {
  let concerned = false;
  for (const drain of drains) {
    if (!concerns(drain, client)) continue;
    concerned = true;
    if (drain.tokens < 1 || !isBetweenTransactions(client)) continue;
    drain.tokens--;
    disconnectClient(client, true, TERMINATED, ADMIN_SHUTDOWN);
    return true;
  }
  return concerned;
}

/** Looks at a pool's clients. @returns whether a drain concerns one of them */
function drainPool(pool: PgPool): boolean {
  let concerned = pool.waitingClientList.count > 0;
  eachSocket(pool.activeClientList, (client) => {
    if (endIfIdle(client)) concerned = true;
  });
  if (getShutdownMode() !== ShutdownMode.WAIT_FOR_TRANSACTIONS) return concerned;
  eachSocket(pool.waitingClientList, (client) => {
    if (client.login !== null) disconnectClient(client, true, 'pooler is shutting down');
  });
  return concerned;
}

function tick(): void {
  // a new process may own the clients soon
  if (!ownsListeners()) return;
  const now = getCachedTime();
  for (const drain of drains) refill(drain, now - filledAt);
  filledAt = now;
  let concerned = false;
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool))
    if (!pool.db.admin && drainPool(pool)) concerned = true;
  if (!concerned) stopDraining();
}

function stopDraining(): void {
  drains = [];
  ended.wanted = false;
  ended.clients = [];
  timerStop(timer);
}

function start(drain: Drain): void {
  if (drains.length === 0) {
    filledAt = getCachedTime();
    timerStart(timer, 0, TICK);
  }
  ended.wanted = true;
  drains.push(drain);
}

/** Called at the end of each turn: looks at the clients whose transactions have ended in it. */
export function drainEnded(): void {
  if (ended.clients.length === 0) return;
  const clients = ended.clients;
  ended.clients = [];
  if (ownsListeners()) for (const client of clients) if (!isDead(client)) endIfIdle(client);
}

/** Ends all clients for a shutdown, at drain_rate. */
export function drainForShutdown(): void {
  drains = [];
  start({ db: null, before: Number.POSITIVE_INFINITY, rate: null, tokens: 1 });
}

/** Stops ending clients for a shutdown, because it waits for something else now. RECONNECT CLIENTS goes on. */
export function endShutdownDrain(): void {
  if (drains.length === 0) return;
  drains = drains.filter((drain) => drain.before !== Number.POSITIVE_INFINITY);
  if (drains.length === 0) stopDraining();
}

/**
 * Ends the clients that are connected now.
 * @param db null = all databases except the admin database
 * @param seconds the time over which they are spread; null = at drain_rate
 */
export function reconnectClients(db: PgDatabase | null, seconds: number | null): void {
  const drain = { db, before: getCachedTime(), rate: null, tokens: 1 };
  let count = 0;
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    if (pool.db.admin || (db !== null && pool.db !== db)) continue;
    count += pool.activeClientList.count + pool.waitingClientList.count;
  }
  if (count === 0) return;
  // a second command for the same clients replaces the first
  drains = drains.filter((other) => other.db !== db);
  start(seconds === null ? drain : { ...drain, rate: seconds === 0 ? 0 : count / seconds });
}
