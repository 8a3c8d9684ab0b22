/*
 * A job queue as applications have it: a table, workers that take jobs with FOR UPDATE SKIP LOCKED, and LISTEN. The test
 * makes the tables jobs(id, done) and results(id), and notifies the channel jobs.
 */

import type { Client } from 'pg';
import type { Bouncer } from '../harness';

/** Connects again whenever its connection ends. It listens first, and looks for jobs then and after each notification. */
export class JobWorker {
  /** how often it has connected, and has been notified */
  connects = 0;
  notified = 0;
  private stopped = false;
  private wake: () => void = () => {};

  constructor(private readonly pooler: Bouncer) {}

  async run(): Promise<void> {
    while (!this.stopped) {
      try {
        await this.session();
      } catch {
        // its server was killed
      }
    }
  }

  private async session(): Promise<void> {
    const client = await this.pooler.connect();
    this.connects++;
    let due = false;
    let over = false;
    client.on('notification', () => {
      this.notified++;
      due = true;
      this.wake();
    });
    client.on('end', () => {
      over = true;
      this.wake();
    });
    await client.query('LISTEN jobs');
    while (!over && !this.stopped) {
      due = false;
      while (await this.takeJob(client));
      if (!due && !over && !this.stopped)
        await new Promise<void>((settle) => {
          this.wake = settle;
        });
    }
    await client.end();
  }

  /** @returns false if there was none */
  private async takeJob(client: Client): Promise<boolean> {
    await client.query('BEGIN');
    const { rows } = await client.query(
      'SELECT id FROM jobs WHERE NOT done ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED',
    );
    const id = rows[0]?.id;
    if (id !== undefined) {
      await client.query('INSERT INTO results VALUES ($1)', [id]);
      await client.query('UPDATE jobs SET done = true WHERE id = $1', [id]);
    }
    await client.query('COMMIT');
    return id !== undefined;
  }

  stop(): void {
    this.stopped = true;
    this.wake();
  }
}
