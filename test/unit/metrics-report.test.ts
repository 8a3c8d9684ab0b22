/*
 * What the loop tells the metrics thread, and what the thread makes of it: only what has changed, in pieces of limited
 * size, and counters that never fall.
 */

import assert from 'node:assert/strict';
import { turns } from '../../src/core/base/tallies';
import type { MetricsReport } from '../../src/core/base/worker-messages';
import type { PgPool } from '../../src/core/pool/bouncer';
import { noteChange } from '../../src/core/pool/changes';
import { addDatabase, removeDatabase, retireAutodatabase } from '../../src/core/pool/database';
import { getPool, removePool } from '../../src/core/pool/pool';
import { count, Stat } from '../../src/core/pool/stats';
import { observe, Timing } from '../../src/core/pool/timings';
import { findOrAddGlobalUser } from '../../src/core/pool/user';
import {
  beginMetricsReports,
  endMetricsReports,
  metricsLayout,
  nextMetricsReport,
} from '../../src/core/report/metrics-report';
import { MetricsState } from '../../src/workers/metrics-state';
import { metricsText } from '../../src/workers/metrics-text';
import { toDefaults } from '../harness/config-fixtures';
import { afterEach, beforeEach, describe } from '../harness/limits';
import { it } from '../harness/machine';
import { histogram, samples } from '../harness/metrics';

const made: PgPool[] = [];

function pool(database: string, user: string): PgPool {
  const made_ = getPool(addDatabase(database), findOrAddGlobalUser(user).credentials);
  made.push(made_);
  return made_;
}

/** All samples, after every report that is due. */
function figures(state: MetricsState): Map<string, number> {
  let report: MetricsReport;
  do {
    report = nextMetricsReport();
    state.hear(report);
  } while (report.more);
  return samples(metricsText(state, report, true), true);
}

const rows = ({ pools }: MetricsReport) => pools.length / (metricsLayout.pool.length + 1);

beforeEach(() => {
  toDefaults();
  beginMetricsReports();
});
afterEach(() => {
  endMetricsReports();
  for (const one of made.splice(0)) {
    if (one.dead) continue;
    removePool(one);
    if (one.db.pools.length === 0 && one.db.list !== null) removeDatabase(one.db);
  }
});

describe('the reports to the metrics thread', () => {
  it('have only the pools that have changed', () => {
    const state = new MetricsState(metricsLayout);
    const pools = Array.from({ length: 20 }, (_, i) => pool('shop', `user${i}`));
    const first = nextMetricsReport();
    state.hear(first);
    assert.equal(rows(first), 20);
    assert.equal(first.newPools.length, 20);
    const idle = nextMetricsReport();
    assert.equal(rows(idle), 0);
    assert.deepEqual(idle.newDatabases, []);
    noteChange(pools[3] as PgPool);
    noteChange(pools[3] as PgPool);
    const one = nextMetricsReport();
    assert.equal(rows(one), 1);
    assert.deepEqual(one.newPools, []);
  });

  it('have a limited size, and are complete before anything is shown', () => {
    const state = new MetricsState(metricsLayout);
    for (let i = 0; i < 600; i++) pool(`db${i}`, 'joe');
    const sizes: number[] = [];
    let report: MetricsReport;
    do {
      report = nextMetricsReport();
      sizes.push(rows(report));
      assert.equal(state.report, null);
      state.hear(report);
    } while (report.more);
    assert.deepEqual(sizes, [250, 250, 100]);
    assert.equal(state.pools.size, 600);
    assert.equal(state.databases.size, 600);
    assert.equal(state.report, report);
  });

  it('have the longest turn since the report before', () => {
    turns.longest = 5000;
    assert.equal(nextMetricsReport().longestTurn, 5000);
    assert.equal(nextMetricsReport().longestTurn, 0);
  });

  it('a counter of a database does not fall when a pool is removed', () => {
    const state = new MetricsState(metricsLayout);
    const key = 'pgbouncer_stats_queries_pooled_total{database="shop"}';
    const [one, other] = [pool('shop', 'joe'), pool('shop', 'ann')];
    count(one.stats, Stat.QUERY_COUNT, 5);
    count(other.stats, Stat.QUERY_COUNT, 7);
    assert.equal(figures(state).get(key), 12);
    count(one.stats, Stat.QUERY_COUNT, 1);
    removePool(one);
    const after = figures(state);
    assert.equal(after.get(key), 13);
    assert.ok(![...after.keys()].some((sample) => sample.includes('user="joe"')));
    // not even if there is no pool left, or a new one
    removePool(other);
    assert.equal(figures(state).get(key), 13);
    count(pool('shop', 'joe').stats, Stat.QUERY_COUNT, 2);
    assert.equal(figures(state).get(key), 15);
  });

  it('a database that was removed with its pools is not shown any more', () => {
    const state = new MetricsState(metricsLayout);
    const [one, other] = [pool('shop', 'joe'), pool('shop', 'ann')];
    count(one.stats, Stat.QUERY_COUNT, 5);
    removePool(other);
    figures(state);
    removePool(one);
    removeDatabase(one.db);
    assert.ok(![...figures(state).keys()].some((sample) => sample.includes('"shop"')));
    assert.equal(state.databases.size, 0);
  });

  it('an auto-database that has become idle is not shown any more, as in SHOW DATABASES', () => {
    const state = new MetricsState(metricsLayout);
    const [db, other] = [addDatabase('auto'), addDatabase('other')];
    const isShown = () => [...figures(state).keys()].some((name) => /^pgbouncer_databases_.*name="auto"/.test(name));
    assert.equal(isShown(), true);
    retireAutodatabase(db, 1);
    assert.equal(isShown(), false);
    for (const each of [db, other]) removeDatabase(each);
  });

  it('different names with the same text are one sample', () => {
    const state = new MetricsState(metricsLayout);
    for (const name of ['\xff', '\xfe']) {
      const one = pool('shop', name);
      count(one.stats, Stat.QUERY_COUNT, 1);
      observe(one, Timing.QUERY, 150);
    }
    const found = figures(state);
    assert.equal(found.get('pgbouncer_pools_server_idle_connections{database="shop",user="\ufffd"}'), 0);
    assert.equal(found.get('tsbouncer_pools_query_duration_seconds_count{database="shop",user="\ufffd"}'), 2);
  });
});

describe('histograms', () => {
  it('count each time in the first bucket whose bound is not below it', () => {
    const state = new MetricsState(metricsLayout);
    const one = pool('shop', 'joe');
    for (const usec of [-5, 0, 100, 101, 999, 1_000_000, 300_000_000, 300_000_001])
      observe(one, Timing.TRANSACTION, usec);
    const found = histogram(
      figures(state),
      'tsbouncer_pools_transaction_duration_seconds',
      '{database="shop",user="joe"}',
    );
    const upTo = (seconds: number) => found?.buckets.find(([bound]) => bound === seconds)?.[1];
    assert.deepEqual([0.0001, 0.0002, 0.0005, 0.001].map(upTo), [3, 4, 4, 5]);
    assert.deepEqual([0.5, 1, 100, 300].map(upTo), [5, 6, 6, 7]);
    assert.equal(found?.count, 8);
    assert.equal(found?.sum.toFixed(4), '601.0012');
    assert.equal(found?.buckets.length, metricsLayout.timingBounds.length + 1);
  });

  it('do not exist while metrics_port is not set', () => {
    const one = pool('shop', 'joe');
    endMetricsReports();
    observe(one, Timing.QUERY, 100);
    noteChange(one);
    assert.equal(one.timings, null);
    assert.equal(one.noted, false);
  });
});
