/*
 * Going to the background (-d). V8's threads do not survive a fork, so the process that the user started, the
 * launcher, stays in front and starts the daemon as a fresh process in a session of its own. It waits until the
 * daemon says that it has bound its sockets and written its pidfile, and only then returns 0; the original returns
 * before it knows. src/main.ts calls these in this order:
 *
 *   both:      claimDaemon() first of all, options, config
 *   launcher:  requireDaemonSettings(), launchDaemon(), return from main
 *   daemon:    (isDaemonChild() is true) bind, pidfile, daemonReady(), main loop
 *
 * Until daemonReady() the daemon's stderr is a pipe to the launcher, which prints what came through it if the daemon
 * ends before it is ready: whatever the reason was, a FATAL line or a crash, the user sees it. Only the launcher
 * uses Node's own event loop; it never enters mainLoopOnce().
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { closeSync, fstatSync, openSync, writeSync } from 'node:fs';
import { pinnedCpusEnv } from '../core/base/cpu-affinity';
import { die, logState, logWarning } from '../core/base/log';
import { native } from '../core/base/native';

/** Tells the fresh process that it is the daemon and where its launcher listens. */
const MARKER = 'TSBOUNCER_DAEMON_FD';
const REPORT_FD = 3;
const READY_TEXT = 'ok\n';
const STDOUT_FD = 1;
const STDERR_FD = 2;

/** The most of a failing daemon's last words that the launcher keeps, in bytes. */
const LAST_WORDS_MAX = 64 * 1024;

let daemonChild = false;
let reportFd = -1;

/** True in the process that launchDaemon() started, once it has called claimDaemon(). */
export function isDaemonChild(): boolean {
  return daemonChild;
}

/**
 * What -d demands of the config; ends the process when it is not there. The original checks the pidfile only and its
 * manual asks for the rest: a daemon without a log has nowhere to tell why it failed.
 * @param pidfile byte string or null
 * @param logfile byte string or null
 * @param syslog the setting `syslog` (0 or 1)
 */
export function requireDaemonSettings(pidfile: string | null, logfile: string | null, syslog: number | boolean): void {
  if (pidfile === null || pidfile === '') die('daemon needs pidfile configured');
  if ((logfile === null || logfile === '') && !syslog) die('daemon needs logfile or syslog configured');
}

/**
 * The daemon's first act: takes the descriptor that reports to the launcher and forgets the marker. Without a launcher
 * at the other end (a marker left in some environment) it does nothing.
 */
export function claimDaemon(): void {
  if (process.env[MARKER] !== String(REPORT_FD)) return;
  delete process.env[MARKER];
  try {
    const stat = fstatSync(REPORT_FD);
    daemonChild = stat.isSocket() || stat.isFIFO();
    if (daemonChild) reportFd = REPORT_FD;
  } catch {
    // no such descriptor: an ordinary start
  }
}

/**
 * The daemon is up: tells the launcher, and lets go of the terminal's last descriptor. Log lines go to the log file and
 * syslog only from here on, as in the original after its fork. Does nothing in a process that has no launcher.
 * @param outcome a line for the user, '' = none
 */
export function daemonReady(outcome = ''): void {
  if (reportFd < 0) return;
  logState.quiet = true;
  const devNull = openSync('/dev/null', 'r+');
  const res = native.dup2(devNull, STDERR_FD);
  if (res < 0) logWarning(`cannot let go of the standard error: ${native.strerror(-res)}`);
  closeSync(devNull);
  try {
    writeSync(reportFd, outcome === '' ? READY_TEXT : `${READY_TEXT}${outcome}\n`);
  } catch {
    // the launcher is gone; the daemon is up all the same
  }
  closeSync(reportFd);
  reportFd = -1;
}

/** Ctrl-C before the daemon is up means the whole start: a half-started daemon must not stay behind. */
function stopTogether(daemon: ChildProcess): void {
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.on(signal, () => daemon.kill('SIGQUIT'));
  }
}

/** Collects what arrives until the end, without bound on how much passes, with one on how much is kept. */
function collect(stream: NodeJS.ReadableStream | null | undefined): { text: string } {
  const kept = { text: '' };
  stream?.on('data', (chunk: Buffer) => {
    kept.text = (kept.text + chunk.toString('latin1')).slice(-LAST_WORDS_MAX);
  });
  return kept;
}

/**
 * Starts the daemon with the command line of this process and ends this process when the outcome is known: with 0 when
 * the daemon is ready, else with the daemon's exit code (1 at least) after printing its last words. Returns at once;
 * the caller must return to Node's event loop. Working directory and umask are left as they are, as in the original.
 */
export function launchDaemon(): void {
  const args = [...process.execArgv, ...process.argv.slice(1)];
  const daemon = spawn(process.execPath, args, {
    detached: true,
    env: { ...process.env, [MARKER]: String(REPORT_FD), ...pinnedCpusEnv() },
    stdio: ['ignore', 'ignore', 'pipe', 'pipe'],
  });
  stopTogether(daemon);
  const lastWords = collect(daemon.stderr);
  const report = collect(daemon.stdio[REPORT_FD] as NodeJS.ReadableStream);

  // both pipes are read to their end before 'close', so nothing that was said is lost
  daemon.on('error', (err) => die(`could not start the daemon: ${err.message}`));
  const leaveIfReady = (): void => {
    if (!report.text.startsWith(READY_TEXT)) return;
    writeSync(STDOUT_FD, report.text.slice(READY_TEXT.length));
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
