/*
 * The text of /metrics: OpenMetrics 1.0, or the older text format of Prometheus. Names are those of pgbouncer_exporter,
 * so that its dashboards and alerts work.
 */

import type { MetricsReport } from '../core/base/worker-messages';

/** What is known of the pooler: the last report, with the names that came before. */
export interface Known {
  readonly report: MetricsReport;
  readonly pools: readonly (readonly string[])[];
  readonly databases: readonly Readonly<Record<string, string>>[];
}

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

/** A label's value, as both formats escape it. Names are any client's text. */
function escaped(value: string): string {
  return value.replace(/\\/g, '\\\\').replace(/"/g, '\\"').replace(/\n/g, '\\n');
}

/** @param labels names and values */
function labelText(labels: Readonly<Record<string, string>>): string {
  const parts = Object.entries(labels).map(([name, value]) => `${name}="${escaped(value)}"`);
  return parts.length === 0 ? '' : `{${parts.join(',')}}`;
}

class Text {
  private readonly lines: string[] = [];

  constructor(private readonly open: boolean) {}

  /** Begins a family. @returns the name of its samples */
  family(name: string, kind: 'gauge' | 'counter', help: string): string {
    const full = `pgbouncer_${name}`;
    const sample = kind === 'counter' ? `${full}_total` : full;
    const head = this.open ? full : sample;
    this.lines.push(`# HELP ${head} ${help}`, `# TYPE ${head} ${kind}`);
    return sample;
  }

  sample(name: string, labels: string, value: number): void {
    this.lines.push(`${name}${labels} ${value}`);
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

/** One number of each row. */
function column(numbers: Float64Array, columns: readonly string[], family: Family): (row: number) => number {
  const at = columns.indexOf(family.column);
  const unit = family.unit ?? 1;
  return (row) => (numbers[row * columns.length + at] ?? 0) * unit;
}

/**
 * Adds one sample for each text of labels. Different names can have the same text, because bytes that are not UTF-8 become
 * U+FFFD: their numbers are added, since a scrape with the same sample twice is refused as a whole.
 */
function addRows(text: Text, name: string, labels: readonly string[], value: (row: number) => number): void {
  const sums = new Map<string, number>();
  for (let i = 0; i < labels.length; i++) {
    const label = labels[i] as string;
    sums.set(label, (sums.get(label) ?? 0) + value(i));
  }
  for (const [label, sum] of sums) text.sample(name, label, sum);
}

/** @param open OpenMetrics instead of Prometheus's older format */
export function metricsText(known: Known, open: boolean): string {
  const { report, pools, databases } = known;
  const text = new Text(open);
  text.gauge('up', '1 as long as the pooler reports its state', 1);
  text.gauge('version_info', 'version of PgBouncer that the console shows', 1, { version: report.version });
  for (const { name, column: key, help } of LISTS) text.gauge(name, help, report.lists[key] ?? 0);
  text.gauge('config_max_client_connections', 'setting max_client_conn', report.maxClientConn);
  text.gauge('config_max_user_connections', 'setting max_user_connections', report.maxUserConnections);
  const owners = pools.map(([database = '']) => labelText({ database }));
  for (const family of STAT_COUNTERS) {
    const name = text.family(`stats_${family.name}`, 'counter', family.help);
    addRows(text, name, owners, column(report.poolNumbers, report.poolColumns, family));
  }
  const poolLabels = pools.map(([database = '', user = '']) => labelText({ database, user }));
  for (const family of POOL_GAUGES) {
    const name = text.family(`pools_${family.name}`, 'gauge', family.help);
    addRows(text, name, poolLabels, column(report.poolNumbers, report.poolColumns, family));
  }
  const databaseLabels = databases.map(labelText);
  for (const family of DATABASE_GAUGES) {
    const name = text.family(`databases_${family.name}`, 'gauge', family.help);
    addRows(text, name, databaseLabels, column(report.databaseNumbers, report.databaseColumns, family));
  }
  return text.done();
}
