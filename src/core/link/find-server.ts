/*
 * Assigns a server to a client: an idle server with the client's variables set, or else a place in the queue.
 */

import { getPauseMode, PauseMode } from '../base/lifecycle';
import { slogDebug, slogNoise, wantDebug, wantNoise } from '../base/log';
import { sbufPause, sendPacket } from '../net/sbuf';
import { type ClientSocket, type PgPool, Replication, type ServerSocket, SocketState } from '../pool/bouncer';
import { poolServerCount } from '../pool/pool';
import { sendingAuthQuery } from '../pool/socket';
import { changeServerState } from '../pool/states';
import { count, Stat } from '../pool/stats';
import { writeErrorResponse, writeQuery } from '../wire/messages';
import { pktbufTemp } from '../wire/pktbuf';
import type { ServerError } from '../wire/reader';
import { retryWait } from './hosts';
import { launchFor } from './launch';
import { resetRestores, watchLeftovers } from './leftovers';
import { disconnectClient, disconnectServer, pauseClient } from './objects';
import { logPoolerError } from './pooler-error';
import { dropRestOfAnswer } from './recovery';

/** PgBouncer's reason for closing both connections when a server rejects a client's variables. */
const INVALID_PARAMETER = 'invalid server parameter';

/**
 * Disconnects a client at once if the last login to the server failed and no server is left. In the queue the client
 * would wait in vain.
 * @returns false if the client was disconnected
 */
function checkFastFail(client: ClientSocket): boolean {
  const pool = client.pool;
  if (pool === null || !pool.lastLoginFailed || pool.holding) return true;
  if (poolServerCount(pool) - pool.newServerList.count > 0) return true;
  const cached = pool.lastConnectFailedMessage;
  // No client is waiting, so the maintenance would not try again: try now, for the next client. If there is no room for a
  // connection, it is not known whether logins still fail, and the client waits for room.
  if (pool.newServerList.count === 0 && retryWait(pool) <= 0 && !launchFor(pool, 1)) return true;
  disconnectClient(client, true, `server login has been failing, cached error: ${cached} (server_login_retry)`);
  return false;
}

/** The first usable idle server; unusable idle servers before it are closed. */
function takeIdleServer(pool: PgPool): ServerSocket | null {
  for (;;) {
    const server = pool.idleServerList.head;
    if (server === null) return null;
    if (server.closeNeeded) disconnectServer(server, true, 'obsolete connection');
    else if (!server.ready) disconnectServer(server, true, 'idle server got dirty');
    else return server;
  }
}

function varsQuery(server: ServerSocket, client: ClientSocket, recoded: boolean): string {
  return server.vars.diff(client.vars, resetRestores(server.pool) ? null : server.pool.origVars, recoded);
}

/**
 * Sends the SET that gives the server the client's variables, or that which must precede it.
 * @returns whether a SET was sent; null if sending failed
 */
function applyVars(server: ServerSocket, client: ClientSocket): boolean | null {
  if (server.vars.matches(client.vars)) return false;
  const undo = server.vars.save();
  const encoding = server.vars.encodingQuery(client.vars);
  const sql = encoding === '' ? varsQuery(server, client, false) : encoding;
  if (sql === '') return false;
  server.varsUndo = undo;
  server.recoding = encoding !== '';
  return sendVars(server, sql) ? true : null;
}

/** The server has the client's encoding now: sends the other variables. */
export function applyRecodedVars(server: ServerSocket, client: ClientSocket): void {
  server.recoding = server.ready = false;
  // if one of them is rejected, it is not known which values the server has
  server.varsUndo = null;
  if (!sendVars(server, varsQuery(server, client, true))) disconnectServer(server, true, 'var change failed');
}

/** @returns false if sending failed */
function sendVars(server: ServerSocket, sql: string): boolean {
  if (wantDebug()) slogDebug(server, `varcache_apply: ${sql}`);
  const buf = pktbufTemp();
  writeQuery(buf, sql);
  return sendPacket(server, buf);
}

/** Sends a server's error to a client as the reason why its session ends. */
function sendAsFatal(client: ClientSocket, error: ServerError): void {
  const msg = error.msg ?? INVALID_PARAMETER;
  logPoolerError(client, msg);
  const buf = pktbufTemp();
  writeErrorResponse(buf, { ...error, severity: 'FATAL', msg });
  sendPacket(client, buf);
}

/**
 * The server rejects its client's variables. The client's session ends with the server's error, as PostgreSQL ends a
 * login with such a value: no further statement could run, not even a SET of another value.
 * @param ends the server ends its session with this error; otherwise it is used again
 */
export function varsRejected(server: ServerSocket, error: ServerError, ends: boolean): void {
  const reason = ends && error.msg !== null ? error.msg : INVALID_PARAMETER;
  const { link: client, varsUndo } = server;
  server.varsUndo = null;
  server.recoding = false;
  if (client !== null) {
    client.link = null;
    server.link = null;
    sendAsFatal(client, error);
    disconnectClient(client, false, reason);
  }
  if (ends || varsUndo === null) {
    disconnectServer(server, true, reason);
    return;
  }
  server.settingVars = false;
  server.vars.restore(varsUndo);
  dropRestOfAnswer(server);
}

/**
 * Links the client with a server, or queues it.
 * @returns true if the client may send now; false if it was paused (its packet must be buffered) or disconnected
 */
export function findServer(client: ClientSocket): boolean {
  if (client.link !== null) return true;
  const pool = client.pool as PgPool;
  const forAuthQuery = sendingAuthQuery(client);
  client.waitStart = 0;
  if (wantNoise()) slogNoise(client, 'find_server: client had no linked server yet');

  let server: ServerSocket | null = null;
  if (getPauseMode() === PauseMode.PAUSE || pool.db.paused) {
    server = null;
  } else if (client.replication !== Replication.NONE && !forAuthQuery) {
    // a replication client gets its own connection, linked when it is logged in
    launchFor(pool, 1);
  } else {
    server = takeIdleServer(pool);
    if (server === null && !checkFastFail(client)) return false;
  }

  let varsSent = false;
  // auth_query runs before the client is authenticated: do not set its variables
  if (server !== null && !forAuthQuery) {
    const res = applyVars(server, client);
    if (res === null) {
      disconnectServer(server, true, 'var change failed');
      server = null;
    } else {
      varsSent = res;
    }
  }
  if (server === null) {
    pauseClient(client);
    return false;
  }

  if (wantNoise()) slogNoise(client, `linking client to S-0x${server.id.toString(16)}`);
  client.link = server;
  server.link = client;
  server.changedVars = 0;
  server.afterReset = false;
  count(server.pool.stats, Stat.SERVER_ASSIGNMENT_COUNT, 1);
  changeServerState(server, SocketState.SV_ACTIVE);
  watchLeftovers(server);
  if (!varsSent) return true;
  server.settingVars = true;
  server.ready = false;
  server.unnamedSeq = 0;
  if (wantNoise()) slogNoise(client, 'pausing client while applying vars');
  sbufPause(client);
  return false;
}
