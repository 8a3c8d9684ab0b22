/*
 * auth_query: looks up a user that is not in auth_file on the server, over a connection of auth_user. With
 * auth_query_cache_time, logins share an answer (pool/lookups.ts) or use an earlier one (auth-cache.ts).
 */

import { randomBytes } from 'node:crypto';
import { isFrozen } from '../base/lifecycle';
import { logError, slogDebug, slogError, slogInfo, slogNoise, wantDebug, wantNoise } from '../base/log';
import { cstr, hasNonAscii } from '../base/strutil';
import { Tally, tally } from '../base/tallies';
import { getCachedTime } from '../base/time';
import { cf } from '../config/settings';
import { findServer } from '../link/find-server';
import { disconnectClient, disconnectServer } from '../link/objects';
import { dropRestOfAnswer } from '../link/recovery';
import { authUserOf, findOrRegisterDatabase } from '../link/registry';
import { sbufContinue, sbufPause, sendPacket } from '../net/sbuf';
import type { AuthAnswer, AuthLookup } from '../pool/auth-answer';
import type { ClientSocket, PgCredentials, PgDatabase, ServerSocket } from '../pool/bouncer';
import { dynamicLoginCredentials } from '../pool/database';
import { endLookup, findLookup, leaveLookup, startLookup, takeOrphans } from '../pool/lookups';
import { LoginPhase } from '../pool/phases';
import { getPool } from '../pool/pool';
import { uncountUser } from '../pool/provisional';
import { ResponseAction } from '../pool/requests';
import { isDead, loginOf } from '../pool/socket';
import { Var } from '../pool/varcache';
import { MAX_PASSWORD, MAX_USERNAME } from '../wire/limits';
import { writeExtCommand, writeExtQuery } from '../wire/messages';
import { PqMsg } from '../wire/packets';
import { pktbufTemp } from '../wire/pktbuf';
import { isFatal, PktReader, parseServerError, serverErrorLine } from '../wire/reader';
import { Verdict } from '../wire/verdict';
import { checkUserConnectionCount } from './admit';
import { answerKey, authQueryCounts, cacheTime, findAnswer, renewAnswer } from './auth-cache';

/**
 * Replaces the password of a user whose row has NULL, so that no login succeeds. Random, because a client could enter
 * any fixed text as its password (PgBouncer uses 'md5').
 */
const IMPOSSIBLE_PASSWORD = randomBytes(32).toString('hex');

/** The database to run auth_query in; null if the client was disconnected. */
function prepareAuthDatabase(client: ClientSocket): PgDatabase | null {
  const clientDb = client.db as PgDatabase;
  const name = clientDb.config.authDbname ?? cf.authDbname;
  const db = name === null ? clientDb : findOrRegisterDatabase(client, name);
  if (db === null) {
    slogError(client, `authentication database "${name}" is not configured.`);
    disconnectClient(client, true, 'bouncer config error');
    return null;
  }
  if (db.disabled) {
    disconnectClient(client, true, `authentication database "${name}" is disabled`);
    return null;
  }
  if (db.admin) {
    slogError(client, `cannot use the reserved "${db.config.dbname}" database as an auth_dbname`);
    disconnectClient(client, true, 'bouncer config error');
    return null;
  }
  return db;
}

function authQueryOf(db: PgDatabase): string {
  return db.config.authQuery ?? cf.authQuery;
}

/**
 * Finds the secret of a user: starts the look-up, or queues the client until a server is available for it, or until
 * another login has the answer.
 * @returns the verdict on the startup packet; null if an earlier answer has been taken
 */
export function startAuthQuery(client: ClientSocket, username: string): Verdict | null {
  const clientDb = client.db as PgDatabase;
  const db = prepareAuthDatabase(client);
  if (db === null) return Verdict.DISCONNECTED;
  const limit = cacheTime(clientDb);
  const login = loginOf(client);
  const { name: authUser } = clientDb.authUser as PgCredentials;
  const key = answerKey(db, authUser, authQueryOf(clientDb), username);
  // RELOAD has changed the query
  if (login.lookup !== null && login.lookup.key !== key) leaveLookup(client);
  // after the wait for a server
  if (limit === 0 || login.lookup?.leader === client) return runAuthQuery(client, db, username);
  if (login.lookup !== null) return waitForAnswer(client, login.lookup);

  const answer = login.answer ?? findAnswer(key, limit);
  if (answer !== null) {
    authQueryCounts[login.answer === null ? 'cache' : 'shared']++;
    return takeAnswer(client, answer, username) ? null : Verdict.DISCONNECTED;
  }
  const running = findLookup(key);
  if (running === null) {
    login.lookup = startLookup(key, client);
    return runAuthQuery(client, db, username);
  }
  return waitForAnswer(client, running);
}

function waitForAnswer(client: ClientSocket, running: AuthLookup<ClientSocket>): Verdict {
  const login = loginOf(client);
  login.lookup = running;
  running.waiters.add(client);
  login.phase = LoginPhase.AUTH_QUERY_SHARED;
  // it may have waited for a server, before it was handed over to this process
  client.pool = null;
  sbufPause(client);
  return Verdict.PAUSED;
}

/** Uses an answer that was not made for this login. @returns false if the client was disconnected */
function takeAnswer(client: ClientSocket, answer: AuthAnswer, username: string): boolean {
  const login = loginOf(client);
  login.answer = answer;
  login.cachedFor = username;
  uncountUser(client);
  client.loginUser = dynamicLoginCredentials(client.db as PgDatabase, answer.name, answer.passwd);
  return checkUserConnectionCount(client);
}

/**
 * A login with an earlier answer has failed: runs the query for it. The packet with the client's proof is then handled
 * again.
 */
export function askAgain(client: ClientSocket): Verdict {
  const clientDb = client.db as PgDatabase;
  const login = loginOf(client);
  const db = prepareAuthDatabase(client);
  if (db === null) return Verdict.DISCONNECTED;
  const authUser = authUserOf(clientDb);
  // RELOAD has taken it away
  if (authUser === null) {
    disconnectClient(client, true, 'bouncer config error');
    return Verdict.DISCONNECTED;
  }
  if (login.lookup === null) {
    login.lookup = startLookup(answerKey(db, authUser.name, authQueryOf(clientDb), login.cachedFor), client);
  }
  login.answer = null;
  uncountUser(client);
  client.loginUser = null;
  return runAuthQuery(client, db, login.cachedFor);
}

/**
 * True if the server would read the name in the encoding that an earlier client has left. PostgreSQL compares the name
 * in a startup packet byte by byte.
 */
function misreads(server: ServerSocket, username: string): boolean {
  const encoding = server.vars.get(Var.CLIENT_ENCODING);
  return hasNonAscii(username) && encoding !== server.pool.origVars.get(Var.CLIENT_ENCODING);
}

/** Runs the query, once there is a server for it. */
function runAuthQuery(client: ClientSocket, db: PgDatabase, username: string): Verdict {
  const clientDb = client.db as PgDatabase;
  const login = loginOf(client);
  client.pool = getPool(db, clientDb.authUser as PgCredentials);
  login.phase = LoginPhase.AUTH_QUERY_SERVER;
  if (!findServer(client)) return isDead(client) ? Verdict.DISCONNECTED : Verdict.PAUSED;
  const query = authQueryOf(clientDb);
  if (wantNoise()) slogNoise(client, `doing auth_conn query: ${query}`);
  login.phase = LoginPhase.AUTH_QUERY_RESULT;
  sbufPause(client);
  authQueryCounts.query++;
  if (login.lookup !== null) login.lookup.askedAt = getCachedTime();

  const server = client.link as ServerSocket;
  server.ready = false;
  server.unnamedSeq = 0;
  // so that the server is closed if the client disconnects before the answer
  server.requests.push(PqMsg.Sync, ResponseAction.SKIP);
  const buf = pktbufTemp();
  // no conversion; the server reports the change, so that the next client gets its own encoding
  if (misreads(server, username)) writeExtCommand(buf, 'SET client_encoding = SQL_ASCII');
  writeExtQuery(buf, query, [username]);
  if (!sendPacket(server, buf)) disconnectServer(server, false, 'unable to send auth_query');
  return isDead(client) ? Verdict.DISCONNECTED : Verdict.PAUSED;
}

/** Reads the row: user name and password. @returns false if the server was disconnected */
function readUserRow(client: ClientSocket, server: ServerSocket, reader: PktReader): boolean {
  const columns = reader.u16();
  if (reader.fail) return fail(server, 'bad packet');
  if (columns !== 2) return fail(server, `expected 2 columns from auth_query, not ${columns}`);
  const nameLen = reader.u32();
  if (reader.fail) return fail(server, 'bad packet');
  // a function with OUT parameters returns one row of NULLs if it finds nothing: the user does not exist
  if (nameLen === 0xffffffff) return true;
  const name = reader.chars(nameLen);
  const passwdLen = reader.u32();
  if (name === null || reader.fail) return fail(server, 'bad packet');
  const passwd = passwdLen === 0xffffffff ? IMPOSSIBLE_PASSWORD : reader.chars(passwdLen);
  if (passwd === null) return fail(server, 'bad packet');
  const user = cstr(name).slice(0, MAX_USERNAME - 1);
  if (wantDebug()) slogDebug(client, `successfully parsed auth_query response for user ${user}`);
  const secret = cstr(passwd).slice(0, MAX_PASSWORD - 1);
  const { lookup } = loginOf(client);
  if (lookup !== null) lookup.answer = { key: lookup.key, name: user, passwd: secret, askedAt: lookup.askedAt };
  // if the query returns several rows, the last one counts
  uncountUser(client);
  client.loginUser = dynamicLoginCredentials(client.db as PgDatabase, user, secret);
  return checkUserConnectionCount(client);
}

/** The query failed: as for this login, it would for those that wait for its answer. */
function fail(server: ServerSocket, reason: string): boolean {
  tally(Tally.AUTH_QUERY_FAILED);
  const waiting = endLookup(server.link as ClientSocket);
  disconnectServer(server, false, reason);
  for (const waiter of waiting) disconnectClient(waiter, true, 'bouncer config error');
  return false;
}

/**
 * The server has reported an error, for instance because the name is not valid in its encoding. The server connection
 * is kept: clients that have not authenticated must not be able to close those of others.
 */
function queryFailed(client: ClientSocket, server: ServerSocket): void {
  tally(Tally.AUTH_QUERY_FAILED);
  const waiting = endLookup(client);
  client.link = null;
  server.link = null;
  dropRestOfAnswer(server);
  for (const each of [client, ...waiting]) disconnectClient(each, true, 'bouncer config error');
}

/** Handles one complete packet of the answer. @param off start of the packet's body, which ends at `end` */
export function handleAuthQueryResponse(
  server: ServerSocket,
  type: number,
  buf: Buffer,
  off: number,
  end: number,
): Verdict {
  const client = server.link as ClientSocket;
  switch (type) {
    case PqMsg.RowDescription: {
      const reader = new PktReader(buf, off, end);
      const columns = reader.u16();
      if (reader.fail) fail(server, 'bad packet');
      else if (columns !== 2) fail(server, `expected 2 columns from auth_query, not ${columns}`);
      break;
    }
    case PqMsg.DataRow:
      readUserRow(client, server, new PktReader(buf, off, end));
      break;
    case PqMsg.NoticeResponse:
    case PqMsg.CommandComplete:
    case PqMsg.ParseComplete:
    case PqMsg.BindComplete:
    case PqMsg.ParameterStatus:
      break;
    case PqMsg.ReadyForQuery:
      finishAuthQuery(client, server);
      break;
    case PqMsg.ErrorResponse:
      logError(serverErrorLine('S: error in auth_query', parseServerError(buf, off, end)));
      // a server that ends its session says nothing about the query
      if (isFatal(buf, off, end)) disconnectServer(server, false, 'error response from auth_query');
      else queryFailed(client, server);
      break;
    default:
      fail(server, 'unexpected response from auth_query');
  }
  return isDead(server) ? Verdict.DISCONNECTED : Verdict.CONSUMED;
}

function refuseUnknown(client: ClientSocket): void {
  if (cf.logConnections) slogInfo(client, `login failed: db=${(client.db as PgDatabase).name}`);
  disconnectClient(client, true, 'no such user');
}

/** Passes the answer on to the logins that wait for it, and to the cache. */
function shareAnswer(client: ClientSocket, { key, answer }: AuthLookup<ClientSocket>): void {
  loginOf(client).answer = answer;
  renewAnswer(key, answer);
  for (const waiter of endLookup(client)) {
    if (answer === null) refuseUnknown(waiter);
    else handleAgain(waiter, answer);
  }
}

/** Handles the startup packet of a waiting login again. @param answer null = it has to ask */
function handleAgain(waiter: ClientSocket, answer: AuthAnswer | null): void {
  const login = loginOf(waiter);
  login.answer = answer;
  login.phase = LoginPhase.STARTUP;
  sbufContinue(waiter);
}

/** At the end of a turn: logins whose look-up has ended without an answer, because its client has gone, ask again. */
export function continueLookups(): void {
  if (isFrozen()) return;
  for (const client of takeOrphans()) {
    if (client.login?.phase === LoginPhase.AUTH_QUERY_SHARED && !isDead(client))
      handleAgain(client, client.login.answer);
  }
}

function finishAuthQuery(client: ClientSocket, server: ServerSocket): void {
  tally(client.loginUser === null ? Tally.AUTH_QUERY_MISSING : Tally.AUTH_QUERY_FOUND);
  const { lookup } = loginOf(client);
  if (lookup !== null) shareAnswer(client, lookup);
  if (client.loginUser === null) {
    refuseUnknown(client);
    return;
  }
  if (wantNoise()) slogNoise(client, 'auth query complete');
  // the flush event releases the server in every pool mode; the client no longer uses this pool
  server.resetting = true;
  client.pool = null;
  sbufContinue(client);
}
