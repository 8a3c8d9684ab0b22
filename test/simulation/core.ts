/*
 * The pooler in a process of the simulation: its modules, the order of starting (as in src/main.ts), and one turn of
 * its loop.
 */
import { brokenInvariantOf, Timeouts } from './invariants';
import { Modules, type Mutation } from './modules';
import { ProcessEnd, type SimProcess } from './process';
import { CONFIG_FILE } from './scenario';
import { Shares } from './shares';
import { surroundingsOf } from './surroundings';

const RECV_MAX = 64 * 1024;

/** A log line without its time stamp and process id. */
function withoutStamp(line: string): string {
  return line.replace(/^\S+ \S+ \S+ \[\d+\] /, '');
}

/** The modules that the simulation itself uses. */
function modulesOf(modules: Modules) {
  return {
    heads: {
      lifecycle: modules.load<typeof import('../../src/core/base/lifecycle')>('core/base/lifecycle'),
      timer: modules.load<typeof import('../../src/core/base/timer')>('core/base/timer'),
      time: modules.load<typeof import('../../src/core/base/time')>('core/base/time'),
      log: modules.load<typeof import('../../src/core/base/log')>('core/base/log'),
      settings: modules.load<typeof import('../../src/core/config/settings')>('core/config/settings'),
      database: modules.load<typeof import('../../src/core/pool/database')>('core/pool/database'),
      pool: modules.load<typeof import('../../src/core/pool/pool')>('core/pool/pool'),
      admission: modules.load<typeof import('../../src/core/pool/admission')>('core/pool/admission'),
      states: modules.load<typeof import('../../src/core/pool/states')>('core/pool/states'),
      user: modules.load<typeof import('../../src/core/pool/user')>('core/pool/user'),
      pooler: modules.load<typeof import('../../src/core/net/pooler')>('core/net/pooler'),
      sbuf: modules.load<typeof import('../../src/core/net/sbuf')>('core/net/sbuf'),
      settling: modules.load<typeof import('../../src/core/link/settling')>('core/link/settling'),
      mainloop: modules.load<typeof import('../../src/core/life/mainloop')>('core/life/mainloop'),
      invariants: modules.load<typeof import('../../src/core/life/invariants')>('core/life/invariants'),
    },
  };
}

export type Heads = ReturnType<typeof modulesOf>['heads'];

export class Core {
  private readonly modules: Modules;
  readonly heads: Heads;
  private readonly timeouts = new Timeouts();
  private readonly shares = new Shares();

  constructor(
    private readonly process: SimProcess,
    mutation: Mutation | null,
    onLog: (line: string) => void,
  ) {
    this.modules = new Modules(
      surroundingsOf(process, (line) => onLog(withoutStamp(line))),
      mutation,
    );
    this.heads = modulesOf(this.modules).heads;
  }

  /** Starts as main() does. @param reboot with -R */
  boot(reboot: boolean): void {
    const { heads, modules } = this;
    const { cf, settingHooks } = heads.settings;
    if (reboot) heads.lifecycle.beginTakeover();
    cf.configFile = CONFIG_FILE;
    modules.load<typeof import('../../src/wire')>('wire').wireUpcalls();
    this.process.native.loopInit('auto', RECV_MAX);
    const reload = modules.load<typeof import('../../src/core/life/reload')>('core/life/reload');
    if (!reload.loadConfig(true)) heads.log.die('cannot load config file');
    modules
      .load<typeof import('../../src/core/pool/varcache')>('core/pool/varcache')
      .initVarLookup(cf.trackExtraParameters);
    if (!modules.load<typeof import('../../src/core/net/tls')>('core/net/tls').sbufTlsSetup().ok)
      heads.log.die('TLS setup failed');
    modules.load<typeof import('../../src/admin/admin')>('admin/admin').adminSetup();
    const { pooler } = heads;
    const take = modules.load<typeof import('../../src/takeover/take')>('takeover/take');
    const takeover = reboot && take.takeoverPart1(pooler.checkOldProcessUnix);
    if (!takeover && !reboot && pooler.checkOldProcessUnix()) heads.log.die('unix socket is in use, cannot continue');
    const stats = modules.load<typeof import('../../src/core/life/stats-log')>('core/life/stats-log');
    settingHooks.onSettingChanged = (name) => {
      if (name === 'stats_period') stats.statsSetup();
      else if (name === 'verbose') reload.applyLogSettings();
    };
    modules.load<typeof import('../../src/signals')>('signals').signalSetup();
    modules.load<typeof import('../../src/core/life/maint')>('core/life/maint').janitorSetup();
    stats.statsSetup();
    if (takeover) take.takeoverFinish(() => {});
    else pooler.poolerSetup();
    this.process.booted = true;
  }

  /** Runs one turn of the main loop, in which the process may end. */
  turn(): void {
    const { process, heads } = this;
    process.running = true;
    try {
      heads.mainloop.mainLoopOnce();
      if (this.modules.globals.cfShutdown === 2) heads.log.exitProcess(0);
    } catch (err) {
      if (!(err instanceof ProcessEnd)) throw err;
    } finally {
      process.running = false;
    }
  }

  /** The invariant that is violated at the end of a turn, or null. */
  broken(): string | null {
    return brokenInvariantOf(this.heads, this.timeouts) ?? this.shares.broken(this.heads) ?? this.brokenDescriptors();
  }

  /** Checks that every descriptor belongs to a socket or a listener. */
  private brokenDescriptors(): string | null {
    let known = 0;
    for (const sk of this.heads.sbuf.socketsByHandle) if (sk !== null) known++;
    this.heads.pooler.forEachPoolerFd(() => {
      known++;
      return true;
    });
    const { fdCount } = this.process;
    return fdCount === known ? null : `${fdCount} descriptors are open, for ${known} sockets`;
  }

  /** Monotonic time of its next timer, usec. */
  nextTimer(now: number): number {
    const ms = this.heads.timer.timerWaitMs(now);
    return ms < 0 ? Number.POSITIVE_INFINITY : now + ms * 1000;
  }
}
