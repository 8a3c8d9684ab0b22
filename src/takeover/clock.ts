/*
 * The times in the records of a handover. They are wall times, which every version understands. All of them have the offset
 * that the clocks of the old process had at its beginning, and the first record tells this offset. So no time moves when the
 * wall clock is set before the new process reads it.
 */

import { currentWallOffset, fromWallTime, readClock, USEC, type WallTime, wallTime } from '../core/base/time';

/** The clocks of the old process when it wrote the first record, in usec. */
export interface HandoverClock {
  /** its monotonic clock */
  now: number;
  /** how far its wall clock was ahead of that */
  wallAhead: number;
}

/** The new process reads the first record at once, and gives up long before that. usec */
const AGE_MAX = 60 * USEC;

/** `wallAhead` of the handover; undefined = the current offset at each conversion */
let wallAhead: number | undefined;

/** In the old process, before the first time is sent. */
export function startClock(): HandoverClock {
  wallAhead = currentWallOffset();
  return { now: readClock(), wallAhead };
}

/**
 * In the new process. The monotonic clock is that of the machine. It differs only in another time namespace, where
 * the wall clock is all that both processes share.
 * @param clock undefined = the old process is of a version that does not send it
 */
export function followClock(clock: HandoverClock | undefined): void {
  const shared = clock !== undefined && Math.abs(readClock() - clock.now) <= AGE_MAX;
  wallAhead = shared && Number.isFinite(clock.wallAhead) ? clock.wallAhead : undefined;
}

/** The time of a record. 0 stays 0. */
export function sentTime(instant: number): WallTime {
  return wallTime(instant, wallAhead);
}

/** The instant of a received time: see fromWallTime(). */
export function receivedTime(time: WallTime): number {
  return fromWallTime(time, wallAhead);
}
