// Stops and resumes the pooler: PAUSE, SUSPEND, WAIT_CLOSE, RESUME, and the start of a shutdown.

import {
  enterPause,
  enterSuspend,
  getPauseMode,
  getShutdownMode,
  leavePause,
  PauseMode,
  ShutdownMode,
  setShutdown,
} from '../base/lifecycle';
import { nextOf, type StatList } from '../base/list';
import { native } from '../base/native';
import { getCachedTime } from '../base/time';
import { closeClientList, closeServerList } from '../link/kill';
import { launchForCancels } from '../link/launch';
import { disconnectClient, disconnectServer, LoginOutcome } from '../link/objects';
import { cleanupTcpSockets, resumePooler, suspendPooler } from '../net/pooler';
import { sbufContinue, sbufIsEmpty, sbufPause } from '../net/sbuf';
import { type AnySocket, type PgPool, type ServerSocket, SocketState } from '../pool/bouncer';
import { Dropping } from '../pool/phases';
import { poolList, requestFullLoopMaint, touchPools } from '../pool/pool';
import { isServerSocket } from '../pool/socket';
import { eachSocket, forEachServer } from '../pool/states';
import { drainForShutdown, endShutdownDrain } from './drain';

function closeSuspended(sk: AnySocket): void {
  if (isServerSocket(sk)) disconnectServer(sk, true, 'suspend_timeout');
  else disconnectClient(sk, true, 'suspend_timeout');
}

/**
 * Stops reading from a socket once all its input is handled and forwarded. A socket in the middle of a packet stops
 * at the packet's end.
 * @returns true if it is suspended, or was closed by force
 */
function suspendSocket(sk: AnySocket, force: boolean): boolean {
  if (sk.suspended) return true;
  // a new process would not know that the Sync of a canceled request is still to be dropped
  const isEmpty = sbufIsEmpty(sk) && native.buffered(sk.handle) <= 0;
  if (isEmpty && (isServerSocket(sk) || sk.dropping === Dropping.NONE)) {
    sbufPause(sk);
    sk.suspended = true;
    return true;
  }
  // in a stream of packets, a delivery would rarely happen to end between two packets
  if (sk.pktRemain > 0 && !sk.hasKept) native.recvLimit(sk.handle, sk.pktRemain);
  if (!force) return false;
  closeSuspended(sk);
  return true;
}

function suspendSocketList(list: StatList<AnySocket>, force: boolean): number {
  let active = 0;
  for (let sk = list.head; sk !== null; ) {
    const next: AnySocket | null = nextOf(sk);
    if (!suspendSocket(sk, force)) active++;
    sk = next;
  }
  return active;
}

/** Counts the sockets that still have unsent output, of any origin. */
function flushSocketList(list: StatList<AnySocket>, force: boolean): number {
  let active = 0;
  for (let sk = list.head; sk !== null; ) {
    const next: AnySocket | null = nextOf(sk);
    if (native.unsent(sk.handle) > 0) {
      if (force) closeSuspended(sk);
      else active++;
    }
    sk = next;
  }
  return active;
}

/**
 * Closes the unused servers of a pool that is being paused. Connections for cancel requests stay, and are opened: the
 * pause may be waiting for just that query.
 * @returns number of servers that are still busy
 */
export function poolPause(pool: PgPool): number {
  closeServerList(pool.idleServerList, 'pause mode');
  closeServerList(pool.usedServerList, 'pause mode');
  if (pool.newServerList.head !== null) eachSocket(pool.newServerList, closeUnlessForCancel);
  closeServerList(pool.listenServerList, 'pause mode');
  if (pool.waitingCancelReqList.head !== null) launchForCancels(pool);
  return poolBusyServers(pool);
}

function closeUnlessForCancel(server: ServerSocket): void {
  if (server.login?.cancelRequest?.state === SocketState.CL_WAITING_CANCEL) return;
  disconnectServer(server, true, 'pause mode', LoginOutcome.ABANDONED);
}

/** Number of servers that a PAUSE waits for. */
export function poolBusyServers(pool: PgPool): number {
  return pool.activeServerList.count + pool.testedServerList.count + pool.beingCanceledServerList.count;
}

/** The first half of SUSPEND in a pool: its clients. @returns number of sockets that are still busy */
export function suspendClients(pool: PgPool, force: boolean): number {
  const busy = suspendSocketList(pool.activeClientList, force);
  // waiting clients cannot be suspended, but count as busy, and are disconnected at the timeout
  if (force) closeClientList(pool.waitingClientList, 'suspend_timeout');
  // a new process could not deliver cancel requests
  const canceling = force ? 0 : pool.waitingCancelReqList.count + pool.activeCancelReqList.count;
  return busy + pool.waitingClientList.count + canceling;
}

/**
 * The second half of SUSPEND in a pool, once its clients are suspended. A server is suspended only after its client's
 * output has been sent.
 * @returns number of sockets that are still busy
 */
export function suspendServers(pool: PgPool, force: boolean): number {
  let busy = suspendSocketList(pool.activeServerList, force);
  busy += suspendSocketList(pool.idleServerList, force);
  busy += suspendSocketList(pool.listenServerList, force);
  busy += flushSocketList(pool.activeClientList, force);
  busy += flushSocketList(pool.activeServerList, force);
  busy += flushSocketList(pool.idleServerList, force);
  busy += flushSocketList(pool.listenServerList, force);
  closeServerList(pool.testedServerList, 'close unsafe file descriptors on suspend');
  closeServerList(pool.usedServerList, 'close unsafe file descriptors on suspend');
  // a new process would take a server in the middle of its login for a logged-in server
  closeServerList(pool.newServerList, 'close unsafe file descriptors on suspend');
  return busy;
}

/** Number of servers that a WAIT_CLOSE waits for. */
export function poolWaitClose(pool: PgPool): number {
  let count = 0;
  forEachServer(pool, (server) => {
    if (server.closeNeeded) count++;
  });
  return count;
}

function resumeSocketList(list: StatList<AnySocket>): void {
  for (let sk = list.head; sk !== null; sk = nextOf(sk)) {
    if (!sk.suspended) continue;
    sk.suspended = false;
    sbufContinue(sk);
  }
}

/** Resumes reading from all sockets and accepting connections, after SUSPEND. */
export function resumeSockets(): void {
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    if (pool.db.admin) continue;
    resumeSocketList(pool.activeClientList);
    resumeSocketList(pool.activeServerList);
    resumeSocketList(pool.idleServerList);
    resumeSocketList(pool.usedServerList);
    resumeSocketList(pool.listenServerList);
  }
  resumePooler();
}

/** PAUSE, SIGUSR1: closes servers as they are released. */
export function pauseAll(): void {
  enterPause();
  touchPools(null);
}

/** SUSPEND: stops accepting, and stops reading from sockets as their buffers become empty. */
export function suspendAll(): void {
  enterSuspend(getCachedTime());
  native.receiveAhead(0);
  suspendPooler();
  touchPools(null);
}

/** RESUME, SIGUSR2: ends PAUSE or SUSPEND of the whole pooler. */
export function resumeAll(): void {
  const suspended = getPauseMode() === PauseMode.SUSPEND;
  leavePause();
  native.receiveAhead(1);
  // as they were suspended, a shutdown has not closed them
  if (getShutdownMode() !== ShutdownMode.NONE) cleanupTcpSockets();
  if (suspended) resumeSockets();
  touchPools(null);
  // consoles may wait for the mode that has ended
  requestFullLoopMaint();
}

/** Begins a shutdown that waits: no new connections over TCP. */
export function beginShutdown(mode: Exclude<ShutdownMode, ShutdownMode.NONE | ShutdownMode.IMMEDIATE>): void {
  const suspended = getPauseMode() === PauseMode.SUSPEND;
  setShutdown(mode);
  cleanupTcpSockets();
  if (mode === ShutdownMode.WAIT_FOR_TRANSACTIONS) drainForShutdown();
  else endShutdownDrain();
  if (suspended && getPauseMode() !== PauseMode.SUSPEND) {
    // it waits for the ends of transactions
    native.receiveAhead(1);
    resumeSockets();
  }
  touchPools(null);
}
