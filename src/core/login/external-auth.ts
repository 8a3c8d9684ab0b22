/*
 * Logins decided off the loop: PAM and LDAP, each with its own queue. A limited number of logins runs at a time; the
 * other clients wait here, while PgBouncer would block its whole loop. The pooler does not read from a waiting client,
 * and handles its password packet again when the decision is there.
 */

import { isFrozen } from '../base/lifecycle';
import { logWarning, slogDebug, slogWarning } from '../base/log';
import { getCachedTime, USEC } from '../base/time';
import { disconnectClient } from '../link/objects';
import { sbufContinue, sbufPause } from '../net/sbuf';
import { type ClientSocket, type PgCredentials, SocketState } from '../pool/bouncer';
import { LoginPhase } from '../pool/phases';
import { loginOf } from '../pool/socket';
import { changePassword } from '../pool/user';
import { Verdict } from '../wire/verdict';

/** Most logins of a queue that run at a time: the size of PgBouncer's queues. */
const RUNNING_MAX = 20;
/** Below this number of waiting clients, the queue is not searched for disconnected clients. */
const WAITING_MIN = 64;
/** usec; much longer than the slowest decision, with all its timeouts used up */
const LOST_AFTER = 300 * USEC;

interface Login {
  client: ClientSocket;
  passwd: string;
  /** usec; when the login was started, 0 = still waiting */
  since: number;
}

interface Answer {
  line: AuthQueue;
  id: number;
  allowed: boolean;
  warnings: string[];
}

interface AuthQueue {
  /** 'PAM' or 'LDAP', for messages */
  readonly name: string;
  /** Starts a login; externalAuthDone() receives the decision. Returns null, or why it could not be started. */
  readonly start: (id: number, client: ClientSocket, passwd: string) => string | null;
  /**
   * Called if a login was not decided within LOST_AFTER: ends the thread; the next login starts another. null = no
   * thread.
   */
  readonly lost: (() => void) | null;
  readonly running: Map<number, Login>;
  waiting: Login[];
  /** at this length disconnected clients are removed, so that they do not pile up while no logins are decided */
  waitingMax: number;
}

let lastId = 0;

/** Decisions received during a freeze. */
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

/** Fails all running logins if the thread no longer answers: further ones would get no decision either. */
function expireLost(line: AuthQueue): void {
  if (line.lost === null || line.running.size === 0) return;
  const before = getCachedTime() - LOST_AFTER;
  const lost = [...line.running];
  if (!lost.some(([, login]) => login.since < before)) return;
  line.lost();
  for (const [id] of lost) externalAuthDone(line, id, false, [`${line.name} login was never answered`]);
}

/**
 * Starts the login of a client that sent its password; the client then waits without being read.
 * @returns the verdict on the packet
 */
export function externalAuthBegin(line: AuthQueue, client: ClientSocket, passwd: string): Verdict {
  slogDebug(client, `${line.name} login: ${line.running.size} under way, ${line.waiting.length} waiting`);
  loginOf(client).phase = LoginPhase.EXTERNAL_AUTH;
  sbufPause(client);
  const login = { client, passwd, since: 0 };
  expireLost(line);
  if (line.running.size < RUNNING_MAX) {
    startLogin(line, login);
  } else {
    slogWarning(client, `${line.name} queue is full, waiting`);
    enqueue(line, login);
  }
  return isValid(client) ? Verdict.PAUSED : Verdict.DISCONNECTED;
}

/** Stores a password that the external service accepted, for logins to servers. */
function rememberPassword(user: PgCredentials, passwd: string): void {
  changePassword(user, passwd);
  user.externalPasswd = true;
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

/** Handles the decision on a login. @param warnings lines for the log */
export function externalAuthDone(line: AuthQueue, id: number, allowed: boolean, warnings: string[]): void {
  const answer = { line, id, allowed, warnings };
  if (isFrozen()) later.push(answer);
  else finish(answer);
}

/** Handles the decisions received during a freeze, after the handover failed. */
export function replayExternalAuth(): void {
  for (const answer of later.splice(0)) finish(answer);
}
