/*
 * Logins that somebody else decides, off the loop: PAM and LDAP. One line of clients for each: a bounded number is asked
 * about at a time, the others wait here, where the original stops its whole loop instead. A waiting client is not read; its
 * password packet is looked at again when the answer is there.
 */

import { isFrozen } from '../base/lifecycle';
import { logWarning, slogDebug, slogWarning } from '../base/log';
import { getCachedTime, USEC } from '../base/time';
import { disconnectClient } from '../link/objects';
import { sbufContinue, sbufPause } from '../net/sbuf';
import { type ClientSocket, LoginPhase, type PgCredentials, SocketState } from '../pool/bouncer';
import { loginOf } from '../pool/socket';
import { Verdict } from '../wire/verdict';

/** Most logins under way in one line, as the original's queues have room for. */
const RUNNING_MAX = 20;
/** Waiting clients that are never worth looking through. */
const WAITING_MIN = 64;
/** usec; far more than the longest answer takes, with all its time limits used up */
const LOST_AFTER = 300 * USEC;

interface Login {
  client: ClientSocket;
  passwd: string;
  /** when it was asked about, usec; 0 = waits */
  since: number;
}

interface Answer {
  line: AuthQueue;
  id: number;
  allowed: boolean;
  warnings: string[];
}

interface AuthQueue {
  /** 'PAM' or 'LDAP', for the texts */
  readonly name: string;
  /** Asks; the answer comes to externalAuthDone(). Returns null, or why nobody can be asked. */
  readonly start: (id: number, client: ClientSocket, passwd: string) => string | null;
  /** A login was not answered for LOST_AFTER: ends the thread, so that the next login starts another. null = no thread. */
  readonly lost: (() => void) | null;
  readonly running: Map<number, Login>;
  waiting: Login[];
  /** at this length those who have left are looked for: they must not pile up behind a mute directory */
  waitingMax: number;
}

let lastId = 0;

/** Answers that came while a handover stood still. */
const later: Answer[] = [];

export function newAuthQueue(name: string, start: AuthQueue['start'], lost: AuthQueue['lost']): AuthQueue {
  return { name, start, lost, running: new Map(), waiting: [], waitingMax: WAITING_MIN };
}

function isValid(client: ClientSocket): boolean {
  return client.state === SocketState.CL_LOGIN;
}

function refuse(line: AuthQueue, client: ClientSocket): void {
  disconnectClient(client, true, `${line.name} authentication failed`);
}

function startLogin(line: AuthQueue, login: Login): void {
  lastId = (lastId + 1) & 0x7fffffff;
  const error = line.start(lastId, login.client, login.passwd);
  if (error === null) {
    login.since = getCachedTime();
    line.running.set(lastId, login);
    return;
  }
  logWarning(error);
  refuse(line, login.client);
}

function enqueue(line: AuthQueue, login: Login): void {
  if (line.waiting.length >= line.waitingMax) {
    line.waiting = line.waiting.filter((other) => isValid(other.client));
    line.waitingMax = Math.max(WAITING_MIN, 2 * line.waiting.length);
  }
  line.waiting.push(login);
}

/** A thread that answers no more must not keep the line full for ever: all its logins fail. Looked at when the line is full. */
function expireLost(line: AuthQueue): void {
  if (line.lost === null) return;
  const before = getCachedTime() - LOST_AFTER;
  const lost = [...line.running];
  if (!lost.some(([, login]) => login.since < before)) return;
  line.lost();
  for (const [id] of lost) externalAuthDone(line, id, false, [`${line.name} login was never answered`]);
}

/**
 * The client has sent its password: it waits for the answer, without being read.
 * @returns what becomes of the packet
 */
export function externalAuthBegin(line: AuthQueue, client: ClientSocket, passwd: string): Verdict {
  slogDebug(client, `${line.name} login: ${line.running.size} under way, ${line.waiting.length} waiting`);
  loginOf(client).phase = LoginPhase.EXTERNAL_AUTH;
  sbufPause(client);
  const login = { client, passwd, since: 0 };
  if (line.running.size >= RUNNING_MAX) expireLost(line);
  if (line.running.size < RUNNING_MAX) {
    startLogin(line, login);
  } else {
    slogWarning(client, `${line.name} queue is full, waiting`);
    enqueue(line, login);
  }
  return isValid(client) ? Verdict.PAUSED : Verdict.DISCONNECTED;
}

/** A password that was good at the directory is the one that opens the server. Keys of an earlier one say nothing. */
function rememberPassword(user: PgCredentials, passwd: string): void {
  if (user.passwd === passwd) return;
  user.passwd = passwd;
  user.scramPassthroughValid = false;
  user.scramClientKey = null;
  user.scramServerKey = null;
  user.scramVerifier = null;
}

function finish({ line, id, allowed, warnings }: Answer): void {
  const login = line.running.get(id);
  if (login === undefined) return;
  line.running.delete(id);
  for (const warning of warnings) logWarning(warning);
  const { client, passwd } = login;
  if (isValid(client)) {
    const user = client.loginUser as PgCredentials;
    if (allowed && !user.mockAuth) {
      rememberPassword(user, passwd);
      loginOf(client).phase = LoginPhase.EXTERNAL_PASSED;
      sbufContinue(client);
    } else {
      refuse(line, client);
    }
  }
  while (line.running.size < RUNNING_MAX && line.waiting.length > 0) {
    const next = line.waiting.shift() as Login;
    if (isValid(next.client)) startLogin(line, next);
  }
}

/**
 * The answer to a login.
 * @param warnings lines for the log
 */
export function externalAuthDone(line: AuthQueue, id: number, allowed: boolean, warnings: string[]): void {
  const answer = { line, id, allowed, warnings };
  if (isFrozen()) later.push(answer);
  else finish(answer);
}

/** After a handover that failed. */
export function replayExternalAuth(): void {
  for (const answer of later.splice(0)) finish(answer);
}
