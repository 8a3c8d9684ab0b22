/*
 * The folder in which the demo keeps its data between runs, and its lock. Called by demo.ts.
 */

import { chmodSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { giveTo, type RunUser, userCan } from '../unprivileged';

const PROJECT_DIR = join(__dirname, '..', '..');
const STOP_MS_MAX = 10_000;
const STOP_STEP_MS = 50;

/** Tries to make the folder usable for the user; false if it belongs to another user or cannot be reached. */
function usable(dir: string, user: RunUser | null): boolean {
  if (!userCan(user, 'x', dirname(dir))) return false;
  try {
    mkdirSync(dir, { recursive: true, mode: 0o700 });
    const owner = statSync(dir).uid;
    const runUid = user?.uid ?? process.getuid?.();
    if (owner !== runUid && owner !== process.getuid?.()) return false;
    giveTo(user, dir);
    chmodSync(dir, 0o700);
    return userCan(user, 'w', dir) && userCan(user, 'x', dir);
  } catch {
    return false;
  }
}

/**
 * The demo's own folder, writable for that user: `.demo` in the project, or else a folder in the system's temporary
 * folder. The project cannot be used if it is an installed package, read-only or unreachable for the user, or if its
 * `.demo` belongs to another user.
 */
export function demoDir(user: RunUser | null): string {
  const uid = user?.uid ?? process.getuid?.();
  const candidates = [join(tmpdir(), `tsbouncer-demo-${uid}`)];
  if (!PROJECT_DIR.includes('/node_modules/')) candidates.unshift(join(PROJECT_DIR, '.demo'));
  const dir = candidates.find((candidate) => usable(candidate, user));
  if (dir === undefined) throw new Error(`no folder to work in: tried ${candidates.join(' and ')}`);
  return dir;
}

/** Whether a process with that pid runs and its command line contains `hint`. */
function runs(pid: number, hint: string): boolean {
  if (!Number.isInteger(pid) || pid <= 1 || pid === process.pid) return false;
  try {
    process.kill(pid, 0);
  } catch (err) {
    if ((err as NodeJS.ErrnoException).code === 'ESRCH') return false;
  }
  if (!existsSync('/proc/self')) return true;
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'latin1').includes(hint);
  } catch {
    return false;
  }
}

function firstNumber(path: string): number {
  return existsSync(path) ? Number.parseInt(readFileSync(path, 'latin1'), 10) : Number.NaN;
}

/** Stops a process that a killed demo has left behind, and waits until it has exited. */
async function endLeftover(pid: number, hint: string): Promise<void> {
  if (!runs(pid, hint)) return;
  process.kill(pid, 'SIGINT');
  for (let waited = 0; waited < STOP_MS_MAX && runs(pid, hint); waited += STOP_STEP_MS) {
    // not a child of this process, so there is no event to wait for
    await new Promise((resolve) => setTimeout(resolve, STOP_STEP_MS));
  }
}

/**
 * Locks the folder for this run. Throws if another demo uses it; stops processes that a killed demo has left running.
 * @param poolerHint a part of the pooler's command line
 */
export async function claimPlace(dir: string, poolerHint: string): Promise<void> {
  const lock = join(dir, 'demo.pid');
  const other = firstNumber(lock);
  if (runs(other, 'demo.js')) throw new Error(`another demo is running here (process ${other}): ${dir}`);
  await endLeftover(firstNumber(join(dir, 'tsbouncer.pid')), poolerHint);
  await endLeftover(firstNumber(join(dir, 'data', 'postmaster.pid')), 'postgres');
  rmSync(join(dir, 'tsbouncer.pid'), { force: true });
  writeNew(lock, `${process.pid}\n`);
}

/** Writes a new file: root must not write through a link that the folder's owner may have created. */
export function writeNew(path: string, text: string): void {
  rmSync(path, { force: true });
  writeFileSync(path, text, { flag: 'wx' });
}

/** Unlocks the folder for the next run. The data stays. */
export function releasePlace(dir: string): void {
  rmSync(join(dir, 'demo.pid'), { force: true });
}

/** The major version that created the data folder; '' if there is no data folder. */
export function dataVersion(dataDir: string): string {
  const file = join(dataDir, 'PG_VERSION');
  return existsSync(file) ? readFileSync(file, 'latin1').trim() : '';
}
