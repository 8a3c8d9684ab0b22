/*
 * Clients in the middle of some work while the pooler is replaced. Each actor brings itself into such a state before
 * the reboots, and afterwards checks every byte that it receives.
 */

import assert from 'node:assert/strict';
import { type Actor, type ActorContext, ask, bigSql, checkBigAnswer, login, type Make, query, rowsOf } from './actor';
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
} from './raw-client';
import { copyIn, copyOut, copyOutPaused, oneHugeRow, slowReader } from './transfer-actors';

/* ---- what the classic rows carry, too ---- */

const idle: Make = (context) => {
  let client: RawClient;
  return {
    name: 'idle',
    before: async () => {
      client = await login(context, { DateStyle: 'German', TimeZone: 'Asia/Tokyo', client_encoding: 'LATIN1' });
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

const transaction: Make = (context) => {
  let client: RawClient;
  let pid: string | null;
  return {
    name: 'in a transaction',
    before: async () => {
      client = await login(context);
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

const running: Make = (context) => {
  let client: RawClient;
  return {
    name: 'a query running',
    before: async () => {
      client = await login(context);
      await query(client, "SELECT pg_sleep(2), 'slept'");
    },
    after: async () => {
      assert.deepEqual(rowsOf(await client.until('Z')), [['', 'slept']]);
      assert.equal(await ask(client, 'SELECT 3'), '3');
      await client.end();
    },
  };
};

const streaming: Make = (context) => {
  let client: RawClient;
  let answer: Promise<void>;
  return {
    name: 'a 10 MB answer streaming',
    before: async () => {
      client = await login(context);
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

/** A packet of which `part` bytes are sent before the reboots. */
function halfSent(name: string, part: number, length = 3000): Make {
  return (context) => {
    let client: RawClient;
    const sql = `SELECT length('${'q'.repeat(length)}')`;
    const packet = message('Q', cstring(sql));
    return {
      name: `a half-sent packet: ${name}`,
      before: async () => {
        client = await login(context);
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

const variables: Make = (context) => {
  let client: RawClient;
  return {
    name: 'every tracked variable',
    before: async () => {
      client = await login(context, { application_name: 'moved', IntervalStyle: 'iso_8601', DateStyle: 'SQL, DMY' });
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

const pipeline: Make = (context) => {
  let client: RawClient;
  return {
    name: 'a pipelined batch',
    before: async () => {
      client = await login(context);
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

const prepared: Make = (context) => {
  let client: RawClient;
  const bigSql = `SELECT length('${'p'.repeat(300_000)}') + $1::int`;
  const big = Buffer.concat([message('P', cstring('big'), cstring(bigSql), int16(0)), execute('big', '1')]);
  return {
    name: 'prepared statements, one of them half sent',
    before: async () => {
      client = await login(context);
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

const failed: Make = (context) => {
  let client: RawClient;
  return {
    name: 'in a failed transaction',
    before: async () => {
      client = await login(context);
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

const loggingIn: Make = (context) => {
  let client: RawClient;
  const startup = Buffer.from(`user\0postgres\0database\0${context.database}\0\0`);
  const packet = Buffer.concat([int32(startup.length + 8), int32(0x30000), startup]);
  return {
    name: 'a half-sent startup packet',
    before: async () => {
      client = await context.chain.raw(context.unix);
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

/** Two clients and one server: the second client waits, and gets the server when the first is done. */
const waiting: Make = (context) => {
  let first: RawClient;
  let second: RawClient;
  let third: RawClient;
  const narrow = { ...context, database: `${context.database}_narrow_${context.unix ? 'unix' : 'tcp'}` };
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
      if (context.session) await first.end();
      const [second1] = rowsOf(await second.until('Z'));
      assert.equal(second1?.[0], 'second');
      if (context.session) await second.end();
      const [third1] = rowsOf(await third.until('Z'));
      assert.equal(third1?.[0], 'third');
      assert.ok(String(third1?.[1]) > String(second1?.[1]), 'the queue changed its order');
      for (const client of context.session ? [third] : [first, second, third]) await client.end();
    },
  };
};

/** Session state that exists only on the client's own server. */
const sessionState: Make = (context) => {
  let client: RawClient;
  return {
    name: 'a session with prepared statements and LISTEN',
    before: async () => {
      client = await login(context);
      await client.query('PREPARE mine AS SELECT 9 + $1::int');
      await client.query(`LISTEN chan_${context.unix}`);
    },
    after: async () => {
      assert.equal(await ask(client, 'EXECUTE mine(1)'), '10');
      await context.chain.sql(`NOTIFY chan_${context.unix}, 'heard'`);
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

/** All actors in this context. @param full the handover is between two tsbouncer processes */
export function castOf(context: ActorContext, full: boolean): Actor[] {
  const makers = [...common, ...(full ? fullOnly : []), ...(context.session ? [sessionState] : [])];
  return makers.map((make) => make(context));
}

/** Runs what the actors do between SUSPEND and the exit of the old process. */
export async function meanwhile(actors: { context: ActorContext; actor: Actor }[]): Promise<void> {
  await Promise.all(actors.map(({ actor }) => actor.during?.()));
}

/** Brings all actors into their states, runs the reboots, and lets each actor finish; names an actor that fails. */
export async function play(
  actors: { context: ActorContext; actor: Actor }[],
  reboots: () => Promise<void>,
): Promise<void> {
  const each = async (what: 'before' | 'after'): Promise<void> => {
    for (const { context, actor } of actors) {
      try {
        await actor[what]();
      } catch (err) {
        const where = `${actor.name} (${context.unix ? 'unix' : 'tcp'}, ${context.database}, ${what})`;
        throw new Error(`${where}: ${(err as Error).stack}`);
      }
    }
  };
  await each('before');
  await reboots();
  await each('after');
}
