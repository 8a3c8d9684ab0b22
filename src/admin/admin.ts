/*
 * The console: the admin database `pgbouncer`, its logins and packets, SHUTDOWN, and the answers to commands that had
 * to wait. The session code calls it through upcalls.admin.
 */

import { getPauseMode, getShutdownMode, isFrozen, PauseMode, ShutdownMode } from '../core/base/lifecycle';
import { fatal, logDebug, logInfo, slogInfo, slogWarning, wantDebug } from '../core/base/log';
import { native } from '../core/base/native';
import { equalNoCase, strlistContains } from '../core/base/strutil';
import { AuthType, PoolMode } from '../core/config/choices';
import { shownVersion } from '../core/config/compat';
import { DATABASE_DEFAULTS } from '../core/config/records';
import { cf } from '../core/config/settings';
import { beginShutdown, resumeAll } from '../core/life/pause';
import { disconnectClient } from '../core/link/objects';
import { checkDbConnectionCount, checkUserConnectionCount } from '../core/login/admit';
import { clientUid } from '../core/net/addr';
import type { ClientSocket, PgPool } from '../core/pool/bouncer';
import { addDatabase, forceUserCredentials } from '../core/pool/database';
import { getPool } from '../core/pool/pool';
import { consoleSession, isDead } from '../core/pool/socket';
import { upcalls } from '../core/pool/upcalls';
import { findOrAddGlobalUser } from '../core/pool/user';
import { writeAuthenticationOk, writeParameterStatus } from '../core/wire/messages';
import { PqMsg } from '../core/wire/packets';
import { PktBuf } from '../core/wire/pktbuf';
import { PktReader } from '../core/wire/reader';
import { Verdict } from '../core/wire/verdict';
import { type Command, cmdReconnectClients, cmdSet, commandTable, execCommand, isSuspenderGone } from './commands';
import { endExtendedProtocol, handleExtended, mustWait } from './extended';
import { readQuery } from './fake-params';
import { isEmptyQuery, QueryKind } from './parse';
import { adminEmpty, adminError, adminReady, extendedSession, setCurrentQuery, syntaxError } from './reply';
import { answerWaiting, failWaiting, QUERY_CANCELED } from './waiting';

/** The name of the admin database, and of the user that needs no password on a Unix socket. */
const ADMIN_NAME = 'pgbouncer';
/** Server connections of the admin database: only a new process opens one, to the console of the old process. */
const ADMIN_POOL_SIZE = 2;
/** SQLSTATE feature_not_supported */
const NOT_SUPPORTED = '0A000';

/** The parameters reported to console clients after the login, with server_version. */
const welcomeParams: readonly (readonly [string, string])[] = [
  ['client_encoding', 'UTF8'],
  ['server_encoding', 'UTF8'],
  ['DateStyle', 'ISO'],
  ['TimeZone', 'GMT'],
  ['standard_conforming_strings', 'on'],
  ['is_superuser', 'on'],
];

let adminPool: PgPool | null = null;

function pool(): PgPool {
  return adminPool ?? fatal('admin_setup was not called');
}

const WAITING_SHUTDOWNS = [
  { word: 'WAIT_FOR_CLIENTS', mode: ShutdownMode.WAIT_FOR_CLIENTS },
  { word: 'WAIT_FOR_SERVERS', mode: ShutdownMode.WAIT_FOR_SERVERS },
  { word: 'WAIT_FOR_TRANSACTIONS', mode: ShutdownMode.WAIT_FOR_TRANSACTIONS },
] as const;

function cmdShutdown(admin: ClientSocket, arg: string): boolean {
  const waiting = WAITING_SHUTDOWNS.find(({ word }) => equalNoCase(arg, word));
  if (arg !== '' && waiting === undefined) return syntaxError(admin);
  if (!consoleSession(admin).admin) return adminError(admin, 'admin access needed');

  if (waiting === undefined) {
    logInfo('SHUTDOWN command issued');
    // while the sockets are frozen, only the new process may shut this process down
    if (isFrozen() && !upcalls.handover.shutdown(admin)) return false;
    globalThis.cfShutdown = 2;
    native.loopBreak();
    // not answered: the connection stays open until this process exits, which a new process waits for
    return true;
  }

  logInfo(`SHUTDOWN ${waiting.word} command issued`);
  // after an immediate SHUTDOWN in the same turn there is nothing to wait for
  if (globalThis.cfShutdown < 2) beginShutdown(waiting.mode);
  return adminReady(admin, 'SHUTDOWN');
}

/** Not in PgBouncer: a new tsbouncer process asks for the state that SHOW FDS does not contain. See src/takeover. */
function cmdHandover(admin: ClientSocket, arg: string): boolean {
  if (extendedSession(admin) !== null) return adminError(admin, 'HANDOVER needs the simple protocol', NOT_SUPPORTED);
  const refusal = upcalls.handover.command(admin, arg);
  return refusal === null ? true : adminError(admin, refusal);
}

export const commands: readonly Command[] = [
  ...commandTable,
  // checks the permission itself, because a bad argument is reported first
  { word: 'shutdown', adminOnly: false, takesArg: true, run: cmdShutdown },
  { word: 'handover', adminOnly: true, takesArg: true, run: cmdHandover },
];

function runQuery(admin: ClientSocket, query: string): boolean {
  const parsed = readQuery(query);
  if (isFrozen() && !equalNoCase(parsed.name, 'shutdown')) {
    upcalls.handover.abort('only SHUTDOWN ends a handover');
    return false;
  }
  if (isEmptyQuery(query)) return adminEmpty(admin);
  if (parsed.clients !== undefined) return cmdReconnectClients(admin, parsed.clients);
  switch (parsed.kind) {
    case QueryKind.COMMAND:
      return execCommand(commands, admin, parsed.name, parsed.arg);
    case QueryKind.SET:
      return cmdSet(admin, parsed.name, parsed.arg);
    case QueryKind.BAD_ARGUMENTS:
      return adminError(admin, 'bad arguments');
    case QueryKind.SYNTAX_ERROR:
      return syntaxError(admin);
  }
}

/** Runs a query, or a packet that refers to it, so that an error can quote it. @returns false = disconnect */
function withQuery(admin: ClientSocket, query: string, run: (admin: ClientSocket, query: string) => boolean): boolean {
  if (wantDebug()) logDebug(`got admin query: ${query}`);
  setCurrentQuery(query);
  const alive = run(admin, query);
  setCurrentQuery(null);
  return alive;
}

function handleQuery(admin: ClientSocket, reader: PktReader): boolean {
  const query = reader.str();
  if (query === null) {
    disconnectClient(admin, true, 'incomplete query');
    return false;
  }
  if (admin.console !== null) endExtendedProtocol(admin.console);
  return withQuery(admin, query, runQuery);
}

function refusePacket(admin: ClientSocket, type: number): false {
  adminError(admin, `unsupported packet type for admin console: ${type}`);
  disconnectClient(admin, true, 'bad packet');
  return false;
}

function handlePacket(admin: ClientSocket, type: number, reader: PktReader): boolean {
  // after an ERROR the rest of the pipeline is skipped
  if (admin.console?.skipping === true && type !== PqMsg.Sync && type !== PqMsg.Terminate) return true;
  switch (type) {
    case PqMsg.Query:
      return handleQuery(admin, reader);
    case PqMsg.Terminate:
      disconnectClient(admin, false, 'close req');
      return false;
    case PqMsg.Parse:
    case PqMsg.Bind:
    case PqMsg.Describe:
    case PqMsg.Execute:
    case PqMsg.Close:
    case PqMsg.Flush:
    case PqMsg.Sync:
      if (isFrozen()) {
        upcalls.handover.abort('only SHUTDOWN ends a handover');
        return false;
      }
      return handleExtended(admin, type, reader, (query) => withQuery(admin, query, runQuery), isCommand);
    default:
      return refusePacket(admin, type);
  }
}

/** True for words that begin a command. SET belongs to the grammar. */
function isCommand(word: string): boolean {
  return commands.some((command) => equalNoCase(command.word, word));
}

/** Handles one complete packet of a console client. */
export function adminHandleClient(admin: ClientSocket, type: number, body: Buffer, off: number, end: number): Verdict {
  if (consoleSession(admin).waitsFor !== null && mustWait(admin, type)) return Verdict.PAUSED;
  const alive = handlePacket(admin, type, new PktReader(body, off, end));
  if (!alive && !isDead(admin)) disconnectClient(admin, true, 'failure');
  return isDead(admin) ? Verdict.DISCONNECTED : Verdict.CONSUMED;
}

/** True for a client on a Unix socket whose process runs as the same user as this process. */
function isOwnUid(client: ClientSocket): boolean {
  const uid = clientUid(client);
  return uid !== null && uid === process.getuid?.();
}

/**
 * Handles a login to the admin database before the user is looked up: accepts user `pgbouncer` from this process's own
 * uid. With auth_type=any it also sets the client's user, because the user name is lost later.
 * @returns true if the client is accepted; false if the ordinary login continues or the client was disconnected
 */
export function adminPreLogin(client: ClientSocket, username: string): boolean {
  const session = consoleSession(client);
  session.admin = false;
  session.owner = false;

  if (username === ADMIN_NAME && isOwnUid(client)) {
    client.loginUser = pool().db.forcedUser;
    session.owner = true;
    session.admin = true;
    if (!checkDbConnectionCount(client)) return false;
    if (cf.logConnections) slogInfo(client, 'pgbouncer access from unix socket');
    return true;
  }

  if (cf.authType !== AuthType.ANY) return false;
  if (strlistContains(cf.adminUsers, username)) {
    client.loginUser = pool().db.forcedUser;
    session.admin = true;
    return checkDbConnectionCount(client);
  }
  if (strlistContains(cf.statsUsers, username)) {
    client.loginUser = pool().db.forcedUser;
    return checkDbConnectionCount(client) && checkUserConnectionCount(client);
  }
  return false;
}

/**
 * Called when the user is known, before authentication.
 * @returns false if the user may not use the console: disconnected
 */
export function adminPostLogin(client: ClientSocket): boolean {
  if (cf.authType === AuthType.ANY) return true;
  const username = client.loginUser?.name ?? '';
  const session = consoleSession(client);
  if (session.admin || strlistContains(cf.adminUsers, username)) {
    session.admin = true;
    return true;
  }
  if (strlistContains(cf.statsUsers, username)) return true;
  disconnectClient(client, true, 'not allowed');
  return false;
}

/**
 * Answers the consoles whose PAUSE, SUSPEND or WAIT_CLOSE has come to an end. Resumes if the console that has given
 * SUSPEND has disconnected. PgBouncer does so only if no other console is connected.
 * @param modeReached the mode of the whole pooler is reached
 */
export function adminAnswerWaiting(modeReached: boolean): void {
  answerWaiting(pool().activeClientList, modeReached);
  if (getPauseMode() === PauseMode.SUSPEND && isSuspenderGone()) {
    logInfo('admin disappeared when suspended, doing RESUME');
    resumeAll();
  }
}

/**
 * A cancel request for a console client: ends PAUSE and SUSPEND. Unlike PgBouncer, which leaves the client without an
 * answer, it sends PostgreSQL's error.
 */
export function adminHandleCancel(admin: ClientSocket): void {
  const waits = consoleSession(admin).waitsFor !== null;
  if (!waits) slogWarning(admin, 'admin cancel request for non-waiting client?');
  if (getShutdownMode() !== ShutdownMode.NONE) return;
  if (getPauseMode() !== PauseMode.NONE) resumeAll();
  if (waits) failWaiting(admin, 'canceling statement due to user request', QUERY_CANCELED);
}

function welcomeMessage(): Buffer {
  const buf = new PktBuf();
  writeAuthenticationOk(buf);
  writeParameterStatus(buf, 'server_version', `${shownVersion()}/bouncer`);
  for (const [name, value] of welcomeParams) writeParameterStatus(buf, name, value);
  return buf.copy();
}

/**
 * Creates the admin database, its user and its pool, and registers the console. Called once, after the config is
 * loaded.
 */
export function adminSetup(): void {
  const db = addDatabase(ADMIN_NAME);
  db.admin = true;
  db.config = {
    ...DATABASE_DEFAULTS,
    name: ADMIN_NAME,
    port: cf.listenPort,
    dbname: ADMIN_NAME,
    poolSize: ADMIN_POOL_SIZE,
    poolMode: PoolMode.STMT,
    startupParams: [['database', ADMIN_NAME]],
  };
  const user = forceUserCredentials(db, ADMIN_NAME, '');

  adminPool = getPool(db, user);
  adminPool.welcomeMsg = welcomeMessage();
  adminPool.welcomeMsgReady = true;
  // a user of that name must exist; no password matches it
  findOrAddGlobalUser(ADMIN_NAME);
}
