/*
 * The families of /metrics. Those of pgbouncer_exporter have its names, so that its dashboards and alerts work; others
 * begin with tsbouncer_ or, if a column of the console is behind them, with pgbouncer_.
 */

export interface Family {
  /** without the prefix, and without `_total` of a counter */
  readonly name: string;
  readonly help: string;
  readonly column: string;
  /** what one is worth, 1 if left out */
  readonly unit?: number;
}

export const USEC = 1e-6;

export const POOL_GAUGES: readonly Family[] = [
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

export const STAT_COUNTERS: readonly Family[] = [
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
  {
    name: 'server_assignments',
    column: 'server_assignment_count',
    help: 'times that a server was assigned to a client',
  },
  { name: 'client_parses', column: 'ps_client_parse_count', help: 'prepared statements created by clients' },
  { name: 'server_parses', column: 'ps_server_parse_count', help: 'prepared statements created on servers' },
  { name: 'binds', column: 'ps_bind_count', help: 'prepared statements readied for execution' },
  { name: 'client_logins', column: 'client_login_count', help: 'logins of clients' },
];

export const DATABASE_GAUGES: readonly Family[] = [
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

export const LISTS: readonly Family[] = [
  { name: 'databases', column: 'databases', help: 'databases' },
  { name: 'users', column: 'users', help: 'users' },
  { name: 'pools', column: 'pools', help: 'pools' },
  { name: 'free_clients', column: 'freeClients', help: 'the highest number of clients so far minus the current one' },
  { name: 'used_clients', column: 'usedClients', help: 'clients' },
  { name: 'login_clients', column: 'loginClients', help: 'clients that log in' },
  { name: 'free_servers', column: 'freeServers', help: 'the highest number of servers so far minus the current one' },
  { name: 'used_servers', column: 'usedServers', help: 'servers' },
  { name: 'cached_dns_names', column: 'dnsNames', help: 'names whose addresses are known' },
  { name: 'cached_dns_zones', column: 'dnsZones', help: 'zones whose serial numbers are known' },
  { name: 'in_flight_dns_queries', column: 'dnsQueries', help: 'name lookups in progress' },
];

/** What each histogram measures. */
export const TIMINGS: Readonly<Record<string, string>> = {
  query: 'time of each query, or of queries sent together',
  transaction: 'time of each transaction',
  client_wait: 'time that each client waited for a server; clients that did not have to wait are not counted',
  server_connect: 'time until a connection to the server was open, with the look-up of its name',
  server_login: 'time from there until the connection could be used: TLS, authentication, connect_query',
};

/** What the process has counted, see src/core/base/tallies.ts. */
export const TALLIES: Readonly<Record<string, string>> = {
  evictions: 'server connections closed to make room for another pool, or for a replication client',
  refused_clients: 'clients refused because of a limit',
  auth_query_results: 'look-ups by auth_query, and what they have found',
  prepared_statements: 'uses of a prepared statement that the server had (hit), or that was prepared for it (miss)',
  tls_handshakes: 'TLS handshakes with clients and with servers',
  online_reboots: 'online reboots, also those of earlier processes',
  log_lines_suppressed: 'lines left out of the log by log_repeat_limit',
  listening_connections_lost: 'listening server connections that ended while clients listened (listen_mode = share)',
  slow_listeners_disconnected: 'clients disconnected because they did not read their notifications (listen_queue_size)',
};

/** What a thread of the loop has done. */
export const THREADS: readonly Family[] = [
  { name: 'loop_turns', column: 'turns', help: 'turns of the loop, or steps of TLS handshakes' },
  { name: 'loop_received_bytes', column: 'received', help: 'bytes received' },
  { name: 'loop_sent_bytes', column: 'sent', help: 'bytes sent' },
  { name: 'loop_cpu_seconds', column: 'cpuUsec', unit: USEC, help: 'CPU time' },
];
