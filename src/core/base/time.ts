/*
 * The clock of the loop: one reading per turn, shared by everything that happens in that turn, as the original's
 * get_cached_time(). Microseconds since the epoch fit a double until the year 2255.
 */

/** Microseconds in a second. */
export const USEC = 1_000_000;

let cachedTime = 0;

/** The wall clock now, in usec, uncached. */
export function getRealTime(): number {
  return Math.floor((performance.timeOrigin + performance.now()) * 1000);
}

/** The wall clock, in usec, as read when this turn of the loop began; before the first turn, at the first call. */
export function getCachedTime(): number {
  if (cachedTime === 0) cachedTime = getRealTime();
  return cachedTime;
}

/** The turn's reading, from the loop, which takes it when the wait ends. @param now usec */
export function setTimeCache(now: number): void {
  cachedTime = now;
}
