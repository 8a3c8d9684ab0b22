// Closes lists of connections, and whole pools and databases with all their connections.

import { nextOf, type StatList } from '../base/list';
import { logWarning } from '../base/log';
import { type ClientSocket, type PgDatabase, type PgPool, type ServerSocket, SocketState } from '../pool/bouncer';
import { removeDatabase, removePeer } from '../pool/database';
import { poolClientCount, poolList, poolServerCount, removePool } from '../pool/pool';
import { clientStates, loginClientList, serverStates } from '../pool/states';
import { disconnectClient, disconnectServer, LoginOutcome } from './objects';

/** PgBouncer's reason; KILL of a database gives it too. */
const DATABASE_REMOVED = 'database removed';

/** Disconnects all clients of a list. The loop ends, because each call removes at least the first client. */
export function closeClientList(list: StatList<ClientSocket>, reason: string): void {
  while (list.head !== null) disconnectClient(list.head, true, reason);
}

/** Disconnects all servers of a list; those logging in do not count as failed logins. */
export function closeServerList(list: StatList<ServerSocket>, reason: string): void {
  while (list.head !== null) disconnectServer(list.head, true, reason, LoginOutcome.ABANDONED);
}

/**
 * Closes the logins to a database, wherever they wait. A login has no pool yet, and would create it on success.
 * @param db null = all databases except the admin database
 */
export function closeLogins(db: PgDatabase | null): void {
  const logins: ClientSocket[] = [];
  const take = (client: ClientSocket): void => {
    if (client.db === null || client.db.admin || (db !== null && client.db !== db)) return;
    logins.push(client);
  };
  for (let client = loginClientList.head; client !== null; client = nextOf(client)) take(client);
  // logins that wait for a server for auth_query, possibly in another database's pool
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    for (let client = pool.waitingClientList.head; client !== null; client = nextOf(client))
      if (client.state === SocketState.CL_WAITING_LOGIN) take(client);
  }
  for (const client of logins) disconnectClient(client, true, DATABASE_REMOVED);
}

/** Closes all connections of a pool and removes it. */
export function killPool(pool: PgPool): void {
  const reason = pool.db.peerId > 0 ? 'peer removed' : DATABASE_REMOVED;
  for (const { list } of clientStates) closeClientList(list(pool), reason);
  for (const { list } of serverStates) closeServerList(list(pool), reason);
  removePool(pool);
}

/** Removes a database or peer that is no longer in the config, or an auto-database that has not been used for long. */
export function killDatabase(db: PgDatabase): void {
  if (db.peerId > 0) {
    logWarning(`dropping peer ${db.name} as it does not exist anymore`);
    if (db.peerPool !== null) killPool(db.peerPool);
    removePeer(db);
    return;
  }
  logWarning(`dropping database '${db.name}' as it does not exist anymore or inactive auto-database`);
  endDatabase(db);
}

function endDatabase(db: PgDatabase): void {
  closeLogins(db);
  while (db.pools.length > 0) killPool(db.pools[0] as PgPool);
  // a provisional database has already been removed with its last client
  if (db.list !== null) removeDatabase(db);
}

/** Number of servers of a pool that are neither idle nor used. */
function busyServers(pool: PgPool): number {
  return poolServerCount(pool) - pool.idleServerList.count - pool.usedServerList.count;
}

/**
 * Removes an auto-database to which no login has succeeded, once it has no activity. It may have a pool, for
 * auth_query. The servers of that pool are closed: otherwise invented database names would fill the pooler with
 * servers.
 */
export function killUnproven(db: PgDatabase): void {
  for (const pool of db.pools) if (poolClientCount(pool) > 0 || busyServers(pool) > 0) return;
  endDatabase(db);
}
