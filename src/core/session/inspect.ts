/*
 * What a client's packet has to do with prepared statements, before the client gets a server: whether it passes, is rewritten
 * (prepared.ts, unnamed.ts, deallocate.ts), or has to wait because the answers to the client's own requests decide what it
 * means. Called by client.ts with every Parse, Bind, Describe, Close, and with queries that may deallocate.
 */

import { slogDebug, slogError, slogNoise, wantNoise } from '../base/log';
import { cf } from '../config/settings';
import { disconnectClient } from '../link/objects';
import { sbufContinue, sbufPause, sendBytes } from '../net/sbuf';
import type { ClientSocket, PgPool, ServerSocket } from '../pool/bouncer';
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

/** What inspectPrepared found out about a packet. */
const enum Inspect {
  /** not about a statement: passes as it is */
  IGNORE,
  /** about the unnamed statement */
  UNNAMED,
  /** about a named statement, and enough of it is here */
  HANDLE,
  /** more of it is needed to know */
  MORE,
  /** about a named statement, and all of it is needed */
  WHOLE,
  /** all of it is here and it makes no sense */
  BROKEN,
}

/**
 * Looks whether Parse, Bind, Describe or Close names a statement.
 * @param off @param end the bytes that are here, from the packet's first on; may be less or more than the packet
 * @param len of the whole packet, header included
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
  // of a Bind only the names are needed; its parameters may be many
  return whole || type === PqMsg.Bind ? Inspect.HANDLE : Inspect.WHOLE;
}

/* ---- waiting for answers ---- */

/** True while what the client's requests did to its named statements is open: it depends on answers that have not come. */
function namedUnsure(
  client: ClientSocket,
  server: ServerSocket,
  type: number,
  name: string,
  parsed: PgPreparedStatement | null,
): boolean {
  const requests = server.requests;
  // behind an error the server passes over everything up to the Sync: the packet means nothing
  if (server.queryFailed && !requests.hasSync()) return false;
  if (requests.hasNote(NoteKind.DEALLOCATE)) return true;
  const statement = client.statements?.get(name);
  if (type === PqMsg.Close) return false;
  const ps = type === PqMsg.Parse ? parsed : (statement?.ps ?? null);
  if (ps !== null && requests.mayChange(ps)) return true;
  if (statement === undefined) return false;
  // what fails in front of it in the same part of the pipeline has the server pass over this packet too
  if (statement.pending && statement.segment !== requests.segment) return true;
  // before the client is told that its name is in use, everything is answered that might have freed the name
  return type === PqMsg.Parse && !statement.closing && !server.copyMode;
}

/** Has the client's packet wait for the next answers of its server. */
function holdPacket(client: ClientSocket, server: ServerSocket): Verdict {
  slogDebug(client, 'waiting for answers about prepared statements');
  server.holding = true;
  sbufPause(client);
  return Verdict.PAUSED;
}

/** Everything in front of a packet is sent: asks for the answers that it waits for, if it waits for answers. */
export function askForAnswers(client: ClientSocket): void {
  const server = client.link;
  if (server === null || !server.holding) return;
  const requests = server.requests;
  if (!requests.owesSync() || server.flushTotal === requests.total) return;
  server.flushTotal = requests.total;
  sendBytes(server, PACKET_FLUSH, PACKET_FLUSH.length);
}

/** Answers of a server arrive: its client's packet that waits for them is looked at again when they are handled. */
export function letGo(server: ServerSocket): void {
  server.holding = false;
  if (server.link !== null) sbufContinue(server.link);
}

/* ---- packets ---- */

/**
 * A packet about a prepared statement of which more is needed.
 * @param whole all of it is; else only the names in front
 */
function awaitMore(client: ClientSocket, type: number, len: number, avail: number, whole: boolean): Verdict {
  if ((whole ? len : avail) < COLLECT_MIN) return Verdict.NEED_MORE;
  if (len <= PREPARED_PACKET_MAX) return Verdict.REASSEMBLE;
  slogError(client, `too large packet '${pktDesc(type)}' from client: ${len}`);
  disconnectClient(client, true, 'too large packet');
  return Verdict.DISCONNECTED;
}

/** True when a packet is a Parse, all of it here, that deallocates a statement. */
function isDeallocateParse(client: ClientSocket, buf: Buffer, off: number, len: number): boolean {
  const query = off + NEW_HEADER_LEN + 1;
  return mayDeallocate(buf, query, off + len, true) && parseDeallocation(client, buf, off, len) !== null;
}

/** A packet about the unnamed statement: FORWARD = it goes to unnamedPacket() when the client has a server. */
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
    if (!whole || len > DEALLOCATE_MAX || !isDeallocateParse(client, buf, off, len)) return Verdict.FORWARD;
    const what = parseDeallocation(client, buf, off, len);
    const name = what?.statement?.name ?? '';
    if (server?.requests?.hasNotes() && namedUnsure(client, server, type, name, null)) {
      return holdPacket(client, server);
    }
    return what?.statement?.closing ? Verdict.FORWARD : Verdict.REWRITE;
  }
  return server !== null && type !== PqMsg.Close && unnamedUnsure(server)
    ? holdPacket(client, server)
    : Verdict.FORWARD;
}

/** What statementPacket() found: set when it answers FORWARD. */
export let unnamedFound = false;

/**
 * Parse, Bind, Describe or Close of a logged-in client.
 * @returns FORWARD (with unnamedFound), REWRITE, or what client.ts has to do at once
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
  if (cf.maxPreparedStatements === 0) return namelessOnly(client, type, found, end - off, len);
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
      const parsed = body === null ? null : findPreparedStatement(body);
      if (namedUnsure(client, server, type, nameOf(type, buf, off), parsed)) return holdPacket(client, server);
    }
  }
  if (type !== PqMsg.Close) return Verdict.REWRITE;
  const stats = (client.pool as PgPool).stats;
  count(stats, Stat.CLIENT_BYTES, len);
  return closeStatement(client, buf, off);
}

/** Without max_prepared_statements a named statement passes as it is, and so does what the server will not understand. */
function namelessOnly(client: ClientSocket, type: number, found: Inspect, avail: number, len: number): Verdict {
  return found === Inspect.MORE ? awaitMore(client, type, len, avail, false) : Verdict.FORWARD;
}

/** A simple query that may be a DEALLOCATE. @returns FORWARD, REWRITE, MORE or WAIT */
export function queryPacket(client: ClientSocket, buf: Buffer, off: number, end: number, len: number): Verdict {
  if (!preparedStatementsEnabled(client)) return Verdict.FORWARD;
  if (end - off < len) return Verdict.NEED_MORE;
  const what = queryDeallocation(client, buf, off, len);
  if (what === null) return Verdict.FORWARD;
  const server = client.link;
  const name = what.statement?.name ?? '';
  if (server?.requests?.hasNotes() && namedUnsure(client, server, PqMsg.Query, name, null))
    return holdPacket(client, server);
  // one that is closed already is unknown to the server too
  return what.statement?.closing ? Verdict.FORWARD : Verdict.REWRITE;
}
