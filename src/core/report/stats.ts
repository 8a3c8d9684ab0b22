/*
 * Rows of the counters of the pools, summed per database or over all.
 */

import { nextOf } from '../base/list';
import type { PgDatabase } from '../pool/bouncer';
import { poolList } from '../pool/pool';
import { calcAverage, newStats, type PgStats, statAdd } from '../pool/stats';

/** Counters by Stat. */
interface Totals {
  readonly total: PgStats;
  /** over the last stats period, see calcAverage() */
  readonly average: PgStats;
}

interface StatsRow extends Totals {
  readonly database: string;
}

/** Sums of the counters now and at the beginning of the last stats period. */
class Sums {
  readonly now = newStats();
  readonly before = newStats();

  add(stats: PgStats, older: PgStats): void {
    statAdd(this.now, stats);
    statAdd(this.before, older);
  }

  totals(): Totals {
    return { total: this.now, average: calcAverage(this.now, this.before) };
  }
}

/** The pools of a database are adjacent in the sorted list of pools. */
export function* statsRows(): Generator<StatsRow> {
  let db: PgDatabase | null = null;
  let sums = new Sums();
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    if (db !== null && pool.db !== db) {
      yield { database: db.name, ...sums.totals() };
      sums = new Sums();
    }
    db = pool.db;
    sums.add(pool.stats, pool.olderStats);
  }
  if (db !== null) yield { database: db.name, ...sums.totals() };
}

/** The counters of all pools. */
export function totalStats(): Totals {
  const sums = new Sums();
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) sums.add(pool.stats, pool.olderStats);
  return sums.totals();
}
