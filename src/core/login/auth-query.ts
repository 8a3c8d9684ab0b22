/*
 * auth_query: looks up a user that is not in auth_file on the server, over a connection of auth_user.
 */

import { randomBytes } from 'node:crypto';
import { logError, slogDebug, slogError, slogInfo, slogNoise, wantDebug, wantNoise } from '../base/log';
import { cf } from '../config/settings';
import { findServer } from '../link/find-server';
import { disconnectClient, disconnectServer } from '../link/objects';
import { findOrRegisterDatabase } from '../link/registry';
import { sbufContinue, sbufPause, sendPacket } from '../net/sbuf';
import type { ClientSocket, PgCredentials, PgDatabase, ServerSocket } from '../pool/bouncer';
import { dynamicLoginCredentials } from '../pool/database';
import { LoginPhase } from '../pool/phases';
import { getPool } from '../pool/pool';
import { uncountUser } from '../pool/provisional';
import { ResponseAction } from '../pool/requests';
import { isDead, loginOf } from '../pool/socket';
import { MAX_PASSWORD, MAX_USERNAME } from '../wire/limits';
import { writeExtQuery } from '../wire/messages';
import { PqMsg } from '../wire/packets';
import { pktbufTemp } from '../wire/pktbuf';
import { PktReader, parseServerError, serverErrorLine } from '../wire/reader';
import { Verdict } from '../wire/verdict';
import { checkUserConnectionCount } from './admit';

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

/** Starts the look-up, or queues the client until a server is available for it. */
export function startAuthQuery(client: ClientSocket, username: string): Verdict {
  const clientDb = client.db as PgDatabase;
  const db = prepareAuthDatabase(client);
  if (db === null) return Verdict.DISCONNECTED;
  client.pool = getPool(db, clientDb.authUser as PgCredentials);
  loginOf(client).phase = LoginPhase.AUTH_QUERY_SERVER;
  if (!findServer(client)) return isDead(client) ? Verdict.DISCONNECTED : Verdict.PAUSED;
  const query = clientDb.config.authQuery ?? cf.authQuery;
  if (wantNoise()) slogNoise(client, `doing auth_conn query: ${query}`);
  loginOf(client).phase = LoginPhase.AUTH_QUERY_RESULT;
  sbufPause(client);

  const server = client.link as ServerSocket;
  server.ready = false;
  server.unnamedSeq = 0;
  // so that the server is closed if the client disconnects before the answer
  server.requests.push(PqMsg.Sync, ResponseAction.SKIP);
  const buf = pktbufTemp();
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
  const user = untilNul(name).slice(0, MAX_USERNAME - 1);
  if (wantDebug()) slogDebug(client, `successfully parsed auth_query response for user ${user}`);
  // if the query returns several rows, the last one counts
  uncountUser(client);
  client.loginUser = dynamicLoginCredentials(
    client.db as PgDatabase,
    user,
    untilNul(passwd).slice(0, MAX_PASSWORD - 1),
  );
  return checkUserConnectionCount(client);
}

/** Truncates a text at its first NUL, where a C string ends in PgBouncer. */
function untilNul(text: string): string {
  const nul = text.indexOf('\0');
  return nul < 0 ? text : text.slice(0, nul);
}

function fail(server: ServerSocket, reason: string): boolean {
  disconnectServer(server, false, reason);
  return false;
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
      fail(server, 'error response from auth_query');
      break;
    default:
      fail(server, 'unexpected response from auth_query');
  }
  return isDead(server) ? Verdict.DISCONNECTED : Verdict.CONSUMED;
}

function finishAuthQuery(client: ClientSocket, server: ServerSocket): void {
  if (client.loginUser === null) {
    if (cf.logConnections) slogInfo(client, `login failed: db=${(client.db as PgDatabase).name}`);
    disconnectClient(client, true, 'no such user');
    return;
  }
  if (wantNoise()) slogNoise(client, 'auth query complete');
  // the flush event releases the server in every pool mode; the client no longer uses this pool
  server.resetting = true;
  client.pool = null;
  sbufContinue(client);
}
