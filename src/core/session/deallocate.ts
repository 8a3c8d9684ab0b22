/*
 * SQL's DEALLOCATE of a statement that a client prepared by the protocol. The servers have it under another name, and
 * other clients may use it there. So the client's name is freed here, and the server gets a command without effect
 * instead, which it answers according to the state of the transaction. Called by client.ts with queries, and by
 * server.ts with the answer.
 */

import { arena } from '../base/native';
import { asciiLower } from '../base/strutil';
import type { ClientSocket, ServerSocket } from '../pool/bouncer';
import { type ClientStatement, Deallocation, NoteKind, RequestNote } from '../pool/prepare';
import { type RequestQueue, ResponseAction } from '../pool/requests';
import { deallocateAll, dropClientStatement, preparedStatementsEnabled } from '../pool/statements';
import { SQL_NAME_MAX } from '../wire/limits';
import { writeQuery } from '../wire/messages';
import { NEW_HEADER_LEN, PqMsg } from '../wire/packets';
import type { PktBuf } from '../wire/pktbuf';

/** Longest packet that is examined, in bytes: names have at most 63 bytes, and may be quoted. */
export const DEALLOCATE_MAX = 256;
/** The command that the server gets, and the tag of its answer. The pooler never listens on that channel. */
const SUBSTITUTE = 'UNLISTEN tsbouncer_deallocate';
const SUBSTITUTE_TAG = 'UNLISTEN';
/** Length of the complete answer. */
export const SUBSTITUTE_COMPLETE_LEN = NEW_HEADER_LEN + SUBSTITUTE_TAG.length + 1;

const DEALLOCATE =
  /^[ \t\n\v\f\r]*deallocate(?:[ \t\n\v\f\r]+prepare)?(?:[ \t\n\v\f\r]+|(?="))(?:"((?:[^"]|"")+)"|([a-z_\x80-\xff][a-z0-9_$\x80-\xff]*))[ \t\n\v\f\r;]*$/i;
const DISCARD = /^[ \t\n\v\f\r]*discard[ \t\n\v\f\r]+all[ \t\n\v\f\r;]*$/i;

/**
 * True if a text may be a DEALLOCATE or DISCARD, judging by the bytes in [off, end).
 * @param whole the text is complete
 */
export function mayDeallocate(buf: Buffer, off: number, end: number, whole: boolean): boolean {
  for (let i = off; i < end; i++) {
    const byte = buf[i] as number;
    if (byte === 0x20 || (byte >= 0x09 && byte <= 0x0d)) continue;
    // d, D
    return (byte | 0x20) === 0x64;
  }
  return !whole;
}

/** The statement that a text deallocates: a name, '' = ALL, null = none. */
function deallocateTarget(text: string): string | null {
  if (DISCARD.test(text)) return '';
  const [, quoted, plain] = DEALLOCATE.exec(text) ?? [];
  if (quoted !== undefined) return quoted.replaceAll('""', '"');
  if (plain === undefined) return null;
  // like PostgreSQL with multi-byte encodings
  const name = asciiLower(plain);
  return name === 'all' ? '' : name;
}

/**
 * The client's statement that a text deallocates, which may already be closing, or all statements; null = none known
 * here.
 */
function deallocationOf(client: ClientSocket, text: string): Deallocation | null {
  const name = deallocateTarget(text);
  if (name === null) return null;
  if (name === '') return new Deallocation(null);
  const statements = client.statements;
  const statement = statements?.get(name) ?? statements?.get(name.slice(0, SQL_NAME_MAX));
  return statement === undefined ? null : new Deallocation(statement);
}

/** The same for a complete query packet. */
export function queryDeallocation(client: ClientSocket, buf: Buffer, off: number, len: number): Deallocation | null {
  if (len > DEALLOCATE_MAX || !preparedStatementsEnabled(client)) return null;
  return deallocationOf(client, buf.toString('latin1', off + NEW_HEADER_LEN, off + len - 1));
}

/** The same for a complete Parse of the unnamed statement. */
export function parseDeallocation(client: ClientSocket, buf: Buffer, off: number, len: number): Deallocation | null {
  if (len > DEALLOCATE_MAX || !preparedStatementsEnabled(client)) return null;
  const query = off + NEW_HEADER_LEN + 1;
  const queryEnd = buf.indexOf(0, query);
  if (queryEnd < 0 || queryEnd >= off + len) return null;
  return deallocationOf(client, buf.toString('latin1', query, queryEnd));
}

/** The note for a request that deallocates. @param alone its failure affects no other request */
function deallocateNote(requests: RequestQueue, statement: ClientStatement | null, alone: boolean): RequestNote {
  if (statement !== null && !statement.gone) statement.awaitAnswer(alone ? -1 : requests.segment, true);
  return new RequestNote(NoteKind.DEALLOCATE, null, statement);
}

/** Sends a simple query that deallocates. */
export function sendDeallocate(
  server: ServerSocket,
  what: Deallocation,
  buf: Buffer,
  off: number,
  len: number,
  out: PktBuf,
): void {
  const requests = server.requests;
  if (what.statement === null) out.putSlice(buf, off, len);
  else writeQuery(out, SUBSTITUTE);
  requests.push(PqMsg.Query, ResponseAction.FORWARD, deallocateNote(requests, what.statement, true));
}

/** Replaces a Parse of the unnamed statement that deallocates by a Parse of the substitute. */
export function substituteParse(buf: Buffer, off: number, len: number, out: PktBuf): void {
  const types = buf.indexOf(0, off + NEW_HEADER_LEN + 1) + 1;
  out.startPacket(PqMsg.Parse);
  out.putChar(0);
  out.putString(SUBSTITUTE);
  out.putSlice(buf, types, off + len - types);
  out.finishPacket();
}

/** Handles Execute of the client's unnamed statement, which deallocates. */
export function executeDeallocate(client: ClientSocket, server: ServerSocket): void {
  const requests = server.requests;
  const { statement } = client.deallocating as Deallocation;
  requests.push(PqMsg.Execute, ResponseAction.FORWARD, deallocateNote(requests, statement, false));
}

/**
 * Handles a CommandComplete with a tag as long as the substitute's.
 * @returns true if it is the substitute's: the client must get the tag DEALLOCATE
 */
export function substituteDone(server: ServerSocket, buf: Buffer, off: number): boolean {
  const requests = server.requests;
  if (requests.count === 0) return false;
  const note = requests.firstNote();
  if (note === null || note.kind !== NoteKind.DEALLOCATE || note.client === null) return false;
  if (buf.toString('latin1', off + NEW_HEADER_LEN, off + SUBSTITUTE_COMPLETE_LEN - 1) !== SUBSTITUTE_TAG) return false;
  dropClientStatement(server.link, note.client);
  return true;
}

/** Lengths of a complete CommandComplete with these tags. */
const DEALLOCATE_ALL_LEN = NEW_HEADER_LEN + 'DEALLOCATE ALL'.length + 1;
const DISCARD_ALL_LEN = NEW_HEADER_LEN + 'DISCARD ALL'.length + 1;
const RESET_LEN = NEW_HEADER_LEN + 'RESET'.length + 1;

/** True for the length of a CommandComplete that noteDiscarded() has to see. */
export function mayDiscard(len: number): boolean {
  return len === DEALLOCATE_ALL_LEN || len === DISCARD_ALL_LEN || len === RESET_LEN;
}

/**
 * After DEALLOCATE ALL and DISCARD ALL the server has none of its registered statements. DISCARD ALL has also reset the
 * variables, and RESET may have reset any of them.
 * @param off of the tag in the arena, which ends at `end`
 */
export function noteDiscarded(server: ServerSocket, off: number, end: number): void {
  // D, R
  if (arena[off] !== 0x44 && arena[off] !== 0x52) return;
  const tag = arena.toString('latin1', off, end);
  if (server.link !== null && !server.settingVars && tag !== 'DEALLOCATE ALL') server.afterReset = true;
  if (tag === 'RESET') {
    // not that of the pooler, whose effect is known
    if (!server.settingVars) server.vars.forget(false);
    return;
  }
  if (tag !== 'DEALLOCATE ALL' && tag !== 'DISCARD ALL') return;
  if (tag === 'DISCARD ALL') server.vars.forget(true);
  if (server.statements !== null || (server.link?.statements ?? null) !== null) deallocateAll(server);
}
