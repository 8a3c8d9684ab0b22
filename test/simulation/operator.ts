/*
 * The operator at the console: sends random commands, and undoes those with a lasting effect: a pause, a suspension, a
 * disabled database.
 */

import { constants } from 'node:os';
import { Ev } from '../../src/core/base/native';
import { Line } from './actor';
import { MS, SECOND } from './clock';
import { CONFIG_FILE, configText, DATABASES } from './scenario';
import { cstring, errorFields, Packets, PROTOCOL_30, packet, startup } from './wire';
import type { World } from './world';

/** Longest time between two commands, usec. */
const EVERY = 2 * SECOND;
/** Shortest and longest time until a command is undone, usec. */
const LASTS: [number, number] = [20 * MS, 4 * SECOND];
/** Longest time of a command; PAUSE waits for transactions. usec */
const PATIENCE = 60 * SECOND;
const TRIES_MAX = 100;
/** One command in so many ends the process. */
const SHUTDOWN_ONE = 60;

const SHOWS = [
  'CLIENTS',
  'SERVERS',
  'SOCKETS',
  'POOLS',
  'DATABASES',
  'USERS',
  'STATS',
  'TOTALS',
  'LISTS',
  'MEM',
  'CONFIG',
  'DNS_HOSTS',
  'STATE',
];

/** Errors with which a command may fail: in another mode, or because the database has changed. */
const REFUSALS =
  /^(already suspended\/paused|cannot suspend with paused databases|pooler is not paused\/suspended|database \S+ is not paused|no such database: \S+|client not found|pooler is shutting down|canceling statement due to RESUME)$/;

const AS_COMMAND = {
  SIGHUP: 'RELOAD',
  SIGUSR1: 'PAUSE',
  SIGUSR2: 'RESUME',
  SIGTERM: 'SHUTDOWN',
  SIGINT: 'SHUTDOWN',
  SIGQUIT: 'SHUTDOWN',
};

/** Lasting effects, by the command that undoes them. */
type Undo = 'RESUME' | 'ENABLE';

export class Operator {
  /** names of the commands that have been executed */
  private readonly done = new Set<string>();

  constructor(private readonly world: World) {
    if (world.scenario.faults.console) this.plan();
  }

  has(word: string): boolean {
    return this.done.has(word);
  }

  private plan(): void {
    const { clock, random } = this.world;
    clock.after(random.below(EVERY), () => {
      if (this.world.isCalm) return;
      this.act();
      this.plan();
    });
  }

  private act(): void {
    const { clock, random } = this.world;
    const db = random.pick(DATABASES);
    if (random.one(SHUTDOWN_ONE)) {
      this.shutdown();
      return;
    }
    switch (random.below(15)) {
      case 0:
        this.undoLater('PAUSE', '', 'RESUME');
        return;
      case 1:
        this.undoLater('PAUSE', random.one(2) ? db : 'auto1', 'RESUME');
        return;
      case 2:
        this.suspend();
        return;
      case 3:
        this.undoLater('KILL', db, 'RESUME');
        return;
      case 4:
        this.undoLater('DISABLE', db, 'ENABLE');
        return;
      case 5:
        this.command('RECONNECT', random.one(3) ? '' : db);
        return;
      case 6:
        this.command('WAIT_CLOSE', random.one(3) ? '' : db);
        return;
      case 7:
        this.reload();
        return;
      case 8:
        this.command('KILL_CLIENT', String(random.below(200)));
        return;
      case 9:
        this.command('SET', `default_pool_size = ${random.between(1, 4)}`);
        return;
      case 10:
        this.signal('SIGHUP');
        return;
      case 11:
        this.signal('SIGUSR1');
        clock.after(random.between(...LASTS), () => this.signal('SIGUSR2'));
        return;
      case 12:
        this.command('RECONNECT', random.pick(['CLIENTS', `CLIENTS ${db} OVER 3 s`]));
        return;
      default:
        this.command('SHOW', random.pick(SHOWS));
    }
  }

  /** Sends a signal that has the effect of a command. */
  private signal(name: keyof typeof AS_COMMAND): void {
    const process = this.world.serving();
    if (process === null) return;
    this.world.trace.add('operator', name);
    this.done.add(AS_COMMAND[name]);
    process.loop.post(Ev.SIGNAL, constants.signals[name], 0);
  }

  /** Ends the process, at once or when its clients or servers are gone. Then another process is started. */
  private shutdown(): void {
    const { random } = this.world;
    this.done.add('SHUTDOWN');
    if (random.one(2)) this.signal(random.pick(['SIGTERM', 'SIGINT', 'SIGQUIT'] as const));
    else this.command('SHUTDOWN', random.pick(['', 'WAIT_FOR_CLIENTS', 'WAIT_FOR_SERVERS', 'WAIT_FOR_TRANSACTIONS']));
  }

  private undoLater(word: string, db: string, undo: Undo): void {
    const { clock, random } = this.world;
    // only once it has been executed
    const later = () => clock.after(random.between(...LASTS), () => this.undo(undo, db, 0));
    this.command(word, db, () => {}, later);
  }

  /** Repeats a command until it is answered, because a reboot may interrupt it. */
  private undo(word: Undo, db: string, tries: number): void {
    if (tries > TRIES_MAX) this.world.fail(`${word} ${db} cannot be done`);
    this.command(word, db, () => {
      this.world.clock.after(SECOND / 10, () => this.undo(word, db, tries + 1));
    });
  }

  /**
   * While suspended, the process accepts no connection. So the connection for RESUME is opened first. That of SUSPEND stays
   * open, because the suspension ends with it.
   */
  private suspend(): void {
    const { clock, random, trace } = this.world;
    const rescue = new Visit(
      this.world,
      () => {
        const suspender = this.command('SUSPEND', '');
        suspender.stays = true;
        clock.after(random.between(...LASTS), () => {
          if (random.one(2)) suspender.leave();
          trace.add('operator', 'RESUME');
          rescue.ask('RESUME');
          clock.after(SECOND, () => suspender.leave());
        });
      },
      () => this.undo('RESUME', '', 0),
    );
  }

  /** Changes settings that RELOAD applies without an effect on clients, and reloads. */
  private reload(): void {
    const { files, random, scenario } = this.world;
    const { settings, databases } = scenario;
    settings.default_pool_size = random.between(1, 4);
    settings.min_pool_size = random.below(3);
    settings.max_db_connections = random.pick([0, 3]);
    settings.server_idle_timeout = random.pick([1, 5, 600]);
    databases.beta = `host=10.0.0.${random.between(2, 3)} port=5432 pool_size=${random.between(1, 3)}`;
    files.set(CONFIG_FILE, configText(scenario));
    this.command('RELOAD', '');
  }

  /**
   * @param failed called if the connection to the console ends before the command has been answered
   * @param sent called when the command has been sent
   */
  private command(word: string, arg: string, failed = () => {}, sent: () => unknown = () => {}): Visit {
    const sql = `${word} ${arg}`.trim();
    this.world.trace.add('operator', sql);
    const visit = new Visit(
      this.world,
      () => {
        this.done.add(word);
        visit.ask(sql);
        sent();
      },
      failed,
    );
    return visit;
  }
}

/** One connection to the console, for one command. */
class Visit {
  private readonly line: Line;
  private readonly packets = new Packets(false);
  private sql = '';
  private isOver = false;
  /** the connection stays open when the command has been answered */
  stays = false;

  /**
   * @param onReady called when it has logged in
   * @param failed called if it ends before its command has been answered
   */
  constructor(
    private readonly world: World,
    private readonly onReady: () => void,
    private readonly failed: () => void,
  ) {
    const end = world.connectConsole();
    this.line = new Line(
      world.clock,
      end,
      (bytes) => this.arrive(bytes),
      () => this.ended(),
      (errno) => {
        if (errno !== 0) this.ended();
        else this.line.send(startup(PROTOCOL_30, { user: 'pgbouncer', database: 'pgbouncer' }));
      },
    );
    world.clock.after(PATIENCE, () => {
      if (!this.isOver) world.fail(`the console has not answered '${this.sql}' for ${PATIENCE / SECOND} s`);
    });
  }

  ask(sql: string): void {
    this.sql = sql;
    this.line.send(packet('Q', cstring(`${sql};`)));
  }

  private ended(): void {
    if (this.isOver) return;
    this.isOver = true;
    const { reboots, operator } = this.world;
    // a suspension that takes too long closes logins
    const expected =
      (this.sql === '' && operator.has('SUSPEND')) || operator.has('KILL_CLIENT') || operator.has('SHUTDOWN');
    if (!expected && !reboots.mayLose('the operator'))
      this.world.fail(`the console ended the connection instead of answering '${this.sql}'`);
    this.failed();
  }

  private arrive(bytes: Buffer): void {
    this.packets.push(bytes);
    for (let next = this.packets.next(); next !== null && !this.isOver; next = this.packets.next()) {
      const [type, body] = next;
      if (type === 'E') this.refused(errorFields(body));
      else if (type === 'Z') this.ready();
    }
  }

  private refused({ S = '', M = '' }: Record<string, string>): void {
    this.world.trace.add('operator', `is told: ${M}`);
    if (S !== 'FATAL' && !REFUSALS.test(M)) this.world.fail(`the console refused '${this.sql}': ${M}`);
  }

  private ready(): void {
    if (this.sql === '') {
      this.onReady();
      return;
    }
    this.isOver = true;
    if (!this.stays) this.line.close();
  }

  leave(): void {
    this.isOver = true;
    this.line.close();
  }
}
