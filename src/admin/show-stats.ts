/*
 * SHOW STATS, STATS_TOTALS, STATS_AVERAGES and TOTALS: the counters of the pools, summed per database or over all.
 */

import { nextOf } from '../core/base/list';
import type { PgDatabase } from '../core/pool/bouncer';
import { poolList } from '../core/pool/pool';
import { calcAverage, newStats, type PgStats, Stat, statAdd, statNames } from '../core/pool/stats';
import type { PutRow } from './reply';

/** The columns of a row are the counters in the order of Stat. */
function putStats(put: PutRow, name: string, ...sets: PgStats[]): void {
  const values: number[] = [];
  for (const set of sets) for (let i = 0; i < Stat.SIZE; i++) values.push(set[i] as number);
  put(name, ...values);
}

/** Sums up the pools of each database, which are adjacent in the sorted list of pools. */
function eachDatabase(each: (name: string, cur: PgStats, old: PgStats) => void): void {
  let db: PgDatabase | null = null;
  let cur = newStats();
  let old = newStats();
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    if (db !== null && pool.db !== db) {
      each(db.name, cur, old);
      cur = newStats();
      old = newStats();
    }
    db = pool.db;
    statAdd(cur, pool.stats);
    statAdd(old, pool.olderStats);
  }
  if (db !== null) each(db.name, cur, old);
}

export function statsRows(put: PutRow): void {
  eachDatabase((name, cur, old) => putStats(put, name, cur, calcAverage(cur, old)));
}

export function statsTotalsRows(put: PutRow): void {
  eachDatabase((name, cur) => putStats(put, name, cur));
}

export function statsAveragesRows(put: PutRow): void {
  eachDatabase((name, cur, old) => putStats(put, name, calcAverage(cur, old)));
}

export function totalsRows(put: PutRow): void {
  const cur = newStats();
  const old = newStats();
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    statAdd(cur, pool.stats);
    statAdd(old, pool.olderStats);
  }
  const avg = calcAverage(cur, old);
  statNames.forEach((name, i) => {
    put(`total_${name}`, cur[i] as number);
  });
  statNames.forEach((name, i) => {
    put(`avg_${name}`, avg[i] as number);
  });
}
