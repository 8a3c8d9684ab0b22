/*
 * The other end of a connection of the pooler: a client, the operator or a PostgreSQL session. It writes any amount at
 * once, and reads when it is told to.
 */
import type { Clock } from './clock';
import type { End } from './network';

export class Line {
  private out: Buffer[] = [];
  private closeAfter = false;
  /** received bytes are left in the connection */
  deaf = false;
  over = false;

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
      this.onBytes(bytes);
    }
    if (this.over || end.length > 0) return;
    if (end.eof || end.error !== 0) this.finish(end.error !== 0);
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
    if (this.over) return;
    this.out.push(Buffer.from(text, 'latin1'));
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
