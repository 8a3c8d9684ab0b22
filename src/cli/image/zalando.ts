/*
 * The variables with which Zalando's postgres-operator starts the image of its connection pooler. Settings are those of
 * that image's template.
 */

import { emptyConfig, type ImageConfig, portValue } from './config-text';
import { type Environment, ImageError, isGiven, readVariable } from './variables';

/** Variables of which one is needed for a config. */
export const ZALANDO_VARIABLES = ['CONNECTION_POOLER_MODE', 'CONNECTION_POOLER_PORT'];

/** Settings with the variable of their value. */
const SETTINGS: readonly [setting: string, variable: string][] = [
  ['pool_mode', 'CONNECTION_POOLER_MODE'],
  ['admin_users', 'PGUSER'],
  ['stats_users', 'INFRASTRUCTURE_ROLES'],
  ['default_pool_size', 'CONNECTION_POOLER_DEFAULT_SIZE'],
  ['reserve_pool_size', 'CONNECTION_POOLER_RESERVE_SIZE'],
  ['max_client_conn', 'CONNECTION_POOLER_MAX_CLIENT_CONN'],
  ['max_db_connections', 'CONNECTION_POOLER_MAX_DB_CONN'],
  ['client_tls_key_file', 'CONNECTION_POOLER_CLIENT_TLS_KEY'],
  ['client_tls_cert_file', 'CONNECTION_POOLER_CLIENT_TLS_CRT'],
  ['client_tls_ca_file', 'CONNECTION_POOLER_CLIENT_CA_FILE'],
];

const FIXED: readonly [setting: string, value: string][] = [
  ['listen_addr', '*'],
  ['auth_dbname', 'postgres'],
  ['auth_type', 'md5'],
  ['server_tls_sslmode', 'require'],
  ['max_prepared_statements', '200'],
  ['idle_transaction_timeout', '600'],
  ['server_login_retry', '5'],
  ['ignore_startup_parameters', 'extra_float_digits,options'],
];

/** The config that the variables describe. Throws an ImageError. */
export function zalandoConfig(env: Environment): ImageConfig {
  const config = emptyConfig();
  for (const name of ['PGHOST', 'PGUSER', 'PGSCHEMA']) {
    if (!isGiven(env, name)) throw new ImageError(`${name} must be set`);
  }
  const user = readVariable(env, 'PGUSER');
  // as in the operator's own SQL, the name of the schema is not quoted
  const schema = readVariable(env, 'PGSCHEMA');
  if (!/^[A-Za-z_][A-Za-z0-9_]*$/.test(schema)) throw new ImageError(`PGSCHEMA: not a name: "${schema}"`);
  for (const [name, value] of FIXED) config.settings.set(name, value);
  for (const [name, variable] of SETTINGS) {
    const value = readVariable(env, variable);
    if (value !== '') config.settings.set(name, value);
  }
  config.settings.set('listen_port', portValue(env, 'CONNECTION_POOLER_PORT', '5432'));
  config.settings.set('auth_query', `SELECT * FROM ${schema}.user_lookup($1)`);
  const hasKey = isGiven(env, 'CONNECTION_POOLER_CLIENT_TLS_CRT');
  config.settings.set('client_tls_sslmode', hasKey ? 'require' : 'disable');
  if (!hasKey) config.notices.push('CONNECTION_POOLER_CLIENT_TLS_CRT is not set: clients cannot use TLS');
  const params = { host: readVariable(env, 'PGHOST'), port: portValue(env, 'PGPORT', '5432'), auth_user: user };
  config.databases = [
    { name: '*', params, text: '' },
    { name: 'postgres', params, text: '' },
  ];
  const password = readVariable(env, 'PGPASSWORD');
  if (password !== '') config.users.push({ name: user, password });
  return config;
}
