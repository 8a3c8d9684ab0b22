/*
 * A simulation: the machine with its clock and network, the processes of the pooler, the servers, the clients, the
 * operator. Each seed gives one sequence of events.
 */

import { Family, type SockAddr } from '../../src/core/base/native';
import { Random } from '../harness/hostile/random';
import type { ErrorSeen } from './answers';
import { Channels } from './channels';
import { SimClient } from './client';
import { Clock, SECOND } from './clock';
import { Cluster } from './cluster';
import { Core } from './core';
import type { Mutation } from './modules';
import { type End, Network } from './network';
import { Operator } from './operator';
import { isJustified } from './oracle';
import { PgServer } from './postgres';
import { type Machine, ProcessEnd, SimProcess } from './process';
import { Reboots } from './reboots';
import {
  AUTH_FILE,
  CONFIG_FILE,
  configText,
  LISTEN_HOST,
  LISTEN_PORT,
  makeCharacter,
  makeScenario,
  type Scenario,
  SOCKET_DIR,
  userlistText,
  type Wanted,
} from './scenario';
import { Targets } from './targets';
import { Trace } from './trace';

/** A fault that the simulation has found. */
export class SimulationFailure extends Error {}

export interface Options {
  seed: number;
  turns: number;
  mutation?: Mutation | null;
  wanted?: Wanted;
  watch?: (line: string) => void;
}

const FIRST_PID = 100;
/** How long a client may wait for anything. usec */
const PATIENCE = 60 * SECOND;
/** Interval between checks of how long clients wait. usec */
const LOOK = SECOND;
/** Longest time between two periods without free descriptors. usec */
const STARVE_EVERY = 40 * SECOND;
/** Log line of a new process after a failed handover. */
const EXPECTED_FATAL = /unexpected EOF|command send failed|safe_recvmsg|login failed|takeover/;
/** With the fault `clock`, the process is stopped in one turn of so many; longest time in usec. */
const HELD_UP_ONE = 1500;
const HELD_UP_MAX = 4 * SECOND;
/** Interval between two steps of the wall clock, and the largest step. usec */
const CLOCK_STEP_EVERY = 20 * SECOND;
const CLOCK_STEP_MAX = 7200 * SECOND;

export class World implements Machine {
  readonly random: Random;
  readonly clock: Clock;
  readonly trace: Trace;
  readonly scenario: Scenario;
  readonly network: Network;
  readonly files = new Map<string, string>();
  readonly names = new Map<string, string[]>([['named.example', ['10.0.0.1']]]);
  readonly processes: SimProcess[] = [];
  readonly hiddenUsers: Map<string, string>;
  readonly clients = new Set<SimClient>();
  private readonly cores = new Map<SimProcess, Core>();
  private readonly lastLines = new Map<SimProcess, string>();
  readonly channels = new Channels(this);
  readonly targets = new Targets(this);
  readonly cluster: Cluster;
  readonly servers: PgServer[];
  readonly reboots: Reboots;
  readonly operator: Operator;
  private clientCount = 0;
  turns = 0;
  failure: string | null = null;
  /** no further faults, and no new clients */
  isCalm = false;

  constructor(private readonly options: Options) {
    this.random = new Random(options.seed);
    this.scenario = makeScenario(this.random, options.wanted);
    this.clock = new Clock(this.random);
    this.trace = new Trace(this.clock);
    this.trace.watch = options.watch ?? null;
    this.network = new Network(this.clock, this.scenario.network);
    this.hiddenUsers = new Map(Object.entries(this.scenario.hidden));
    this.files.set(CONFIG_FILE, configText(this.scenario));
    this.files.set(AUTH_FILE, userlistText(this.scenario));
    this.reboots = new Reboots(this);
    this.operator = new Operator(this);
    this.servers = this.scenario.servers.map(
      ({ host, auth, moods, tls }, at) => new PgServer(this, `pg${at + 1}`, host, auth, moods, tls),
    );
    this.cluster = new Cluster(this, ...(this.servers.slice(-2) as [PgServer, PgServer]));
  }

  /** Ends the simulation with a fault. */
  fail(what: string): never {
    this.failure ??= what;
    throw new SimulationFailure(what);
  }

  passwordOf(user: string): string {
    return this.scenario.passwords[user] ?? this.scenario.hidden[user] ?? '';
  }

  /** Creates a process of the pooler, which does not run yet. */
  spawn(): SimProcess {
    const number = this.processes.length + 1;
    const process = new SimProcess(this, FIRST_PID + number, `pooler${number}`);
    this.processes.push(process);
    const core = new Core(process, this.options.mutation ?? null, (line) => this.logged(process, line));
    this.cores.set(process, core);
    return process;
  }

  private coreOf(process: SimProcess): Core {
    return this.cores.get(process) as Core;
  }

  private logged(process: SimProcess, line: string): void {
    if (!process.alive) return;
    this.trace.add(process.name, line);
    this.lastLines.set(process, `${this.lastLine(process)}\n${line}`.split('\n').slice(-3).join('\n'));
    if (/exception in event handler|exception while disconnecting/.test(line)) this.failure ??= line;
    if (/^FATAL @/.test(line) && !EXPECTED_FATAL.test(line)) this.failure ??= line;
  }

  /** The last lines of its log. */
  lastLine(process: SimProcess): string {
    return this.lastLines.get(process) ?? '';
  }

  /** Starts a process of the pooler. */
  boot(process: SimProcess, reboot: boolean): void {
    process.running = true;
    try {
      this.coreOf(process).boot(reboot);
    } catch (err) {
      if (!(err instanceof ProcessEnd)) throw err;
    } finally {
      process.running = false;
    }
  }

  /** The process that serves. */
  serving(): SimProcess | null {
    return this.processes.find((one) => one.alive && one.booted) ?? null;
  }

  turnEnded(process: SimProcess): void {
    this.turns++;
    process.turns++;
    if (this.failure !== null) throw new SimulationFailure(this.failure);
    const core = this.coreOf(process);
    const broken = process.booted ? (core.broken() ?? this.targets.broken(core.heads)) : null;
    if (broken !== null) this.fail(`${process.name}: ${broken}`);
  }

  delay(): number {
    return this.scenario.faults.clock && !this.isCalm && this.random.one(HELD_UP_ONE)
      ? this.random.below(HELD_UP_MAX)
      : 0;
  }

  accepts(user: string, password: string): boolean {
    return this.passwordOf(user) === password;
  }

  unlink(path: string): void {
    const addr: SockAddr = { family: Family.UNIX, host: path, port: 0 };
    const listener = this.network.find(addr);
    if (listener !== null) this.network.forget(addr, listener);
  }

  /** Another process that can run a turn now, or the time when it can. */
  private others(process: SimProcess): { ready: SimProcess | null; at: number } {
    let at = Number.POSITIVE_INFINITY;
    for (const other of this.processes) {
      if (other === process || !other.alive || !other.booted || other.running) continue;
      if (other.stoppedUntil > this.clock.now) {
        at = Math.min(at, other.stoppedUntil);
        continue;
      }
      const timer = this.coreOf(other).nextTimer(this.clock.now);
      if (other.loop.isReady || timer <= this.clock.now) return { ready: other, at };
      at = Math.min(at, timer);
    }
    return { ready: null, at };
  }

  sleep(process: SimProcess, deadline: number, done: () => boolean): boolean {
    const { clock } = this;
    for (;;) {
      if (this.failure !== null) throw new SimulationFailure(this.failure);
      if (done()) return true;
      if (clock.now >= deadline) return false;
      const { ready, at } = this.others(process);
      if (ready !== null) {
        this.coreOf(ready).turn();
        continue;
      }
      const next = Math.min(clock.nextAt(), deadline, at);
      if (next === Number.POSITIVE_INFINITY) this.fail('nothing will ever happen again');
      clock.advance(next);
    }
  }

  /** Connects to the pooler over the Unix socket. */
  connectConsole(): End {
    return this.network.connect({ family: Family.UNIX, host: `${SOCKET_DIR}/.s.PGSQL.${LISTEN_PORT}`, port: 0 }, '');
  }

  connectClient(): End {
    if (this.random.one(4)) return this.connectConsole();
    const host = `10.2.0.${this.random.between(1, 200)}`;
    return this.network.connect({ family: Family.INET, host: LISTEN_HOST, port: LISTEN_PORT }, host);
  }

  /** Adds new clients until the simulation ends. */
  private invite(): void {
    this.clock.after(this.random.below(2 * this.scenario.arrival), () => {
      if (this.isCalm) return;
      if (this.clients.size < this.scenario.clients) {
        const name = `c${++this.clientCount}`;
        this.clients.add(new SimClient(this, name, makeCharacter(this.random, this.scenario)));
      }
      this.invite();
    });
  }

  clientOver(client: SimClient): void {
    this.clients.delete(client);
  }

  isJustified(client: SimClient, error: ErrorSeen): boolean {
    return isJustified(this, client, error);
  }

  /** Checks that no client waits for ever, for an answer or for a notification. */
  private lookAtQueue(): void {
    this.clock.after(LOOK, () => {
      const { faults, settings } = this.scenario;
      const slowly = faults.clock || faults.reboots || settings.max_db_connections !== 0;
      for (const client of this.clients) {
        if (client.waitingSince > 0 && this.clock.now - client.waitingSince > PATIENCE)
          this.fail(`${client.name} has waited for ${(this.clock.now - client.waitingSince) / SECOND} s`);
        const overdue = client.overdue(slowly);
        if (overdue !== null) this.fail(`${client.name} has not got ${overdue}`);
      }
      this.lookAtQueue();
    });
  }

  /** Changes the wall clock from time to time. */
  private stepClock(): void {
    if (!this.scenario.faults.clock) return;
    this.clock.after(this.random.below(CLOCK_STEP_EVERY), () => {
      const step = this.random.between(-CLOCK_STEP_MAX, CLOCK_STEP_MAX);
      this.trace.add('world', `sets the wall clock by ${Math.round(step / SECOND)} s`);
      this.clock.stepWall(step);
      this.stepClock();
    });
  }

  /** From time to time leaves the process without free descriptors for a while. */
  private starve(): void {
    if (!this.scenario.faults.servers) return;
    this.clock.after(this.random.below(STARVE_EVERY), () => {
      const process = this.serving();
      if (this.isCalm || process === null) return;
      process.loop.fdsMax = process.fdCount + this.random.below(3);
      this.clock.after(this.random.below(2 * SECOND), () => {
        process.loop.fdsMax = Number.POSITIVE_INFINITY;
      });
      this.starve();
    });
  }

  private turnOfMain(): void {
    if (this.failure !== null) throw new SimulationFailure(this.failure);
    this.reboots.check();
    const { now } = this.clock;
    const process = this.processes.find((one) => one.alive && one.booted && one.stoppedUntil <= now);
    if (process !== undefined) this.coreOf(process).turn();
    else if (this.serving() !== null)
      this.clock.advance(Math.min(this.clock.nextAt(), (this.serving() as SimProcess).stoppedUntil));
    else this.reboots.revive();
  }

  /** Runs so many turns, then until all clients have left. */
  run(): void {
    this.boot(this.spawn(), false);
    this.invite();
    this.lookAtQueue();
    this.stepClock();
    this.starve();
    while (this.turns < this.options.turns) this.turnOfMain();
    this.isCalm = true;
    this.trace.add('world', 'calms down');
    for (const client of this.clients) client.retire();
    const end = this.clock.now + 2 * PATIENCE;
    while (this.clients.size > 0) {
      this.turnOfMain();
      if (this.clock.now > end) this.fail(`${this.clients.size} clients are left at the end`);
    }
  }
}
