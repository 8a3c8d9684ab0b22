/*
 * The table of socket states, and the moves between them. A state names the list that a socket is in, so changing the
 * state is moving between lists; no other module touches the lists.
 */

import { nextOf, StatList } from '../base/list';
import { fatal } from '../base/log';
import { getCachedTime } from '../base/time';
import { cf } from '../config/settings';
import { type AnySocket, ClientSocket, type PgPool, ServerSocket, SocketState } from './bouncer';
import { touchPool } from './pool';
import { isServerSocket } from './socket';

/** Clients that are not logged in yet, the longest connected first. */
export const loginClientList = new StatList<ClientSocket>('login_client_list');

/** Open sockets now, and the most there ever were: SHOW LISTS prints the difference as free. */
export const socketCounts = { clients: 0, servers: 0, clientsPeak: 0, serversPeak: 0 };

export function newClient(): ClientSocket {
  if (++socketCounts.clients > socketCounts.clientsPeak) socketCounts.clientsPeak = socketCounts.clients;
  return new ClientSocket(SocketState.CL_FREE);
}

export function newServer(pool: PgPool): ServerSocket {
  if (++socketCounts.servers > socketCounts.serversPeak) socketCounts.serversPeak = socketCounts.servers;
  return new ServerSocket(SocketState.SV_FREE, pool);
}

/** A state of sockets in a pool: the list that it means, and its names. */
interface StateRow<T extends AnySocket> {
  readonly state: SocketState;
  readonly list: (pool: PgPool) => StatList<T>;
  /** in a handover record; null = sockets in this state are not handed over */
  readonly handover: string | null;
  /** in SHOW CLIENTS and SHOW SERVERS */
  readonly show: string;
  /** in SHOW SOCKETS, which leaves out cancel requests and SHOW FDS with it; null = left out */
  readonly showSockets: string | null;
}

function clientRow(
  state: SocketState,
  list: (pool: PgPool) => StatList<ClientSocket>,
  handover: string,
  show: string,
  showSockets: string | null,
): StateRow<ClientSocket> {
  return { state, list, handover, show, showSockets };
}

function serverRow(
  state: SocketState,
  list: (pool: PgPool) => StatList<ServerSocket>,
  handover: string | null,
  show: string,
  showSockets: string | null,
): StateRow<ServerSocket> {
  return { state, list, handover, show, showSockets };
}

const activeClients = (pool: PgPool) => pool.activeClientList;
const waitingClients = (pool: PgPool) => pool.waitingClientList;
const activeCancels = (pool: PgPool) => pool.activeCancelReqList;
const waitingCancels = (pool: PgPool) => pool.waitingCancelReqList;

/** Clients by list, in the order in which SHOW prints them. */
export const clientStates: readonly StateRow<ClientSocket>[] = [
  clientRow(SocketState.CL_ACTIVE, activeClients, 'cl_active', 'active', 'cl_active'),
  clientRow(SocketState.CL_WAITING, waitingClients, 'cl_waiting', 'waiting', 'cl_waiting'),
  clientRow(SocketState.CL_ACTIVE_CANCEL, activeCancels, 'cl_active_cancel', 'active_cancel_req', null),
  clientRow(SocketState.CL_WAITING_CANCEL, waitingCancels, 'cl_waiting_cancel', 'waiting_cancel_req', null),
];

/** The state that shares the queue with CL_WAITING. */
const waitingLogin = clientRow(
  SocketState.CL_WAITING_LOGIN,
  waitingClients,
  'cl_waiting_login',
  'waiting',
  'cl_waiting',
);

/** Servers by list, likewise. */
export const serverStates: readonly StateRow<ServerSocket>[] = [
  serverRow(SocketState.SV_ACTIVE, (pool) => pool.activeServerList, 'sv_active', 'active', 'sv_active'),
  serverRow(SocketState.SV_IDLE, (pool) => pool.idleServerList, 'sv_idle', 'idle', 'sv_idle'),
  serverRow(SocketState.SV_USED, (pool) => pool.usedServerList, 'sv_used', 'used', 'sv_used'),
  serverRow(SocketState.SV_TESTED, (pool) => pool.testedServerList, 'sv_tested', 'tested', 'sv_tested'),
  serverRow(SocketState.SV_LOGIN, (pool) => pool.newServerList, null, 'new', 'sv_login'),
  serverRow(
    SocketState.SV_ACTIVE_CANCEL,
    (pool) => pool.activeCancelServerList,
    'sv_active_cancel',
    'active_cancel',
    null,
  ),
  serverRow(
    SocketState.SV_BEING_CANCELED,
    (pool) => pool.beingCanceledServerList,
    'sv_being_canceled',
    'being_canceled',
    null,
  ),
];

/** The name of CL_LOGIN, whose list belongs to no pool, in SHOW SOCKETS and in a handover record. */
export const LOGIN_STATE_NAME = 'cl_login';

const clientRows: (StateRow<ClientSocket> | undefined)[] = [];
for (const row of [...clientStates, waitingLogin]) clientRows[row.state] = row;
const serverRows: (StateRow<ServerSocket> | undefined)[] = [];
for (const row of serverStates) serverRows[row.state] = row;

/** A state's name in a handover record; null when sockets in it are not handed over. */
export function handoverName(state: SocketState): string | null {
  if (state === SocketState.CL_LOGIN) return LOGIN_STATE_NAME;
  return (clientRows[state] ?? serverRows[state])?.handover ?? null;
}

/* thousands of records are read while no client is served */
const stateByName = new Map<string, SocketState>([[LOGIN_STATE_NAME, SocketState.CL_LOGIN]]);
for (const { handover, state } of [...clientStates, waitingLogin, ...serverStates])
  if (handover !== null) stateByName.set(handover, state);

/** The state of that name, or null when this version knows none. */
export function stateOfHandoverName(name: string): SocketState | null {
  return stateByName.get(name) ?? null;
}

function clientList(client: ClientSocket, state: SocketState): StatList<ClientSocket> | null {
  if (state === SocketState.CL_LOGIN) return loginClientList;
  if (state === SocketState.CL_FREE || state === SocketState.CL_JUSTFREE) return null;
  const row = clientRows[state];
  if (row === undefined || client.pool === null) return fatal(`bad client state: ${state}`);
  return row.list(client.pool);
}

function serverList(server: ServerSocket, state: SocketState): StatList<ServerSocket> | null {
  if (state === SocketState.SV_FREE || state === SocketState.SV_JUSTFREE) return null;
  return serverRows[state]?.list(server.pool) ?? fatal(`bad server state: ${state}`);
}

/**
 * Puts a socket that was handed over at the end of the list of its state; nothing else happens.
 * @returns false when a socket in that state needs a pool and has none
 */
export function insertInState(sk: AnySocket, state: SocketState): boolean {
  if (isServerSocket(sk)) {
    serverList(sk, state)?.append(sk);
  } else {
    if (state !== SocketState.CL_LOGIN && sk.pool === null) return false;
    clientList(sk, state)?.append(sk);
  }
  sk.state = state;
  return true;
}

/** Moves a client; a login that waits goes back to login when it is woken. */
export function changeClientState(client: ClientSocket, newState: SocketState): void {
  const oldState = client.state;
  if (oldState === SocketState.CL_LOGIN && newState === SocketState.CL_WAITING) newState = SocketState.CL_WAITING_LOGIN;
  else if (oldState === SocketState.CL_WAITING_LOGIN && newState === SocketState.CL_ACTIVE)
    newState = SocketState.CL_LOGIN;
  if (oldState === SocketState.CL_WAITING || oldState === SocketState.CL_WAITING_LOGIN) client.waitNotified = false;

  clientList(client, oldState)?.remove(client);
  client.state = newState;
  // it asks for that of auth_query anew: meanwhile that pool may end, and would not know of this client
  if (newState === SocketState.CL_LOGIN) client.pool = null;
  const list = clientList(client, newState);
  if (list === null) {
    socketCounts.clients--;
    return;
  }
  if (newState === SocketState.CL_WAITING || newState === SocketState.CL_WAITING_LOGIN) {
    client.waitStart = getCachedTime();
    touchPool(client.pool as PgPool);
  } else if (newState === SocketState.CL_WAITING_CANCEL) {
    touchPool(client.pool as PgPool);
  }
  if (list === loginClientList) listLogin(client);
  else list.append(client);
}

/** The list is in the order of connectTime: one that comes back from waiting for auth_query goes in front of later ones. */
function listLogin(client: ClientSocket): void {
  let later = loginClientList.tail;
  if (later === null || later.connectTime <= client.connectTime) {
    loginClientList.append(client);
    return;
  }
  later = loginClientList.head;
  while (later !== null && later.connectTime <= client.connectTime) later = nextOf(later);
  loginClientList.putBefore(client, later as ClientSocket);
}

/** Moves a server; idle ones go to the end that server_round_robin asks for. */
export function changeServerState(server: ServerSocket, newState: SocketState): void {
  serverList(server, server.state)?.remove(server);
  server.state = newState;
  const list = serverList(server, newState);
  if (list === null) {
    socketCounts.servers--;
    touchPool(server.pool);
    return;
  }
  switch (newState) {
    case SocketState.SV_IDLE:
      // LIFO, so that surplus servers time out; a server that is to be closed goes last
      if (server.closeNeeded || cf.serverRoundRobin) list.append(server);
      else list.prepend(server);
      touchPool(server.pool);
      break;
    case SocketState.SV_USED:
      list.prepend(server);
      touchPool(server.pool);
      break;
    case SocketState.SV_TESTED:
      list.append(server);
      touchPool(server.pool);
      break;
    default:
      list.append(server);
  }
}

/** Calls `each` for every socket of a list. `each` may disconnect the socket that it is called with, and the next one. */
export function eachSocket<T extends AnySocket>(list: StatList<T>, each: (sk: T) => void): void {
  let sk = list.head;
  while (sk !== null) {
    const next: T | null = nextOf(sk);
    each(sk);
    // the end of a socket can end its neighbour or move it; the rest of the list comes again in the next round
    if (next !== null && (next.list as unknown) !== list) return;
    sk = next;
  }
}

/** All servers of a pool but those that carry a cancel request, for marking. `each` may disconnect the one it is called with. */
export function forEachServer(pool: PgPool, each: (server: ServerSocket) => void): void {
  for (const { state, list } of serverStates) if (state !== SocketState.SV_ACTIVE_CANCEL) eachSocket(list(pool), each);
}
