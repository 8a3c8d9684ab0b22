/*
 * Helpers of the config tests: loading texts, capturing log messages, and fresh settings for each test.
 */

import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { logState, resetLogging } from '../../src/core/base/log';
import { loadConfigFile, type ParsedConfig } from '../../src/core/config/loader';
import { cf, setConfigLoaded, setConfigParam, settingHooks } from '../../src/core/config/settings';
import { SettingType, settingsTable } from '../../src/core/config/settings-table';
import { after, afterEach, beforeEach } from './limits';

/** Folder of the files that the tests write. */
export const dir = mkdtempSync(join(tmpdir(), 'tsbouncer-config-'));
const logPath = join(dir, 'log');

/** Runs `action` and returns the messages logged at WARNING and above, each as 'LEVEL text'. */
export function logged(action: () => void): string[] {
  writeFileSync(logPath, '');
  logState.quiet = true;
  logState.logfile = logPath;
  resetLogging();
  try {
    action();
  } finally {
    logState.quiet = false;
    logState.logfile = null;
    resetLogging();
  }
  const lines = readFileSync(logPath, 'latin1').split('\n');
  return lines.filter((line) => line !== '').map((line) => line.replace(/^.*?\] /, ''));
}

let fileCount = 0;

/** Writes a config file. @returns its path */
export function write(text: string, name = `f${++fileCount}.ini`): string {
  const path = join(dir, name);
  writeFileSync(path, Buffer.from(text, 'latin1'));
  return path;
}

/** Loads a good file. */
export function load(text: string): ParsedConfig {
  let parsed: ParsedConfig | null = null;
  const path = write(text);
  const messages = logged(() => {
    parsed = loadConfigFile(path);
  });
  assert.notEqual(parsed, null, messages.join('\n'));
  return parsed as unknown as ParsedConfig;
}

/** Loads a bad file and returns its messages, with the file's path as FILE. */
export function loadBad(text: string): string[] {
  const path = write(text);
  const messages = logged(() => assert.equal(loadConfigFile(path), null));
  return messages.map((message) => message.replaceAll(path, 'FILE'));
}

/** Resets every setting to its initial value. */
export function toDefaults(): void {
  setConfigLoaded(false);
  settingHooks.onSettingChanged = null;
  const fields = cf as Record<string, unknown>;
  for (const setting of settingsTable) {
    if (setting.def !== null) setConfigParam(setting.name, setting.def);
    else fields[setting.field] = setting.type === SettingType.INT ? 0 : null;
  }
}

/** Resets the settings before and after every test of a file, and removes its folder at the end. */
export function resetSettingsAround(): void {
  beforeEach(toDefaults);
  afterEach(toDefaults);
  after(() => rmSync(dir, { recursive: true, force: true }));
}

/** SHOW CONFIG of a process without a config: name, value, default, changeable. */
export const SHOW_CONFIG = `
admin_users||yes
application_name_add_host|0|yes
auth_dbname|-|yes
auth_file|-|yes
auth_hba_file||yes
auth_ident_file|-|yes
auth_ldap_options|-|yes
auth_query|SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END FROM pg_authid WHERE rolname=$1 AND rolcanlogin|yes
auth_query_cache_time|0|yes
auth_type|md5|yes
auth_user|-|yes
autodb_idle_timeout|3600|yes
cancel_wait_timeout|10|yes
client_idle_timeout|0|yes
client_login_timeout|60|yes
client_tls13_ciphers|-|yes
client_tls_ca_file||yes
client_tls_cert_file||yes
client_tls_ciphers|default|yes
client_tls_dheparams|auto|yes
client_tls_ecdhcurve|auto|yes
client_tls_key_file||yes
client_tls_protocols|secure|yes
client_tls_sslmode|disable|yes
compat_version|1.26|no
conffile|-|yes
core_dumps|0|yes
default_pool_size|20|yes
dirty_session|ignore|yes
disable_pqexec|0|no
dns_max_ttl|15|yes
dns_nxdomain_ttl|15|yes
dns_zone_check_period|0|yes
drain_rate|1000|yes
fair_share_timeout|0|yes
idle_transaction_timeout|0|yes
ignore_startup_parameters||yes
io_threads|auto|no
io_threads_load|60|no
job_name|pgbouncer|no
listen_addr||no
listen_backlog|4096|no
listen_loss|disconnect|yes
listen_mode|ignore|yes
listen_port|6432|no
listen_queue_size|1048576|yes
log_connections|1|yes
log_disconnections|1|yes
log_format|text|yes
log_pooler_errors|1|yes
log_repeat_limit|0|yes
log_stats|1|yes
logfile||yes
loop_backend|auto|no
login_notify_message||yes
max_client_conn|100|yes
max_client_conn_per_host|0|yes
max_db_client_connections|0|yes
max_db_connections|0|yes
max_packet_size|2147483647|yes
max_prepared_statements|200|yes
max_user_client_connections|0|yes
max_user_connections|0|yes
metrics_addr|127.0.0.1|yes
metrics_port|0|yes
metrics_tls_cert_file||yes
metrics_tls_key_file||yes
metrics_token_file||yes
min_pool_size|0|yes
peer_id|0|yes
peers_dns||yes
pidfile||no
pkt_buf|4096|no
pool_mode|session|yes
pool_idle_timeout|0|yes
prepared_errors_fatal|0|yes
proxy_protocol_networks||yes
query_timeout|0|yes
query_wait_notify|5|yes
query_wait_timeout|120|yes
reserve_pool_size|0|yes
reserve_pool_timeout|5|yes
resolv_conf||no
sbuf_loopcnt|5|yes
scram_iterations|4096|yes
server_channel_binding|prefer|yes
server_check_delay|30|yes
server_check_query|<empty>|yes
server_connect_timeout|15|yes
server_fast_close|0|yes
server_idle_timeout|600|yes
server_lifetime|3600|yes
server_lifetime_jitter|0|yes
server_login_concurrency|4|yes
server_login_retry|15|yes
server_recovery_timeout|0|yes
server_reset_query|DISCARD ALL|yes
server_reset_query_always|0|yes
server_round_robin|0|yes
server_tls13_ciphers|-|yes
server_tls_ca_file||yes
server_tls_cert_file||yes
server_tls_ciphers|default|yes
server_tls_key_file||yes
server_tls_protocols|secure|yes
server_tls_sslmode|prefer|yes
shutdown_timeout|0|yes
sigterm_shutdown|wait_for_clients|yes
so_reuseport|0|no
stats_period|60|yes
stats_users||yes
suspend_timeout|10|yes
syslog|0|yes
syslog_facility|daemon|yes
syslog_ident|pgbouncer|yes
tcp_defer_accept|${process.platform === 'linux' ? 1 : 0}|yes
tcp_keepalive|1|yes
tcp_keepcnt|0|yes
tcp_keepidle|0|yes
tcp_keepintvl|0|yes
tcp_socket_buffer|0|yes
tcp_user_timeout|0|yes
track_extra_parameters|IntervalStyle|no
transaction_timeout|0|yes
unix_socket_dir|/tmp|no
unix_socket_group||no
unix_socket_mode|511|no
user|-|no
verbose|0|yes
`;
