/*
 * Where the demo keeps its data between two runs, and who may be using it: called by demo.ts only.
 */

import { chmodSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { giveTo, type RunUser, userCan } from '../unprivileged';

const PROJECT_DIR = join(__dirname, '..', '..');
const STOP_MS_MAX = 10_000;
const STOP_STEP_MS = 50;

/** Tries to make the folder fit for the user; false when it belongs to somebody else or cannot be reached. */
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
 * The demo's own folder, for that user to write in: `.demo` in the project, or one in the system's temporary folder
 * when the project is read-only, lies where the user cannot go, or has a `.demo` of somebody else.
 */
export function demoDir(user: RunUser | null): string {
  const uid = user?.uid ?? process.getuid?.();
  const candidates = [join(PROJECT_DIR, '.demo'), join(tmpdir(), `tsbouncer-demo-${uid}`)];
  const dir = candidates.find((candidate) => usable(candidate, user));
  if (dir === undefined) throw new Error(`no folder to work in: tried ${candidates.join(' and ')}`);
  return dir;
}

/** Whether a process of that number runs and is the one meant: its command line names `hint`. */
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

/** Ends a process that an earlier demo left behind when it was killed, and waits until it is gone. */
async function endLeftover(pid: number, hint: string): Promise<void> {
  if (!runs(pid, hint)) return;
  process.kill(pid, 'SIGINT');
  for (let waited = 0; waited < STOP_MS_MAX && runs(pid, hint); waited += STOP_STEP_MS) {
    // nobody's child any more: there is no event to wait for
    await new Promise((resolve) => setTimeout(resolve, STOP_STEP_MS));
  }
}

/**
 * Takes the folder for this run. Throws when another demo uses it; ends what a killed one left running.
 * @param poolerHint a piece of the pooler's command line
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

/** Writes a file that is surely a new one: root must not write through a link that the folder's owner has laid. */
export function writeNew(path: string, text: string): void {
  rmSync(path, { force: true });
  writeFileSync(path, text, { flag: 'wx' });
}

/** Gives the folder free for the next run. The data stays. */
export function releasePlace(dir: string): void {
  rmSync(join(dir, 'demo.pid'), { force: true });
}

/** The major version that a data folder was made with; '' when there is none. */
export function dataVersion(dataDir: string): string {
  const file = join(dataDir, 'PG_VERSION');
  return existsSync(file) ? readFileSync(file, 'latin1').trim() : '';
}
