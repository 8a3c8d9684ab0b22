#!/usr/bin/env node
/* tsbouncer's main program: the order of starting, and the loop. */

import './core/base/compile-ahead';

import { writeSync } from 'node:fs';
import { adminSetup } from './admin/admin';
import { checkConfig } from './cli/check';
import {
  claimDaemon,
  daemonReady,
  daemonServes,
  isDaemonChild,
  launchDaemon,
  requireDaemonSettings,
} from './cli/daemon';
import { mkauth } from './cli/mkauth';
import { type Options, parseOptions } from './cli/options';
import { checkPidfile, writePidfile } from './cli/pidfile';
import { nameProcess, programName } from './cli/process-name';
import { top } from './cli/top';
import { changeUser } from './cli/user';
import { allowedCpus, pinToOneCpu } from './core/base/cpu-affinity';
import { keepYoungGenerationSmall } from './core/base/heap';
import { beginTakeover, isTakingOver } from './core/base/lifecycle';
import { nextOf } from './core/base/list';
import { atExit, die, endProcessWith, exitProcess, fatal, logInfo, logState, logWarning } from './core/base/log';
import { native, startLoop } from './core/base/native';
import { notify, notifySetup } from './core/base/systemd';
import { TSBOUNCER_VERSION } from './core/base/version';
import { IO_THREADS_AUTO, LOOP_BACKENDS } from './core/config/choices';
import { shownVersion } from './core/config/compat';
import { compatVariableError } from './core/config/compat-version';
import { cf, settingHooks } from './core/config/settings';
import { mainLoopOnce } from './core/life/mainloop';
import { janitorSetup } from './core/life/maint';
import { applyLogSettings, loadConfig } from './core/life/reload';
import { statsSetup } from './core/life/stats-log';
import { checkOldProcessUnix, poolerSetup, poolerTuneAccept, poolerTuneSockets } from './core/net/pooler';
import { sbufTlsSetup } from './core/net/tls';
import { databaseList } from './core/pool/database';
import { userCount } from './core/pool/user';
import { initVarLookup } from './core/pool/varcache';
import { metricsSetup } from './core/report/metrics';
import { reportAllPools } from './core/report/metrics-report';
import { signalSetup } from './signals';
import { crashPoint } from './takeover/crash-point';
import { takeoverFinish, takeoverPart1 } from './takeover/take';
import { wireUpcalls } from './wire';

/** Most bytes of one receive: large enough that COPY costs few system calls, small enough to stay in the CPU cache. */
const RECV_MAX = 64 * 1024;

function readOptions(): Options {
  const options = parseOptions(process.argv.slice(2), programName());
  if (!('exitCode' in options)) return options;
  if (options.stdout !== '') writeSync(1, options.stdout);
  if (options.stderr !== '') writeSync(2, options.stderr);
  process.exit(options.exitCode);
}

/** A core dump has the secrets that are in memory: passwords, keys of TLS. */
function applyCoreDumps(): void {
  const res = native.setDumpable(cf.coreDumps === 0 ? 0 : 1);
  if (res < 0) logWarning(`cannot apply core_dumps: ${native.strerror(-res)}`);
}

/** Applies a changed setting that needs more than its new value in `cf`. */
function settingChanged(name: string): void {
  if (name === 'tcp_defer_accept') poolerTuneAccept(cf.tcpDeferAccept !== 0);
  else if (name.startsWith('tcp_')) poolerTuneSockets();
  else if (name === 'stats_period') statsSetup();
  else if (name === 'core_dumps') applyCoreDumps();
  else if (name.startsWith('metrics_')) metricsSetup();
  else if (name === 'default_pool_size') reportAllPools();
  else if (name === 'verbose' || name.startsWith('syslog') || name.startsWith('log')) applyLogSettings();
}

function checkLimits(): void {
  const [soft, hard] = native.rlimitNofile();
  let fdCount = cf.maxClientConn + 10;
  for (let db = databaseList.head; db !== null; db = nextOf(db)) {
    const size = db.config.poolSize >= 0 ? db.config.poolSize : cf.defaultPoolSize;
    fdCount += db.forcedUser !== null ? size : size * userCount();
  }
  logInfo(
    `kernel file descriptor limit: ${soft} (hard: ${hard}); max_client_conn: ${cf.maxClientConn}, ` +
      `max expected fd use: ${fdCount}`,
  );
}

/** The number of threads that move bytes. */
function ioThreads(): number {
  if (cf.ioThreads !== IO_THREADS_AUTO) return cf.ioThreads;
  const cpus = allowedCpus();
  return cpus <= 2 ? 0 : Math.min(cpus - 1, 8);
}

/** Reads the command line and the config, and sets up what depends on nothing else. @returns the loop's backend */
function prepare(options: Options): string {
  if (options.reboot) {
    pinToOneCpu();
    beginTakeover();
  }
  logState.quiet = options.quiet;
  cf.verbose = options.verbose;
  logState.verbose = options.verbose;
  cf.configFile = options.configFile;

  keepYoungGenerationSmall();
  wireUpcalls();
  if (compatVariableError !== null) die(compatVariableError);
  if (!loadConfig(true)) die('cannot load config file');
  applyCoreDumps();
  const threads = ioThreads();
  const backend = startLoop({
    backend: LOOP_BACKENDS[cf.loopBackend] as string,
    recvMax: RECV_MAX,
    threads,
    load: cf.ioThreadsLoad,
    handshakeThreads: Math.max(1, threads),
  });
  // Node writes profiles only when it ends by itself
  if (!process.execArgv.some((option) => option.includes('-prof'))) endProcessWith(native.exitNow);
  atExit(() => crashPoint('ended'));
  atExit(() => native.loopEnd());
  initVarLookup(cf.trackExtraParameters);
  if (!sbufTlsSetup().ok) die('TLS setup failed');
  return backend;
}

/** Takes over all sockets of the old process. @returns false if there is no old process: this process starts alone */
function takeOver(options: Options): boolean {
  if (isTakingOver() && takeoverPart1(checkOldProcessUnix)) return true;
  if (!options.reboot && checkOldProcessUnix()) die('unix socket is in use, cannot continue');
  checkPidfile(cf.pidfile);
  return false;
}

/** Everything between the config and the first turn of the loop. */
function start(options: Options, backend: string): void {
  const user = options.user ?? cf.user;
  if (user !== null && user !== '') changeUser(user);
  // a change of the user has set it back
  applyCoreDumps();
  if (process.getuid?.() === 0) die('PgBouncer should not run as root');
  adminSetup();
  notifySetup();
  const takeover = takeOver(options);

  checkLimits();
  settingHooks.onSettingChanged = settingChanged;
  signalSetup();
  // not before: a process of that name must survive a SIGHUP to all processes of that name
  nameProcess(programName());
  janitorSetup();
  statsSetup();
  let outcome = '';
  if (takeover) outcome = takeoverFinish(daemonServes);
  else poolerSetup();
  writePidfile(cf.pidfile, takeover);
  metricsSetup();
  const refusal = native.loopRefusal();
  if (refusal !== '') logInfo(`io_uring is not available, using ${backend}: ${refusal}`);
  logInfo(
    `process up: tsbouncer ${TSBOUNCER_VERSION} (compatible with PgBouncer ${shownVersion()}), ` +
      `${native.libuvVersion()} (${backend}), tls: OpenSSL ${process.versions.openssl}, node ${process.version}`,
  );
  if (takeover) logInfo(outcome);
  notify('READY=1', `MAINPID=${process.pid}`, 'STATUS=accepting connections');
  daemonReady(outcome);
}

function main(): void {
  if (process.argv[2] === 'mkauth') {
    mkauth(process.argv.slice(3)).then(process.exit);
    return;
  }
  if (process.argv[2] === 'top') {
    top(process.argv.slice(3)).then(process.exit);
    return;
  }
  claimDaemon();
  const options = readOptions();
  if (options.check) {
    checkConfig(options.configFile, options).then(process.exit);
    return;
  }
  const backend = prepare(options);
  if (options.daemon) {
    requireDaemonSettings(cf.pidfile, cf.logfile, cf.syslog);
    if (!isDaemonChild()) {
      // The daemon does the rest, and its errors are printed here. The user is changed later, because the new user may
      // have no permission to read this program.
      launchDaemon();
      return;
    }
  }
  start(options, backend);

  try {
    while (cfShutdown < 2) mainLoopOnce();
  } catch (err) {
    fatal(`main loop: ${err instanceof Error ? (err.stack ?? err.message) : String(err)}`);
  }
  exitProcess(0);
}

main();
