/*
 * The network of a simulation: connections as pairs of ends, and listeners. Bytes take time, arrive in pieces, and fill
 * the connection if the receiver does not read, until the sender has to wait too.
 */
import { constants } from 'node:os';
import type { SockAddr } from '../../src/core/base/native';
import type { Clock } from './clock';

export const { EAGAIN, EBADF } = constants.errno;
const { ECONNREFUSED, ECONNRESET, EPIPE, ENOENT } = constants.errno;

/** Gets the events of an end. During a handover, several processes may have the same end. */
export interface Watcher {
  /** bytes, the end of the stream, or an error */
  readable(): void;
  /** more can be sent, or the connection has been made or refused */
  writable(): void;
}

/** The properties of connections. */
export interface Manners {
  /** shortest and longest time that bytes take, usec */
  delay: [number, number];
  /** fewest and most bytes that may be in transit or unread */
  capacity: [number, number];
  /** one write in so many arrives in pieces */
  pieces: number;
}

/** Descriptors that are sent with the byte at this position of the stream. */
interface Cargo {
  at: number;
  items: unknown[];
}

const PIECES_MAX = 4;

/** One end of a connection. */
export class End {
  peer: End | null = null;
  /** 0 = connected, > 0 = the error, -1 = in progress */
  connected = 0;
  private chunks: Buffer[] = [];
  /** bytes that have arrived and have not been read */
  length = 0;
  /** the peer has sent everything */
  eof = false;
  /** errno of a broken connection */
  error = 0;
  closed = false;
  /** bytes that the peer has not received yet */
  private inFlight = 0;
  private blocked = false;
  private lastArrival = 0;
  readonly watchers: Watcher[] = [];
  /** positions in the stream, for descriptors that are sent */
  written = 0;
  taken = 0;
  readonly cargo: Cargo[] = [];
  /** the process that made the connection */
  pid = 0;
  /** the peer can send nothing more */
  refusing = false;
  /** closed while its owner had bytes that the network had not accepted: they are lost */
  cutShort = false;

  constructor(
    private readonly net: Network,
    readonly local: SockAddr,
    readonly remote: SockAddr,
    private capacity: number,
  ) {}

  watch(watcher: Watcher): void {
    this.watchers.push(watcher);
  }

  unwatch(watcher: Watcher): void {
    const at = this.watchers.indexOf(watcher);
    if (at >= 0) this.watchers.splice(at, 1);
  }

  tellReadable(): void {
    for (const watcher of [...this.watchers]) watcher.readable();
  }

  tellWritable(): void {
    for (const watcher of [...this.watchers]) watcher.writable();
  }

  /** Bytes that were sent and have not been read yet. */
  get unread(): number {
    return this.inFlight + (this.peer?.length ?? 0);
  }

  /** How many bytes a write would accept now. */
  get room(): number {
    return Math.max(0, this.capacity - this.unread);
  }

  /** From now on a write accepts everything. */
  liftLimit(): void {
    this.capacity = Number.POSITIVE_INFINITY;
  }

  /** @returns the number of accepted bytes, or -errno */
  write(bytes: Uint8Array): number {
    if (this.error !== 0 || this.closed || this.peer === null || this.peer.refusing) return -EPIPE;
    const n = Math.min(bytes.length, this.room);
    if (n <= 0) {
      this.blocked = true;
      return -EAGAIN;
    }
    if (n < bytes.length) this.blocked = true;
    this.written += n;
    this.inFlight += n;
    const copy = Buffer.from(bytes.subarray(0, n));
    for (let from = 0; from < n; ) {
      const to = this.net.cut(from, n);
      const piece = copy.subarray(from, to);
      this.sendOn(() => this.arrive(piece, piece.length));
      from = to;
    }
    return n;
  }

  /** Delivers in the order of sending. */
  private sendOn(arrival: () => void): void {
    const { clock } = this.net;
    this.lastArrival = Math.max(this.lastArrival, clock.now + this.net.delay());
    clock.at(this.lastArrival, arrival);
  }

  private arrive(piece: Buffer, length: number): void {
    const peer = this.peer as End;
    this.inFlight -= length;
    if (peer.closed) {
      peer.sendOn(() => this.break(ECONNRESET));
      return;
    }
    if (peer.error !== 0) return;
    peer.chunks.push(piece);
    peer.length += length;
    peer.tellReadable();
  }

  private break(errno: number): void {
    if (this.error !== 0 || this.closed) return;
    this.error = errno;
    this.tellReadable();
    this.tellWritable();
  }

  /** @returns bytes, or null if there are none now */
  read(most: number): Buffer | null {
    if (this.length === 0 || most <= 0) return null;
    const parts: Buffer[] = [];
    let got = 0;
    while (got < most && this.chunks.length > 0) {
      const first = this.chunks[0] as Buffer;
      if (first.length <= most - got) {
        parts.push(first);
        got += first.length;
        this.chunks.shift();
      } else {
        parts.push(first.subarray(0, most - got));
        this.chunks[0] = first.subarray(most - got);
        got = most;
      }
    }
    this.length -= got;
    this.taken += got;
    const writer = this.peer;
    if (writer?.blocked) {
      writer.blocked = false;
      this.net.clock.after(this.net.delay(), () => writer.tellWritable());
    }
    return parts.length === 1 ? (parts[0] as Buffer) : Buffer.concat(parts);
  }

  /** Closes this end. With unread bytes, the connection is reset, as in a kernel. */
  close(): void {
    if (this.closed) return;
    this.closed = true;
    const { peer } = this;
    if (peer === null) return;
    const rude = this.length > 0;
    this.chunks = [];
    this.length = 0;
    this.sendOn(() => {
      if (rude) peer.break(ECONNRESET);
      else peer.finish();
    });
  }

  /** Breaks the connection, as if a machine had crashed. */
  reset(): void {
    if (this.closed) return;
    this.length = Math.max(this.length, 1);
    this.close();
  }

  private finish(): void {
    if (this.eof || this.closed) return;
    this.eof = true;
    this.tellReadable();
  }
}

/** A listening socket. */
export class Listener {
  readonly queue: End[] = [];
  readonly watchers: Watcher[] = [];
  open = true;
  /** whether connections are accepted, refused, or get no answer */
  mode: 'accept' | 'refuse' | 'silence' = 'accept';
  /** how many bytes its connections hold, if not the usual number of the network */
  capacity = 0;

  constructor(readonly addr: SockAddr) {}

  watch(watcher: Watcher): void {
    this.watchers.push(watcher);
  }

  unwatch(watcher: Watcher): void {
    const at = this.watchers.indexOf(watcher);
    if (at >= 0) this.watchers.splice(at, 1);
  }

  /** Resets connections that have not been accepted. */
  close(): void {
    this.open = false;
    for (const end of this.queue.splice(0)) end.reset();
  }
}

function nameOf(addr: SockAddr): string {
  return `${addr.host}:${addr.port}`;
}

export class Network {
  private readonly listeners = new Map<string, Listener>();
  private lastPort = 32768;

  constructor(
    readonly clock: Clock,
    private readonly manners: Manners,
  ) {}

  delay(): number {
    const [least, most] = this.manners.delay;
    return this.clock.random.between(least, most);
  }

  /** The end of the next piece of a write. */
  cut(from: number, end: number): number {
    const { random } = this.clock;
    if (end - from < 2 || !random.one(this.manners.pieces)) return end;
    return from + 1 + random.below(Math.min(end - from, Math.ceil(end / PIECES_MAX) + 1));
  }

  /** @returns null if the address is in use */
  listen(addr: SockAddr): Listener | null {
    const known = this.listeners.get(nameOf(addr));
    if (known?.open) return null;
    const listener = new Listener(addr);
    this.listeners.set(nameOf(addr), listener);
    return listener;
  }

  find(addr: SockAddr): Listener | null {
    const listener = this.listeners.get(nameOf(addr));
    return listener?.open ? listener : null;
  }

  /** Removes the file of a Unix socket: its listener remains, but new connections cannot find it. */
  forget(addr: SockAddr, listener: Listener): void {
    if (this.listeners.get(nameOf(addr)) === listener) this.listeners.delete(nameOf(addr));
  }

  /** The end of a new connection; writable() reports the outcome to its watchers. */
  connect(to: SockAddr, host: string): End {
    const { random } = this.clock;
    const listener = this.find(to);
    const [least, most] = this.manners.capacity;
    const capacity = listener?.capacity || random.between(least, most);
    const local: SockAddr = {
      family: to.family,
      host: to.port === 0 ? '' : host,
      port: to.port === 0 ? 0 : ++this.lastPort,
    };
    if (this.lastPort > 60000) this.lastPort = 32768;
    const end = new End(this, local, to, capacity);
    end.connected = -1;
    this.clock.after(2 * this.delay(), () => this.finishConnect(end, to, capacity));
    return end;
  }

  private finishConnect(end: End, to: SockAddr, capacity: number): void {
    const listener = this.find(to);
    if (end.closed || listener?.mode === 'silence') return;
    if (listener === null || listener.mode === 'refuse') {
      end.connected = to.port === 0 && listener === null ? ENOENT : ECONNREFUSED;
      end.tellWritable();
      return;
    }
    const other = new End(this, to, end.local, capacity);
    other.peer = end;
    end.peer = other;
    end.connected = 0;
    listener.queue.push(other);
    end.tellWritable();
    for (const watcher of [...listener.watchers]) watcher.readable();
  }
}
