/*
 * Housekeeping. At the end of every turn: pools that something happened to are looked at, waiting clients get servers or
 * servers are launched for them. Three times a second: what only time brings about, in maint.ts.
 */
import { nextOf, type StatList } from '../base/list';
import { logWarning, slogDebug, wantDebug } from '../base/log';
import { native } from '../base/native';
import { PauseMode, runState } from '../base/runstate';
import { getCachedTime, USEC } from '../base/time';
import { cf } from '../config/settings';
import { resumePooler } from '../net/listener';
import { sbufContinue, sbufIsEmpty, sbufPause, sendPacket } from '../net/sbuf';
import { databaseList, type PgDatabase, removeDatabase, removePeer } from '../pool/database';
import {
  anyPoolTouched,
  type PgPool,
  peerPoolList,
  poolClientCount,
  poolList,
  poolServerCount,
  removePool,
  takeTouchedPools,
} from '../pool/pool';
import { Dropping, isServerSocket, type PgSocket, Replication, SocketState } from '../pool/socket';
import { changeServerState, loginClientList } from '../pool/state';
import { writeNotice, writeQuery } from '../wire/messages';
import { pktbufTemp } from '../wire/pktbuf';
import { launchNewConnection } from './launch';
import {
  activateClient,
  closeClientList,
  closeServerList,
  disconnectClient,
  disconnectServer,
  dropIfEnded,
  releaseServer,
} from './objects';
import { isResting } from './rest';
import { adminSlot, handoverSlot } from './slots';

/** Processes the input of clients that were just activated, so that each takes its server before the next is woken. */
export type RunQueue = () => void;

/* ---- suspend and resume ---- */

function closeSuspended(sk: PgSocket): void {
  if (isServerSocket(sk)) disconnectServer(sk, true, 'suspend_timeout');
  else disconnectClient(sk, true, 'suspend_timeout');
}

/**
 * Stops reading a socket of whose input nothing is in flight. One in the middle of a packet stops at its end. @returns true
 * when it is suspended, or was closed by force
 */
function suspendSocket(sk: PgSocket, force: boolean): boolean {
  if (sk.suspended) return true;
  // a client that still owes the Sync of a request it cancelled would be a stranger to a process that does not know of it
  if (sbufIsEmpty(sk) && sk.dropping === Dropping.NONE) {
    sbufPause(sk);
    sk.suspended = true;
    return true;
  }
  // a stream of packets would never be seen between two of them by chance
  if (sk.pktRemain > 0 && !sk.hasKept) native.recvLimit(sk.handle, sk.pktRemain);
  if (!force) return false;
  closeSuspended(sk);
  return true;
}

function suspendSocketList(list: StatList<PgSocket>, force: boolean): number {
  let active = 0;
  for (let sk = list.head; sk !== null; ) {
    const next: PgSocket | null = nextOf(sk);
    if (!suspendSocket(sk, force)) active++;
    sk = next;
  }
  return active;
}

/** Counts those that have not got everything yet, whoever it came from. */
function flushSocketList(list: StatList<PgSocket>, force: boolean): number {
  let active = 0;
  for (let sk = list.head; sk !== null; ) {
    const next: PgSocket | null = nextOf(sk);
    if (native.unsent(sk.handle) > 0) {
      if (force) closeSuspended(sk);
      else active++;
    }
    sk = next;
  }
  return active;
}

function resumeSocketList(list: StatList<PgSocket>): void {
  for (let sk = list.head; sk !== null; sk = nextOf(sk)) {
    if (!sk.suspended) continue;
    sk.suspended = false;
    sbufContinue(sk);
  }
}

/** Reads from everybody and accepts again, after SUSPEND. */
export function resumeAll(): void {
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    if (pool.db.admin) continue;
    resumeSocketList(pool.activeClientList);
    resumeSocketList(pool.activeServerList);
    resumeSocketList(pool.idleServerList);
    resumeSocketList(pool.usedServerList);
  }
  resumePooler();
}

/* ---- end of turn ---- */

/** Sends the check query to a used server, or frees it when it was used a moment ago. */
function launchRecheck(pool: PgPool): void {
  let server = pool.usedServerList.head;
  while (server !== null && !server.ready) {
    disconnectServer(server, true, 'idle server got dirty');
    server = pool.usedServerList.head;
  }
  if (server === null) return;
  const query = cf.serverCheckQuery;
  const recent = cf.serverCheckDelay > 0 && getCachedTime() - server.requestTime < cf.serverCheckDelay;
  if (query === '' || recent) {
    releaseServer(server);
    return;
  }
  if (wantDebug()) slogDebug(server, `P: checking: ${query}`);
  changeServerState(server, SocketState.SV_TESTED);
  // until the answer is there: a notification that comes first must not set it free
  server.ready = false;
  server.unnamedSeq = 0;
  const buf = pktbufTemp();
  writeQuery(buf, query === '<empty>' ? '' : query);
  if (!sendPacket(server, buf)) disconnectServer(server, false, 'test query failed');
}

function notifyWaiting(client: PgSocket): void {
  const due =
    cf.queryWaitNotify > 0 &&
    client.state === SocketState.CL_WAITING &&
    client.welcomeSent &&
    !client.sentWaitNotification &&
    Math.floor((getCachedTime() - client.waitStart) / USEC) > cf.queryWaitNotify;
  if (!due) return;
  const buf = pktbufTemp();
  writeNotice(buf, 'No server connection available in postgres backend, client being queued');
  if (!sendPacket(client, buf)) logWarning('Sending queue warning failed');
  client.sentWaitNotification = true;
}

/** Gives waiting clients servers: idle ones, tested ones, new ones. */
function poolActivate(pool: PgPool, runQueue: RunQueue): void {
  if (pool.waitingCancelReqList.count > 0) {
    launchNewConnection(pool, true);
    return;
  }
  if (isResting(pool)) return;
  let tested = pool.testedServerList.count;
  let used = pool.usedServerList.count;
  for (let client = pool.waitingClientList.head; client !== null; ) {
    const next: PgSocket | null = nextOf(client);
    notifyWaiting(client);
    if (dropIfEnded(client)) {
      // it needs no server any more
    } else if (client.replication !== Replication.NONE) {
      launchNewConnection(pool, true);
    } else if (pool.idleServerList.count > 0) {
      if (client.waitForWelcome && !pool.welcomeMsgReady) {
        launchNewConnection(pool, true);
      } else {
        activateClient(client);
        runQueue();
      }
    } else if (tested > 0) {
      tested--;
    } else if (used > 0) {
      launchRecheck(pool);
      runQueue();
      used--;
    } else {
      launchNewConnection(pool, true);
      break;
    }
    // what just ran may have ended or moved any client
    if (next !== null && next.list !== (pool.waitingClientList as unknown)) break;
    client = next;
  }
}

/** Closes what idles in a pool that is to be paused. @returns servers that are still busy */
function poolPause(pool: PgPool): number {
  closeServerList(pool.idleServerList, 'pause mode');
  closeServerList(pool.usedServerList, 'pause mode');
  closeServerList(pool.newServerList, 'pause mode');
  return pool.activeServerList.count + pool.testedServerList.count;
}

/** @returns sockets that are still busy */
function poolSuspend(pool: PgPool, force: boolean, runQueue: RunQueue): number {
  let active = suspendSocketList(pool.activeClientList, force);
  // waiting clients cannot be suspended, but they count, and they end at the timeout
  if (force) closeClientList(pool.waitingClientList, 'suspend_timeout');
  active += pool.waitingClientList.count;
  // nobody else could deliver them
  if (!force) active += pool.waitingCancelReqList.count + pool.activeCancelReqList.count;
  if (active > 0) {
    poolActivate(pool, runQueue);
    return active;
  }
  // a client that is slow to take its answer holds up its server, not the other way round
  active += suspendSocketList(pool.activeServerList, force);
  active += suspendSocketList(pool.idleServerList, force);
  active += flushSocketList(pool.activeClientList, force);
  active += flushSocketList(pool.activeServerList, force);
  active += flushSocketList(pool.idleServerList, force);
  closeServerList(pool.testedServerList, 'close unsafe file descriptors on suspend');
  closeServerList(pool.usedServerList, 'close unsafe file descriptors on suspend');
  // a new process would take one in the middle of its login for one that is ready
  closeServerList(pool.newServerList, 'close unsafe file descriptors on suspend');
  return active;
}

function countCloseNeeded(list: StatList<PgSocket>): number {
  let count = 0;
  for (let server = list.head; server !== null; server = nextOf(server)) if (server.closeNeeded) count++;
  return count;
}

function poolWaitClose(pool: PgPool): number {
  return (
    countCloseNeeded(pool.activeServerList) +
    countCloseNeeded(pool.idleServerList) +
    countCloseNeeded(pool.newServerList) +
    countCloseNeeded(pool.testedServerList) +
    countCloseNeeded(pool.usedServerList)
  );
}

/** Set when every pool has to be looked at: a console command ran, or a mode is on that concerns all of them. */
let allPools = false;

/** The end of this turn looks at every pool, not only at those that something happened to. */
export function requestFullLoopMaint(): void {
  allPools = true;
}

/** Is called at the end of every turn. */
export function perLoopMaint(runQueue: RunQueue): void {
  if (handoverSlot.frozen) return;
  if (runState.pauseMode === PauseMode.NONE && !allPools) {
    if (!anyPoolTouched()) return;
    for (const pool of takeTouchedPools()) {
      if (pool.dead || pool.db.admin) continue;
      // a mode of one database: whether it is reached depends on its other pools too
      if (pool.db.paused || pool.db.waitClose) allPools = true;
      else poolActivate(pool, runQueue);
    }
    if (!allPools) return;
  }
  allPools = false;
  takeTouchedPools();
  fullLoopMaint(runQueue);
}

function fullLoopMaint(runQueue: RunQueue): void {
  let active = 0;
  let closing = 0;
  let anyPaused = false;
  let anyWaitClose = false;
  const mode = runState.pauseMode;
  const force =
    mode === PauseMode.SUSPEND && cf.suspendTimeout > 0 && getCachedTime() - runState.suspendStart >= cf.suspendTimeout;

  for (let pool = poolList.head; pool !== null; ) {
    const next: PgPool | null = nextOf(pool);
    if (!pool.db.admin) {
      if (mode === PauseMode.SUSPEND) {
        active += poolSuspend(pool, force, runQueue);
      } else if (mode === PauseMode.PAUSE || pool.db.paused) {
        anyPaused = true;
        active += poolPause(pool);
      } else {
        poolActivate(pool, runQueue);
      }
      if (pool.db.waitClose) {
        anyWaitClose = true;
        closing += poolWaitClose(pool);
      }
    }
    pool = next;
  }
  // a paused database without pools has nothing to wait for
  if (mode === PauseMode.NONE && !anyPaused)
    for (let db = databaseList.head; db !== null; db = nextOf(db)) anyPaused ||= db.paused;
  if (!anyWaitClose) for (let db = databaseList.head; db !== null; db = nextOf(db)) anyWaitClose ||= db.waitClose;

  if (mode === PauseMode.SUSPEND) {
    if (force) closeClientList(loginClientList, 'suspend_timeout');
    else active += loginClientList.count;
  }
  if (active === 0 && (mode !== PauseMode.NONE || anyPaused)) adminSlot.pauseDone();
  if (anyWaitClose && closing === 0) adminSlot.waitCloseDone();
}

/* ---- ends of pools and databases ---- */

/**
 * Ends the logins to a database, wherever they wait: a login has no pool yet, and would make one when it succeeds.
 * @param db null = all but the admin database
 */
export function closeLogins(db: PgDatabase | null, reason: string): void {
  const logins: PgSocket[] = [];
  const take = (client: PgSocket): void => {
    if (client.db === null || client.db.admin || (db !== null && client.db !== db)) return;
    logins.push(client);
  };
  for (let client = loginClientList.head; client !== null; client = nextOf(client)) take(client);
  // those that wait for a server on which to run auth_query, perhaps that of another database
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    for (let client = pool.waitingClientList.head; client !== null; client = nextOf(client))
      if (client.state === SocketState.CL_WAITING_LOGIN) take(client);
  }
  for (const client of logins) disconnectClient(client, true, reason);
}

/** Closes every connection of a pool and forgets it. */
export function killPool(pool: PgPool): void {
  killPoolBecause(pool, pool.db.peerId > 0 ? 'peer removed' : 'database removed');
}

function killPoolBecause(pool: PgPool, reason: string): void {
  const clientLists = [
    pool.activeClientList,
    pool.waitingClientList,
    pool.activeCancelReqList,
    pool.waitingCancelReqList,
  ];
  const serverLists = [
    pool.activeServerList,
    pool.activeCancelServerList,
    pool.beingCanceledServerList,
    pool.idleServerList,
    pool.usedServerList,
    pool.testedServerList,
    pool.newServerList,
  ];
  for (const list of clientLists) closeClientList(list, reason);
  for (const list of serverLists) closeServerList(list, reason);
  removePool(pool);
}

/** Ends a database, or a peer, that is not in the config any more or was an auto-database long unused. */
export function killDatabase(db: PgDatabase): void {
  if (db.peerId > 0) {
    logWarning(`dropping peer ${db.name} as it does not exist anymore`);
    if (db.peerPool !== null) killPool(db.peerPool);
    removePeer(db);
    return;
  }
  logWarning(`dropping database '${db.name}' as it does not exist anymore or inactive auto-database`);
  endDatabase(db);
}

function endDatabase(db: PgDatabase): void {
  closeLogins(db, 'database removed');
  while (db.pools.length > 0) killPool(db.pools[0] as PgPool);
  // the last client of one that was never logged in to has taken it along
  if (db.list !== null) removeDatabase(db);
}

/** Servers of a pool that are in the middle of something. */
function busyServers(pool: PgPool): number {
  return poolServerCount(pool) - pool.idleServerList.count - pool.usedServerList.count;
}

/**
 * Forgets an auto-database to which no login ever succeeded, once nothing goes on in it. It may have a pool, because
 * auth_query was to run in it: the servers of that are closed, or made-up names of databases would fill the pooler with them.
 */
export function killUnproven(db: PgDatabase): void {
  for (const pool of db.pools) if (poolClientCount(pool) > 0 || busyServers(pool) > 0) return;
  endDatabase(db);
}

/** Pools of peers are looked at when a request waits in them. */
export function peerPoolsMaint(): void {
  for (let pool = peerPoolList.head; pool !== null; pool = nextOf(pool)) {
    if (pool.waitingCancelReqList.count > 0) launchNewConnection(pool, true);
  }
}
