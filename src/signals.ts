/*
 * The effects of signals. Signals arrive as events of the loop, so their handlers may call any function.
 */

import { constants } from 'node:os';
import {
  clientsHeldUp,
  getPauseMode,
  isFrozen,
  isTakingOver,
  ownsListeners,
  PauseMode,
  ShutdownMode,
} from './core/base/lifecycle';
import { die, exitProcess, fatalErrno, logInfo } from './core/base/log';
import { native } from './core/base/native';
import { notify, notifyReloading } from './core/base/systemd';
import { getCachedTime } from './core/base/time';
import { SigtermShutdown } from './core/config/choices';
import { cf } from './core/config/settings';
import { beginShutdown, pauseAll, resumeAll } from './core/life/pause';
import { reloadAll } from './core/life/reload';
import { requestFullLoopMaint } from './core/pool/pool';
import { upcalls } from './core/pool/upcalls';

function announceShutdown(name: string, waitsFor: string): void {
  if (globalThis.cfShutdown > 0) {
    logInfo(`got ${name} while shutting down, fast exit`);
    exitProcess(0);
  }
  logInfo(`got ${name}, shutting down, ${waitsFor}`);
  notify('STOPPING=1');
  if (isTakingOver()) die('takeover was in progress, going down immediately');
  if (!ownsListeners()) die('suspend was in progress, going down immediately');
}

/** The effect of each value of sigterm_shutdown, and how the log names it. */
const shutdownOf = {
  [SigtermShutdown.WAIT_FOR_CLIENTS]: {
    mode: ShutdownMode.WAIT_FOR_CLIENTS,
    waitsFor: 'waiting for all clients disconnect',
  },
  [SigtermShutdown.WAIT_FOR_SERVERS]: {
    mode: ShutdownMode.WAIT_FOR_SERVERS,
    waitsFor: 'waiting for all servers connections to be released',
  },
  [SigtermShutdown.WAIT_FOR_TRANSACTIONS]: {
    mode: ShutdownMode.WAIT_FOR_TRANSACTIONS,
    waitsFor: 'waiting for the transactions of all clients to end',
  },
} as const;

function onTerm(): void {
  const { mode, waitsFor } = shutdownOf[cf.sigtermShutdown];
  announceShutdown('SIGTERM', waitsFor);
  beginShutdown(mode);
}

function onInt(): void {
  const { mode, waitsFor } = shutdownOf[SigtermShutdown.WAIT_FOR_SERVERS];
  announceShutdown('SIGINT', waitsFor);
  beginShutdown(mode);
}

function onQuit(): void {
  logInfo('got SIGQUIT, fast exit');
  globalThis.cfShutdown = 2;
  native.loopBreak();
}

function onUsr1(): void {
  if (getPauseMode() !== PauseMode.NONE) {
    logInfo('got SIGUSR1, but already paused/suspended');
    return;
  }
  logInfo('got SIGUSR1, pausing all activity');
  pauseAll();
}

function onUsr2(): void {
  if (globalThis.cfShutdown > 0 && !clientsHeldUp()) {
    logInfo('got SIGUSR2 while shutting down, ignoring');
  } else if (isFrozen()) {
    logInfo('got SIGUSR2, continuing from SUSPEND');
    upcalls.handover.abort('handover ended by SIGUSR2');
  } else if (getPauseMode() === PauseMode.SUSPEND) {
    logInfo('got SIGUSR2, continuing from SUSPEND');
    resumeAll();
  } else if (getPauseMode() === PauseMode.PAUSE) {
    logInfo('got SIGUSR2, continuing from PAUSE');
    resumeAll();
  } else {
    logInfo('got SIGUSR2, but not paused/suspended');
  }
}

/** the turn of the last SIGHUP, usec */
let hupTurn = 0;

function onHup(): void {
  // one reload is enough for all that have arrived before it, however many; those behind them may have to end the process
  if (hupTurn === getCachedTime()) return;
  hupTurn = getCachedTime();
  logInfo('got SIGHUP, re-reading config');
  // a new process may own the sockets soon; if the handover fails, the signal takes effect then
  if (isFrozen()) {
    upcalls.handover.laterReload();
    return;
  }
  notifyReloading();
  reloadAll();
  notify('READY=1');
}

const handlers = new Map<number, () => void>([
  [constants.signals.SIGTERM, onTerm],
  [constants.signals.SIGINT, onInt],
  [constants.signals.SIGQUIT, onQuit],
  [constants.signals.SIGUSR1, onUsr1],
  [constants.signals.SIGUSR2, onUsr2],
  [constants.signals.SIGHUP, onHup],
]);

/** Handles a signal that the loop has received. */
export function handleSignal(signum: number): void {
  handlers.get(signum)?.();
  // a mode may have changed for all pools
  requestFullLoopMaint();
}

/** Takes over signal handling from Node. */
export function signalSetup(): void {
  for (const signum of handlers.keys()) {
    const res = native.signalStart(signum);
    if (res < 0) fatalErrno(`cannot take over signal ${signum}`, -res);
  }
}
