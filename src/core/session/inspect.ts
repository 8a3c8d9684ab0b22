/*
 * Examines a client's packet about prepared statements, before the client has a server. The packet may pass, be
 * rewritten (prepared.ts, unnamed.ts, deallocate.ts), or have to wait because its meaning depends on outstanding
 * requests. Called by client.ts with every Parse, Bind, Describe and Close, and with queries that may deallocate.
 */

import { slogDebug, slogError, slogNoise, wantNoise } from '../base/log';
import { cf } from '../config/settings';
import { disconnectClient } from '../link/objects';
import { sbufContinue, sbufPause, sendBytes } from '../net/sbuf';
import type { ClientSocket, PgPool, ServerSocket } from '../pool/bouncer';
import { readingOf } from '../pool/constants';
import { findPreparedStatement, NoteKind, type PgPreparedStatement } from '../pool/prepare';
import { preparedStatementsEnabled, serversChange } from '../pool/statements';
import { count, Stat } from '../pool/stats';
import { COLLECT_MIN, PREPARED_PACKET_MAX } from '../wire/limits';
import { PACKET_FLUSH } from '../wire/messages';
import { findNul, nameOf } from '../wire/names';
import { NEW_HEADER_LEN, PqMsg, PqTarget } from '../wire/packets';
import { pktDesc } from '../wire/reader';
import { Verdict } from '../wire/verdict';
import { DEALLOCATE_MAX, mayDeallocate, parseDeallocation, queryDeallocation } from './deallocate';
import { closeStatement, parseBody } from './prepared';
import { UNNAMED_MAX, unnamedUnsure } from './unnamed';

/** The result of inspectPrepared(). */
const enum Inspect {
  /** not about a statement: passes unchanged */
  IGNORE,
  /** about the unnamed statement */
  UNNAMED,
  /** about a named statement, and enough of the packet has arrived */
  HANDLE,
  /** more of the packet is needed to decide */
  MORE,
  /** about a named statement, and the whole packet is needed */
  WHOLE,
  /** the packet is complete and malformed */
  BROKEN,
}

/**
 * Finds out whether Parse, Bind, Describe or Close names a statement.
 * @param off @param end the bytes that have arrived, from the packet's start; may be less or more than the packet
 * @param len length of the whole packet, including the header
 */
function inspectPrepared(
  client: ClientSocket,
  type: number,
  buf: Buffer,
  off: number,
  end: number,
  len: number,
): Inspect {
  const whole = end - off >= len;
  const limit = whole ? off + len : end;
  const lacking = whole ? Inspect.BROKEN : Inspect.MORE;
  let name = off + NEW_HEADER_LEN;
  if (type === PqMsg.Bind) {
    name = findNul(buf, name, limit) + 1;
    if (name === 0) return lacking;
  } else if (type !== PqMsg.Parse) {
    if (name >= limit) return lacking;
    if (buf[name] !== PqTarget.Statement) return Inspect.IGNORE;
    name++;
  }
  if (name >= limit) return lacking;
  if (buf[name] === 0) return Inspect.UNNAMED;
  const nameEnd = findNul(buf, name, limit);
  if (nameEnd < 0) return lacking;
  if (wantNoise()) {
    const what = type === PqMsg.Parse ? 'parse' : type === PqMsg.Bind ? 'bind' : 'describe_or_close';
    const text = buf.toString('latin1', name, nameEnd);
    slogNoise(client, `inspect_${what}_packet: type=${pktDesc(type)}, len=${len}, statement=${text}`);
  }
  // a Bind is only needed up to its names; its parameters may be large
  return whole || type === PqMsg.Bind ? Inspect.HANDLE : Inspect.WHOLE;
}

/** True while outstanding requests decide about the client's statement of that name. */
function namedUnsure(
  client: ClientSocket,
  server: ServerSocket,
  type: number,
  name: string,
  parsed: PgPreparedStatement | null,
): boolean {
  const requests = server.requests;
  // after an error the server skips everything up to the Sync, including this packet
  if (server.queryFailed && !requests.hasSync()) return false;
  if (requests.hasNote(NoteKind.DEALLOCATE)) return true;
  const statement = client.statements?.get(name);
  if (type === PqMsg.Close) return false;
  const ps = type === PqMsg.Parse ? parsed : (statement?.ps ?? null);
  if (ps !== null && requests.mayChange(ps)) return true;
  if (statement === undefined) return false;
  // if an earlier request of the same segment fails, the server skips this packet too
  if (statement.pending && statement.segment !== requests.segment) return true;
  // before rejecting a name as already in use, wait for all requests that may have freed it
  return type === PqMsg.Parse && !statement.closing && !server.copyMode;
}

/** Makes the client's packet wait for the next answers of its server. */
export function holdPacket(client: ClientSocket, server: ServerSocket): Verdict {
  slogDebug(client, 'waiting for answers about prepared statements');
  server.holding = true;
  sbufPause(client);
  return Verdict.PAUSED;
}

/** Requests the answers that a packet waits for, after everything before the packet has been sent. */
export function requestAnswers(client: ClientSocket): void {
  const server = client.link;
  if (server === null || !server.holding) return;
  const requests = server.requests;
  if (!requests.owesSync() || server.flushTotal === requests.total) return;
  server.flushTotal = requests.total;
  sendBytes(server, PACKET_FLUSH, PACKET_FLUSH.length);
}

/** Answers of a server have arrived: the client's waiting packet is handled again after them. */
export function resumeHeldPacket(server: ServerSocket): void {
  server.holding = false;
  if (server.link !== null) sbufContinue(server.link);
}

/**
 * Waits for more of a packet about a prepared statement.
 * @param whole the whole packet is needed; else only its names
 */
function awaitMore(client: ClientSocket, type: number, len: number, avail: number, whole: boolean): Verdict {
  if ((whole ? len : avail) < COLLECT_MIN) return Verdict.NEED_MORE;
  if (len <= PREPARED_PACKET_MAX) return Verdict.REASSEMBLE;
  slogError(client, `too large packet '${pktDesc(type)}' from client: ${len}`);
  disconnectClient(client, true, 'too large packet');
  return Verdict.DISCONNECTED;
}

/** Decides about a packet for the unnamed statement: FORWARD = unnamedPacket() handles it once there is a server. */
function unnamedStatement(
  client: ClientSocket,
  type: number,
  buf: Buffer,
  off: number,
  end: number,
  len: number,
): Verdict {
  const server = client.link;
  if (type === PqMsg.Parse) {
    const whole = end - off >= len;
    if (!whole && len <= UNNAMED_MAX) return awaitMore(client, type, len, end - off, true);
    const query = off + NEW_HEADER_LEN + 1;
    if (!whole || len > DEALLOCATE_MAX || !mayDeallocate(buf, query, off + len, true)) return Verdict.FORWARD;
    const what = parseDeallocation(client, buf, off, len);
    if (what === null) return Verdict.FORWARD;
    const name = what.statement?.name ?? '';
    if (server?.requests?.hasNotes() && namedUnsure(client, server, type, name, null)) {
      return holdPacket(client, server);
    }
    return what.statement?.closing ? Verdict.FORWARD : Verdict.REWRITE;
  }
  return server !== null && type !== PqMsg.Close && unnamedUnsure(server)
    ? holdPacket(client, server)
    : Verdict.FORWARD;
}

/** Set when statementPacket() returns FORWARD: whether the packet is about the unnamed statement. */
export let unnamedFound = false;

/**
 * Decides about Parse, Bind, Describe or Close of a logged-in client.
 * @returns FORWARD (with unnamedFound), REWRITE, or a final verdict
 */
export function statementPacket(
  client: ClientSocket,
  type: number,
  buf: Buffer,
  off: number,
  end: number,
  len: number,
): Verdict {
  unnamedFound = false;
  if (!serversChange(client)) return Verdict.FORWARD;
  const found = inspectPrepared(client, type, buf, off, end, len);
  if (found === Inspect.UNNAMED) {
    unnamedFound = true;
    return unnamedStatement(client, type, buf, off, end, len);
  }
  if (found === Inspect.IGNORE) return Verdict.FORWARD;
  // without max_prepared_statements, packets about named statements pass unchanged, even malformed packets
  if (cf.maxPreparedStatements === 0 && found !== Inspect.MORE) return Verdict.FORWARD;
  switch (found) {
    case Inspect.MORE:
      return awaitMore(client, type, len, end - off, false);
    case Inspect.WHOLE:
      return awaitMore(client, type, len, end - off, true);
    case Inspect.BROKEN:
      slogError(client, `failed to parse prepared statement packet type '${pktDesc(type)}'`);
      disconnectClient(client, true, 'failed to parse packet');
      return Verdict.DISCONNECTED;
    default:
  }
  const server = client.link;
  if (server !== null) {
    const requests = server.requests;
    if (requests.count > 0 && (type === PqMsg.Parse || requests.hasNotes())) {
      const body = type === PqMsg.Parse && requests.hasNotes() ? parseBody(buf.subarray(off, off + len)) : null;
      const parsed = body === null ? null : findPreparedStatement(body, readingOf(body, client));
      if (namedUnsure(client, server, type, nameOf(type, buf, off), parsed)) return holdPacket(client, server);
    }
  }
  if (type !== PqMsg.Close) return Verdict.REWRITE;
  count((client.pool as PgPool).stats, Stat.CLIENT_BYTES, len);
  return closeStatement(client, buf, off);
}

/** Decides about a simple query that may be a DEALLOCATE. @returns FORWARD, REWRITE, NEED_MORE or PAUSED */
export function queryPacket(client: ClientSocket, buf: Buffer, off: number, end: number, len: number): Verdict {
  if (!preparedStatementsEnabled(client)) return Verdict.FORWARD;
  if (end - off < len) return Verdict.NEED_MORE;
  const what = queryDeallocation(client, buf, off, len);
  if (what === null) return Verdict.FORWARD;
  const server = client.link;
  const name = what.statement?.name ?? '';
  if (server?.requests?.hasNotes() && namedUnsure(client, server, PqMsg.Query, name, null))
    return holdPacket(client, server);
  // a statement that is already closed is unknown to the server too
  return what.statement?.closing ? Verdict.FORWARD : Verdict.REWRITE;
}
