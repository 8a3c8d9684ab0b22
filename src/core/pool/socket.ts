/*
 * Questions about a client or server connection (PgBouncer's PgSocket). Its state names the list that it is in; only
 * changeClientState() and changeServerState() (states.ts) change it.
 */

import {
  type AnySocket,
  type ClientSocket,
  type PgDatabase,
  type PgSocket,
  type ServerSocket,
  SocketKind,
  SocketState,
} from './bouncer';
import { ConsoleSession } from './console-session';
import type { ClientLogin, ServerLogin } from './login-state';
import { LoginPhase } from './phases';

/** The session of a console client. */
export function consoleSession(client: ClientSocket): ConsoleSession {
  client.console ??= new ConsoleSession();
  return client.console;
}

/** The value of the startup parameter `replication`, by Replication. */
export const replicationTypeParameters = ['no', 'database', 'yes'];

export function isServerSocket(sk: PgSocket): sk is ServerSocket {
  return sk.kind === SocketKind.SERVER;
}

/** True for a cancel request that no client has sent: states.ts, newOwnRequest(). */
export function isOwnRequest(client: ClientSocket): boolean {
  return client.handle < 0;
}

/** True after a socket was disconnected: it has no handle, and no event may be handled for it. */
export function isDead(sk: PgSocket): boolean {
  return sk.state === SocketState.CL_JUSTFREE || sk.state === SocketState.SV_JUSTFREE;
}

/**
 * The database that SHOW and the log name for a socket: that of its pool or, while a client logs in and has no pool,
 * that of the login. Null during mock authentication.
 */
export function shownDatabase(sk: AnySocket): PgDatabase | null {
  if (isServerSocket(sk)) return sk.pool.db;
  if (sk.pool !== null) return sk.pool.db;
  if (!hasStarted(sk) || sk.db === null || sk.db.fake || sk.loginUser === null) return null;
  return sk.loginUser.mockAuth ? null : sk.db;
}

/** True once a client's startup packet has determined a user and an authentication method. */
export function hasStarted(client: ClientSocket): boolean {
  return client.login === null || client.login.phase >= LoginPhase.CHALLENGED;
}

/** True while a client's login waits for auth_query (its server connection or its result). */
export function sendingAuthQuery(client: ClientSocket): boolean {
  const phase = client.login?.phase;
  return phase === LoginPhase.AUTH_QUERY_SERVER || phase === LoginPhase.AUTH_QUERY_RESULT;
}

/** The login of a client that is not logged in yet. @throws Error if it is logged in */
export function loginOf(client: ClientSocket): ClientLogin<ClientSocket> {
  if (client.login === null) throw new Error('the client has logged in');
  return client.login;
}

/** The login of a server connection that is not logged in yet. @throws Error if it is logged in */
export function serverLoginOf(server: ServerSocket): ServerLogin<ClientSocket> {
  if (server.login === null) throw new Error('the server connection has logged in');
  return server.login;
}

/** Number of cancel requests for the query of a server. */
export function cancelCount(server: ServerSocket): number {
  return server.cancelingClients === null ? 0 : server.cancelingClients.length;
}

/** Makes a request cancel the query of this server. */
export function addCancel(server: ServerSocket, req: ClientSocket): void {
  req.canceledServer = server;
  if (server.cancelingClients === null) server.cancelingClients = [req];
  else server.cancelingClients.push(req);
}

/** Drops cancel requests that have not been sent: there is nothing left to cancel. */
export function dropUnsentCancels(server: ServerSocket): void {
  if (server.cancelingClients === null) return;
  server.cancelingClients = server.cancelingClients.filter((req) => {
    if (req.state !== SocketState.CL_WAITING_CANCEL) return true;
    req.canceledServer = null;
    return false;
  });
}
