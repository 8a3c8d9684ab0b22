/*
 * The classic exchange in the new process: turns the rows of SHOW FDS into sockets. PgBouncer sends such rows, and
 * tsbouncer sends them to PgBouncer. They carry much less than the full handover, so the old process is suspended
 * first.
 */

import { SCRAM_KEY_LEN } from '../core/auth/secret';
import { die, fatal, logDebug, logError } from '../core/base/log';
import { native } from '../core/base/native';
import { takeRandom } from '../core/base/random';
import { getCachedTime } from '../core/base/time';
import { AuthType, PoolMode } from '../core/config/choices';
import { hostNames } from '../core/config/records';
import { cf } from '../core/config/settings';
import { rememberAddress } from '../core/link/connect';
import { authUserOf, findOrRegisterDatabase } from '../core/link/registry';
import { fillAddrs } from '../core/net/addr';
import { usePoolerSocket } from '../core/net/pooler';
import { attachHandle } from '../core/net/sbuf';
import { tuneSocket } from '../core/net/tune';
import { connectionPoolMode, countForDatabase, countForUser, countServer } from '../core/pool/admission';
import {
  type AnySocket,
  type ClientSocket,
  type PgCredentials,
  type PgDatabase,
  type ServerSocket,
  SocketState,
} from '../core/pool/bouncer';
import { adoptCancelKey } from '../core/pool/cancel-keys';
import { addDatabase, addDynamicCredentials } from '../core/pool/database';
import { getPool } from '../core/pool/pool';
import { raiseQueryId } from '../core/pool/prepare';
import { keepOwners } from '../core/pool/provisional';
import { insertInState, newClient, newServer } from '../core/pool/states';
import { addPamCredentials, findGlobalCredentials, findOrAddGlobalUser } from '../core/pool/user';
import { BACKENDKEY_LEN } from '../core/wire/packets';
import { PktReader, parseBytea, scanTextRow } from '../core/wire/reader';
import type { ChannelMessage } from './channel';

/** Columns that are read; further columns are ignored. */
const COLUMNS = 15;

/** One row. Older versions send fewer columns: missing columns are null. */
interface FdRow {
  oldFd: number;
  task: string;
  user: string | null;
  db: string | null;
  addr: string;
  port: number;
  cancelKey: Buffer;
  linkFd: number;
  clientEncoding: string | null;
  stdStrings: string | null;
  datestyle: string | null;
  timezone: string | null;
  password: string;
  scramClientKey: Buffer | null;
  scramServerKey: Buffer | null;
}

/** The contents of the rows, kept until the old process has exited. */
export const classicState = {
  listeners: 0,
  clients: 0,
  servers: 0,
  /** every socket that was taken; all of them are suspended */
  sockets: [] as AnySocket[],
  /** databases missing from this config */
  goneDatabases: [] as PgDatabase[],
  byOldFd: new Map<number, ServerSocket>(),
  /** clients with the number of their server's descriptor in the old process */
  links: [] as { client: ClientSocket; linkFd: number }[],
};

function keyOf(text: string | null): Buffer {
  const key = Buffer.alloc(BACKENDKEY_LEN);
  key.writeBigUInt64BE(BigInt.asUintN(64, BigInt(text ?? 0)));
  return key;
}

function parseRow(msg: ChannelMessage): FdRow {
  const row = scanTextRow(new PktReader(msg.buf, msg.off, msg.end), COLUMNS);
  if (row === null) return die('invalid data from old process');
  const at = (column: number): string | null => row[column] ?? null;
  const bytes = (column: number): Buffer | null => {
    const text = at(column);
    return text === null ? null : (parseBytea(text) ?? die('invalid data from old process'));
  };
  const task = at(1);
  const addr = at(4);
  if (task === null || addr === null) return die('incomplete data from old process');
  return {
    oldFd: Number(at(0) ?? 0),
    task,
    user: at(2),
    db: at(3),
    addr,
    port: Number(at(5) ?? 0),
    cancelKey: keyOf(at(6)),
    linkFd: Number(at(7) ?? 0),
    clientEncoding: at(8),
    stdStrings: at(9),
    datestyle: at(10),
    timezone: at(11),
    password: at(12) ?? '',
    scramClientKey: bytes(13),
    scramServerKey: bytes(14),
  };
}

/** The database of that name. A database missing from this config is created, and killed later as after RELOAD. */
function databaseOf(name: string): PgDatabase {
  const known = findOrRegisterDatabase(null, name);
  if (known !== null) return known;
  const gone = addDatabase(name);
  classicState.goneDatabases.push(gone);
  return gone;
}

function applyVars(sk: AnySocket, row: FdRow): void {
  sk.vars.set('client_encoding', row.clientEncoding);
  sk.vars.set('standard_conforming_strings', row.stdStrings);
  sk.vars.set('datestyle', row.datestyle);
  sk.vars.set('timezone', row.timezone);
}

/** Wraps the descriptor; the socket is not read until the old process has exited. */
function adoptFd(sk: AnySocket, fd: number, isUnix: boolean): boolean {
  if (!tuneSocket(fd, isUnix)) return false;
  const handle = native.open(fd);
  if (handle < 0) {
    logError(`cannot use a socket: ${native.strerror(-handle)}`);
    return false;
  }
  attachHandle(sk, handle);
  fillAddrs(sk, fd, isUnix);
  sk.connectTime = sk.requestTime = getCachedTime();
  sk.suspended = true;
  classicState.sockets.push(sk);
  return true;
}

/**
 * The user of a row, from auth_file or as auth_query has found it; null = unknown. Logins find the same credentials: a
 * pool keeps those that it was created with.
 */
function storedUserOf(db: PgDatabase, row: FdRow): PgCredentials | null {
  const name = row.user ?? '';
  const known = findGlobalCredentials(name);
  if (known !== null && !known.dynamicPasswd) return known;
  return authUserOf(db) === null ? known : addDynamicCredentials(db, name, row.password);
}

/** The client's user, as PgBouncer's set_pool() finds it in a takeover. Null = this config cannot tell. */
function loginUserOf(db: PgDatabase, row: FdRow): PgCredentials | null {
  const name = row.user ?? '';
  if (cf.authType === AuthType.ANY) {
    if (db.forcedUser === null) logError('auth_type=any requires forced user');
    return db.forcedUser;
  }
  if (cf.authType === AuthType.PAM) return addPamCredentials(name, row.password);
  // no longer in auth_file: stays logged in, as after RELOAD
  return storedUserOf(db, row) ?? findOrAddGlobalUser(name).credentials;
}

function adoptScramKeys(db: PgDatabase, row: FdRow): boolean {
  if (row.scramClientKey === null && row.scramServerKey === null) return true;
  if (row.scramClientKey === null || row.scramServerKey === null) {
    logError('incomplete SCRAM key data');
    return false;
  }
  if (row.scramClientKey.length !== SCRAM_KEY_LEN || row.scramServerKey.length !== SCRAM_KEY_LEN) {
    logError('incompatible SCRAM key data');
    return false;
  }
  if (db.forcedUser !== null) {
    logError('SCRAM key data received for forced user');
    return false;
  }
  if (cf.authType === AuthType.PAM) {
    logError('SCRAM key data received for PAM user');
    return false;
  }
  const user = storedUserOf(db, row);
  // an unknown user needs no keys
  if (user === null) return true;
  user.scramClientKey = row.scramClientKey;
  user.scramServerKey = row.scramServerKey;
  user.scramPassthroughValid = true;
  return true;
}

/** A row with task `client`. @returns false when it cannot be used (logged) */
function useClientSocket(fd: number, row: FdRow): boolean {
  const db = databaseOf(row.db ?? '');
  if (!adoptScramKeys(db, row)) return false;
  const user = loginUserOf(db, row);
  if (user === null) return false;
  const client = newClient();
  if (!adoptFd(client, fd, row.addr === 'unix')) return false;
  client.db = db;
  client.loginUser = user;
  keepOwners(client);
  client.pool = getPool(db, db.forcedUser ?? user);
  client.login = null;
  countForDatabase(client, db);
  if (user.globalUser !== null) countForUser(client, user.globalUser);
  adoptCancelKey(client, row.cancelKey);
  applyVars(client, row);
  if (row.linkFd !== 0) {
    // inside a transaction; the row does not tell when it began. In session mode it need not be in one
    if (connectionPoolMode(client) !== PoolMode.SESSION) client.xactStart = getCachedTime();
    classicState.links.push({ client, linkFd: row.linkFd });
  }
  classicState.clients++;
  return insertInState(client, SocketState.CL_ACTIVE);
}

/** The user of the pool of a server. */
function poolUserOf(db: PgDatabase, row: FdRow): PgCredentials {
  const name = row.user ?? '';
  if (cf.authType === AuthType.PAM) return addPamCredentials(name, row.password);
  return storedUserOf(db, row) ?? findOrAddGlobalUser(name).credentials;
}

/** A row with task `server`. @returns false when it cannot be used (logged) */
function useServerSocket(fd: number, row: FdRow): boolean {
  const db = databaseOf(row.db ?? '');
  const user = db.forcedUser ?? poolUserOf(db, row);
  const server = newServer(getPool(db, user));
  if (!adoptFd(server, fd, row.addr === 'unix')) return false;
  if (user.globalUser !== null) user.globalUser.provisional = false;
  server.login = null;
  server.loginUser = user;
  server.host = db.config.host;
  // with a list of hosts, it is not known which of them this is
  if (hostNames(server.host).length === 1) rememberAddress(server, server.host);
  countServer(server);
  server.cancelKey = row.cancelKey;
  applyVars(server, row);
  // PgBouncer also lists servers that are still logging in: they have no parameters yet
  server.ready = row.linkFd === 0 && row.clientEncoding !== null;
  classicState.byOldFd.set(row.oldFd, server);
  classicState.servers++;
  return insertInState(server, row.linkFd === 0 ? SocketState.SV_IDLE : SocketState.SV_ACTIVE);
}

/**
 * Takes one DataRow of SHOW FDS and its descriptor. Ends this process if they cannot be used; the old process keeps
 * running.
 */
export function takeoverLoadFd(msg: ChannelMessage, fd: number): void {
  logDebug(`got fd: ${fd}`);
  const row = parseRow(msg);
  logDebug(
    `FD row: fd=${row.oldFd}(${fd}) linkfd=${row.linkFd} task=${row.task} user=${row.user ?? 'NULL'} ` +
      `db=${row.db ?? 'NULL'} enc=${row.clientEncoding ?? 'NULL'}`,
  );
  let used: boolean;
  switch (row.task) {
    case 'client':
      used = useClientSocket(fd, row);
      break;
    case 'server':
      used = useServerSocket(fd, row);
      break;
    case 'pooler':
      used = usePoolerSocket(fd, false);
      classicState.listeners++;
      break;
    default:
      fatal(`unknown task: ${row.task}`);
  }
  if (!used) fatal('socket takeover failed');
}

/** More statements than PgBouncer prepares. */
const STATEMENTS_MAX = 2 ** 30;

/**
 * The servers have statements of the old process, under names with numbers that it counted from 1 on, and does not tell.
 * This process counts from a random number beyond all of them, because it may have handed over to PgBouncer before.
 */
function avoidStatementNames(): void {
  raiseQueryId(STATEMENTS_MAX + (takeRandom(4).readUInt32BE() % STATEMENTS_MAX));
}

/** After the last row: links clients to servers by their descriptor numbers in the old process. */
export function takeoverPostprocessFds(): void {
  for (const { client, linkFd } of classicState.links) {
    const server = classicState.byOldFd.get(linkFd);
    if (server === undefined || server.link !== null) fatal('takeover_create_link: failed to find pair');
    client.link = server;
    server.link = client;
  }
  avoidStatementNames();
  classicState.byOldFd.clear();
  classicState.links.length = 0;
}
