/*
 * Common checks: that an answer is a certain error, that a promise has not settled yet, and which server process serves
 * a client.
 */
import assert from 'node:assert/strict';
import type { Client } from 'pg';
import { withTimeout } from './machine';

/** Checks that the answer is that error with that SQLSTATE. */
export async function fails(answer: Promise<unknown>, message: string | RegExp, code = '08P01'): Promise<void> {
  await assert.rejects(withTimeout(answer, `the error '${message}'`), (err: Error & { code?: string }) => {
    if (typeof message === 'string') assert.equal(err.message, message);
    else assert.match(err.message, message);
    assert.equal(err.code, code, err.message);
    return true;
  });
}

/** A promise, and whether it has settled yet. */
interface Watched<T> {
  /** the outcome, or an error on timeout */
  readonly done: () => Promise<T>;
  settled: boolean;
}

export function watch<T>(promise: Promise<T>, what: string): Watched<T> {
  const watched: Watched<T> = { done: () => withTimeout(promise, what), settled: false };
  const settle = () => {
    watched.settled = true;
  };
  promise.then(settle, settle);
  return watched;
}

/** The process that serves the client's query. */
export async function backendPid(client: Client): Promise<number> {
  return (await client.query('SELECT pg_backend_pid() AS pid')).rows[0].pid;
}
