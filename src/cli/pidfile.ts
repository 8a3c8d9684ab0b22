/*
 * The pidfile, which allows only one pooler per config. It is checked before any socket is bound, written when all
 * sockets are bound, and removed by an exit hook. Texts are PgBouncer's (main.c, check_pidfile and write_pidfile).
 */
import { closeSync, openSync, readFileSync, unlinkSync, writeSync } from 'node:fs';
import { atExit, die, logError, logInfo, strerror } from '../core/base/log';

/** A pidfile contains one number; of a longer file only the beginning is read. */
const PIDFILE_BYTES_MAX = 128;

/** Path of the pidfile once this process has written it, '' before. */
let ownPidfile = '';

function osPath(path: string): Buffer {
  return Buffer.from(path, 'latin1');
}

function codeOf(err: unknown): string | undefined {
  return (err as NodeJS.ErrnoException).code;
}

/** The number at the beginning of a pidfile, as atol() reads it; 0 if there is none. */
function parsePid(text: string): number {
  const digits = /^\s*\+?(\d+)/.exec(text)?.[1];
  return digits === undefined ? 0 : Number(digits);
}

/**
 * True if another process with that pid exists, even if this process may not signal it. This process's own pid in an
 * old file comes from a container in which every start has the same pid, not from another pooler.
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

/** The beginning of the file, or null if the file does not exist. */
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
 * Ends the process if another pooler holds the pidfile or may hold it; removes a stale pidfile.
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

/** True if the pidfile names a running process. @param path byte string; '' = no pidfile */
export function pidfileIsLive(path: string): boolean {
  if (path === '') return false;
  try {
    const pid = parsePid(readFileSync(osPath(path), 'latin1').slice(0, PIDFILE_BYTES_MAX));
    return pid > 0 && isRunning(pid);
  } catch {
    // missing or unreadable: no pooler that is known
    return false;
  }
}

/** Why no start can use the pidfile, whatever is running; null = nothing is wrong with it. @param path byte string */
export function pidfileProblem(path: string): string | null {
  try {
    const text = readFileSync(osPath(path), 'latin1').slice(0, PIDFILE_BYTES_MAX);
    return parsePid(text) > 0 ? null : `pidfile '${path}' exists, and has no process id`;
  } catch (err) {
    return codeOf(err) === 'ENOENT' ? null : `could not read pidfile '${path}': ${strerror(err)}`;
  }
}

/**
 * Writes this process's pid into a file that must not exist yet, and removes it at exit. Ends the process on failure.
 * @param path byte string; null or empty = no pidfile wanted
 * @param mustGoOn after a takeover: clients are already connected, so a failure is only logged
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

/** Removes the pidfile if this process wrote it and it still names this process. */
function removePidfile(): void {
  if (ownPidfile === '') return;
  const path = osPath(ownPidfile);
  ownPidfile = '';
  try {
    if (parsePid(readFileSync(path, 'latin1')) === process.pid) unlinkSync(path);
  } catch {
    // already removed by another process
  }
}
