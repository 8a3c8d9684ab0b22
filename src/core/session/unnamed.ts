/*
 * The unnamed statement in transaction and statement pooling. A server has one unnamed statement for all its clients.
 * The text of each client's own is kept, and parsed again on a server that has another client's. Called by client.ts
 * for every Parse, Bind and Describe of the unnamed statement. The usual Parse, Bind, Execute, Sync costs one copy of
 * the Parse.
 */

import type { ClientSocket, ServerSocket } from '../pool/bouncer';
import { ResponseAction, UNNAMED, UNNAMED_AGAIN } from '../pool/requests';
import { writeCloseStmt } from '../wire/messages';
import { NEW_HEADER_LEN, PqMsg } from '../wire/packets';
import { copyBytes, type PktBuf } from '../wire/pktbuf';
import { Verdict } from '../wire/verdict';

/** Largest Parse that is copied. */
export const UNNAMED_MAX = 64 * 1024;
/** Initial size of a copy. */
const COPY_MIN = 256;
/** A buffer larger than this, and more than four times as large as its text, is replaced by a smaller one. */
const COPY_ROOMY = 4 * 1024;

/** Number of the newest Parse of an unnamed statement, of any client. */
let lastSeq = 0;

function roomFor(client: ClientSocket, length: number): Buffer {
  const old = client.unnamed;
  if (old !== null && old.length >= length && (old.length <= COPY_ROOMY || old.length <= 4 * length)) return old;
  let size = COPY_MIN;
  while (size < length) size *= 2;
  client.unnamed = Buffer.allocUnsafeSlow(size);
  return client.unnamed;
}

/**
 * A request replaces the client's unnamed statement. If the server may skip it, the statement is kept until then. Only
 * one is kept: what follows in the same pipeline is skipped with the request, or comes after it.
 */
function replaceUnnamed(client: ClientSocket, server: ServerSocket): void {
  const { requests } = server;
  if (!requests.maySkip()) {
    client.earlierUnnamed = null;
    return;
  }
  if (client.earlierUnnamed?.segment === requests.segment) return;
  const { unnamed, unnamedLen, deallocating } = client;
  // an outstanding Parse of an earlier segment decides what it is
  const unnamedSeq = unnamedUnsure(server) ? 0 : client.unnamedSeq;
  const { segment, total: at } = requests;
  client.earlierUnnamed = { segment, at, unnamedSeq, unnamed, unnamedLen, deallocating };
  client.unnamed = null;
  client.unnamedLen = 0;
}

/** Registers a Parse of the unnamed statement that is being sent to the server. */
function noteParse(
  client: ClientSocket,
  server: ServerSocket,
  buf: Buffer,
  off: number,
  end: number,
  len: number,
): void {
  const requests = server.requests;
  replaceUnnamed(client, server);
  client.unnamedSeq = server.unnamedSeq = ++lastSeq;
  server.unnamedSegment = requests.segment;
  client.deallocating = null;
  requests.push(PqMsg.Parse, ResponseAction.FORWARD, null, UNNAMED);
  if (len > UNNAMED_MAX || end - off < len) {
    client.unnamed = null;
    client.unnamedLen = 0;
    return;
  }
  // after the name, which is only a NUL
  const body = off + NEW_HEADER_LEN + 1;
  const length = off + len - body;
  const copy = roomFor(client, length);
  copyBytes(buf, body, off + len, copy, 0);
  client.unnamedLen = length;
}

/** True if a Bind or Describe must wait for an outstanding Parse that decides whether the server has the statement. */
export function unnamedUnsure(server: ServerSocket): boolean {
  const requests = server.requests;
  return requests.count > 0 && server.unnamedSegment !== requests.segment && requests.hasUnnamedParse();
}

/**
 * Handles Parse, Bind or Describe of the unnamed statement, of a client that has a server: adds it to the queue, or
 * lets it be rewritten.
 */
export function unnamedPacket(
  client: ClientSocket,
  type: number,
  buf: Buffer,
  off: number,
  end: number,
  len: number,
): Verdict {
  const server = client.link as ServerSocket;
  if (type === PqMsg.Parse) {
    noteParse(client, server, buf, off, end, len);
    return Verdict.FORWARD;
  }
  if (type === PqMsg.Close) {
    replaceUnnamed(client, server);
    client.unnamedSeq = server.unnamedSeq = 0;
    server.requests.push(type, ResponseAction.FORWARD);
    return Verdict.FORWARD;
  }
  if (client.unnamedSeq === 0 || client.unnamedSeq !== server.unnamedSeq) return Verdict.REWRITE;
  server.requests.push(type, ResponseAction.FORWARD);
  return Verdict.FORWARD;
}

/**
 * Called before a Bind or Describe of an unnamed statement that the server lacks. Parses the statement there; or, if
 * the client has none, closes the server's, so that the server reports that it does not exist.
 */
export function supplyUnnamed(client: ClientSocket, server: ServerSocket, type: number, out: PktBuf): void {
  const requests = server.requests;
  if (client.unnamedSeq !== 0 && client.unnamed !== null && client.unnamedLen > 0) {
    out.startPacket(PqMsg.Parse);
    out.putChar(0);
    out.putSlice(client.unnamed, 0, client.unnamedLen);
    out.finishPacket();
    requests.push(PqMsg.Parse, ResponseAction.SKIP, null, UNNAMED_AGAIN);
    server.unnamedSeq = client.unnamedSeq;
    server.unnamedSegment = requests.segment;
  } else {
    writeCloseStmt(out, '');
    requests.push(PqMsg.Close, ResponseAction.SKIP);
    client.unnamedSeq = server.unnamedSeq = 0;
    client.earlierUnnamed = null;
    client.deallocating = null;
  }
  requests.push(type, ResponseAction.FORWARD);
}

/** A simple query destroys the unnamed statement. */
export function dropUnnamed(client: ClientSocket, server: ServerSocket): void {
  replaceUnnamed(client, server);
  client.unnamedSeq = server.unnamedSeq = 0;
  client.deallocating = null;
}

/** Restores the unnamed statement of a client that was taken over. */
export function restoreUnnamed(client: ClientSocket, body: Buffer): void {
  client.unnamed = body;
  client.unnamedLen = body.length;
  client.unnamedSeq = ++lastSeq;
}

/** After a takeover: the unnamed statement of the server is its client's. The server's requests have been restored. */
export function restoreUnnamedOfClient(server: ServerSocket): void {
  if (server.link === null) return;
  server.link.unnamedSeq = server.unnamedSeq = ++lastSeq;
  server.unnamedSegment = server.requests.unnamedSegment();
}
