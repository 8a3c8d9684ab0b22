/*
 * The answers of auth_query that are used again for auth_query_cache_time. An answer is kept only after a login with it
 * has succeeded, so clients that do not authenticate can neither fill the cache nor displace anything in it. A user's
 * secret is then in memory anyway, for logins to servers (PgDatabase.dynamicUsers).
 */

import { getCachedTime } from '../base/time';
import { cf } from '../config/settings';
import type { AuthAnswer } from '../pool/auth-answer';
import type { ClientSocket, PgDatabase } from '../pool/bouncer';
import { closeLookups } from '../pool/lookups';

/** Most answers that are kept; then the least recently used one goes. */
const ANSWERS_MAX = 10_000;

/** the least recently used first */
const answers = new Map<string, AuthAnswer>();

/** usec; when answers were last forgotten: logins may still hold older ones, which are not kept any more */
let forgottenAt = 0;

/** How logins found their secrets, for the metrics. */
export const authQueryCounts = { query: 0, cache: 0, shared: 0 };

/** How long the answers for a database may be used, in usec; 0 = not at all. */
export function cacheTime(db: PgDatabase): number {
  return db.config.authQueryCacheTime >= 0 ? db.config.authQueryCacheTime : cf.authQueryCacheTime;
}

/**
 * Names an answer: it depends on where the query runs, as whom, on its text, and on the user. None of them contains a
 * NUL.
 */
export function answerKey(authDb: PgDatabase, authUser: string, query: string, username: string): string {
  return `${authDb.name}\0${authUser}\0${query}\0${username}`;
}

/** The answer with that key, if it is not older than `limit` usec; else null. */
export function findAnswer(key: string, limit: number): AuthAnswer | null {
  const answer = answers.get(key);
  if (answer === undefined) return null;
  if (getCachedTime() - answer.askedAt <= limit) return answer;
  answers.delete(key);
  return null;
}

/** A login has succeeded: keeps the answer that it used, unless a newer one is there. */
export function keepAnswer(client: ClientSocket): void {
  const answer = client.login?.answer ?? null;
  if (client.login === null || answer === null) return;
  client.login.answer = null;
  if (cacheTime(client.db as PgDatabase) === 0 || answer.askedAt <= forgottenAt) return;
  const known = answers.get(answer.key);
  answers.delete(answer.key);
  answers.set(answer.key, known !== undefined && known.askedAt > answer.askedAt ? known : answer);
  if (answers.size <= ANSWERS_MAX) return;
  for (const key of answers.keys()) {
    answers.delete(key);
    return;
  }
}

/** The query has been answered again: replaces what is known. @param answer null = the user does not exist any more */
export function renewAnswer(key: string, answer: AuthAnswer | null): void {
  const known = answers.get(key);
  if (known === undefined) return;
  if (answer === null) answers.delete(key);
  else if (answer.askedAt >= known.askedAt) answers.set(key, answer);
}

/**
 * Forgets answers: after RELOAD and RECONNECT. Later logins do not join look-ups that have been sent already.
 * @param db null = those of all databases
 */
export function forgetAnswers(db: PgDatabase | null): void {
  forgottenAt = getCachedTime();
  closeLookups();
  if (db === null) {
    answers.clear();
    return;
  }
  const prefix = `${db.name}\0`;
  for (const key of answers.keys()) if (key.startsWith(prefix)) answers.delete(key);
}
