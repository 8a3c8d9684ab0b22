/*
 * The commands that change something, but for SHUTDOWN, which is in admin.ts: one row each. A handler returns what the
 * functions of reply.ts return.
 */

import { clientsHeldUp, getPauseMode, getShutdownMode, PauseMode, ShutdownMode } from '../core/base/lifecycle';
import { nextOf } from '../core/base/list';
import { logError, logInfo } from '../core/base/log';
import { asciiLower } from '../core/base/strutil';
import { SetResult, setConfigParam } from '../core/config/settings';
import { pauseAll, resumeAll, suspendAll } from '../core/life/pause';
import { applyTlsSettings, reloadAll } from '../core/life/reload';
import { tagDatabaseDirty } from '../core/link/dirty';
import { closeLogins, killPool } from '../core/link/kill';
import { disconnectClient } from '../core/link/objects';
import { findOrRegisterDatabase } from '../core/link/registry';
import type { ClientSocket, PgDatabase, PgPool } from '../core/pool/bouncer';
import { consoleSession } from '../core/pool/console-session';
import { countPausedDatabases, databaseList, findDatabase } from '../core/pool/database';
import { peerPoolList, poolList, poolServerCount, touchPools } from '../core/pool/pool';
import { writeNotice } from '../core/wire/messages';
import { pktbufTemp } from '../core/wire/pktbuf';
import { accessError, adminError, adminFail, adminFlush, adminReady, syntaxError } from './reply';
import { cmdShow, fakeSet } from './show';

/** A command and whoever carries it out. */
export interface Command {
  readonly word: string;
  /** only for admin_users; the others get an error */
  readonly adminOnly: boolean;
  /** an argument that must not be there makes the command unknown, even to those who may not use it */
  readonly takesArg: boolean;
  readonly run: (admin: ClientSocket, arg: string) => boolean;
}

/** SQLSTATE config_file_error */
const CONFIG_FILE_ERROR = 'F0000';

function countDbActive(db: PgDatabase): number {
  let count = 0;
  for (const pool of db.pools) count += poolServerCount(pool);
  return count;
}

/** The database that a command is for; null when it is none that `verb` fits, which the client was then told. */
function targetDatabase(
  admin: ClientSocket,
  name: string,
  verb: string,
  find: (name: string) => PgDatabase | null,
): { db: PgDatabase | null; told: boolean } {
  const db = find(name);
  if (db === null) return { db: null, told: adminError(admin, `no such database: ${name}`) };
  if (db.admin) return { db: null, told: adminError(admin, `cannot ${verb} admin db: ${name}`) };
  return { db, told: true };
}

function cmdReload(admin: ClientSocket): boolean {
  logInfo('RELOAD command issued');
  const applied = reloadAll();
  if (!applied.config) logError('RELOAD Failed, see logs for more details');
  if (applied.config && applied.tls) return adminReady(admin, 'RELOAD');
  return adminFail(admin, 'RELOAD failed, see logs for additional details', CONFIG_FILE_ERROR);
}

function cmdResume(admin: ClientSocket, arg: string): boolean {
  if (arg === '') {
    logInfo('RESUME command issued');
    if (getShutdownMode() !== ShutdownMode.NONE && !clientsHeldUp())
      return adminError(admin, 'pooler is shutting down');
    if (getPauseMode() === PauseMode.NONE) return adminError(admin, 'pooler is not paused/suspended');
    resumeAll();
    return adminReady(admin, 'RESUME');
  }
  const db = findDatabase(arg);
  logInfo(`RESUME '${arg}' command issued`);
  if (db === null) return adminError(admin, `no such database: ${arg}`);
  if (!db.paused) return adminError(admin, `database ${arg} is not paused`);
  db.paused = false;
  touchPools(db);
  return adminReady(admin, 'RESUME');
}

/** Answered by pauseDone when every buffer is empty. */
function cmdSuspend(admin: ClientSocket): boolean {
  if (getPauseMode() !== PauseMode.NONE) return adminError(admin, 'already suspended/paused');
  // buffers of paused databases would never become empty
  if (countPausedDatabases() > 0) return adminError(admin, 'cannot suspend with paused databases');

  logInfo('SUSPEND command issued');
  suspendAll();
  consoleSession(admin).waiting = true;
  return true;
}

/** Answered by pauseDone when no server connection is left. */
function cmdPause(admin: ClientSocket, arg: string): boolean {
  if (getPauseMode() !== PauseMode.NONE) return adminError(admin, 'already suspended/paused');
  if (arg === '') {
    logInfo('PAUSE command issued');
    pauseAll();
    consoleSession(admin).waiting = true;
    return true;
  }
  logInfo(`PAUSE '${arg}' command issued`);
  const { db, told } = targetDatabase(admin, arg, 'pause', (name) => findOrRegisterDatabase(admin, name));
  if (db === null) return told;
  db.paused = true;
  touchPools(db);
  if (countDbActive(db) === 0) return adminReady(admin, 'PAUSE');
  consoleSession(admin).waiting = true;
  return true;
}

function cmdReconnect(admin: ClientSocket, arg: string): boolean {
  if (arg === '') {
    logInfo('RECONNECT command issued');
    for (let db = databaseList.head; db !== null; db = nextOf(db)) {
      if (!db.admin && db.pools.length > 0) tagDatabaseDirty(db);
    }
    touchPools(null);
    return adminReady(admin, 'RECONNECT');
  }
  logInfo(`RECONNECT '${arg}' command issued`);
  const { db, told } = targetDatabase(admin, arg, 'reconnect', (name) => findOrRegisterDatabase(admin, name));
  if (db === null) return told;
  tagDatabaseDirty(db);
  touchPools(db);
  return adminReady(admin, 'RECONNECT');
}

function cmdDisable(admin: ClientSocket, arg: string): boolean {
  if (arg === '') return adminError(admin, 'a database is required');
  logInfo(`DISABLE '${arg}' command issued`);
  const { db, told } = targetDatabase(admin, arg, 'disable', (name) => findOrRegisterDatabase(admin, name));
  if (db === null) return told;
  db.disabled = true;
  return adminReady(admin, 'DISABLE');
}

function cmdEnable(admin: ClientSocket, arg: string): boolean {
  if (arg === '') return adminError(admin, 'a database is required');
  logInfo(`ENABLE '${arg}' command issued`);
  const { db, told } = targetDatabase(admin, arg, 'enable', findDatabase);
  if (db === null) return told;
  db.disabled = false;
  touchPools(db);
  return adminReady(admin, 'ENABLE');
}

/** Pauses the databases and drops every connection: of one database, or (null) of all but the admin database. */
function killPools(db: PgDatabase | null): void {
  // killing a pool may take it out of the list, so this walks a copy
  const pools: PgPool[] = [];
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    if (db === null ? !pool.db.admin : pool.db === db) pools.push(pool);
  }
  for (const pool of pools) {
    pool.db.paused = true;
    if (!pool.dead) killPool(pool);
  }
  closeLogins(db, 'database removed');
}

function cmdKill(admin: ClientSocket, arg: string): boolean {
  if (getPauseMode() !== PauseMode.NONE) return adminError(admin, 'already suspended/paused');
  if (arg === '') {
    logInfo('KILL command issued');
    killPools(null);
    return adminReady(admin, 'KILL');
  }
  logInfo(`KILL '${arg}' command issued`);
  const { db, told } = targetDatabase(admin, arg, 'kill', (name) => findOrRegisterDatabase(admin, name));
  if (db === null) return told;
  // without a pool too: clients to come have to wait
  db.paused = true;
  killPools(db);
  return adminReady(admin, 'KILL');
}

function findClientIn(pool: PgPool, id: number): ClientSocket | null {
  const lists = [pool.activeClientList, pool.waitingClientList, pool.activeCancelReqList, pool.waitingCancelReqList];
  for (const list of lists) {
    for (let sk = list.head; sk !== null; sk = nextOf(sk)) if (sk.id === id) return sk;
  }
  return null;
}

function findClient(id: number): ClientSocket | null {
  for (const pools of [poolList, peerPoolList]) {
    for (let pool = pools.head; pool !== null; pool = nextOf(pool)) {
      const client = findClientIn(pool, id);
      if (client !== null) return client;
    }
  }
  return null;
}

function cmdKillClient(admin: ClientSocket, arg: string): boolean {
  // the number that the text begins with, as scanf reads it: what follows does not matter
  const id = /^[ \t-\r]*([+-]?[0-9]+)/.exec(arg);
  if (id === null) return adminError(admin, 'invalid client pointer supplied');
  const client = findClient(Number(id[1]));
  if (client === null) return adminError(admin, 'client not found');
  disconnectClient(client, true, 'admin forced disconnect');
  return adminReady(admin, 'KILL_CLIENT');
}

/** Answered by waitCloseDone when no server connection is left that has to be closed. */
function cmdWaitClose(admin: ClientSocket, arg: string): boolean {
  let active = 0;
  if (arg === '') {
    logInfo('WAIT_CLOSE command issued');
    for (let db = databaseList.head; db !== null; db = nextOf(db)) {
      if (db.pools.length === 0) continue;
      db.waitClose = true;
      active += countDbActive(db);
    }
    touchPools(null);
  } else {
    logInfo(`WAIT_CLOSE '${arg}' command issued`);
    const { db, told } = targetDatabase(admin, arg, 'wait in', (name) => findOrRegisterDatabase(admin, name));
    if (db === null) return told;
    db.waitClose = true;
    active = countDbActive(db);
    touchPools(db);
  }
  if (active === 0) return adminReady(admin, 'WAIT_CLOSE');
  consoleSession(admin).waiting = true;
  return true;
}

/** SET key = value: for this process only, the config file stays as it is. */
export function cmdSet(admin: ClientSocket, key: string, value: string): boolean {
  const faked = fakeSet(admin, key);
  if (faked !== null) return faked;
  if (!consoleSession(admin).admin) return accessError(admin);

  const res = setConfigParam(key, value);
  // a setting that is fixed while the process runs is passed over in silence
  if (res !== SetResult.OK && res !== SetResult.READ_ONLY) return adminError(admin, 'SET failed');
  const buf = pktbufTemp();
  if ((key.includes('_tls_') || key.includes('_tls13_')) && !applyTlsSettings()) {
    writeNotice(buf, 'TLS settings could not be applied, still using old configuration');
  }
  return adminFlush(admin, buf, `SET ${key}=${value}`);
}

export const commandTable: readonly Command[] = [
  { word: 'disable', adminOnly: true, takesArg: true, run: cmdDisable },
  { word: 'enable', adminOnly: true, takesArg: true, run: cmdEnable },
  { word: 'kill', adminOnly: true, takesArg: true, run: cmdKill },
  { word: 'kill_client', adminOnly: true, takesArg: true, run: cmdKillClient },
  { word: 'pause', adminOnly: true, takesArg: true, run: cmdPause },
  { word: 'reconnect', adminOnly: true, takesArg: true, run: cmdReconnect },
  { word: 'reload', adminOnly: true, takesArg: false, run: cmdReload },
  { word: 'resume', adminOnly: true, takesArg: true, run: cmdResume },
  { word: 'select', adminOnly: false, takesArg: true, run: cmdShow },
  { word: 'show', adminOnly: false, takesArg: true, run: cmdShow },
  { word: 'suspend', adminOnly: true, takesArg: false, run: cmdSuspend },
  { word: 'wait_close', adminOnly: true, takesArg: true, run: cmdWaitClose },
];

/** Carries out a command of `table`, once it is clear that this client may. */
export function execCommand(table: readonly Command[], admin: ClientSocket, word: string, arg: string): boolean {
  const wanted = asciiLower(word);
  for (const command of table) {
    if (command.word !== wanted) continue;
    if (!command.takesArg && arg !== '') return syntaxError(admin);
    if (command.adminOnly && !consoleSession(admin).admin) return accessError(admin);
    return command.run(admin, arg);
  }
  return syntaxError(admin);
}
