/*
 * Whoever is at the other end of the pooler's connections: writes without caring how much the network takes at once, reads when
 * it likes.
 */
import type { Clock } from './clock';
import type { End } from './network';

export class Line {
  private out: Buffer[] = [];
  private closeAfter = false;
  /** nothing is read */
  deaf = false;
  over = false;

  /**
   * @param onBytes called with what arrives
   * @param onEnd called once, when the other end has gone
   * @param onConnect called with 0 or an errno, for a connection that is being made
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
      // a broken connection ends by what can be read
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

  /** Closes when everything is sent. */
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
