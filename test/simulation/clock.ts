/*
 * The time and the events of a simulation. Time passes only when the simulation moves the clock to the next event, so
 * that an idle hour costs nothing and the same seed gives the same run.
 */

import type { Random } from '../harness/hostile/random';

/** The loop adds this to the kernel's clock, see native/loop/turn.h. usec */
const CLOCK_EPOCH = 1e15;
/** a second in usec */
export const SECOND = 1_000_000;
/** a millisecond in usec */
export const MS = 1000;
/** Wall time at the beginning of a simulation: a day in 2026. usec */
const WALL_START = 1_780_000_000 * SECOND;

/** A future event, unless it is canceled. */
export interface Event {
  at: number;
  /** of two events at the same time, the older one is first */
  order: number;
  run: (() => void) | null;
}

function before(a: Event, b: Event): boolean {
  return a.at < b.at || (a.at === b.at && a.order < b.order);
}

/** Both clocks, and the events in the order of their time (a binary heap). */
export class Clock {
  readonly random: Random;
  /** the monotonic clock, usec */
  now: number;
  /** wall clock minus monotonic clock, usec */
  wallOffset: number;
  private readonly heap: Event[] = [];
  private orders = 0;

  constructor(random: Random) {
    this.random = random;
    this.now = CLOCK_EPOCH + random.below(1000) * SECOND;
    this.wallOffset = WALL_START - this.now;
  }

  get wall(): number {
    return this.now + this.wallOffset;
  }

  /** Changes the wall clock. */
  stepWall(usec: number): void {
    this.wallOffset += usec;
  }

  /** @param delay usec from now */
  after(delay: number, run: () => void): Event {
    return this.at(this.now + Math.max(0, delay), run);
  }

  at(at: number, run: () => void): Event {
    const event = { at, order: this.orders++, run };
    const { heap } = this;
    let i = heap.length;
    heap.push(event);
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (!before(event, heap[parent] as Event)) break;
      heap[i] = heap[parent] as Event;
      i = parent;
    }
    heap[i] = event;
    return event;
  }

  /** Cancels an event. */
  cancel(event: Event | null): void {
    if (event !== null) event.run = null;
  }

  /** When the next event is due; Infinity if there is none. */
  nextAt(): number {
    while (this.heap.length > 0 && (this.heap[0] as Event).run === null) this.pop();
    return this.heap[0]?.at ?? Number.POSITIVE_INFINITY;
  }

  /** Moves the clock, and runs the events that become due. */
  advance(until: number): void {
    for (let at = this.nextAt(); at <= until; at = this.nextAt()) {
      if (at > this.now) this.now = at;
      this.pop().run?.();
    }
    if (until > this.now) this.now = until;
  }

  private pop(): Event {
    const { heap } = this;
    const first = heap[0] as Event;
    const last = heap.pop() as Event;
    if (heap.length === 0) return first;
    let i = 0;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && before(heap[child + 1] as Event, heap[child] as Event)) child++;
      if (!before(heap[child] as Event, last)) break;
      heap[i] = heap[child] as Event;
      i = child;
    }
    heap[i] = last;
    return first;
  }
}
