/*
 * What the process has counted since its start, for metrics_port. Counting costs an addition, so it is never off.
 */

export const enum Tally {
  EVICTED_FOR_POOL = 0,
  EVICTED_FOR_DATABASE,
  EVICTED_FOR_USER,
  REFUSED_BY_PROCESS,
  REFUSED_BY_HOST,
  REFUSED_BY_DATABASE,
  REFUSED_BY_USER,
  AUTH_QUERY_FOUND,
  AUTH_QUERY_MISSING,
  AUTH_QUERY_FAILED,
  PREPARED_HIT,
  PREPARED_MISS,
  TLS_CLIENT_DONE,
  TLS_CLIENT_FAILED,
  TLS_SERVER_DONE,
  TLS_SERVER_FAILED,
  /** also those before this process, as the next two */
  REBOOT_DONE,
  REBOOT_FAILED,
  LOG_LINES_SUPPRESSED,
  LISTENER_LOST,
  LISTENER_SLOW,
  SIZE,
}

/** What a tally is called in /metrics: its family, and its labels as `name=value`. */
type TallyName = readonly [family: string, ...labels: string[]];

export const tallyNames: readonly TallyName[] = [
  ['evictions', 'reason=pool_size'],
  ['evictions', 'reason=max_db_connections'],
  ['evictions', 'reason=max_user_connections'],
  ['refused_clients', 'limit=max_client_conn'],
  ['refused_clients', 'limit=max_client_conn_per_host'],
  ['refused_clients', 'limit=max_db_client_connections'],
  ['refused_clients', 'limit=max_user_client_connections'],
  ['auth_query_results', 'result=found'],
  ['auth_query_results', 'result=missing'],
  ['auth_query_results', 'result=failed'],
  ['prepared_statements', 'result=hit'],
  ['prepared_statements', 'result=miss'],
  ['tls_handshakes', 'side=client', 'result=done'],
  ['tls_handshakes', 'side=client', 'result=failed'],
  ['tls_handshakes', 'side=server', 'result=done'],
  ['tls_handshakes', 'side=server', 'result=failed'],
  ['online_reboots', 'result=done'],
  ['online_reboots', 'result=failed'],
  ['log_lines_suppressed'],
  ['listening_connections_lost'],
  ['slow_listeners_disconnected'],
];

export const tallies = new Float64Array(Tally.SIZE);

export function tally(which: Tally, n = 1): void {
  tallies[which] = (tallies[which] as number) + n;
}

/** The longest turn of the loop since it was last asked for, usec; measured only if it is wanted. */
export const turns = { wanted: false, longest: 0 };
