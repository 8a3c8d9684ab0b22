/*
 * A simulated PostgreSQL server. It listens, and sometimes it refuses connections, is silent, starts up, restarts, or
 * loses sessions.
 */
import { Family, type SockAddr } from '../../src/core/base/native';
import { MS, SECOND } from './clock';
import type { Listener } from './network';
import { Session } from './session';
import { errorPacket } from './wire';
import type { World } from './world';

/** One in so many; 0 = never. */
export interface Moods {
  /** logins refused with FATAL */
  refuseLogin: number;
  /** logins without an answer */
  hangAtLogin: number;
  /** requests that end the session */
  die: number;
  /** average time between restarts of the server, usec; 0 = never */
  restartEvery: number;
  /** average time between the ends of idle sessions, usec */
  loseSessionEvery: number;
  /** average time between periods in which it cannot be reached, usec */
  unreachableEvery: number;
}

const PORT = 5432;

export class PgServer {
  private readonly sessions = new Set<Session>();
  private readonly listener: Listener;
  private lastSession = 0;
  private startingUntil = 0;
  /** its role in the cluster; null = it is in none */
  standby: boolean | null = null;
  /** it reports a change of its role */
  tellsRole = true;
  /** since when a login succeeds, usec; Infinity = it does not */
  usableSince = 0;

  constructor(
    readonly world: World,
    readonly name: string,
    host: string,
    readonly auth: 'trust' | 'md5',
    private readonly moods: Moods,
    /** it agrees to TLS */
    readonly tls: boolean,
  ) {
    const addr: SockAddr = { family: Family.INET, host, port: PORT };
    this.listener = world.network.listen(addr) as Listener;
    this.listener.watch({ readable: () => this.accept(), writable: () => {} });
    this.often(moods.restartEvery, () => this.restart());
    this.often(moods.loseSessionEvery, () => this.loseSession());
    this.often(moods.unreachableEvery, () => this.vanish());
  }

  /** Repeats an action at random times, every `usec` on average. */
  private often(usec: number, act: () => void): void {
    if (usec <= 0) return;
    const { clock, random } = this.world;
    clock.after(random.below(2 * usec), () => {
      if (this.world.isCalm) return;
      act();
      this.often(usec, act);
    });
  }

  private one(of: number): boolean {
    return of > 0 && !this.world.isCalm && this.world.random.one(of);
  }

  private accept(): void {
    for (let end = this.listener.queue.shift(); end !== undefined; end = this.listener.queue.shift()) {
      this.sessions.add(new Session(this, end, ++this.lastSession));
    }
  }

  forget(session: Session): void {
    this.sessions.delete(session);
  }

  /** Why a login is refused, or null. */
  refusal(): string | null {
    if (this.world.clock.now < this.startingUntil) {
      return errorPacket('FATAL', '57P03', 'the database system is starting up');
    }
    if (this.one(this.moods.refuseLogin)) return errorPacket('FATAL', '53300', 'sorry, too many clients already');
    return null;
  }

  hangs(): boolean {
    return this.one(this.moods.hangAtLogin);
  }

  diesNow(): boolean {
    return this.one(this.moods.die);
  }

  cancel(key: string): void {
    if (this.world.servers.some((other) => other !== this && other.hasKey(key)))
      this.world.fail(`${this.name} got a cancel request for another server`);
    for (const session of this.sessions) if (session.key === key) session.cancel();
  }

  private hasKey(key: string): boolean {
    return [...this.sessions].some((session) => session.key === key);
  }

  /** @param tells it reports that to the pooler */
  changeRole(standby: boolean, tells: boolean): void {
    this.standby = standby;
    this.tellsRole = tells;
    if (this.usableSince < this.world.clock.now) this.usableSince = this.world.clock.now;
    this.world.targets.changed(this.name);
  }

  /** Ends all sessions, and cannot be reached for so long. */
  leave(mode: 'refuse' | 'silence', usec: number): void {
    this.endSessions();
    this.listener.mode = mode;
    this.usableSince = Number.POSITIVE_INFINITY;
    this.world.clock.after(usec, () => {
      this.listener.mode = 'accept';
      this.usableSince = this.world.clock.now;
    });
  }

  private endSessions(): void {
    const { random } = this.world;
    const lastWord = errorPacket('FATAL', '57P01', 'terminating connection due to administrator command');
    for (const session of [...this.sessions]) session.end(random.one(3) ? null : lastWord, random.one(4));
  }

  private restart(): void {
    const { clock, random, trace } = this.world;
    trace.add(this.name, 'restarts');
    this.endSessions();
    this.listener.mode = 'refuse';
    clock.after(random.below(2 * SECOND), () => {
      this.listener.mode = 'accept';
      this.startingUntil = clock.now + random.below(500 * MS);
    });
  }

  private loseSession(): void {
    const { random, trace } = this.world;
    const idle = [...this.sessions].filter((session) => session.isReady && !session.isBusy);
    if (idle.length === 0) return;
    const session = random.pick(idle);
    trace.add(session.name, 'is lost');
    const lastWord = errorPacket('FATAL', '57P01', 'terminating connection due to administrator command');
    session.end(random.one(2) ? lastWord : null, random.one(3));
  }

  private vanish(): void {
    const { clock, random, trace } = this.world;
    this.listener.mode = random.one(2) ? 'silence' : 'refuse';
    trace.add(this.name, `${this.listener.mode} for new connections`);
    clock.after(random.below(5 * SECOND), () => {
      this.listener.mode = 'accept';
    });
  }
}
