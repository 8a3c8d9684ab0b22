/*
 * Invariants of a process at the end of every turn. src/core/life/invariants.ts has those that the pooler itself can
 * check while it serves; this file has those that take longer.
 */

import { PauseMode } from '../../src/core/base/lifecycle';
import type { StatList } from '../../src/core/base/list';
import { type AnySocket, type ClientSocket, type PgPool, Replication, SocketState } from '../../src/core/pool/bouncer';
import { LoginPhase } from '../../src/core/pool/phases';
import type { Heads } from './core';

type Lists = [StatList<AnySocket>, SocketState[]][];

function listsOf(pool: PgPool): Lists {
  return [
    [pool.activeClientList, [SocketState.CL_ACTIVE]],
    [pool.waitingClientList, [SocketState.CL_WAITING, SocketState.CL_WAITING_LOGIN]],
    [pool.waitingCancelReqList, [SocketState.CL_WAITING_CANCEL]],
    [pool.activeCancelReqList, [SocketState.CL_ACTIVE_CANCEL]],
    [pool.activeServerList, [SocketState.SV_ACTIVE]],
    [pool.activeCancelServerList, [SocketState.SV_ACTIVE_CANCEL]],
    [pool.beingCanceledServerList, [SocketState.SV_BEING_CANCELED]],
    [pool.listenServerList, [SocketState.SV_LISTEN]],
    [pool.idleServerList, [SocketState.SV_IDLE]],
    [pool.usedServerList, [SocketState.SV_USED]],
    [pool.testedServerList, [SocketState.SV_TESTED]],
    [pool.newServerList, [SocketState.SV_LOGIN]],
  ];
}

function nameOf(sk: AnySocket): string {
  return `${sk.state >= SocketState.SV_FREE ? 'server' : 'client'} ${sk.id} (state ${sk.state})`;
}

/** Every socket is in the list of its state and in no other, and the count of each list is correct. */
function brokenList(list: StatList<AnySocket>, states: SocketState[], pool: PgPool | null): string | null {
  let count = 0;
  for (let sk = list.head; sk !== null; sk = sk.next as AnySocket | null) {
    count++;
    if (!states.includes(sk.state)) return `${nameOf(sk)} is in ${list.name}`;
    if ((sk.list as unknown) !== list) return `${nameOf(sk)} thinks that it is in ${sk.list?.name ?? 'no list'}`;
    if (pool !== null && sk.pool !== pool) return `${nameOf(sk)} is in a list of a pool that is not its own`;
    if (sk.link !== null && sk.link.link !== sk) return `${nameOf(sk)} has a link that is not mutual`;
  }
  return count === list.count ? null : `${list.name} counts ${list.count} sockets of ${count}`;
}

/** No client waits while a server of its pool is idle. */
function brokenQueue(heads: Heads, pool: PgPool): string | null {
  const { getPauseMode, isTakingOver } = heads.lifecycle;
  if (pool.waitingClientList.count === 0 || pool.idleServerList.count === 0) return null;
  if (getPauseMode() !== PauseMode.NONE || isTakingOver() || pool.db.paused || pool.db.admin) return null;
  if (pool.touched || heads.pool.isFullLoopMaintRequested() || heads.settling.isSettling(pool)) return null;
  // a client that logs in may need the welcome message, which only a new server sends
  const welcome = (sk: ClientSocket) => sk.login?.phase === LoginPhase.WELCOME && !pool.welcomeMsgReady;
  // a replication client gets a server of its own
  const waits = (sk: ClientSocket) => !welcome(sk) && sk.replication === Replication.NONE;
  const waiting = countOf(pool.waitingClientList, waits);
  const idle = countOf(pool.idleServerList, (sk) => !sk.closeNeeded && sk.ready);
  return waiting > 0 && idle > 0 ? `${waiting} clients wait while ${idle} servers of ${pool.db.name} are idle` : null;
}

/** The clients of a listening connection are those that its pool knows, and the queues have their limit. */
function brokenListening({ settings }: Heads, { listening }: PgPool): string | null {
  const limit = settings.cf.listenQueueSize;
  for (const client of listening?.listeners ?? []) {
    const own = client.listening;
    if (own === null || own.channels.size === 0) return `${nameOf(client)} listens on nothing`;
    if (limit > 0 && (own.queue?.pos ?? 0) > limit)
      return `${nameOf(client)} has ${own.queue?.pos} bytes of notifications`;
    for (const channel of own.channels)
      if (listening?.channels.get(channel)?.has(client) !== true)
        return `${nameOf(client)} is not among those on ${channel}`;
  }
  return null;
}

/** In a pause, only cancel requests and auth_query open connections. */
function brokenPause(heads: Heads, pool: PgPool): string | null {
  const isPaused = heads.lifecycle.getPauseMode() === PauseMode.PAUSE || pool.db.paused;
  if (!isPaused || pool.db.admin || pool.waitingCancelReqList.count > 0) return null;
  const server = pool.newServerList.head;
  const now = heads.time.getCachedTime();
  return server !== null && server.connectTime === now ? `${nameOf(server)} is opened in a paused pool` : null;
}

function countOf<T extends AnySocket>(list: StatList<T>, counts: (sk: T) => boolean): number {
  let count = 0;
  for (let sk = list.head; sk !== null; sk = sk.next as T | null) if (counts(sk)) count++;
  return count;
}

/** The counts of server connections, which limits are compared with, are correct. */
function brokenServerCounts(heads: Heads): string | null {
  const perUser = new Map<object, number>();
  let servers = 0;
  const { databaseList, autodatabaseIdleList } = heads.database;
  for (const list of [databaseList, autodatabaseIdleList]) {
    for (let db = list.head; db !== null; db = db.next as typeof db | null) {
      let inDb = 0;
      for (const pool of db.pools) {
        // a listening connection is not limited by pool_size, but by the other limits
        const count = heads.pool.poolServerCount(pool) + pool.listenServerList.count;
        inDb += count;
        const user = pool.user?.globalUser;
        if (user) perUser.set(user, (perUser.get(user) ?? 0) + count);
      }
      servers += inDb;
      if (inDb !== db.connectionCount) return `database ${db.name} counts ${db.connectionCount} servers of ${inDb}`;
    }
  }
  for (let user = heads.user.userList.head; user !== null; user = user.next as typeof user | null) {
    const count = perUser.get(user) ?? 0;
    if (user.connectionCount !== count) return `user ${user.name} counts ${user.connectionCount} servers of ${count}`;
  }
  const counted = heads.states.socketCounts.servers;
  return counted === servers ? null : `${counted} servers are counted of ${servers}`;
}

/** How late the janitor may be: the interval of its runs, and a long turn. usec */
const LATE = 1_500_000;

/** Timeouts of one process: the sockets that are due, and since when. */
export class Timeouts {
  private due = new Map<AnySocket, number>();
  private next = new Map<AnySocket, number>();

  /** @returns the first socket that has been due for so long that the janitor must have run since */
  private overdue(
    list: StatList<AnySocket>,
    since: (sk: AnySocket) => number,
    limit: number,
    now: number,
  ): AnySocket | null {
    if (limit <= 0) return null;
    for (let sk = list.head; sk !== null; sk = sk.next as AnySocket | null) {
      if (now - since(sk) <= limit) continue;
      const first = this.due.get(sk) ?? now;
      this.next.set(sk, first);
      if (now - first > LATE) return sk;
    }
    return null;
  }

  /** Every timeout takes effect in time. @returns the description of a late one, or null */
  broken(heads: Heads): string | null {
    const { cf } = heads.settings;
    const now = heads.time.getCachedTime();
    // the janitor closes nothing in this mode
    if (!heads.lifecycle.ownsListeners() || heads.lifecycle.isTakingOver()) {
      this.due.clear();
      return null;
    }
    const { loginClientList } = heads.states;
    this.next.clear();
    const login = this.overdue(loginClientList, (sk) => sk.connectTime, cf.clientLoginTimeout, now);
    if (login !== null) return `${nameOf(login)} has not logged in for longer than client_login_timeout`;
    // a login in the queue waits for a server that runs auth_query
    const begun = (sk: AnySocket) => (sk.state === SocketState.CL_WAITING_LOGIN ? sk.connectTime : now);
    for (let pool = heads.pool.poolList.head; pool !== null; pool = pool.next as PgPool | null) {
      const queued = this.overdue(pool.waitingClientList, begun, cf.clientLoginTimeout, now);
      if (queued !== null) return `${nameOf(queued)} waits in a queue for longer than client_login_timeout`;
      if (pool.db.admin || pool.db.config.minPoolSize > 0 || cf.minPoolSize > 0) continue;
      const idle = this.overdue(pool.idleServerList, (sk) => sk.requestTime, cf.serverIdleTimeout, now);
      if (idle !== null) return `${nameOf(idle)} has been idle for longer than server_idle_timeout`;
    }
    [this.due, this.next] = [this.next, this.due];
    return null;
  }
}

/** @returns the violated invariant, or null */
export function brokenInvariantOf(heads: Heads, timeouts: Timeouts): string | null {
  let clients = heads.states.loginClientList.count;
  const login = brokenList(heads.states.loginClientList, [SocketState.CL_LOGIN], null);
  if (login !== null) return login;
  for (const list of [heads.pool.poolList, heads.pool.peerPoolList]) {
    for (let pool = list.head; pool !== null; pool = pool.next as PgPool | null) {
      for (const [sockets, states] of listsOf(pool)) {
        const broken = brokenList(sockets, states, pool);
        if (broken !== null) return broken;
        if ((states[0] as SocketState) < SocketState.SV_FREE) clients += sockets.count;
      }
      const broken = brokenQueue(heads, pool) ?? brokenPause(heads, pool) ?? brokenListening(heads, pool);
      if (broken !== null) return broken;
    }
  }
  const counted = heads.states.socketCounts.clients;
  if (clients !== counted) return `${counted} clients are counted of ${clients}`;
  return brokenServerCounts(heads) ?? timeouts.broken(heads) ?? heads.invariants.brokenInvariant();
}
