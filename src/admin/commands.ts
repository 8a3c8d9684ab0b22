/*
 * The commands that change state, in a table with one row per command; SHUTDOWN is in admin.ts. A handler returns the
 * result of the reply.ts function that it calls.
 */

import { clientsHeldUp, getPauseMode, getShutdownMode, PauseMode, ShutdownMode } from '../core/base/lifecycle';
import { nextOf } from '../core/base/list';
import { logError, logInfo } from '../core/base/log';
import { asciiLower, equalNoCase } from '../core/base/strutil';
import { SetResult, setConfigParam } from '../core/config/settings';
import { reconnectClients } from '../core/life/drain';
import { pauseAll, resumeAll, suspendAll } from '../core/life/pause';
import { applyTlsSettings, reloadAll, setAuthParam } from '../core/life/reload';
import { tagDatabaseDirty } from '../core/link/dirty';
import { closeLogins, killPool } from '../core/link/kill';
import { disconnectClient } from '../core/link/objects';
import { findOrRegisterDatabase } from '../core/link/registry';
import { forgetAnswers } from '../core/login/auth-cache';
import type { ClientSocket, PgDatabase, PgPool } from '../core/pool/bouncer';
import { countPausedDatabases, databaseList, eachDatabase, findDatabase } from '../core/pool/database';
import { peerPoolList, poolList, poolServerCount, sumOfPools, touchPools } from '../core/pool/pool';
import { consoleSession, isDead } from '../core/pool/socket';
import { writeNotice } from '../core/wire/messages';
import { pktbufTemp } from '../core/wire/pktbuf';
import { fakeSet } from './fake-params';
import type { ReconnectClients } from './parse';
import { accessError, adminError, adminFail, adminFlush, adminReady, NO_SUCH_STATEMENT, syntaxError } from './reply';
import { cmdShow } from './show';
import { waitFor } from './waiting';

/** A command and its handler. */
export interface Command {
  readonly word: string;
  /** only for admin_users; other users get an error */
  readonly adminOnly: boolean;
  /** if false, an argument is a syntax error, which is reported before a missing permission */
  readonly takesArg: boolean;
  readonly run: (admin: ClientSocket, arg: string) => boolean;
}

/** SQLSTATE config_file_error */
const CONFIG_FILE_ERROR = 'F0000';

/** The database that a command names; null if `verb` cannot be applied to it, and an error has been sent. */
function targetDatabase(
  admin: ClientSocket,
  name: string,
  verb: string,
  find = (each: string) => findOrRegisterDatabase(admin, each),
): { db: PgDatabase | null; alive: boolean } {
  const db = find(name);
  if (db === null) return { db: null, alive: adminError(admin, `no such database: ${name}`) };
  if (db.admin) return { db: null, alive: adminError(admin, `cannot ${verb} admin db: ${name}`) };
  return { db, alive: true };
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

/** The console that has given the last SUSPEND. */
let suspender: ClientSocket | null = null;

/** True if the console that has given SUSPEND is gone: a new process that has failed will never give RESUME. */
export function isSuspenderGone(): boolean {
  return suspender === null || isDead(suspender);
}

/** adminAnswerWaiting() answers once every buffer is empty. */
function cmdSuspend(admin: ClientSocket): boolean {
  if (getPauseMode() !== PauseMode.NONE) return adminError(admin, 'already suspended/paused');
  // buffers of paused databases would never become empty
  if (countPausedDatabases() > 0) return adminError(admin, 'cannot suspend with paused databases');

  logInfo('SUSPEND command issued');
  suspender = admin;
  suspendAll();
  return waitFor(admin, 'SUSPEND', null);
}

/** adminAnswerWaiting() answers once no server connection is left. */
function cmdPause(admin: ClientSocket, arg: string): boolean {
  if (getPauseMode() !== PauseMode.NONE) return adminError(admin, 'already suspended/paused');
  if (arg === '') {
    logInfo('PAUSE command issued');
    pauseAll();
    return waitFor(admin, 'PAUSE', null);
  }
  logInfo(`PAUSE '${arg}' command issued`);
  const { db, alive } = targetDatabase(admin, arg, 'pause');
  if (db === null) return alive;
  db.paused = true;
  touchPools(db);
  if (sumOfPools(db, poolServerCount) === 0) return adminReady(admin, 'PAUSE');
  return waitFor(admin, 'PAUSE', db);
}

function cmdReconnect(admin: ClientSocket, arg: string): boolean {
  if (arg === '') {
    logInfo('RECONNECT command issued');
    // what is known of the servers of a database may outlive its pools
    eachDatabase((db) => {
      if (!db.admin) tagDatabaseDirty(db);
    });
    touchPools(null);
    forgetAnswers(null);
    return adminReady(admin, 'RECONNECT');
  }
  logInfo(`RECONNECT '${arg}' command issued`);
  const { db, alive } = targetDatabase(admin, arg, 'reconnect');
  if (db === null) return alive;
  tagDatabaseDirty(db);
  touchPools(db);
  forgetAnswers(db);
  return adminReady(admin, 'RECONNECT');
}

/** RECONNECT CLIENTS: ends clients between their transactions, so that they connect again, perhaps to another pooler. */
export function cmdReconnectClients(admin: ClientSocket, args: ReconnectClients): boolean {
  if (!consoleSession(admin).admin) return accessError(admin);
  if (args.db === null && args.seconds === null && findDatabase(args.word) !== null)
    return cmdReconnect(admin, args.word);
  logInfo(`RECONNECT CLIENTS ${args.db === null ? '' : `'${args.db}' `}command issued`);
  if (args.db === null) {
    reconnectClients(null, args.seconds);
    return adminReady(admin, 'RECONNECT');
  }
  const { db, alive } = targetDatabase(admin, args.db, 'reconnect', findDatabase);
  if (db === null) return alive;
  reconnectClients(db, args.seconds);
  return adminReady(admin, 'RECONNECT');
}

function cmdDisable(admin: ClientSocket, arg: string): boolean {
  if (arg === '') return adminError(admin, 'a database is required');
  logInfo(`DISABLE '${arg}' command issued`);
  const { db, alive } = targetDatabase(admin, arg, 'disable');
  if (db === null) return alive;
  db.disabled = true;
  return adminReady(admin, 'DISABLE');
}

function cmdEnable(admin: ClientSocket, arg: string): boolean {
  if (arg === '') return adminError(admin, 'a database is required');
  logInfo(`ENABLE '${arg}' command issued`);
  const { db, alive } = targetDatabase(admin, arg, 'enable', findDatabase);
  if (db === null) return alive;
  db.disabled = false;
  touchPools(db);
  return adminReady(admin, 'ENABLE');
}

/** Pauses databases and closes all their connections. @param db null = all databases except the admin database */
function killPools(db: PgDatabase | null): void {
  // a copy, because killing a pool may remove it from the list
  const pools: PgPool[] = [];
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    if (db === null ? !pool.db.admin : pool.db === db) pools.push(pool);
  }
  for (const pool of pools) {
    pool.db.paused = true;
    if (!pool.dead) killPool(pool);
  }
  closeLogins(db);
}

function cmdKill(admin: ClientSocket, arg: string): boolean {
  if (getPauseMode() !== PauseMode.NONE) return adminError(admin, 'already suspended/paused');
  if (arg === '') {
    logInfo('KILL command issued');
    killPools(null);
    return adminReady(admin, 'KILL');
  }
  logInfo(`KILL '${arg}' command issued`);
  const { db, alive } = targetDatabase(admin, arg, 'kill');
  if (db === null) return alive;
  // even if the database has no pool yet: clients that connect later have to wait
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
  // the number at the beginning of the text, as scanf reads it; the rest is ignored
  const id = /^[ \t-\r]*([+-]?[0-9]+)/.exec(arg);
  if (id === null) return adminError(admin, 'invalid client pointer supplied');
  const client = findClient(Number(id[1]));
  if (client === null) return adminError(admin, 'client not found');
  client.leaving = true;
  disconnectClient(client, true, 'admin forced disconnect');
  return adminReady(admin, 'KILL_CLIENT');
}

/** adminAnswerWaiting() answers once every server connection that has to be closed is closed. */
function cmdWaitClose(admin: ClientSocket, arg: string): boolean {
  let active = 0;
  let only: PgDatabase | null = null;
  if (arg === '') {
    logInfo('WAIT_CLOSE command issued');
    for (let db = databaseList.head; db !== null; db = nextOf(db)) {
      if (db.pools.length === 0) continue;
      db.waitClose = true;
      active += sumOfPools(db, poolServerCount);
    }
    touchPools(null);
  } else {
    logInfo(`WAIT_CLOSE '${arg}' command issued`);
    const { db, alive } = targetDatabase(admin, arg, 'wait in');
    if (db === null) return alive;
    only = db;
    db.waitClose = true;
    active = sumOfPools(db, poolServerCount);
    touchPools(db);
  }
  if (active === 0) return adminReady(admin, 'WAIT_CLOSE');
  return waitFor(admin, 'WAIT_CLOSE', only);
}

/** SET key = value: changes the setting in this process only, not in the config file. */
export function cmdSet(admin: ClientSocket, key: string, value: string): boolean {
  const faked = fakeSet(admin, key);
  if (faked !== null) return faked;
  if (!consoleSession(admin).admin) return accessError(admin);

  const res = key.startsWith('auth_') ? setAuthParam(key, value) : setConfigParam(key, value);
  // a setting that cannot be changed at run time is ignored without an error
  if (res !== SetResult.OK && res !== SetResult.READ_ONLY) return adminError(admin, 'SET failed');
  const buf = pktbufTemp();
  if ((key.includes('_tls_') || key.includes('_tls13_')) && !applyTlsSettings()) {
    writeNotice(buf, 'TLS settings could not be applied, still using old configuration');
  }
  return adminFlush(admin, buf, `SET ${key}=${value}`);
}

/** DISCARD ALL, which drivers send to reset a connection for its next use: drops the prepared statements. */
function cmdDiscard(admin: ClientSocket, arg: string): boolean {
  if (!equalNoCase(arg, 'all')) return syntaxError(admin);
  consoleSession(admin).statements.clear();
  return adminReady(admin, 'DISCARD ALL');
}

/** DEALLOCATE of one prepared statement of the protocol, or of all. */
function cmdDeallocate(admin: ClientSocket, arg: string): boolean {
  if (arg === '') return syntaxError(admin);
  const { statements } = consoleSession(admin);
  if (equalNoCase(arg, 'all')) {
    statements.clear();
    return adminReady(admin, 'DEALLOCATE ALL');
  }
  if (statements.delete(arg)) return adminReady(admin, 'DEALLOCATE');
  return adminError(admin, `prepared statement "${arg}" does not exist`, NO_SUCH_STATEMENT);
}

export const commandTable: readonly Command[] = [
  { word: 'deallocate', adminOnly: false, takesArg: true, run: cmdDeallocate },
  { word: 'disable', adminOnly: true, takesArg: true, run: cmdDisable },
  { word: 'discard', adminOnly: false, takesArg: true, run: cmdDiscard },
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

/** Runs a command of `table` if the client has permission. */
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
