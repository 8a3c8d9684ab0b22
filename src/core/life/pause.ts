// Stops and resumes the whole pooler: PAUSE, SUSPEND, RESUME, and the start of a shutdown, with the listening sockets.

import {
  enterPause,
  enterSuspend,
  getPauseMode,
  leavePause,
  PauseMode,
  type ShutdownMode,
  setShutdown,
} from '../base/lifecycle';
import { nextOf, type StatList } from '../base/list';
import { native } from '../base/native';
import { getCachedTime } from '../base/time';
import { disconnectClient, disconnectServer } from '../link/objects';
import { cleanupTcpSockets, resumePooler, suspendPooler } from '../net/pooler';
import { sbufContinue, sbufIsEmpty, sbufPause } from '../net/sbuf';
import { type AnySocket, Dropping } from '../pool/bouncer';
import { poolList, touchPools } from '../pool/pool';
import { isServerSocket } from '../pool/socket';

function closeSuspended(sk: AnySocket): void {
  if (isServerSocket(sk)) disconnectServer(sk, true, 'suspend_timeout');
  else disconnectClient(sk, true, 'suspend_timeout');
}

/**
 * Stops reading from a socket that has no partial packet and no unsent output. A socket in the middle of a packet stops
 * at the packet's end.
 * @returns true if it is suspended, or was closed by force
 */
function suspendSocket(sk: AnySocket, force: boolean): boolean {
  if (sk.suspended) return true;
  // a new process would not know that the Sync of a canceled request is still to be dropped
  if (sbufIsEmpty(sk) && (isServerSocket(sk) || sk.dropping === Dropping.NONE)) {
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

export function suspendSocketList(list: StatList<AnySocket>, force: boolean): number {
  let active = 0;
  for (let sk = list.head; sk !== null; ) {
    const next: AnySocket | null = nextOf(sk);
    if (!suspendSocket(sk, force)) active++;
    sk = next;
  }
  return active;
}

/** Counts the sockets that still have unsent output, of any origin. */
export function flushSocketList(list: StatList<AnySocket>, force: boolean): number {
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
  suspendPooler();
  touchPools(null);
}

/** RESUME, SIGUSR2: ends PAUSE or SUSPEND of the whole pooler. */
export function resumeAll(): void {
  const suspended = getPauseMode() === PauseMode.SUSPEND;
  leavePause();
  if (suspended) resumeSockets();
  touchPools(null);
}

/** Begins a shutdown that waits for servers or clients to leave: no new connections over TCP. */
export function beginShutdown(mode: ShutdownMode.WAIT_FOR_SERVERS | ShutdownMode.WAIT_FOR_CLIENTS): void {
  setShutdown(mode);
  cleanupTcpSockets();
  touchPools(null);
}
