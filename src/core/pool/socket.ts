/*
 * A client or server connection (the original's PgSocket) and its states. The state names the list the socket is in;
 * changeClientState and changeServerState (states.ts) are the only ones that move it.
 */

import {
  type AnySocket,
  type ClientLogin,
  type ClientSocket,
  LoginPhase,
  type PgDatabase,
  type PgSocket,
  type ServerLogin,
  type ServerSocket,
  SocketKind,
  SocketState,
} from './bouncer';

/** The value of the startup parameter `replication`, by Replication. */
export const replicationTypeParameters = ['no', 'database', 'yes'];

export function isServerSocket(sk: PgSocket): sk is ServerSocket {
  return sk.kind === SocketKind.SERVER;
}

/** True once a socket was disconnected: its handle is gone and no event of it may be handled any more. */
export function isDead(sk: PgSocket): boolean {
  return sk.state === SocketState.CL_JUSTFREE || sk.state === SocketState.SV_JUSTFREE;
}

/**
 * The database in whose name a socket is shown: that of its pool, or, while a client logs in and has none, the one that
 * it authenticates for. Null for a mock one.
 */
export function shownDatabase(sk: AnySocket): PgDatabase | null {
  if (isServerSocket(sk)) return sk.pool.db;
  if (sk.pool !== null) return sk.pool.db;
  if (!hasStarted(sk) || sk.db === null || sk.db.fake || sk.loginUser === null) return null;
  return sk.loginUser.mockAuth ? null : sk.db;
}

/** True once a client's startup packet has led to a user and a method of authentication. */
export function hasStarted(client: ClientSocket): boolean {
  return client.login === null || client.login.phase >= LoginPhase.CHALLENGED;
}

/** True while a client's login waits for auth_query (its server connection or its result). */
export function sendingAuthQuery(client: ClientSocket): boolean {
  const phase = client.login?.phase;
  return phase === LoginPhase.AUTH_QUERY_SERVER || phase === LoginPhase.AUTH_QUERY_RESULT;
}

/** The login of a client that is not logged in yet. @throws Error when it is */
export function loginOf(client: ClientSocket): ClientLogin {
  if (client.login === null) throw new Error('the client has logged in');
  return client.login;
}

/** Likewise of a server connection. */
export function serverLoginOf(server: ServerSocket): ServerLogin {
  if (server.login === null) throw new Error('the server connection has logged in');
  return server.login;
}
