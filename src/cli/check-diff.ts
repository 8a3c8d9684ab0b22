/*
 * --check --diff: what a RELOAD would change in the running pooler. It asks the console for the current state, and
 * compares that with the config file. PgBouncer answers the same commands.
 */

import type { AuthFileUser } from '../core/config/authfile';
import { AuthType, loadBalanceHostsMap, PoolMode, poolModeMap } from '../core/config/choices';
import type { ParsedConfig } from '../core/config/loader';
import {
  type DatabaseConfig,
  type PeerConfig,
  parseDatabase,
  USER_DEFAULTS,
  type UserConfig,
} from '../core/config/records';
import { cf, configForEach } from '../core/config/settings';
import { formatLookup } from '../core/config/values';
import { MAX_DBNAME } from '../core/wire/limits';
import { allDatabases, givenLimit } from './check-limits';
import { CONSOLE, waysIn } from './console';
import { type Answer, type Session, withSession } from './pg-client';

const LIMIT_MS = 10_000;
const USEC_PER_SECOND = 1_000_000;

/** A row of a SHOW command, by column. */
type Row = Map<string, string>;

interface Comparison {
  /** one line each */
  differences: string[];
  /** why the pooler could not be asked, or null */
  error: string | null;
}

function rowsByName({ names, rows }: Answer, nameColumn: string): Map<string, Row> {
  const found = new Map<string, Row>();
  for (const row of rows) {
    const fields: Row = new Map(names.map((name, at) => [name, (row[at] ?? '').trim()]));
    found.set(fields.get(nameColumn) ?? '', fields);
  }
  return found;
}

function shown(value: string): string {
  return value === '' ? '(empty)' : value;
}

/**
 * Settings that an online reboot cannot change: it finds the old process by them, needs its user, or keeps the sockets that
 * were opened with them.
 */
const RESTART_ONLY: ReadonlySet<string> = new Set(['listen_port', 'so_reuseport', 'unix_socket_dir', 'user']);

/** What a setting needs in order to change, behind its line. */
function needOf(name: string, changeable: boolean): string {
  if (changeable) return '';
  return RESTART_ONLY.has(name) ? ' (needs a restart)' : ' (needs a restart or an online reboot)';
}

function compareSettings(running: Map<string, Row>, parsed: ParsedConfig): string[] {
  const inFile = new Set(parsed.settings.map(({ name }) => name));
  const differences: string[] = [];
  configForEach((name, value, def, changeable) => {
    const row = running.get(name);
    // a setting without a default that the file does not have keeps its value
    if (name === 'conffile' || row === undefined || (def === null && !inFile.has(name))) return;
    const before = row.get('value') ?? '';
    if (before === (value ?? '')) return;
    const need = needOf(name, changeable);
    differences.push(`setting ${name}: ${shown(before)} -> ${shown(value ?? '')}${need}`);
  });
  return differences;
}

function general(value: number, otherwise: number): string {
  return String(value >= 0 ? value : otherwise);
}

function limit(value: number, otherwise: number): string {
  return String(givenLimit(value, otherwise));
}

function modeName(mode: PoolMode): string {
  return mode === PoolMode.INHERIT ? '' : formatLookup(poolModeMap, mode);
}

/** A database's line, as SHOW DATABASES will show it. */
function databaseFields(db: DatabaseConfig): Row {
  const lifetime = db.serverLifetime > 0 ? db.serverLifetime : cf.serverLifetime;
  return new Map([
    ['host', db.host ?? ''],
    ['port', String(db.port)],
    ['database', db.dbname],
    ['force_user', db.user ?? ''],
    ['pool_size', general(db.poolSize, cf.defaultPoolSize)],
    ['min_pool_size', general(db.minPoolSize, cf.minPoolSize)],
    ['reserve_pool_size', general(db.resPoolSize, cf.reservePoolSize)],
    ['server_lifetime', String(Math.floor(lifetime / USEC_PER_SECOND))],
    ['pool_mode', modeName(db.poolMode)],
    ['load_balance_hosts', db.host?.includes(',') ? formatLookup(loadBalanceHostsMap, db.loadBalanceHosts) : ''],
    ['max_connections', limit(db.maxDbConnections, cf.maxDbConnections)],
    ['max_client_connections', limit(db.maxDbClientConnections, cf.maxDbClientConnections)],
  ]);
}

function userFields(user: UserConfig): Row {
  return new Map([
    ['pool_size', user.poolSize >= 0 ? String(user.poolSize) : ''],
    ['reserve_pool_size', user.resPoolSize >= 0 ? String(user.resPoolSize) : ''],
    ['pool_mode', modeName(user.poolMode)],
    ['max_user_connections', limit(user.maxUserConnections, cf.maxUserConnections)],
    ['max_user_client_connections', limit(user.maxUserClientConnections, cf.maxUserClientConnections)],
  ]);
}

/** The fields that differ; a column that the running version does not have is skipped. */
function changedFields(before: Row, after: Row): string {
  const changes: string[] = [];
  for (const [field, value] of after) {
    const old = before.get(field);
    if (old !== undefined && old !== value) changes.push(`${field} ${shown(old)} -> ${shown(value)}`);
  }
  return changes.join(', ');
}

function compareRows(kind: string, running: Map<string, Row>, wanted: Map<string, Row>): string[] {
  const differences: string[] = [];
  for (const [name, fields] of wanted) {
    const before = running.get(name);
    const changes = before === undefined ? '' : changedFields(before, fields);
    if (before === undefined) differences.push(`${kind} ${name}: added`);
    else if (changes !== '') differences.push(`${kind} ${name}: ${changes}`);
  }
  for (const name of running.keys()) if (!wanted.has(name)) differences.push(`${kind} ${name}: removed`);
  return differences;
}

function compareDatabases(running: Map<string, Row>, parsed: ParsedConfig): string[] {
  running.delete(CONSOLE);
  const wanted = new Map(parsed.databases.map((db) => [db.name, databaseFields(db)]));
  for (const name of running.keys()) {
    // the "*" line stays responsible for the databases that it has made
    const auto = parsed.autodb !== null && !wanted.has(name) && name.length < MAX_DBNAME;
    const config = auto ? parseDatabase(name, parsed.autodb?.connstr ?? '') : null;
    if (config !== null) wanted.set(name, databaseFields(config));
  }
  return compareRows('database', running, wanted);
}

/** With these, users need no line in auth_file. */
const UNLISTED: ReadonlySet<AuthType> = new Set([AuthType.PAM, AuthType.LDAP, AuthType.ANY, AuthType.HBA]);

/** Users that auth_query, PAM, LDAP or a forced user brings are in no file: a missing line says nothing about them. */
function usersAreListed(parsed: ParsedConfig): boolean {
  const databases = allDatabases(parsed);
  const byQuery = (cf.authUser ?? '') !== '' || databases.some((db) => db.authUser !== null);
  return !byQuery && !UNLISTED.has(cf.authType);
}

function compareUsers(running: Map<string, Row>, parsed: ParsedConfig, users: AuthFileUser[]): string[] {
  const lines = new Map(parsed.users.map((user) => [user.name, user]));
  const names = new Set([...users.map(({ name }) => name), ...lines.keys()]);
  const wanted = new Map([...names].map((name) => [name, userFields(lines.get(name) ?? USER_DEFAULTS)]));
  const forced = new Set([CONSOLE, ...allDatabases(parsed).map((db) => db.user ?? CONSOLE)]);
  for (const name of running.keys()) {
    const unlisted = forced.has(name) || !usersAreListed(parsed);
    if (unlisted && !wanted.has(name)) wanted.set(name, userFields(USER_DEFAULTS));
  }
  return compareRows('user', running, wanted);
}

/** The peers of peers_dns are in no file. @param settings of the running pooler */
function peersAreListed(settings: Map<string, Row>): boolean {
  const value = (name: string) => settings.get(name)?.get('value') ?? '';
  return value('peers_dns') === '' || value('peer_id') !== '0';
}

function comparePeers(running: Map<string, Row>, settings: Map<string, Row>, parsed: ParsedConfig): string[] {
  const fields = ({ host, port, poolSize }: PeerConfig): Row =>
    new Map([
      ['host', host],
      ['port', String(port)],
      ['pool_size', general(poolSize, cf.defaultPoolSize)],
    ]);
  const wanted = new Map(parsed.peers.map((peer) => [String(peer.id), fields(peer)]));
  if (!peersAreListed(settings)) for (const id of running.keys()) if (!wanted.has(id)) running.delete(id);
  return compareRows('peer', running, wanted);
}

function compareAll(parsed: ParsedConfig, users: AuthFileUser[]): (session: Session) => Promise<string[]> {
  return async (session) => {
    const settings = rowsByName(await session.ask('SHOW CONFIG'), 'key');
    return [
      ...compareSettings(settings, parsed),
      ...compareDatabases(rowsByName(await session.ask('SHOW DATABASES'), 'name'), parsed),
      ...compareUsers(rowsByName(await session.ask('SHOW USERS'), 'name'), parsed, users),
      ...comparePeers(rowsByName(await session.ask('SHOW PEERS'), 'peer_id'), settings, parsed),
    ];
  };
}

/** Compares the config with the running pooler. @param users of auth_file */
export async function compareWithRunning(parsed: ParsedConfig, users: AuthFileUser[]): Promise<Comparison> {
  let error = 'neither unix_socket_dir nor an administrator of auth_file leads to the console';
  for (const way of waysIn(users)) {
    try {
      return { differences: await withSession(way, LIMIT_MS, compareAll(parsed, users)), error: null };
    } catch (err) {
      error = (err as Error).message;
    }
  }
  return { differences: [], error: `the running pooler could not be asked: ${error}` };
}
