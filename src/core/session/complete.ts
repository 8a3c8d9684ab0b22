/*
 * The end of a command, as a server tells it by CommandComplete and ReadyForQuery: what the command has changed in the
 * session, and clients that may not change it (dirty_session = refuse). Called by server.ts.
 */

import { arena } from '../base/native';
import { DirtySession } from '../config/choices';
import { resetRestores } from '../link/leftovers';
import { disconnectClient, disconnectServer } from '../link/objects';
import { poolDirtySession } from '../pool/admission';
import { type ServerSocket, SocketState } from '../pool/bouncer';
import { LEFT_TAG_MAX, type Leftovers, leftCommands } from '../pool/leftovers';
import { Recovery } from '../pool/recovery';
import { NEW_HEADER_LEN } from '../wire/packets';
import { mayDiscard, noteDiscarded, SUBSTITUTE_COMPLETE_LEN, substituteDone } from './deallocate';

/** What to do with a CommandComplete. */
export const enum Completion {
  FORWARD,
  /** handle it again when it is complete */
  MORE,
  /** the client must get the tag DEALLOCATE instead */
  DEALLOCATE,
  /** the client may not have run this command: see refuseSession() */
  REFUSE,
}

const NOT_SUPPORTED = '0A000';
const COMPLETE_MAX = NEW_HEADER_LEN + LEFT_TAG_MAX + 1;

/** True if the client of the server runs a command, rather than the pooler. */
function isClients(server: ServerSocket): boolean {
  if (server.state === SocketState.SV_TESTED) return server.recovery === Recovery.DRAIN;
  return !server.settingVars;
}

/** True if the client has to be told that it may not do what it has done. */
function isRefused(server: ServerSocket, left: Leftovers): boolean {
  if (left.certain === 0 || poolDirtySession(server.pool) !== DirtySession.REFUSE) return false;
  return server.state === SocketState.SV_ACTIVE && server.link?.state === SocketState.CL_ACTIVE;
}

/** Handles a CommandComplete in the arena at [off, off + len). @param end end of the received bytes */
export function completion(server: ServerSocket, off: number, end: number, len: number): Completion {
  const left = server.leftovers;
  const noted = left !== null && isClients(server);
  const discards = mayDiscard(len);
  const substituted = len === SUBSTITUTE_COMPLETE_LEN && server.requests.hasNotes();
  if (end - off < len && (discards || substituted || (noted && len <= COMPLETE_MAX))) return Completion.MORE;
  if (discards) noteDiscarded(server, off + NEW_HEADER_LEN, off + len - 1);
  if (substituted && substituteDone(server, arena, off)) return Completion.DEALLOCATE;
  if (!noted) return Completion.FORWARD;
  const tag = len <= COMPLETE_MAX ? arena.toString('latin1', off + NEW_HEADER_LEN, off + len - 1) : '';
  left.note(tag, resetRestores(server.pool));
  return isRefused(server, left) ? Completion.REFUSE : Completion.FORWARD;
}

/**
 * Handles the ReadyForQuery of a watched server, before `queryFailed` is cleared.
 * @param idle outside a transaction block
 * @returns true if the client may not have run this query: see refuseSession()
 */
export function queryEnded(server: ServerSocket, left: Leftovers, idle: boolean): boolean {
  left.endOfQuery(idle, server.queryFailed);
  return isRefused(server, left);
}

/** Ends a client that changed the session of its server, and the server. */
export function refuseSession(server: ServerSocket): void {
  const client = server.link;
  const commands = leftCommands(server.leftovers?.certain ?? 0);
  const reason = `${commands} is not allowed: it outlasts the transaction (dirty_session = refuse)`;
  server.link = null;
  if (client !== null) client.link = null;
  disconnectServer(server, true, 'a client has changed the session');
  if (client !== null) disconnectClient(client, true, reason, NOT_SUPPORTED);
}
