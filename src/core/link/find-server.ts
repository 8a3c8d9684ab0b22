/*
 * Giving a client a server: an idle one with the client's variables set on it, or a place in the queue.
 */

import { getPauseMode, PauseMode } from '../base/lifecycle';
import { slogDebug, slogNoise, wantDebug, wantNoise } from '../base/log';
import { sbufPause, sendPacket } from '../net/sbuf';
import { type ClientSocket, type PgPool, Replication, type ServerSocket, SocketState } from '../pool/bouncer';
import { poolServerCount } from '../pool/pool';
import { sendingAuthQuery } from '../pool/socket';
import { changeServerState } from '../pool/states';
import { count, Stat } from '../pool/stats';
import { varcacheDiff, varcacheMatches } from '../pool/varcache';
import { writeQuery } from '../wire/messages';
import { pktbufTemp } from '../wire/pktbuf';
import { launchNewConnection } from './launch';
import { disconnectClient, disconnectServer, pauseClient } from './objects';

/**
 * Refuses a client at once when the last login to the server failed and no server is left, instead of letting it queue
 * for something that will not come.
 * @returns false when the client was disconnected
 */
function checkFastFail(client: ClientSocket): boolean {
  const pool = client.pool;
  if (pool === null || !pool.lastLoginFailed) return true;
  if (poolServerCount(pool) - pool.newServerList.count > 0) return true;
  const cached = pool.lastConnectFailedMessage;
  disconnectClient(client, true, `server login has been failing, cached error: ${cached} (server_login_retry)`);
  // nobody waits now, so the maintenance would not try again; the next client should find out whether it is better
  launchNewConnection(pool, true);
  return false;
}

/** First idle server that is fit for use; those that are not are closed on the way. */
function takeIdleServer(pool: PgPool): ServerSocket | null {
  for (;;) {
    const server = pool.idleServerList.head;
    if (server === null) return null;
    if (server.closeNeeded) disconnectServer(server, true, 'obsolete connection');
    else if (!server.ready) disconnectServer(server, true, 'idle server got dirty');
    else return server;
  }
}

/** Sends the SETs that make the server's variables the client's. @returns true when something was sent, null on failure */
function applyVars(server: ServerSocket, client: ClientSocket): boolean | null {
  if (varcacheMatches(server.vars, client.vars)) return false;
  const sql = varcacheDiff(server.vars, client.vars);
  if (sql === '') return false;
  if (wantDebug()) slogDebug(server, `varcache_apply: ${sql}`);
  const buf = pktbufTemp();
  writeQuery(buf, sql);
  return sendPacket(server, buf) ? true : null;
}

/**
 * Links the client with a server, or queues it.
 * @returns true when the client may send now. False: it was paused (its packet has to be kept) or disconnected.
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
    // replication clients get a connection of their own, linked when it is logged in
    launchNewConnection(pool, true);
  } else {
    server = takeIdleServer(pool);
    if (server === null && !checkFastFail(client)) return false;
  }

  let varsSent = false;
  // auth_query runs before the client is authenticated: its variables have no business on that server
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
  const stats = server.pool.stats;
  count(stats, Stat.SERVER_ASSIGNMENT_COUNT, 1);
  changeServerState(server, SocketState.SV_ACTIVE);
  if (!varsSent) return true;
  server.settingVars = true;
  server.ready = false;
  server.unnamedSeq = 0;
  if (wantNoise()) slogNoise(client, 'pausing client while applying vars');
  sbufPause(client);
  return false;
}
