/*
 * A client or server connection (the original's PgSocket) and its states. The state names the list the socket is in;
 * changeClientState and changeServerState (states.ts) are the only ones that move it.
 */

import { type PgDatabase, type PgSocket, SocketState } from './bouncer';

/** The value of the startup parameter `replication`, by Replication. */
export const replicationTypeParameters = ['no', 'database', 'yes'];

export function isServerSocket(sk: PgSocket): boolean {
  return sk.state >= SocketState.SV_FREE;
}

/** True once a socket was disconnected: its handle is gone and no event of it may be handled any more. */
export function isDead(sk: PgSocket): boolean {
  return sk.state === SocketState.CL_JUSTFREE || sk.state === SocketState.SV_JUSTFREE;
}

/**
 * The database in whose name a socket is shown: that of its pool, or, as it has none while it logs in, the one that it
 * proves itself for. Null for one that is only pretended to be asked for its password.
 */
export function shownDatabase(sk: PgSocket): PgDatabase | null {
  if (sk.pool !== null) return sk.pool.db;
  if (!sk.startupMessageReceived || sk.db === null || sk.db.fake || sk.loginUser === null) return null;
  return sk.loginUser.mockAuth ? null : sk.db;
}

/** True while a client's login waits for auth_query (its server connection or its result). */
export function sendingAuthQuery(client: PgSocket): boolean {
  return client.waitForUserConn || client.waitForUser;
}
