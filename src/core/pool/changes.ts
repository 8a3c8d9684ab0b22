/*
 * The pools whose figures have changed, for metrics_port: a report costs nothing for a pool in which nothing happens.
 * Each change of a socket's state marks its pool. Figures that change without it (bytes, times) are those of pools with
 * linked servers or waiting clients, which report/metrics-report.ts keeps marked.
 */

import type { PgPool } from './bouncer';

interface Changes {
  /** whether pools are marked */
  wanted: boolean;
  /** marked pools; some may have been removed meanwhile */
  pools: PgPool[];
  removed: PgPool[];
}

export const changes: Changes = { wanted: false, pools: [], removed: [] };

/** Marks a pool, once. */
export function noteChange(pool: PgPool): void {
  if (!changes.wanted || pool.noted) return;
  pool.noted = true;
  changes.pools.push(pool);
}

/** Notes that a pool was removed. */
export function noteRemoval(pool: PgPool): void {
  if (changes.wanted) changes.removed.push(pool);
}
