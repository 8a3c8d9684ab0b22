/*
 * From config records to living databases, users and peers: at start, on reload, and when a client asks for a database
 * that only the `*` entry covers.
 */
import { nextOf } from '../base/list';
import { slogInfo } from '../base/log';
import {
  type DatabaseConfig,
  type ParsedConfig,
  type PeerConfig,
  parseDatabase,
  type UserConfig,
} from '../config/loader';
import { PoolMode } from '../config/settings';
import {
  addDatabase,
  addPeer,
  autodatabaseIdleList,
  databaseList,
  findDatabase,
  forceUserCredentials,
  type PgDatabase,
  peerList,
  ServerProtocol,
} from '../pool/database';
import type { PgPool } from '../pool/pool';
import { type PgSocket, SocketState } from '../pool/socket';
import { findOrAddGlobalUser, type PgCredentials, type PgGlobalUser, userList } from '../pool/user';
import { endAttempt, hostsOf } from './hosts';
import { forEachServer } from './launch';
import { closeServerList, disconnectServer, LoginOutcome } from './objects';
import { resetWelcomeMsg } from './welcome';

/** The `*` entry, or null. */
let autodb: DatabaseConfig | null = null;

/* ---- marking servers for closing ---- */

/** Servers of this pool are closed when their clients are done, those logging in at once. */
export function tagPoolDirty(pool: PgPool): void {
  if (pool.db.admin) return;
  resetWelcomeMsg(pool);
  forEachServer(pool, (server) => {
    server.closeNeeded = true;
  });
  closeServerList(pool.newServerList, 'connect string changed');
  endAttempt(pool);
}

/** Likewise for all pools of a database: its connect string changed, or RECONNECT was asked for. */
export function tagDatabaseDirty(db: PgDatabase): void {
  db.serverProtocol = ServerProtocol.ASK_32;
  for (const pool of db.pools) tagPoolDirty(pool);
}

/**
 * The list of hosts changed and nothing else: only servers on a host that left it go.
 * @param host the new list, as the connect string has it
 */
function tagHostsGone(db: PgDatabase, host: string | null): void {
  const hosts = hostsOf(host);
  // nothing stays, and what was learnt of the old servers says nothing about the new
  if (!hostsOf(db.host).some((name) => hosts.includes(name))) {
    tagDatabaseDirty(db);
    return;
  }
  for (const pool of db.pools) {
    forEachServer(pool, (server) => {
      if (hosts.includes(server.host)) return;
      if (server.state === SocketState.SV_LOGIN)
        disconnectServer(server, true, 'connect string changed', LoginOutcome.ABANDONED);
      else server.closeNeeded = true;
    });
    endAttempt(pool);
  }
}

/** A host name lost an address: servers on that address go when they are free. */
export function tagHostAddrDirty(host: string, addr: string): void {
  for (let db = databaseList.head; db !== null; db = nextOf(db)) {
    for (const pool of db.pools) {
      forEachServer(pool, (server) => {
        // whether the name is the whole of db.host or one of a list, where the original overlooks it
        if (server.host === host && server.remoteAddr.host === addr) server.closeNeeded = true;
      });
    }
  }
}

/* ---- databases ---- */

/** Whether servers that were opened so far are of no use any more, wherever they are. */
function connectStringChanged(db: PgDatabase, config: DatabaseConfig): boolean {
  return (
    db.dbname !== config.dbname ||
    db.port !== config.port ||
    (db.forcedUser?.name ?? null) !== config.user ||
    db.connectQuery !== config.connectQuery ||
    db.authDbname !== config.authDbname ||
    db.authQuery !== config.authQuery ||
    db.loadBalanceHosts !== config.loadBalanceHosts
  );
}

function applyDatabase(config: DatabaseConfig): PgDatabase {
  const db = addDatabase(config.name);
  db.dead = false;
  db.auto = false;
  // a database that was just made has no name on the server yet
  if (db.dbname !== '') {
    if (connectStringChanged(db, config)) tagDatabaseDirty(db);
    else if (db.host !== config.host) tagHostsGone(db, config.host);
  }
  db.host = config.host;
  db.port = config.port;
  db.dbname = config.dbname;
  db.poolSize = config.poolSize;
  db.minPoolSize = config.minPoolSize;
  db.resPoolSize = config.resPoolSize;
  db.poolMode = config.poolMode;
  db.maxDbConnections = config.maxDbConnections;
  db.maxDbClientConnections = config.maxDbClientConnections;
  db.serverLifetime = config.serverLifetime;
  db.maxProtocol32 = config.maxProtocol32;
  db.connectQuery = config.connectQuery;
  db.loadBalanceHosts = config.loadBalanceHosts;
  db.queryWaitTimeout = config.queryWaitTimeout;
  db.queryWaitTimeoutSet = config.queryWaitTimeoutSet;
  db.startupParams = config.startupParams;
  db.authDbname = config.authDbname;
  db.authQuery = config.authQuery;
  db.authUser = config.authUser === null ? null : authUserCredentials(config.authUser);
  if (config.user === null) db.forcedUser = null;
  else forceUserCredentials(db, config.user, config.password ?? '');
  return db;
}

function authUserCredentials(name: string): PgCredentials {
  return findOrAddGlobalUser(name, '').credentials;
}

function registerAutoDatabase(name: string): PgDatabase | null {
  if (autodb === null) return null;
  const config = parseDatabase(name, autodb.connstr);
  if (config === null) return null;
  const db = applyDatabase(config);
  db.auto = true;
  return db;
}

/** The database of that name; made from the `*` entry when there is one, and provisional until a login to it succeeds. */
export function findOrRegisterLoginDatabase(client: PgSocket | null, name: string): PgDatabase | null {
  const known = findDatabase(name);
  if (known !== null) return known;
  const db = registerAutoDatabase(name);
  if (db === null) return null;
  db.provisional = true;
  slogInfo(client, `registered new auto-database: ${name}`);
  return db;
}

/** Likewise, for the console and the config: it stays until it has not been used for autodb_idle_timeout. */
export function findOrRegisterDatabase(client: PgSocket | null, name: string): PgDatabase | null {
  const db = findOrRegisterLoginDatabase(client, name);
  if (db !== null) db.provisional = false;
  return db;
}

/** True when two connect strings of the `*` entry differ in nothing but the hosts. */
function sameButHosts(before: string, now: string): boolean {
  const [a, b] = [before, now].map((connstr) => {
    const config = parseDatabase('*', connstr);
    return config === null ? connstr : JSON.stringify({ ...config, connstr: '', host: null });
  });
  return a === b;
}

/**
 * The `*` entry changed: its databases are made anew, their servers replaced.
 * @param onlyHosts in its hosts alone: servers whose host is still listed stay
 */
function reloadAutodatabases(onlyHosts: boolean): void {
  for (const list of [databaseList, autodatabaseIdleList]) {
    for (let db = list.head; db !== null; ) {
      const next = nextOf(db);
      if (db.auto) {
        const inactiveTime = db.inactiveTime;
        const config = autodb === null ? null : parseDatabase(db.name, autodb.connstr);
        if (config !== null && inactiveTime === 0) {
          applyDatabase(config).auto = true;
        }
        if (config === null || !onlyHosts) tagDatabaseDirty(db);
      }
      db = next;
    }
  }
}

/* ---- users and peers ---- */

function resetUser(user: PgGlobalUser): void {
  user.poolMode = PoolMode.INHERIT;
  user.poolSize = -1;
  user.resPoolSize = -1;
  user.maxUserConnections = 0;
  user.maxUserClientConnections = 0;
  user.transactionTimeout = 0;
  user.idleTransactionTimeout = 0;
  user.queryTimeout = 0;
  user.queryWaitTimeout = 0;
  user.queryWaitTimeoutSet = false;
  user.clientIdleTimeout = 0;
}

function applyUser(config: UserConfig): void {
  const user = findOrAddGlobalUser(config.name, '');
  user.poolMode = config.poolMode;
  user.poolSize = config.poolSize;
  user.resPoolSize = config.resPoolSize;
  user.maxUserConnections = config.maxUserConnections;
  user.maxUserClientConnections = config.maxUserClientConnections;
  user.transactionTimeout = config.transactionTimeout;
  user.idleTransactionTimeout = config.idleTransactionTimeout;
  user.queryTimeout = config.queryTimeout;
  user.queryWaitTimeout = config.queryWaitTimeout;
  user.queryWaitTimeoutSet = config.queryWaitTimeoutSet;
  user.clientIdleTimeout = config.clientIdleTimeout;
}

function applyPeer(config: PeerConfig): void {
  const peer = addPeer(config.id);
  peer.dead = false;
  peer.host = config.host;
  peer.port = config.port;
  peer.poolSize = config.poolSize;
}

/**
 * Puts a config that was read without error in force: databases, users, peers.
 * @param kill ends a database or peer that is not in the config any more
 */
export function applyRecords(parsed: ParsedConfig, kill: (db: PgDatabase) => void): void {
  const autodbChanged = (autodb?.connstr ?? null) !== (parsed.autodb?.connstr ?? null);
  const onlyHosts = autodb !== null && parsed.autodb !== null && sameButHosts(autodb.connstr, parsed.autodb.connstr);
  autodb = parsed.autodb;
  for (let db = databaseList.head; db !== null; db = nextOf(db)) if (!db.admin && !db.auto) db.dead = true;
  for (let peer = peerList.head; peer !== null; peer = nextOf(peer)) peer.dead = true;

  for (const config of parsed.databases) applyDatabase(config).provisional = false;
  const named = new Set(parsed.users.map((config) => config.name));
  for (let user = userList.head; user !== null; user = nextOf(user)) if (!named.has(user.name)) resetUser(user);
  for (const config of parsed.users) applyUser(config);
  for (const config of parsed.peers) applyPeer(config);
  if (autodbChanged) reloadAutodatabases(onlyHosts);

  // the end of one may take another along, of which it had the last client
  const gone: PgDatabase[] = [];
  for (const list of [databaseList, peerList])
    for (let db = list.head; db !== null; db = nextOf(db)) if (db.dead) gone.push(db);
  for (const db of gone) kill(db);
}
