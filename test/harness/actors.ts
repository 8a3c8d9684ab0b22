/*
 * Clients that are in the middle of something while the pooler under them is replaced. Each brings itself into that state,
 * lets the reboots happen, and then checks every byte that it gets.
 */

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import {
  cstring,
  errorFields,
  int16,
  int32,
  letters,
  type Message,
  message,
  parameterStatus,
  type RawClient,
  rowValues,
} from './raw-client';
import type { RebootChain } from './reboot-chain';

export interface Actor {
  name: string;
  /** ready to be rebooted */
  before: () => Promise<void>;
  /** what it does between SUSPEND and the end of the old process, in the classic exchange */
  during?: () => Promise<void>;
  /** finishes what it was about, and checks it */
  after: () => Promise<void>;
}

/** Where the actors connect, and what the pooler does there. */
export interface Stage {
  place: RebootChain;
  unix: boolean;
  database: string;
  session: boolean;
}

export type Make = (stage: Stage) => Actor;

/** Rows of the big answers: 10 MB in all. */
export const ROWS = 10_000;
export const ROW_BYTES = 1_000;

export async function login(stage: Stage, params: Record<string, string> = {}): Promise<RawClient> {
  const client = await stage.place.raw(stage.unix);
  const answer = await client.login({ database: stage.database, params });
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

function md5(text: string): string {
  return createHash('md5').update(text, 'latin1').digest('hex');
}

export const bigSql = `SELECT i, repeat(chr(65 + i % 26), ${ROW_BYTES}) FROM generate_series(1, ${ROWS}) i`;

export function checkBigRow(values: (string | null)[], i: number): void {
  assert.equal(values[0], String(i));
  assert.equal(values[1], String.fromCharCode(65 + (i % 26)).repeat(ROW_BYTES), `row ${i}`);
}

async function checkBigAnswer(client: RawClient): Promise<void> {
  const rows = rowsOf(await client.until('ZE', 60_000));
  assert.equal(rows.length, ROWS);
  for (let i = 0; i < ROWS; i++) checkBigRow(rows[i] as (string | null)[], i + 1);
}

/* ---- what the classic rows carry, too ---- */

const idle: Make = (stage) => {
  let client: RawClient;
  return {
    name: 'idle',
    before: async () => {
      client = await login(stage, { DateStyle: 'German', TimeZone: 'Asia/Tokyo', client_encoding: 'LATIN1' });
      await ask(client, 'SELECT 1');
    },
    after: async () => {
      assert.equal(await ask(client, "SELECT date '2026-11-22'"), '22.11.2026');
      assert.equal(await ask(client, 'SHOW TimeZone'), 'Asia/Tokyo');
      assert.equal(await ask(client, 'SHOW client_encoding'), 'LATIN1');
      await client.end();
    },
  };
};

const transaction: Make = (stage) => {
  let client: RawClient;
  let pid: string | null;
  return {
    name: 'in a transaction',
    before: async () => {
      client = await login(stage);
      await client.query('BEGIN');
      await client.query('CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT 42 AS x');
      pid = await ask(client, 'SELECT pg_backend_pid()');
    },
    after: async () => {
      assert.equal(await ask(client, 'SELECT x FROM mine'), '42');
      assert.equal(await ask(client, 'SELECT pg_backend_pid()'), pid);
      const commit = await client.query('COMMIT');
      assert.equal(letters(commit), 'CZ');
      assert.equal(await ask(client, 'SELECT 2'), '2');
      await client.end();
    },
  };
};

const running: Make = (stage) => {
  let client: RawClient;
  return {
    name: 'a query running',
    before: async () => {
      client = await login(stage);
      await query(client, "SELECT pg_sleep(2), 'slept'");
    },
    after: async () => {
      assert.deepEqual(rowsOf(await client.until('Z')), [['', 'slept']]);
      assert.equal(await ask(client, 'SELECT 3'), '3');
      await client.end();
    },
  };
};

const streaming: Make = (stage) => {
  let client: RawClient;
  let answer: Promise<void>;
  return {
    name: 'a 10 MB answer streaming',
    before: async () => {
      client = await login(stage);
      await query(client, `${bigSql}, pg_sleep(0.3)`);
      answer = checkBigAnswer(client);
      answer.catch(() => {});
    },
    after: async () => {
      await answer;
      await client.end();
    },
  };
};

const copyIn: Make = (stage) => {
  let client: RawClient;
  return {
    name: 'COPY in',
    before: async () => {
      client = await login(stage);
      await client.query('BEGIN');
      await client.query('CREATE TEMP TABLE copied (i int, t text) ON COMMIT DROP');
      await query(client, 'COPY copied FROM STDIN');
      assert.equal(letters(await client.until('G')), 'G');
      for (let i = 0; i < 500; i++) await client.sendMessage('d', Buffer.from(`${i}\tbefore ${i}\n`));
    },
    after: async () => {
      for (let i = 500; i < 1000; i++) await client.sendMessage('d', Buffer.from(`${i}\tafter ${i}\n`));
      await client.sendMessage('c');
      const done = await client.until('Z');
      assert.equal(letters(done), 'CZ');
      const texts = Array.from({ length: 1000 }, (_, i) => `${i < 500 ? 'before' : 'after'} ${i}`);
      assert.equal(await ask(client, "SELECT md5(string_agg(t, ',' ORDER BY i)) FROM copied"), md5(texts.join(',')));
      await client.query('COMMIT');
      await client.end();
    },
  };
};

export const copyOutSql = `COPY (SELECT i, repeat('y', ${ROW_BYTES}) FROM generate_series(1, ${ROWS}) i) TO STDOUT`;

async function checkCopyOut(client: RawClient): Promise<void> {
  const messages = await client.until('ZE', 60_000);
  const data = messages.filter((msg) => msg.type === 'd');
  assert.equal(data.length, ROWS);
  const line = 'y'.repeat(ROW_BYTES);
  data.forEach((msg, at) => {
    assert.equal(msg.body.toString('latin1'), `${at + 1}\t${line}\n`);
  });
  assert.equal(letters(messages.filter((msg) => msg.type !== 'd')), 'HcCZ');
}

const copyOut: Make = (stage) => {
  let client: RawClient;
  let answer: Promise<void>;
  return {
    name: 'COPY out',
    before: async () => {
      client = await login(stage);
      await query(client, copyOutSql);
      answer = checkCopyOut(client);
      answer.catch(() => {});
    },
    after: async () => {
      await answer;
      await client.end();
    },
  };
};

/* ---- what only the full handover carries ---- */

const slowReader: Make = (stage) => {
  let client: RawClient;
  return {
    name: 'a half-received 10 MB answer',
    before: async () => {
      client = await login(stage);
      await query(client, bigSql);
      assert.equal((await client.next())?.type, 'T');
      for (let i = 1; i <= 50; i++) {
        const msg = await client.next();
        assert.equal(msg?.type, 'D');
        checkBigRow(rowValues(msg as Message), i);
      }
      client.pause();
    },
    after: async () => {
      client.resume();
      const rows = rowsOf(await client.until('Z', 60_000));
      assert.equal(rows.length, ROWS - 50);
      for (let i = 50; i < ROWS; i++) checkBigRow(rows[i - 50] as (string | null)[], i + 1);
      await client.end();
    },
  };
};

const oneHugeRow: Make = (stage) => {
  let client: RawClient;
  const length = 10_000_000;
  return {
    name: 'one row of 10 MB, half received',
    before: async () => {
      client = await login(stage);
      client.pause();
      await query(client, `SELECT repeat('z', ${length}), 'end'`);
    },
    after: async () => {
      client.resume();
      assert.deepEqual(rowsOf(await client.until('Z', 60_000)), [['z'.repeat(length), 'end']]);
      await client.end();
    },
  };
};

const copyOutPaused: Make = (stage) => {
  let client: RawClient;
  return {
    name: 'COPY out to a reader that stopped',
    before: async () => {
      client = await login(stage);
      client.pause();
      await query(client, copyOutSql);
    },
    after: async () => {
      client.resume();
      await checkCopyOut(client);
      await client.end();
    },
  };
};

/** A packet of which `part` bytes are sent before. */
function halfSent(name: string, part: number, length = 3000): Make {
  return (stage) => {
    let client: RawClient;
    const sql = `SELECT length('${'q'.repeat(length)}')`;
    const packet = message('Q', cstring(sql));
    return {
      name: `a half-sent packet: ${name}`,
      before: async () => {
        client = await login(stage);
        await client.send(packet.subarray(0, part));
      },
      after: async () => {
        await client.send(packet.subarray(part));
        assert.deepEqual(rowsOf(await client.until('Z')), [[String(length)]]);
        assert.equal(await ask(client, 'SELECT 4'), '4');
        await client.end();
      },
    };
  };
}

const variables: Make = (stage) => {
  let client: RawClient;
  return {
    name: 'every tracked variable',
    before: async () => {
      client = await login(stage, { application_name: 'moved', IntervalStyle: 'iso_8601', DateStyle: 'SQL, DMY' });
      await client.query("SET application_name = 'renamed'");
    },
    after: async () => {
      assert.equal(await ask(client, 'SHOW application_name'), 'renamed');
      assert.equal(await ask(client, 'SHOW IntervalStyle'), 'iso_8601');
      assert.equal(await ask(client, 'SHOW DateStyle'), 'SQL, DMY');
      await client.end();
    },
  };
};

/** Parse, Bind, Execute, Sync of one query. */
function extended(sql: string): Buffer {
  return Buffer.concat([
    message('P', cstring(''), cstring(sql), int16(0)),
    message('B', cstring(''), cstring(''), int16(0), int16(0), int16(0)),
    message('E', cstring(''), int32(0)),
    message('S'),
  ]);
}

const pipeline: Make = (stage) => {
  let client: RawClient;
  return {
    name: 'a pipelined batch',
    before: async () => {
      client = await login(stage);
      const sleep = extended("SELECT 'slept' FROM pg_sleep(1.5)");
      await client.send(...[1, 2, 3].map((i) => extended(`SELECT ${i}`)), sleep, extended('SELECT 5'));
    },
    after: async () => {
      const seen: (string | null)[] = [];
      for (let i = 0; i < 5; i++) seen.push(rowsOf(await client.until('Z'))[0]?.[0] ?? null);
      assert.deepEqual(seen, ['1', '2', '3', 'slept', '5']);
      assert.equal(await ask(client, 'SELECT 6'), '6');
      await client.end();
    },
  };
};

/** Bind, Execute, Sync of a named statement with one parameter. */
function execute(name: string, value: string): Buffer {
  const param = Buffer.from(value);
  return Buffer.concat([
    message('B', cstring(''), cstring(name), int16(0), int16(1), int32(param.length), param, int16(0)),
    message('E', cstring(''), int32(0)),
    message('S'),
  ]);
}

const prepared: Make = (stage) => {
  let client: RawClient;
  const bigSql = `SELECT length('${'p'.repeat(300_000)}') + $1::int`;
  const big = Buffer.concat([message('P', cstring('big'), cstring(bigSql), int16(0)), execute('big', '1')]);
  return {
    name: 'prepared statements, one of them half sent',
    before: async () => {
      client = await login(stage);
      await client.send(message('P', cstring('mine'), cstring('SELECT $1::int + 1'), int16(0)), execute('mine', '1'));
      assert.deepEqual(rowsOf(await client.until('Z')), [['2']]);
      await client.send(big.subarray(0, 200_000));
    },
    after: async () => {
      await client.send(big.subarray(200_000));
      assert.deepEqual(rowsOf(await client.until('Z')), [['300001']]);
      await client.send(execute('mine', '41'));
      assert.deepEqual(rowsOf(await client.until('Z')), [['42']]);
      await client.end();
    },
  };
};

const failed: Make = (stage) => {
  let client: RawClient;
  return {
    name: 'in a failed transaction',
    before: async () => {
      client = await login(stage);
      await client.query('BEGIN');
      assert.equal(letters(await client.query('SELECT 1/0')).includes('E'), true);
    },
    after: async () => {
      const again = await client.query('SELECT 1');
      assert.match(errorFields(again.find((msg) => msg.type === 'E') as Message).M ?? '', /transaction is aborted/);
      assert.equal(letters(await client.query('ROLLBACK')), 'CZ');
      await client.end();
    },
  };
};

const loggingIn: Make = (stage) => {
  let client: RawClient;
  const startup = Buffer.from(`user\0postgres\0database\0${stage.database}\0\0`);
  const packet = Buffer.concat([int32(startup.length + 8), int32(0x30000), startup]);
  return {
    name: 'a half-sent startup packet',
    before: async () => {
      client = await stage.place.raw(stage.unix);
      await client.send(packet.subarray(0, 15));
    },
    after: async () => {
      await client.send(packet.subarray(15));
      const welcome = await client.until('Z');
      assert.equal(welcome.at(-1)?.type, 'Z');
      assert.ok(welcome.some((msg) => msg.type === 'S' && parameterStatus(msg)[0] === 'server_version'));
      assert.equal(await ask(client, 'SELECT 7'), '7');
      await client.end();
    },
  };
};

/** Two clients and one server: the second waits, and gets it when the first is done. */
const waiting: Make = (stage) => {
  let first: RawClient;
  let second: RawClient;
  let third: RawClient;
  const narrow = { ...stage, database: `${stage.database}_narrow_${stage.unix ? 'unix' : 'tcp'}` };
  return {
    name: 'waiting in the queue',
    before: async () => {
      first = await login(narrow);
      second = await login(narrow);
      third = await login(narrow);
      await first.query('BEGIN');
      await query(second, "SELECT 'second', now()");
      // the order in the queue is the order of arrival
      await new Promise((wake) => setTimeout(wake, 50));
      await query(third, "SELECT 'third', now()");
      await new Promise((wake) => setTimeout(wake, 50));
    },
    after: async () => {
      assert.equal(await ask(first, 'SELECT 8'), '8');
      await first.query('COMMIT');
      if (stage.session) await first.end();
      const [second1] = rowsOf(await second.until('Z'));
      assert.equal(second1?.[0], 'second');
      if (stage.session) await second.end();
      const [third1] = rowsOf(await third.until('Z'));
      assert.equal(third1?.[0], 'third');
      assert.ok(String(third1?.[1]) > String(second1?.[1]), 'the queue changed its order');
      for (const client of stage.session ? [third] : [first, second, third]) await client.end();
    },
  };
};

/** Things of a session that only its own server knows. */
const sessionState: Make = (stage) => {
  let client: RawClient;
  return {
    name: 'a session with prepared statements and LISTEN',
    before: async () => {
      client = await login(stage);
      await client.query('PREPARE mine AS SELECT 9 + $1::int');
      await client.query(`LISTEN chan_${stage.unix}`);
    },
    after: async () => {
      assert.equal(await ask(client, 'EXECUTE mine(1)'), '10');
      await stage.place.sql(`NOTIFY chan_${stage.unix}, 'heard'`);
      const notice = (await client.until('A')).at(-1) as Message;
      assert.match(notice.body.toString('latin1'), /heard/);
      await client.end();
    },
  };
};

const common: Make[] = [idle, transaction, failed, running, streaming, copyIn, copyOut];
const fullOnly: Make[] = [
  slowReader,
  oneHugeRow,
  copyOutPaused,
  halfSent('3 bytes of its header', 3),
  halfSent('its header', 5),
  halfSent('most of it', 2000),
  halfSent('longer than pkt_buf', 50_000, 100_000),
  variables,
  pipeline,
  prepared,
  loggingIn,
  waiting,
];

/** Everybody for this stage. @param full the handover is one between two tsbouncers */
export function castOf(stage: Stage, full: boolean): Actor[] {
  const makers = [...common, ...(full ? fullOnly : []), ...(stage.session ? [sessionState] : [])];
  return makers.map((make) => make(stage));
}

/** What all do between SUSPEND and the end of the old process. */
export async function meanwhile(actors: { stage: Stage; actor: Actor }[]): Promise<void> {
  await Promise.all(actors.map(({ actor }) => actor.during?.()));
}

/** Brings all into their states, has the reboots happen, and lets each finish; names the one that fails. */
export async function play(actors: { stage: Stage; actor: Actor }[], reboots: () => Promise<void>): Promise<void> {
  const each = async (what: 'before' | 'after'): Promise<void> => {
    for (const { stage, actor } of actors) {
      try {
        await actor[what]();
      } catch (err) {
        const where = `${actor.name} (${stage.unix ? 'unix' : 'tcp'}, ${stage.database}, ${what})`;
        throw new Error(`${where}: ${(err as Error).stack}`);
      }
    }
  };
  await each('before');
  await reboots();
  await each('after');
}
