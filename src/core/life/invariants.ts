/*
 * The invariants between connections, pools, databases and users at the end of every turn. The tests run the pooler
 * with TSBOUNCER_CHECK=1; maint.ts then checks them in each run, and ends the process if one is violated.
 */

import { nextOf, type StatList } from '../base/list';
import { socketsByHandle } from '../net/sbuf';
import { hostClientCount } from '../pool/admission';
import {
  type AnySocket,
  type ClientSocket,
  type PgDatabase,
  type PgGlobalUser,
  type ServerSocket,
  SocketState,
} from '../pool/bouncer';
import { lostLookup } from '../pool/lookups';
import { peerPoolList, poolList } from '../pool/pool';
import { isDead, isServerSocket } from '../pool/socket';
import { eachSocket, loginClientList } from '../pool/states';

function nameOf(sk: AnySocket): string {
  return `${isServerSocket(sk) ? 'server' : 'client'} 0x${sk.id.toString(16)} (state ${sk.state})`;
}

/** Linked sockets are linked with each other, and both are open. */
function brokenLink(sk: AnySocket): string | null {
  if (sk.link === null) return null;
  if (sk.link.list === null) return `${nameOf(sk)} is linked with ${nameOf(sk.link)}, which is closed`;
  return sk.link.link === sk ? null : `${nameOf(sk)} is linked with ${nameOf(sk.link)}, but not the other way round`;
}

/** @returns the fault of a client, or null */
function brokenClient(client: ClientSocket): string | null {
  const { pool, db, canceledServer } = client;
  if (canceledServer !== null && canceledServer.cancelingClients?.includes(client) !== true)
    return `${nameOf(client)} is to cancel ${nameOf(canceledServer)}, which does not know of it`;
  if (client.login !== null && client.login.lookup !== null && isDead(client.login.lookup.leader))
    return `${nameOf(client)} waits for the auth_query of a client that is closed`;
  if (pool?.dead === true) return `${nameOf(client)} belongs to a pool that was killed`;
  if (client.state === SocketState.CL_LOGIN && pool !== null && client.link === null)
    return `${nameOf(client)} has a pool before it has logged in`;
  if (db !== null && !db.fake && db.list === null) return `${nameOf(client)} belongs to a database that was removed`;
  const user = client.loginUser?.globalUser ?? null;
  if (user !== null && user.list === null) return `${nameOf(client)} belongs to a user that was forgotten`;
  return null;
}

function brokenServer(server: ServerSocket): string | null {
  const pool = server.pool;
  if (pool.dead) return `${nameOf(server)} belongs to a pool that was killed`;
  if ((server.state === SocketState.SV_LISTEN) !== (pool.listening?.server === server))
    return `${nameOf(server)} is not the listening connection of its pool, or is in another state`;
  if (pool.db.list === null) return `${nameOf(server)} belongs to a database that was removed`;
  const isActive = server.state === SocketState.SV_ACTIVE || server.state === SocketState.SV_ACTIVE_CANCEL;
  // a replication client is linked with a server that is logging in for it
  if (isActive !== (server.link !== null) && server.state !== SocketState.SV_LOGIN)
    return `${nameOf(server)} is linked with ${server.link === null ? 'no client' : nameOf(server.link)}`;
  const canceling = server.cancelingClients ?? [];
  if (server.state === SocketState.SV_BEING_CANCELED && canceling.length === 0)
    return `${nameOf(server)} waits for cancel requests that are gone`;
  for (const req of canceling)
    if (req.canceledServer !== server) return `${nameOf(server)} is not what ${nameOf(req)} is to cancel`;
  return null;
}

/** Every connection is in a list, and refers only to objects that still exist. */
function brokenSocket(sk: AnySocket): string | null {
  if (isDead(sk)) return `${nameOf(sk)} is closed and still has its handle`;
  if (sk.list === null) return `${nameOf(sk)} is in no list`;
  return brokenLink(sk) ?? (isServerSocket(sk) ? brokenServer(sk) : brokenClient(sk));
}

function countIn(list: StatList<ClientSocket>, dbs: Map<PgDatabase, number>, users: Map<PgGlobalUser, number>): void {
  eachSocket(list, ({ countedDb, countedUser }) => {
    if (countedDb !== null) dbs.set(countedDb, (dbs.get(countedDb) ?? 0) + 1);
    if (countedUser !== null) users.set(countedUser, (users.get(countedUser) ?? 0) + 1);
  });
}

/** The counts of addresses: every counted client over TCP is in one. */
function brokenHostCount(): string | null {
  const hosts = new Map<string, number>();
  for (const sk of socketsByHandle) {
    if (sk === null || isServerSocket(sk) || sk.countedHost === null) continue;
    hosts.set(sk.countedHost, (hosts.get(sk.countedHost) ?? 0) + 1);
  }
  for (const [host, count] of hosts)
    if (hostClientCount(host) !== count) return `address ${host} counts ${hostClientCount(host)} clients of ${count}`;
  return null;
}

/** The counts that limits are checked against, and that determine when provisional records are removed. */
function brokenCount(): string | null {
  const dbs = new Map<PgDatabase, number>();
  const users = new Map<PgGlobalUser, number>();
  countIn(loginClientList, dbs, users);
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    dbs.set(pool.db, dbs.get(pool.db) ?? 0);
    const user = pool.user?.globalUser ?? null;
    if (user !== null) users.set(user, users.get(user) ?? 0);
    countIn(pool.activeClientList, dbs, users);
    countIn(pool.waitingClientList, dbs, users);
  }
  for (const [db, count] of dbs)
    if (db.clientConnectionCount !== count)
      return `database ${db.name} counts ${db.clientConnectionCount} clients of ${count}`;
  for (const [user, count] of users)
    if (user.clientConnectionCount !== count)
      return `user ${user.name} counts ${user.clientConnectionCount} clients of ${count}`;
  return null;
}

/** @returns a violated invariant, or null */
export function brokenInvariant(): string | null {
  for (const sk of socketsByHandle) {
    const broken = sk === null ? null : brokenSocket(sk);
    if (broken !== null) return broken;
  }
  for (const list of [poolList, peerPoolList])
    for (let pool = list.head; pool !== null; pool = nextOf(pool)) if (pool.dead) return 'a killed pool is in its list';
  if (lostLookup() !== null) return 'a shared look-up belongs to a login that has left it';
  return brokenHostCount() ?? brokenCount();
}
