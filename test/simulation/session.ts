/*
 * One connection to a simulated PostgreSQL server: login, then both query protocols, one request after another. A
 * statement consists of a command and of parameters as name=value. Each answer contains the id of the request and the
 * name of the session, so that a client can tell which request and session it belongs to.
 */
import { Line } from './actor';
import type { Event } from './clock';
import type { End } from './network';
import type { PgServer } from './postgres';
import {
  bindParameter,
  CANCEL_REQUEST,
  columnsPacket,
  cstring,
  errorPacket,
  field,
  GSSENC_REQUEST,
  int16,
  int32,
  md5Answer,
  Packets,
  packet,
  readCstring,
  readInt32,
  rowPacket,
  SSL_REQUEST,
} from './wire';

const PARAMETERS: [string, string][] = [
  ['server_version', '16.3'],
  ['client_encoding', 'UTF8'],
  ['DateStyle', 'ISO, MDY'],
  ['TimeZone', 'UTC'],
  ['standard_conforming_strings', 'on'],
  ['application_name', ''],
  ['integer_datetimes', 'on'],
  ['server_encoding', 'UTF8'],
];
const REPORTED = new Set(PARAMETERS.map(([name]) => name));

/** Longest duration of a request, usec. */
const WORK_MAX = 1500;
const COPY_IN = `\0${int16(0)}`;

export class Session {
  readonly name: string;
  readonly key: string;
  private readonly line: Line;
  private readonly packets = new Packets(true);
  private phase: 'startup' | 'password' | 'ready' | 'over' = 'startup';
  private user = '';
  private salt = '';
  private status: 'I' | 'T' | 'E' = 'I';
  /** the client that the open transaction belongs to */
  private owner = '';
  private skipping = false;
  private copying: 'no' | 'simple' | 'extended' = 'no';
  private readonly statements = new Map<string, string>();
  private readonly portals = new Map<string, string>();
  private readonly vars = new Map(PARAMETERS);
  /** the client whose SET the pooler does not track; '' = none */
  private setter = '';
  private out = '';
  private notifications = '';
  /** the end of the request in progress */
  private busy: Event | null = null;
  private finishBusy: ((canceled: boolean) => void) | null = null;

  constructor(
    private readonly server: PgServer,
    end: End,
    number: number,
  ) {
    this.name = `${server.name}/${number}`;
    const { random } = server.world;
    this.key = int32(10_000 + number) + int32(random.u32());
    this.line = new Line(
      server.world.clock,
      end,
      (bytes) => this.arrive(bytes),
      () => this.gone(),
    );
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
    if (type === 'X') {
      this.end(null, false);
      return;
    }
    if (this.phase === 'password') {
      this.password(body);
      return;
    }
    const code = readInt32(body, 0);
    if (code === SSL_REQUEST && this.server.tls) {
      this.line.acceptTls();
    } else if (code === SSL_REQUEST || code === GSSENC_REQUEST) {
      this.line.send('N');
    } else if (code === CANCEL_REQUEST) {
      this.server.cancel(body.slice(4));
      this.end(null, false);
    } else {
      this.begin(body);
    }
  }

  private begin(body: string): void {
    const { server } = this;
    const parts = body.slice(4).split('\0');
    for (let i = 0; i + 1 < parts.length; i += 2) {
      const [name, value] = [parts[i] as string, parts[i + 1] as string];
      if (name === 'user') this.user = value;
      else if (REPORTED.has(name)) this.vars.set(name, value);
    }
    const refusal = server.refusal();
    if (refusal !== null) {
      this.end(refusal, false);
      return;
    }
    this.packets.untyped = false;
    if (server.hangs()) {
      // this session never answers
      this.after(Number.MAX_SAFE_INTEGER, () => {});
    } else if (server.auth === 'md5') {
      this.phase = 'password';
      this.salt = server.world.random.text(4);
      this.line.send(packet('R', int32(5) + this.salt));
    } else {
      this.welcome();
    }
  }

  private password(body: string): void {
    const { world } = this.server;
    const expected = md5Answer(this.user, world.passwordOf(this.user), this.salt);
    if (readCstring(body, 0) !== expected) world.fail(`the pooler gave ${this.name} a wrong password for ${this.user}`);
    else this.welcome();
  }

  private welcome(): void {
    this.phase = 'ready';
    for (const [name, value] of this.vars) this.out += packet('S', cstring(name) + cstring(value));
    this.out = packet('R', int32(0)) + this.out + packet('K', this.key) + packet('Z', 'I');
    this.flush();
  }

  private handle(type: string, body: string): void {
    if (type === 'X') {
      this.end(null, false);
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
      this.out += this.notifications;
      this.notifications = '';
    }
    this.out += packet('Z', this.status);
    this.flush();
  }

  private fail(code: string, text: string, simple: boolean): void {
    this.out += errorPacket('ERROR', code, text);
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
    const parts = sql.split(';').filter((part) => part.trim() !== '');
    if (parts.length > 1) {
      // only queries of the pooler itself have several statements
      for (const part of parts) this.set(part.trim());
      this.ready();
      return;
    }
    this.run(sql, true);
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
    if (this.setter !== '' && this.setter !== client && world.scenario.settings.dirty_session === 'reset')
      world.fail(`${this.name} got '${sql.slice(0, 60)}' with what ${this.setter} has SET`);
    const fault = world.channels.fault(this, client);
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
    if (this.status === 'E' && word !== 'ROLLBACK' && word !== 'COMMIT') {
      this.fail('25P02', 'current transaction is aborted', simple);
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
        this.set(sql);
        tag = '';
        break;
      case 'DISCARD':
      case 'DEALLOCATE':
        this.statements.clear();
        if (word === 'DISCARD') this.resetSession();
        tag = `${word} ALL`;
        break;
      case 'LISTEN':
        this.server.world.channels.listen(this, id.split('.')[0] as string, field(sql, 'channel') ?? '');
        break;
      case 'UNLISTEN':
        this.server.world.channels.forget(this);
        break;
      case 'NOTIFY':
        this.server.world.channels.notify(this.server.name, field(sql, 'channel') ?? '');
        break;
      case 'SHOW':
        this.answer(simple, `${id}@${this.name} ${this.vars.get(field(sql, 'of') ?? '') ?? ''}`);
        break;
      case 'SELECT':
        this.answer(simple, this.selected(sql, id));
        tag = 'SELECT 1';
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

  private set(sql: string): void {
    if (sql === 'RESET ALL') {
      this.out += packet('C', cstring('RESET'));
      this.resetVars();
      return;
    }
    if (sql === 'UNLISTEN *') {
      this.out += packet('C', cstring('UNLISTEN'));
      this.server.world.channels.forget(this);
      return;
    }
    const match = /^SET (\w+)\s*=\s*'?([^']*)'?/i.exec(sql);
    this.out += packet('C', cstring('SET'));
    if (match === null) return;
    if (match[1] === 'other') this.setter = match[2] as string;
    const name = [...REPORTED].find((known) => known.toLowerCase() === (match[1] as string).toLowerCase());
    if (name === undefined) return;
    this.vars.set(name, match[2] as string);
    this.out += packet('S', cstring(name) + cstring(match[2] as string));
  }

  private resetSession(): void {
    this.server.world.channels.forget(this);
    this.resetVars();
  }

  /** DISCARD ALL and RESET ALL: reports the variables that change. */
  private resetVars(): void {
    this.setter = '';
    for (const [name, value] of PARAMETERS) {
      if (this.vars.get(name) === value) continue;
      this.vars.set(name, value);
      this.out += packet('S', cstring(name) + cstring(value));
    }
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
