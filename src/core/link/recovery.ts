/*
 * Recovers a server whose client has left in the middle of a query or a transaction. The query is canceled, its answers
 * are dropped, and the transaction is rolled back. objects.ts begins the recovery, and session/server.ts continues it
 * when answers have arrived. maint.ts closes a server that takes longer than server_recovery_timeout.
 */

import { shutdownForcedAt } from '../base/lifecycle';
import { slogDebug, wantDebug } from '../base/log';
import { getCachedTime, USEC } from '../base/time';
import { cf } from '../config/settings';
import { inPacket, sbufIsEmpty, sendBytes, sendPacket, unblockSource } from '../net/sbuf';
import { type ClientSocket, Replication, type ServerSocket, SocketState } from '../pool/bouncer';
import { Recovery } from '../pool/phases';
import { ResponseAction } from '../pool/requests';
import { addCancel, cancelCount } from '../pool/socket';
import { changeClientState, changeServerState, newOwnRequest } from '../pool/states';
import { PACKET_SYNC, writeQuery } from '../wire/messages';
import { PqMsg } from '../wire/packets';
import { pktbufTemp } from '../wire/pktbuf';

/** What to do with a server that is being recovered. */
export const enum RecoveryStep {
  WAIT,
  /** it is idle: release it */
  DONE,
  /** it cannot be recovered: close it */
  FAILED,
}

/** Longest time for canceling all queries when shutdown_timeout has passed. usec */
export const FORCED_TIME_MAX = 5 * USEC;

/** A server that owes the rest of an answer has so long, whatever server_recovery_timeout is. usec */
export const RECOVERY_TIME_MIN = 1 * USEC;

/** @returns usec, 0 = a server whose client leaves is closed */
export function recoveryTimeout(): number {
  return shutdownForcedAt() > 0 ? FORCED_TIME_MAX : cf.serverRecoveryTimeout;
}

/**
 * True if a server without its client gets to the end of its work. It does not inside COPY FROM STDIN, whose data is
 * missing, and not if the client's packets have not all been sent to the server.
 * @param client the client that is leaving
 */
export function isRecoverable(server: ServerSocket, client: ClientSocket): boolean {
  if (recoveryTimeout() <= 0 || !client.leaving || inPacket(client)) return false;
  if (server.state !== SocketState.SV_ACTIVE || server.replication !== Replication.NONE) return false;
  if (server.closeNeeded || server.dying || server.settingVars || server.copyMode) return false;
  // no answer of the server would remove a request whose answer is made up
  return server.requests.fakes === 0;
}

function requestCancel(server: ServerSocket): void {
  const req = newOwnRequest();
  req.connectTime = req.requestTime = getCachedTime();
  req.pool = server.pool;
  req.loginUser = server.loginUser;
  req.remoteAddr = server.localAddr;
  addCancel(server, req);
  // the janitor launches its connection at the end of this turn
  changeClientState(req, SocketState.CL_WAITING_CANCEL);
}

/**
 * Begins the recovery of a server that has been unlinked from its client. It must be recoverable.
 * @returns false if the connection is broken
 */
export function beginRecovery(server: ServerSocket): boolean {
  if (wantDebug()) slogDebug(server, 'recovering: its client has left');
  const { requests } = server;
  if (requests.count > 0) requestCancel(server);
  server.recovery = Recovery.DRAIN;
  server.recoveryStart = getCachedTime();
  server.holding = false;
  server.unnamedSeq = 0;
  server.batch?.drop();
  // the rest of a packet that was being forwarded
  if (server.pktRemain > 0) server.pktSkip = true;
  changeServerState(server, SocketState.SV_TESTED);
  if (server.blocked) unblockSource(server);
  // all answers of an unfinished pipeline may have arrived already
  const unfinished = requests.owesSync() || (requests.count === 0 && !server.idleTx && !server.ready);
  return !unfinished || endPipeline(server);
}

/**
 * Ends a pipeline that has no Sync yet, without committing it: Sync alone would. If the pipeline has failed, the server
 * skips the ROLLBACK.
 */
function endPipeline(server: ServerSocket): boolean {
  const buf = pktbufTemp();
  writeQuery(buf, 'ROLLBACK');
  server.requests.push(PqMsg.Query, ResponseAction.SKIP);
  if (!sendPacket(server, buf)) return false;
  server.requests.push(PqMsg.Sync, ResponseAction.SKIP);
  return sendBytes(server, PACKET_SYNC, PACKET_SYNC.length);
}

/** Has the rest of an answer read and dropped, after an error. The server has been unlinked from its client. */
export function dropRestOfAnswer(server: ServerSocket): void {
  server.recovery = Recovery.DRAIN;
  server.recoveryStart = getCachedTime();
  server.idleTx = false;
  changeServerState(server, SocketState.SV_TESTED);
}

/** Cancels a server's query once more: the first request may have reached the server before the query did. */
export function repeatCancel(server: ServerSocket): void {
  if (server.recovery !== Recovery.DRAIN || server.requests.count === 0) return;
  if (cancelCount(server) === 0) requestCancel(server);
}

/** Decides what to do next: called when answers have been handled, or a cancel request is over. */
export function recoveryStep(server: ServerSocket): RecoveryStep {
  if (server.recovery === Recovery.ROLLBACK) return server.ready ? RecoveryStep.DONE : RecoveryStep.WAIT;
  if (server.copyMode) return RecoveryStep.FAILED;
  if (server.requests.count > 0 || !sbufIsEmpty(server)) return RecoveryStep.WAIT;
  if (server.ready) return RecoveryStep.DONE;
  // a cancel request that is under way could hit the rollback
  if (!server.idleTx || cancelCount(server) > 0) return RecoveryStep.WAIT;
  server.recovery = Recovery.ROLLBACK;
  server.idleTx = false;
  const buf = pktbufTemp();
  writeQuery(buf, 'ROLLBACK');
  return sendPacket(server, buf) ? RecoveryStep.WAIT : RecoveryStep.FAILED;
}
