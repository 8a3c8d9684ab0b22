/*
 * The loop of a simulated process: the same interface as native/loop (handles, the arena, the ring, kept and unsent
 * bytes) on a simulated kernel. The guarantees of native/loop hold here too: one RECV record per handle and turn, kept
 * bytes before new ones, and one end of the stream.
 */
import { constants } from 'node:os';
import { Ev, Rec } from '../../src/core/base/native';
import { EAGAIN, EBADF } from './network';
import type { Description, SimProcess } from './process';
import { NOTHING, Stream } from './stream';
import { shake, tlsCalls } from './tls';

const { EIO, EMSGSIZE, ENOBUFS, EMFILE } = constants.errno;

const RECV_SPACE = 4 << 20;
const SIDE_SPACE = 2 << 20;
const RING_RECORDS = 4096;
const KEPT_MAX = 1 << 20;
const RECEIVED_AHEAD_MAX = 8192; // one buffer of the io_uring backend
const FIRST_MAX = 1024; // what recvFirst() takes at most
const UNSENT_MAX = 256 << 20;
const ACCEPT_MAX = 128;
const ROOM_LEAST = 16 * 1024;
/** Duration of a turn, usec: usually, and sometimes. */
const TURN_USEC = 60;
const SLOW_TURN_USEC = 5000;
const STALE = 0xee; // fills the arena where nothing was received in this turn

export class SimLoop {
  readonly arena = new ArrayBuffer(RECV_SPACE + SIDE_SPACE);
  readonly ring = new ArrayBuffer(RING_RECORDS * Rec.SIZE * 4 + 32);
  readonly bytes = Buffer.from(this.arena);
  private readonly records = new Int32Array(this.ring, 0, RING_RECORDS * Rec.SIZE);
  private readonly clockCell = new Float64Array(this.ring, RING_RECORDS * Rec.SIZE * 4, 1);
  private readonly streams: (Stream | null)[] = [null];
  private readonly freeHandles: number[] = [];
  private closing: number[] = [];
  private hot: Stream[] = [];
  private readonly senders: Stream[] = [];
  private count = 0;
  private used = 0;
  private sideUsed = 0;
  private turn = 0;
  private recvMax = 0;
  private broken = false;
  private mayReceiveAhead = true;
  /** records that do not belong to a stream */
  private readonly others: [kind: Ev, handle: number, result: number][] = [];
  /** most descriptors that the process may have */
  fdsMax = Number.POSITIVE_INFINITY;
  /** when the current wait times out */
  deadline = 0;

  constructor(private readonly process: SimProcess) {}

  private get random() {
    return this.process.machine.random;
  }

  heat(stream: Stream): void {
    if (stream.hot) return;
    stream.hot = true;
    this.hot.push(stream);
  }

  /** Delivers a record that belongs to no stream in the next turn: a signal, or an answer. */
  post(kind: Ev, handle: number, result: number): void {
    this.others.push([kind, handle, result]);
  }

  private add(kind: Ev, handle: number, result: number, offset: number): void {
    const at = this.count++ * Rec.SIZE;
    this.records[at + Rec.KIND] = kind;
    this.records[at + Rec.HANDLE] = handle;
    this.records[at + Rec.RESULT] = result;
    this.records[at + Rec.OFFSET] = offset;
  }

  private of(handle: number): Stream | null {
    const stream = this.streams[handle] ?? null;
    return stream?.live ? stream : null;
  }

  private open(fd: number): Stream | null {
    const description = this.process.describe(fd);
    if (description === null) return null;
    const handle = this.freeHandles.pop() ?? this.streams.length;
    const stream = new Stream(this, handle, fd, description);
    this.streams[handle] = stream;
    return stream;
  }

  private forget(stream: Stream): number {
    stream.forget();
    this.closing.push(stream.handle);
    return stream.fd;
  }

  private endOf(stream: Stream): number | null {
    const { end } = stream;
    if (stream.tls?.closed) return 0;
    if (end === null || end.length > 0) return null;
    if (end.error !== 0) return -end.error;
    return end.eof ? 0 : null;
  }

  private reportEnd(stream: Stream, result: number): void {
    stream.reading = stream.redeliver = false;
    stream.lastTurn = this.turn;
    this.add(Ev.RECV, stream.handle, result, 0);
  }

  private deliver(stream: Stream, fresh: Buffer): void {
    const offset = this.used;
    stream.kept.copy(this.bytes, offset);
    fresh.copy(this.bytes, offset + stream.kept.length);
    const length = stream.kept.length + fresh.length;
    this.used = (this.used + length + 7) & ~7;
    stream.kept = NOTHING;
    stream.redeliver = false;
    stream.lastTurn = this.turn;
    this.add(Ev.RECV, stream.handle, length, offset);
  }

  private deliverNothing(stream: Stream, result: number | null): void {
    if (stream.redeliver) {
      if (result !== null) {
        stream.endHeld = true;
        stream.endResult = result;
      }
      this.deliver(stream, NOTHING);
    } else if (stream.endHeld || result !== null) {
      const reported = stream.endHeld ? stream.endResult : (result as number);
      stream.endHeld = false;
      this.reportEnd(stream, reported);
    }
  }

  private receive(stream: Stream): void {
    const { end } = stream;
    if (end === null || stream.handshake || !(stream.redeliver || (stream.reading && !stream.connecting))) return;
    const full = this.used + stream.kept.length + ROOM_LEAST > RECV_SPACE || this.count >= RING_RECORDS;
    if (full || stream.lastTurn === this.turn) {
      this.heat(stream);
      return;
    }
    if (stream.kept.length > KEPT_MAX) {
      this.reportEnd(stream, -EMSGSIZE);
      return;
    }
    const limited = stream.recvLimit > 0 && stream.tls === null;
    const most = Math.min(limited ? stream.recvLimit : this.recvMax, RECV_SPACE - this.used - stream.kept.length);
    const fresh = stream.endHeld ? null : stream.read(most);
    if (fresh !== null) {
      stream.recvLimit = 0;
      this.deliver(stream, fresh);
    } else {
      this.deliverNothing(stream, stream.endHeld ? null : this.endOf(stream));
    }
    if (stream.reading && (end.length > 0 || stream.endHeld || this.endOf(stream) !== null)) this.heat(stream);
  }

  private flush(stream: Stream): void {
    if (stream.unsent.length === 0) return;
    const n = (stream.end as NonNullable<Stream['end']>).write(stream.unsent);
    if (n === -EAGAIN) return;
    stream.unsent = n < 0 ? NOTHING : stream.unsent.subarray(n);
    if (stream.unsent.length === 0) this.add(Ev.DRAIN, stream.handle, Math.min(n, 0), 0);
  }

  private send(handle: number, bytes: Buffer): number {
    const stream = this.of(handle);
    if (stream === null || stream.end === null) return -EBADF;
    if (bytes.length === 0) return stream.unsent.length;
    if (stream.tls !== null && (stream.handshake || stream.tls.frozen)) return -EIO;
    if (stream.unsent.length + bytes.length > UNSENT_MAX) return -ENOBUFS;
    if (stream.unsent.length > 0 || stream.connecting)
      stream.unsent = Buffer.concat([stream.unsent, stream.wire(bytes)]);
    else if (stream.outbox.push(bytes) === 1) this.senders.push(stream);
    return stream.unsent.length;
  }

  /** Queues bytes that are records already, if the stream has TLS. */
  private sendRaw(stream: Stream, bytes: Buffer): number {
    this.sendQueued(stream);
    stream.unsent = Buffer.concat([stream.unsent, bytes]);
    this.heat(stream);
    return stream.unsent.length;
  }

  /** Sends what is queued for a stream; what the peer does not take is unsent. */
  private sendQueued(stream: Stream): void {
    if (stream.outbox.length === 0) return;
    const bytes = stream.wire(Buffer.concat(stream.outbox));
    stream.outbox = [];
    const n = (stream.end as NonNullable<Stream['end']>).write(bytes);
    if (n < 0 && n !== -EAGAIN) {
      stream.sendFailure = n;
      this.heat(stream);
    } else if (n < bytes.length) {
      stream.unsent = bytes.subarray(Math.max(n, 0));
    }
  }

  /** Sends what all streams have queued. */
  private sendAllQueued(): void {
    for (const stream of this.senders.splice(0)) if (stream.live) this.sendQueued(stream);
  }

  private accept(stream: Stream): void {
    const listener = stream.description.listener;
    if (listener === null || !stream.reading) return;
    for (let i = 0; i < ACCEPT_MAX && listener.queue.length > 0; i++) {
      if (this.process.fdCount >= this.fdsMax) {
        if (i === 0) this.add(Ev.ACCEPT, stream.handle, -EMFILE, 0);
        break;
      }
      const end = listener.queue.shift() as NonNullable<Stream['end']>;
      const fd = this.process.addFd({ end, listener: null, refs: 1 });
      this.add(Ev.ACCEPT, stream.handle, fd, listener.addr.port === 0 ? 1 : 0);
    }
    if (listener.queue.length > 0) this.heat(stream);
  }

  private step(stream: Stream): void {
    const { end } = stream;
    if (end === null) {
      this.accept(stream);
      return;
    }
    if (stream.connecting) {
      if (end.connected < 0) return;
      stream.connecting = false;
      this.add(Ev.CONNECT, stream.handle, -end.connected, 0);
    }
    if (stream.sendFailure !== 0) {
      this.add(Ev.DRAIN, stream.handle, stream.sendFailure, 0);
      stream.sendFailure = 0;
    }
    this.flush(stream);
    shake(this.forTls, stream);
    if (end.eof || end.error !== 0) stream.ending = true;
    this.receive(stream);
  }

  /** Writes the records of the events. @returns their number so far */
  private poll(): number {
    for (const [kind, handle, result] of this.others.splice(0)) this.add(kind, handle, result, 0);
    const due = this.hot;
    this.hot = [];
    for (let left = due.length; left > 0; left--) {
      // the kernel reports descriptors in no particular order
      const at = this.random.below(left);
      const stream = due[at] as Stream;
      due[at] = due[left - 1] as Stream;
      stream.hot = false;
      if (stream.live) this.step(stream);
    }
    return this.count;
  }

  /** True if a turn of this process would have something to do. */
  get isReady(): boolean {
    return this.broken || this.others.length > 0 || this.hot.length > 0;
  }

  private wait(timeoutMs: number): number {
    const { machine } = this.process;
    this.sendAllQueued();
    machine.turnEnded(this.process);
    this.turn++;
    this.freeHandles.push(...this.closing);
    this.closing = [];
    this.bytes.fill(STALE, 0, this.used);
    this.bytes.fill(STALE, RECV_SPACE, RECV_SPACE + this.sideUsed);
    this.count = this.used = this.sideUsed = 0;
    const { clock } = machine;
    const slow = this.random.one(200) ? SLOW_TURN_USEC : TURN_USEC;
    clock.advance(clock.now + this.random.below(slow) + machine.delay());
    // the stack below belongs to another process, which continues only when this turn ends
    const isNested = machine.processes.some((other) => other !== this.process && other.running);
    const wakes = this.broken || timeoutMs === 0 || isNested;
    this.deadline = timeoutMs < 0 ? Number.POSITIVE_INFINITY : clock.now + timeoutMs * 1000;
    if (this.poll() === 0 && !wakes) {
      machine.sleep(this.process, this.deadline, () => {
        if (this.poll() > 0) return true;
        return this.broken;
      });
    }
    this.broken = false;
    this.clockCell[0] = clock.now;
    return this.count;
  }

  private connect(description: Description, fd: number): number {
    const stream = this.open(fd);
    if (stream === null || description.end === null) return -EBADF;
    stream.connecting = true;
    this.heat(stream);
    return stream.handle;
  }

  /** Starts to connect: the descriptor already has its end of the connection. */
  startConnect(fd: number): number {
    const description = this.process.describe(fd);
    return description === null ? -EBADF : this.connect(description, fd);
  }

  private recvStart(handle: number): void {
    const stream = this.of(handle);
    if (stream === null || stream.reading) return;
    stream.reading = true;
    stream.redeliver = stream.kept.length > 0;
    this.heat(stream);
  }

  private recvStop(stream: Stream | null): void {
    if (stream === null) return;
    stream.reading = stream.redeliver = false;
  }

  /** A backend may have received ahead for a stream that is stopped: the bytes are kept. */
  private receiveAhead(stream: Stream): void {
    if (stream.connecting || stream.handshake) return;
    // TLS holds no whole record then
    const fresh = this.mayReceiveAhead && this.random.one(3) ? stream.read(RECEIVED_AHEAD_MAX) : stream.tls?.open();
    if (fresh) stream.kept = Buffer.concat([stream.kept, fresh]);
  }

  private recvStopAll(except: number): number[] {
    const unsent: number[] = [];
    // the peers go on while the turn that stops them lasts
    const { clock } = this.process.machine;
    clock.advance(clock.now + this.random.below(SLOW_TURN_USEC));
    for (const stream of this.streams) {
      if (stream === null || !stream.live || stream.end === null || stream.handle === except) continue;
      this.recvStop(stream);
      this.receiveAhead(stream);
      this.sendQueued(stream);
      if (stream.unsent.length > 0) unsent.push(stream.handle);
    }
    return unsent;
  }

  private keep(handle: number, bytes: Buffer): number {
    const stream = this.of(handle);
    if (stream === null) return -EBADF;
    stream.kept = Buffer.concat([stream.kept, bytes]);
    return 0;
  }

  private takeKept(handle: number): number {
    const stream = this.of(handle);
    if (stream === null) return -EBADF;
    const { kept } = stream;
    if (kept.length === 0) return -1;
    if (this.sideUsed + kept.length > SIDE_SPACE) return -ENOBUFS;
    const offset = RECV_SPACE + this.sideUsed;
    kept.copy(this.bytes, offset);
    this.sideUsed = (this.sideUsed + kept.length + 7) & ~7;
    stream.kept = NOTHING;
    stream.redeliver = false;
    return offset;
  }

  /** Keeps what a new connection has sent, if the network has brought it already. */
  private keepFirst(handle: number): void {
    const stream = this.of(handle);
    if (stream !== null && this.random.one(2)) stream.kept = stream.read(FIRST_MAX) ?? NOTHING;
  }

  private ended(handle: number): number {
    const stream = this.of(handle);
    if (stream === null) return -EBADF;
    if (stream.endHeld) return stream.kept.length === 0 ? 1 : 0;
    return stream.ending && this.endOf(stream) !== null ? 1 : 0;
  }

  private close(handle: number, hangUp = false): void {
    const stream = this.of(handle);
    if (stream === null) return;
    this.sendQueued(stream);
    const { end, tls } = stream;
    if (end !== null && stream.unsent.length > 0) end.cutShort = true;
    else if (tls?.established && !tls.frozen && !stream.connecting) end?.write(tls.close());
    if (hangUp) end?.close();
    this.process.closeFd(this.forget(stream));
  }

  private detach(handle: number): number {
    const stream = this.of(handle);
    if (stream === null) return -EBADF;
    this.sendQueued(stream);
    return this.forget(stream);
  }

  private unsent(handle: number): number {
    const stream = this.of(handle);
    if (stream === null) return -EBADF;
    this.sendQueued(stream);
    return stream.unsent.length;
  }

  private takeUnsent(handle: number): Uint8Array {
    const stream = this.of(handle);
    if (stream === null) return NOTHING;
    this.sendQueued(stream);
    const { unsent } = stream;
    stream.unsent = NOTHING;
    return unsent;
  }

  private buffered(handle: number): number {
    const stream = this.of(handle);
    return stream === null ? -EBADF : stream.kept.length + (stream.tls?.inputLength ?? 0);
  }

  private limit(handle: number, most: number): void {
    const stream = this.of(handle);
    if (stream !== null) stream.recvLimit = Math.max(0, most);
  }

  private readonly forTls = {
    find: (handle: number) => this.of(handle),
    all: () => this.streams.filter((stream): stream is Stream => stream?.live === true),
    heat: (stream: Stream) => this.heat(stream),
    sendRaw: (stream: Stream, bytes: Buffer) => this.sendRaw(stream, bytes),
    post: (kind: Ev, handle: number, result: number) => this.add(kind, handle, result, 0),
    piece: (offset: number, length: number) => this.bytes.subarray(offset, offset + length),
  };

  /** Unsent bytes of another process. */
  sendRecords(handle: number, bytes: Uint8Array): number {
    const stream = this.of(handle);
    if (stream === null) return -EBADF;
    if (stream.tls === null) return this.send(handle, Buffer.from(bytes));
    return bytes.length === 0 ? stream.unsent.length : this.sendRaw(stream, Buffer.from(bytes));
  }

  /** This half of the interface `Native`. */
  calls(): Record<string, unknown> {
    const { piece } = this.forTls;
    const part = (bytes: Uint8Array, offset: number, length: number) =>
      Buffer.from(bytes.buffer, bytes.byteOffset + offset, length);
    return {
      arena: this.arena,
      ring: this.ring,
      loopInit: (_backend: string, recvMax: number) => {
        this.recvMax = recvMax;
        return 'simulation';
      },
      libuvVersion: () => 'simulation',
      wait: (timeoutMs: number) => this.wait(timeoutMs),
      loopBreak: () => {
        this.broken = true;
      },
      wakeFd: () => -1,
      signalStart: () => 0,
      open: (fd: number) => this.open(fd)?.handle ?? -EBADF,
      openAccepted: (fd: number) => this.open(fd)?.handle ?? -EBADF,
      listenOpen: (fd: number) => this.open(fd)?.handle ?? -EBADF,
      listenStart: (handle: number, on: number) => {
        const stream = this.of(handle);
        if (stream === null) return;
        stream.reading = on !== 0;
        this.heat(stream);
      },
      fdOf: (handle: number) => this.of(handle)?.fd ?? -EBADF,
      close: (handle: number) => this.close(handle),
      hangUp: (handle: number) => this.close(handle, true),
      detach: (handle: number) => this.detach(handle),
      recvStart: (handle: number) => this.recvStart(handle),
      ended: (handle: number) => this.ended(handle),
      recvStop: (handle: number) => this.recvStop(this.of(handle)),
      rest: (handle: number) => this.of(handle)?.rest() ?? -EBADF,
      stirred: () => this.forTls.all().flatMap((stream) => (stream.stirred ? [stream.handle] : [])),
      recvStopAll: (except: number) => this.recvStopAll(except),
      recvLimit: (handle: number, most: number) => this.limit(handle, most),
      keep: (handle: number, offset: number, length: number) => this.keep(handle, piece(offset, length)),
      keepFirst: (handle: number) => this.keepFirst(handle),
      takeKept: (handle: number) => this.takeKept(handle),
      keptLength: (handle: number) => this.of(handle)?.kept.length ?? -EBADF,
      buffered: (handle: number) => this.buffered(handle),
      receiveAhead: (on: number) => {
        this.mayReceiveAhead = on > 0;
      },
      copyKept: (handle: number) => Buffer.from(this.of(handle)?.kept ?? NOTHING),
      keepBytes: (handle: number, bytes: Uint8Array) => this.keep(handle, part(bytes, 0, bytes.length)),
      send: (handle: number, offset: number, length: number) => this.send(handle, piece(offset, length)),
      sendBytes: (handle: number, bytes: Uint8Array, offset: number, length: number) =>
        this.send(handle, Buffer.from(part(bytes, offset, length))),
      loopEnd: () => this.sendAllQueued(),
      loopRefusal: () => '',
      unsent: (handle: number) => this.unsent(handle),
      takeUnsent: (handle: number) => this.takeUnsent(handle),
      sendRecords: (handle: number, bytes: Uint8Array) => this.sendRecords(handle, bytes),
      ...tlsCalls(this.forTls),
    };
  }
}
