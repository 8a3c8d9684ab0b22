/*
 * Refuses clients at login; the limits on clients of an address, of a database and of a user.
 */

import { logDebug, wantDebug } from '../base/log';
import { strlistContains } from '../base/strutil';
import { Tally, tally } from '../base/tallies';
import { cf } from '../config/settings';
import { disconnectClient } from '../link/objects';
import {
  countForDatabase,
  countForUser,
  databaseMaxClientConnections,
  hostClientCount,
  userMaxClientConnections,
} from '../pool/admission';
import type { ClientSocket, PgDatabase } from '../pool/bouncer';
import { Verdict } from '../wire/verdict';

/** Disconnects a client that may not log in. @returns the verdict on its packet */
export function refuse(client: ClientSocket, reason: string): Verdict {
  disconnectClient(client, true, reason);
  return Verdict.DISCONNECTED;
}

function isAdminLogin(client: ClientSocket): boolean {
  const name = client.loginUser?.name ?? null;
  return (client.db as PgDatabase).admin && name !== null && strlistContains(cf.adminUsers, name);
}

/** Checks the limit of the client's address. @returns false if it is exceeded: the client was disconnected */
function checkHostConnectionCount(client: ClientSocket): boolean {
  const max = cf.maxClientConnPerHost;
  const host = client.countedHost;
  if (max <= 0 || host === null || (client.db as PgDatabase).admin || hostClientCount(host) <= max) return true;
  if (wantDebug()) logDebug(`set_pool: host '${host}' full (${hostClientCount(host)} > ${max})`);
  tally(Tally.REFUSED_BY_HOST);
  disconnectClient(client, true, 'client connections exceeded (max_client_conn_per_host)');
  return false;
}

/**
 * Counts the client for its database and its address.
 * @returns false if that exceeds the limit: the client was disconnected
 */
export function checkDbConnectionCount(client: ClientSocket): boolean {
  const db = client.db as PgDatabase;
  countForDatabase(client, db);
  if (!checkHostConnectionCount(client)) return false;
  const max = databaseMaxClientConnections(db);
  if (max <= 0 || db.clientConnectionCount <= max || isAdminLogin(client)) return true;
  if (wantDebug()) logDebug(`set_pool: db '${db.name}' full (${db.clientConnectionCount} >= ${max})`);
  tally(Tally.REFUSED_BY_DATABASE);
  disconnectClient(client, true, 'client connections exceeded (max_db_client_connections)');
  return false;
}

/** Counts the client for its user. @returns false if that exceeds the limit: the client was disconnected */
export function checkUserConnectionCount(client: ClientSocket): boolean {
  const user = client.loginUser?.globalUser ?? null;
  if (user === null) return true;
  countForUser(client, user);
  if (isAdminLogin(client)) return true;
  const max = userMaxClientConnections(user);
  if (max <= 0 || user.clientConnectionCount <= max) return true;
  if (wantDebug()) logDebug(`set_pool: user '${user.name}' full (${user.clientConnectionCount} >= ${max})`);
  tally(Tally.REFUSED_BY_USER);
  disconnectClient(client, true, 'client connections exceeded (max_user_client_connections)');
  return false;
}
