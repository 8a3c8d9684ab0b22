/*
 * The pidfile in a takeover: the old process removes its own when it ends, and take.ts waits for that. A pidfile of another
 * pooler is left alone.
 */

import { readFileSync, unlinkSync } from 'node:fs';
import { die } from '../core/base/log';
import { cf } from '../core/config/settings';

/** True if the process exists and is not a zombie; its parent may never reap it. */
export function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
  } catch (err) {
    return (err as NodeJS.ErrnoException).code !== 'ESRCH';
  }
  try {
    return !/^State:[ \t]+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'latin1'));
  } catch {
    return true;
  }
}

/** Whom the pidfile names. */
const enum Holder {
  /** there is no file */
  NOBODY,
  /** a process that has ended */
  GONE,
  /** the file has no process id, or cannot be read */
  UNKNOWN,
  RUNNING,
}

function pidfile(): Buffer {
  return Buffer.from(cf.pidfile ?? '', 'latin1');
}

function readHolder(): { holder: Holder; pid: number } {
  let pid: number;
  try {
    pid = Number.parseInt(readFileSync(pidfile(), 'latin1'), 10);
  } catch (err) {
    const missing = (err as NodeJS.ErrnoException).code === 'ENOENT';
    return { holder: missing ? Holder.NOBODY : Holder.UNKNOWN, pid: 0 };
  }
  if (!(pid > 0)) return { holder: Holder.UNKNOWN, pid: 0 };
  // after a restart of a container, the same number may be that of this process
  return { holder: pid !== process.pid && isAlive(pid) ? Holder.RUNNING : Holder.GONE, pid };
}

/** Ends this process, while the old one still serves, if the pidfile is that of a third pooler. @param oldPid the old process */
export function refuseOtherPidfile(oldPid: number): void {
  if (cf.pidfile === null || cf.pidfile === '') return;
  const { holder, pid } = readHolder();
  if (holder === Holder.RUNNING && pid !== oldPid) die(`pidfile '${cf.pidfile}' exists, another instance running?`);
}

export function removePidfile(): void {
  try {
    unlinkSync(pidfile());
  } catch {
    // the old process has removed it
  }
}

/** True if the pidfile is gone or names no running process: the old process may have been killed. */
export function isPidfileFree(): boolean {
  const { holder } = readHolder();
  if (holder === Holder.GONE) removePidfile();
  return holder === Holder.NOBODY || holder === Holder.GONE;
}

/**
 * The pidfile has not become free in time.
 * @param oldPid the old process, 0 = it has ended, and its number is not known
 * @returns true if it may be replaced
 */
export function mayReplacePidfile(oldPid: number): boolean {
  const { holder, pid } = readHolder();
  return holder !== Holder.RUNNING || pid === oldPid;
}
