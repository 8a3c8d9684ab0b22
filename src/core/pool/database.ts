/*
 * Databases, by the names that clients use, and peers: their configuration and their current state.
 */

import { nextOf, StatList } from '../base/list';
import { OrderedIndex } from '../base/ordered';
import { compareNames } from '../base/strutil';
import { PgCredentials, PgDatabase } from './bouncer';
import { changePassword, findOrAddGlobalUser, findOrAddLoginUser } from './user';

/** Sorted by name, the order of SHOW. */
export const databaseList = new StatList<PgDatabase>('database_list');
/** Auto-databases without connections, the longest idle first. */
export const autodatabaseIdleList = new StatList<PgDatabase>('autodatabase_idle_list');
/** Sorted by peer id. */
export const peerList = new StatList<PgDatabase>('peer_list');

const databasesByName = new Map<string, PgDatabase>();

const databaseOrder = new OrderedIndex(databaseList, (a: PgDatabase, b: PgDatabase) => compareNames(a.name, b.name));
/** The order of peers. Two that peers_dns has found may have the same number. */
export function comparePeers(a: PgDatabase, b: PgDatabase): number {
  return a.peerId - b.peerId || compareNames(a.name, b.name);
}

const peerOrder = new OrderedIndex(peerList, comparePeers);

/** The database of that name; an idle auto-database becomes active again. */
export function findDatabase(name: string): PgDatabase | null {
  const db = databasesByName.get(name);
  if (db === undefined) return null;
  if (db.inactiveTime !== 0) {
    db.inactiveTime = 0;
    autodatabaseIdleList.remove(db);
    databaseOrder.insert(db);
  }
  return db;
}

export function addDatabase(name: string): PgDatabase {
  let db = findDatabase(name);
  if (db === null) {
    db = new PgDatabase(name);
    databasesByName.set(name, db);
    databaseOrder.insert(db);
  }
  return db;
}

/** Removes a database, which must have no pools. */
export function removeDatabase(db: PgDatabase): void {
  if (db.inactiveTime !== 0) autodatabaseIdleList.remove(db);
  else databaseOrder.remove(db);
  databasesByName.delete(db.name);
}

/** Moves an auto-database without connections to the idle list. @param now usec */
export function retireAutodatabase(db: PgDatabase, now: number): void {
  db.inactiveTime = now;
  databaseOrder.remove(db);
  autodatabaseIdleList.append(db);
}

/** The peer of [peers] with that number, or null. */
export function findPeer(peerId: number): PgDatabase | null {
  for (let peer = peerList.head; peer !== null; peer = nextOf(peer))
    if (peer.peerId === peerId && !peer.fromDns) return peer;
  return null;
}

export function addPeer(peerId: number): PgDatabase {
  let peer = findPeer(peerId);
  if (peer === null) {
    peer = new PgDatabase(String(peerId));
    peer.peerId = peerId;
    peerOrder.insert(peer);
  }
  return peer;
}

/** The peer that peers_dns has found at an address, which is new or known. */
export function addDnsPeer(host: string, peerId: number): PgDatabase {
  for (let peer = peerList.head; peer !== null; peer = nextOf(peer))
    if (peer.fromDns && peer.name === host) return peer;
  const peer = new PgDatabase(host);
  peer.peerId = peerId;
  peer.fromDns = true;
  peerOrder.insert(peer);
  return peer;
}

/** Removes a peer, which must have no pool. */
export function removePeer(peer: PgDatabase): void {
  peerOrder.remove(peer);
}

/** Credentials that auth_query found in this database for a successful login, or null. */
export function findDatabaseCredentials(db: PgDatabase, name: string): PgCredentials | null {
  return db.dynamicUsers.get(name) ?? null;
}

/**
 * Credentials that auth_query found for a login. If this user has never logged in, they belong only to this client
 * until it is authenticated. The client must be counted for the user.
 */
export function dynamicLoginCredentials(db: PgDatabase, name: string, passwd: string): PgCredentials {
  let credentials = db.dynamicUsers.get(name);
  if (credentials === undefined) {
    credentials = new PgCredentials(name, findOrAddLoginUser(name));
    credentials.provisional = true;
  }
  changePassword(credentials, passwd);
  credentials.dynamicPasswd = true;
  return credentials;
}

/** Credentials found by auth_query, kept per database. */
export function addDynamicCredentials(db: PgDatabase, name: string, passwd: string): PgCredentials {
  let credentials = db.dynamicUsers.get(name);
  if (credentials === undefined) {
    credentials = new PgCredentials(name, findOrAddGlobalUser(name));
    db.dynamicUsers.set(name, credentials);
  }
  changePassword(credentials, passwd);
  credentials.dynamicPasswd = true;
  return credentials;
}

/** The forced user of this database: all server connections log in as this user (user= in the connect string). */
export function forceUserCredentials(db: PgDatabase, name: string, passwd: string): PgCredentials {
  let credentials = db.forcedUser;
  if (credentials === null || credentials.name !== name) {
    credentials = new PgCredentials(name, findOrAddGlobalUser(name));
    db.forcedUser = credentials;
    // the user may have had a pool before
    for (const pool of db.pools) if (pool.user?.globalUser === credentials.globalUser) pool.user = credentials;
  }
  changePassword(credentials, passwd);
  return credentials;
}

/** Calls `each` for every database, including auto-databases that are not in use. `each` may make these active again. */
export function eachDatabase(each: (db: PgDatabase) => void): void {
  for (const list of [databaseList, autodatabaseIdleList]) {
    for (let db = list.head; db !== null; ) {
      const next = nextOf(db);
      each(db);
      db = next;
    }
  }
}

/** Auto-databases that are not in use count too: they may still have pools. */
export function countPausedDatabases(): number {
  let count = 0;
  eachDatabase((db) => {
    if (db.paused) count++;
  });
  return count;
}
