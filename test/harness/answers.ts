/*
 * Helpers of the tests of settings: a pooler for the length of one test, and shortcuts for the raw client.
 */

import assert from 'node:assert/strict';
import { Bouncer, type BouncerOptions } from './bouncer';
import type { PgCluster } from './cluster';
import { eventually } from './machine';
import { errorFields, type Login, letters, type Message, type RawClient, rowValues } from './raw-client';

/** Runs `body` with a pooler, which must still run afterwards, or have exited as expected. */
export async function withPooler(options: BouncerOptions, body: (pooler: Bouncer) => Promise<void>): Promise<void> {
  const pooler = await Bouncer.start(options);
  let failure: unknown = null;
  try {
    await body(pooler);
  } catch (err) {
    failure = err ?? new Error('failed');
  }
  try {
    await pooler.stop();
  } catch (err) {
    failure ??= err;
  }
  if (failure !== null) throw failure;
}

/** The fields of the ErrorResponse among those messages, or null. */
export function errorIn(messages: Message[]): Record<string, string> | null {
  const error = messages.find((msg) => msg.type === 'E');
  return error === undefined ? null : errorFields(error);
}

/** The texts of the notices among those messages. */
export function noticesIn(messages: Message[]): string[] {
  return messages.filter((msg) => msg.type === 'N').map((msg) => errorFields(msg).M ?? '');
}

/** First column of the first row among those messages; an error of the server becomes an exception. */
export function valueIn(messages: Message[]): string | null {
  const error = errorIn(messages);
  if (error !== null) throw new Error(error.M);
  assert.equal(messages.at(-1)?.type, 'Z', `the answer breaks off after "${letters(messages)}"`);
  const row = messages.find((msg) => msg.type === 'D');
  return row === undefined ? null : (rowValues(row)[0] ?? null);
}

/** A raw client that is logged in. */
export async function login(pooler: Bouncer, who: Login = {}): Promise<RawClient> {
  const client = await pooler.raw();
  const answer = await client.login(who);
  assert.equal(answer.at(-1)?.type, 'Z', `login failed: ${JSON.stringify(errorIn(answer))}`);
  return client;
}

/** The text of the error of a login that must fail. */
export async function refusal(pooler: Bouncer, who: Login = {}): Promise<string> {
  const client = await pooler.raw();
  const answer = await client.login(who);
  const error = errorIn(answer);
  assert.ok(error !== null, `no error: ${letters(answer)}`);
  assert.equal(error.S, 'FATAL');
  assert.equal(await client.next(), null, 'the connection stays open after its refusal');
  await client.destroy();
  return error.M ?? '';
}

/** One query on an open raw client: its first value. */
export async function ask(client: RawClient, sql: string): Promise<string | null> {
  return valueIn(await client.query(sql));
}

/** Process id of the server that answers this client. */
export async function backendOf(client: RawClient): Promise<number> {
  return Number(await ask(client, 'SELECT pg_backend_pid()'));
}

/** Waits until an idle client is disconnected. @returns the text of the error before the end of the connection */
export async function thrownOut(client: RawClient): Promise<string> {
  const messages = await client.until('E');
  const error = errorIn(messages);
  assert.ok(error !== null, `no error, only "${letters(messages)}" and the end`);
  assert.equal(await client.next(), null);
  return error.M ?? '';
}

/** Rows of a SHOW that match. */
export async function show(
  pooler: Bouncer,
  what: string,
  match: Record<string, string | number | null> = {},
): Promise<Record<string, string | number | null>[]> {
  const rows = await pooler.admin(`SHOW ${what}`);
  return rows.filter((row) => Object.entries(match).every(([key, value]) => row[key] === value));
}

/** Waits until SHOW `what` has exactly `count` rows that match. */
export async function rowsBecome(
  pooler: Bouncer,
  what: string,
  match: Record<string, string | number | null>,
  count: number,
): Promise<void> {
  await eventually(`${count} rows of SHOW ${what} with ${JSON.stringify(match)}`, async () => {
    return (await show(pooler, what, match)).length === count;
  });
}

/** Number of matching sessions in PostgreSQL. */
export async function backends(pg: PgCluster, where: string): Promise<number> {
  const result = await pg.sql(
    `SELECT count(*)::int AS n FROM pg_stat_activity
     WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND (${where})`,
  );
  return result.rows[0].n;
}

/** Waits until that many sessions in PostgreSQL match, for state that only the server shows. */
export async function backendsBecome(pg: PgCluster, where: string, count: number): Promise<void> {
  await eventually(`${count} sessions with ${where}`, async () => (await backends(pg, where)) === count);
}

/** Sends a query without waiting for its answer; until('Z') fetches that later. */
export function start(client: RawClient, sql: string): Promise<void> {
  return client.sendMessage('Q', Buffer.from(`${sql}\0`, 'latin1'));
}
