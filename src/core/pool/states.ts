/*
 * Moving a socket from state to state is moving it from list to list; nobody else touches the lists.
 */

import { StatList } from '../base/list';
import { fatal } from '../base/log';
import { getCachedTime } from '../base/time';
import { cf } from '../config/settings';
import { type PgPool, PgSocket, SocketState } from './bouncer';
import { touchPool } from './pool';

/** Clients that are not logged in yet, the longest connected first. */
export const loginClientList = new StatList<PgSocket>('login_client_list');

/** Open sockets now, and the most there ever were: SHOW LISTS prints the difference as free. */
export const socketCounts = { clients: 0, servers: 0, clientsPeak: 0, serversPeak: 0 };

export function newClient(): PgSocket {
  if (++socketCounts.clients > socketCounts.clientsPeak) socketCounts.clientsPeak = socketCounts.clients;
  return new PgSocket(SocketState.CL_FREE);
}

export function newServer(): PgSocket {
  if (++socketCounts.servers > socketCounts.serversPeak) socketCounts.serversPeak = socketCounts.servers;
  return new PgSocket(SocketState.SV_FREE);
}

function clientList(client: PgSocket, state: SocketState): StatList<PgSocket> | null {
  const pool = client.pool as PgPool;
  switch (state) {
    case SocketState.CL_FREE:
    case SocketState.CL_JUSTFREE:
      return null;
    case SocketState.CL_LOGIN:
      return loginClientList;
    case SocketState.CL_WAITING:
    case SocketState.CL_WAITING_LOGIN:
      return pool.waitingClientList;
    case SocketState.CL_ACTIVE:
      return pool.activeClientList;
    case SocketState.CL_ACTIVE_CANCEL:
      return pool.activeCancelReqList;
    case SocketState.CL_WAITING_CANCEL:
      return pool.waitingCancelReqList;
    default:
      return fatal(`bad client state: ${state}`);
  }
}

/** Moves a client; a login that waits goes back to login when it is woken. */
export function changeClientState(client: PgSocket, newState: SocketState): void {
  const oldState = client.state;
  if (oldState === SocketState.CL_LOGIN && newState === SocketState.CL_WAITING) newState = SocketState.CL_WAITING_LOGIN;
  else if (oldState === SocketState.CL_WAITING_LOGIN && newState === SocketState.CL_ACTIVE)
    newState = SocketState.CL_LOGIN;
  if (oldState === SocketState.CL_WAITING || oldState === SocketState.CL_WAITING_LOGIN)
    client.sentWaitNotification = false;

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
  list.append(client);
}

function serverList(server: PgSocket, state: SocketState): StatList<PgSocket> | null {
  const pool = server.pool as PgPool;
  switch (state) {
    case SocketState.SV_FREE:
    case SocketState.SV_JUSTFREE:
      return null;
    case SocketState.SV_LOGIN:
      return pool.newServerList;
    case SocketState.SV_BEING_CANCELED:
      return pool.beingCanceledServerList;
    case SocketState.SV_IDLE:
      return pool.idleServerList;
    case SocketState.SV_ACTIVE:
      return pool.activeServerList;
    case SocketState.SV_ACTIVE_CANCEL:
      return pool.activeCancelServerList;
    case SocketState.SV_USED:
      return pool.usedServerList;
    case SocketState.SV_TESTED:
      return pool.testedServerList;
    default:
      return fatal(`bad server state: ${state}`);
  }
}

/** Moves a server; idle ones go to the end that server_round_robin asks for. */
export function changeServerState(server: PgSocket, newState: SocketState): void {
  serverList(server, server.state)?.remove(server);
  server.state = newState;
  const list = serverList(server, newState);
  if (list === null) {
    socketCounts.servers--;
    touchPool(server.pool as PgPool);
    return;
  }
  switch (newState) {
    case SocketState.SV_IDLE:
      // the next client takes the first: last in, first out, unless this one had better rest
      if (server.closeNeeded || cf.serverRoundRobin) list.append(server);
      else list.prepend(server);
      touchPool(server.pool as PgPool);
      break;
    case SocketState.SV_USED:
      list.prepend(server);
      touchPool(server.pool as PgPool);
      break;
    case SocketState.SV_TESTED:
      list.append(server);
      touchPool(server.pool as PgPool);
      break;
    default:
      list.append(server);
  }
}
