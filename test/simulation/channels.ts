/*
 * LISTEN on the simulated servers: which session listens for which client. With listen_mode = pin, a client that listens
 * has a session for itself. With share, one session of a pool listens for all its clients. With these, with refuse, and
 * with dirty_session = reset, no other client meets a client's own LISTEN.
 */
import { type Inbox, type Listeners, type Note, notePacket } from './inbox';
import type { Session } from './session';
import type { World } from './world';

/** What a transaction does when it is committed. */
export interface Change {
  what: 'listen' | 'unlisten' | 'notify';
  /** '' = all */
  channel: string;
  /** bytes of the payload */
  size: number;
}

/** Commands of the operator that end listening connections. */
const ENDING = ['PAUSE', 'RECONNECT', 'RELOAD', 'KILL', 'SUSPEND', 'DISABLE', 'SHUTDOWN', 'WAIT_CLOSE'];

/** The channels of all sessions. */
export class Channels implements Listeners {
  /** by the name of the client; a client that has left may still be there */
  private readonly ofClient = new Map<string, Session>();
  /** client: '' = the pooler itself */
  private readonly listeners = new Map<Session, { client: string; channels: Set<string> }>();
  /** the listening connection of each pool */
  private readonly shared = new Map<string, Session>();
  private readonly losses = new Map<string, number>();
  /** pools whose listening connection the pooler has ended without a reason; their clients may have left before */
  readonly groundless = new Set<string>();
  private readonly inboxes = new Map<string, Inbox>();
  private readonly numbers = new Map<string, number>();

  constructor(private readonly world: World) {}

  add(inbox: Inbox): void {
    this.inboxes.set(inbox.client, inbox);
  }

  /** A client leaves, or is told to. */
  remove(client: string): void {
    this.inboxes.delete(client);
  }

  hears(pool: string, channel: string): boolean {
    const session = this.shared.get(pool);
    return session !== undefined && this.listeners.get(session)?.channels.has(channel) === true;
  }

  lostAt(pool: string): number {
    return this.losses.get(pool) ?? 0;
  }

  /**
   * A transaction has been committed.
   * @param client '' = the pooler itself
   */
  commit(session: Session, client: string, unit: number, changes: Change[]): void {
    const { now } = this.world.clock;
    for (const { what, channel } of changes) {
      if (what === 'notify') continue;
      this.inboxes.get(client)?.committed(what === 'listen', channel, unit, now);
      if (what === 'listen') this.listen(session, client, channel);
      else this.unlisten(session, channel);
    }
    for (const { what, channel, size } of changes) if (what === 'notify') this.notify(session, client, channel, size);
  }

  private listen(session: Session, client: string, channel: string): void {
    const known = this.listeners.get(session);
    const channels = known?.client === client ? known.channels : new Set<string>();
    this.listeners.set(session, { client, channels: channels.add(channel) });
    if (client !== '') this.ofClient.set(client, session);
    else if (this.shared.get(session.entry.pool) !== session) {
      this.lose(session.entry.pool);
      this.shared.set(session.entry.pool, session);
    }
  }

  private unlisten(session: Session, channel: string): void {
    const known = this.listeners.get(session);
    if (known === undefined) return;
    if (channel === '') known.channels.clear();
    else known.channels.delete(channel);
    if (known.channels.size === 0) this.forget(session);
  }

  /** UNLISTEN *, DISCARD ALL, or the end of the session. */
  forget(session: Session): void {
    const known = this.listeners.get(session);
    if (known === undefined) return;
    this.listeners.delete(session);
    if (this.ofClient.get(known.client) === session) this.ofClient.delete(known.client);
    if (this.shared.get(session.entry.pool) !== session) return;
    this.lose(session.entry.pool);
    if (session.wasLeft && !this.mayEnd()) this.groundless.add(session.entry.pool);
  }

  private lose(pool: string): void {
    const { now } = this.world.clock;
    this.shared.delete(pool);
    this.losses.set(pool, now);
    for (const inbox of this.inboxes.values()) if (inbox.pool === pool) inbox.lost(now);
  }

  /** True if the pooler may end a session that listens for clients. */
  private mayEnd(): boolean {
    const { operator, scenario } = this.world;
    const { console, reboots, servers } = scenario.faults;
    return reboots || servers || (console && ENDING.some((word) => operator.has(word)));
  }

  private notify(session: Session, client: string, channel: string, size: number): void {
    const server = session.serverName;
    const number = (this.numbers.get(server) ?? 0) + 1;
    this.numbers.set(server, number);
    const at = this.world.clock.now;
    const note: Note = { channel, server, number, pid: session.pid, client, at, padding: 'x'.repeat(size) };
    const bytes = notePacket(note);
    for (const [listener, { channels }] of this.listeners)
      if (listener.serverName === server && channels.has(channel)) listener.notify(bytes);
    for (const inbox of this.inboxes.values()) if (this.reaches(server, inbox.pool)) inbox.sent(note);
  }

  /** True if a notification of the server is for clients of the pool. */
  private reaches(server: string, pool: string): boolean {
    const session = this.shared.get(pool);
    return session !== undefined && session.serverName === server;
  }

  /** A session is to run a query of a client. @returns what is wrong with that, or null */
  fault(session: Session, client: string): string | null {
    const { listen_mode, dirty_session } = this.world.scenario.settings;
    const other = this.listeners.get(session)?.client ?? client;
    if (other !== client && (listen_mode !== 'ignore' || dirty_session === 'reset'))
      return `on which ${other === '' ? 'the pooler' : other} listens`;
    const own = this.ofClient.get(client) ?? session;
    if (own !== session && listen_mode === 'pin') return `of a client that listens on ${own.name}`;
    return this.inboxes.get(client)?.fault() ?? null;
  }
}
