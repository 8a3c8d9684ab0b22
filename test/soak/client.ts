/*
 * A client of the soak: until its end it connects, works, idles, cancels and disconnects, politely or not, at random.
 * Every query carries a unique token, so that any other answer is recognised as wrong.
 */

import { setTimeout as pause } from 'node:timers/promises';
import { reset } from '../harness/hostile/attack';
import type { Random } from '../harness/hostile/random';
import {
  cancelRequest,
  cstring,
  errorFields,
  int16,
  int32,
  type Message,
  message,
  type RawClient,
  rowValues,
} from '../harness/raw-client';

/** No operation takes longer than this, even if all clients need a server at once. */
const STUCK_MS = 30_000;
const IDLE_MS_MAX = 400;
const ACTIONS_MAX = 25;

/** A pooler, or a chain of them. */
interface Pooler {
  /** a connection, also for a cancel request, with TLS if the client is to use it */
  raw(): Promise<RawClient>;
}

/** Counters of the soak. */
export interface Tally {
  logins: number;
  answers: number;
  errors: number;
  cancels: number;
  canceled: number;
  vanished: number;
  idles: number;
  /** connections that ended because their server was killed */
  serversLost: number;
  /** logins refused because servers were being killed */
  refused: number;
}

export function newTally(): Tally {
  return {
    logins: 0,
    answers: 0,
    errors: 0,
    cancels: 0,
    canceled: 0,
    vanished: 0,
    idles: 0,
    serversLost: 0,
    refused: 0,
  };
}

/**
 * Errors of PostgreSQL or the pooler after a server was killed. The last text occurs if the server was killed while the
 * client's parameters were being set.
 */
const KILLED =
  /invalid server parameter|terminating connection due to administrator command|server conn crashed|server closed|server login|server connection closed/;
const QUERY_CANCELED = '57014';

/** Thrown when the connection has ended for a legitimate reason. */
class Lost extends Error {}

let lastToken = 0;

export class SoakClient {
  private conn: RawClient | null = null;

  constructor(
    private readonly bouncer: Pooler,
    private readonly number: number,
    private readonly random: Random,
    private readonly tally: Tally,
    private readonly over: () => boolean,
  ) {}

  /** Runs until the end of the soak. Throws on a wrong answer or a timeout. */
  async run(): Promise<void> {
    while (!this.over()) {
      try {
        await this.visit();
      } catch (err) {
        if (!(err instanceof Lost))
          throw new Error(`client ${this.number}: ${err instanceof Error ? err.message : err}`, { cause: err });
        if (err.message === 'login') this.tally.refused++;
        else this.tally.serversLost++;
        await this.conn?.destroy();
      }
    }
    await this.conn?.destroy();
  }

  private async visit(): Promise<void> {
    const conn = await this.bouncer.raw();
    this.conn = conn;
    const answer = await conn.login({ user: 'postgres', params: { application_name: `soak${this.number}` } });
    if (answer.at(-1)?.type !== 'Z') {
      this.checkKilled(conn, answer);
      throw new Lost('login');
    }
    this.tally.logins++;
    const actions = this.random.between(1, ACTIONS_MAX);
    for (let done = 0; done < actions && !this.over(); done++) await this.act(conn);
    if (this.random.one(2)) await conn.end();
    else await this.vanish(conn);
  }

  private act(conn: RawClient): Promise<void> {
    const kind = this.random.below(100);
    if (kind < 30) return this.simple(conn);
    if (kind < 55) return this.extended(conn);
    if (kind < 65) return this.transaction(conn);
    if (kind < 72) return this.many(conn);
    if (kind < 78) return this.failing(conn);
    if (kind < 84) return this.canceling(conn);
    if (kind < 86) return this.racing(conn);
    return this.idle();
  }

  private async idle(): Promise<void> {
    this.tally.idles++;
    await pause(this.random.below(IDLE_MS_MAX));
  }

  private token(): string {
    return `c${this.number}-${++lastToken}`;
  }

  /** All messages up to ReadyForQuery. Throws Lost if the server was killed. */
  private async answer(conn: RawClient): Promise<Message[]> {
    const messages = await conn.until('Z', STUCK_MS);
    if (messages.at(-1)?.type === 'Z') return messages;
    this.checkKilled(conn, messages);
    throw new Lost('server');
  }

  /** Checks that an unexpected end of the connection is explained by a killed server. */
  private checkKilled(conn: RawClient, messages: Message[]): void {
    // the first error is PostgreSQL's, and the pooler's follows
    const error = messages.find((msg) => msg.type === 'E');
    if (error === undefined) throw new Error(`the connection ended without a word: ${conn.error ?? 'end of file'}`);
    const { M: text = '' } = errorFields(error);
    if (!KILLED.test(text)) throw new Error(`the connection ended: ${text}`);
  }

  /** Checks that the answer has exactly these rows and no error. */
  private expect(messages: Message[], rows: string[]): void {
    const error = messages.find((msg) => msg.type === 'E');
    if (error !== undefined)
      throw new Error(`an error for ${rows[0]}: ${errorFields(error).C} ${errorFields(error).M}`);
    const got = messages.filter((msg) => msg.type === 'D').map((msg) => rowValues(msg)[0]);
    if (got.join() !== rows.join()) throw new Error(`asked for ${rows}, got ${got}`);
    this.tally.answers++;
  }

  private async simple(conn: RawClient): Promise<void> {
    const token = this.token();
    await conn.sendMessage('Q', cstring(`SELECT '${token}'`));
    this.expect(await this.answer(conn), [token]);
  }

  private async extended(conn: RawClient): Promise<void> {
    const token = this.token();
    await conn.send(
      message('P', cstring(''), cstring('SELECT $1::text'), int16(0)),
      message('B', cstring(''), cstring(''), int16(0), int16(1), int32(token.length), Buffer.from(token), int16(0)),
      message('D', cstring('P')),
      message('E', cstring(''), int32(0)),
      message('S'),
    );
    this.expect(await this.answer(conn), [token]);
  }

  private async transaction(conn: RawClient): Promise<void> {
    await conn.sendMessage('Q', cstring('BEGIN'));
    this.expect(await this.answer(conn), []);
    const token = this.token();
    await conn.sendMessage('Q', cstring(`SELECT set_config('soak.token', '${token}', true)`));
    this.expect(await this.answer(conn), [token]);
    if (this.random.one(4)) await this.idle();
    // succeeds only on the same server, which has the token
    await conn.sendMessage('Q', cstring("SELECT current_setting('soak.token')"));
    this.expect(await this.answer(conn), [token]);
    await conn.sendMessage('Q', cstring('COMMIT'));
    this.expect(await this.answer(conn), []);
  }

  private async many(conn: RawClient): Promise<void> {
    const token = this.token();
    const count = this.random.between(1, 300);
    await conn.sendMessage('Q', cstring(`SELECT '${token}-' || n FROM generate_series(1, ${count}) n`));
    this.expect(
      await this.answer(conn),
      Array.from({ length: count }, (_, n) => `${token}-${n + 1}`),
    );
  }

  private async failing(conn: RawClient): Promise<void> {
    const token = this.token();
    await conn.sendMessage('Q', cstring(`SELECT "${token}"`));
    const error = (await this.answer(conn)).find((msg) => msg.type === 'E');
    if (error === undefined || !errorFields(error).M?.includes(token)) throw new Error(`the wrong error for ${token}`);
    this.tally.errors++;
  }

  /** Runs a query that ends only when it is canceled. */
  private async canceling(conn: RawClient): Promise<void> {
    const token = this.token();
    await conn.sendMessage('Q', cstring(`SELECT '${token}', pg_sleep(600)`));
    const ended = this.answer(conn).finally(() => {
      waiting = false;
    });
    ended.catch(() => {});
    let waiting = true;
    // a cancel request before the query has a server has no effect, so it is repeated
    while (waiting) {
      this.tally.cancels++;
      await cancelRequest(await this.bouncer.raw(), conn.backendPid, conn.backendKey);
      if (waiting) await Promise.race([ended.catch(() => {}), pause(50)]);
    }
    const error = (await ended).find((msg) => msg.type === 'E');
    if (error === undefined || errorFields(error).C !== QUERY_CANCELED) throw new Error(`${token} was not canceled`);
    this.tally.canceled++;
  }

  /** Sends a cancel request that races with the end of its query: it must not hit another query. */
  private async racing(conn: RawClient): Promise<void> {
    const token = this.token();
    await conn.sendMessage('Q', cstring(`SELECT '${token}' FROM pg_sleep(0.002)`));
    this.tally.cancels++;
    const cancel = this.bouncer.raw().then((on) => cancelRequest(on, conn.backendPid, conn.backendKey));
    const messages = await this.answer(conn).finally(() => cancel);
    const error = messages.find((msg) => msg.type === 'E');
    if (error === undefined) this.expect(messages, [token]);
    else if (errorFields(error).C !== QUERY_CANCELED) throw new Error(`${token}: ${errorFields(error).M}`);
    else this.tally.canceled++;
  }

  /** Disconnects without Terminate: idle, in a query, in a transaction, within a message. */
  private async vanish(conn: RawClient): Promise<void> {
    this.tally.vanished++;
    const where = this.random.below(5);
    if (where === 1) await conn.sendMessage('Q', cstring('SELECT pg_sleep(0.02)'));
    else if (where === 2) await conn.sendMessage('Q', cstring('BEGIN'));
    else if (where === 3) await conn.send(message('Q', cstring("SELECT 'never'")).subarray(0, 9));
    else if (where === 4)
      await conn.sendMessage('Q', cstring('SELECT repeat($$x$$, 100000) FROM generate_series(1, 50)'));
    const how = this.random.below(3);
    if (how === 0) {
      reset(conn.socket);
    } else if (how === 1) {
      conn.socket.destroy();
    } else {
      // half-closed: the pooler has to close the other half
      conn.socket.end();
      await conn.until('', STUCK_MS);
    }
    await conn.closed;
  }
}
