/*
 * Session state that clients leave behind in transaction and statement pooling (dirty_session). Tags of commands tell what
 * it is: session/ notes them, and objects.ts asks here when it releases the server.
 */

import { slogWarning } from '../base/log';
import { DirtySession, PoolMode } from '../config/choices';
import { cf } from '../config/settings';
import { connectionPoolMode, poolDirtySession } from '../pool/admission';
import type { ClientSocket, PgPool, ServerSocket } from '../pool/bouncer';
import { Left, Leftovers, leftCommands } from '../pool/leftovers';
import { varcacheForget } from '../pool/varcache';

/** What undoes each kind, in this order: the session's own user may RESET everything else. A library stays loaded. */
const UNDO: readonly [Left, string][] = [
  [Left.SETTINGS, 'RESET SESSION AUTHORIZATION;RESET ROLE;RESET ALL;'],
  [Left.STATEMENTS, 'DEALLOCATE ALL;'],
  [Left.CHANNELS, 'UNLISTEN *;'],
  [Left.CURSORS, 'CLOSE ALL;'],
];

/** True if server_reset_query runs when a server is released. */
export function usesResetQuery(server: ServerSocket): boolean {
  return (
    cf.serverResetQuery !== '' && (cf.serverResetQueryAlways !== 0 || connectionPoolMode(server) === PoolMode.SESSION)
  );
}

/** A server gets a client: begins to note what clients leave behind, or ends it. */
export function watchLeftovers(server: ServerSocket): void {
  const wanted =
    poolDirtySession(server.pool) !== DirtySession.IGNORE && connectionPoolMode(server) !== PoolMode.SESSION;
  if (wanted === (server.leftovers !== null)) return;
  server.leftovers = wanted ? new Leftovers() : null;
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
  if (mode === DirtySession.REFUSE && left.certain !== 0) server.closeNeeded = true;
  if (mode === DirtySession.LOG && left.certain !== 0)
    slogWarning(client ?? server, `session state left behind on the server: ${leftCommands(left.certain)}`);
  left.clear();
  return false;
}

/** The query that undoes what has been left behind on a server, which is assumed to be undone from now on. */
function undoQuery(server: ServerSocket): string {
  const left = server.leftovers;
  if (left === null) return '';
  const query = connectQuery(server.pool);
  // connect_query runs again, as on a new connection
  const kinds = query === '' ? left.kinds : ~0;
  left.clear();
  if ((kinds & Left.SETTINGS) !== 0) varcacheForget(server, true);
  return UNDO.reduce((sql, [kind, undo]) => ((kinds & kind) === 0 ? sql : sql + undo), '') + query;
}

/** The query that a released server runs before the next client gets it. */
export function queryOnRelease(server: ServerSocket): string {
  if (!usesResetQuery(server)) return undoQuery(server);
  server.leftovers?.clear();
  varcacheForget(server, false);
  return cf.serverResetQuery;
}
