/*
 * Online reboots: a new process takes everything from the old one, which works meanwhile. Now and then one of them is killed in the
 * middle, or stopped for a while; then somebody has to be left who serves.
 */
import { SECOND } from './clock';
import type { SimProcess } from './process';
import type { World } from './world';

/** usec between two reboots, most */
const EVERY = 6 * SECOND;
/** Calls to the addon within which a process is killed: a handover of some dozen connections takes about as many. */
const CALLS_MAX = 3000;
/** usec within which everybody notices that the pooler is gone: some do not read for a while */
const NOTICE_MAX = 10 * SECOND;
/** The old process does not give itself away in every mode. */
const MODES = /already suspended|shutting down|unexpected EOF|login failed|connection reset by peer/;
const STOP_MAX = 15 * SECOND;

/** What goes wrong in a reboot. */
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
  /** a process stood still for a while, longer than some timeouts */
  wasStopped = false;
  /** one of the processes may be killed at any moment: whether that costs connections depends on the other */
  private isUncertain = false;
  /** clients that lost their connections meanwhile */
  private readonly lost: string[] = [];
  private wasKilled = false;
  /** usec when every process was gone at once, 0 = never */
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

  /** Called between two turns: reboots when it is time. */
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

  /** True when the connection of a client may end without a word, because there is no pooler. */
  mayLose(client: string): boolean {
    const isEnding = this.world.operator.has('SHUTDOWN');
    if (this.isUncertain && !isEnding) this.lost.push(client);
    return isEnding || this.isUncertain || (this.goneAt > 0 && this.world.clock.now - this.goneAt < NOTICE_MAX);
  }

  /** The new process is up, or one of the two has ended. */
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

  /** A reboot may fail because of the mode that the old process is in, or when one of the two is held up for too long. */
  private mayFail(born: SimProcess): boolean {
    const { operator, scenario } = this.world;
    const why = this.world.lastLine(born);
    if (scenario.faults.clock && /handover timeout|has not answered|unexpected EOF/.test(why)) return true;
    if (/handover ended by SIGUSR2/.test(why)) return true;
    return (operator.has('SUSPEND') || operator.has('SHUTDOWN')) && MODES.test(why);
  }

  /** No process is left: the service manager starts one. */
  revive(): void {
    const { world } = this;
    // the old one may have got the last word of the new one after that was killed
    if (!this.wasKilled && !world.operator.has('SHUTDOWN')) world.fail('no process of the pooler is left');
    this.goneAt = world.clock.now;
    world.boot(world.spawn(), false);
  }
}
