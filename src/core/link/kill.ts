// Ends whole pools and databases with everybody in them.

import { nextOf } from '../base/list';
import { logWarning } from '../base/log';
import { type ClientSocket, type PgDatabase, type PgPool, SocketState } from '../pool/bouncer';
import { removeDatabase, removePeer } from '../pool/database';
import { poolClientCount, poolList, poolServerCount, removePool } from '../pool/pool';
import { clientStates, loginClientList, serverStates } from '../pool/states';
import { closeClientList, closeServerList, disconnectClient } from './objects';

/* ---- ends of pools and databases ---- */

/**
 * Ends the logins to a database, wherever they wait: a login has no pool yet, and would make one when it succeeds.
 * @param db null = all but the admin database
 */
export function closeLogins(db: PgDatabase | null, reason: string): void {
  const logins: ClientSocket[] = [];
  const take = (client: ClientSocket): void => {
    if (client.db === null || client.db.admin || (db !== null && client.db !== db)) return;
    logins.push(client);
  };
  for (let client = loginClientList.head; client !== null; client = nextOf(client)) take(client);
  // those that wait for a server on which to run auth_query, perhaps that of another database
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    for (let client = pool.waitingClientList.head; client !== null; client = nextOf(client))
      if (client.state === SocketState.CL_WAITING_LOGIN) take(client);
  }
  for (const client of logins) disconnectClient(client, true, reason);
}

/** Closes every connection of a pool and forgets it. */
export function killPool(pool: PgPool): void {
  killPoolBecause(pool, pool.db.peerId > 0 ? 'peer removed' : 'database removed');
}

function killPoolBecause(pool: PgPool, reason: string): void {
  for (const { list } of clientStates) closeClientList(list(pool), reason);
  for (const { list } of serverStates) closeServerList(list(pool), reason);
  removePool(pool);
}

/** Ends a database, or a peer, that is not in the config any more or was an auto-database long unused. */
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
  closeLogins(db, 'database removed');
  while (db.pools.length > 0) killPool(db.pools[0] as PgPool);
  // the last client of one that was never logged in to has taken it along
  if (db.list !== null) removeDatabase(db);
}

/** Servers of a pool that are in the middle of something. */
function busyServers(pool: PgPool): number {
  return poolServerCount(pool) - pool.idleServerList.count - pool.usedServerList.count;
}

/**
 * Forgets an auto-database to which no login ever succeeded, once nothing goes on in it. It may have a pool, because
 * auth_query was to run in it: the servers of that are closed, or made-up names of databases would fill the pooler with them.
 */
export function killUnproven(db: PgDatabase): void {
  for (const pool of db.pools) if (poolClientCount(pool) > 0 || busyServers(pool) > 0) return;
  endDatabase(db);
}
