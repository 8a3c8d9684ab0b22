/*
 * The client side of the protocol: reads the packets that arrive, decides about each, and forwards runs of packets to
 * the server in one piece.
 */

import { slogError, slogNoise, wantNoise } from '../base/log';
import { arena, native } from '../base/native';
import { getCachedTime } from '../base/time';
import { SslMode } from '../config/choices';
import { cf } from '../config/settings';
import { acceptCancelRequest, dropCanceled } from '../link/cancel';
import { findServer } from '../link/find-server';
import { disconnectClient } from '../link/objects';
import { handlePasswordPacket } from '../login/login';
import { takeProxyHeader } from '../login/proxy-protocol';
import { decideStartupPool, finishSetPool } from '../login/startup';
import { finishClientLogin } from '../login/welcome';
import { isUnixClient } from '../net/addr';
import { blockSource, keepForLater, keepInput, sbufIsEmpty, sbufPause, sendBytes } from '../net/sbuf';
import { sbufTlsAccept, tlsState } from '../net/tls';
import { type ClientSocket, type PartialPacket, type PgPool, type ServerSocket, SocketState } from '../pool/bouncer';
import { Dropping, LoginPhase } from '../pool/phases';
import { requestFullLoopMaint } from '../pool/pool';
import { ResponseAction } from '../pool/requests';
import { hasStarted, isDead, loginOf } from '../pool/socket';
import { count, type PgStats, Stat } from '../pool/stats';
import { upcalls } from '../pool/upcalls';
import { ADMIN_PACKET_MAX, LOGIN_PACKET_MAX } from '../wire/limits';
import { BACKENDKEY_LEN, BACKENDKEY_MAX, NEW_HEADER_LEN, Pkt, PqMsg } from '../wire/packets';
import { getHeader, hdr2hex, incompleteHeader, PktHdr, pktDesc } from '../wire/reader';
import { Verdict } from '../wire/verdict';
import { bulkEnd } from './bulk';
import { noteUnlisten } from './complete';
import { DEALLOCATE_MAX, executeDeallocate, mayDeallocate } from './deallocate';
import { queryPacket, requestAnswers, statementPacket, unnamedFound } from './inspect';
import { awaitText, holdBehindListen, noteRequest, tracksListen } from './listen';
import { appendRun, clearOutgoing, flushRun, outgoing, outgoingIsLarge } from './outgoing';
import { collectBytes, startCollect } from './partial-packet';
import { rewritePacket } from './prepared';
import { serverFlushed } from './server';
import { dropUnnamed, unnamedPacket } from './unnamed';

const hdr = new PktHdr();
/** Where the bytes being handled start in the arena. */
let deliveryStart = 0;
const SSL_ACCEPTED = Buffer.from('S');
const SSL_REFUSED = Buffer.from('N');
/** First byte of a TLS handshake. As the length of a startup packet it would mean hundreds of megabytes. */
const TLS_HANDSHAKE = 0x16;

/** The connection ended (length 0) or broke. */
export function clientRecvFailed(client: ClientSocket): void {
  // connecting and closing without sending anything is a monitoring probe, not an error
  const silent = client.state === SocketState.CL_LOGIN && !client.hasKept;
  client.vanished = client.leaving = true;
  disconnectClient(client, false, silent ? null : 'client unexpected eof');
}

function handlePacket(client: ClientSocket, off: number, end: number): Verdict {
  if (client.login?.proxyHeaderDue) {
    hdr.len = takeProxyHeader(client, arena, off, end);
    if (hdr.len > 0) return Verdict.CONSUMED;
    return isDead(client) ? Verdict.DISCONNECTED : Verdict.NEED_MORE;
  }
  if (incompleteHeader(arena, off, end)) {
    if (wantNoise()) slogNoise(client, 'C: got partial header, trying to wait a bit');
    return Verdict.NEED_MORE;
  }
  if (!getHeader(arena, off, end, cf.maxPacketSize, hdr)) {
    if (isDirectTls(client, off)) return acceptDirectTls(client, off, end);
    disconnectClient(client, true, `bad packet header: '${hdr2hex(arena, off, end)}'`);
    return Verdict.DISCONNECTED;
  }
  if (wantNoise()) slogNoise(client, `read pkt='${pktDesc(hdr.type)}' len=${hdr.len}`);
  client.requestTime = getCachedTime();
  return client.login !== null ? startupPacket(client, off, end) : workPacket(client, arena, off, end);
}

/**
 * Sends the rest of a packet whose beginning the server has, if another packet follows. That one may end the client, and
 * the server would read the next client's bytes as the rest of this one.
 * @returns the end of the packet; `pos` if there is no such rest; -1 if the server's connection broke
 */
function sendRest(client: ClientSocket, pos: number, end: number): number {
  const rest = client.pktRemain;
  if (rest === 0 || rest >= end - pos || client.pktSkip) return pos;
  client.pktRemain = 0;
  return flushRun(client, pos, pos + rest) ? pos + rest : -1;
}

/**
 * Handles bytes of a client, in the arena at [off, end): newly received, or buffered input that can now be handled.
 * Bytes that cannot be handled yet are given back to the loop.
 */
export function clientInput(client: ClientSocket, off: number, length: number): void {
  const end = off + length;
  deliveryStart = off;
  clearOutgoing();
  let pos = sendRest(client, off, end);
  // [run, pos) is to be forwarded in one piece
  let run = pos;
  while (pos >= 0 && pos < end) {
    if (client.pktRemain > 0) {
      const n = Math.min(client.pktRemain, end - pos);
      client.pktRemain -= n;
      if (client.pktSkip) {
        if (pos > run && !appendRun(client, run, pos)) return;
        run = pos + n;
        if (client.partial !== null && !collected(client, pos, n, end)) return;
      }
      pos += n;
      continue;
    }
    // PostgreSQL handles a request even if Terminate follows at once
    if (pos > off && arena[pos] === PqMsg.Terminate) {
      if (!flushRun(client, run, pos)) return;
      run = pos;
    }
    const verdict = handlePacket(client, pos, end);
    if (verdict === Verdict.FORWARD || verdict === Verdict.CONSUMED) {
      const bulk = verdict === Verdict.FORWARD && hdr.type === PqMsg.CopyData ? copyRows(client, pos, end) : pos;
      client.pktRemain = bulk > pos ? 0 : hdr.len;
      client.pktSkip = verdict === Verdict.CONSUMED;
      pos = bulk;
      continue;
    }
    if (verdict === Verdict.DISCONNECTED) return;
    if (verdict === Verdict.REWRITE) {
      if (pos > run && !appendRun(client, run, pos)) return;
      const len = hdr.len;
      const done = rewritePacket(client, hdr.type, arena, pos, len, outgoing);
      if (done < 0) return;
      pos += done;
      run = pos;
      client.pktRemain = len - done;
      client.pktSkip = false;
      if (outgoingIsLarge()) {
        if (!makeRoom(client, pos, end)) return;
        pos = run = sendRest(client, pos, end);
      }
      continue;
    }
    if (verdict === Verdict.REASSEMBLE) {
      startCollect(client, hdr.len);
      continue;
    }
    if (flushRun(client, run, pos)) keepRest(client, verdict, pos, end);
    return;
  }
  if (pos < 0 || !flushRun(client, run, pos)) return;
  // a server that was otherwise idle may have waited for these bytes
  const server = client.link;
  if (server?.ready && client.state === SocketState.CL_ACTIVE && sbufIsEmpty(server)) serverFlushed(server);
}

/** The end of the run of CopyData that begins at `pos`, whose first packet has been counted; `pos` if it is short. */
function copyRows(client: ClientSocket, pos: number, end: number): number {
  const bulk = bulkEnd(pos, hdr.len, end);
  if (bulk > pos) count((client.pool as PgPool).stats, Stat.CLIENT_BYTES, bulk - pos - hdr.len);
  return bulk;
}

/** Keeps the input from `pos` on, where a packet has to wait: for more bytes, or (PAUSED) for the packet's turn. */
function keepRest(client: ClientSocket, verdict: Verdict, pos: number, end: number): void {
  if (verdict === Verdict.PAUSED) {
    requestAnswers(client);
    keepForLater(client, pos, end);
  } else keepInput(client, pos, end);
}

/**
 * Sends the output after a rewrite made it large: few bytes may name a large statement. If the server cannot take it at
 * once, the client must wait.
 * @returns false if the input ends here
 */
function makeRoom(client: ClientSocket, pos: number, end: number): boolean {
  if (!flushRun(client, pos, pos)) return false;
  if (!client.blocked) return true;
  keepInput(client, pos, end);
  return false;
}

/**
 * Adds `n` bytes at `pos` to a packet being reassembled, and handles the packet when it is complete.
 * @returns false if the input ends here
 */
function collected(client: ClientSocket, pos: number, n: number, end: number): boolean {
  const partial = client.partial as PartialPacket;
  const packet = collectBytes(partial, arena, pos, n, client.pktRemain);
  if (client.pktRemain > 0) return true;
  const len = partial.length;
  getHeader(packet, 0, len, len, hdr);
  const type = hdr.type;
  const verdict = workPacket(client, packet, 0, len);
  if (verdict === Verdict.DISCONNECTED) return false;
  if (verdict === Verdict.PAUSED) {
    // handle the last bytes again when the client may continue
    partial.length -= n;
    client.pktRemain = n;
    if (flushRun(client, pos, pos)) keepRest(client, verdict, pos, end);
    return false;
  }
  client.partial = null;
  if (verdict === Verdict.CONSUMED) return true;
  const done = verdict === Verdict.REWRITE ? rewritePacket(client, type, packet, 0, len, outgoing) : 0;
  if (done < 0) return false;
  outgoing.putSlice(packet, done, len - done);
  return !outgoingIsLarge() || makeRoom(client, pos + n, end);
}

/** True if a client starts TLS directly, without SSLRequest. */
function isDirectTls(client: ClientSocket, off: number): boolean {
  if (arena[off] !== TLS_HANDSHAKE || client.tls || hasStarted(client)) return false;
  if (client.state !== SocketState.CL_LOGIN || client.loginUser !== null) return false;
  return tlsState.clientAcceptSslmode !== SslMode.DISABLED && !isUnixClient(client);
}

/**
 * Starts TLS with [off, end) as part of its handshake.
 * @returns Verdict.DISCONNECTED in any case: no packets are left
 */
function acceptDirectTls(client: ClientSocket, off: number, end: number): Verdict {
  slogNoise(client, 'Starting TLS handshake');
  if (!sbufTlsAccept(client, off, end - off)) disconnectClient(client, false, 'failed to accept SSL');
  return Verdict.DISCONNECTED;
}

/** Answers SSLRequest and starts TLS. */
function answerSslRequest(client: ClientSocket): Verdict {
  if (client.tls) {
    disconnectClient(client, false, 'SSL req inside SSL');
    return Verdict.DISCONNECTED;
  }
  if (tlsState.clientAcceptSslmode === SslMode.DISABLED || isUnixClient(client)) return refuseEncryption(client, 'SSL');
  slogNoise(client, 'C: req SSL');
  slogNoise(client, 'P: SSL ack');
  if (!sendBytes(client, SSL_ACCEPTED, 1)) {
    disconnectClient(client, false, 'failed to ack SSL');
    return Verdict.DISCONNECTED;
  }
  if (sbufTlsAccept(client, 0, 0)) return Verdict.CONSUMED;
  disconnectClient(client, false, 'failed to accept SSL');
  return Verdict.DISCONNECTED;
}

function startupPacket(client: ClientSocket, off: number, end: number): Verdict {
  const len = hdr.len;
  if (isDirectTls(client, off)) return acceptDirectTls(client, off, end);
  if (len > LOGIN_PACKET_MAX) {
    disconnectClient(client, true, `bad packet header: '${hdr2hex(arena, off, end)}'`);
    return Verdict.DISCONNECTED;
  }
  const type = hdr.type;
  // bytes sent along with the request are unprotected: they may have been injected (CVE-2021-3935)
  if (type === Pkt.SSLREQ && end - off > len) {
    disconnectClient(client, true, 'received unencrypted data after SSL request');
    return Verdict.DISCONNECTED;
  }
  if (type === Pkt.GSSENCREQ && end - off > len) {
    disconnectClient(client, true, 'received unencrypted data after GSSAPI encryption request');
    return Verdict.DISCONNECTED;
  }
  if (end - off < len) return Verdict.NEED_MORE;
  const { phase } = loginOf(client);
  if (phase === LoginPhase.EXTERNAL_AUTH) {
    // reading was resumed too early: PAM or LDAP has not decided yet
    sbufPause(client);
    return Verdict.PAUSED;
  }
  if (phase === LoginPhase.WELCOME || phase === LoginPhase.EXTERNAL_PASSED) return finishClientLogin(client);
  return handleStartupPacket(client, type, off + hdr.headerLen, off + len);
}

function refuseEncryption(client: ClientSocket, what: string): Verdict {
  slogNoise(client, `C: req ${what}`);
  if (sendBytes(client, SSL_REFUSED, 1)) return Verdict.CONSUMED;
  disconnectClient(client, false, `failed to nak ${what}`);
  return Verdict.DISCONNECTED;
}

/** True for the valid lengths of a cancel key, including that of 3.0. */
function isKeyLength(length: number): boolean {
  return length >= BACKENDKEY_LEN && length <= BACKENDKEY_MAX;
}

/** Handles one complete packet of a login, body in arena[body, end). */
function handleStartupPacket(client: ClientSocket, type: number, body: number, end: number): Verdict {
  switch (type) {
    case Pkt.SSLREQ:
      return answerSslRequest(client);
    case Pkt.GSSENCREQ:
      return refuseEncryption(client, 'GSS enc');
    case Pkt.STARTUP_V2:
      disconnectClient(client, true, 'old V2 protocol not supported');
      return Verdict.DISCONNECTED;
    case Pkt.STARTUP_V3:
    case Pkt.STARTUP_V32:
    case Pkt.STARTUP_V3_LATER:
      if (tlsState.clientAcceptSslmode >= SslMode.REQUIRE && !client.tls && !isUnixClient(client)) {
        disconnectClient(client, true, 'SSL required');
        return Verdict.DISCONNECTED;
      }
      if (hasStarted(client)) {
        disconnectClient(client, true, 'client re-sent startup pkt');
        return Verdict.DISCONNECTED;
      }
      if (loginOf(client).phase === LoginPhase.AUTH_QUERY_RESULT) return finishSetPool(client);
      return decideStartupPool(client, type, arena, body, end);
    case PqMsg.PasswordMessage:
      return handlePasswordPacket(client, arena, body, end);
    case Pkt.CANCEL:
      if (!isKeyLength(end - body) || hasStarted(client)) {
        disconnectClient(client, false, 'bad cancel request');
        return Verdict.DISCONNECTED;
      }
      if (!acceptCancelRequest(client, Buffer.from(arena.subarray(body, end)))) return Verdict.NEED_MORE;
      return isDead(client) ? Verdict.DISCONNECTED : Verdict.PAUSED;
    default:
      disconnectClient(client, false, 'bad packet');
      return Verdict.DISCONNECTED;
  }
}

function unknownPacket(client: ClientSocket, type: number): Verdict {
  slogError(client, `unknown pkt from client: ${type}/0x${type.toString(16)}`);
  disconnectClient(client, true, 'unknown pkt');
  return Verdict.DISCONNECTED;
}

/** Set by classify(): the packet may concern the unnamed statement. */
let unnamed = false;

/**
 * Decides about a packet of a logged-in client, before a server is assigned.
 * @returns FORWARD, REWRITE, or a final verdict
 */
function classify(client: ClientSocket, type: number, buf: Buffer, off: number, end: number, len: number): Verdict {
  unnamed = false;
  switch (type) {
    case PqMsg.Query:
      return classifyQuery(client, buf, off, end, len);
    case PqMsg.FunctionCall:
    case PqMsg.Sync:
    case PqMsg.Execute:
      return Verdict.FORWARD;
    case PqMsg.Flush:
      return flushPacket(client, len);
    case PqMsg.Parse:
    case PqMsg.Bind:
    case PqMsg.Describe:
    case PqMsg.Close: {
      if (client.db?.admin === true) return Verdict.FORWARD;
      const verdict = statementPacket(client, type, buf, off, end, len);
      unnamed = unnamedFound;
      return verdict;
    }
    case PqMsg.Terminate:
      // packets of the same delivery before this one may not have been forwarded yet
      client.leaving = buf === arena && off === deliveryStart;
      disconnectClient(client, false, 'client close request');
      return Verdict.DISCONNECTED;
    default:
      return unknownPacket(client, type);
  }
}

/** A Flush while no answer is outstanding has no effect. It would take a server, and no answer would release that. */
function flushPacket(client: ClientSocket, len: number): Verdict {
  const { db, link: server } = client;
  if (db?.admin === true) return Verdict.FORWARD;
  if (server !== null && (server.requests.count > 0 || !(server.ready || server.idleTx))) return Verdict.FORWARD;
  count((client.pool as PgPool).stats, Stat.CLIENT_BYTES, len);
  return Verdict.CONSUMED;
}

function classifyQuery(client: ClientSocket, buf: Buffer, off: number, end: number, len: number): Verdict {
  if (cf.disablePqexec) {
    slogError(client, 'client used "Query" packet type');
    disconnectClient(client, true, 'PQexec disallowed');
    return Verdict.DISCONNECTED;
  }
  if (client.db?.admin === true) return Verdict.FORWARD;
  if (tracksListen(client)) {
    const verdict = awaitText(end - off, len);
    if (verdict !== Verdict.FORWARD) return verdict;
  }
  if (len > DEALLOCATE_MAX) return Verdict.FORWARD;
  if (!mayDeallocate(buf, off + NEW_HEADER_LEN, Math.min(end, off + len), end - off >= len)) return Verdict.FORWARD;
  return queryPacket(client, buf, off, end, len);
}

/** Starts the clocks of the query and of the transaction with the first packet. */
function startClocks(client: ClientSocket, stats: PgStats): void {
  if (client.queryStart === 0) {
    client.queryStart = getCachedTime();
    count(stats, Stat.QUERY_COUNT, 1);
  }
  if (client.xactStart === 0) {
    client.xactStart = client.queryStart;
    count(stats, Stat.XACT_COUNT, 1);
  }
}

/**
 * Handles a packet of a logged-in client, which may not have arrived completely: decides whether it goes to a server,
 * and to which.
 * @param buf the arena, or a reassembled packet
 */
function workPacket(client: ClientSocket, buf: Buffer, off: number, end: number): Verdict {
  const type = hdr.type;
  const len = hdr.len;
  if (client.dropping !== Dropping.NONE) return dropCanceled(client, type, len);
  if (type === PqMsg.CopyData || type === PqMsg.CopyDone || type === PqMsg.CopyFail)
    return copyPacket(client, type, len);
  if (client.listening !== null) {
    const held = holdBehindListen(client, client.listening, type);
    if (held !== null) return held;
  }
  const verdict = classify(client, type, buf, off, end, len);
  if (verdict !== Verdict.FORWARD && verdict !== Verdict.REWRITE) return verdict;

  const aboutUnnamed = unnamed;
  const pool = client.pool as PgPool;
  startClocks(client, pool.stats);
  if (pool.db.admin) return adminPacket(client, type, len, off, end);
  if (client.link === null && !findServer(client)) return isDead(client) ? Verdict.DISCONNECTED : Verdict.PAUSED;
  count(pool.stats, Stat.CLIENT_BYTES, len);
  const server = client.link as ServerSocket;
  server.ready = false;
  server.idleTx = false;
  if (server.batch?.recording) server.batch.note(type === PqMsg.Sync);
  if (server.leftovers !== null) noteRequest(client, type, buf, off, end, len);
  if (type === PqMsg.Query) dropUnnamed(client, server);
  if (verdict === Verdict.REWRITE) return verdict;
  if (aboutUnnamed) return unnamedPacket(client, type, buf, off, end, len);
  if (type === PqMsg.Execute && client.deallocating !== null) executeDeallocate(client, server);
  else if (type === PqMsg.Query && server.leftovers !== null)
    server.requests.push(type, ResponseAction.FORWARD, noteUnlisten(server, buf, off, end, len));
  else if (type !== PqMsg.Flush) server.requests.push(type, ResponseAction.FORWARD);
  return Verdict.FORWARD;
}

/** Handles a packet of a COPY. Outside of one it is dropped: the server would ignore it, or worse: see mayCopy(). */
function copyPacket(client: ClientSocket, type: number, len: number): Verdict {
  const server = client.link;
  // without a server it is a late packet of a failed COPY
  if (server === null) return Verdict.CONSUMED;
  count((client.pool as PgPool).stats, Stat.CLIENT_BYTES, len);
  if (!server.requests.mayCopy()) return Verdict.CONSUMED;
  server.requests.markCopy(type);
  server.batch?.drop();
  return Verdict.FORWARD;
}

/** Handles a packet for the console, which needs it complete. */
function adminPacket(client: ClientSocket, type: number, len: number, off: number, end: number): Verdict {
  if (len > ADMIN_PACKET_MAX) {
    disconnectClient(client, true, 'admin query too long');
    return Verdict.DISCONNECTED;
  }
  if (end - off < len) return Verdict.NEED_MORE;
  // answers of this turn are still being sent: one chunk may hold thousands of short commands
  if (client.blocked || !client.reading) return Verdict.PAUSED;
  requestFullLoopMaint();
  const verdict = upcalls.admin.handleClient(client, type, arena, off + NEW_HEADER_LEN, off + len);
  if (isDead(client)) return Verdict.DISCONNECTED;
  if (verdict !== Verdict.CONSUMED) return verdict;
  // a client that reads its answers slowly must not pile them up here
  if (native.unsent(client.handle) > 0) blockSource(client);
  return Verdict.CONSUMED;
}
