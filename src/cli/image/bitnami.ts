/*
 * The variables of the image bitnami/pgbouncer: POSTGRESQL_* for the server, PGBOUNCER_* for the pooler, each also as
 * NAME_FILE. Defaults are those of that image.
 */

import { existsSync } from 'node:fs';
import { addSettings, emptyConfig, type ImageConfig, type ImageDatabase, portValue } from './config-text';
import { type Environment, ImageError, isGiven, readLines, readVariable } from './variables';

/** Variables of which one is needed for a config. */
export const BITNAMI_VARIABLES = [
  'POSTGRESQL_HOST',
  'POSTGRESQL_USERNAME',
  'POSTGRESQL_PASSWORD',
  'POSTGRESQL_DATABASE',
  'PGBOUNCER_DATABASE',
  'PGBOUNCER_DSN_0',
];

/** Files of the user, in the volume of that image: each is used instead of the variables. */
export const BITNAMI_CONFIG = '/bitnami/pgbouncer/conf/pgbouncer.ini';
const BITNAMI_USERS = '/bitnami/pgbouncer/conf/userlist.txt';

/** Variables that are not called like their setting. */
const RENAMED: readonly [variable: string, setting: string, otherwise: string][] = [
  ['PGBOUNCER_LISTEN_ADDRESS', 'listen_addr', '0.0.0.0'],
  ['PGBOUNCER_SOCKET_DIR', 'unix_socket_dir', '/tmp/'],
  ['PGBOUNCER_SOCKET_MODE', 'unix_socket_mode', '0777'],
  ['PGBOUNCER_SOCKET_GROUP', 'unix_socket_group', ''],
  ['PGBOUNCER_LOG_FILE', 'logfile', ''],
];

const DEFAULTS: readonly [setting: string, value: string][] = [
  ['auth_type', 'scram-sha-256'],
  ['ignore_startup_parameters', 'extra_float_digits'],
  ['client_tls_sslmode', 'disable'],
  ['server_tls_sslmode', 'disable'],
];

function isYes(value: string): boolean {
  return /^(?:1|y|yes|true)$/i.test(value);
}

function number(env: Environment, name: string, otherwise: number): number {
  const value = readVariable(env, name);
  if (value !== '' && !/^\d{1,6}$/.test(value)) throw new ImageError(`${name}: not a number: "${value}"`);
  return value === '' ? otherwise : Number(value);
}

/**
 * A query for the connect string. That image puts it in quotes as it is, so users have doubled its quotes. A query whose
 * quotes are all doubled is taken for such a query.
 */
function connectQuery(env: Environment): string {
  const query = readVariable(env, 'PGBOUNCER_CONNECT_QUERY');
  return query.replaceAll("''", '').includes("'") ? query : query.replaceAll("''", "'");
}

/** The databases of PGBOUNCER_DSN_0, _1 and so on: `name=connect string`. */
function moreDatabases(env: Environment): ImageDatabase[] {
  const found: ImageDatabase[] = [];
  for (let n = 0; isGiven(env, `PGBOUNCER_DSN_${n}`); n++) {
    const [, name, text] = /^([^=]*)=(.*)$/.exec(readVariable(env, `PGBOUNCER_DSN_${n}`)) ?? [];
    if (name === undefined || name.trim() === '') throw new ImageError(`PGBOUNCER_DSN_${n}: not name=connect string`);
    found.push({ name: name.trim(), params: {}, text: text as string });
  }
  return found;
}

function mainDatabase(env: Environment, user: string, password: string): ImageDatabase {
  const name = readVariable(env, 'PGBOUNCER_DATABASE') || 'postgres';
  return {
    name,
    params: {
      host: readVariable(env, 'POSTGRESQL_HOST') || 'postgresql',
      port: portValue(env, 'POSTGRESQL_PORT', '5432'),
      user: isYes(readVariable(env, 'PGBOUNCER_SET_DATABASE_USER')) ? user : '',
      password: isYes(readVariable(env, 'PGBOUNCER_SET_DATABASE_PASSWORD')) ? password : '',
      dbname: name === '*' ? '' : readVariable(env, 'POSTGRESQL_DATABASE') || name,
      auth_user: readVariable(env, 'PGBOUNCER_AUTH_USER'),
      connect_query: connectQuery(env),
    },
    text: '',
  };
}

/** The config that the variables describe. Throws an ImageError. */
export function bitnamiConfig(env: Environment): ImageConfig {
  const config = emptyConfig();
  const user = readVariable(env, 'POSTGRESQL_USERNAME') || 'postgres';
  const password = readVariable(env, 'POSTGRESQL_PASSWORD');
  for (const [name, value] of DEFAULTS) config.settings.set(name, value);
  config.settings.set('listen_port', portValue(env, 'PGBOUNCER_PORT', '6432'));
  for (const [variable, setting, otherwise] of RENAMED) {
    const value = readVariable(env, variable) || otherwise;
    if (value !== '') config.settings.set(setting, value);
  }
  config.settings.set('admin_users', user);
  addSettings(config, env, 'PGBOUNCER_');
  // it is a parameter of the database in that image
  config.settings.delete('auth_user');
  if (existsSync(BITNAMI_USERS)) config.settings.set('auth_file', BITNAMI_USERS);
  if (config.settings.get('auth_type') !== 'trust' && password === '') {
    throw new ImageError('POSTGRESQL_PASSWORD must be set');
  }
  const main = mainDatabase(env, user, password);
  config.databases = [main, ...moreDatabases(env).filter(({ name }) => name !== main.name)];
  config.users = [{ name: user, password }];
  config.userLines = readLines(env, 'PGBOUNCER_USERLIST');
  config.options = readVariable(env, 'PGBOUNCER_EXTRA_FLAGS')
    .split(/\s+/)
    .filter((word) => word !== '');
  config.waitFor = {
    host: main.params.host as string,
    port: Number(main.params.port),
    tries: number(env, 'PGBOUNCER_INIT_MAX_RETRIES', 10),
    pauseSeconds: number(env, 'PGBOUNCER_INIT_SLEEP_TIME', 10),
  };
  return config;
}
