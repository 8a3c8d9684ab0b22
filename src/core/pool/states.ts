/*
 * The table of socket states, and the transitions between them. A state names the list that a socket is in, so a
 * transition moves the socket to another list. No other module changes these lists.
 */

import { nextOf, StatList } from '../base/list';
import { fatal } from '../base/log';
import { getCachedTime } from '../base/time';
import { cf } from '../config/settings';
import { type AnySocket, ClientSocket, type PgPool, ServerSocket, SocketState } from './bouncer';
import { noteChange } from './changes';
import { touchPool } from './pool';
import { isOwnRequest, isServerSocket } from './socket';

/** Clients that are not logged in yet, the longest connected first. */
export const loginClientList = new StatList<ClientSocket>('login_client_list');

/**
 * Number of open sockets now, and at most so far: SHOW LISTS prints the difference as free. The clients include the
 * pooler's own cancel requests.
 */
export const socketCounts = { clients: 0, ownRequests: 0, servers: 0, clientsPeak: 0, serversPeak: 0 };

export function newClient(): ClientSocket {
  if (++socketCounts.clients > socketCounts.clientsPeak) socketCounts.clientsPeak = socketCounts.clients;
  return new ClientSocket(SocketState.CL_FREE);
}

/** A cancel request that no client has sent. It has no connection: only its server connection has one. */
export function newOwnRequest(): ClientSocket {
  socketCounts.ownRequests++;
  return newClient();
}

export function newServer(pool: PgPool): ServerSocket {
  if (++socketCounts.servers > socketCounts.serversPeak) socketCounts.serversPeak = socketCounts.servers;
  return new ServerSocket(SocketState.SV_FREE, pool);
}

/** A state of sockets in a pool, with its list and its names. */
interface StateRow<T extends AnySocket> {
  readonly state: SocketState;
  readonly list: (pool: PgPool) => StatList<T>;
  /** name in a handover record; null = sockets in this state are not handed over */
  readonly handover: string | null;
  /** name in SHOW CLIENTS and SHOW SERVERS */
  readonly show: string;
  /** name in SHOW SOCKETS; null = left out of it and of SHOW FDS (cancel requests) */
  readonly showSockets: string | null;
}

function row<T extends AnySocket>(
  state: SocketState,
  list: (pool: PgPool) => StatList<T>,
  handover: string | null,
  show: string,
  showSockets: string | null,
): StateRow<T> {
  return { state, list, handover, show, showSockets };
}

const activeClients = (pool: PgPool) => pool.activeClientList;
const waitingClients = (pool: PgPool) => pool.waitingClientList;
const activeCancels = (pool: PgPool) => pool.activeCancelReqList;
const waitingCancels = (pool: PgPool) => pool.waitingCancelReqList;

/** The states of clients, one per list, in the order of SHOW. */
export const clientStates: readonly StateRow<ClientSocket>[] = [
  row(SocketState.CL_ACTIVE, activeClients, 'cl_active', 'active', 'cl_active'),
  row(SocketState.CL_WAITING, waitingClients, 'cl_waiting', 'waiting', 'cl_waiting'),
  row(SocketState.CL_ACTIVE_CANCEL, activeCancels, 'cl_active_cancel', 'active_cancel_req', null),
  row(SocketState.CL_WAITING_CANCEL, waitingCancels, 'cl_waiting_cancel', 'waiting_cancel_req', null),
];

/** The state that shares its list with CL_WAITING. */
const waitingLogin = row(SocketState.CL_WAITING_LOGIN, waitingClients, 'cl_waiting_login', 'waiting', 'cl_waiting');

/** The states of servers, one per list, in the order of SHOW. */
export const serverStates: readonly StateRow<ServerSocket>[] = [
  row(SocketState.SV_ACTIVE, (pool) => pool.activeServerList, 'sv_active', 'active', 'sv_active'),
  row(SocketState.SV_IDLE, (pool) => pool.idleServerList, 'sv_idle', 'idle', 'sv_idle'),
  row(SocketState.SV_USED, (pool) => pool.usedServerList, 'sv_used', 'used', 'sv_used'),
  row(SocketState.SV_TESTED, (pool) => pool.testedServerList, 'sv_tested', 'tested', 'sv_tested'),
  row(SocketState.SV_LOGIN, (pool) => pool.newServerList, null, 'new', 'sv_login'),
  row(SocketState.SV_ACTIVE_CANCEL, (pool) => pool.activeCancelServerList, 'sv_active_cancel', 'active_cancel', null),
  row(
    SocketState.SV_BEING_CANCELED,
    (pool) => pool.beingCanceledServerList,
    'sv_being_canceled',
    'being_canceled',
    null,
  ),
  row(SocketState.SV_LISTEN, (pool) => pool.listenServerList, 'sv_listen', 'listen', 'sv_listen'),
];

/** The name of CL_LOGIN in SHOW SOCKETS and in a handover record. Its list belongs to no pool. */
export const LOGIN_STATE_NAME = 'cl_login';

const clientRows: (StateRow<ClientSocket> | undefined)[] = [];
for (const each of [...clientStates, waitingLogin]) clientRows[each.state] = each;
const serverRows: (StateRow<ServerSocket> | undefined)[] = [];
for (const each of serverStates) serverRows[each.state] = each;

/** A state's name in a handover record; null if sockets in this state are not handed over. */
export function handoverName(state: SocketState): string | null {
  if (state === SocketState.CL_LOGIN) return LOGIN_STATE_NAME;
  return (clientRows[state] ?? serverRows[state])?.handover ?? null;
}

/* a map, because thousands of records are read while no client is served */
const stateByName = new Map<string, SocketState>([[LOGIN_STATE_NAME, SocketState.CL_LOGIN]]);
for (const { handover, state } of [...clientStates, waitingLogin, ...serverStates])
  if (handover !== null) stateByName.set(handover, state);

/** The state of that name, or null if this version does not know it. */
export function stateOfHandoverName(name: string): SocketState | null {
  return stateByName.get(name) ?? null;
}

function clientList(client: ClientSocket, state: SocketState): StatList<ClientSocket> | null {
  if (state === SocketState.CL_LOGIN) return loginClientList;
  if (state === SocketState.CL_FREE || state === SocketState.CL_JUSTFREE) return null;
  const found = clientRows[state];
  if (found === undefined || client.pool === null) return fatal(`bad client state: ${state}`);
  return found.list(client.pool);
}

function serverList(server: ServerSocket, state: SocketState): StatList<ServerSocket> | null {
  if (state === SocketState.SV_FREE || state === SocketState.SV_JUSTFREE) return null;
  return serverRows[state]?.list(server.pool) ?? fatal(`bad server state: ${state}`);
}

/**
 * Appends a socket that was taken over to the list of its state, without any other effect.
 * @returns false if the state requires a pool and the socket has none
 */
export function insertInState(sk: AnySocket, state: SocketState): boolean {
  if (isServerSocket(sk)) {
    serverList(sk, state)?.append(sk);
  } else {
    if (state !== SocketState.CL_LOGIN && sk.pool === null) return false;
    clientList(sk, state)?.append(sk);
  }
  sk.state = state;
  if (sk.pool !== null) noteChange(sk.pool);
  return true;
}

/** Changes a client's state. A login that waits (CL_WAITING_LOGIN) returns to CL_LOGIN when a server is assigned. */
export function changeClientState(client: ClientSocket, newState: SocketState): void {
  const oldState = client.state;
  if (oldState === SocketState.CL_LOGIN && newState === SocketState.CL_WAITING) newState = SocketState.CL_WAITING_LOGIN;
  else if (oldState === SocketState.CL_WAITING_LOGIN && newState === SocketState.CL_ACTIVE)
    newState = SocketState.CL_LOGIN;
  if (oldState === SocketState.CL_WAITING || oldState === SocketState.CL_WAITING_LOGIN) client.waitNotified = false;

  clientList(client, oldState)?.remove(client);
  if (client.pool !== null) noteChange(client.pool);
  client.state = newState;
  // the pool was that of auth_query: it may be removed meanwhile, and no longer lists this client
  if (newState === SocketState.CL_LOGIN) client.pool = null;
  const list = clientList(client, newState);
  if (list === null) {
    socketCounts.clients--;
    if (isOwnRequest(client)) socketCounts.ownRequests--;
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

/** Inserts a client in the order of connectTime: a login that waited for auth_query goes before later logins. */
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

/** Changes a server's state. server_round_robin determines at which end of the list an idle server goes. */
export function changeServerState(server: ServerSocket, newState: SocketState): void {
  serverList(server, server.state)?.remove(server);
  noteChange(server.pool);
  server.state = newState;
  const list = serverList(server, newState);
  if (list === null) {
    socketCounts.servers--;
    touchPool(server.pool);
    return;
  }
  switch (newState) {
    case SocketState.SV_IDLE:
      // LIFO, so that surplus servers time out; a server to be closed goes last
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

function moveList(from: StatList<AnySocket>, to: StatList<AnySocket>, pool: PgPool): void {
  for (let sk = from.pop(); sk !== null; sk = from.pop()) {
    sk.pool = pool;
    to.append(sk);
  }
}

/** Moves all sockets of a pool to another one. */
export function moveSockets(from: PgPool, to: PgPool): void {
  for (const { list } of [...clientStates, ...serverStates]) moveList(list(from), list(to), to);
}

/** Calls `each` for every socket of a list. `each` may disconnect the socket passed to it, and the next one. */
export function eachSocket<T extends AnySocket>(list: StatList<T>, each: (sk: T) => void): void {
  let sk = list.head;
  while (sk !== null) {
    const next: T | null = nextOf(sk);
    each(sk);
    // disconnecting a socket may disconnect or move the next one; the next run then handles the rest of the list
    if (next !== null && (next.list as unknown) !== list) return;
    sk = next;
  }
}

/** Calls `each` for all servers of a pool, except those used for cancel requests. `each` may disconnect its server. */
export function forEachServer(pool: PgPool, each: (server: ServerSocket) => void): void {
  for (const { state, list } of serverStates) if (state !== SocketState.SV_ACTIVE_CANCEL) eachSocket(list(pool), each);
}
