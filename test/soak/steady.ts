/*
 * A client that keeps its connection over many reboots: it works, holds a transaction, or is idle. Every byte that it gets
 * is checked, and its connection must never end.
 */

import assert from 'node:assert/strict';
import { setTimeout as pause } from 'node:timers/promises';
import { ask, md5, rowsOf } from '../harness/actor';
import type { Random } from '../harness/hostile/random';
import { cstring, letters, type RawClient } from '../harness/raw-client';

/** What the client does during a round. */
type Habit = 'works' | 'holds' | 'idles';

const HABITS: readonly Habit[] = ['works', 'holds', 'idles'];
/** Rounds that a transaction stays open, and that an idle client says nothing. */
const ROUNDS_HELD = 3;
const IDLE_MS_MAX = 60;
const LETTERS = 'abcdefghijklmnopqrstuvwxyz';

export class SteadyClient {
  private readonly habit: Habit;
  private held = 0;
  private pid: string | null = null;
  answers = 0;

  /** @param number decides what it does */
  constructor(
    private readonly conn: RawClient,
    readonly name: string,
    number: number,
    private readonly random: Random,
  ) {
    this.habit = HABITS[number % HABITS.length] as Habit;
  }

  /** One round, which goes on until `over` says so. */
  async round(over: () => boolean): Promise<void> {
    try {
      if (this.habit === 'works') while (!over()) await this.act();
      else if (this.habit === 'holds') await this.hold();
      else if (++this.held % ROUNDS_HELD === 0) await this.act();
    } catch (err) {
      throw new Error(`${this.name}, which ${this.habit}: ${this.conn.error?.message ?? (err as Error).message}`, {
        cause: err,
      });
    }
  }

  /** Ends the connection, which must still be there. */
  async end(): Promise<void> {
    if (this.pid !== null) await this.commit();
    await this.act();
    await this.conn.end();
  }

  private async act(): Promise<void> {
    const kind = this.random.below(5);
    if (kind === 0) await this.rows();
    else if (kind === 1) await this.copyIn();
    else if (kind === 2) await pause(this.random.below(IDLE_MS_MAX));
    else await this.echo();
    this.answers++;
  }

  private text(length: number): string {
    const start = this.random.below(LETTERS.length);
    return LETTERS.repeat(Math.ceil((start + length) / LETTERS.length)).slice(start, start + length);
  }

  /** A query and an answer of the same length. */
  private async echo(): Promise<void> {
    const text = this.text(this.random.one(3) ? this.random.below(60_000) : this.random.below(200));
    const answer = await ask(this.conn, `SELECT '${text}'`);
    assert.ok(answer === text, `${answer?.length} bytes came back for ${text.length}`);
  }

  private async rows(): Promise<void> {
    const count = this.random.below(400);
    const letter = this.text(1);
    const rows = rowsOf(await this.conn.query(`SELECT i, repeat('${letter}', i) FROM generate_series(1, ${count}) i`));
    assert.equal(rows.length, count);
    for (let i = 1; i <= count; i++) {
      const [number, text] = rows[i - 1] as [string, string];
      assert.ok(number === String(i) && text === letter.repeat(i), `row ${i} of ${count}`);
    }
  }

  private async copyIn(): Promise<void> {
    const lines = Array.from({ length: this.random.below(200) }, () => this.text(this.random.below(100)));
    await this.conn.query('BEGIN');
    await this.conn.query('CREATE TEMP TABLE copied (i int, t text) ON COMMIT DROP');
    await this.conn.sendMessage('Q', cstring('COPY copied FROM STDIN'));
    assert.equal(letters(await this.conn.until('G')), 'G');
    for (const [i, line] of lines.entries()) await this.conn.sendMessage('d', Buffer.from(`${i}\t${line}\n`));
    await this.conn.sendMessage('c');
    assert.equal(letters(await this.conn.until('Z')), 'CZ');
    const sum = await ask(this.conn, "SELECT md5(coalesce(string_agg(t, ',' ORDER BY i), '')) FROM copied");
    assert.equal(sum, md5(lines.join(',')));
    await this.conn.query('COMMIT');
  }

  /** Keeps its server, and what it has there, for some rounds. */
  private async hold(): Promise<void> {
    if (this.pid === null) {
      await this.conn.query('BEGIN');
      await this.conn.query('CREATE TEMP TABLE held (round int) ON COMMIT DROP');
      this.pid = await ask(this.conn, 'SELECT pg_backend_pid()');
      this.held = 0;
    }
    this.held++;
    await this.conn.query(`INSERT INTO held VALUES (${this.held})`);
    assert.equal(await ask(this.conn, 'SELECT pg_backend_pid()'), this.pid);
    if (this.held === ROUNDS_HELD) await this.commit();
  }

  private async commit(): Promise<void> {
    assert.equal(await ask(this.conn, 'SELECT count(*) FROM held'), String(this.held));
    assert.equal(letters(await this.conn.query('COMMIT')), 'CZ');
    this.pid = null;
    this.answers++;
  }
}
