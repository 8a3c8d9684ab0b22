/*
 * The state of the whole process: running, paused, suspended, frozen for a handover, taking over, shutting down. Every
 * module reads it. Only this module assigns it, and it refuses invalid transitions. The operations and their effects on
 * sockets are in core/life/pause.ts.
 */

import { getCachedTime } from './time';

declare global {
  /**
   * 0 = running, 1 = waiting for servers or clients to leave, 2 = leave the main loop now. It is a true global, so that
   * `while (cfShutdown < 2) mainLoopOnce();` is the whole program. Only setShutdown() assigns it, so that the flag and
   * the shutdown mode cannot diverge.
   */
  var cfShutdown: number;
}

/** PgBouncer's cf_pause_mode, with FROZEN added. */
export const enum PauseMode {
  NONE = 0,
  /** wait for clients to finish their transactions, then close the servers */
  PAUSE = 1,
  /** wait until the buffers are empty, then stop reading */
  SUSPEND = 2,
  /** nothing is read or sent: the sockets have been described to a new process, which may soon own them */
  FROZEN = 3,
}

/** What cfShutdown = 1 waits for; PgBouncer's cf_shutdown. */
export const enum ShutdownMode {
  NONE = 0,
  /** new connections and waiting clients are refused; ends when no server connection is left */
  WAIT_FOR_SERVERS = 1,
  /** nothing is accepted any more; clients are served until they disconnect */
  WAIT_FOR_CLIENTS = 2,
  IMMEDIATE = 3,
  /** nothing is accepted any more; each client is disconnected at the end of its transaction */
  WAIT_FOR_TRANSACTIONS = 4,
}

let pauseMode = PauseMode.NONE;
/** the mode to restore after a failed handover */
let modeBeforeFreeze = PauseMode.NONE;
let shutdownMode = ShutdownMode.NONE;
let suspendedAt = 0;
let takingOver = false;
let shutdownBegan = 0;
let forcedAt = 0;

export function getPauseMode(): PauseMode {
  return pauseMode;
}

export function getShutdownMode(): ShutdownMode {
  return shutdownMode;
}

/** When SUSPEND or the freeze began, in usec of base/time.ts. */
export function suspendStart(): number {
  return suspendedAt;
}

/** True in a process started with -R until it has taken over or has found no old process. */
export function isTakingOver(): boolean {
  return takingOver;
}

export function isFrozen(): boolean {
  return pauseMode === PauseMode.FROZEN;
}

/** False while a new process has, or may soon have, the listening sockets. Their files must not be removed then. */
export function ownsListeners(): boolean {
  return pauseMode !== PauseMode.SUSPEND && pauseMode !== PauseMode.FROZEN;
}

/** True when a shutdown waits for clients that a pause prevents from finishing. RESUME is allowed then. */
export function clientsHeldUp(): boolean {
  const waits = shutdownMode === ShutdownMode.WAIT_FOR_CLIENTS || shutdownMode === ShutdownMode.WAIT_FOR_TRANSACTIONS;
  return waits && pauseMode !== PauseMode.NONE;
}

function requireMode(operation: string, ...allowed: PauseMode[]): void {
  if (!allowed.includes(pauseMode)) throw new Error(`lifecycle: ${operation} in pause mode ${pauseMode}`);
}

export function enterPause(): void {
  requireMode('pause', PauseMode.NONE);
  pauseMode = PauseMode.PAUSE;
}

/** @param now usec */
export function enterSuspend(now: number): void {
  requireMode('suspend', PauseMode.NONE);
  pauseMode = PauseMode.SUSPEND;
  suspendedAt = now;
}

/** Ends PAUSE or SUSPEND. */
export function leavePause(): void {
  requireMode('resume', PauseMode.PAUSE, PauseMode.SUSPEND);
  pauseMode = PauseMode.NONE;
}

/** @param now usec @returns the mode that the freeze interrupts */
export function enterFreeze(now: number): PauseMode {
  requireMode('freeze', PauseMode.NONE, PauseMode.PAUSE);
  modeBeforeFreeze = pauseMode;
  pauseMode = PauseMode.FROZEN;
  suspendedAt = now;
  return modeBeforeFreeze;
}

/** The handover failed: restores the mode from before the freeze. */
export function leaveFreeze(): void {
  requireMode('thaw', PauseMode.FROZEN);
  pauseMode = modeBeforeFreeze;
}

/** Begins or advances a shutdown. Waiting for servers pauses the pools, as in PgBouncer. */
export function setShutdown(mode: Exclude<ShutdownMode, ShutdownMode.NONE>): void {
  if (shutdownMode === ShutdownMode.IMMEDIATE && mode !== ShutdownMode.IMMEDIATE)
    throw new Error(`lifecycle: shutdown mode ${mode} after an immediate shutdown`);
  if (mode === ShutdownMode.WAIT_FOR_SERVERS) {
    requireMode('shutdown', PauseMode.NONE, PauseMode.PAUSE, PauseMode.SUSPEND);
    pauseMode = PauseMode.PAUSE;
  }
  if (shutdownMode === ShutdownMode.NONE) shutdownBegan = getCachedTime();
  shutdownMode = mode;
}

/** When the shutdown began, whatever it has waited for since; usec, 0 = no shutdown. */
export function shutdownStart(): number {
  return shutdownBegan;
}

/** shutdown_timeout has passed: the shutdown ends a pause, and waits only until queries are canceled. @param now usec */
export function forceShutdown(now: number): void {
  requireMode('forced shutdown', PauseMode.NONE, PauseMode.PAUSE);
  pauseMode = PauseMode.NONE;
  shutdownMode = ShutdownMode.WAIT_FOR_TRANSACTIONS;
  forcedAt = now;
}

/** When shutdown_timeout passed; usec, 0 = not yet. */
export function shutdownForcedAt(): number {
  return forcedAt;
}

export function beginTakeover(): void {
  takingOver = true;
}

export function endTakeover(): void {
  takingOver = false;
}

Object.defineProperty(globalThis, 'cfShutdown', {
  get(): number {
    if (shutdownMode === ShutdownMode.NONE) return 0;
    return shutdownMode === ShutdownMode.IMMEDIATE ? 2 : 1;
  },
  set(value: number) {
    if (value !== 2) throw new RangeError(`cfShutdown = ${value}: only 2 can be assigned, use setShutdown()`);
    setShutdown(ShutdownMode.IMMEDIATE);
  },
});
