/*
 * How long things take in a pool, as histograms for metrics_port. A pool gets its histograms with its first measured time.
 * While metrics_port is not set, there are none, and a time costs one check.
 */

import type { PgPool } from './bouncer';

/** What is timed. The order is that of timingNames. */
export const enum Timing {
  QUERY = 0,
  TRANSACTION,
  /** in the queue, also of a client that was disconnected there */
  WAIT,
  /** from the look-up of the server's name until the connection is open */
  CONNECT,
  /** of the pooler to a server, from the open connection until its first use */
  LOGIN,
  SIZE,
}

export const timingNames: readonly string[] = ['query', 'transaction', 'client_wait', 'server_connect', 'server_login'];

/** The upper bounds of the buckets in usec: up to five minutes. Behind them is a bucket without a bound. */
export const timingBounds: readonly number[] = [
  ...[100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000],
  ...[1_000_000, 2_000_000, 5_000_000, 10_000_000, 20_000_000, 50_000_000, 100_000_000, 300_000_000],
];

const BUCKETS = timingBounds.length + 1;
/** A histogram in an array: the count of each bucket, then the sum in usec. */
export const TIMING_COLUMNS = BUCKETS + 1;

/** Whether times are measured. */
export const timings = { wanted: false };

/** Adds a time to a histogram. @param usec a negative time counts as 0 */
export function observe(pool: PgPool, timing: Timing, usec: number): void {
  if (timings.wanted) addTime(pool, timing, usec);
}

function addTime(pool: PgPool, timing: Timing, usec: number): void {
  pool.timings ??= new Float64Array(Timing.SIZE * TIMING_COLUMNS);
  const time = usec > 0 ? usec : 0;
  const at = timing * TIMING_COLUMNS;
  let bucket = 0;
  // most times are short
  while (bucket < timingBounds.length && time > (timingBounds[bucket] as number)) bucket++;
  pool.timings[at + bucket] = (pool.timings[at + bucket] as number) + 1;
  pool.timings[at + BUCKETS] = (pool.timings[at + BUCKETS] as number) + time;
}
