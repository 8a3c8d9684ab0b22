/*
 * The end of a client's login: the parameters of a real server, a cancel key, ReadyForQuery.
 */
import { logDebug, slogDebug, slogInfo, wantDebug } from '../base/log';
import { PauseMode, runState } from '../base/runstate';
import { getCachedTime } from '../base/time';
import { cf } from '../config/settings';
import { sendPacket } from '../net/sbuf';
import type { PgDatabase } from '../pool/database';
import type { PgPool } from '../pool/pool';
import { admitClient } from '../pool/provisional';
import { type PgSocket, SocketState } from '../pool/socket';
import { changeClientState } from '../pool/state';
import { Stat } from '../pool/stats';
import { varcacheEach, varcacheFillUnset, varcacheSet } from '../pool/varcache';
import {
  writeAuthenticationOk,
  writeBackendKeyData,
  writeNotice,
  writeParameterStatus,
  writeReadyForQuery,
} from '../wire/messages';
import { PktBuf, pktbufTemp } from '../wire/pktbuf';
import { WELCOME_MAX } from './act';
import { newCancelKey } from './cancelkeys';
import { launchNewConnection } from './launch';
import { disconnectClient, pauseClient } from './objects';

/**
 * Remembers a ParameterStatus of the first server that logs in, for the clients to come.
 * @returns false when the server has said more than every client should have to hear
 */
export function addWelcomeParameter(pool: PgPool, name: string, value: string): boolean {
  if (pool.welcomeMsgReady) return true;
  // tracked variables are sent from each client's own values
  if (varcacheSet(pool.origVars, name, value)) return true;
  pool.welcomePartsLen += name.length + value.length;
  if (pool.welcomePartsLen > WELCOME_MAX) return false;
  pool.welcomeParts.push([name, value]);
  return true;
}

/** A login that failed half-way leaves nothing for the next one to say twice. */
export function forgetWelcomeParts(pool: PgPool): void {
  pool.welcomeParts = [];
  pool.welcomePartsLen = 0;
}

/** All parameters are known: clients of the pool can be welcomed. */
export function finishWelcomeMsg(pool: PgPool): void {
  if (pool.welcomeMsgReady) return;
  const buf = new PktBuf();
  writeAuthenticationOk(buf);
  for (const [name, value] of pool.welcomeParts) writeParameterStatus(buf, name, value);
  pool.welcomeMsg = buf.copy();
  forgetWelcomeParts(pool);
  pool.welcomeMsgReady = true;
}

/** Forgets them: the next server that logs in tells anew. */
export function resetWelcomeMsg(pool: PgPool): void {
  pool.welcomeMsg = null;
  forgetWelcomeParts(pool);
  pool.welcomeMsgReady = false;
}

function welcomeClient(client: PgSocket): boolean {
  const pool = client.pool as PgPool;
  const buf = pktbufTemp();
  buf.putBytes(pool.welcomeMsg as Uint8Array);
  varcacheFillUnset(pool.origVars, client.vars);
  varcacheEach(client.vars, (name, value) => writeParameterStatus(buf, name, value));
  newCancelKey(client);
  writeBackendKeyData(buf, client.cancelKey);
  if (cf.loginNotifyMessage !== '') writeNotice(buf, cf.loginNotifyMessage);
  writeReadyForQuery(buf);
  if (sendPacket(client, buf)) return true;
  disconnectClient(client, true, 'failed to send welcome message');
  return false;
}

/**
 * The client has proven who it is. Lets it in, or makes it wait until the pool knows what to tell it.
 * @returns false when it waits (its packet has to be kept) or was disconnected
 */
export function finishClientLogin(client: PgSocket): boolean {
  const db = client.db as PgDatabase;
  if (db.fake) {
    if (cf.logConnections) slogInfo(client, `login failed: db=${db.name} user=${client.loginUser?.name ?? ''}`);
    disconnectClient(client, true, `no such database: ${db.name}`);
    return false;
  }
  if (db.disabled) {
    disconnectClient(client, true, `database "${db.name}" is disabled`);
    return false;
  }
  if (globalThis.cfShutdown > 0 && !db.admin) {
    disconnectClient(client, true, 'pooler is shutting down');
    return false;
  }

  const pool = admitClient(client);
  if (client.state === SocketState.CL_LOGIN) {
    changeClientState(client, SocketState.CL_ACTIVE);
    pool.stats[Stat.CLIENT_LOGIN_COUNT] = (pool.stats[Stat.CLIENT_LOGIN_COUNT] as number) + 1;
  }
  client.waitForAuth = false;

  if (!pool.welcomeMsgReady) {
    logDebug('finish_client_login: no welcome message, pause');
    client.waitForWelcome = true;
    pauseClient(client);
    if (runState.pauseMode === PauseMode.NONE && !pool.db.paused) launchNewConnection(pool, true);
    return false;
  }
  client.waitForWelcome = false;
  if (!welcomeClient(client)) return false;
  client.welcomeSent = true;
  if (wantDebug()) slogDebug(client, 'logged in');
  pool.lastActiveTime = getCachedTime();
  return true;
}
