/*
 * One turn of the loop: wait, give each event to its handler, let waiting clients go on, run what is due.
 */
import { logError, logWarning } from '../base/log';
import { Ev, native, Rec, ring, waitClock } from '../base/native';
import { getCachedTime, setTimeCache } from '../base/time';
import { runTimers, timerWaitMs } from '../base/timer';
import { onResolved } from '../net/dns';
import { acceptSlot, onAccept } from '../net/listener';
import { collectNameAnswers } from '../net/namethread';
import { runContinueQueue, sbufIsEmpty, socketsByHandle, unblockSource } from '../net/sbuf';
import { isDead, isServerSocket, type PgSocket, SocketState } from '../pool/socket';
import { acceptClient, clientInput, clientRecvFailed } from './client';
import { replayExternalAuth } from './extauth';
import { perLoopMaint } from './janitor';
import { collectLdapAnswers } from './ldapauth';
import { disconnectClient, disconnectServer, LoginOutcome } from './objects';
import { onPamDone } from './pamauth';
import { serverFlushed, serverInput, serverRecvFailed } from './server';
import { serverConnected, serverTlsFailed, serverTlsReady } from './serverlogin';
import { handoverSlot } from './slots';

acceptSlot.accept = acceptClient;

/** Whoever watches signals, wake-ups or descriptors of its own registers here. */
export const eventSlots: {
  signal: (signum: number) => void;
  wake: () => void;
  readable: (handle: number) => void;
} = { signal: () => {}, wake: () => {}, readable: () => {} };

/** Whose bytes are being processed: the one to end when that throws. */
let current: PgSocket | null = null;

function input(sk: PgSocket, offset: number, length: number): void {
  current = sk;
  if (isServerSocket(sk)) serverInput(sk, offset, length);
  else clientInput(sk, offset, length);
}

function onRecv(sk: PgSocket, result: number, offset: number): void {
  if (result > 0) {
    sk.hasKept = false;
    input(sk, offset, result);
    return;
  }
  if (sk.tls && result < 0) logWarning(`tls_sbufio_recv: ${native.tlsError(sk.handle)}`);
  recvFailed(sk);
}

function recvFailed(sk: PgSocket): void {
  if (isServerSocket(sk)) serverRecvFailed(sk);
  else clientRecvFailed(sk);
}

/** A TLS handshake is done, or failed. */
function onTls(sk: PgSocket, result: number): void {
  if (result < 0) {
    logWarning(`TLS handshake error: ${native.tlsError(sk.handle)}`);
    if (isServerSocket(sk)) serverTlsFailed(sk);
    else clientRecvFailed(sk);
  } else if (isServerSocket(sk)) {
    serverTlsReady(sk);
  }
}

/** What was queued for a socket is sent, or the socket broke: whoever waited for that goes on. */
export function onDrain(sk: PgSocket, result: number): void {
  if (result < 0) {
    if (isServerSocket(sk)) disconnectServer(sk, false, 'server connection closed', LoginOutcome.HOST_FAILED);
    else disconnectClient(sk, false, 'unexpected eof');
    return;
  }
  // a client that waits for itself: on the console, or for answers that the pooler made up
  if (sk.blocked && (sk.link === null || (!isServerSocket(sk) && native.unsent(sk.link.handle) <= 0)))
    unblockSource(sk);
  const source = sk.link;
  if (source === null || !source.blocked) return;
  unblockSource(source);
  if (isServerSocket(source) && !source.queued && sbufIsEmpty(source)) serverFlushed(source);
}

function onConnect(server: PgSocket, result: number): void {
  if (server.state !== SocketState.SV_LOGIN) return;
  if (result < 0) {
    disconnectServer(server, false, 'connect failed', LoginOutcome.HOST_FAILED);
    return;
  }
  server.requestTime = getCachedTime();
  serverConnected(server);
}

/** What happened to sockets while a handover kept them still: they go on with it if the handover fails. */
const later: { kind: number; sk: PgSocket; result: number }[] = [];

handoverSlot.replay = () => {
  for (const { kind, sk, result } of later.splice(0)) if (!isDead(sk)) onSocket(kind, sk, result);
  replayExternalAuth();
};

function onSocket(kind: number, sk: PgSocket, result: number): void {
  if (kind === Ev.CONNECT) onConnect(sk, result);
  else if (kind === Ev.DRAIN) onDrain(sk, result);
  else onTls(sk, result);
}

function dispatch(kind: number, handle: number, result: number, offset: number): void {
  if (kind === Ev.RECV) {
    const sk = socketsByHandle[handle];
    if (sk) onRecv(sk, result, offset);
    return;
  }
  switch (kind) {
    case Ev.ACCEPT:
      onAccept(handle, result);
      return;
    case Ev.CONNECT:
    case Ev.DRAIN:
    case Ev.TLS: {
      const sk = socketsByHandle[handle];
      if (sk && handoverSlot.frozen) later.push({ kind, sk, result });
      else if (sk) onSocket(kind, sk, result);
      return;
    }
    case Ev.SIGNAL:
      eventSlots.signal(handle);
      return;
    case Ev.WAKE:
      collectLdapAnswers();
      collectNameAnswers();
      eventSlots.wake();
      return;
    case Ev.RESOLVED:
      onResolved(handle, result);
      return;
    case Ev.READABLE:
      eventSlots.readable(handle);
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
  // what is not the input of a socket is not the fault of the last one
  current = null;
}

/** A handler threw: a fault of ours. That one connection ends, the others go on. */
function handlerFailed(err: unknown): void {
  logError(`exception in event handler: ${err instanceof Error ? (err.stack ?? err.message) : String(err)}`);
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

function dispatchAll(count: number): void {
  const size = count * Rec.SIZE;
  let at = 0;
  while (at < size) {
    try {
      // the handler block is entered once per turn, not once per event
      while (at < size) {
        const kind = ring[at + Rec.KIND] as number;
        const handle = ring[at + Rec.HANDLE] as number;
        const result = ring[at + Rec.RESULT] as number;
        const offset = ring[at + Rec.OFFSET] as number;
        at += Rec.SIZE;
        current = socketsByHandle[handle] ?? null;
        dispatch(kind, handle, result, offset);
        runQueue();
      }
    } catch (err) {
      handlerFailed(err);
    }
  }
}

/** One turn. The original's main_loop_once(). */
export function mainLoopOnce(): void {
  const count = native.wait(timerWaitMs(getCachedTime()));
  setTimeCache(waitClock[0] as number);
  dispatchAll(count);
  current = null;
  try {
    runTimers(getCachedTime());
    runQueue();
    perLoopMaint(runQueue);
    runQueue();
    if (handoverSlot.active) handoverSlot.turnEnd();
  } catch (err) {
    handlerFailed(err);
  }
}
