/*
 * The text of /metrics: OpenMetrics 1.0, or the older text format of Prometheus. Names are those of pgbouncer_exporter,
 * so that its dashboards and alerts work.
 */

import type { MetricsReport } from '../core/base/worker-messages';
import type { KnownDatabase, KnownPool, MetricsState } from './metrics-state';

interface Family {
  /** without the prefix, and without `_total` of a counter */
  readonly name: string;
  readonly help: string;
  readonly column: string;
  /** what one is worth, 1 if left out */
  readonly unit?: number;
}

const USEC = 1e-6;

const POOL_GAUGES: readonly Family[] = [
  { name: 'client_active_connections', column: 'cl_active', help: 'clients linked to a server or idle' },
  { name: 'client_waiting_connections', column: 'cl_waiting', help: 'clients that wait for a server' },
  {
    name: 'client_active_cancel_connections',
    column: 'cl_active_cancel_req',
    help: 'cancel requests sent to a server',
  },
  { name: 'client_waiting_cancel_connections', column: 'cl_waiting_cancel_req', help: 'cancel requests not sent yet' },
  { name: 'server_active_connections', column: 'sv_active', help: 'servers linked to a client' },
  { name: 'server_active_cancel_connections', column: 'sv_active_cancel', help: 'servers that send a cancel request' },
  {
    name: 'server_being_canceled_connections',
    column: 'sv_being_canceled',
    help: 'servers that wait for cancel requests',
  },
  { name: 'server_idle_connections', column: 'sv_idle', help: 'servers that a client can use at once' },
  { name: 'server_used_connections', column: 'sv_used', help: 'idle servers that need a check before use' },
  { name: 'server_testing_connections', column: 'sv_tested', help: 'servers that run a reset or check query' },
  { name: 'server_login_connections', column: 'sv_login', help: 'servers that log in' },
  {
    name: 'client_maxwait_seconds',
    column: 'maxwait',
    unit: USEC,
    help: 'how long the first client in the queue has waited',
  },
];

const STAT_COUNTERS: readonly Family[] = [
  { name: 'queries_pooled', column: 'query_count', help: 'queries' },
  { name: 'queries_duration_seconds', column: 'query_time', unit: USEC, help: 'time that servers spent on queries' },
  { name: 'received_bytes', column: 'client_bytes', help: 'bytes received from clients' },
  { name: 'sent_bytes', column: 'server_bytes', help: 'bytes received from servers, and sent to clients' },
  { name: 'client_wait_seconds', column: 'wait_time', unit: USEC, help: 'time that clients waited for a server' },
  { name: 'sql_transactions_pooled', column: 'xact_count', help: 'transactions' },
  {
    name: 'server_in_transaction_seconds',
    column: 'xact_time',
    unit: USEC,
    help: 'time that servers spent in transactions',
  },
  { name: 'server_assignments', column: 'server_assignment_count', help: 'times that a server was given to a client' },
  { name: 'client_parses', column: 'ps_client_parse_count', help: 'prepared statements created by clients' },
  { name: 'server_parses', column: 'ps_server_parse_count', help: 'prepared statements created on servers' },
  { name: 'binds', column: 'ps_bind_count', help: 'prepared statements readied for execution' },
  { name: 'client_logins', column: 'client_login_count', help: 'logins of clients' },
];

const DATABASE_GAUGES: readonly Family[] = [
  { name: 'pool_size', column: 'pool_size', help: 'most servers of a pool' },
  { name: 'min_pool_size', column: 'min_pool_size', help: 'fewest servers of a pool' },
  { name: 'reserve_pool', column: 'reserve_pool_size', help: 'additional servers of a pool whose clients wait long' },
  { name: 'max_connections', column: 'max_connections', help: 'most servers of the database; 0 = no limit' },
  { name: 'current_connections', column: 'current_connections', help: 'servers of the database' },
  {
    name: 'max_client_connections',
    column: 'max_client_connections',
    help: 'most clients of the database; 0 = no limit',
  },
  { name: 'current_client_connections', column: 'current_client_connections', help: 'clients of the database' },
  { name: 'paused', column: 'paused', help: '1 if the database is paused' },
  { name: 'disabled', column: 'disabled', help: '1 if the database is disabled' },
];

const LISTS: readonly Family[] = [
  { name: 'databases', column: 'databases', help: 'databases' },
  { name: 'users', column: 'users', help: 'users' },
  { name: 'pools', column: 'pools', help: 'pools' },
  { name: 'free_clients', column: 'freeClients', help: 'clients fewer than there were at most' },
  { name: 'used_clients', column: 'usedClients', help: 'clients' },
  { name: 'login_clients', column: 'loginClients', help: 'clients that log in' },
  { name: 'free_servers', column: 'freeServers', help: 'servers fewer than there were at most' },
  { name: 'used_servers', column: 'usedServers', help: 'servers' },
  { name: 'cached_dns_names', column: 'dnsNames', help: 'names whose addresses are known' },
  { name: 'cached_dns_zones', column: 'dnsZones', help: 'zones whose serial numbers are known' },
  { name: 'in_flight_dns_queries', column: 'dnsQueries', help: 'name lookups in progress' },
];

/** What each histogram measures. */
const TIMINGS: Readonly<Record<string, string>> = {
  query: 'time of each query, or of queries sent together',
  transaction: 'time of each transaction',
  client_wait: 'time that each client waited for a server; clients that did not have to wait are not counted',
  server_connect: 'time until a connection to the server was open, with the look-up of its name',
  server_login: 'time from there until the connection could be used: TLS, authentication, connect_query',
};

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

  samples(name: string, samples: Samples): void {
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

/** @param open OpenMetrics instead of Prometheus's older format */
export function metricsText(state: MetricsState, report: MetricsReport, open: boolean): string {
  const text = new Text(open);
  text.gauge('pgbouncer_up', '1 as long as the pooler reports its state', 1);
  text.gauge('pgbouncer_version_info', 'version of PgBouncer that the console shows', 1, { version: report.version });
  for (const { name, column, help } of LISTS) text.gauge(`pgbouncer_${name}`, help, report.lists[column] ?? 0);
  text.gauge('pgbouncer_config_max_client_connections', 'setting max_client_conn', report.maxClientConn);
  text.gauge('pgbouncer_config_max_user_connections', 'setting max_user_connections', report.maxUserConnections);
  const asked = text.family('pgbouncer_auth_query', 'counter', 'answers of auth_query that logins have used');
  for (const [source, count] of Object.entries(report.authQuery)) text.sample(asked, labelText({ source }), count);
  writeCounters(text, state);
  writePools(text, state);
  writeDatabases(text, state);
  writeHistograms(text, state);
  return text.done();
}
