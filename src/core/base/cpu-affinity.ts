/*
 * Pins the process to one CPU while it starts with -R. Node's start uses several threads, so on a machine with few CPUs
 * a starting process would take CPU time from the old process, and its clients would notice. The launcher and the new
 * process stay on one CPU until the old process is about to freeze. Called by main.ts, the launcher and src/takeover.
 */

import { cpuQuota } from './cpu-quota';
import { logWarning } from './log';
import { native } from './native';

/** Tells the daemon which CPUs to use after unpinning. The daemon cannot find out: its launcher is already pinned. */
const MARKER = 'TSBOUNCER_CPUS';

/** CPUs to return to; null = not pinned */
let cpus: number[] | null = null;

/** Variables that launchDaemon() adds to the daemon's environment. */
export function pinnedCpusEnv(): Record<string, string> {
  return cpus === null ? {} : { [MARKER]: cpus.join() };
}

/** Pins the process to one CPU. Does nothing if that is impossible, or if only one CPU is allowed. */
export function pinToOneCpu(): void {
  const inherited = process.env[MARKER];
  delete process.env[MARKER];
  if (inherited !== undefined) {
    cpus = inherited.split(',').map(Number);
    return;
  }
  const allowed = native.cpuAffinity();
  const last = allowed.at(-1);
  if (last === undefined || allowed.length < 2) return;
  if (native.setCpuAffinity([last]) === 0) cpus = allowed;
}

/** @returns the number of whole CPUs that the process may use, when it is not pinned */
export function allowedCpus(): number {
  return Math.max(1, Math.floor(Math.min((cpus ?? native.cpuAffinity()).length, cpuQuota())));
}

/** Lets the process run on all its CPUs again. */
export function unpinCpus(): void {
  const res = cpus === null ? 0 : native.setCpuAffinity(cpus);
  if (res < 0) logWarning(`could not restore the CPU affinity: ${native.strerror(-res)}`);
  cpus = null;
}
