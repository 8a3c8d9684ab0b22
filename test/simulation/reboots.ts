/*
 * Online reboots: a new process takes over from the old one, which serves meanwhile. Sometimes one of the two is killed
 * in the middle, or stopped for a while; then the other one must continue to serve.
 */
import { SECOND } from './clock';
import type { SimProcess } from './process';
import type { World } from './world';

/** Longest time between two reboots, usec. */
const EVERY = 6 * SECOND;
/** Calls to the addon within which a process is killed: a handover of some dozen connections takes about as many. */
const CALLS_MAX = 3000;
/** How long clients may take to notice that the pooler is gone: some do not read for a while. usec */
const NOTICE_MAX = 10 * SECOND;
/** In some modes the old process refuses a handover. */
const MODES = /already suspended|shutting down|unexpected EOF|login failed|connection reset by peer/;
const STOP_MAX = 15 * SECOND;

/** The fault in a reboot. */
type Accident = 'none' | 'old killed' | 'new killed' | 'old stopped' | 'new stopped';

const ACCIDENTS: Accident[] = [
  'none',
  'none',
  'none',
  'none',
  'old killed',
  'new killed',
  'old stopped',
  'new stopped',
];

export class Reboots {
  private due = false;
  /** a process was stopped for longer than some timeouts */
  wasStopped = false;
  /** a process may be killed at any moment; whether connections are lost depends on the other process */
  private isUncertain = false;
  /** clients that lost their connections meanwhile */
  private readonly lost: string[] = [];
  private wasKilled = false;
  /** when no process was left, usec; 0 = never */
  private goneAt = 0;
  succeeded = 0;
  failed = 0;

  constructor(private readonly world: World) {
    if (world.scenario.faults.reboots) this.plan();
  }

  private plan(): void {
    const { clock, random } = this.world;
    clock.after(random.below(EVERY), () => {
      this.due = !this.world.isCalm;
    });
  }

  /** Called between two turns: reboots if a reboot is due. */
  check(): void {
    if (!this.due) return;
    this.due = false;
    const { random, trace } = this.world;
    const old = this.world.serving();
    if (old === null) return;
    const accident = random.pick(ACCIDENTS);
    trace.add('world', `reboots, accident: ${accident}`);
    const born = this.world.spawn();
    if (accident === 'old killed') old.callsToLive = 1 + random.below(CALLS_MAX);
    if (accident === 'new killed') born.callsToLive = 1 + random.below(CALLS_MAX);
    if (accident === 'old stopped') this.stopSoon(old);
    if (accident === 'new stopped') born.callsToStop = 1 + random.below(CALLS_MAX);
    this.isUncertain = accident.endsWith('killed');
    this.wasKilled ||= this.isUncertain;
    this.wasStopped ||= accident.endsWith('stopped');
    this.world.boot(born, true);
    old.callsToLive = born.callsToLive = born.callsToStop = -1;
    this.settle(old, born, accident);
    this.plan();
  }

  private stopSoon(process: SimProcess): void {
    const { clock, random } = this.world;
    clock.after(random.below(SECOND / 10), () => {
      if (!process.alive) return;
      this.world.trace.add(process.name, 'is stopped');
      process.stoppedUntil = clock.now + random.below(STOP_MAX);
    });
  }

  /** True if the connection of a client may end without an error, because no pooler is left. */
  mayLose(client: string): boolean {
    const isEnding = this.world.operator.has('SHUTDOWN');
    if (this.isUncertain && !isEnding) this.lost.push(client);
    return isEnding || this.isUncertain || (this.goneAt > 0 && this.world.clock.now - this.goneAt < NOTICE_MAX);
  }

  /** Handles the end of a reboot: the new process has booted, or one of the two has ended. */
  private settle(old: SimProcess, born: SimProcess, accident: Accident): void {
    const { world } = this;
    this.isUncertain = false;
    const lost = this.lost.splice(0);
    if (born.alive) {
      if (lost.length > 0) world.fail(`the new process lives, but lost ${lost.join(', ')}`);
      this.succeeded++;
      if (old.alive && accident !== 'old stopped') world.fail(`${old.name} has given everything and does not end`);
      return;
    }
    this.failed++;
    if (accident === 'none' && !this.mayFail(born)) world.fail(`the reboot failed: ${world.lastLine(born)}`);
    if (!old.alive) this.revive();
  }

  /** A reboot may fail because of the mode of the old process, or if one of the two is stopped for too long. */
  private mayFail(born: SimProcess): boolean {
    const { operator, scenario } = this.world;
    const why = this.world.lastLine(born);
    if (scenario.faults.clock && /handover timeout|has not answered|unexpected EOF/.test(why)) return true;
    if (/handover ended by SIGUSR2/.test(why)) return true;
    // it is stopped, or has no free descriptor
    const mayBeMute = this.wasStopped || scenario.faults.servers;
    if (mayBeMute && /the old process does not answer/.test(why)) return true;
    if (operator.has('KILL_CLIENT') && /admin forced disconnect/.test(why)) return true;
    return (operator.has('SUSPEND') || operator.has('SHUTDOWN')) && MODES.test(why);
  }

  /** Starts a process, as a service manager does, if none is left. */
  revive(): void {
    const { world } = this;
    // the old process may have received the last command of the new one after the new one was killed
    if (!this.wasKilled && !world.operator.has('SHUTDOWN')) world.fail('no process of the pooler is left');
    this.goneAt = world.clock.now;
    world.boot(world.spawn(), false);
  }
}
