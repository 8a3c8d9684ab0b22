/*
 * The columns of every SHOW: one row per command, one word per column, `type:name`. The types are those of
 * writeRowDescription: s text, i int4, q int8, N numeric, T time as text, b bytea. Names, types and order are
 * PgBouncer's: exporters and the handover depend on them.
 */

import { showsClientLogins } from '../core/config/compat';

export interface Columns {
  /** one letter per column */
  readonly types: string;
  readonly names: readonly string[];
}

function columns(spec: string): Columns {
  const words = spec.split(/[ \n]+/);
  return { types: words.map((word) => word[0]).join(''), names: words.map((word) => word.slice(2)) };
}

const SOCKET = `s:type s:user s:database s:replication s:state s:addr i:port s:local_addr i:local_port
  T:connect_time T:request_time i:wait i:wait_us i:close_needed s:ptr s:link i:remote_pid s:tls
  s:application_name i:prepared_statements i:id`;

const SOCKET_DEBUG = `${SOCKET} i:recv_pos i:pkt_pos i:pkt_remain i:send_pos i:send_remain i:pkt_avail i:send_avail`;

export const showColumns = {
  clients: columns(SOCKET),
  servers: columns(SOCKET),
  sockets: columns(SOCKET_DEBUG),
  active_sockets: columns(SOCKET_DEBUG),
  config: columns('s:key s:value s:default s:changeable'),
  databases: columns(`s:name s:host i:port s:database s:force_user i:pool_size i:min_pool_size i:reserve_pool_size
    i:server_lifetime s:pool_mode s:load_balance_hosts i:max_connections i:current_connections
    i:max_client_connections i:current_client_connections i:paused i:disabled`),
  fds: columns(`i:fd s:task s:user s:database s:addr i:port q:cancel i:link s:client_encoding s:std_strings
    s:datestyle s:timezone s:password b:scram_client_key b:scram_server_key`),
  lists: columns('s:list i:items'),
  peers: columns('i:peer_id s:host i:port i:pool_size'),
  peer_pools: columns('i:peer_id i:cl_active_cancel_req i:cl_waiting_cancel_req i:sv_active_cancel i:sv_login'),
  pools: columns(`s:database s:user i:cl_active i:cl_waiting i:cl_active_cancel_req i:cl_waiting_cancel_req
    i:sv_active i:sv_active_cancel i:sv_being_canceled i:sv_idle i:sv_used i:sv_tested i:sv_login i:maxwait
    i:maxwait_us s:pool_mode s:load_balance_hosts`),
  stats: columns(`s:database N:total_server_assignment_count N:total_xact_count N:total_query_count N:total_received
    N:total_sent N:total_xact_time N:total_query_time N:total_wait_time N:total_client_parse_count
    N:total_server_parse_count N:total_bind_count N:total_client_login_count N:avg_server_assignment_count
    N:avg_xact_count N:avg_query_count N:avg_recv N:avg_sent N:avg_xact_time N:avg_query_time N:avg_wait_time
    N:avg_client_parse_count N:avg_server_parse_count N:avg_bind_count N:avg_client_login_count`),
  stats_totals: columns(`s:database N:server_assignment_count N:xact_count N:query_count N:bytes_received N:bytes_sent
    N:xact_time N:query_time N:wait_time N:client_parse_count N:server_parse_count N:bind_count
    N:client_login_count`),
  stats_averages: columns(`s:database N:server_assignment_count N:xact_count N:query_count N:bytes_received
    N:bytes_sent N:xact_time N:query_time N:wait_time N:avg_client_parse_count N:avg_server_parse_count
    N:avg_bind_count N:avg_client_login_count`),
  users: columns(`s:name s:pool_size s:reserve_pool_size s:pool_mode i:max_user_connections i:current_connections
    i:max_user_client_connections i:current_client_connections`),
  version: columns('s:version'),
  tsbouncer_version: columns('s:tsbouncer_version'),
  totals: columns('s:name N:value'),
  mem: columns('s:name i:size i:used i:free i:memtotal'),
  waits: columns('s:database s:user i:cl_waiting i:maxwait i:maxwait_us s:waits_for s:held_by'),
  threads: columns('s:thread i:handles N:turns N:received N:sent N:cpu_us i:busy_percent'),
  dns_hosts: columns('s:hostname q:ttl s:addrs'),
  dns_zones: columns('s:zonename q:serial i:count'),
  state: columns('s:key s:value'),
};

/** The columns of a SHOW under compat_version: before 1.26 without the count of client logins. */
export function columnsOfShow(word: keyof typeof showColumns): Columns {
  const all: Columns = showColumns[word];
  if (showsClientLogins()) return all;
  const kept = [...all.names.keys()].filter((at) => !all.names[at]?.endsWith('client_login_count'));
  return { types: kept.map((at) => all.types[at]).join(''), names: kept.map((at) => all.names[at] as string) };
}

/** The text of SHOW HELP, sent as the detail of a notice. */
export const helpText = `
\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION|TSBOUNCER_VERSION
\tSHOW PEERS|PEER_POOLS
\tSHOW FDS|SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE|THREADS|WAITS
\tSHOW DNS_HOSTS|DNS_ZONES
\tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS
\tSET key = arg
\tRELOAD
\tPAUSE [<db>]
\tRESUME [<db>]
\tDISABLE <db>
\tENABLE <db>
\tRECONNECT [<db>]
\tRECONNECT CLIENTS [<db>] [OVER <seconds>]
\tKILL [<db>]
\tKILL_CLIENT <client_id>
\tSUSPEND
\tSHUTDOWN
\tSHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS|WAIT_FOR_TRANSACTIONS
\tWAIT_CLOSE [<db>]`;
