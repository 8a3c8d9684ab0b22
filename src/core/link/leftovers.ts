/*
 * Session state that clients leave behind in transaction and statement pooling (dirty_session), and LISTEN (listen_mode).
 * Tags of commands tell what it is: session/ notes them, and objects.ts asks here when it releases the server.
 */

import { slogWarning } from '../base/log';
import { DirtySession, ListenMode, PoolMode } from '../config/choices';
import { cf } from '../config/settings';
import { connectionPoolMode, poolDirtySession, poolListenMode } from '../pool/admission';
import type { ClientSocket, PgPool, ServerSocket } from '../pool/bouncer';
import { Left, Leftovers, leftCommands } from '../pool/leftovers';

/** What undoes each kind, in this order: the session's own user may RESET everything else. A library stays loaded. */
const UNDO: readonly [Left, string][] = [
  [Left.SETTINGS, 'RESET SESSION AUTHORIZATION;RESET ROLE;RESET ALL;'],
  [Left.STATEMENTS, 'DEALLOCATE ALL;'],
  [Left.CHANNELS, 'UNLISTEN *;'],
  [Left.CURSORS, 'CLOSE ALL;'],
];

/** True if server_reset_query runs when a server is released. The pool mode may have changed since its client got it. */
export function usesResetQuery(server: ServerSocket): boolean {
  if (cf.serverResetQuery === '') return false;
  return cf.serverResetQueryAlways !== 0 || server.sessionClient || connectionPoolMode(server) === PoolMode.SESSION;
}

/** A server gets a client: begins to note what clients leave behind, or ends it. */
export function watchLeftovers(server: ServerSocket): void {
  const { pool } = server;
  const either = poolDirtySession(pool) !== DirtySession.IGNORE || poolListenMode(pool) !== ListenMode.IGNORE;
  server.sessionClient = connectionPoolMode(server) === PoolMode.SESSION;
  const wanted = (either || (server.link?.listening ?? null) !== null) && !server.sessionClient;
  if (wanted === (server.leftovers !== null)) return;
  server.leftovers = wanted ? new Leftovers() : null;
}

/** True if a server stays with its client because that listens (listen_mode = pin). */
export function isPinned(server: ServerSocket): boolean {
  const left = server.leftovers;
  if (left === null || (left.kinds & Left.CHANNELS) === 0) return false;
  const mode = poolListenMode(server.pool);
  return mode === ListenMode.PIN || (mode === ListenMode.SHARE && left.pinned);
}

/** True if a server that a client leaves must not listen any more. */
function undoesListen({ pool }: ServerSocket): boolean {
  const mode = poolListenMode(pool);
  return mode === ListenMode.PIN || mode === ListenMode.SHARE;
}

/** True if a server stays with its client between transactions. */
export function keepsClient(server: ServerSocket): boolean {
  return connectionPoolMode(server) === PoolMode.SESSION || isPinned(server);
}

/** The kinds of Left that end the client, or'ed. */
export function refusedKinds(pool: PgPool): number {
  const all = poolDirtySession(pool) === DirtySession.REFUSE ? ~0 : 0;
  const listen = poolListenMode(pool);
  if (listen === ListenMode.REFUSE) return all | Left.CHANNELS;
  return listen === ListenMode.PIN || listen === ListenMode.SHARE ? all & ~Left.CHANNELS : all;
}

function connectQuery(pool: PgPool): string {
  return pool.db.config.connectQuery ?? '';
}

/** True if RESET gives variables the values that they had after the login. */
export function resetRestores(pool: PgPool): boolean {
  return connectQuery(pool) === '';
}

/**
 * Handles what has been left behind on a server that is being released without server_reset_query.
 * @param client its client until now, null = that has left
 * @returns true if the server has to run queryOnRelease() first
 */
export function settleLeftovers(server: ServerSocket, client: ClientSocket | null): boolean {
  const left = server.leftovers;
  if (left === null || left.kinds === 0) return false;
  const mode = poolDirtySession(server.pool);
  if (mode === DirtySession.RESET) {
    // closing the connection is all that unloads a library
    if ((left.kinds & Left.LIBRARIES) !== 0) server.closeNeeded = true;
    return true;
  }
  // the client left before it could be told
  if ((left.certain & refusedKinds(server.pool)) !== 0) server.closeNeeded = true;
  const listened = (left.kinds & Left.CHANNELS) !== 0 && undoesListen(server);
  const named = left.certain & ~(listened ? Left.CHANNELS : 0);
  if (mode === DirtySession.LOG && named !== 0)
    slogWarning(client ?? server, `session state left behind on the server: ${leftCommands(named)}`);
  left.clear(listened ? Left.CHANNELS : 0);
  return listened;
}

/** The query that undoes what has been left behind on a server, which is assumed to be undone from now on. */
function undoQuery(server: ServerSocket): string {
  const left = server.leftovers;
  if (left === null) return '';
  const query = poolDirtySession(server.pool) === DirtySession.RESET ? connectQuery(server.pool) : '';
  // connect_query runs again, as on a new connection
  const kinds = query === '' ? left.kinds : ~0;
  left.clear();
  if ((kinds & Left.SETTINGS) !== 0) server.vars.forget(true);
  return UNDO.reduce((sql, [kind, undo]) => ((kinds & kind) === 0 ? sql : sql + undo), '') + query;
}

/** The query that a released server runs before the next client gets it. */
export function queryOnRelease(server: ServerSocket): string {
  if (!usesResetQuery(server)) return undoQuery(server);
  server.leftovers?.clear();
  server.vars.forget(false);
  return cf.serverResetQuery;
}
