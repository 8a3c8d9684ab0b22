/*
 * One handle of a simulated loop: a connection, a listening socket or a watch, with the bytes that it keeps and those that
 * are not sent yet.
 */
import type { Watcher } from './network';
import type { Description } from './process';
import type { Records } from './records';

export const NOTHING = Buffer.alloc(0);

/** What a stream needs of its loop. */
interface Heatable {
  /** The stream may have something to do. */
  heat(stream: Stream): void;
}

export class Stream implements Watcher {
  reading = false;
  connecting = false;
  hot = false;
  live = true;
  ending = false;
  endHeld = false;
  endResult = 0;
  redeliver = false;
  recvLimit = 0;
  /** records until rest(), -1 before that */
  private restedTraffic = -1;
  lastTurn = -1;
  kept: Buffer = NOTHING;
  /** with TLS: records */
  unsent: Buffer = NOTHING;
  /** sent in the next wait; with TLS, what becomes records then */
  outbox: Buffer[] = [];
  /** -errno of a send that no call returned */
  sendFailure = 0;
  tls: Records | null = null;
  /** the end of the handshake is not reported yet */
  handshake = false;
  /** accepts TLS: the other end speaks first */
  accepting = false;

  constructor(
    private readonly loop: Heatable,
    readonly handle: number,
    readonly fd: number,
    readonly description: Description,
  ) {
    this.end?.watch(this);
    description.listener?.watch(this);
  }

  get end() {
    return this.description.end;
  }

  readable(): void {
    this.loop.heat(this);
  }

  writable(): void {
    this.loop.heat(this);
  }

  /** Reads up to so many bytes; with TLS, the data of the records in them. */
  read(most: number): Buffer | null {
    const { end, tls } = this;
    if (end === null) return null;
    if (tls === null) return end.read(most);
    for (let data = tls.open(); ; data = tls.open()) {
      if (data.length > 0) return data;
      const bytes = tls.closed ? null : end.read(most);
      if (bytes === null) return null;
      tls.receive(bytes);
    }
  }

  rest(): number {
    this.reading = this.redeliver = false;
    this.restedTraffic = this.tls?.traffic ?? 0;
    return 0;
  }

  /** Something has been received or sent since rest(). */
  get stirred(): boolean {
    if (this.restedTraffic < 0) return false;
    return this.kept.length + this.unsent.length > 0 || (this.tls?.traffic ?? 0) !== this.restedTraffic;
  }

  /** What goes onto the wire for these bytes. */
  wire(bytes: Buffer): Buffer {
    return this.tls === null ? bytes : this.tls.seal(bytes);
  }

  forget(): void {
    this.live = false;
    this.end?.unwatch(this);
    this.description.listener?.unwatch(this);
    this.kept = this.unsent = NOTHING;
    this.outbox = [];
  }
}
