/*
 * Records that exist only because of logins that have not succeeded yet: auto-databases, users known only from an
 * external directory or auth_query, and credentials found by auth_query. A client can ask for any name, so these
 * records are provisional until such a login succeeds, and are removed with the last client that asks for them.
 *
 * A client gets its pool here, once it is authenticated: a login has no pool.
 */

import { uncountForDatabase, uncountForUser } from './admission';
import type { ClientSocket, PgCredentials, PgDatabase, PgPool } from './bouncer';
import { findDatabaseCredentials, removeDatabase } from './database';
import { leaveLookup } from './lookups';
import { getPool } from './pool';
import { changePassword, forgetGlobalUser } from './user';

/**
 * Removes an auto-database that no client asks for any more, if no login to it has succeeded. killUnproven() handles
 * those with pools.
 */
function forgetUnprovenDatabase(db: PgDatabase): void {
  if (db.provisional && db.clientConnectionCount === 0 && db.pools.length === 0 && db.list !== null) removeDatabase(db);
}

/** Stops counting the client for its user. */
export function uncountUser(client: ClientSocket): void {
  uncountForUser(client);
  const user = client.loginUser?.globalUser ?? null;
  if (user?.provisional && user.clientConnectionCount === 0) forgetGlobalUser(user);
}

/** Stops counting the client for its database and its user, when it disconnects. */
export function uncountClient(client: ClientSocket): void {
  leaveLookup(client);
  uncountUser(client);
  uncountForDatabase(client);
  if (client.db !== null) forgetUnprovenDatabase(client.db);
}

/** Keeps the client's database and user: it has logged in, to this process or to another. */
export function keepOwners(client: ClientSocket): void {
  if (client.db !== null) client.db.provisional = false;
  const user = client.loginUser?.globalUser ?? null;
  if (user !== null) user.provisional = false;
}

/** Adds credentials that auth_query found to their database, or updates the existing ones. */
function keepCredentials(db: PgDatabase, user: PgCredentials): PgCredentials {
  if (!user.provisional) return user;
  const known = findDatabaseCredentials(db, user.name);
  if (known !== null) {
    changePassword(known, user.passwd);
    return known;
  }
  user.provisional = false;
  db.dynamicUsers.set(user.name, user);
  return user;
}

/**
 * Called when a client is authenticated: keeps its provisional records and gives it its pool.
 * @returns the pool; the same one if the client has been admitted before
 */
export function admitClient(client: ClientSocket): PgPool {
  if (client.pool !== null) return client.pool;
  const db = client.db as PgDatabase;
  client.loginUser = keepCredentials(db, client.loginUser as PgCredentials);
  keepOwners(client);
  client.vars.intern();
  client.pool = getPool(db, db.forcedUser ?? client.loginUser);
  return client.pool;
}
