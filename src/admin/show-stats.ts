/*
 * SHOW STATS, STATS_TOTALS, STATS_AVERAGES and TOTALS: the counters of the pools, summed per database or over all.
 */

import { showsClientLogins } from '../core/config/compat';
import { type PgStats, Stat, statNames } from '../core/pool/stats';
import { statsRows, totalStats } from '../core/report/stats';
import type { PutRow } from './reply';

/** How many counters are shown: the last one, the count of client logins, only from PgBouncer 1.26 on. */
function shownCounters(): number {
  return showsClientLogins() ? Stat.SIZE : Stat.CLIENT_LOGIN_COUNT;
}

/** The columns of a row are the counters in the order of Stat. */
function putRow(put: PutRow, name: string, ...sets: PgStats[]): void {
  const values: number[] = [];
  const shown = shownCounters();
  for (const set of sets) for (let i = 0; i < shown; i++) values.push(set[i] as number);
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
  const names = statNames.slice(0, shownCounters());
  names.forEach((name, i) => {
    put(`total_${name}`, total[i] as number);
  });
  names.forEach((name, i) => {
    put(`avg_${name}`, average[i] as number);
  });
}
