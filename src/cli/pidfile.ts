/*
 * The pidfile: one pooler a config. src/main.ts checks it before it binds anything, writes it when everything is
 * bound, and an exit hook takes it away again. Texts are the original's (main.c, check_pidfile and write_pidfile).
 */
import { closeSync, openSync, readFileSync, unlinkSync, writeSync } from 'node:fs';
import { atExit, die, logError, logInfo, strerror } from '../core/base/log';

/** A pidfile holds one number; whatever is longer is none of ours, and only its beginning is looked at. */
const PIDFILE_BYTES_MAX = 128;

/** Set once this process has written its own. */
let ownPidfile = '';

function osPath(path: string): Buffer {
  return Buffer.from(path, 'latin1');
}

function codeOf(err: unknown): string | undefined {
  return (err as NodeJS.ErrnoException).code;
}

/** The number that a pidfile begins with, as atol() reads it; 0 when there is none. */
function parsePid(text: string): number {
  const digits = /^\s*\+?(\d+)/.exec(text)?.[1];
  return digits === undefined ? 0 : Number(digits);
}

/**
 * Whether a process of that number runs. One that we may not signal does run. Our own number in an old file is the
 * mark of a container that gives every start the same numbers, not of another pooler.
 */
function isRunning(pid: number): boolean {
  if (pid === process.pid) return false;
  try {
    process.kill(pid, 0);
    return true;
  } catch (err) {
    return codeOf(err) !== 'ESRCH';
  }
}

/** The beginning of the file, or null when there is no such file. */
function readPidfile(path: string): string | null {
  let fd: number;
  try {
    fd = openSync(osPath(path), 'r');
  } catch (err) {
    if (codeOf(err) === 'ENOENT') return null;
    die(`could not open pidfile '${path}': ${strerror(err)}`);
  }
  try {
    return readFileSync(fd, 'latin1').slice(0, PIDFILE_BYTES_MAX);
  } catch (err) {
    die(`could not read pidfile '${path}': ${strerror(err)}`);
  } finally {
    closeSync(fd);
  }
}

/**
 * Ends the process when another pooler holds the pidfile (or when nobody can tell); removes a stale one.
 * @param path byte string; null or empty = no pidfile wanted
 */
export function checkPidfile(path: string | null): void {
  if (path === null || path === '') return;
  const text = readPidfile(path);
  if (text === null) return;

  const pid = parsePid(text);
  if (pid <= 0 || isRunning(pid)) die(`pidfile '${path}' exists, another instance running?`);

  logInfo('stale pidfile, removing');
  try {
    unlinkSync(osPath(path));
  } catch (err) {
    die(`could not remove stale pidfile: ${strerror(err)}`);
  }
}

/**
 * Writes our number into a file that must not exist yet, and has it removed at exit. Ends the process when it cannot.
 * @param path byte string; null or empty = no pidfile wanted
 * @param mustGoOn after a takeover: clients are connected already, so a failure is only logged
 */
export function writePidfile(path: string | null, mustGoOn = false): void {
  if (path === null || path === '') return;
  const fail = (message: string): void => {
    if (mustGoOn) logError(message);
    else die(message);
  };
  let fd: number;
  try {
    fd = openSync(osPath(path), 'wx', 0o644);
  } catch (err) {
    fail(`could not open pidfile '${path}': ${strerror(err)}`);
    return;
  }
  try {
    writeSync(fd, `${process.pid}\n`);
  } catch (err) {
    fail(`could not write pidfile '${path}': ${strerror(err)}`);
  }
  closeSync(fd);
  ownPidfile = path;
  atExit(removePidfile);
}

/** Removes the pidfile if this process wrote it and it still names this process; silent otherwise. */
function removePidfile(): void {
  if (ownPidfile === '') return;
  const path = osPath(ownPidfile);
  ownPidfile = '';
  try {
    if (parsePid(readFileSync(path, 'latin1')) === process.pid) unlinkSync(path);
  } catch {
    // somebody tidied up before us
  }
}
