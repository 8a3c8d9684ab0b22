/*
 * The interface of an actor in a reboot, and what actors share.
 */

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { cstring, errorFields, letters, type Message, type RawClient, rowValues } from './raw-client';
import type { RebootChain } from './reboot-chain';

export interface Actor {
  name: string;
  /** ready to be rebooted */
  before: () => Promise<void>;
  /** in the classic exchange: runs between SUSPEND and the exit of the old process */
  during?: () => Promise<void>;
  /** finishes the actor's work, and checks the result */
  after: () => Promise<void>;
}

/** The transport and the database of the actors, and its pool mode. */
export interface ActorContext {
  chain: RebootChain;
  unix: boolean;
  database: string;
  session: boolean;
}

export type Make = (context: ActorContext) => Actor;

/** Rows of the big answers: 10 MB in all. */
export const ROWS = 10_000;
export const ROW_BYTES = 1_000;

export async function login(context: ActorContext, params: Record<string, string> = {}): Promise<RawClient> {
  const client = await context.chain.raw(context.unix);
  const answer = await client.login({ database: context.database, params });
  assert.equal(answer.at(-1)?.type, 'Z', `login: ${letters(answer)}`);
  return client;
}

/** The values of the rows among those messages; an error becomes an exception. */
export function rowsOf(messages: Message[]): (string | null)[][] {
  const error = messages.find((msg) => msg.type === 'E');
  if (error !== undefined) throw new Error(errorFields(error).M);
  assert.equal(messages.at(-1)?.type, 'Z', `the answer breaks off: ${letters(messages).slice(-50)}`);
  return messages.filter((msg) => msg.type === 'D').map(rowValues);
}

export async function ask(client: RawClient, sql: string): Promise<string | null> {
  return rowsOf(await client.query(sql))[0]?.[0] ?? null;
}

export function query(client: RawClient, sql: string): Promise<void> {
  return client.sendMessage('Q', cstring(sql));
}

export function md5(text: string): string {
  return createHash('md5').update(text, 'latin1').digest('hex');
}

export const bigSql = `SELECT i, repeat(chr(65 + i % 26), ${ROW_BYTES}) FROM generate_series(1, ${ROWS}) i`;

export function checkBigRow(values: (string | null)[], i: number): void {
  assert.equal(values[0], String(i));
  assert.equal(values[1], String.fromCharCode(65 + (i % 26)).repeat(ROW_BYTES), `row ${i}`);
}

export async function checkBigAnswer(client: RawClient): Promise<void> {
  const rows = rowsOf(await client.until('ZE', 60_000));
  assert.equal(rows.length, ROWS);
  for (let i = 0; i < ROWS; i++) checkBigRow(rows[i] as (string | null)[], i + 1);
}
