/*
 * The log: stderr, a file, syslog; called from every layer. Lines have PgBouncer's format (lib/usual/logging.c):
 *
 *     2026-11-22 09:30:01.123 UTC [4711] LOG message
 *
 * Messages are byte strings (one char = one byte). Logging never throws. Only a log file that cannot be opened ends the
 * process, as in PgBouncer.
 */
import { closeSync, openSync, writeSync } from 'node:fs';
import { relative, resolve } from 'node:path';
import { getSystemErrorMap } from 'node:util';
import { jsonLine, type LogFields } from './log-json';
import { endOfRepeats, isTooOften } from './log-repeats';
import { loadNative, SyslogPrio, syslogReset, syslogWrite } from './syslog';
import { formatTimeMs, isoTimeMs } from './timefmt';

/** Levels, numbered as in PgBouncer. */
const enum LogLevel {
  FATAL = 0,
  ERROR = 1,
  WARNING = 2,
  STATS = 3,
  INFO = 4,
  DEBUG = 5,
  NOISE = 6,
}

const TAGS = ['FATAL', 'ERROR', 'WARNING', 'LOG', 'LOG', 'DEBUG', 'NOISE'];
const PRIORITIES = [
  SyslogPrio.CRIT,
  SyslogPrio.ERR,
  SyslogPrio.WARNING,
  SyslogPrio.INFO,
  SyslogPrio.INFO,
  SyslogPrio.DEBUG,
  SyslogPrio.DEBUG,
];

/** The most verbose level sent to syslog, whatever the verbosity of the log. */
const SYSLOG_LEVEL_MAX = LogLevel.INFO;

/** Longest message with its prefix, in bytes; the rest is cut off, as in PgBouncer. */
const LOG_MESSAGE_MAX = 2047;

const STDERR_FD = 2;

/** The settings of the log; the upper layers fill them from the command line and the config file. */
export const logState: {
  /** 0 = no debug lines, 1 = DEBUG (-v), 2 = NOISE too (-vv) */
  verbose: number;
  /** nothing to stderr: -q, and when the process goes to the background */
  quiet: boolean;
  /** byte string path; opened at the first line after resetLogging() */
  logfile: string | null;
  syslog: boolean;
  syslogFacility: string | null;
  syslogIdent: string | null;
  /** lines of stderr and the log file are JSON objects */
  json: boolean;
  /** lines that differ only in numbers: how many are written in a period; 0 = all */
  repeatLimit: number;
  /** takes every line instead of all of the above: a config check collects its messages this way */
  sink: ((level: number, message: string) => void) | null;
  /** also gets the lines of level WARNING and above, with the name of their socket */
  watch: ((tag: string, text: string) => void) | null;
} = {
  verbose: 0,
  quiet: false,
  logfile: null,
  syslog: false,
  syslogFacility: null,
  syslogIdent: null,
  json: false,
  repeatLimit: 0,
  sink: null,
  watch: null,
};

/** Set by the layer that knows sockets. */
export const logPrefix: {
  /** the text that names a socket, with its trailing space */
  fn: ((sock: unknown) => string) | null;
  /** the same as fields */
  fields: ((sock: unknown) => LogFields) | null;
} = { fn: null, fields: null };

let logFd = -1;
let exiting = false;
const exitHooks: (() => void)[] = [];
let endProcess: (code: number) => never = process.exit;

/** True when DEBUG lines are written; ask before building an expensive message. */
export function wantDebug(): boolean {
  return logState.verbose > 0;
}

/** True when NOISE lines are written; ask before building an expensive message. */
export function wantNoise(): boolean {
  return logState.verbose > 1;
}

/** The C library's text for an error number (positive or negative), or the text of an error thrown by fs. */
export function strerror(err: unknown): string {
  const errno = typeof err === 'number' ? err : (err as NodeJS.ErrnoException)?.errno;
  if (typeof errno !== 'number') return String((err as Error)?.message ?? err);
  const abs = Math.abs(errno);
  return loadNative()?.strerror(abs) ?? getSystemErrorMap().get(-abs)?.[1] ?? `Unknown error ${abs}`;
}

/** Closes the log file and syslog; the next line reopens them. For log rotation and changed settings. */
export function resetLogging(): void {
  if (logFd >= 0) {
    try {
      closeSync(logFd);
    } catch {
      // EBADF: the descriptor is closed already
    }
    logFd = -1;
  }
  syslogReset();
}

/** Writes all bytes or gives up. A full disk, or a pipe that is full or closed, costs the line, not the process. */
function writeAll(fd: number, line: Buffer): void {
  let done = 0;
  try {
    while (done < line.length) {
      const n = writeSync(fd, line, done, line.length - done);
      if (n <= 0) return;
      done += n;
    }
  } catch {
    // EAGAIN, EPIPE, ENOSPC, EBADF: a failure to log cannot be logged
  }
}

/** Indents continuation lines by a tab and removes trailing white space, so that a message ends with its line. */
function indentLines(text: string): string {
  return text
    .replace(/\n/g, '\n\t')
    .slice(0, LOG_MESSAGE_MAX)
    .replace(/[ \t\n\v\f\r]+$/, '');
}

function openLogFile(path: string, time: string): void {
  try {
    logFd = openSync(Buffer.from(path, 'latin1'), 'a', 0o666);
  } catch (err) {
    const text = `${time} ${process.pid} FATAL Cannot open logfile: '${path}': ${strerror(err)}\n`;
    writeAll(STDERR_FD, Buffer.from(text, 'latin1'));
    exitProcess(1);
  }
}

function lineOf(time: string, level: LogLevel, sock: unknown, message: string, text: string): Buffer {
  const tag = TAGS[level] as string;
  if (!logState.json) return Buffer.from(`${time} [${process.pid}] ${tag} ${text}\n`, 'latin1');
  const fields = sock === null || sock === undefined || logPrefix.fields === null ? null : logPrefix.fields(sock);
  return jsonLine(isoTimeMs(), process.pid, tag, message.slice(0, LOG_MESSAGE_MAX), fields);
}

function logGeneric(level: LogLevel, sock: unknown, message: string): void {
  if (logState.sink !== null) {
    logState.sink(level, message);
    return;
  }
  if (logState.repeatLimit > 0 && level !== LogLevel.STATS && isTooOften(level, message, logState.repeatLimit)) return;
  write(level, sock, message);
}

function write(level: LogLevel, sock: unknown, message: string): void {
  let text = message;
  if (sock !== null && sock !== undefined && logPrefix.fn !== null) text = logPrefix.fn(sock) + message;
  if (text.length > LOG_MESSAGE_MAX) text = text.slice(0, LOG_MESSAGE_MAX);
  if (text.includes('\n')) text = indentLines(text);

  const time = formatTimeMs(0);
  const state = logState;
  if (level <= LogLevel.WARNING && state.watch !== null) state.watch(TAGS[level] as string, text);
  if (logFd < 0 && state.logfile !== null && state.logfile !== '') openLogFile(state.logfile, time);
  if (!state.quiet || logFd >= 0) {
    const line = lineOf(time, level, sock, message, text);
    if (!state.quiet) writeAll(STDERR_FD, line);
    if (logFd >= 0) writeAll(logFd, line);
  }
  if (state.syslog && level <= SYSLOG_LEVEL_MAX) {
    syslogWrite(PRIORITIES[level] as SyslogPrio, text, state.syslogIdent, state.syslogFacility);
  }
}

/** Ends a period of log_repeat_limit: tells how many lines were left out. */
export function tellRepeats(): void {
  for (const text of endOfRepeats(logState.repeatLimit)) write(LogLevel.INFO, null, text);
}

export function logNoise(message: string): void {
  if (logState.verbose > 1) logGeneric(LogLevel.NOISE, null, message);
}

export function logDebug(message: string): void {
  if (logState.verbose > 0) logGeneric(LogLevel.DEBUG, null, message);
}

export function logInfo(message: string): void {
  logGeneric(LogLevel.INFO, null, message);
}

/** The periodic statistics line; tagged LOG like logInfo. */
export function logStats(message: string): void {
  logGeneric(LogLevel.STATS, null, message);
}

export function logWarning(message: string): void {
  logGeneric(LogLevel.WARNING, null, message);
}

export function logError(message: string): void {
  logGeneric(LogLevel.ERROR, null, message);
}

/* The same functions with the socket's name in front (logPrefix). `sock` may be null: no prefix then. */

export function slogNoise(sock: unknown, message: string): void {
  if (logState.verbose > 1) logGeneric(LogLevel.NOISE, sock, message);
}

export function slogDebug(sock: unknown, message: string): void {
  if (logState.verbose > 0) logGeneric(LogLevel.DEBUG, sock, message);
}

export function slogInfo(sock: unknown, message: string): void {
  logGeneric(LogLevel.INFO, sock, message);
}

export function slogWarning(sock: unknown, message: string): void {
  logGeneric(LogLevel.WARNING, sock, message);
}

export function slogError(sock: unknown, message: string): void {
  logGeneric(LogLevel.ERROR, sock, message);
}

/** Registers a hook to run before the process ends (remove the pidfile, unlink sockets). Last in, first out. */
export function atExit(hook: () => void): void {
  exitHooks.push(hook);
}

/** Registers what ends the process after the hooks. */
export function endProcessWith(end: (code: number) => never): void {
  endProcess = end;
}

/** Runs the exit hooks, newest first and only once, then ends the process. A hook that throws stops no other hook. */
export function exitProcess(code: number): never {
  if (!exiting) {
    exiting = true;
    for (let hook = exitHooks.pop(); hook !== undefined; hook = exitHooks.pop()) {
      try {
        hook();
      } catch (err) {
        logError(`exit hook failed: ${(err as Error)?.message ?? err}`);
      }
    }
    tellRepeats();
  }
  endProcess(code);
}

/** `@file:line in function name(): ` of the caller of fatal(). */
function callerPlace(): string {
  const frame = new Error().stack?.split('\n')[3] ?? '';
  const match = /at (?:new )?(?:([^ (]+) \()?(.*?):(\d+):\d+\)?$/.exec(frame);
  if (match === null) return '@?:0 in function ?()';
  const file = relative(resolve(__dirname, '..', '..'), (match[2] as string).replace(/^file:\/\//, ''));
  return `@${file}:${match[3]} in function ${match[1] ?? '?'}()`;
}

/** A programming error: logs the message with its place in the source and ends the process with code 1. */
export function fatal(message: string): never {
  logGeneric(LogLevel.FATAL, null, `${callerPlace()}: ${message}`);
  exitProcess(1);
}

/** Like fatal(), for a system call that must not fail; adds the system's text and the error number. */
export function fatalErrno(message: string, errno: number): never {
  logGeneric(LogLevel.FATAL, null, `${callerPlace()}: ${message}: ${strerror(errno)} [${Math.abs(errno)}]`);
  exitProcess(1);
}

/** An error of the environment (config, ports, files): logs FATAL and ends the process with code 1. */
export function die(message: string): never {
  logGeneric(LogLevel.FATAL, null, message);
  exitProcess(1);
}
