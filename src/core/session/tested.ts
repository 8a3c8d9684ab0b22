// The queries that the pooler itself runs on a server without a client (SV_TESTED), when they fail.

import { slogWarning } from '../base/log';
import { arena } from '../base/native';
import { usesResetQuery } from '../link/leftovers';
import { disconnectServer } from '../link/objects';
import type { ServerSocket } from '../pool/bouncer';
import { Recovery } from '../pool/phases';
import { NEW_HEADER_LEN } from '../wire/packets';
import { parseServerError, serverErrorLine } from '../wire/reader';

/** The query that a server in SV_TESTED runs. */
export function testedQuery(server: ServerSocket): string {
  if (server.recovery !== Recovery.NONE) return 'rollback';
  return server.resetting ? 'reset query' : 'test query';
}

/** The setting that the query comes from. */
function testedBy(server: ServerSocket): string {
  if (server.recovery !== Recovery.NONE) return 'rollback';
  if (!server.resetting) return 'server_check_query';
  return usesResetQuery(server) ? 'server_reset_query' : 'reset of dirty_session';
}

/**
 * Such a query failed. The server must not be reused: the state of its session is unknown.
 * @param off of the ErrorResponse in the arena, which has arrived completely
 */
export function testFailed(server: ServerSocket, off: number, len: number): void {
  const error = parseServerError(arena, off + NEW_HEADER_LEN, off + len);
  slogWarning(server, serverErrorLine(`${testedBy(server)} failed`, error));
  disconnectServer(server, true, `${testedQuery(server)} failed`);
}
