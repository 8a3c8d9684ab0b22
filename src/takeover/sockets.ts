/*
 * The sockets of the pooler as the handover sees them: every list of every pool with the name its state has in the format.
 * Used by both sides, so that what one describes the other puts where it was.
 */

import { nextOf, type StatList } from '../core/base/list';
import { type PgPool, type PgSocket, SocketState } from '../core/pool/bouncer';
import { peerPoolList, poolList } from '../core/pool/pool';
import { isServerSocket } from '../core/pool/socket';
import { loginClientList } from '../core/pool/states';

/** A state: its name in the format, and the list it means. Clients that log in are in no pool's list. */
interface StateRow {
  readonly name: string;
  readonly state: SocketState;
  readonly list: (pool: PgPool) => StatList<PgSocket>;
}

const stateTable: readonly StateRow[] = [
  { name: 'cl_active', state: SocketState.CL_ACTIVE, list: (pool) => pool.activeClientList },
  { name: 'cl_waiting', state: SocketState.CL_WAITING, list: (pool) => pool.waitingClientList },
  { name: 'cl_waiting_login', state: SocketState.CL_WAITING_LOGIN, list: (pool) => pool.waitingClientList },
  { name: 'cl_waiting_cancel', state: SocketState.CL_WAITING_CANCEL, list: (pool) => pool.waitingCancelReqList },
  { name: 'cl_active_cancel', state: SocketState.CL_ACTIVE_CANCEL, list: (pool) => pool.activeCancelReqList },
  { name: 'sv_active', state: SocketState.SV_ACTIVE, list: (pool) => pool.activeServerList },
  { name: 'sv_active_cancel', state: SocketState.SV_ACTIVE_CANCEL, list: (pool) => pool.activeCancelServerList },
  { name: 'sv_being_canceled', state: SocketState.SV_BEING_CANCELED, list: (pool) => pool.beingCanceledServerList },
  { name: 'sv_idle', state: SocketState.SV_IDLE, list: (pool) => pool.idleServerList },
  { name: 'sv_used', state: SocketState.SV_USED, list: (pool) => pool.usedServerList },
  { name: 'sv_tested', state: SocketState.SV_TESTED, list: (pool) => pool.testedServerList },
];

const CL_LOGIN_NAME = 'cl_login';
/* thousands of sockets are looked up while nobody is served */
const rowByState = new Map(stateTable.map((row) => [row.state, row]));
const rowByName = new Map(stateTable.map((row) => [row.name, row]));

/** The name of a state in the format; null = sockets in it do not travel (a server that still logs in). */
export function stateName(state: SocketState): string | null {
  if (state === SocketState.CL_LOGIN) return CL_LOGIN_NAME;
  return rowByState.get(state)?.name ?? null;
}

/** The state of that name, or null when this version knows none. */
export function stateOf(name: string): SocketState | null {
  if (name === CL_LOGIN_NAME) return SocketState.CL_LOGIN;
  return rowByName.get(name)?.state ?? null;
}

/** True for the states of server connections, by name. */
export function isServerStateName(name: string): boolean {
  return name.startsWith('sv_');
}

/** Puts a fresh socket at the end of the list of `state`, as it was in the old process: nothing else happens. */
export function placeSocket(sk: PgSocket, state: SocketState): boolean {
  sk.state = state;
  if (state === SocketState.CL_LOGIN) {
    loginClientList.append(sk);
    return true;
  }
  const row = rowByState.get(state);
  if (row === undefined || sk.pool === null) return false;
  row.list(sk.pool).append(sk);
  return true;
}

/** Calls back for every socket of a list, in order. */
export function eachOfList(list: StatList<PgSocket>, each: (sk: PgSocket) => void): void {
  for (let sk = list.head; sk !== null; ) {
    const next: PgSocket | null = nextOf(sk);
    each(sk);
    sk = next;
  }
}

/** Every pool, those of peers last. */
export function allPools(): PgPool[] {
  const pools: PgPool[] = [];
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) pools.push(pool);
  for (let pool = peerPoolList.head; pool !== null; pool = nextOf(pool)) pools.push(pool);
  return pools;
}

/** Calls back for every socket of a pool that travels, in the order of its lists: clients first. */
export function eachOfPool(pool: PgPool, each: (sk: PgSocket) => void): void {
  let last: StatList<PgSocket> | null = null;
  for (const row of stateTable) {
    const list = row.list(pool);
    // two states share the queue
    if (list !== last) eachOfList(list, each);
    last = list;
  }
}

/** Every socket there is, servers that log in included, but for `except`. */
export function allSockets(except: PgSocket | null): PgSocket[] {
  const found: PgSocket[] = [];
  const take = (sk: PgSocket): void => {
    if (sk !== except && sk.handle >= 0) found.push(sk);
  };
  eachOfList(loginClientList, take);
  for (const pool of allPools()) {
    eachOfPool(pool, take);
    eachOfList(pool.newServerList, take);
  }
  return found;
}

/** How many of those are clients, and how many are servers. */
export function countKinds(sockets: readonly PgSocket[]): { clients: number; servers: number } {
  const servers = sockets.filter(isServerSocket).length;
  return { clients: sockets.length - servers, servers };
}

/** The state of a TLS connection cannot be described yet: it ends with this process, and its partner with it. */
export function travels(sk: PgSocket): boolean {
  return !sk.tls && sk.link?.tls !== true;
}
