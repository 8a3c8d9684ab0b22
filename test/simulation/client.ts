/*
 * A simulated client: logs in, sends random requests, leaves in one of several ways, and checks everything that it
 * receives. It knows the pooler only by the bytes that it receives.
 */
import { Family } from '../../src/core/base/native';
import { Line } from './actor';
import { Answers, type ErrorSeen } from './answers';
import { Choices, PIPELINE_MAX } from './choices';
import { MS, SECOND } from './clock';
import { Inbox } from './inbox';
import { copyData, type Request, RequestMaker, TERMINATE } from './requests';
import { serverUser, WANTS_STANDBY } from './scenario';
import {
  CANCEL_REQUEST,
  cstring,
  errorFields,
  md5Answer,
  Packets,
  PROTOCOL_30,
  packet,
  readInt32,
  request,
  startup,
} from './wire';
import type { World } from './world';

/** The behaviour of a client. */
export interface Character {
  user: string;
  database: string;
  password: string;
  /** part of the text with which the pooler must refuse it; '' = it is accepted */
  refused: string;
  sessionPooling: boolean;
  statementPooling: boolean;
  /** longest time between two requests, usec */
  think: number;
  /** number of requests until it leaves */
  requests: number;
  /** one request in so many is slow; its longest time, usec */
  slowOne: number;
  slowTime: number;
  /** one slow request in so many is canceled */
  cancelOne: number;
  /** after one request in so many it reads nothing for a while */
  deafOne: number;
  /** one request in so many is the last, and the client leaves before its answer */
  leaveOne: number;
  /** it prepares statements by name */
  prepares: boolean;
  /** it sends LISTEN from time to time */
  listens: boolean;
  /** it requests a replication connection, which has a server of its own */
  replication: boolean;
  /** over TCP it uses TLS of this kind, which a reboot keeps or not; '' = it uses none */
  tls: '' | 'new' | 'old';
  /** when it stops sending */
  silent: 'never' | 'at once' | 'at the password';
}

/** SQLSTATE of the warning that notifications may have been lost */
const LOSS = '08006';

export class SimClient {
  private readonly line: Line;
  private readonly packets = new Packets(false);
  private readonly answers = new Answers();
  private readonly make: RequestMaker;
  private readonly choices: Choices;
  private phase: 'connecting' | 'login' | 'in' | 'leaving' | 'over' = 'connecting';
  private key = '';
  private status = 'I';
  private units = 0;
  private left: number;
  /** with listen_mode = share */
  readonly inbox: Inbox | null;
  /** an answer is incomplete */
  private midAnswer = false;
  /** it has sent a cancel request while this unit was in progress */
  private canceledUnit = -1;
  /** the pooler has reported why it ends the connection */
  private told: ErrorSeen | null = null;
  /** usec when the oldest request, or the login, began; 0 = no answer is expected */
  waitingSince: number;
  /** usec when it sent the last answered request, and the first request of its transaction */
  answeredSince = 0;
  transactionSince = 0;
  /** usec when each unanswered request was sent, by number */
  private readonly sent = new Map<number, number>();

  constructor(
    readonly world: World,
    readonly name: string,
    readonly character: Character,
  ) {
    this.make = new RequestMaker(name);
    this.left = character.requests;
    this.waitingSince = world.clock.now;
    this.choices = new Choices(world.random, this.make, character, world.random.one(2) ? name : '');
    this.inbox = this.isWatched && world.scenario.settings.listen_mode === 'share' ? this.makeInbox() : null;
    const end = world.connectClient();
    this.line = new Line(
      world.clock,
      end,
      (bytes) => this.arrive(bytes),
      (broken) => this.ended(broken),
      (errno) => this.connected(errno),
    );
  }

  private makeInbox(): Inbox {
    const { channels } = this.world;
    const { database, user } = this.character;
    const inbox = new Inbox(this.name, `${database}/${serverUser(database, user)}`, channels);
    channels.add(inbox);
    return inbox;
  }

  /** number of its last LISTEN; -1 = it has sent none */
  get listened(): number {
    return this.choices.listened;
  }

  get isOver(): boolean {
    return this.phase === 'over';
  }

  /** True if it has logged in and waits for nothing. */
  get isIdle(): boolean {
    return this.phase === 'in' && this.answers.isEmpty;
  }

  /** True if it has begun a transaction that it has not ended. */
  get isInTransaction(): boolean {
    return this.status !== 'I';
  }

  private note(text: string): void {
    this.world.trace.add(this.name, text);
  }

  private wrong(text: string): never {
    return this.world.fail(`${this.name} (${this.character.user}@${this.character.database}) got ${text}`);
  }

  private over(how: string): void {
    if (this.phase === 'over') return;
    this.phase = 'over';
    this.waitingSince = 0;
    this.world.channels.remove(this.name);
    this.note(how);
    this.world.clientOver(this);
  }

  private connected(errno: number): void {
    if (errno !== 0) {
      if (!this.world.reboots.mayLose(this.name)) this.wrong(`errno ${errno} when it connected`);
      this.over('is refused by the kernel');
      return;
    }
    this.phase = 'login';
    if (this.character.silent === 'at once') return;
    this.secure(this.line, () => this.logIn());
  }

  /** Begins TLS on a new connection, if the client is to have it, and then calls `done`. */
  private secure(line: Line, done: () => void): void {
    if (!this.isSecured(line)) {
      done();
      return;
    }
    line.askForTls(this.character.tls, (agreed) => {
      if (!agreed) this.wrong('a refusal of TLS');
      done();
    });
  }

  private isSecured(line: Line): boolean {
    return this.character.tls !== '' && line.end.remote.family !== Family.UNIX;
  }

  private logIn(): void {
    const { user, database } = this.character;
    const { appName } = this.choices;
    const params: Record<string, string> = appName === '' ? {} : { application_name: appName };
    if (this.character.replication) params.replication = 'database';
    this.note(`logs in as ${user} to ${database}`);
    this.line.send(startup(PROTOCOL_30, { user, database, ...params }));
  }

  private authenticate(body: string): void {
    const { user, password } = this.character;
    const kind = readInt32(body, 0);
    if (kind !== 0 && this.character.silent === 'at the password') return;
    if (kind === 3) this.line.send(packet('p', cstring(password)));
    else if (kind === 5) this.line.send(packet('p', cstring(md5Answer(user, password, body.slice(4, 8)))));
    else if (kind !== 0) this.wrong(`authentication request ${kind}`);
  }

  private loggedIn(): void {
    if (this.character.refused !== '') this.wrong('in, although it had to be refused');
    if (this.key === '') this.wrong('no cancel key');
    this.note('is in');
    this.phase = 'in';
    this.answeredSince = this.waitingSince;
    this.waitingSince = 0;
    this.pause();
  }

  private arrive(bytes: Buffer): void {
    this.packets.push(bytes);
    for (let next = this.packets.next(); next !== null; next = this.packets.next()) {
      if (this.phase === 'over') return;
      if (this.phase !== 'leaving') this.take(...next);
    }
  }

  private take(type: string, body: string): void {
    // an error of the pooler may follow the last message of the server
    if (this.told !== null && type !== 'E') this.wrong(`a message '${type}' after the error that ended its connection`);
    if (type === 'A') this.checkNotification(body);
    if (type === 'N' && errorFields(body).C === LOSS) this.takeWarning();
    if (type === 'N' || type === 'S' || type === 'A') return;
    if (type === 'E') {
      this.takeError(body);
    } else if (this.phase === 'login') {
      if (type === 'R') this.authenticate(body);
      else if (type === 'K') this.key = body;
      else if (type === 'Z') this.loggedIn();
      else this.wrong(`a message '${type}' at its login`);
    } else {
      this.takeAnswer(type, body);
    }
  }

  private takeError(body: string): void {
    const { S = '', C = '', M = '' } = errorFields(body);
    const error = { severity: S, code: C, text: M };
    if (S === 'FATAL') {
      this.note(`is told: ${M}`);
      this.told = error;
      this.world.channels.remove(this.name);
      const { refused } = this.character;
      if (refused !== '' && M.includes(refused)) return;
      if (!this.world.isJustified(this, error)) this.wrong(`an end without a reason: ${C} ${M}`);
      return;
    }
    const wrong = this.answers.takeError(body, this.status, ({ code }, owed) => {
      // its server may have become a standby
      if (code === '25006')
        return WANTS_STANDBY.get(this.character.database) === false && this.world.cluster.changes > 0;
      // the cancel request may come late, and hit a later request, such as a COMMIT with requests behind it
      const isCanceled = ['57014', '25P02'].includes(code) && this.canceledUnit >= 0 && owed.unit >= this.canceledUnit;
      if (isCanceled) this.choices.canceled(owed.unit);
      return isCanceled;
    });
    this.refute(wrong);
    this.midAnswer = true;
  }

  /** Unless LISTEN is ignored, a client gets a notification only if it has listened itself. */
  private checkNotification(body: string): void {
    const { listen_mode, dirty_session } = this.world.scenario.settings;
    if (this.choices.listened < 0 && (listen_mode !== 'ignore' || dirty_session === 'reset'))
      this.wrong('a notification');
    this.refute(this.inbox?.take(body, this.status === 'I' && !this.midAnswer));
  }

  private takeWarning(): void {
    if (this.inbox === null || this.world.scenario.settings.listen_loss !== 'notice' || !this.hasLost())
      this.wrong('a warning of a loss');
    this.inbox.warned();
  }

  /** True if its pool has lost its listening connection since it first listened. */
  hasLost(): boolean {
    const { inbox, world } = this;
    if (inbox === null || inbox.listensSince === 0 || world.channels.groundless.has(inbox.pool)) return false;
    return world.channels.lostAt(inbox.pool) >= inbox.listensSince;
  }

  /** Fails if something is wrong. */
  private refute(fault: string | null | undefined): void {
    if (typeof fault === 'string') this.wrong(fault);
  }

  /** True if the pooler watches what it does to the session of its server. */
  private get isWatched(): boolean {
    return !this.character.sessionPooling && !this.character.replication;
  }

  private takeAnswer(type: string, body: string): void {
    const refused = this.isWatched && this.world.scenario.settings.listen_mode === 'refuse';
    if (refused && type === 'C' && this.answers.next?.unit === this.choices.listened) this.wrong('an answer to LISTEN');
    const unit = this.answers.next?.unit ?? 0;
    this.refute(this.answers.take(type, body));
    // the pooler itself may have answered Close, while no transaction is in progress
    this.midAnswer = type !== 'Z' && type !== '3';
    const { random } = this.world;
    if (type === 'G') {
      this.line.send(copyData(random.below(20)));
    } else if (type === 'D') {
      const { sessionPooling } = this.character;
      if (sessionPooling || this.status !== 'I') this.answers.session = this.answers.lastSession;
    } else if (type === 'Z') {
      this.status = body;
      if (body === 'I') this.refute(this.inbox?.ready(unit, this.world.clock.now));
      if (body === 'I' && !this.character.sessionPooling) this.answers.session = '';
      const { next } = this.answers;
      this.answeredSince = this.waitingSince;
      this.waitingSince = next === null ? 0 : (this.sent.get(next.unit) as number);
      if (next === null) this.sent.clear();
      if (next === null) this.pause();
    }
  }

  private ended(broken: boolean): void {
    if (this.phase === 'over') return;
    if (this.phase !== 'leaving' && this.told === null && !this.mayEndSilently(broken)) {
      this.wrong(`the ${broken ? 'break' : 'end'} of its connection without a word`);
    }
    this.over(this.phase === 'leaving' ? 'has left' : 'is disconnected');
  }

  /**
   * True if the pooler's final error cannot be recognised. It is lost if the client has not read the data before it, and
   * if it comes in the middle of a message it looks like data. A reset of the network discards everything.
   */
  private mayEndSilently(broken: boolean): boolean {
    const { reboots, scenario } = this.world;
    const { servers, console } = scenario.faults;
    if (this.isLostInReboot()) return true;
    if (this.line.end.peer?.cutShort === true || (servers && broken)) return true;
    const timeouts = ['query_timeout', 'transaction_timeout'];
    const mayBeCutOff = servers || console || timeouts.some((name) => Number(scenario.settings[name] ?? 0) > 0);
    if (mayBeCutOff && !this.packets.isEmpty) return true;
    return reboots.mayLose(this.name);
  }

  /** True if a reboot may end its connection: its handshake is under way, or its TLS is of the old kind. */
  private isLostInReboot(): boolean {
    const { reboots, console, servers } = this.world.scenario.faults;
    if (!this.isSecured(this.line)) return false;
    return (reboots && this.character.tls === 'old') || (!this.line.isSecure && (reboots || console || servers));
  }

  private pause(): void {
    const { clock, random } = this.world;
    const long = random.one(30) ? 20 : 1;
    clock.after(random.below(this.character.think * long), () => this.act());
  }

  private act(): void {
    if (this.phase !== 'in' || this.told !== null || this.line.over) return;
    const { random } = this.world;
    if (this.line.isSecure && random.one(8)) {
      this.line.sendNothing();
      this.pause();
      return;
    }
    if (this.world.isCalm && this.inbox?.isSettled === false) {
      // in a transaction its notifications wait
      if (this.status === 'I') this.pause();
      else this.send(this.make.simple(++this.units, 'ROLLBACK', 'I'));
      return;
    }
    if (this.left-- <= 0) {
      this.leave();
      return;
    }
    const request = this.choices.next(++this.units, this.status, this.inbox !== null);
    this.send(request);
    // later requests depend neither on a transaction nor on the answer to COPY
    const isPlain = request.owed.at(-1)?.status === 'I' && request.owed[0]?.type !== 'G';
    if (isPlain && random.one(8)) this.sendMore();
    const { deafOne, leaveOne } = this.character;
    if (deafOne > 0 && random.one(deafOne)) this.line.deafen(random.below(2 * SECOND));
    if (leaveOne > 0 && random.one(leaveOne)) this.leaveSoon();
  }

  private send({ bytes, owed, prepares, slow }: Request): void {
    const { now } = this.world.clock;
    if (this.answers.isEmpty && this.status === 'I') this.transactionSince = now;
    this.sent.set(this.units, now);
    if (this.waitingSince === 0) this.waitingSince = now;
    this.note(`asks ${this.units}: ${bytes.slice(0, 60).replace(/[^ -~]+/g, ' ')}`);
    this.answers.expect(owed);
    if (prepares !== undefined) this.choices.prepared.set(prepares, this.units);
    this.line.send(bytes);
    if (slow && this.world.random.one(this.character.cancelOne)) this.cancelSoon(this.units);
  }

  /** Sends a few more requests after the first, without waiting for its answer. */
  private sendMore(): void {
    for (let left = this.world.random.below(PIPELINE_MAX); left > 0; left--) {
      this.units++;
      this.send(this.make.simple(this.units, 'SELECT', 'I'));
    }
  }

  private cancelSoon(unit: number): void {
    const { clock, random } = this.world;
    clock.after(random.below(this.character.slowTime), () => {
      if (this.phase !== 'in' || this.answers.next?.unit !== unit) return;
      this.note(`cancels ${unit}`);
      this.canceledUnit = unit;
      const end = this.world.connectClient();
      const line = new Line(
        clock,
        end,
        () => {},
        () => {},
        (errno) => {
          if (errno !== 0) return;
          this.secure(line, () => {
            line.send(request(CANCEL_REQUEST, this.key));
            if (random.one(3)) line.closeWhenSent();
          });
        },
      );
    });
  }

  private leave(): void {
    this.note('leaves');
    this.phase = 'leaving';
    this.world.channels.remove(this.name);
    this.waitingSince = 0;
    this.line.send(TERMINATE);
    // otherwise it waits until the pooler closes
    if (this.world.random.one(2)) {
      this.line.closeWhenSent();
      this.over('has left');
    }
  }

  /** Leaves before its answer arrives. */
  private leaveSoon(): void {
    const { clock, random } = this.world;
    clock.after(random.below(20 * MS), () => {
      if (this.phase !== 'in') return;
      this.phase = 'leaving';
      this.world.channels.remove(this.name);
      if (random.one(3)) {
        this.leave();
        return;
      }
      const reset = random.one(2);
      if (reset) this.line.reset();
      else this.line.close();
      this.over(reset ? 'breaks its connection' : 'vanishes');
    });
  }

  /** @returns what should have come long ago, or null */
  overdue(slowly: boolean): string | null {
    return this.inbox?.overdue(this.world.clock.now, slowly) ?? null;
  }

  /** Leaves as soon as it waits for nothing. */
  retire(): void {
    this.left = 0;
  }
}
