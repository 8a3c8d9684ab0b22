/*
 * Databases as clients name them, and peers: what the config says of each and what it is doing now.
 */
import { type ListNode, nextOf, StatList } from '../base/list';
import { OrderedIndex } from '../base/ordered';
import { LoadBalanceHosts, PoolMode } from '../config/settings';
import type { PgPool } from './pool';
import { compareNames, findOrAddGlobalUser, findOrAddLoginUser, PgCredentials } from './user';

/** Longest database name, with its terminator. */
export const MAX_DBNAME = 64;

/** What is known of the protocol versions of a database's servers. See session/serverprotocol.ts. */
export const enum ServerProtocol {
  /** nothing against 3.2 */
  ASK_32 = 0,
  /** a server refused 3.2: the next one is asked for 3.0 */
  TRY_30 = 1,
  /** it is just the version: 3.0 is taken */
  ONLY_30 = 2,
}

export class PgDatabase implements ListNode {
  prev: ListNode | null = null;
  next: ListNode | null = null;
  list: StatList<ListNode> | null = null;
  name: string;
  /** > 0: this is a peer, not a database */
  peerId = 0;
  /** the pool of a peer */
  peerPool: PgPool | null = null;

  /* --- configuration; -1, 0 or null = take the general setting --- */
  host: string | null = null;
  port = 5432;
  poolSize = -1;
  minPoolSize = -1;
  resPoolSize = -1;
  /** usec */
  queryWaitTimeout = 0;
  queryWaitTimeoutSet = false;
  poolMode: PoolMode = PoolMode.INHERIT;
  maxDbClientConnections = -1;
  maxDbConnections = -1;
  /** usec */
  serverLifetime = 0;
  connectQuery: string | null = null;
  loadBalanceHosts: LoadBalanceHosts = LoadBalanceHosts.ROUND_ROBIN;
  /** name and value pairs of the startup packet, without user */
  startupParams: [string, string][] = [];
  /** name on the server */
  dbname = '';
  authDbname: string | null = null;
  forcedUser: PgCredentials | null = null;
  authUser: PgCredentials | null = null;
  authQuery: string | null = null;
  /** max_protocol_version is 3.2, not 3.0 */
  maxProtocol32 = true;

  /* --- run time --- */
  /** which version the next server is asked for */
  serverProtocol: ServerProtocol = ServerProtocol.ASK_32;
  paused = false;
  waitClose = false;
  /** not seen in the config that is being loaded */
  dead = false;
  /** made from the `*` entry */
  auto = false;
  /** made for logins that have not succeeded yet: forgotten with the last client that asks for it */
  provisional = false;
  disabled = false;
  /** the console */
  admin = false;
  /** not a real database: mock authentication only */
  fake = false;
  /** usec since an auto-database has no connection, 0 = active */
  inactiveTime = 0;
  /** number of the janitor's round that saw it active */
  activeStamp = 0;
  /** server connections in all pools */
  connectionCount = 0;
  clientConnectionCount = 0;
  /** its pools */
  pools: PgPool[] = [];
  /** users found by auth_query here */
  dynamicUsers = new Map<string, PgCredentials>();

  constructor(name: string) {
    this.name = name;
  }
}

/** Ordered by name, as SHOW prints them. */
export const databaseList = new StatList<PgDatabase>('database_list');
/** Auto-databases without connections, the longest idle first. */
export const autodatabaseIdleList = new StatList<PgDatabase>('autodatabase_idle_list');
/** Ordered by peer id. */
export const peerList = new StatList<PgDatabase>('peer_list');

const databasesByName = new Map<string, PgDatabase>();

const databaseOrder = new OrderedIndex(databaseList, (a: PgDatabase, b: PgDatabase) => compareNames(a.name, b.name));
const peerOrder = new OrderedIndex(peerList, (a: PgDatabase, b: PgDatabase) => a.peerId - b.peerId);

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

/** Forgets a database; its pools must be gone. */
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

export function findPeer(peerId: number): PgDatabase | null {
  for (let peer = peerList.head; peer !== null; peer = nextOf(peer)) if (peer.peerId === peerId) return peer;
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

/** Forgets a peer; its pool must be gone. */
export function removePeer(peer: PgDatabase): void {
  peerOrder.remove(peer);
}

/** Credentials that auth_query found in this database for a login that succeeded, or null. */
export function findDatabaseCredentials(db: PgDatabase, name: string): PgCredentials | null {
  return db.dynamicUsers.get(name) ?? null;
}

/**
 * Credentials that auth_query found for a login. Those of a user who was never logged in are the client's alone until it has
 * proven that it is that user; it must be counted for the user.
 */
export function dynamicLoginCredentials(db: PgDatabase, name: string, passwd: string): PgCredentials {
  let credentials = db.dynamicUsers.get(name);
  if (credentials === undefined) {
    credentials = new PgCredentials(name, findOrAddLoginUser(name));
    credentials.provisional = true;
  }
  credentials.passwd = passwd;
  credentials.dynamicPasswd = true;
  return credentials;
}

/** Credentials fetched by auth_query, kept per database. */
export function addDynamicCredentials(db: PgDatabase, name: string, passwd: string): PgCredentials {
  let credentials = db.dynamicUsers.get(name);
  if (credentials === undefined) {
    credentials = new PgCredentials(name, findOrAddGlobalUser(name, ''));
    db.dynamicUsers.set(name, credentials);
  }
  credentials.passwd = passwd;
  credentials.dynamicPasswd = true;
  return credentials;
}

/** The user that every connection of this database uses on the server (user= in the connect string). */
export function forceUserCredentials(db: PgDatabase, name: string, passwd: string): PgCredentials {
  let credentials = db.forcedUser;
  if (credentials === null || credentials.name !== name) {
    credentials = new PgCredentials(name, findOrAddGlobalUser(name, ''));
    db.forcedUser = credentials;
  }
  credentials.passwd = passwd;
  return credentials;
}
