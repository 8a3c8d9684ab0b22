/*
 * The end of a client's login: the parameters of a server, a cancel key, ReadyForQuery.
 */

import { getPauseMode, PauseMode } from '../base/lifecycle';
import { logDebug, slogDebug, slogInfo, wantDebug } from '../base/log';
import { getCachedTime } from '../base/time';
import { PoolMode } from '../config/choices';
import { cf } from '../config/settings';
import { launchNewConnection } from '../link/launch';
import { disconnectClient, pauseClient } from '../link/objects';
import { sendPacket } from '../net/sbuf';
import { connectionPoolMode } from '../pool/admission';
import { type ClientSocket, type PgDatabase, type PgPool, SocketState } from '../pool/bouncer';
import { newCancelKey } from '../pool/cancel-keys';
import { greetingOf, writePoolerParameters } from '../pool/greeting';
import { LoginPhase } from '../pool/phases';
import { admitClient } from '../pool/provisional';
import { isDead, loginOf } from '../pool/socket';
import { changeClientState } from '../pool/states';
import { count, Stat } from '../pool/stats';
import { varcacheEach } from '../pool/varcache';
import { writeBackendKeyData, writeNotice, writeParameterStatus, writeReadyForQuery } from '../wire/messages';
import { pktbufTemp } from '../wire/pktbuf';
import { Verdict } from '../wire/verdict';
import { refuse } from './admit';
import { keepAnswer } from './auth-cache';

function welcomeClient(client: ClientSocket): boolean {
  const pool = client.pool as PgPool;
  const own = loginOf(client).welcome;
  // the console has no servers that could prepare statements
  const console = (client.db as PgDatabase).admin;
  const mode = console ? PoolMode.STMT : connectionPoolMode(client);
  const statements = console ? 0 : cf.maxPreparedStatements;
  if (own === null) {
    client.startupVars = client.vars.startup();
    client.vars.fillUnset(pool.origVars);
  }
  const greeting = own === null ? greetingOf(pool, client.vars.values, mode, statements) : own;
  const buf = pktbufTemp();
  buf.putBytes(greeting);
  if (own !== null) {
    writePoolerParameters(buf, mode, statements);
    varcacheEach(client.vars.values, (name, value) => writeParameterStatus(buf, name, value));
  }
  newCancelKey(client);
  writeBackendKeyData(buf, client.cancelKey);
  if (cf.loginNotifyMessage !== '') writeNotice(buf, cf.loginNotifyMessage);
  writeReadyForQuery(buf);
  if (sendPacket(client, buf)) return true;
  disconnectClient(client, true, 'failed to send welcome message');
  return false;
}

/** The client is authenticated. Completes its login, or makes it wait until the pool has a welcome message. */
export function finishClientLogin(client: ClientSocket): Verdict {
  const db = client.db as PgDatabase;
  if (db.fake) {
    if (cf.logConnections) slogInfo(client, `login failed: db=${db.name} user=${client.loginUser?.name ?? ''}`);
    return refuse(client, `no such database: ${db.name}`);
  }
  if (db.disabled) return refuse(client, `database "${db.name}" is disabled`);
  if (globalThis.cfShutdown > 0 && !db.admin) return refuse(client, 'pooler is shutting down');

  keepAnswer(client);
  const pool = admitClient(client);
  if (client.state === SocketState.CL_LOGIN) {
    changeClientState(client, SocketState.CL_ACTIVE);
    count(pool.stats, Stat.CLIENT_LOGIN_COUNT, 1);
  }

  if (!pool.welcomeMsgReady && loginOf(client).welcome === null) {
    logDebug('finish_client_login: no welcome message, pause');
    loginOf(client).phase = LoginPhase.WELCOME;
    pauseClient(client);
    if (getPauseMode() === PauseMode.NONE && !pool.db.paused) launchNewConnection(pool, true);
    return isDead(client) ? Verdict.DISCONNECTED : Verdict.PAUSED;
  }
  if (!welcomeClient(client)) return Verdict.DISCONNECTED;
  client.login = null;
  if (wantDebug()) slogDebug(client, 'logged in');
  pool.lastActiveTime = getCachedTime();
  return Verdict.CONSUMED;
}
