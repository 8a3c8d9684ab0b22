/*
 * Going to the background (-d). V8's threads do not survive a fork, so the process that the user started, the
 * launcher, stays in the foreground and starts the daemon as a fresh process in a session of its own. The launcher
 * waits until the daemon reports that it has bound its sockets and written its pidfile, and only then exits with 0.
 * PgBouncer exits before it knows. The order of the calls in src/main.ts:
 *
 *   both:      claimDaemon() first of all, options, config
 *   launcher:  requireDaemonSettings(), launchDaemon(), return from main
 *   daemon:    (isDaemonChild() is true) daemonServes() after a takeover, bind, pidfile, daemonReady(), main loop
 *
 * Until daemonReady() the daemon's stderr is a pipe to the launcher. If the daemon ends before it is ready, the
 * launcher prints the contents of the pipe, so the user sees the reason: a FATAL line or a crash. Only the launcher
 * uses Node's own event loop; it never enters mainLoopOnce().
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, fstatSync, openSync, writeSync } from 'node:fs';
import { pinnedCpusEnv } from '../core/base/cpu-affinity';
import { DAEMON_MARKER } from '../core/base/daemon-marker';
import { die, logState, logWarning } from '../core/base/log';
import { native } from '../core/base/native';

const REPORT_FD = 3;
const READY_TEXT = 'ok\n';
/** precedes READY_TEXT after a takeover */
const SERVES_TEXT = 'serves\n';
const STDOUT_FD = 1;
const STDERR_FD = 2;

/** Most bytes of a failing daemon's stderr that the launcher keeps. */
const LAST_WORDS_MAX = 64 * 1024;

let daemonChild = false;
let reportFd = -1;

/** True in the process that launchDaemon() started, once it has called claimDaemon(). */
export function isDaemonChild(): boolean {
  return daemonChild;
}

/**
 * Ends the process if the config lacks what -d needs. PgBouncer checks only the pidfile, but its manual requires a log
 * too: without it, a daemon cannot report why it failed.
 * @param pidfile byte string or null
 * @param logfile byte string or null
 * @param syslog the setting `syslog` (0 or 1)
 */
export function requireDaemonSettings(pidfile: string | null, logfile: string | null, syslog: number | boolean): void {
  if (pidfile === null || pidfile === '') die('daemon needs pidfile configured');
  if ((logfile === null || logfile === '') && !syslog) die('daemon needs logfile or syslog configured');
}

/**
 * Called first in the daemon: takes the descriptor that leads to the launcher and removes the marker. Does nothing if
 * no launcher holds the other end, as with a marker left over in the environment.
 */
export function claimDaemon(): void {
  if (process.env[DAEMON_MARKER] !== String(REPORT_FD)) return;
  delete process.env[DAEMON_MARKER];
  try {
    const stat = fstatSync(REPORT_FD);
    daemonChild = stat.isSocket() || stat.isFIFO();
    if (daemonChild) reportFd = REPORT_FD;
  } catch {
    // no such descriptor: an ordinary start
  }
}

/**
 * Reports to the launcher that the daemon is ready, and closes the last descriptor of the terminal. From now on log
 * lines go only to the log file and syslog, as in PgBouncer after its fork. Does nothing in a process without a
 * launcher.
 * @param outcome a line for the user, '' = none
 */
export function daemonReady(outcome = ''): void {
  if (reportFd < 0) return;
  logState.quiet = true;
  const devNull = openSync('/dev/null', 'r+');
  const res = native.dup2(devNull, STDERR_FD);
  if (res < 0) logWarning(`cannot let go of the standard error: ${native.strerror(-res)}`);
  closeSync(devNull);
  report(outcome === '' ? READY_TEXT : `${READY_TEXT}${outcome}\n`);
  closeSync(reportFd);
  reportFd = -1;
}

/**
 * Tells the launcher that this process owns the clients of the old one, so that nothing may end it any more. Does nothing in
 * a process without a launcher.
 */
export function daemonServes(): void {
  if (reportFd >= 0) report(SERVES_TEXT);
}

/** Writes to the launcher, which may have exited. */
function report(text: string): void {
  tryWrite(reportFd, text);
}

/** Writes to the terminal, which may have been closed. */
function say(text: string): void {
  tryWrite(STDERR_FD, text);
}

function tryWrite(fd: number, text: string): void {
  try {
    writeSync(fd, text);
  } catch {
    // there is no reader any more
  }
}

/**
 * Ctrl-C before the daemon serves stops the daemon too, so that no half-started daemon stays behind. A daemon that has taken
 * over clients goes on without the launcher.
 * @param serves whether it has taken over
 */
function stopTogether(daemon: ChildProcess, serves: () => boolean): void {
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(signal, () => {
      if (!serves()) daemon.kill('SIGQUIT');
      else {
        say(`the new process, ${daemon.pid}, has taken over and goes on\n`);
        process.exit(0);
      }
    });
  }
}

/** Reads a stream to its end and keeps a limited part of it. */
function collect(stream: NodeJS.ReadableStream | null | undefined): { text: string } {
  const kept = { text: '' };
  stream?.on('data', (chunk: Buffer) => {
    kept.text = (kept.text + chunk.toString('latin1')).slice(-LAST_WORDS_MAX);
  });
  return kept;
}

/**
 * Starts the daemon with the command line of this process, and ends this process when the outcome is known. The exit
 * code is 0 when the daemon is ready, else with the daemon's exit code (at least 1) after printing its stderr. Returns
 * at once; the caller must return to Node's event loop. As in PgBouncer, working directory and umask stay unchanged.
 */
export function launchDaemon(): void {
  const args = [...process.execArgv, ...process.argv.slice(1)];
  const daemon = spawn(process.execPath, args, {
    argv0: process.argv0,
    detached: true,
    env: { ...process.env, [DAEMON_MARKER]: String(REPORT_FD), ...pinnedCpusEnv() },
    stdio: ['ignore', 'ignore', 'pipe', 'pipe'],
  });
  const lastWords = collect(daemon.stderr);
  const told = collect(daemon.stdio[REPORT_FD] as NodeJS.ReadableStream);
  stopTogether(daemon, () => told.text.startsWith(SERVES_TEXT));

  // both pipes are read to their end before 'close', so no output is lost
  daemon.on('error', (err) => die(`could not start the daemon: ${err.message}`));
  const leaveIfReady = (): void => {
    const text = told.text.startsWith(SERVES_TEXT) ? told.text.slice(SERVES_TEXT.length) : told.text;
    if (!text.startsWith(READY_TEXT)) return;
    writeSync(STDOUT_FD, text.slice(READY_TEXT.length));
    process.exit(0);
  };
  daemon.stdio[REPORT_FD]?.on('close', leaveIfReady);
  daemon.on('close', (code, signal) => {
    leaveIfReady();
    if (lastWords.text === '') {
      const how = signal === null ? `exit code ${code}` : `signal ${signal}`;
      die(`daemon ended before it was ready: ${how}`);
    }
    writeSync(STDERR_FD, Buffer.from(lastWords.text, 'latin1'));
    process.exit(code === null || code === 0 ? 1 : code);
  });
}
