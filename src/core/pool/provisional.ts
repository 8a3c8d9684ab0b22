/*
 * What exists only because of logins that have not succeeded yet: auto-databases, users that only a directory or
 * auth_query knows, credentials that auth_query found. Anybody can ask for any name, so all of it is provisional until one
 * such login succeeds, and is forgotten with the last client that asked for it. Pools come into being here too, when a
 * client has proven who it is: a login has no pool.
 */

import type { ClientSocket, PgCredentials, PgDatabase, PgPool } from './bouncer';
import { findDatabaseCredentials, removeDatabase } from './database';
import { getPool } from './pool';
import { forgetGlobalUser } from './user';
import { internVars } from './varcache';

/** An auto-database that no client asks for any more, if no login to it ever succeeded. One with pools is left to killUnproven. */
function forgetUnprovenDatabase(db: PgDatabase): void {
  if (db.provisional && db.clientConnectionCount === 0 && db.pools.length === 0 && db.list !== null) removeDatabase(db);
}

/** The client does not count for its user any more. */
export function uncountUser(client: ClientSocket): void {
  if (client.countedUser !== null) client.countedUser.clientConnectionCount--;
  client.countedUser = null;
  const user = client.loginUser?.globalUser ?? null;
  if (user?.provisional && user.clientConnectionCount === 0) forgetGlobalUser(user);
}

/** The client leaves: it does not count for its database and its user any more. */
export function uncountClient(client: ClientSocket): void {
  uncountUser(client);
  if (client.countedDb !== null) client.countedDb.clientConnectionCount--;
  client.countedDb = null;
  if (client.db !== null) forgetUnprovenDatabase(client.db);
}

/** Database and user of this client stay: it was logged in, here or in another process. */
export function keepOwners(client: ClientSocket): void {
  if (client.db !== null) client.db.provisional = false;
  const user = client.loginUser?.globalUser ?? null;
  if (user !== null) user.provisional = false;
}

/** Credentials that auth_query found join those of their database, or renew the ones that are there. */
function keepCredentials(db: PgDatabase, user: PgCredentials): PgCredentials {
  if (!user.provisional) return user;
  const known = findDatabaseCredentials(db, user.name);
  if (known !== null) {
    known.passwd = user.passwd;
    return known;
  }
  user.provisional = false;
  db.dynamicUsers.set(user.name, user);
  return user;
}

/**
 * The client has proven who it is: what was provisional stays from now on, and the client gets its pool.
 * @returns the pool, which is the same when the client was admitted before
 */
export function admitClient(client: ClientSocket): PgPool {
  if (client.pool !== null) return client.pool;
  const db = client.db as PgDatabase;
  client.loginUser = keepCredentials(db, client.loginUser as PgCredentials);
  keepOwners(client);
  internVars(client.vars);
  client.pool = getPool(db, db.forcedUser ?? client.loginUser);
  return client.pool;
}
