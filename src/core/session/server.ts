/*
 * The server side of the protocol: reads the packets that arrive, tracks the state of the connection, and forwards runs
 * of packets to the client in one piece. Releases the server when its work is done.
 */

import { logError, slogDebug, slogError, slogNoise, slogWarning, wantNoise } from '../base/log';
import { arena, native } from '../base/native';
import { getCachedTime } from '../base/time';
import { PoolMode, TargetSession } from '../config/choices';
import { cf } from '../config/settings';
import { applyRecodedVars, varsRejected } from '../link/find-server';
import { keepsClient } from '../link/leftovers';
import { continueRecovery, disconnectClient, disconnectServer, LoginOutcome, releaseServer } from '../link/objects';
import { noteServerError } from '../link/target-session';
import { handleAuthQueryResponse } from '../login/auth-query';
import { handleForkError, handleServerStartup, handleSslchar } from '../login/server-login';
import { connectionRefused } from '../login/server-protocol';
import { blockSource, inPacket, keepInput, sbufContinue, sbufIsEmpty } from '../net/sbuf';
import { connectionPoolMode } from '../pool/admission';
import { type ClientSocket, type ServerSocket, SocketState } from '../pool/bouncer';
import { Recovery, ServerLoginPhase } from '../pool/phases';
import { ANSWERED, ResponseAction } from '../pool/requests';
import { isDead } from '../pool/socket';
import { clearRequestsUntil, serversChange, settleNote } from '../pool/statements';
import { SERVER_PACKET_MAX } from '../wire/limits';
import { writeCommandComplete } from '../wire/messages';
import { NEW_HEADER_LEN, PqMsg, TxStatus } from '../wire/packets';
import { PktBuf } from '../wire/pktbuf';
import {
  getHeader,
  incompleteHeader,
  isFatal,
  PktHdr,
  parseServerError,
  pktDesc,
  serverErrorLine,
} from '../wire/reader';
import { Verdict } from '../wire/verdict';
import { restoredAfterReset } from './after-reset';
import { bulkEnd, bulkOfServer } from './bulk';
import { Completion, completion, endCopy, queryEnded } from './complete';
import { countBytes, countTimes } from './counters';
import { resumeHeldPacket } from './inspect';
import { Notification, serverNotification } from './listen';
import { listeningPacket } from './listening';
import { loadParameter } from './parameters';
import { answerDueFakes } from './prepared';
import { ErrorFate, READY_LEN, renamedError, statementError } from './repair';
import { refuse, replace, replacedLength, sendReplacement } from './replacement';
import { testedQuery, testFailed } from './tested';

const hdr = new PktHdr();

/** The connection ended or broke. */
export function serverRecvFailed(server: ServerSocket): void {
  if (server.state === SocketState.SV_ACTIVE_CANCEL)
    disconnectServer(server, false, 'successfully sent cancel request');
  else if (!connectionRefused(server))
    disconnectServer(server, false, 'server conn crashed?', LoginOutcome.HOST_FAILED);
}

/** Sends [off, end) to the server's client. @returns false if that failed */
function forwardRun(server: ServerSocket, off: number, end: number): boolean {
  const client = server.link as ClientSocket;
  const res = native.send(client.handle, off, end - off);
  if (res === 0) return true;
  if (res < 0) {
    disconnectClient(client, false, 'unexpected eof');
    return false;
  }
  blockSource(server);
  return true;
}

function handlePacket(server: ServerSocket, off: number, end: number): Verdict {
  if (incompleteHeader(arena, off, end)) {
    if (wantNoise()) slogNoise(server, 'S: got partial header, trying to wait a bit');
    return Verdict.NEED_MORE;
  }
  const loggingIn = server.state === SocketState.SV_LOGIN;
  if (loggingIn && server.login?.phase !== ServerLoginPhase.CONNECT_QUERY && handleForkError(server, arena, off, end))
    return Verdict.DISCONNECTED;
  if (!getHeader(arena, off, end, cf.maxPacketSize, hdr)) {
    disconnectServer(server, true, 'bad pkt header');
    return Verdict.DISCONNECTED;
  }
  if (wantNoise()) slogNoise(server, `read pkt='${pktDesc(hdr.type)}', len=${hdr.len}`);
  server.requestTime = getCachedTime();
  if (!loggingIn && server.state !== SocketState.SV_LISTEN) return workPacket(server, off, end);

  const len = hdr.len;
  const verdict = wholePacket(server, off, end);
  if (verdict !== Verdict.CONSUMED) return verdict;
  return loggingIn
    ? handleServerStartup(server, hdr.type, arena, off + NEW_HEADER_LEN, off + len)
    : listeningPacket(server, hdr.type, off, len);
}

/** CONSUMED if the whole packet has arrived, else NEED_MORE; DISCONNECTED if it exceeds SERVER_PACKET_MAX. */
function wholePacket(server: ServerSocket, off: number, end: number): Verdict {
  if (hdr.len > SERVER_PACKET_MAX) {
    slogError(server, `too large packet '${pktDesc(hdr.type)}' from server: ${hdr.len}`);
    disconnectServer(server, true, 'too large packet');
    return Verdict.DISCONNECTED;
  }
  return end - off < hdr.len ? Verdict.NEED_MORE : Verdict.CONSUMED;
}

/**
 * Sends the rest of a packet whose beginning the client has, if another packet follows. That one may end the client,
 * and an error of the pooler must not follow a part of a row.
 * @returns the end of the packet; `off` if there is no such rest; -1 if the input ends here
 */
function forwardRest(server: ServerSocket, off: number, end: number): number {
  const rest = server.pktRemain;
  if (rest === 0 || rest >= end - off || server.pktSkip) return off;
  server.pktRemain = 0;
  return forwardRun(server, off, off + rest) && answerDueFakes(server) ? off + rest : -1;
}

/** Handles bytes of a server, in the arena at [off, off + length). */
export function serverInput(server: ServerSocket, off: number, length: number): void {
  if (server.login !== null && server.login.phase === ServerLoginPhase.SSL_ANSWER) {
    handleSslchar(server, off, length);
    return;
  }
  if (server.holding) resumeHeldPacket(server);
  const end = off + length;
  let pos = forwardRest(server, off, end);
  // [run, pos) is to be forwarded in one piece
  let run = pos;
  const requests = server.requests;
  while (pos >= 0 && pos < end) {
    if (server.pktRemain > 0) {
      const n = Math.min(server.pktRemain, end - pos);
      server.pktRemain -= n;
      if (server.pktSkip) {
        if (pos > run && !forwardRun(server, run, pos)) return;
        run = pos + n;
      }
      pos += n;
      if (server.pktRemain === 0 && requests.fakes > 0 && requests.firstAction() === ResponseAction.FAKE) {
        if (pos > run && !forwardRun(server, run, pos)) return;
        run = pos;
        if (!answerDueFakes(server)) return;
      }
      continue;
    }
    const verdict = handlePacket(server, pos, end);
    if (verdict === Verdict.FORWARD || verdict === Verdict.CONSUMED) {
      const inBulk = verdict === Verdict.FORWARD && bulkOfServer(hdr.type) && requests.fakes === 0;
      const bulk = inBulk ? bulkEnd(pos, hdr.len, end) : pos;
      if (bulk > pos) {
        countBytes(server, bulk - pos - hdr.len);
        pos = bulk;
        continue;
      }
      server.pktRemain = hdr.len;
      server.pktSkip = verdict === Verdict.CONSUMED;
      continue;
    }
    if (verdict === Verdict.DISCONNECTED) return;
    if (pos > run && !forwardRun(server, run, pos)) return;
    run = pos;
    if (verdict === Verdict.REWRITE) {
      pos += replacedLength();
      run = pos;
      if (!sendReplacement(server)) return;
      continue;
    }
    keepInput(server, pos, end);
    return;
  }
  if (pos < 0 || (pos > run && !forwardRun(server, run, pos))) return;
  if (isDead(server) || !sbufIsEmpty(server)) return;
  // the client must get the pooler's error together with the server's last message; the stream may end much later
  if (server.dying) serverRecvFailed(server);
  else serverFlushed(server);
}

/**
 * Called when everything received from the server has been sent to its client (PgBouncer's SBUF_EV_FLUSH): releases a
 * server that is ready.
 */
export function serverFlushed(server: ServerSocket): void {
  if (server.recovery !== Recovery.NONE) {
    continueRecovery(server);
    return;
  }
  if (!server.ready) return;
  const client = server.link;
  if (server.settingVars && client !== null) {
    if (server.recoding) {
      applyRecodedVars(server, client);
      return;
    }
    // the server may spell a value in its own way: the client adopts that spelling
    client.vars.adoptSpelling(server.vars, (name, from, to) => {
      slogDebug(client, `varcache_set_canonical: setting ${name} to its canonical version ${from} -> ${to}`);
    });
    server.settingVars = false;
    server.varsUndo = null;
    if (wantNoise()) slogNoise(server, 'done setting vars unpausing client');
    sbufContinue(client);
    return;
  }
  const state = server.state;
  if (state !== SocketState.SV_TESTED && !server.resetting && keepsClient(server)) return;
  server.resetting = false;
  switch (state) {
    case SocketState.SV_ACTIVE:
    case SocketState.SV_ACTIVE_CANCEL:
    case SocketState.SV_TESTED:
      if (client !== null) {
        if (server.requests.count > 0) return;
        // the server would read the next client's bytes as the rest of this packet
        if (inPacket(client)) return;
      }
      releaseServer(server);
      return;
    case SocketState.SV_BEING_CANCELED:
    case SocketState.SV_IDLE:
    case SocketState.SV_USED:
      return;
    default:
      slogWarning(server, `EV_FLUSH with state=${state}`);
  }
}

/** Set while a packet is handled that answers a request of the pooler, not of the client. */
let ignorePacket = false;

/** Removes the oldest request if it is of this type. */
function popRequest(server: ServerSocket, type: number): boolean {
  const requests = server.requests;
  if (requests.count === 0) return false;
  const action = requests.firstAction();
  if (action === ResponseAction.FAKE) {
    slogWarning(server, `pop_outstanding_request: unexpected fake request of type ${pktDesc(requests.firstType())}`);
    return false;
  }
  if (requests.firstType() !== type) return false;
  ignorePacket = action === ResponseAction.SKIP;
  const note = requests.firstNote();
  if (note !== null) settleNote(server, note);
  requests.shift();
  return true;
}

/** The client's answer to a DEALLOCATE that was not sent to the server. */
const deallocateComplete = new PktBuf();
writeCommandComplete(deallocateComplete, 'DEALLOCATE');

/** A query of the pooler failed. @returns NEED_MORE until the whole packet, with the reason, has arrived */
function ownQueryFailed(server: ServerSocket, off: number, end: number): Verdict {
  const len = hdr.len;
  const verdict = wholePacket(server, off, end);
  if (verdict !== Verdict.CONSUMED) return verdict;
  testFailed(server, off, len);
  return Verdict.DISCONNECTED;
}

/** What the packet being handled says about the server. */
const packetState = {
  /** idle outside a transaction */
  ready: false,
  /** idle in a transaction */
  idleTx: false,
  /** the packet answers no request */
  asynchronous: false,
};

/** The packet may come at any time, also between two requests: what is known about the server remains true. */
function keepStatus(server: ServerSocket): void {
  packetState.idleTx = server.idleTx;
  packetState.ready = server.ready;
  packetState.asynchronous = true;
}

/** Handles a packet of a logged-in server, which may not have arrived completely. */
function workPacket(server: ServerSocket, off: number, end: number): Verdict {
  const type = hdr.type;
  const len = hdr.len;
  ignorePacket = false;
  packetState.ready = packetState.idleTx = packetState.asynchronous = false;
  // the table has no types of startup packets
  const request = ANSWERED[type] ?? 0;
  if (request !== 0) {
    // the server may answer that packet: see mayCopy()
    if (request === PqMsg.Execute && server.requests.hasStrayCopy()) server.closeNeeded = true;
    popRequest(server, request);
    return deliver(server, off, end, len);
  }
  switch (type) {
    case PqMsg.DataRow:
    case PqMsg.CopyData:
    case PqMsg.CopyOutResponse:
    case PqMsg.ParameterDescription:
    case PqMsg.CopyDone:
    case PqMsg.CopyFail:
    case PqMsg.FunctionCallResponse:
      break;
    case PqMsg.ReadyForQuery: {
      const verdict = readyForQuery(server, off, end);
      if (verdict !== Verdict.FORWARD) return verdict;
      if (server.changedVars === 0 || !packetState.ready) break;
      const instead = restoredAfterReset(server);
      const delivered = deliver(server, off, end, len);
      return instead === null || delivered !== Verdict.FORWARD ? delivered : replace(instead, READY_LEN);
    }
    case PqMsg.NoticeResponse:
      keepStatus(server);
      break;
    case PqMsg.ParameterStatus: {
      const verdict = wholePacket(server, off, end);
      if (verdict !== Verdict.CONSUMED) return verdict;
      keepStatus(server);
      if (!loadParameter(server, off + NEW_HEADER_LEN, off + len)) return Verdict.DISCONNECTED;
      break;
    }
    case PqMsg.ErrorResponse:
      return errorResponse(server, off, end);
    case PqMsg.CommandComplete:
      return commandComplete(server, off, end);
    case PqMsg.NotificationResponse:
      keepStatus(server);
      return notification(server, off, end);
    case PqMsg.CopyInResponse:
    case PqMsg.CopyBothResponse:
      slogDebug(server, 'COPY started');
      server.copyMode = true;
      break;
    default:
      slogError(server, `unknown pkt: '${pktDesc(type)}'`);
      disconnectServer(server, true, 'unknown pkt');
      return Verdict.DISCONNECTED;
  }
  return deliver(server, off, end, len);
}

/** A notification on a server that does not listen for its pool. */
function notification(server: ServerSocket, off: number, end: number): Verdict {
  const fate = serverNotification(server, off, end, hdr.len);
  if (fate === Notification.MORE) return Verdict.NEED_MORE;
  ignorePacket = fate === Notification.DROP;
  return deliver(server, off, end, hdr.len);
}

/** @returns FORWARD, or a final verdict */
function readyForQuery(server: ServerSocket, off: number, end: number): Verdict {
  if (end - off < NEW_HEADER_LEN + 1) return Verdict.NEED_MORE;
  const status = arena[off + NEW_HEADER_LEN];
  if (!popReadyRequest(server) && server.queryFailed) clearRequestsUntil(server, PqMsg.Sync, PqMsg.Sync);
  const left = server.leftovers;
  if (left !== null && queryEnded(server, left, status === TxStatus.Idle)) return refuse(READY_LEN);
  server.queryFailed = false;
  if (server.batch?.recording) server.batch.drop();
  server.failedTx = status === TxStatus.Failed;
  if (status === TxStatus.Idle) {
    packetState.ready = true;
    server.requests.markReady();
    return Verdict.FORWARD;
  }
  if (server.state === SocketState.SV_TESTED && server.recovery !== Recovery.DRAIN) {
    disconnectServer(server, true, `${testedQuery(server)} left a transaction open`);
    return Verdict.DISCONNECTED;
  }
  if (connectionPoolMode(server) === PoolMode.STMT) {
    disconnectServer(server, true, 'transaction blocks not allowed in statement pooling mode');
    return Verdict.DISCONNECTED;
  }
  packetState.idleTx = status === TxStatus.InTransaction || status === TxStatus.Failed;
  return Verdict.FORWARD;
}

function commandComplete(server: ServerSocket, off: number, end: number): Verdict {
  const len = hdr.len;
  const fate = completion(server, off, end, len);
  if (fate === Completion.MORE) return Verdict.NEED_MORE;
  if (fate === Completion.REFUSE) return refuse(len);
  if (server.copyMode) endCopy(server, false);
  popRequest(server, PqMsg.Execute);
  const verdict = deliver(server, off, end, len);
  return fate === Completion.DEALLOCATE && verdict === Verdict.FORWARD ? replace(deallocateComplete, len) : verdict;
}

function errorResponse(server: ServerSocket, off: number, end: number): Verdict {
  if (server.state === SocketState.SV_TESTED && server.recovery !== Recovery.DRAIN)
    return ownQueryFailed(server, off, end);
  if (!server.settingVars) return workError(server, off, end);
  const verdict = wholePacket(server, off, end);
  if (verdict !== Verdict.CONSUMED) return verdict;
  const bodyEnd = off + hdr.len;
  const error = parseServerError(arena, off + NEW_HEADER_LEN, bodyEnd);
  logError(serverErrorLine('varcache_apply failed', error));
  countBytes(server, hdr.len);
  varsRejected(server, error, isFatal(arena, off + NEW_HEADER_LEN, bodyEnd));
  return isDead(server) ? Verdict.DISCONNECTED : Verdict.CONSUMED;
}

/** Handles an error in answer to a logged-in client's request. */
function workError(server: ServerSocket, off: number, end: number): Verdict {
  const len = hdr.len;
  const between = server.link !== null && server.ready && server.requests.count === 0;
  if (between && !keepsClient(server)) {
    const verdict = wholePacket(server, off, end);
    if (verdict !== Verdict.CONSUMED) return verdict;
    if (isFatal(arena, off + NEW_HEADER_LEN, off + len)) {
      // the session ends between two transactions, which does not concern the client: it gets another server
      server.closeNeeded = true;
      return Verdict.CONSUMED;
    }
  }
  let fate = ErrorFate.FORWARD;
  if (server.state === SocketState.SV_ACTIVE && server.link?.state === SocketState.CL_ACTIVE && serversChange(server)) {
    if (end - off < len && len <= SERVER_PACKET_MAX) return Verdict.NEED_MORE;
    if (end - off >= len) fate = statementError(server, off, end, len);
  }
  switch (fate) {
    case ErrorFate.MORE:
      return Verdict.NEED_MORE;
    case ErrorFate.DEAD:
      return Verdict.DISCONNECTED;
    case ErrorFate.REPEATED:
      countBytes(server, len + READY_LEN);
      return replace(null, len + READY_LEN);
    default:
  }
  if (server.copyMode) endCopy(server, true);
  server.queryFailed = true;
  if (end - off >= len) {
    server.dying = isFatal(arena, off + NEW_HEADER_LEN, off + len);
    if (server.pool.db.config.targetSession !== TargetSession.ANY)
      noteServerError(server, parseServerError(arena, off + NEW_HEADER_LEN, off + len).sqlstate);
  }
  const verdict = deliver(server, off, end, len);
  return fate === ErrorFate.RENAME && verdict === Verdict.FORWARD ? replace(renamedError(), len) : verdict;
}

/** Removes the oldest request if ReadyForQuery answers it: a Sync, a Query or a FunctionCall. */
function popReadyRequest(server: ServerSocket): boolean {
  return popRequest(server, PqMsg.Sync) || popRequest(server, PqMsg.Query) || popRequest(server, PqMsg.FunctionCall);
}

/** Decides whether a packet is forwarded, and counts it. */
function deliver(server: ServerSocket, off: number, end: number, len: number): Verdict {
  const { ready, idleTx } = packetState;
  const client = server.link;
  if (client !== null && client.state === SocketState.CL_LOGIN && !server.settingVars) {
    const verdict = wholePacket(server, off, end);
    if (verdict !== Verdict.CONSUMED) return verdict;
    server.idleTx = idleTx;
    server.ready = ready;
    countBytes(server, len);
    return handleAuthQueryResponse(server, hdr.type, arena, off + NEW_HEADER_LEN, off + len);
  }
  server.idleTx = idleTx;
  server.ready = ready;
  countBytes(server, len);
  if (server.settingVars) return Verdict.CONSUMED;
  if (client === null) {
    if (server.state !== SocketState.SV_TESTED) {
      slogWarning(server, `got packet '${pktDesc(hdr.type)}' from server when not linked`);
    }
    return Verdict.CONSUMED;
  }
  if (ignorePacket) {
    if (wantNoise()) slogNoise(server, `not forwarding packet with type '${pktDesc(hdr.type)}' from server`);
    return Verdict.CONSUMED;
  }
  if ((ready || idleTx) && server.requests.count === 0) countTimes(server, client, ready, packetState.asynchronous);
  // the listening connection's answer releases it: see listen-share.ts
  return ready && !packetState.asynchronous && client.listening?.waiting ? Verdict.CONSUMED : Verdict.FORWARD;
}
