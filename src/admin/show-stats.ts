/*
 * SHOW STATS, STATS_TOTALS, STATS_AVERAGES and TOTALS: the counters of the pools, summed per database or over all.
 */

import { type PgStats, Stat, statNames } from '../core/pool/stats';
import { statsRows, totalStats } from '../core/report/stats';
import type { PutRow } from './reply';

/** The columns of a row are the counters in the order of Stat. */
function putRow(put: PutRow, name: string, ...sets: PgStats[]): void {
  const values: number[] = [];
  for (const set of sets) for (let i = 0; i < Stat.SIZE; i++) values.push(set[i] as number);
  put(name, ...values);
}

export function putStats(put: PutRow): void {
  for (const { database, total, average } of statsRows()) putRow(put, database, total, average);
}

export function putStatsTotals(put: PutRow): void {
  for (const { database, total } of statsRows()) putRow(put, database, total);
}

export function putStatsAverages(put: PutRow): void {
  for (const { database, average } of statsRows()) putRow(put, database, average);
}

export function putTotals(put: PutRow): void {
  const { total, average } = totalStats();
  statNames.forEach((name, i) => {
    put(`total_${name}`, total[i] as number);
  });
  statNames.forEach((name, i) => {
    put(`avg_${name}`, average[i] as number);
  });
}
