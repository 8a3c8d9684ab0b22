/*
 * Look-ups by auth_query that several logins share: the first login of a name runs the query, and the others wait for
 * its answer. Only while auth_query_cache_time is set. See login/auth-query.ts.
 */

import { AuthLookup } from './auth-answer';
import type { ClientSocket } from './bouncer';

const lookups = new Map<string, AuthLookup<ClientSocket>>();
/** logins whose leader has gone: they have its answer, or have to ask */
let orphans: ClientSocket[] = [];

/** The look-up in progress with this key, or null. */
export function findLookup(key: string): AuthLookup<ClientSocket> | null {
  return lookups.get(key) ?? null;
}

/** Begins a look-up. Others can join it, unless there is one with this key already. */
export function startLookup(key: string, leader: ClientSocket): AuthLookup<ClientSocket> {
  const lookup = new AuthLookup(key, leader);
  if (!lookups.has(key)) lookups.set(key, lookup);
  return lookup;
}

/** Ends the look-up of a login, if it has one. @returns the logins that waited for its answer */
export function endLookup(leader: ClientSocket): ClientSocket[] {
  const lookup = leader.login?.lookup ?? null;
  if (leader.login === null || lookup === null) return [];
  leader.login.lookup = null;
  if (lookups.get(lookup.key) === lookup) lookups.delete(lookup.key);
  const waiting = [...lookup.waiters];
  lookup.waiters.clear();
  for (const { login } of waiting) if (login !== null) login.lookup = null;
  return waiting;
}

/** Closes the look-ups that have been sent: other logins no longer join them. */
export function closeLookups(): void {
  for (const [key, { askedAt }] of lookups) if (askedAt !== 0) lookups.delete(key);
}

/** @returns the key of a look-up whose leader has left it, or null */
export function lostLookup(): string | null {
  for (const [key, lookup] of lookups) if (lookup.leader.login?.lookup !== lookup) return key;
  return null;
}

/**
 * A client no longer needs its look-up, because it disconnects or goes on without it. Those that wait for its answer
 * become orphans.
 */
export function leaveLookup(client: ClientSocket): void {
  const lookup = client.login?.lookup ?? null;
  if (client.login === null || lookup === null) return;
  if (lookup.leader !== client) {
    client.login.lookup = null;
    lookup.waiters.delete(client);
    return;
  }
  for (const waiter of endLookup(client)) {
    if (waiter.login !== null) waiter.login.answer = lookup.answer;
    orphans.push(waiter);
  }
}

/** Takes the logins that have lost their leader since the last call. Some of them may have ended meanwhile. */
export function takeOrphans(): readonly ClientSocket[] {
  if (orphans.length === 0) return orphans;
  const taken = orphans;
  orphans = [];
  return taken;
}
