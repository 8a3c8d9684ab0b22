/*
 * The other end of a connection of the pooler: a client, the operator or a PostgreSQL session. It writes any amount at
 * once, and reads when it is told to.
 */
import type { Clock } from './clock';
import type { End } from './network';
import { Records } from './records';
import { request, SSL_REQUEST } from './wire';

/** A client that begins TLS. */
interface Asking {
  /** what its hello says */
  kind: string;
  /** called with true when TLS has begun, or with false if it is refused */
  done: (secured: boolean) => void;
}

export class Line {
  private out: Buffer[] = [];
  private closeAfter = false;
  /** received bytes are left in the connection */
  deaf = false;
  over = false;
  private tls: Records | null = null;
  private asking: Asking | null = null;
  /** in the accepting role: its hello is not sent yet */
  private owesHello = false;

  /**
   * @param onBytes called with received bytes
   * @param onEnd called once, when the other end has closed or broken the connection
   * @param onConnect called with 0 or an errno, for a connection in progress
   */
  constructor(
    private readonly clock: Clock,
    readonly end: End,
    private readonly onBytes: (bytes: Buffer) => void,
    private readonly onEnd: (broken: boolean) => void,
    private readonly onConnect: (errno: number) => void = () => {},
  ) {
    end.watch(this);
  }

  readable(): void {
    const { end } = this;
    while (!this.deaf && !this.over) {
      const bytes = end.read(Number.POSITIVE_INFINITY);
      if (bytes === null) break;
      this.take(bytes);
    }
    if (this.over || end.length > 0) return;
    if (end.eof || end.error !== 0) this.finish(end.error !== 0);
  }

  /** Sends a request for TLS, and begins it if the other end agrees. */
  askForTls(kind: string, done: (secured: boolean) => void): void {
    this.send(request(SSL_REQUEST));
    this.asking = { kind, done };
  }

  /** Agrees to TLS: everything that follows is in records. */
  acceptTls(): void {
    this.send('S');
    this.tls = new Records();
    this.owesHello = true;
  }

  get isSecure(): boolean {
    return this.tls?.established === true;
  }

  private take(bytes: Buffer): void {
    if (this.tls !== null) {
      this.takeRecords(this.tls, bytes);
    } else if (this.asking !== null) {
      const { kind, done } = this.asking;
      const answer = bytes.toString('latin1');
      if (answer === 'S') {
        this.tls = new Records();
        this.queue(this.tls.hello(kind));
      } else {
        this.asking = null;
        if (answer === 'N') done(false);
        else this.onBytes(bytes);
      }
    } else {
      this.onBytes(bytes);
    }
  }

  private takeRecords(tls: Records, bytes: Buffer): void {
    tls.receive(bytes);
    for (let data = tls.next(); data !== null && !this.over; data = tls.next()) {
      if (this.owesHello) this.queue(tls.hello(''));
      this.owesHello = false;
      const { asking } = this;
      this.asking = null;
      asking?.done(true);
      if (data.length > 0) this.onBytes(data);
    }
    if (tls.closed && !this.over) this.finish(false);
  }

  private finish(broken: boolean): void {
    this.over = true;
    this.end.close();
    this.onEnd(broken);
  }

  writable(): void {
    const { end } = this;
    if (this.over || end.connected < 0) return;
    if (end.connected > 0) {
      this.over = true;
      this.onConnect(end.connected);
      return;
    }
    if (end.peer !== null && this.isNew) {
      this.isNew = false;
      this.onConnect(0);
    }
    this.flush();
  }

  private isNew = true;

  send(text: string): void {
    const bytes = Buffer.from(text, 'latin1');
    this.queue(this.tls === null ? bytes : this.tls.seal(bytes));
  }

  /** Sends a record without data, which says nothing. */
  sendNothing(): void {
    if (this.isSecure) this.send('');
  }

  private queue(bytes: Buffer): void {
    if (this.over) return;
    this.out.push(bytes);
    this.flush();
  }

  private flush(): void {
    while (this.out.length > 0 && !this.over) {
      const first = this.out[0] as Buffer;
      const n = this.end.write(first);
      // the end of a broken connection is reported to the reader
      if (n < 0) return;
      if (n < first.length) {
        this.out[0] = first.subarray(n);
        return;
      }
      this.out.shift();
    }
    if (this.closeAfter) this.close();
  }

  /** Reads nothing for a while. */
  deafen(usec: number): void {
    this.deaf = true;
    this.clock.after(usec, () => {
      this.deaf = false;
      if (!this.over) this.readable();
    });
  }

  /** Closes once everything has been sent. */
  closeWhenSent(): void {
    if (this.isSecure && !this.closeAfter) this.queue((this.tls as Records).close());
    this.closeAfter = true;
    this.flush();
  }

  /** Closes now; onEnd is not called. */
  close(): void {
    if (this.over) return;
    this.over = true;
    this.end.close();
  }

  /** Breaks the connection. */
  reset(): void {
    if (this.over) return;
    this.over = true;
    this.end.reset();
  }
}
