/*
 * The end of a command, as a server tells it by CommandComplete and ReadyForQuery: what the command has changed in the
 * session. A client may not be allowed to do that, or it may keep its server from then on. Called by server.ts.
 */

import { slogDebug, slogInfo } from '../base/log';
import { arena } from '../base/native';
import { ListenMode } from '../config/choices';
import { isPinned, refusedKinds, resetRestores } from '../link/leftovers';
import { disconnectClient, disconnectServer } from '../link/objects';
import { inPacket } from '../net/sbuf';
import { poolListenMode } from '../pool/admission';
import { type ServerSocket, SocketState } from '../pool/bouncer';
import { LEFT_TAG_MAX, Left, type Leftovers, leftCommands } from '../pool/leftovers';
import { Recovery } from '../pool/phases';
import { NoteKind, RequestNote } from '../pool/prepare';
import { NEW_HEADER_LEN } from '../wire/packets';
import { mayDiscard, noteDiscarded, SUBSTITUTE_COMPLETE_LEN, substituteDone } from './deallocate';
import { listenQueryEnded, noteTag, tracksListen } from './listen';

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
  const refused = left.certain !== 0 && (left.certain & refusedKinds(server.pool)) !== 0;
  if (!refused && (server.link?.listening?.refusal ?? null) === null) return false;
  return server.state === SocketState.SV_ACTIVE && server.link?.state === SocketState.CL_ACTIVE;
}

/** True if the oldest request is an UNLISTEN * that was sent alone: see noteUnlisten(). */
function answersUnlistenAll({ requests }: ServerSocket): boolean {
  return requests.count > 0 && requests.firstNote()?.kind === NoteKind.UNLISTEN;
}

/** The COPY of a server has ended. */
export function endCopy(server: ServerSocket, failed: boolean): void {
  slogDebug(server, failed ? 'COPY failed' : 'COPY finished');
  server.copyMode = false;
  // Syncs sent during COPY get no answer
  server.requests.endCopy(failed);
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
  const listened = (left.kinds & Left.CHANNELS) !== 0;
  left.note(tag, resetRestores(server.pool));
  if (tag === 'UNLISTEN' && listened && answersUnlistenAll(server)) left.unlistened();
  if (server.link !== null && tracksListen(server.link) && !isPinned(server)) noteTag(server.link, tag);
  if (!listened && server.link !== null && isPinned(server)) {
    left.pinned = true;
    slogInfo(server.link, 'LISTEN: the client keeps its server connection');
  }
  return isRefused(server, left) ? Completion.REFUSE : Completion.FORWARD;
}

/**
 * Handles the ReadyForQuery of a watched server, before `queryFailed` is cleared.
 * @param idle outside a transaction block
 * @returns true if the client may not have run this query: see refuseSession()
 */
export function queryEnded(server: ServerSocket, left: Leftovers, idle: boolean): boolean {
  left.endOfQuery(idle, server.queryFailed);
  const client = server.link;
  if (client !== null && client.listening !== null && isClients(server))
    listenQueryEnded(client, server, idle, server.queryFailed);
  return isRefused(server, left);
}

/** Ends a client that changed the session of its server, and the server. */
export function refuseSession(server: ServerSocket): void {
  const client = server.link;
  const kinds = (server.leftovers?.certain ?? 0) & refusedKinds(server.pool);
  const byListen = kinds === Left.CHANNELS && poolListenMode(server.pool) === ListenMode.REFUSE;
  const setting = byListen ? 'listen_mode' : 'dirty_session';
  const refusal = client?.listening?.refusal ?? null;
  const reason = `${leftCommands(kinds)} is not allowed: it outlasts the transaction (${setting} = refuse)`;
  // a part of the client's next request may have been sent already
  const whole = client === null || !inPacket(client);
  server.link = null;
  if (client !== null) client.link = null;
  disconnectServer(server, whole, 'a client has changed the session');
  if (client !== null) disconnectClient(client, true, refusal?.reason ?? reason, refusal?.sqlstate ?? NOT_SUPPORTED);
}

/** Longest query that is examined, in bytes. */
const UNLISTEN_MAX = NEW_HEADER_LEN + 64;
const UNLISTEN_ALL = /^[ \t\n\v\f\r]*unlisten[ \t\n\v\f\r]*\*[ \t\n\v\f\r;]*$/i;

/**
 * The note for a simple query of a client that keeps its server because it listens; null if it is not an UNLISTEN * that
 * has arrived completely.
 */
export function noteUnlisten(
  server: ServerSocket,
  buf: Buffer,
  off: number,
  end: number,
  len: number,
): RequestNote | null {
  if (len > UNLISTEN_MAX || end - off < len || !isPinned(server)) return null;
  const text = buf.toString('latin1', off + NEW_HEADER_LEN, off + len - 1);
  return UNLISTEN_ALL.test(text) ? new RequestNote(NoteKind.UNLISTEN, null, null) : null;
}
