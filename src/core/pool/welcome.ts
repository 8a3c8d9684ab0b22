// The welcome message of a pool: the parameters that its first server reported, sent to each client that logs in.

import { writeAuthenticationOk, writeParameterStatus } from '../wire/messages';
import { PktBuf } from '../wire/pktbuf';
import type { PgPool } from './bouncer';
import { varcacheSet } from './varcache';

/** Most bytes of parameters that a server may announce while it logs in: every client of the pool is told them. */
const WELCOME_MAX = 256 * 1024;

/**
 * Remembers a ParameterStatus of the first server that logs in, for the clients to come.
 * @returns false when the server has said more than every client should have to hear
 */
export function addWelcomeParameter(pool: PgPool, name: string, value: string): boolean {
  if (pool.welcomeMsgReady) return true;
  // tracked variables are sent from each client's own values
  if (varcacheSet(pool.origVars, name, value)) return true;
  pool.welcomePartsLen += name.length + value.length;
  if (pool.welcomePartsLen > WELCOME_MAX) return false;
  pool.welcomeParts.push([name, value]);
  return true;
}

/** A login that failed half-way leaves nothing for the next one to say twice. */
export function forgetWelcomeParts(pool: PgPool): void {
  pool.welcomeParts = [];
  pool.welcomePartsLen = 0;
}

/** All parameters are known: clients of the pool can be welcomed. */
export function finishWelcomeMsg(pool: PgPool): void {
  if (pool.welcomeMsgReady) return;
  const buf = new PktBuf();
  writeAuthenticationOk(buf);
  for (const [name, value] of pool.welcomeParts) writeParameterStatus(buf, name, value);
  pool.welcomeMsg = buf.copy();
  forgetWelcomeParts(pool);
  pool.welcomeMsgReady = true;
}

/** Forgets them: the next server that logs in tells anew. */
export function resetWelcomeMsg(pool: PgPool): void {
  pool.welcomeMsg = null;
  forgetWelcomeParts(pool);
  pool.welcomeMsgReady = false;
}
