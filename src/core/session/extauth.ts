/*
 * Logins that somebody else decides, off the loop: PAM and LDAP. One line of clients for each: a bounded number is asked
 * about at a time, the others wait here, where the original stops its whole loop instead. A waiting client is not read; its
 * password packet is looked at again when the answer is there.
 */
import { logWarning, slogDebug, slogWarning } from '../base/log';
import { sbufContinue, sbufPause } from '../net/sbuf';
import type { PgSocket } from '../pool/socket';
import { SocketState } from '../pool/socket';
import type { PgCredentials } from '../pool/user';
import { Act } from './act';
import { disconnectClient } from './objects';
import { handoverSlot } from './slots';

/** Most logins under way in one line, as the original's queues have room for. */
const RUNNING_MAX = 20;

interface Login {
  client: PgSocket;
  passwd: string;
}

interface Answer {
  line: AuthLine;
  id: number;
  allowed: boolean;
  warnings: string[];
}

export interface AuthLine {
  /** 'PAM' or 'LDAP', for the texts */
  readonly name: string;
  /** Asks; the answer comes to externalAuthDone(). Returns null, or why nobody can be asked. */
  readonly start: (id: number, client: PgSocket, passwd: string) => string | null;
  readonly running: Map<number, Login>;
  waiting: Login[];
}

let lastId = 0;

/** Answers that came while a handover stood still. */
const later: Answer[] = [];

export function newAuthLine(name: string, start: AuthLine['start']): AuthLine {
  return { name, start, running: new Map(), waiting: [] };
}

function isValid(client: PgSocket): boolean {
  return client.state === SocketState.CL_LOGIN;
}

function refuse(line: AuthLine, client: PgSocket): void {
  disconnectClient(client, true, `${line.name} authentication failed`);
}

function startLogin(line: AuthLine, login: Login): void {
  lastId = (lastId + 1) & 0x7fffffff;
  const error = line.start(lastId, login.client, login.passwd);
  if (error === null) {
    line.running.set(lastId, login);
    return;
  }
  logWarning(error);
  refuse(line, login.client);
}

/**
 * The client has sent its password: it waits for the answer, without being read.
 * @returns what becomes of the packet
 */
export function externalAuthBegin(line: AuthLine, client: PgSocket, passwd: string): Act {
  slogDebug(client, `${line.name} login: ${line.running.size} under way, ${line.waiting.length} waiting`);
  client.waitForAuth = true;
  client.authPassed = false;
  sbufPause(client);
  const login = { client, passwd };
  if (line.running.size < RUNNING_MAX) {
    startLogin(line, login);
  } else {
    slogWarning(client, `${line.name} queue is full, waiting`);
    line.waiting.push(login);
  }
  return isValid(client) ? Act.WAIT : Act.DEAD;
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
      client.authPassed = true;
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
export function externalAuthDone(line: AuthLine, id: number, allowed: boolean, warnings: string[]): void {
  const answer = { line, id, allowed, warnings };
  if (handoverSlot.frozen) later.push(answer);
  else finish(answer);
}

/** After a handover that failed. */
export function replayExternalAuth(): void {
  for (const answer of later.splice(0)) finish(answer);
}
