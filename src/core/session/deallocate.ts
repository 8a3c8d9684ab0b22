/*
 * SQL's DEALLOCATE of a statement that a client prepared by the protocol: the servers know it under another name, and other
 * clients may use it there. So the client's name is freed here, and the server gets a command without effect in its place,
 * which it answers as the state of the transaction demands. Called by client.ts with queries, by server.ts with the answer.
 */

import { asciiLower } from '../base/strutil';
import type { ClientSocket, ServerSocket } from '../pool/bouncer';
import { type ClientStatement, Deallocation, NoteKind, RequestNote } from '../pool/prepare';
import { type RequestQueue, ResponseAction } from '../pool/requests';
import { dropClientStatement, preparedStatementsEnabled } from '../pool/statements';
import { writeQuery } from '../wire/messages';
import { NEW_HEADER_LEN, PqMsg } from '../wire/packets';
import type { PktBuf } from '../wire/pktbuf';

/** Longest packet that is looked at: names have 63 bytes at most, and may be quoted. */
export const DEALLOCATE_MAX = 256;
/** Bytes of a name in SQL that count. */
const NAME_MAX = 63;
/** What the server gets, and the tag of its answer. Nothing listens on that channel. */
const SUBSTITUTE = 'UNLISTEN tsbouncer_deallocate';
const SUBSTITUTE_TAG = 'UNLISTEN';
/** Length of the whole answer. */
export const SUBSTITUTE_COMPLETE_LEN = NEW_HEADER_LEN + SUBSTITUTE_TAG.length + 1;

const DEALLOCATE =
  /^[ \t\n\v\f\r]*deallocate(?:[ \t\n\v\f\r]+prepare)?(?:[ \t\n\v\f\r]+|(?="))(?:"((?:[^"]|"")+)"|([a-z_\x80-\xff][a-z0-9_$\x80-\xff]*))[ \t\n\v\f\r;]*$/i;
const DISCARD = /^[ \t\n\v\f\r]*discard[ \t\n\v\f\r]+all[ \t\n\v\f\r;]*$/i;

/** True when a text may be a DEALLOCATE or DISCARD, as far as it is here. @param whole all of it is */
export function mayDeallocate(buf: Buffer, off: number, end: number, whole: boolean): boolean {
  for (let i = off; i < end; i++) {
    const byte = buf[i] as number;
    if (byte === 0x20 || (byte >= 0x09 && byte <= 0x0d)) continue;
    // d, D
    return (byte | 0x20) === 0x64;
  }
  return !whole;
}

/** What a text deallocates: a name, '' = ALL, null = nothing. */
function deallocateTarget(text: string): string | null {
  if (DISCARD.test(text)) return '';
  const [, quoted, plain] = DEALLOCATE.exec(text) ?? [];
  if (quoted !== undefined) return quoted.replaceAll('""', '"');
  if (plain === undefined) return null;
  // as PostgreSQL does with names in more than one byte a character
  const name = asciiLower(plain);
  return name === 'all' ? '' : name;
}

/** What of a client's a text takes away, if that is not gone already (closing); null = nothing that is known here. */
function deallocationOf(client: ClientSocket, text: string): Deallocation | null {
  const name = deallocateTarget(text);
  if (name === null) return null;
  if (name === '') return new Deallocation(null);
  const statements = client.statements;
  const statement = statements?.get(name) ?? statements?.get(name.slice(0, NAME_MAX));
  return statement === undefined ? null : new Deallocation(statement);
}

/** Likewise for a whole query packet. */
export function queryDeallocation(client: ClientSocket, buf: Buffer, off: number, len: number): Deallocation | null {
  if (len > DEALLOCATE_MAX || !preparedStatementsEnabled(client)) return null;
  return deallocationOf(client, buf.toString('latin1', off + NEW_HEADER_LEN, off + len - 1));
}

/** Likewise for a whole Parse of the unnamed statement. */
export function parseDeallocation(client: ClientSocket, buf: Buffer, off: number, len: number): Deallocation | null {
  if (len > DEALLOCATE_MAX || !preparedStatementsEnabled(client)) return null;
  const query = off + NEW_HEADER_LEN + 1;
  const queryEnd = buf.indexOf(0, query);
  if (queryEnd < 0 || queryEnd >= off + len) return null;
  return deallocationOf(client, buf.toString('latin1', query, queryEnd));
}

/** What a request that deallocates leaves in the queue. @param alone it may fail without anything else failing */
function deallocateNote(requests: RequestQueue, statement: ClientStatement | null, alone: boolean): RequestNote {
  if (statement !== null && !statement.gone) statement.awaitAnswer(alone ? -1 : requests.segment, true);
  return new RequestNote(NoteKind.DEALLOCATE, null, statement);
}

/** A simple query that deallocates. */
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

/** A Parse of the unnamed statement that deallocates one: it comes again as a Parse of the substitute. */
export function substituteParse(buf: Buffer, off: number, len: number, out: PktBuf): void {
  const types = buf.indexOf(0, off + NEW_HEADER_LEN + 1) + 1;
  out.startPacket(PqMsg.Parse);
  out.putChar(0);
  out.putString(SUBSTITUTE);
  out.putSlice(buf, types, off + len - types);
  out.finishPacket();
}

/** Execute of the client's unnamed statement, which deallocates. */
export function executeDeallocate(client: ClientSocket, server: ServerSocket): void {
  const requests = server.requests;
  const { statement } = client.deallocating as Deallocation;
  requests.push(PqMsg.Execute, ResponseAction.FORWARD, deallocateNote(requests, statement, false));
}

/**
 * The server carried out something whose tag is as long as the substitute's.
 * @returns true when it was the substitute: the client wants to hear DEALLOCATE
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
