/*
 * One turn of the loop: waits, dispatches each event, lets waiting clients proceed, and runs what is due.
 */

import { isFrozen } from '../base/lifecycle';
import { logError, logWarning } from '../base/log';
import { Ev, native, Rec, resumedLength, ring, waitClock } from '../base/native';
import { Tally, tally, turns } from '../base/tallies';
import { getCachedTime, readClock, setTimeCache } from '../base/time';
import { runTimers, timerWaitMs } from '../base/timer';
import { disconnectClient, disconnectServer, LoginOutcome } from '../link/objects';
import { collectPasswords } from '../link/password-command';
import { continueLookups } from '../login/auth-query';
import { replayExternalAuth } from '../login/external-auth';
import { collectLdapAnswers } from '../login/ldapauth';
import { onPamDone } from '../login/pam';
import { serverConnected, serverTlsFailed, serverTlsReady } from '../login/server-login';
import { onResolved } from '../net/dnslookup';
import { collectNameAnswers } from '../net/name-thread';
import { onAccept } from '../net/pooler';
import {
  beginInput,
  endInput,
  runContinueQueue,
  sbufContinue,
  sbufIsEmpty,
  sbufStart,
  socketsByHandle,
  unblockSource,
} from '../net/sbuf';
import { type AnySocket, type ClientSocket, type ServerSocket, SocketState } from '../pool/bouncer';
import { isDead, isServerSocket } from '../pool/socket';
import { upcalls } from '../pool/upcalls';
import { acceptClient } from '../session/accept';
import { clientInput, clientRecvFailed } from '../session/client';
import { serverFlushed, serverInput, serverRecvFailed } from '../session/server';
import { drainEnded } from './drain';
import { perLoopMaint } from './janitor';
import { handleLogins, keepLeftLogins, loginsAreDue, putOffLogin } from './login-queue';

/** Socket being handled; disconnected if the handler throws. */
let current: AnySocket | null = null;

/** Number of deliveries in this turn that belonged to no login. */
let served = 0;

function input(sk: AnySocket, offset: number, length: number): void {
  current = sk;
  beginInput(sk);
  if (isServerSocket(sk)) serverInput(sk, offset, length);
  else clientInput(sk, offset, length);
  endInput();
}

function isLogin(sk: AnySocket): sk is ClientSocket {
  return sk.login !== null && !isServerSocket(sk);
}

function onRecv(sk: AnySocket, result: number, offset: number): void {
  if (result > 0) {
    sk.hasKept = false;
    input(sk, offset, result);
    return;
  }
  if (sk.tls && result < 0) logWarning(`tls_sbufio_recv: ${native.tlsError(sk.handle)}`);
  recvFailed(sk);
}

function recvFailed(sk: AnySocket): void {
  if (isServerSocket(sk)) serverRecvFailed(sk);
  else clientRecvFailed(sk);
}

/** A TLS handshake succeeded or failed. */
function onTls(sk: AnySocket, result: number): void {
  const done = result >= 0;
  if (isServerSocket(sk)) tally(done ? Tally.TLS_SERVER_DONE : Tally.TLS_SERVER_FAILED);
  else tally(done ? Tally.TLS_CLIENT_DONE : Tally.TLS_CLIENT_FAILED);
  if (!done) {
    logWarning(`TLS handshake error: ${native.tlsError(sk.handle)}`);
    if (isServerSocket(sk)) serverTlsFailed(sk);
    else clientRecvFailed(sk);
  } else if (isServerSocket(sk)) {
    serverTlsReady(sk);
  }
}

/** The queued output of a socket has been sent, or the socket broke: resumes the source that waited for it. */
export function onDrain(sk: AnySocket, result: number): void {
  if (result < 0) {
    if (isServerSocket(sk)) disconnectServer(sk, false, 'server connection closed', LoginOutcome.HOST_FAILED);
    else {
      sk.leaving = true;
      disconnectClient(sk, false, 'unexpected eof');
    }
    return;
  }
  // blocked by its own output: a console client, or a client with made-up answers
  if (sk.blocked && (sk.link === null || (!isServerSocket(sk) && native.unsent(sk.link.handle) <= 0)))
    unblockSource(sk);
  const source = sk.link;
  if (source === null || !source.blocked) return;
  unblockSource(source);
  if (isServerSocket(source) && !source.queued && sbufIsEmpty(source)) serverFlushed(source);
}

function accept(handle: number, result: number): void {
  const isUnix = onAccept(handle, result);
  const client = isUnix === null ? null : acceptClient(result, isUnix);
  if (client === null) return;
  // with tcp_defer_accept, the startup packet is there already
  const offset = sbufStart(client);
  if (offset >= 0) putOffLogin(client, resumedLength[0] as number, offset);
}

function onConnect(server: ServerSocket, result: number): void {
  if (server.state !== SocketState.SV_LOGIN) return;
  if (result < 0) {
    disconnectServer(server, false, 'connect failed', LoginOutcome.HOST_FAILED);
    return;
  }
  server.requestTime = getCachedTime();
  serverConnected(server);
}

/** Events of sockets during a freeze; they are handled if the handover fails. */
const later: { kind: number; sk: AnySocket; result: number }[] = [];

/** The handover failed: handles the events received during the freeze. */
export function replayDeferred(): void {
  for (const { kind, sk, result } of later.splice(0)) if (!isDead(sk)) onSocket(kind, sk, result);
  replayExternalAuth();
}

function onSocket(kind: number, sk: AnySocket, result: number): void {
  if (kind === Ev.CONNECT && isServerSocket(sk)) onConnect(sk, result);
  else if (kind === Ev.DRAIN) onDrain(sk, result);
  else onTls(sk, result);
}

function dispatch(kind: number, handle: number, result: number, offset: number): void {
  if (kind === Ev.RECV) {
    const sk = socketsByHandle[handle];
    if (!sk) return;
    if (isLogin(sk)) {
      putOffLogin(sk, result, offset);
    } else {
      served++;
      onRecv(sk, result, offset);
    }
    return;
  }
  switch (kind) {
    case Ev.ACCEPT:
      accept(handle, result);
      return;
    case Ev.CONNECT:
    case Ev.DRAIN:
    case Ev.TLS: {
      const sk = socketsByHandle[handle];
      if (sk && isFrozen()) later.push({ kind, sk, result });
      else if (sk) onSocket(kind, sk, result);
      return;
    }
    case Ev.SIGNAL:
      upcalls.signal(handle);
      return;
    case Ev.WAKE:
      collectLdapAnswers();
      collectNameAnswers();
      collectPasswords();
      return;
    case Ev.RESOLVED:
      onResolved(handle, result);
      return;
    case Ev.AUTHENTICATED:
      onPamDone(handle, result !== 0);
      return;
    default:
      logWarning(`unknown event of the loop: ${kind}`);
  }
}

function runQueue(): void {
  runContinueQueue(input);
  // an exception outside a socket's input must not disconnect the last socket
  current = null;
}

/** A handler threw, which is a bug of the pooler. Only the connection being handled is disconnected. */
function handlerFailed(err: unknown): void {
  logError(`exception in event handler: ${err instanceof Error ? (err.stack ?? err.message) : String(err)}`);
  endInput();
  const sk = current;
  if (sk === null || isDead(sk)) return;
  try {
    if (isServerSocket(sk)) disconnectServer(sk, false, 'internal error');
    else disconnectClient(sk, true, 'internal error');
  } catch (again) {
    logError(
      `exception while disconnecting: ${again instanceof Error ? (again.stack ?? again.message) : String(again)}`,
    );
  }
}

/** The socket that a record is about. Those of other kinds have numbers of their own: of signals, names, logins. */
function socketOf(kind: number, handle: number): AnySocket | null {
  return kind <= Ev.DRAIN || kind === Ev.TLS ? (socketsByHandle[handle] ?? null) : null;
}

function dispatchAll(count: number): void {
  const size = count * Rec.SIZE;
  let at = 0;
  while (at < size) {
    try {
      // the try block is entered once per turn, not once per event
      while (at < size) {
        const kind = ring[at + Rec.KIND] as number;
        const handle = ring[at + Rec.HANDLE] as number;
        const result = ring[at + Rec.RESULT] as number;
        const offset = ring[at + Rec.OFFSET] as number;
        at += Rec.SIZE;
        current = socketOf(kind, handle);
        dispatch(kind, handle, result, offset);
        runQueue();
      }
    } catch (err) {
      handlerFailed(err);
    }
  }
}

function onLogin(client: ClientSocket, result: number, offset: number): void {
  current = client;
  if (offset >= 0 || result <= 0) onRecv(client, result, offset);
  else sbufContinue(client);
  runQueue();
}

/** What has arrived for logins, after all other events. */
function runLogins(): void {
  const began = loginsAreDue() ? readClock() : 0;
  for (let over = began === 0; !over; ) {
    try {
      handleLogins(onLogin, began, served > 0);
      over = true;
    } catch (err) {
      handlerFailed(err);
    }
  }
  keepLeftLogins();
  if (loginsAreDue()) native.loopBreak();
}

/** One turn: PgBouncer's main_loop_once(). */
export function mainLoopOnce(): void {
  const count = native.wait(timerWaitMs(getCachedTime()));
  const began = waitClock[0] as number;
  setTimeCache(began);
  served = 0;
  dispatchAll(count);
  runLogins();
  current = null;
  try {
    runTimers(getCachedTime());
    runQueue();
    continueLookups();
    perLoopMaint(runQueue);
    runQueue();
    drainEnded();
    upcalls.handover.turnEnd();
  } catch (err) {
    handlerFailed(err);
  }
  if (turns.wanted) turns.longest = Math.max(turns.longest, readClock() - began);
}
