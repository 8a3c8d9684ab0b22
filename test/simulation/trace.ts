/*
 * The events of a simulation: a hash over all of them, with which two runs are compared, and the last events as text,
 * to explain a failure.
 */
import type { Clock } from './clock';

const SHOWN = 40;
const MS_IN_US = 1000;

export class Trace {
  private high = 0x811c9dc5;
  private low = 0x1234567;
  private readonly last: string[] = [];
  private start = -1;
  count = 0;
  /** called with each line, to print a run */
  watch: ((line: string) => void) | null = null;

  constructor(private readonly clock: Clock) {}

  /** @param who a process, a client, a server */
  add(who: string, what: string): void {
    const { now } = this.clock;
    if (this.start < 0) this.start = now;
    const line = `${((now - this.start) / MS_IN_US).toFixed(3).padStart(12)} ${who.padEnd(8)} ${what}`;
    this.mix(line);
    this.last[this.count++ % SHOWN] = line;
    this.watch?.(line);
  }

  private mix(text: string): void {
    let { high, low } = this;
    for (let i = 0; i < text.length; i++) {
      const c = text.charCodeAt(i);
      low = Math.imul(low ^ c, 0x01000193);
      high = Math.imul(high ^ (low >>> 13), 0x85ebca6b);
    }
    this.high = high;
    this.low = low;
  }

  get hash(): string {
    const hex = (part: number) => (part >>> 0).toString(16).padStart(8, '0');
    return hex(this.high) + hex(this.low);
  }

  /** The last lines, oldest first. */
  tail(): string[] {
    const from = Math.max(0, this.count - SHOWN);
    return Array.from({ length: this.count - from }, (_, at) => this.last[(from + at) % SHOWN] as string);
  }
}
