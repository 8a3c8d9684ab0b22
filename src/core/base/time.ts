/*
 * The two clocks. Every deadline, age and duration is measured with the monotonic clock, which steps of the wall clock
 * do not affect. It is read once per turn of the loop, and everything in that turn shares the reading, as with
 * PgBouncer's get_cached_time(). Wall time is only for people and other processes: an instant is converted when it is
 * shown or sent. WallTime keeps the two apart in the type system; `npm run clock` keeps other clocks out.
 *
 * An instant is a plain number of usec, never 0: many fields use 0 for "not set".
 */
import { native } from './native';

/** Microseconds in a second. */
export const USEC = 1_000_000;

/** How long an offset between the clocks is reused, in usec, so that times converted together get the same offset. */
const OFFSET_LIFE = USEC / 1000;

let cachedTime = 0;
let offset = 0;
let offsetReadAt = 0;

declare const wallClock: unique symbol;

/** Microseconds since 1970, or 0 for "not set". The type prevents accidental comparison and arithmetic. */
export interface WallTime {
  readonly [wallClock]: true;
}

/** The monotonic clock now, in usec, uncached. */
export function readClock(): number {
  return native.readClock();
}

/** The monotonic clock at the beginning of this turn of the loop, in usec; before the first turn, at the first call. */
export function getCachedTime(): number {
  if (cachedTime === 0) cachedTime = readClock();
  return cachedTime;
}

/** Sets the reading of this turn: when the loop's wait ends, and after a takeover. @param now usec */
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

/** How far the wall clock is ahead of the monotonic clock now, in usec. */
export function currentWallOffset(): number {
  return wallOffset(readClock());
}

/**
 * The wall time of an instant. 0 stays 0.
 * @param ahead how far the wall clock is ahead, in usec; default: according to its current setting
 */
export function wallTime(instant: number, ahead = currentWallOffset()): WallTime {
  return (instant === 0 ? 0 : instant + ahead) as unknown as WallTime;
}

/**
 * The instant of a wall time received from another process. It is never in the future: a later wall time was read
 * before the wall clock was set back, and counts as now. 0 or a missing value becomes 0.
 * @param ahead as for wallTime()
 */
export function fromWallTime(time: WallTime, ahead = currentWallOffset()): number {
  const usec = time as unknown as number;
  return usec > 0 ? Math.min(Math.max(usec - ahead, 1), readClock()) : 0;
}
