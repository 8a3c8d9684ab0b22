/*
 * The notifications of a client with listen_mode = share: those that it must get, and a check of each that it gets. The
 * servers say when a LISTEN or UNLISTEN is committed, and what is sent; the client says what it has read.
 */
import { SECOND } from './clock';
import { cstring, int32, packet, readCstring, readInt32 } from './wire';

/** A notification, as its session sends it. */
export interface Note {
  channel: string;
  /** name of the server, and the number among its notifications, in the order of commits */
  server: string;
  number: number;
  /** process id of the session */
  pid: number;
  /** the client that has sent it */
  client: string;
  /** usec */
  at: number;
  padding: string;
}

export function notePacket({ channel, server, number, pid, client, padding }: Note): string {
  return packet('A', int32(pid) + cstring(channel) + cstring(`${server} ${number} ${pid} ${client} ${padding}`));
}

/** A channel on which the client listens. */
interface Channel {
  /** the request that has committed the LISTEN, and when. usec */
  unit: number;
  since: number;
  /** the client has read the end of the answer: it relies on being notified */
  told: boolean;
}

/** How long a notification, or the news of a loss, may take. usec */
const LATE = 15 * SECOND;
/** The same if the pool may have to wait for a connection, or a process is stopped. usec */
const VERY_LATE = 60 * SECOND;

/** What an inbox asks of the servers. */
export interface Listeners {
  /** True if the listening connection of the pool listens on the channel. */
  hears(pool: string, channel: string): boolean;
  /** when the pool last lost its listening connection, usec; 0 = never */
  lostAt(pool: string): number;
}

export class Inbox {
  private readonly channels = new Map<string, Channel>();
  /** channels whose UNLISTEN is committed, with the request that has done that */
  private readonly left = new Map<string, number>();
  /** channels without a LISTEN, as the client knows */
  private readonly closed = new Set<string>();
  private readonly heard = new Set<string>();
  /** sent while the client relied on them, oldest first */
  private expected: Note[] = [];
  private readonly got = new Set<string>();
  private readonly last = new Map<string, number>();
  /** when a loss occurred of which the client has to be told, usec; 0 = none */
  private owed = 0;
  /** when its first LISTEN was committed, usec; 0 = never */
  listensSince = 0;

  /** @param pool database and user of its servers */
  constructor(
    readonly client: string,
    readonly pool: string,
    private readonly servers: Listeners,
  ) {}

  /** A transaction of the client has committed this. @param channel '' = all */
  committed(listen: boolean, channel: string, unit: number, now: number): void {
    if (!listen) {
      for (const name of channel === '' ? [...this.channels.keys()] : [channel]) {
        if (this.channels.delete(name)) this.left.set(name, unit);
        this.expected = this.expected.filter((note) => note.channel !== name);
      }
      if (this.channels.size === 0) this.owed = 0;
      return;
    }
    if (this.listensSince === 0) this.listensSince = now;
    this.heard.add(channel);
    this.left.delete(channel);
    this.closed.delete(channel);
    if (!this.channels.has(channel)) this.channels.set(channel, { unit, since: now, told: false });
  }

  /** The client has read the end of a request, outside a transaction. @returns what is wrong, or null */
  ready(unit: number, now: number): string | null {
    for (const [name, left] of this.left) if (left <= unit) this.closed.add(name);
    for (const [name, channel] of this.channels) {
      if (channel.told || channel.unit > unit) continue;
      channel.told = true;
      if (this.servers.hears(this.pool, name)) continue;
      if (this.servers.lostAt(this.pool) < channel.since) return `the end of LISTEN ${name}, and no server listens`;
      this.owed = now;
    }
    return null;
  }

  /** Something that the client has sent after a LISTEN is executed. @returns what is wrong, or null */
  fault(): string | null {
    const { pool, servers } = this;
    for (const [name, { told, since }] of this.channels)
      if (!told && !servers.hears(pool, name) && servers.lostAt(pool) < since)
        return `before its LISTEN ${name} is in force`;
    return null;
  }

  /** A notification has been committed. @param own also a LISTEN of this transaction */
  sent(note: Note): void {
    const channel = this.channels.get(note.channel);
    const relies = channel?.told === true || (channel !== undefined && note.client === this.client);
    if (!relies || (this.owed > 0 && !this.servers.hears(this.pool, note.channel))) return;
    this.expected.push(note);
  }

  /** The pool has lost its listening connection. */
  lost(now: number): void {
    this.expected = [];
    if ([...this.channels.values()].some(({ told }) => told)) this.owed = now;
  }

  /** The client has read a warning of a loss. */
  warned(): void {
    if (this.owed > 0 && [...this.channels.keys()].every((name) => this.servers.hears(this.pool, name))) this.owed = 0;
  }

  /**
   * Checks a notification that the client has read.
   * @param between no transaction of the client is open, and no answer is incomplete
   * @returns what is wrong, or null
   */
  take(body: string, between: boolean): string | null {
    const channel = readCstring(body, 4);
    const payload = readCstring(body, 4 + channel.length + 1);
    const [server, digits, pid, client] = payload.split(' ') as [string, string, string, string];
    const number = Number(digits);
    const what = `notification ${number} of ${server} on ${channel}`;
    if (!this.heard.has(channel)) return `${what}, on which it has not listened`;
    if (this.closed.has(channel)) return `${what}, on which it does not listen any more`;
    if (Number(pid) !== readInt32(body, 0)) return `${what} of process ${readInt32(body, 0)} instead of ${pid}`;
    const name = `${server} ${number}`;
    if (this.got.has(name)) return `${what} twice`;
    this.got.add(name);
    const own = client === this.client;
    if (!between && !own) return `${what} inside a transaction`;
    const before = this.expected.find((note) => note.server === server && note.number < number);
    this.expected = this.expected.filter((note) => note.server !== server || note.number !== number);
    if (own) return null;
    if (before !== undefined && before.client !== this.client)
      return `${what} instead of ${before.number} on ${before.channel}`;
    if (number < (this.last.get(server) ?? 0)) return `${what} after ${this.last.get(server)}`;
    this.last.set(server, number);
    return null;
  }

  /** True if it has got everything. */
  get isSettled(): boolean {
    return this.expected.length === 0 && this.owed === 0;
  }

  /** @returns what has not come in time, or null */
  overdue(now: number, slowly: boolean): string | null {
    const limit = slowly ? VERY_LATE : LATE;
    const [first] = this.expected;
    if (first !== undefined && now - first.at > limit)
      return `notification ${first.number} of ${first.server} on ${first.channel} of ${first.client}`;
    return this.owed > 0 && now - this.owed > limit ? 'the news that notifications may have been lost' : null;
  }
}
