/*
 * The two clocks. Every deadline, age and duration is measured with the monotonic one: it is read once per turn of the loop and
 * shared by everything that happens in that turn, as the original's get_cached_time(), and no step of the wall clock
 * moves it. Wall time is for people and for other processes only: it is made of an instant when it is shown or sent. Its type
 * keeps the two apart; `npm run clock` keeps other clocks out.
 *
 * An instant is a plain number of usec, never 0: many fields use 0 for "not set".
 */
import { native } from './native';

/** Microseconds in a second. */
export const USEC = 1_000_000;

/** How long an offset between the clocks is used for: what is converted at once gets the same one. usec */
const OFFSET_LIFE = USEC / 1000;

let cachedTime = 0;
let offset = 0;
let offsetReadAt = 0;

declare const wallClock: unique symbol;

/** Microseconds since 1970, or 0 for "not set". Nothing can be compared or computed with it by mistake. */
export interface WallTime {
  readonly [wallClock]: true;
}

/** The monotonic clock now, in usec, uncached. */
export function readClock(): number {
  return native.readClock();
}

/** The monotonic clock, in usec, as read when this turn of the loop began; before the first turn, at the first call. */
export function getCachedTime(): number {
  if (cachedTime === 0) cachedTime = readClock();
  return cachedTime;
}

/** The turn's reading, from the loop, which takes it when the wait ends. @param now usec */
export function setTimeCache(now: number): void {
  cachedTime = now;
}

function wallOffset(now: number): number {
  if (Math.abs(now - offsetReadAt) >= OFFSET_LIFE) {
    offset = native.wallOffset();
    offsetReadAt = now;
  }
  return offset;
}

/** What the wall clock says, or would say if it had always been as it is now, at an instant. 0 stays 0. */
export function wallTime(instant: number): WallTime {
  return (instant === 0 ? 0 : instant + wallOffset(readClock())) as unknown as WallTime;
}

/**
 * The instant of a wall time that another process gave. It lies in the past: one that does not was read before the wall clock was set
 * back, and counts as now. 0, or nothing, becomes 0.
 */
export function fromWallTime(time: WallTime): number {
  const usec = time as unknown as number;
  if (!(usec > 0)) return 0;
  const now = readClock();
  return Math.min(Math.max(usec - wallOffset(now), 1), now);
}
