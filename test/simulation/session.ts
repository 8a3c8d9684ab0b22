/*
 * One connection to a simulated PostgreSQL server: login, then both query protocols, one request after another. A
 * statement consists of a command and of parameters as name=value. Each answer contains the id of the request and the
 * name of the session, so that a client can tell which request and session it belongs to.
 */
import { Line } from './actor';
import type { Change } from './channels';
import type { Event } from './clock';
import type { End } from './network';
import type { PgServer } from './postgres';
import { Login } from './session-login';
import { report, SessionVars } from './session-vars';
import {
  bindParameter,
  columnsPacket,
  cstring,
  errorPacket,
  field,
  int16,
  int32,
  Packets,
  packet,
  readCstring,
  rowPacket,
} from './wire';

/** Longest duration of a request, usec. */
const WORK_MAX = 1500;
/** What a standby refuses. */
const WRITES = new Set(['WRITE', 'LISTEN', 'NOTIFY']);
const COPY_IN = `\0${int16(0)}`;

export class Session {
  readonly name: string;
  readonly key: string;
  readonly pid: number;
  private readonly line: Line;
  readonly entry: Login;
  private readonly packets = new Packets(true);
  private phase: 'login' | 'ready' | 'over' = 'login';
  private status: 'I' | 'T' | 'E' = 'I';
  /** the client that the open transaction belongs to */
  private owner = '';
  private skipping = false;
  private copying: 'no' | 'simple' | 'extended' = 'no';
  private readonly statements = new Map<string, string>();
  private readonly portals = new Map<string, string>();
  private readonly vars = new SessionVars();
  private out = '';
  private notifications = '';
  /** what the transaction has done to channels */
  private changes: Change[] = [];
  /** id of the last request */
  private lastId = '';
  /** the role that was reported at the login, and the role that was reported last; null = none */
  welcomedAs: boolean | null = null;
  private toldRole: boolean | null = null;
  /** the pooler has ended the connection */
  wasLeft = false;
  /** the end of the request in progress */
  private busy: Event | null = null;
  private finishBusy: ((canceled: boolean) => void) | null = null;

  constructor(
    private readonly server: PgServer,
    end: End,
    number: number,
  ) {
    this.pid = 10_000 + number;
    this.name = `${server.name}/${number}`;
    const { random } = server.world;
    this.key = int32(this.pid) + int32(random.u32());
    this.line = new Line(
      server.world.clock,
      end,
      (bytes) => this.arrive(bytes),
      () => {
        this.wasLeft = true;
        this.gone();
      },
    );
    this.entry = new Login(this.name, server, this.line, this.packets, this.vars);
    this.line.readable();
  }

  private arrive(bytes: Buffer): void {
    this.packets.push(bytes);
    this.work();
  }

  private gone(): void {
    this.phase = 'over';
    this.server.world.channels.forget(this);
    this.server.world.clock.cancel(this.busy);
    this.busy = null;
    this.server.forget(this);
  }

  /** Ends the session, with an error or without. */
  end(lastWord: string | null, broken: boolean): void {
    if (this.phase === 'over') return;
    if (lastWord !== null) this.line.send(lastWord);
    if (broken) this.line.reset();
    else this.line.closeWhenSent();
    this.gone();
  }

  private leave(): void {
    this.wasLeft = true;
    this.end(null, false);
  }

  get isReady(): boolean {
    return this.phase === 'ready';
  }

  get serverName(): string {
    return this.server.name;
  }

  /** Sends a notification now, or before the next ReadyForQuery outside a transaction. */
  notify(bytes: string): void {
    this.notifications += bytes;
    const rests = this.phase === 'ready' && this.busy === null && this.copying === 'no' && this.out === '';
    if (!rests || this.status !== 'I' || this.skipping) return;
    this.out = this.notifications;
    this.notifications = '';
    this.flush();
  }

  /** True while a request is in progress. */
  get isBusy(): boolean {
    return this.busy !== null;
  }

  /** Handles a cancel request with its key. */
  cancel(): void {
    if (this.finishBusy === null) return;
    const finish = this.finishBusy;
    this.server.world.clock.cancel(this.busy);
    this.busy = null;
    this.finishBusy = null;
    finish(true);
    this.work();
  }

  private work(): void {
    while (this.busy === null && this.phase !== 'over') {
      const next = this.packets.next();
      if (next === null) return;
      if (this.phase === 'ready') this.handle(...next);
      else this.login(...next);
    }
  }

  private after(usec: number, finish: (canceled: boolean) => void): void {
    this.finishBusy = finish;
    this.busy = this.server.world.clock.after(usec, () => {
      this.busy = null;
      this.finishBusy = null;
      finish(false);
      this.work();
    });
  }

  private flush(): void {
    if (this.out === '') return;
    this.line.send(this.out);
    this.out = '';
  }

  private login(type: string, body: string): void {
    const next = type === 'X' ? 'left' : this.entry.take(body);
    if (next === 'left') this.leave();
    else if (next === 'silence') this.after(Number.MAX_SAFE_INTEGER, () => {});
    else if (next === 'in') this.welcome();
    else if (next !== 'another packet') this.end(next.end, false);
  }

  private welcome(): void {
    this.phase = 'ready';
    this.welcomedAs = this.server.standby;
    this.out = packet('R', int32(0)) + this.vars.all() + this.role() + packet('K', this.key) + packet('Z', 'I');
    this.flush();
  }

  private handle(type: string, body: string): void {
    if (type === 'X') {
      this.leave();
    } else if (this.copying !== 'no') {
      this.copy(type);
    } else if (type === 'S') {
      this.skipping = false;
      this.ready();
    } else if (!this.skipping) {
      if (type === 'Q') this.simple(readCstring(body, 0));
      else this.extended(type, body);
    }
  }

  private ready(): void {
    if (this.status === 'I') {
      this.commit();
      this.out += this.notifications;
      this.notifications = '';
    }
    if (this.server.tellsRole) this.out += this.role();
    this.out += packet('Z', this.status);
    this.flush();
  }

  /** Reports the role of the server, if it has changed. */
  private role(): string {
    const { standby, world } = this.server;
    if (standby === null || standby === this.toldRole) return '';
    const readOnly = this.toldRole === null ? report('default_transaction_read_only', 'off') : '';
    if (this.toldRole !== null) world.targets.told(this.entry.database, this.serverName, standby);
    this.toldRole = standby;
    return report('in_hot_standby', standby ? 'on' : 'off') + readOnly;
  }

  /** A standby does not write. */
  private refuse(simple: boolean): void {
    this.server.world.targets.refused(this.entry.database, this.serverName);
    this.fail('25006', 'cannot execute this during recovery', simple);
  }

  /** The end of a transaction, which has not failed. */
  private commit(): void {
    const { changes } = this;
    this.changes = [];
    const [client, unit] = this.lastId.split('.') as [string, string | undefined];
    if (changes.length > 0) this.server.world.channels.commit(this, client, Number(unit), changes);
  }

  private fail(code: string, text: string, simple: boolean): void {
    this.out += errorPacket('ERROR', code, text);
    if (this.status === 'I') this.changes = [];
    if (this.status === 'T') this.status = 'E';
    if (simple) {
      this.ready();
    } else {
      this.skipping = true;
      if (this.server.world.random.one(2)) this.flush();
    }
  }

  private simple(sql: string): void {
    if (sql.trim() === '') {
      this.out += packet('I');
      this.ready();
      return;
    }
    // only queries of the pooler itself have semicolons
    if (sql.includes(';')) this.runOwn(sql);
    else this.run(sql, true);
  }

  /** Runs a query of the pooler, of several statements. */
  private runOwn(sql: string): void {
    const parts = sql.split(';').filter((part) => part.trim() !== '');
    if (this.server.diesNow()) {
      this.end(null, this.server.world.random.one(2));
      return;
    }
    this.lastId = '';
    this.after(this.server.world.random.below(WORK_MAX), (canceled) => {
      if (canceled) {
        this.fail('57014', 'canceling statement due to user request', true);
        return;
      }
      if (this.server.standby === true && parts.some((part) => part.startsWith('LISTEN'))) {
        this.fail('25006', 'cannot execute LISTEN during recovery', true);
        return;
      }
      for (const part of parts) this.own(part.trim());
      this.ready();
    });
  }

  private own(sql: string): void {
    const [word = '', channel = ''] = sql.split(/[ "]+/);
    if (word === 'LISTEN' || word === 'UNLISTEN') {
      this.channel(word, channel === '*' ? '' : channel, 0);
    } else if (sql === 'RESET ALL') {
      this.out += packet('C', cstring('RESET')) + this.vars.reset();
      return;
    } else if (word === 'SET') {
      this.out += packet('C', cstring('SET')) + this.vars.set(sql);
      return;
    } else if (word === 'DEALLOCATE') {
      this.statements.clear();
    }
    this.out += packet('C', cstring(word));
  }

  private channel(word: 'LISTEN' | 'UNLISTEN' | 'NOTIFY', channel: string, size: number): void {
    this.changes.push({ what: word.toLowerCase() as Change['what'], channel, size });
  }

  private extended(type: string, body: string): void {
    const first = readCstring(body, 0);
    const second = readCstring(body, first.length + 1);
    switch (type) {
      case 'P':
        this.parse(first, second);
        return;
      case 'B': {
        const sql = this.statements.get(second);
        if (sql === undefined) this.fail('26000', `prepared statement "${second}" does not exist`, false);
        else {
          // auth_query has one parameter
          this.portals.set(first, sql.replace('$1', bindParameter(body, first.length + second.length + 2)));
          this.out += packet('2');
        }
        return;
      }
      case 'D':
        this.describe(first);
        return;
      case 'E': {
        const sql = this.portals.get(first);
        if (sql === undefined) this.fail('34000', `portal "${first}" does not exist`, false);
        else this.run(sql, false);
        return;
      }
      case 'C':
        (first.startsWith('S') ? this.statements : this.portals).delete(first.slice(1));
        this.out += packet('3');
        return;
      case 'H':
        this.flush();
        return;
      default:
        this.server.world.fail(`the pooler sent ${this.name} a message '${type}'`);
    }
  }

  private parse(name: string, sql: string): void {
    if (this.status === 'E' && !/^(ROLLBACK|COMMIT)/.test(sql)) {
      this.fail('25P02', 'current transaction is aborted', false);
    } else if (name !== '' && this.statements.has(name)) {
      this.fail('42P05', `prepared statement "${name}" already exists`, false);
    } else if (sql.startsWith('BADPARSE')) {
      this.fail('42601', `syntax error ${field(sql, 'id')}`, false);
    } else {
      this.statements.set(name, sql);
      this.out += packet('1');
    }
  }

  private describe(target: string): void {
    const kind = target.charAt(0);
    const sql = (kind === 'S' ? this.statements : this.portals).get(target.slice(1));
    if (sql === undefined) {
      this.fail('26000', `"${target.slice(1)}" does not exist`, false);
      return;
    }
    if (kind === 'S') this.out += packet('t', int16(0));
    if (sql.startsWith('AUTH')) this.out += columnsPacket('name', 'password');
    else this.out += /^(SELECT|SHOW)/.test(sql) ? columnsPacket('answer') : packet('n');
  }

  private checkOwner(sql: string): void {
    const client = field(sql, 'id')?.split('.')[0];
    if (client === undefined) return;
    const { world } = this.server;
    const { setter } = this.vars;
    if (setter !== '' && setter !== client && world.scenario.settings.dirty_session === 'reset')
      world.fail(`${this.name} got '${sql.slice(0, 60)}' with what ${setter} has SET`);
    const fault = world.channels.fault(this, client) ?? world.targets.fault(this, this.status === 'I');
    if (fault !== null) world.fail(`${this.name} got '${sql.slice(0, 60)}' ${fault}`);
    if (this.status === 'I' || this.owner === '') return;
    if (client !== this.owner) {
      this.server.world.fail(`${this.name} got '${sql.slice(0, 60)}' inside the transaction of ${this.owner}`);
    }
  }

  private run(sql: string, simple: boolean): void {
    this.checkOwner(sql);
    const slow = field(sql, 'slow');
    const usec = slow === null ? this.server.world.random.below(WORK_MAX) : Number(slow);
    if (this.server.diesNow()) {
      this.end(null, this.server.world.random.one(2));
      return;
    }
    this.after(usec, (canceled) => {
      if (canceled) this.fail('57014', 'canceling statement due to user request', simple);
      else this.execute(sql, simple);
    });
  }

  private execute(sql: string, simple: boolean): void {
    const word = sql.split(' ')[0] as string;
    const id = field(sql, 'id') ?? '';
    this.lastId = id;
    if (this.status === 'E' && word !== 'ROLLBACK' && word !== 'COMMIT') {
      this.fail('25P02', 'current transaction is aborted', simple);
      return;
    }
    if (this.server.standby === true && WRITES.has(word)) {
      this.refuse(simple);
      return;
    }
    let tag = word;
    switch (word) {
      case 'BEGIN':
        this.status = 'T';
        this.owner = id.split('.')[0] as string;
        break;
      case 'COMMIT':
      case 'ROLLBACK':
        if (this.status === 'E') tag = 'ROLLBACK';
        if (tag === 'ROLLBACK') this.changes = [];
        this.status = 'I';
        this.owner = '';
        break;
      case 'FAIL':
        this.fail('22012', `failed as asked ${id}`, simple);
        return;
      case 'COPY':
        this.copying = simple ? 'simple' : 'extended';
        this.out += packet('G', COPY_IN);
        this.flush();
        return;
      case 'SET':
        this.out += packet('C', cstring('SET')) + this.vars.set(sql);
        tag = '';
        break;
      case 'DISCARD':
      case 'DEALLOCATE':
        this.statements.clear();
        if (word === 'DISCARD') {
          this.server.world.channels.forget(this);
          this.out += this.vars.reset();
        }
        tag = `${word} ALL`;
        break;
      case 'LISTEN':
      case 'UNLISTEN':
      case 'NOTIFY': {
        const name = sql.split(' ')[1] as string;
        this.channel(word, name === '*' ? '' : name, Number(field(sql, 'size') ?? 0));
        break;
      }
      case 'SHOW':
        this.answer(simple, `${id}@${this.name} ${this.vars.value(field(sql, 'of') ?? '')}`);
        break;
      case 'SELECT':
        this.answer(simple, this.selected(sql, id));
        tag = 'SELECT 1';
        break;
      case 'WRITE':
        break;
      case 'CHECK':
        this.answer(simple, '1');
        break;
      case 'AUTH':
        this.lookUp(field(sql, 'user') ?? '', simple);
        break;
      default:
        this.server.world.fail(`the pooler sent ${this.name} '${sql.slice(0, 60)}'`);
    }
    if (tag !== '') this.out += packet('C', cstring(tag));
    if (simple) this.ready();
  }

  private selected(sql: string, id: string): string {
    const size = Number(field(sql, 'size') ?? 0);
    return `${id}@${this.name} ${'x'.repeat(size)}`;
  }

  private answer(simple: boolean, ...values: string[]): void {
    if (simple) this.out += columnsPacket(...values.map(() => 'answer'));
    this.out += rowPacket(...values);
  }

  /** auth_query: the password of a user that only this server knows. */
  private lookUp(name: string, simple: boolean): void {
    const password = this.server.world.hiddenUsers.get(name);
    if (password !== undefined) this.answer(simple, name, password);
  }

  private copy(type: string): void {
    if (type === 'd' || type === 'H') return;
    const simple = this.copying === 'simple';
    if (type === 'S' && !simple) return;
    this.copying = 'no';
    if (type === 'c') {
      this.out += packet('C', cstring('COPY 1'));
      if (simple) this.ready();
    } else {
      this.fail('57014', 'COPY from stdin failed', simple);
    }
  }
}
