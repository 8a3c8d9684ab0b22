/*
 * The variables of the image edoburu/pgbouncer: DATABASE_URL, DATABASE_URLS or DB_HOST and its kin, and each setting in
 * capitals. Defaults are those of that image.
 */

import { addSettings, emptyConfig, type ImageConfig, type ImageDatabase, md5Secret, portValue } from './config-text';
import { checkOneLine, type Environment, ImageError, isGiven, readVariable } from './variables';

/** Variables of which one is needed for a config. */
export const EDOBURU_VARIABLES = ['DATABASE_URL', 'DATABASE_URLS', 'DB_HOST'];

const DEFAULTS: readonly [setting: string, value: string][] = [
  ['listen_addr', '0.0.0.0'],
  ['listen_port', '5432'],
  ['unix_socket_dir', ''],
  ['auth_type', 'md5'],
  ['ignore_startup_parameters', 'extra_float_digits'],
  ['admin_users', 'postgres'],
];

/** Values of AUTH_TYPE with which that image writes passwords as they are. */
const PLAIN_SECRETS = ['plain', 'scram-sha-256'];

interface Server {
  user: string;
  password: string;
  host: string;
  port: string;
  name: string;
}

/** Undoes %XX if all percent signs are followed by two hex digits; else they are meant as they are. */
function decoded(name: string, text: string): string {
  if (!/^(?:[^%]|%[0-9A-Fa-f]{2})*$/.test(text)) return text;
  const bytes = text.replace(/%(..)/g, (_, digits) => String.fromCharCode(Number.parseInt(digits, 16)));
  return checkOneLine(name, bytes);
}

/** `[scheme://][user[:password]@]host[:port][/database][?…]`; the last @ ends the password, so it may contain others. */
function parseUrl(name: string, url: string, config: ImageConfig): Server {
  const parts =
    /^(?:[A-Za-z][\w+.-]*:\/\/)?(?:([^:]*?)(?::(.*))?@)?(\[[^\]]*\]|[^:/?@]*)(?::(\d*))?(?:\/([^?]*))?(?:\?(.*))?$/.exec(
      url,
    );
  if (parts === null) throw new ImageError(`${name}: not a URL like postgres://user:password@host:5432/database`);
  const [user, password, host, port, database] = parts.slice(1, 6).map((part) => decoded(name, part ?? ''));
  const query = parts[6] ?? '';
  for (const pair of query === '' ? [] : query.split('&')) {
    const [key, value = ''] = pair.split('=', 2) as [string, string?];
    if (key === 'sslmode') config.settings.set('server_tls_sslmode', decoded(name, value));
    else config.notices.push(`${name}: the parameter ${key} has no effect`);
  }
  const server = { user, password, host: host?.replace(/^\[|\]$/g, ''), port, name: database } as Server;
  if (server.host === '') throw new ImageError(`${name}: the URL has no host`);
  return server;
}

/** The servers of the URLs, or of the single variables. */
function readServers(env: Environment, config: ImageConfig): Server[] {
  const urls = readVariable(env, 'DATABASE_URLS');
  if (urls !== '') return urls.split(',').map((url) => parseUrl('DATABASE_URLS', url.trim(), config));
  if (isGiven(env, 'DATABASE_URL')) return [parseUrl('DATABASE_URL', readVariable(env, 'DATABASE_URL'), config)];
  const [user, password, host, name] = ['DB_USER', 'DB_PASSWORD', 'DB_HOST', 'DB_NAME'].map((variable) =>
    readVariable(env, variable),
  );
  return [{ user, password, host, name, port: portValue(env, 'DB_PORT', '') } as Server];
}

function databaseOf(server: Server, env: Environment): ImageDatabase {
  return {
    name: server.name || '*',
    params: {
      host: server.host,
      port: server.port || '5432',
      auth_user: server.user || 'postgres',
      client_encoding: readVariable(env, 'CLIENT_ENCODING'),
      timezone: readVariable(env, 'TIMEZONE'),
    },
    text: '',
  };
}

/** The config that the variables describe. Throws an ImageError. */
export function edoburuConfig(env: Environment): ImageConfig {
  const config = emptyConfig();
  for (const [name, value] of DEFAULTS) config.settings.set(name, value);
  const servers = readServers(env, config);
  addSettings(config, env, '');
  config.databases = servers.map((server) => databaseOf(server, env));
  const plain = PLAIN_SECRETS.includes(config.settings.get('auth_type') ?? '');
  for (const { user: name, password } of servers) {
    if (name === '' || password === '' || config.users.some((user) => user.name === name)) continue;
    config.users.push({ name, password: plain ? password : md5Secret(name, password) });
  }
  return config;
}
