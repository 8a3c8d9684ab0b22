/*
 * A process that starts with -R takes CPU time from the one that serves, and Node's start uses several threads: on a machine with
 * few cores the clients notice. So the new process, and its launcher, keep to one core until the old process is to stand
 * still. Called by main.ts, the launcher and src/takeover.
 */

import { logWarning } from './log';
import { native } from './native';

/** Tells the daemon where it may run once it has left the back seat: the launcher's own list was longer before. */
const MARKER = 'TSBOUNCER_CPUS';

/** CPUs to go back to; null = not in the back seat */
let cpus: number[] | null = null;

/** What launchDaemon() adds to the daemon's environment. */
export function pinnedCpusEnv(): Record<string, string> {
  return cpus === null ? {} : { [MARKER]: cpus.join() };
}

/** Keeps to one core. Does nothing where that is not possible, or where there is but one. */
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

/** Runs wherever this process may run. */
export function unpinCpus(): void {
  const res = cpus === null ? 0 : native.setCpuAffinity(cpus);
  if (res < 0) logWarning(`cannot go back to all CPUs: ${native.strerror(-res)}`);
  cpus = null;
}
