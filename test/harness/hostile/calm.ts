/*
 * Clients that behave correctly during attacks: they check every answer and record the first error.
 */

import { setTimeout as pause } from 'node:timers/promises';
import type { Client } from 'pg';
import { type Bouncer, withTimeout } from '../../harness';

const BETWEEN_MS = 4;
const LOGIN_EVERY = 25;

export class CalmClients {
  queries = 0;
  logins = 0;
  private stopped = false;
  private readonly running: Promise<void>[] = [];

  constructor(
    private readonly bouncer: Bouncer,
    count: number,
  ) {
    for (let number = 0; number < count; number++) {
      const run = this.run(number);
      // stop() reports the error
      run.catch(() => {});
      this.running.push(run);
    }
  }

  /** Client 0 logs in repeatedly, the other clients stay connected. */
  private async run(number: number): Promise<void> {
    let client: Client | null = null;
    for (let turn = 0; !this.stopped; turn++) {
      if (client === null) {
        client = await this.bouncer.connect({ user: 'calm', password: 'calm-password' });
        this.logins++;
      }
      await this.ask(client, `calm-${number}-${turn}`);
      if (number === 0 && turn % LOGIN_EVERY === 0) {
        await withTimeout(client.end(), 'a goodbye');
        client = null;
      }
      await pause(BETWEEN_MS);
    }
    if (client !== null) await withTimeout(client.end(), 'a goodbye');
  }

  private async ask(client: Client, token: string): Promise<void> {
    const simple = this.queries++ % 2 === 0;
    const result = simple
      ? await withTimeout(client.query(`SELECT '${token}' AS token`), 'a simple query')
      : await withTimeout(client.query('SELECT $1::text AS token', [token]), 'an extended query');
    const answer = result.rows[0]?.token;
    if (answer !== token || result.rows.length !== 1) throw new Error(`asked for ${token}, got ${answer}`);
  }

  /** Stops the clients; throws the first error of any of them. */
  async stop(): Promise<void> {
    this.stopped = true;
    await Promise.all(this.running);
  }
}
