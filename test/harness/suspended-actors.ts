/*
 * Clients in the middle of some work while the pooler is replaced by the classic exchange, which carries the rows of
 * SHOW FDS and no buffered bytes. The old process is suspended until its buffers are empty or suspend_timeout has
 * passed. Clients that complete their packets meanwhile are kept. Other clients are closed, with an error where that is
 * possible. PgBouncer does the same, which the tests check as a control.
 */

import assert from 'node:assert/strict';
import {
  type Actor,
  type ActorContext,
  ask,
  bigSql,
  checkBigRow,
  login,
  type Make,
  query,
  ROW_BYTES,
  ROWS,
  rowsOf,
} from './actor';
import { cstring, errorFields, int32, letters, type Message, message, type RawClient, rowValues } from './raw-client';
import { copyOutSql } from './transfer-actors';

function pause(ms: number): Promise<void> {
  return new Promise((wake) => setTimeout(wake, ms));
}

/** A database for these actors only, whose pool has one server. */
function narrow(context: ActorContext): ActorContext {
  return { ...context, database: `${context.database}_narrow_${context.unix ? 'unix' : 'tcp'}` };
}

/* ---- those that are kept ---- */

/** Sends the other half while the old process waits for it. */
function halfSentAndFinished(name: string, length: number, part: number): Make {
  return (context) => {
    let client: RawClient;
    const packet = message('Q', cstring(`SELECT length('${'q'.repeat(length)}')`));
    return {
      name: `a half-sent packet that is finished while the old process waits: ${name}`,
      before: async () => {
        client = await login(context);
        await client.send(packet.subarray(0, part));
      },
      during: () => client.send(packet.subarray(part)),
      after: async () => {
        assert.deepEqual(rowsOf(await client.until('Z')), [[String(length)]]);
        assert.equal(await ask(client, 'SELECT 4'), '4');
        await client.end();
      },
    };
  };
}

/** Reads a 10 MB answer slowly, from before the reboot until after it. */
function slowReader(name: string, sql: string, check: (client: RawClient, i: number) => Promise<void>): Make {
  return (context) => {
    let client: RawClient;
    let reading: Promise<void> = Promise.resolve();
    let row = 0;
    let hurry = false;
    const some = async (): Promise<void> => {
      client.resume();
      for (let i = 0; i < 20 && row < ROWS; i++) await check(client, ++row);
      client.pause();
    };
    return {
      name: `${name}, half received, its reader slow`,
      before: async () => {
        client = await login(context);
        client.pause();
        await query(client, sql);
        client.resume();
        const head = await client.next();
        assert.ok(head !== null && 'TH'.includes(head.type), head?.type);
        await some();
        // all buffers between PostgreSQL and this client are full now
        await pause(200);
      },
      during: async () => {
        const slowly = async (): Promise<void> => {
          while (!hurry && row < ROWS) {
            await some();
            // too slow to read the whole answer before suspend_timeout
            await pause(80);
          }
        };
        reading = slowly();
        reading.catch(() => {});
      },
      after: async () => {
        hurry = true;
        await reading;
        client.resume();
        while (row < ROWS) await check(client, ++row);
        const rest = letters(await client.until('Z'));
        assert.equal(rest, sql.startsWith('COPY') ? 'cCZ' : 'CZ');
        assert.equal(await ask(client, 'SELECT 5'), '5');
        await client.end();
      },
    };
  };
}

async function nextBigRow(client: RawClient, i: number): Promise<void> {
  const msg = await client.next();
  assert.equal(msg?.type, 'D', `row ${i}: ${msg === null ? 'the connection ended' : JSON.stringify(errorFields(msg))}`);
  checkBigRow(rowValues(msg as Message), i);
}

const line = 'y'.repeat(ROW_BYTES);
async function nextCopyLine(client: RawClient, i: number): Promise<void> {
  const msg = await client.next();
  assert.equal(msg?.type, 'd', `line ${i}`);
  assert.equal(msg?.body.toString('latin1'), `${i}\t${line}\n`);
}

/** Sends rows all the time. */
const copyInSender: Make = (context) => {
  let client: RawClient;
  let sending: Promise<void> = Promise.resolve();
  let sent = 0;
  let enough = false;
  return {
    name: 'COPY in from a sender that never stops',
    before: async () => {
      client = await login(context);
      await client.query('BEGIN');
      await client.query('CREATE TEMP TABLE sent (i int, t text) ON COMMIT DROP');
      await query(client, 'COPY sent FROM STDIN');
      assert.equal(letters(await client.until('G')), 'G');
      const all = async (): Promise<void> => {
        while (!enough) {
          const rows = Array.from({ length: 20 }, () => message('d', Buffer.from(`${sent++}\t${line}\n`)));
          await client.send(...rows);
          await pause(1);
        }
      };
      sending = all();
      sending.catch(() => {});
    },
    after: async () => {
      enough = true;
      await sending;
      await client.sendMessage('c');
      assert.equal(letters(await client.until('Z')), 'CZ');
      const sum = (sent * (sent - 1)) / 2;
      const sql = `SELECT count(*) || ' ' || sum(i) || ' ' || bool_and(t = '${line}') FROM sent`;
      assert.equal(await ask(client, sql), `${sent} ${sum} true`);
      await client.query('COMMIT');
      await client.end();
    },
  };
};

/** Waits for a server whose client is done in time. */
const waitingForRunner: Make = (context) => {
  let runner: RawClient;
  let waiter: RawClient;
  return {
    name: 'waiting in the queue for a query that ends in time',
    before: async () => {
      runner = await login(narrow(context));
      waiter = await login(narrow(context));
      await query(runner, "SELECT 'ran' FROM pg_sleep(1.5)");
      await pause(50);
      await query(waiter, "SELECT 'waited'");
      await pause(50);
    },
    after: async () => {
      assert.deepEqual(rowsOf(await runner.until('Z')), [['ran']]);
      assert.deepEqual(rowsOf(await waiter.until('Z')), [['waited']]);
      for (const client of [runner, waiter]) await client.end();
    },
  };
};

const loggingIn: Make = (context) => {
  let client: RawClient;
  return {
    name: 'a login that begins while the old process waits',
    before: async () => {
      client = await context.chain.raw(context.unix);
      await pause(50);
    },
    during: () => client.startup({ user: 'postgres', database: context.database }),
    after: async () => {
      assert.equal((await client.until('Z')).at(-1)?.type, 'Z');
      assert.equal(await ask(client, 'SELECT 7'), '7');
      await client.end();
    },
  };
};

/* ---- those that suspend_timeout closes ---- */

/** Checks that the client gets only the error with the reason. */
async function closedByTimeout(client: RawClient): Promise<void> {
  let last = await client.next();
  // a client that has waited long gets a notice first
  while (last?.type === 'N') last = await client.next();
  assert.equal(last?.type, 'E');
  // 1.18 does not wait for the rest of a startup packet at all
  assert.match(errorFields(last as Message).M ?? '', /^(suspend_timeout|client sent partial pkt in startup phase)$/);
  assert.equal((await client.rest()).length, 0);
  await client.destroy();
}

function halfSent(name: string, length: number, part: number): Make {
  return (context) => {
    let client: RawClient;
    const packet = message('Q', cstring(`SELECT length('${'q'.repeat(length)}')`));
    return {
      name: `a half-sent packet: ${name}`,
      before: async () => {
        client = await login(context);
        await client.send(packet.subarray(0, part));
      },
      after: () => closedByTimeout(client),
    };
  };
}

const halfStartup: Make = (context) => {
  let client: RawClient;
  return {
    name: 'a half-sent startup packet',
    before: async () => {
      client = await context.chain.raw(context.unix);
      await client.send(Buffer.concat([int32(100), int32(0x30000), cstring('user')]));
    },
    after: () => closedByTimeout(client),
  };
};

/** Waits for a server whose client keeps it. */
const waitingForHolder: Make = (context) => {
  let holder: RawClient;
  let waiter: RawClient;
  return {
    name: 'waiting in the queue for an open transaction',
    before: async () => {
      holder = await login(narrow(context));
      waiter = await login(narrow(context));
      await holder.query('BEGIN');
      await query(waiter, "SELECT 'waited'");
      await pause(50);
    },
    after: async () => {
      assert.equal(await ask(holder, 'SELECT 8'), '8');
      assert.equal(letters(await holder.query('COMMIT')), 'CZ');
      await holder.end();
      await closedByTimeout(waiter);
    },
  };
};

/** The rows of the big answer, to the byte. */
function bigRows(): Buffer[] {
  return Array.from({ length: ROWS }, (_, at) => {
    const texts = [String(at + 1), String.fromCharCode(65 + ((at + 1) % 26)).repeat(ROW_BYTES)];
    const fields = texts.map((text) => Buffer.concat([int32(text.length), Buffer.from(text)]));
    return message('D', Buffer.from([0, 2]), ...fields);
  });
}

/** Offset of the final error, or the whole length if there is no error. */
function endOfAnswer(got: Buffer): number {
  const at = got.lastIndexOf('SFATAL\0', undefined, 'latin1');
  return at < 0 ? got.length : at - 5;
}

/** Does not read until the reboot is over. It gets the beginning of its answer, and no other byte. */
const stoppedReader: Make = (context) => {
  let client: RawClient;
  return {
    name: 'a half-received 10 MB answer, its reader stopped',
    before: async () => {
      client = await login(context);
      await query(client, bigSql);
      assert.equal((await client.next())?.type, 'T');
      client.pause();
      await pause(200);
    },
    after: async () => {
      client.resume();
      const got = await client.rest();
      const rows = bigRows();
      const end = endOfAnswer(got);
      assert.ok(end > 0 && end < ROWS * ROW_BYTES, `${end} bytes`);
      assert.equal(got.compare(Buffer.concat(rows), 0, end, 0, end), 0, 'what came is not what the server sent');
      if (end < got.length) {
        assert.equal(got.toString('latin1', end, end + 1), 'E');
        assert.match(got.toString('latin1', end), /suspend_timeout/);
        // PgBouncer sends the error even in the middle of a row
        if (context.chain.generations.at(-2)?.kind === 'ts') {
          let boundary = 0;
          for (let i = 0; boundary < end; i++) boundary += (rows[i] as Buffer).length;
          assert.equal(boundary, end, 'the error came in the middle of a row');
        }
      }
      await client.destroy();
    },
  };
};

const kept: Make[] = [
  halfSentAndFinished('3 bytes of its header', 3000, 3),
  halfSentAndFinished('its header', 3000, 5),
  halfSentAndFinished('most of it', 3000, 2000),
  halfSentAndFinished('longer than pkt_buf', 100_000, 50_000),
  slowReader('a 10 MB answer', bigSql, nextBigRow),
  slowReader('10 MB of COPY out', copyOutSql, nextCopyLine),
  copyInSender,
  loggingIn,
];

const closed: Make[] = [
  halfSent('3 bytes of its header', 3000, 3),
  halfSent('its header', 3000, 5),
  halfSent('most of it', 3000, 2000),
  halfSent('longer than pkt_buf', 100_000, 50_000),
  halfStartup,
  waitingForHolder,
  stoppedReader,
];

/** Clients that the classic exchange keeps because they make progress in time. */
export function keptCast(context: ActorContext): Actor[] {
  // in session mode a server stays with its client until the client disconnects
  return [...kept, ...(context.session ? [] : [waitingForRunner])].map((make) => make(context));
}

/** Clients that the classic exchange closes at suspend_timeout. */
export function closedCast(context: ActorContext): Actor[] {
  return closed.map((make) => make(context));
}
