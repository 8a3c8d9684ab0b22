// The welcome message of a pool: the parameters that its first server reported, sent to each client that logs in.

import { writeAuthenticationOk, writeParameterStatus } from '../wire/messages';
import { NEW_HEADER_LEN } from '../wire/packets';
import { PktBuf } from '../wire/pktbuf';
import type { ClientSocket, PgPool } from './bouncer';
import type { ServerLogin } from './login-state';
import { isTracked } from './varcache';

/** Limit for the parameters that a server reports during login, in bytes: every client of the pool receives them. */
const WELCOME_MAX = 256 * 1024;
/** Bytes of a ParameterStatus besides name and value: its header and two NULs. */
const PARAMETER_OVERHEAD = NEW_HEADER_LEN + 2;

/** True for what a pooler reports about itself: if the server is one, each client is told about this pooler only. */
function isPoolerParameter(name: string): boolean {
  return name.startsWith('pgbouncer.');
}

/**
 * Stores a ParameterStatus of the first server that logs in, for the welcome message.
 * @returns false if the parameters exceed the limit
 */
export function addWelcomeParameter(pool: PgPool, name: string, value: string): boolean {
  if (pool.welcomeMsgReady || isPoolerParameter(name)) return true;
  // tracked variables are sent from each client's own values
  if (pool.origVars.set(name, value)) return true;
  pool.welcomePartsLen += name.length + value.length + PARAMETER_OVERHEAD;
  if (pool.welcomePartsLen > WELCOME_MAX) return false;
  pool.welcomeParts.push([name, value]);
  return true;
}

/** Discards the parameters of a failed login, so that the next login does not repeat them. */
export function forgetWelcomeParts(pool: PgPool): void {
  pool.welcomeParts = [];
  pool.welcomePartsLen = 0;
}

/**
 * Stores a ParameterStatus of a replication connection. Its values depend on the startup packet of its client, so the
 * welcome message is for that client only.
 * @returns false if the parameters exceed the limit
 */
export function addOwnParameter(login: ServerLogin<ClientSocket>, name: string, value: string): boolean {
  if (login.welcome === null) {
    login.welcome = new PktBuf();
    writeAuthenticationOk(login.welcome);
  }
  if (!isTracked(name) && !isPoolerParameter(name)) writeParameterStatus(login.welcome, name, value);
  return login.welcome.pos <= WELCOME_MAX;
}

/** Builds the welcome message: all parameters are known. */
export function finishWelcomeMsg(pool: PgPool): void {
  if (pool.welcomeMsgReady) return;
  const buf = new PktBuf();
  writeAuthenticationOk(buf);
  for (const [name, value] of pool.welcomeParts) writeParameterStatus(buf, name, value);
  pool.welcomeMsg = buf.copy();
  forgetWelcomeParts(pool);
  pool.welcomeMsgReady = true;
}

/** Discards the welcome message: the next server that logs in provides a new one. */
export function resetWelcomeMsg(pool: PgPool): void {
  pool.welcomeMsg = null;
  forgetWelcomeParts(pool);
  pool.welcomeMsgReady = false;
}
