/*
 * The clock of the loop: one reading per event loop turn, shared by everything that happens in that turn, as PgBouncer's
 * get_cached_time(). It is monotonic, in microseconds, so that a step of the wall clock moves no deadline. The wall clock
 * is for display and for other processes only: wallTime() and monotonicTime() convert, with the difference of the moment.
 */

/** Microseconds in a second. */
export const USEC = 1_000_000;

let cachedTime = 0;

/** The monotonic clock now, in usec, uncached: what the loop reads at the end of a wait (CLOCK_MONOTONIC). */
export function getRealTime(): number {
  const [seconds, nanoseconds] = process.hrtime();
  return seconds * USEC + Math.floor(nanoseconds / 1000);
}

/** The monotonic clock, in usec, as read when this turn of the loop began; before the first turn, at the first call. */
export function getCachedTime(): number {
  if (cachedTime === 0) cachedTime = getRealTime();
  return cachedTime;
}

/** The turn's reading, from the loop, which takes it when the wait ends. @param now usec, monotonic */
export function setTimeCache(now: number): void {
  cachedTime = now;
}

/** Two readings of the two clocks differ by up to so many usec without any step: Date.now() counts milliseconds. */
const OFFSET_NOISE = 2000;

let offset = 0;

/** Usec to add to a monotonic time to make it a time since the epoch, now. */
function wallOffset(): number {
  const fresh = Date.now() * 1000 - getRealTime();
  // a stable offset, or the same time would be displayed as two different seconds now and then
  if (Math.abs(fresh - offset) > OFFSET_NOISE) offset = fresh;
  return offset;
}

/** @param time usec, monotonic; 0 = never @returns usec since the epoch; 0 stays 0 */
export function wallTime(time: number): number {
  return time === 0 ? 0 : Math.max(1, Math.round(time + wallOffset()));
}

/**
 * A time that another process gave, on our clock. It may lie before this machine was started, or, after a step of the wall
 * clock, in the future: a future time counts as now, or nothing that waits on it would ever be due.
 * @param time usec since the epoch; 0 = never @returns usec, monotonic; 0 stays 0
 */
export function monotonicTime(time: number): number {
  if (time === 0) return 0;
  const now = getRealTime();
  return Math.min(now, Math.round(time - wallOffset())) || -1;
}
