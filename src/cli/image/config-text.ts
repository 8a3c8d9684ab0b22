/*
 * The config that the variables of an image describe, and its text as ini file and auth_file. The readers are
 * core/config/ini.ts, connstr.ts and authfile.ts: what is written here is read there as the same values.
 */

import { pgMd5Encrypt } from '../../core/auth/md5';
import { settingsTable } from '../../core/config/settings-table';
import { MAX_PASSWORD, MAX_USERNAME } from '../../core/wire/limits';
import { checkOneLine, type Environment, ImageError, readVariable } from './variables';

/** An entry of [databases]. */
export interface ImageDatabase {
  name: string;
  /** parameters of the connect string; empty values are left out */
  params: Readonly<Record<string, string>>;
  /** more of the connect string, as the user has written it */
  text: string;
}

export interface ImageConfig {
  databases: ImageDatabase[];
  settings: Map<string, string>;
  /** users with their passwords or secrets */
  users: { name: string; password: string }[];
  /** lines of the auth_file, as the user has written them */
  userLines: string[];
  /** the server that has to accept connections before the pooler starts */
  waitFor: { host: string; port: number; tries: number; pauseSeconds: number } | null;
  /** more options of the command line */
  options: string[];
  /** for the user to know */
  notices: string[];
}

export function emptyConfig(): ImageConfig {
  return { databases: [], settings: new Map(), users: [], userLines: [], waitFor: null, options: [], notices: [] };
}

/** Settings that a variable cannot have: those of the image itself, and `user`, because USER is a variable of the shell. */
const NOT_BY_VARIABLE = ['user', 'conffile'];

/** Adds all settings that have a variable: its name in capitals, after `prefix`. Throws an ImageError. */
export function addSettings(config: ImageConfig, env: Environment, prefix: string): void {
  for (const { name } of settingsTable) {
    if (NOT_BY_VARIABLE.includes(name)) continue;
    const value = readVariable(env, prefix + name.toUpperCase());
    if (value !== '') config.settings.set(name, value);
  }
}

/** The key of a line of the ini: plain where that is possible, else in double quotes. */
function keyText(name: string): string {
  checkOneLine('name of a database', name);
  return /^[A-Za-z0-9_.*-]+$/.test(name) ? name : `"${name.replaceAll('"', '""')}"`;
}

/** A value of a connect string, in single quotes unless that is clearly not needed: space at the end of a line is lost. */
function paramText(value: string): string {
  return /^[\w.:/,*@%+-]+$/.test(value) ? value : `'${value.replaceAll("'", "''")}'`;
}

function databaseLine({ name, params, text }: ImageDatabase): string {
  const pairs = Object.entries(params)
    .filter(([, value]) => value !== '')
    .map(([key, value]) => `${key}=${paramText(checkOneLine(`${key} of database ${name}`, value))}`);
  if (text !== '') pairs.push(text);
  return `${keyText(name)} = ${pairs.join(' ')}`;
}

/** The ini file. Throws an ImageError if a value cannot be written. */
export function iniText(config: ImageConfig): string {
  const settings = [...config.settings].map(([name, value]) => `${name} = ${checkOneLine(name, value)}`);
  return `${['[databases]', ...config.databases.map(databaseLine), '', '[pgbouncer]', ...settings].join('\n')}\n`;
}

/** A name or password of an auth_file with its quotes. @param limit bytes between them, including a NUL */
function userField(what: string, value: string, limit: number): string {
  const quoted = checkOneLine(what, value).replaceAll('"', '""');
  if (quoted.length >= limit) throw new ImageError(`${what}: longer than ${limit - 1} bytes`);
  return `"${quoted}"`;
}

/** The auth_file. Throws an ImageError if a name or password cannot be written. */
export function authFileText(config: ImageConfig): string {
  const lines = config.users.map(({ name, password }) => {
    const user = userField('name of a user', name, MAX_USERNAME);
    return `${user} ${userField(`password of user ${name}`, password, MAX_PASSWORD)}`;
  });
  return [...lines, ...config.userLines, ''].join('\n');
}

/** What PostgreSQL stores for a password with md5. Throws an ImageError where MD5 is forbidden. */
export function md5Secret(name: string, password: string): string {
  const secret = pgMd5Encrypt(password, name);
  if (secret === null) throw new ImageError('MD5 is not available on this machine: use another AUTH_TYPE');
  return secret;
}

/** A port number. */
export function portValue(env: Environment, name: string, otherwise: string): string {
  const value = readVariable(env, name);
  if (value === '') return otherwise;
  const port = /^\d{1,5}$/.test(value) ? Number(value) : 0;
  if (port < 1 || port > 65535) throw new ImageError(`${name}: invalid port number: "${value}"`);
  return value;
}
