/*
 * The text of /metrics: OpenMetrics 1.0, or the older text format of Prometheus. metrics-families.ts has the names.
 */

import type { MetricsReport } from '../core/base/worker-messages';
import {
  DATABASE_GAUGES,
  type Family,
  LISTS,
  POOL_GAUGES,
  STAT_COUNTERS,
  TALLIES,
  THREADS,
  TIMINGS,
  USEC,
} from './metrics-families';
import type { KnownDatabase, KnownPool, MetricsState } from './metrics-state';

/** A label's value, as both formats escape it. Names are any client's text. */
function escaped(value: string): string {
  return value.replace(/\\/g, '\\\\').replace(/"/g, '\\"').replace(/\n/g, '\\n');
}

/** @param labels names and values */
function labelText(labels: Readonly<Record<string, string>>): string {
  const parts = Object.entries(labels).map(([name, value]) => `${name}="${escaped(value)}"`);
  return parts.length === 0 ? '' : `{${parts.join(',')}}`;
}

/** Samples by their labels. */
type Samples = Map<string, number>;

class Text {
  private readonly lines: string[] = [];

  constructor(readonly open: boolean) {}

  /** Begins a family. @param name with its prefix, without `_total` @returns the name of its samples */
  family(name: string, kind: 'gauge' | 'counter' | 'histogram', help: string): string {
    const sample = kind === 'counter' ? `${name}_total` : name;
    const head = this.open ? name : sample;
    this.lines.push(`# HELP ${head} ${help}`, `# TYPE ${head} ${kind}`);
    return sample;
  }

  sample(name: string, labels: string, value: number): void {
    this.lines.push(`${name}${labels} ${value}`);
  }

  samples(name: string, samples: Iterable<[string, number]>): void {
    for (const [labels, value] of samples) this.sample(name, labels, value);
  }

  gauge(name: string, help: string, value: number, labels: Readonly<Record<string, string>> = {}): void {
    this.sample(this.family(name, 'gauge', help), labelText(labels), value);
  }

  /** All lines. */
  done(): string {
    if (this.open) this.lines.push('# EOF');
    return `${this.lines.join('\n')}\n`;
  }
}

/** A pool or a database with the text of its labels. */
interface Labeled<T> {
  readonly labels: string;
  readonly row: T;
}

/**
 * Adds one number of each row to the sample of its labels. Different names can have the same text, because bytes that are
 * not UTF-8 become U+FFFD: their numbers are added, since a scrape with the same sample twice is refused as a whole.
 */
function addColumn(
  sums: Samples,
  rows: Iterable<Labeled<KnownPool | KnownDatabase>>,
  columns: readonly string[],
  { column, unit = 1 }: Family,
): void {
  const at = columns.indexOf(column);
  for (const { labels, row } of rows) sums.set(labels, (sums.get(labels) ?? 0) + (row.numbers[at] ?? 0) * unit);
}

/** The counters of each database, with those of its pools that were removed: a sum must not fall. */
function writeCounters(text: Text, { layout, pools, databases }: MetricsState): void {
  const ofPools = [...pools.values()].map((row) => ({ labels: labelText({ database: row.database }), row }));
  const used = new Set(ofPools.map(({ labels }) => labels));
  const removed = [...databases.values()]
    .map((row) => ({ labels: labelText({ database: row.labels.name }), row }))
    .filter(({ labels, row }) => used.has(labels) || hasCounters(row, layout.database));
  for (const family of STAT_COUNTERS) {
    const sums: Samples = new Map();
    addColumn(sums, removed, layout.database, family);
    addColumn(sums, ofPools, layout.pool, family);
    text.samples(text.family(`pgbouncer_stats_${family.name}`, 'counter', family.help), sums);
  }
}

/** True if a pool of the database was removed that had been used. */
function hasCounters({ numbers }: KnownDatabase, columns: readonly string[]): boolean {
  return STAT_COUNTERS.some(({ column }) => (numbers[columns.indexOf(column)] ?? 0) > 0);
}

/** The labels of a pool, to which those of a bucket can be added. */
function poolLabels({ database, user }: KnownPool): string {
  return labelText({ database, user });
}

/** As OpenMetrics writes numbers that are the value of a label. */
function boundText(usec: number, open: boolean): string {
  const text = String(usec / 1e6);
  return open && !text.includes('.') ? `${text}.0` : text;
}

function addTo(sum: Float64Array, numbers: Float64Array): void {
  for (let i = 0; i < sum.length; i++) sum[i] = (sum[i] as number) + (numbers[i] as number);
}

/** @param numbers the count of each bucket, then the sum @param bounds the upper bounds as texts */
function writeHistogram(
  text: Text,
  name: string,
  labels: string,
  numbers: Float64Array,
  bounds: readonly string[],
): void {
  const start = labels.slice(0, -1);
  let count = 0;
  for (let i = 0; i < bounds.length; i++) {
    count += numbers[i] as number;
    text.sample(`${name}_bucket`, `${start},le="${bounds[i]}"}`, count);
  }
  text.sample(`${name}_count`, labels, count);
  text.sample(`${name}_sum`, labels, (numbers[bounds.length] as number) * USEC);
}

/** The histograms of each pool that have counted something: most pools have some that are not used. */
function writeHistograms(text: Text, { layout, pools }: MetricsState): void {
  const bounds = [...layout.timingBounds.map((usec) => boundText(usec, text.open)), '+Inf'];
  const width = bounds.length + 1;
  layout.timings.forEach((timing, n) => {
    const name = `tsbouncer_pools_${timing}_duration_seconds`;
    text.family(name, 'histogram', TIMINGS[timing] ?? timing);
    const sums = new Map<string, Float64Array>();
    for (const pool of pools.values()) {
      const numbers = pool.timings?.subarray(n * width, (n + 1) * width);
      if (numbers?.subarray(0, -1).some((count) => count > 0) !== true) continue;
      const labels = poolLabels(pool);
      const sum = sums.get(labels);
      if (sum === undefined) sums.set(labels, numbers.slice());
      else addTo(sum, numbers);
    }
    for (const [labels, numbers] of sums) writeHistogram(text, name, labels, numbers, bounds);
  });
}

function writePools(text: Text, { layout, pools }: MetricsState): void {
  const rows = [...pools.values()].map((row) => ({ labels: poolLabels(row), row }));
  for (const family of POOL_GAUGES) {
    const sums: Samples = new Map();
    addColumn(sums, rows, layout.pool, family);
    text.samples(text.family(`pgbouncer_pools_${family.name}`, 'gauge', family.help), sums);
  }
}

/** The databases that SHOW DATABASES shows: auto-databases without connections are left out. */
function writeDatabases(text: Text, { layout, databases }: MetricsState): void {
  const idle = layout.database.indexOf('idle');
  const rows = [...databases.values()]
    .filter(({ numbers }) => numbers[idle] !== 1)
    .map((row) => ({ labels: labelText({ ...row.labels }), row }));
  for (const family of DATABASE_GAUGES) {
    const sums: Samples = new Map();
    addColumn(sums, rows, layout.database, family);
    text.samples(text.family(`pgbouncer_databases_${family.name}`, 'gauge', family.help), sums);
  }
}

/** What the whole process has counted. */
function writeTallies(text: Text, { layout }: MetricsState, { tallies }: MetricsReport): void {
  let begun = '';
  layout.tallies.forEach(([family, ...labels], i) => {
    const name = `tsbouncer_${family}`;
    // the members of a family are adjacent
    if (family !== begun) text.family(name, 'counter', TALLIES[family] ?? family);
    begun = family;
    const pairs = labels.map((label) => label.split('=', 2));
    text.sample(`${name}_total`, labelText(Object.fromEntries(pairs)), tallies[i] ?? 0);
  });
}

function writeLoop(text: Text, state: MetricsState, { threads }: MetricsReport): void {
  const longest = 'the longest turn of the loop in the last minute';
  text.gauge('tsbouncer_loop_longest_turn_seconds', longest, state.longestTurn() * USEC);
  for (const { name, column, unit = 1, help } of THREADS) {
    const sample = text.family(`tsbouncer_${name}`, 'counter', help);
    for (const thread of threads) {
      const value = thread[column as Exclude<keyof typeof thread, 'name'>];
      text.sample(sample, labelText({ thread: thread.name }), value * unit);
    }
  }
}

/** What libraries of Prometheus tell of every process. */
function writeProcess(text: Text): void {
  const { user, system } = process.cpuUsage();
  text.samples(text.family('process_cpu_seconds', 'counter', 'CPU time of all threads'), [
    ['', (user + system) * USEC],
  ]);
  text.gauge('process_resident_memory_bytes', 'memory of the process', process.memoryUsage.rss());
}

/** @param open OpenMetrics instead of Prometheus's older format */
export function metricsText(state: MetricsState, report: MetricsReport, open: boolean): string {
  const text = new Text(open);
  text.gauge('pgbouncer_up', '1 as long as the pooler reports its state', 1);
  text.gauge('pgbouncer_version_info', 'version of PgBouncer that the console shows', 1, {
    version: `PgBouncer ${report.version}`,
  });
  for (const { name, column, help } of LISTS) text.gauge(`pgbouncer_${name}`, help, report.lists[column] ?? 0);
  text.gauge('pgbouncer_config_max_client_connections', 'setting max_client_conn', report.maxClientConn);
  text.gauge('pgbouncer_config_max_user_connections', 'setting max_user_connections', report.maxUserConnections);
  const asked = text.family('pgbouncer_auth_query', 'counter', 'answers of auth_query that logins have used');
  for (const [source, count] of Object.entries(report.authQuery)) text.sample(asked, labelText({ source }), count);
  writeCounters(text, state);
  writePools(text, state);
  writeDatabases(text, state);
  writeHistograms(text, state);
  writeTallies(text, state, report);
  writeLoop(text, state, report);
  writeProcess(text);
  return text.done();
}
