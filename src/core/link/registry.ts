// Applies the config of databases, and creates auto-databases from the `*` entry on demand.

import { logInfo, logWarning, slogInfo } from '../base/log';
import { fileMark, readPasswordFile } from '../config/password-source';
import { DATABASE_DEFAULTS, type DatabaseConfig, parseDatabase } from '../config/records';
import { cf } from '../config/settings';
import type { ClientSocket, PgCredentials, PgDatabase } from '../pool/bouncer';
import { addDatabase, findDatabase, forceUserCredentials } from '../pool/database';
import { joinPools } from '../pool/join';
import { handOverPool } from '../pool/pool';
import { findOrAddGlobalUser } from '../pool/user';
import { tagDatabaseDirty, tagHostsGone } from './dirty';
import { commandPassword } from './password-command';

/** The `*` entry, or null. */
let autodb: DatabaseConfig | null = null;

/** @returns the `*` entry, or null */
export function getAutodb(): DatabaseConfig | null {
  return autodb;
}

export function setAutodb(config: DatabaseConfig | null): void {
  autodb = config;
}

/** True if existing servers must be closed, whatever their host. */
function connectStringChanged(db: PgDatabase, config: DatabaseConfig): boolean {
  return (
    db.config.dbname !== config.dbname ||
    db.config.port !== config.port ||
    db.config.ports?.join() !== config.ports?.join() ||
    db.config.targetSession !== config.targetSession ||
    (db.forcedUser?.name ?? null) !== config.user ||
    db.config.connectQuery !== config.connectQuery ||
    JSON.stringify(db.config.tls) !== JSON.stringify(config.tls) ||
    db.config.authDbname !== config.authDbname ||
    db.config.authQuery !== config.authQuery ||
    db.config.loadBalanceHosts !== config.loadBalanceHosts ||
    // initial values of variables, which are the defaults of the clients of its pools
    JSON.stringify(db.config.startupParams) !== JSON.stringify(config.startupParams)
  );
}

export function applyDatabase(config: DatabaseConfig): PgDatabase {
  const db = addDatabase(config.name);
  db.dead = false;
  db.auto = false;
  if (db.config !== DATABASE_DEFAULTS) {
    if (connectStringChanged(db, config)) tagDatabaseDirty(db);
    else if (db.config.host !== config.host) tagHostsGone(db, config.host);
  }
  db.config = config;
  db.authUser = config.authUser === null ? null : authUserCredentials(config.authUser);
  const before = db.forcedUser;
  if (config.user === null) db.forcedUser = null;
  else {
    const user = forceUserCredentials(db, config.user, knownPassword(config));
    if (before !== null && before !== user) {
      joinPools(db, before, user);
      handOverPool(db, before, user);
    }
  }
  return db;
}

function knownPassword({ password, passwordCommand }: DatabaseConfig): string {
  return passwordCommand === null ? (password ?? '') : commandPassword(passwordCommand);
}

/**
 * Reads the password of the forced user again if its file has changed: called before a login to a server. If it cannot
 * be read, the known password stays.
 */
export function renewPassword(db: PgDatabase): void {
  const { passwordFile, passwordMark } = db.config;
  if (passwordFile === null || db.forcedUser === null) return;
  const mark = fileMark(passwordFile);
  if (mark === passwordMark) return;
  const found = readPasswordFile(passwordFile);
  if (typeof found === 'string') {
    db.config = { ...db.config, passwordMark: mark };
    logWarning(`${found}, keeping the known password`);
    return;
  }
  logInfo(`database ${db.name}: password_file ${passwordFile} has changed`);
  db.config = { ...db.config, password: found.passwd, passwordMark: found.mark };
  forceUserCredentials(db, db.forcedUser.name, found.passwd);
}

function authUserCredentials(name: string): PgCredentials {
  return findOrAddGlobalUser(name).credentials;
}

/** The auth_user of a database: its own, or else that of the settings, which a database takes over when it is needed. */
export function authUserOf(db: PgDatabase): PgCredentials | null {
  if (db.authUser === null && cf.authUser !== null && cf.authUser !== '')
    db.authUser = authUserCredentials(cf.authUser);
  return db.authUser;
}

function registerAutoDatabase(name: string): PgDatabase | null {
  // as in PgBouncer, a database of the name `*` cannot be asked for
  if (autodb === null || name === '*') return null;
  const config = parseDatabase(name, autodb.connstr);
  if (config === null) return null;
  const db = applyDatabase(config);
  db.auto = true;
  return db;
}

/** The database of that name. An auto-database comes from the `*` entry, and is provisional until a login succeeds. */
export function findOrRegisterLoginDatabase(client: ClientSocket | null, name: string): PgDatabase | null {
  const known = findDatabase(name);
  if (known !== null) return known;
  const db = registerAutoDatabase(name);
  if (db === null) return null;
  db.provisional = true;
  slogInfo(client, `registered new auto-database: ${name}`);
  return db;
}

/**
 * The database of that name, for the console and the config. An auto-database created here stays until it has not been
 * used for autodb_idle_timeout.
 */
export function findOrRegisterDatabase(client: ClientSocket | null, name: string): PgDatabase | null {
  const db = findOrRegisterLoginDatabase(client, name);
  if (db !== null) db.provisional = false;
  return db;
}
