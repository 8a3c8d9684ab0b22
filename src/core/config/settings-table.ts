/*
 * The table of settings: name, type, default and whether a setting is reloadable, in the order of SHOW CONFIG. A new
 * setting needs one field in `initial` and one row. The current values are in settings.ts.
 */

import {
  AuthType,
  authTypeMap,
  ChannelBindingMode,
  CORE_DUMPS_DEFAULT,
  channelBindingMap,
  DirtySession,
  dirtySessionMap,
  IO_THREADS_AUTO,
  ioThreadsMap,
  ListenLoss,
  ListenMode,
  LogFormat,
  listenLossMap,
  listenModeMap,
  logFormatMap,
  loopBackendMap,
  PoolMode,
  poolModeMap,
  SigtermShutdown,
  SslMode,
  sigtermShutdownMap,
  sslModeMap,
} from './choices';
import { COMPAT_DEFAULT, CompatVersion, compatVersionMap } from './compat-version';
import type { Lookup } from './values';

/** How the text of a setting is parsed and printed. */
export const enum SettingType {
  STR,
  INT,
  UINT,
  /** seconds as text, usec as value */
  TIME,
  LOOKUP,
  /** a string that must not be the name of the console's database */
  AUTHDB,
  /** empty, or a name with an optional port, see host-port.ts */
  HOST_PORT,
  /** a list of networks, see networks.ts */
  NETWORKS,
  /** an int; listeners are told only of a change between zero and non-zero */
  DEFER,
}

export interface Setting {
  readonly name: string;
  readonly field: keyof Settings;
  readonly type: SettingType;
  /** text of the default; null = none: a reload without this setting keeps its value */
  readonly def: string | null;
  /** fixed after the start: RELOAD and SET ignore it */
  readonly noReload: boolean;
  readonly map: readonly Lookup[] | null;
  /** for numbers: smallest and largest meaningful value */
  readonly min: number;
  readonly max: number;
}

const DEFAULT_AUTH_QUERY =
  'SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END FROM pg_authid WHERE rolname=$1 AND rolcanlogin';

const NO_RELOAD = true;

function row(
  name: string,
  field: keyof Settings,
  type: SettingType,
  def: string | null,
  noReload = false,
  map: readonly Lookup[] | null = null,
  min = Number.NEGATIVE_INFINITY,
  max = Number.POSITIVE_INFINITY,
): Setting {
  return { name, field, type, def, noReload, map, min, max };
}

/** Largest peer id: it shares the cancel key with other fields. */
const PEER_ID_MAX = 16383;

/** Every setting, in SHOW CONFIG's order. */
export const settingsTable: readonly Setting[] = [
  row('admin_users', 'adminUsers', SettingType.STR, ''),
  row('application_name_add_host', 'applicationNameAddHost', SettingType.INT, '0'),
  row('auth_dbname', 'authDbname', SettingType.AUTHDB, null),
  row('auth_file', 'authFile', SettingType.STR, null),
  row('auth_hba_file', 'authHbaFile', SettingType.STR, ''),
  row('auth_ident_file', 'authIdentFile', SettingType.STR, null),
  row('auth_ldap_options', 'authLdapOptions', SettingType.STR, null),
  row('auth_query', 'authQuery', SettingType.STR, DEFAULT_AUTH_QUERY),
  row('auth_query_cache_time', 'authQueryCacheTime', SettingType.TIME, '0'),
  row('auth_type', 'authType', SettingType.LOOKUP, 'md5', false, authTypeMap),
  row('auth_user', 'authUser', SettingType.STR, null),
  row('autodb_idle_timeout', 'autodbIdleTimeout', SettingType.TIME, '3600'),
  row('cancel_wait_timeout', 'cancelWaitTimeout', SettingType.TIME, '10'),
  row('client_idle_timeout', 'clientIdleTimeout', SettingType.TIME, '0'),
  row('client_login_timeout', 'clientLoginTimeout', SettingType.TIME, '60'),
  row('client_tls13_ciphers', 'clientTls13Ciphers', SettingType.STR, null),
  row('client_tls_ca_file', 'clientTlsCaFile', SettingType.STR, ''),
  row('client_tls_cert_file', 'clientTlsCertFile', SettingType.STR, ''),
  row('client_tls_ciphers', 'clientTlsCiphers', SettingType.STR, 'default'),
  row('client_tls_dheparams', 'clientTlsDheparams', SettingType.STR, 'auto'),
  row('client_tls_ecdhcurve', 'clientTlsEcdhcurve', SettingType.STR, 'auto'),
  row('client_tls_key_file', 'clientTlsKeyFile', SettingType.STR, ''),
  row('client_tls_protocols', 'clientTlsProtocols', SettingType.STR, 'secure'),
  row('client_tls_sslmode', 'clientTlsSslmode', SettingType.LOOKUP, 'disable', false, sslModeMap),
  row('compat_version', 'compatVersion', SettingType.LOOKUP, COMPAT_DEFAULT, NO_RELOAD, compatVersionMap),
  row('conffile', 'configFile', SettingType.STR, null),
  row('core_dumps', 'coreDumps', SettingType.INT, CORE_DUMPS_DEFAULT),
  row('default_pool_size', 'defaultPoolSize', SettingType.INT, '20'),
  row('dirty_session', 'dirtySession', SettingType.LOOKUP, 'ignore', !NO_RELOAD, dirtySessionMap),
  row('disable_pqexec', 'disablePqexec', SettingType.INT, '0', NO_RELOAD),
  row('dns_max_ttl', 'dnsMaxTtl', SettingType.TIME, '15'),
  row('dns_nxdomain_ttl', 'dnsNxdomainTtl', SettingType.TIME, '15'),
  row('dns_zone_check_period', 'dnsZoneCheckPeriod', SettingType.TIME, '0'),
  row('drain_rate', 'drainRate', SettingType.INT, '1000', false, null, 0),
  row('fair_share_timeout', 'fairShareTimeout', SettingType.TIME, '0'),
  row('idle_transaction_timeout', 'idleTransactionTimeout', SettingType.TIME, '0'),
  row('ignore_startup_parameters', 'ignoreStartupParameters', SettingType.STR, ''),
  row('io_threads', 'ioThreads', SettingType.LOOKUP, 'auto', NO_RELOAD, ioThreadsMap),
  row('io_threads_load', 'ioThreadsLoad', SettingType.INT, '60', NO_RELOAD, null, 0, 100),
  row('job_name', 'jobName', SettingType.STR, 'pgbouncer', NO_RELOAD),
  row('listen_addr', 'listenAddr', SettingType.STR, '', NO_RELOAD),
  row('listen_backlog', 'listenBacklog', SettingType.INT, '4096', NO_RELOAD),
  row('listen_loss', 'listenLoss', SettingType.LOOKUP, 'disconnect', !NO_RELOAD, listenLossMap),
  row('listen_mode', 'listenMode', SettingType.LOOKUP, 'ignore', !NO_RELOAD, listenModeMap),
  row('listen_port', 'listenPort', SettingType.INT, '6432', NO_RELOAD),
  row('listen_queue_size', 'listenQueueSize', SettingType.INT, '1048576', !NO_RELOAD, null, 0),
  row('log_connections', 'logConnections', SettingType.INT, '1'),
  row('log_disconnections', 'logDisconnections', SettingType.INT, '1'),
  row('log_format', 'logFormat', SettingType.LOOKUP, 'text', !NO_RELOAD, logFormatMap),
  row('log_pooler_errors', 'logPoolerErrors', SettingType.INT, '1'),
  row('log_repeat_limit', 'logRepeatLimit', SettingType.INT, '0', !NO_RELOAD, null, 0),
  row('log_stats', 'logStats', SettingType.INT, '1'),
  row('logfile', 'logfile', SettingType.STR, ''),
  row('loop_backend', 'loopBackend', SettingType.LOOKUP, 'auto', NO_RELOAD, loopBackendMap),
  row('login_notify_message', 'loginNotifyMessage', SettingType.STR, ''),
  row('max_client_conn', 'maxClientConn', SettingType.INT, '100'),
  row('max_client_conn_per_host', 'maxClientConnPerHost', SettingType.INT, '0'),
  row('max_db_client_connections', 'maxDbClientConnections', SettingType.INT, '0'),
  row('max_db_connections', 'maxDbConnections', SettingType.INT, '0'),
  row('max_packet_size', 'maxPacketSize', SettingType.UINT, '2147483647'),
  row('max_prepared_statements', 'maxPreparedStatements', SettingType.INT, '200'),
  row('max_user_client_connections', 'maxUserClientConnections', SettingType.INT, '0'),
  row('max_user_connections', 'maxUserConnections', SettingType.INT, '0'),
  row('metrics_addr', 'metricsAddr', SettingType.STR, '127.0.0.1'),
  row('metrics_port', 'metricsPort', SettingType.INT, '0', !NO_RELOAD, null, 0, 65535),
  row('metrics_tls_cert_file', 'metricsTlsCertFile', SettingType.STR, ''),
  row('metrics_tls_key_file', 'metricsTlsKeyFile', SettingType.STR, ''),
  row('metrics_token_file', 'metricsTokenFile', SettingType.STR, ''),
  row('min_pool_size', 'minPoolSize', SettingType.INT, '0'),
  row('peer_id', 'peerId', SettingType.INT, '0', false, null, 0, PEER_ID_MAX),
  row('peers_dns', 'peersDns', SettingType.HOST_PORT, ''),
  row('pidfile', 'pidfile', SettingType.STR, '', NO_RELOAD),
  row('pkt_buf', 'pktBuf', SettingType.INT, '4096', NO_RELOAD, null, 1),
  row('pool_mode', 'poolMode', SettingType.LOOKUP, 'session', false, poolModeMap),
  row('pool_idle_timeout', 'poolIdleTimeout', SettingType.TIME, '0'),
  row('prepared_errors_fatal', 'preparedErrorsFatal', SettingType.INT, '0'),
  row('proxy_protocol_networks', 'proxyProtocolNetworks', SettingType.NETWORKS, ''),
  row('query_timeout', 'queryTimeout', SettingType.TIME, '0'),
  row('query_wait_notify', 'queryWaitNotify', SettingType.INT, '5'),
  row('query_wait_timeout', 'queryWaitTimeout', SettingType.TIME, '120'),
  row('reserve_pool_size', 'reservePoolSize', SettingType.INT, '0'),
  row('reserve_pool_timeout', 'reservePoolTimeout', SettingType.TIME, '5'),
  row('resolv_conf', 'resolvConf', SettingType.STR, '', NO_RELOAD),
  row('sbuf_loopcnt', 'sbufLoopcnt', SettingType.INT, '5'),
  row('scram_iterations', 'scramIterations', SettingType.INT, '4096'),
  row('server_channel_binding', 'serverChannelBinding', SettingType.LOOKUP, 'prefer', false, channelBindingMap),
  row('server_check_delay', 'serverCheckDelay', SettingType.TIME, '30'),
  row('server_check_query', 'serverCheckQuery', SettingType.STR, '<empty>'),
  row('server_connect_timeout', 'serverConnectTimeout', SettingType.TIME, '15'),
  row('server_fast_close', 'serverFastClose', SettingType.INT, '0'),
  row('server_idle_timeout', 'serverIdleTimeout', SettingType.TIME, '600'),
  row('server_lifetime', 'serverLifetime', SettingType.TIME, '3600'),
  row('server_lifetime_jitter', 'serverLifetimeJitter', SettingType.INT, '0', false, null, 0, 100),
  row('server_login_concurrency', 'serverLoginConcurrency', SettingType.INT, '4', false, null, 1, 1000),
  row('server_login_retry', 'serverLoginRetry', SettingType.TIME, '15'),
  row('server_recovery_timeout', 'serverRecoveryTimeout', SettingType.TIME, '0'),
  row('server_reset_query', 'serverResetQuery', SettingType.STR, 'DISCARD ALL'),
  row('server_reset_query_always', 'serverResetQueryAlways', SettingType.INT, '0'),
  row('server_round_robin', 'serverRoundRobin', SettingType.INT, '0'),
  row('server_tls13_ciphers', 'serverTls13Ciphers', SettingType.STR, null),
  row('server_tls_ca_file', 'serverTlsCaFile', SettingType.STR, ''),
  row('server_tls_cert_file', 'serverTlsCertFile', SettingType.STR, ''),
  row('server_tls_ciphers', 'serverTlsCiphers', SettingType.STR, 'default'),
  row('server_tls_key_file', 'serverTlsKeyFile', SettingType.STR, ''),
  row('server_tls_protocols', 'serverTlsProtocols', SettingType.STR, 'secure'),
  row('server_tls_sslmode', 'serverTlsSslmode', SettingType.LOOKUP, 'prefer', false, sslModeMap),
  row('shutdown_timeout', 'shutdownTimeout', SettingType.TIME, '0'),
  row('sigterm_shutdown', 'sigtermShutdown', SettingType.LOOKUP, 'wait_for_clients', false, sigtermShutdownMap),
  row('so_reuseport', 'soReuseport', SettingType.INT, '0', NO_RELOAD),
  row('stats_period', 'statsPeriod', SettingType.INT, '60'),
  row('stats_users', 'statsUsers', SettingType.STR, ''),
  row('suspend_timeout', 'suspendTimeout', SettingType.TIME, '10'),
  row('syslog', 'syslog', SettingType.INT, '0'),
  row('syslog_facility', 'syslogFacility', SettingType.STR, 'daemon'),
  row('syslog_ident', 'syslogIdent', SettingType.STR, 'pgbouncer'),
  row('tcp_defer_accept', 'tcpDeferAccept', SettingType.DEFER, process.platform === 'linux' ? '1' : '0'),
  row('tcp_keepalive', 'tcpKeepalive', SettingType.INT, '1'),
  row('tcp_keepcnt', 'tcpKeepcnt', SettingType.INT, '0'),
  row('tcp_keepidle', 'tcpKeepidle', SettingType.INT, '0'),
  row('tcp_keepintvl', 'tcpKeepintvl', SettingType.INT, '0'),
  row('tcp_socket_buffer', 'tcpSocketBuffer', SettingType.INT, '0'),
  row('tcp_user_timeout', 'tcpUserTimeout', SettingType.INT, '0'),
  row('track_extra_parameters', 'trackExtraParameters', SettingType.STR, 'IntervalStyle', NO_RELOAD),
  row('transaction_timeout', 'transactionTimeout', SettingType.TIME, '0'),
  row('unix_socket_dir', 'unixSocketDir', SettingType.STR, '/tmp', NO_RELOAD),
  row('unix_socket_group', 'unixSocketGroup', SettingType.STR, '', NO_RELOAD),
  row('unix_socket_mode', 'unixSocketMode', SettingType.INT, '0777', NO_RELOAD),
  row('user', 'user', SettingType.STR, null, NO_RELOAD),
  row('verbose', 'verbose', SettingType.INT, null),
];

/**
 * Each field is named after its setting. Times (marked usec) are microseconds. Boolean settings are ints, as in
 * PgBouncer: compare with 0. The literal fixes the object's shape; the defaults are filled in from the table above.
 */
export const initial = {
  adminUsers: '',
  applicationNameAddHost: 0,
  authDbname: null as string | null,
  authFile: null as string | null,
  authHbaFile: '',
  authIdentFile: null as string | null,
  authLdapOptions: null as string | null,
  authQuery: '',
  /** usec */
  authQueryCacheTime: 0,
  authType: AuthType.MD5 as AuthType,
  authUser: null as string | null,
  /** usec */
  autodbIdleTimeout: 0,
  /** usec */
  cancelWaitTimeout: 0,
  /** usec */
  clientIdleTimeout: 0,
  /** usec */
  clientLoginTimeout: 0,
  clientTls13Ciphers: null as string | null,
  clientTlsCaFile: '',
  clientTlsCertFile: '',
  clientTlsCiphers: '',
  clientTlsDheparams: '',
  clientTlsEcdhcurve: '',
  clientTlsKeyFile: '',
  clientTlsProtocols: '',
  clientTlsSslmode: SslMode.DISABLED as SslMode,
  compatVersion: CompatVersion.V1_26 as CompatVersion,
  /** `conffile`: the file that RELOAD reads */
  configFile: null as string | null,
  coreDumps: 0,
  defaultPoolSize: 0,
  dirtySession: DirtySession.IGNORE,
  disablePqexec: 0,
  /** usec */
  dnsMaxTtl: 0,
  /** usec */
  dnsNxdomainTtl: 0,
  /** usec */
  dnsZoneCheckPeriod: 0,
  /** clients a second */
  drainRate: 0,
  /** usec */
  fairShareTimeout: 0,
  /** usec */
  idleTransactionTimeout: 0,
  ignoreStartupParameters: '',
  jobName: '',
  listenAddr: '',
  listenBacklog: 0,
  listenLoss: ListenLoss.DISCONNECT,
  listenMode: ListenMode.IGNORE,
  listenPort: 0,
  /** bytes */
  listenQueueSize: 0,
  logConnections: 0,
  logDisconnections: 0,
  logFormat: LogFormat.TEXT,
  logPoolerErrors: 0,
  logRepeatLimit: 0,
  logStats: 0,
  logfile: '',
  ioThreads: IO_THREADS_AUTO,
  ioThreadsLoad: 0,
  loopBackend: 0,
  loginNotifyMessage: '',
  maxClientConn: 0,
  maxClientConnPerHost: 0,
  maxDbClientConnections: 0,
  maxDbConnections: 0,
  /** bytes */
  maxPacketSize: 0,
  maxPreparedStatements: 0,
  preparedErrorsFatal: 0,
  maxUserClientConnections: 0,
  maxUserConnections: 0,
  metricsAddr: '',
  metricsPort: 0,
  metricsTlsCertFile: '',
  metricsTlsKeyFile: '',
  metricsTokenFile: '',
  minPoolSize: 0,
  peerId: 0,
  peersDns: '',
  pidfile: '',
  /** bytes */
  pktBuf: 0,
  poolMode: PoolMode.SESSION as PoolMode,
  /** usec */
  poolIdleTimeout: 0,
  proxyProtocolNetworks: '',
  /** usec */
  queryTimeout: 0,
  /** seconds, as an int: PgBouncer does not treat this timeout as a time */
  queryWaitNotify: 0,
  /** usec */
  queryWaitTimeout: 0,
  reservePoolSize: 0,
  /** usec */
  reservePoolTimeout: 0,
  resolvConf: '',
  sbufLoopcnt: 0,
  scramIterations: 0,
  serverChannelBinding: ChannelBindingMode.PREFER as ChannelBindingMode,
  /** usec */
  serverCheckDelay: 0,
  /** '' = no check, '<empty>' = an empty query */
  serverCheckQuery: '',
  /** usec */
  serverConnectTimeout: 0,
  serverFastClose: 0,
  /** usec */
  serverIdleTimeout: 0,
  /** usec */
  serverLifetime: 0,
  /** percent of the lifetime */
  serverLifetimeJitter: 0,
  serverLoginConcurrency: 1,
  /** usec */
  serverLoginRetry: 0,
  /** usec */
  serverRecoveryTimeout: 0,
  serverResetQuery: '',
  serverResetQueryAlways: 0,
  serverRoundRobin: 0,
  serverTls13Ciphers: null as string | null,
  serverTlsCaFile: '',
  serverTlsCertFile: '',
  serverTlsCiphers: '',
  serverTlsKeyFile: '',
  serverTlsProtocols: '',
  serverTlsSslmode: SslMode.PREFER as SslMode,
  /** usec */
  shutdownTimeout: 0,
  sigtermShutdown: SigtermShutdown.WAIT_FOR_CLIENTS as SigtermShutdown,
  soReuseport: 0,
  /** seconds, as an int */
  statsPeriod: 0,
  statsUsers: '',
  /** usec */
  suspendTimeout: 0,
  syslog: 0,
  syslogFacility: '',
  syslogIdent: '',
  tcpDeferAccept: 0,
  tcpKeepalive: 0,
  tcpKeepcnt: 0,
  /** seconds */
  tcpKeepidle: 0,
  /** seconds */
  tcpKeepintvl: 0,
  /** bytes */
  tcpSocketBuffer: 0,
  /** milliseconds */
  tcpUserTimeout: 0,
  trackExtraParameters: '',
  /** usec */
  transactionTimeout: 0,
  unixSocketDir: '',
  unixSocketGroup: '',
  unixSocketMode: 0,
  user: null as string | null,
  verbose: 0,
};

/** The type of `cf`. */
export type Settings = typeof initial;
