/*
 * What the signals do. They arrive as events of the loop, so nothing here is restricted in what it may call.
 */

import { constants } from 'node:os';
import { clientsHeldUp } from './admin/commands';
import { PauseMode, runState, ShutdownMode, setShutdown } from './core/base/lifecycle';
import { die, exitProcess, fatalErrno, logInfo } from './core/base/log';
import { native } from './core/base/native';
import { notify, notifyReloading } from './core/base/systemd';
import { fullResume } from './core/life/pause';
import { reloadAll } from './core/life/reload';
import { cleanupTcpSockets } from './core/net/pooler';
import { requestFullLoopMaint, touchPools } from './core/pool/pool';
import { upcalls } from './core/pool/upcalls';

function beginShutdown(name: string, waitsFor: string): void {
  if (globalThis.cfShutdown > 0) {
    logInfo(`got ${name} while shutting down, fast exit`);
    exitProcess(0);
  }
  logInfo(`got ${name}, shutting down, ${waitsFor}`);
  notify('STOPPING=1');
  if (runState.reboot !== 0) die('takeover was in progress, going down immediately');
  if (runState.pauseMode === PauseMode.SUSPEND) die('suspend was in progress, going down immediately');
}

function onTerm(): void {
  beginShutdown('SIGTERM', 'waiting for all clients disconnect');
  setShutdown(ShutdownMode.WAIT_FOR_CLIENTS);
  cleanupTcpSockets();
}

function onInt(): void {
  beginShutdown('SIGINT', 'waiting for all servers connections to be released');
  runState.pauseMode = PauseMode.PAUSE;
  setShutdown(ShutdownMode.WAIT_FOR_SERVERS);
  cleanupTcpSockets();
  touchPools(null);
}

function onQuit(): void {
  logInfo('got SIGQUIT, fast exit');
  globalThis.cfShutdown = 2;
  native.loopBreak();
}

function onUsr1(): void {
  if (runState.pauseMode !== PauseMode.NONE) {
    logInfo('got SIGUSR1, but already paused/suspended');
    return;
  }
  logInfo('got SIGUSR1, pausing all activity');
  runState.pauseMode = PauseMode.PAUSE;
}

function onUsr2(): void {
  if (globalThis.cfShutdown > 0 && !clientsHeldUp()) {
    logInfo('got SIGUSR2 while shutting down, ignoring');
  } else if (upcalls.handover.frozen) {
    logInfo('got SIGUSR2, continuing from SUSPEND');
    upcalls.handover.abort('handover ended by SIGUSR2');
  } else if (runState.pauseMode === PauseMode.SUSPEND) {
    logInfo('got SIGUSR2, continuing from SUSPEND');
    fullResume();
  } else if (runState.pauseMode === PauseMode.PAUSE) {
    logInfo('got SIGUSR2, continuing from PAUSE');
    fullResume();
  } else {
    logInfo('got SIGUSR2, but not paused/suspended');
  }
}

function onHup(): void {
  logInfo('got SIGHUP, re-reading config');
  // the sockets may be another process's soon; if they stay ours, then
  if (upcalls.handover.frozen) {
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

/** A signal that the loop has received. */
export function handleSignal(signum: number): void {
  handlers.get(signum)?.();
  // a mode may have changed for every pool
  requestFullLoopMaint();
}

/** Takes the signals over from Node. */
export function signalSetup(): void {
  for (const signum of handlers.keys()) {
    const res = native.signalStart(signum);
    if (res < 0) fatalErrno(`cannot take over signal ${signum}`, -res);
  }
}
