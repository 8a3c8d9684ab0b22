/*
 * The extended protocol at the level of messages: pipelines of many requests, errors in the middle, Flush, Sync,
 * portals, and packets that arrive in any pieces. The pooler must not lose an answer, mix up two clients, or release a
 * server too early.
 */

import assert from 'node:assert/strict';
import { Bouncer, it, PgCluster } from '../harness';
import { after, before, describe } from '../harness/limits';
import {
  cstring,
  errorFields,
  int16,
  int32,
  letters,
  type Message,
  message,
  type RawClient,
  rowValues,
} from '../harness/raw-client';

const MODES = ['session', 'transaction', 'statement'];

let pg: PgCluster;
let bouncer: Bouncer;

before(async () => {
  pg = await PgCluster.start();
  const databases = Object.fromEntries(
    MODES.map((mode) => [mode, pg.connstr('postgres', `pool_mode=${mode} pool_size=2`)]),
  );
  bouncer = await Bouncer.start({ cluster: pg, databases });
});
after(async () => {
  await bouncer.stop();
  await pg.stop();
});

async function rawIn(mode: string): Promise<RawClient> {
  const raw = await bouncer.raw();
  assert.equal(letters(await raw.login({ database: mode })).at(-1), 'Z');
  return raw;
}

const SYNC = message('S');
const FLUSH = message('H');

function parse(query: string, name = ''): Buffer {
  return message('P', cstring(name), cstring(query), int16(0));
}

/** A Bind with text parameters and text results. */
function bind(values: string[] = [], statement = '', portal = ''): Buffer {
  const texts = values.map((value) => Buffer.concat([int32(Buffer.byteLength(value)), Buffer.from(value)]));
  return message('B', cstring(portal), cstring(statement), int16(0), int16(values.length), ...texts, int16(0));
}

function describePortal(portal = ''): Buffer {
  return message('D', Buffer.from('P'), cstring(portal));
}

function execute(rowsMax = 0, portal = ''): Buffer {
  return message('E', cstring(portal), int32(rowsMax));
}

/** All messages of a query except Sync. */
function whole(query: string, ...values: string[]): Buffer {
  return Buffer.concat([parse(query), bind(values), describePortal(), execute()]);
}

function rows(answer: Message[]): (string | null)[] {
  return answer.filter((msg) => msg.type === 'D').map((msg) => rowValues(msg)[0] ?? null);
}

/** Reads up to the given number of ReadyForQuery messages. */
async function untilReady(raw: RawClient, count: number): Promise<Message[]> {
  const answer: Message[] = [];
  for (let n = 0; n < count; n++) answer.push(...(await raw.until('Z')));
  return answer;
}

for (const mode of MODES) {
  describe(`${mode} pooling`, () => {
    it(`a thousand queries sent at once are answered in order: ${mode} pooling`, async () => {
      const raw = await rawIn(mode);
      const count = 1000;
      const sent = Array.from({ length: count }, (_, n) => Buffer.concat([whole('SELECT $1', String(n)), SYNC]));
      await raw.send(...sent);
      const answer = await untilReady(raw, count);
      assert.equal(letters(answer), '12TDCZ'.repeat(count));
      assert.deepEqual(
        rows(answer),
        Array.from({ length: count }, (_, n) => String(n)),
      );
      await raw.end();
    });

    it(`requests before one Sync form one transaction: ${mode} pooling`, async () => {
      const raw = await rawIn(mode);
      const ids = Array.from({ length: 20 }, () => whole('SELECT txid_current()::text || pg_backend_pid()'));
      await raw.send(...ids, SYNC);
      const answer = await raw.until('Z');
      assert.equal(new Set(rows(answer)).size, 1);
      assert.equal(rows(answer).length, 20);
      await raw.end();
    });

    it(`an error skips exactly the requests up to Sync: ${mode} pooling`, async () => {
      const raw = await rawIn(mode);
      await raw.send(
        whole('SELECT 1'),
        whole('SELECT 1 / (random() * 0)::int'),
        whole('SELECT 2'),
        whole('SELECT 3'),
        SYNC,
        whole('SELECT 4'),
        SYNC,
      );
      const answer = await untilReady(raw, 2);
      assert.equal(letters(answer), '12TDC12TEZ12TDCZ');
      assert.equal(errorFields(answer.find((msg) => msg.type === 'E') as Message).C, '22012');
      assert.deepEqual(rows(answer), ['1', '4']);
      // an error in Parse, in Bind, in Execute, each followed by requests
      for (const [bad, want] of [
        [whole('SELECT nonsense'), 'EZ'],
        [whole('SELECT 1/0'), '1EZ'],
        [whole('SELECT $1::int', 'x'), '1EZ'],
        [execute(0, 'no_such_portal'), 'EZ'],
        [message('C', Buffer.from('S'), cstring('never_there')), '3'],
      ] as const) {
        await raw.send(bad, whole('SELECT 5'), SYNC);
        const got = letters(await raw.until('Z'));
        assert.equal(got, want === '3' ? '312TDCZ' : want);
        assert.deepEqual(rows(await raw.query('SELECT 6')), ['6']);
      }
      await raw.end();
    });

    it(`a statement that was never prepared is an error: ${mode} pooling`, async () => {
      const raw = await rawIn(mode);
      await raw.send(bind([], 'no_such_statement'), execute(), whole('SELECT 5'), SYNC);
      const answer = await raw.until('Z');
      const error = errorFields(answer[0] as Message);
      assert.equal(letters(answer), 'EZ');
      const fields = [error.S, error.C, error.M];
      assert.deepEqual(fields, ['ERROR', '26000', 'prepared statement "no_such_statement" does not exist']);
      assert.deepEqual(rows(await raw.query('SELECT 6')), ['6']);
      await raw.destroy();
    });

    it(`five hundred pipelined queries of which half fail are all answered: ${mode} pooling`, async () => {
      const raw = await rawIn(mode);
      const count = 500;
      await raw.send(
        ...Array.from({ length: count }, (_, n) => Buffer.concat([whole(`SELECT ${n} / ${n % 2}`), SYNC])),
      );
      const answer = await untilReady(raw, count);
      assert.equal(answer.filter((msg) => msg.type === 'E').length, count / 2);
      assert.deepEqual(
        rows(answer),
        Array.from({ length: count / 2 }, (_, n) => String(2 * n + 1)),
      );
      await raw.end();
    });

    it(`simple and extended queries can be mixed in one pipeline: ${mode} pooling`, async () => {
      const raw = await rawIn(mode);
      const simple = (text: string) => message('Q', cstring(text));
      await raw.send(
        simple('SELECT 1'),
        whole('SELECT 2'),
        SYNC,
        simple('SELECT 1/0'),
        simple(''),
        whole('SELECT 3'),
        SYNC,
      );
      const answer = await untilReady(raw, 5);
      assert.equal(letters(answer), 'TDCZ12TDCZEZIZ12TDCZ');
      assert.deepEqual(rows(answer), ['1', '2', '3']);
      await raw.end();
    });

    it(`Flush requests answers without Sync and keeps the server: ${mode} pooling`, async () => {
      const raw = await rawIn(mode);
      await raw.send(parse('SELECT pg_backend_pid()'), FLUSH);
      assert.equal(letters(await raw.until('1')), '1');
      await raw.send(bind(), execute(), FLUSH);
      const first = rows(await raw.until('C'));
      await raw.send(bind(), execute(), FLUSH);
      assert.deepEqual(rows(await raw.until('C')), first);
      await raw.send(SYNC);
      assert.equal(letters(await raw.until('Z')), 'Z');
      await raw.end();
    });

    it(`a portal can be fetched in parts: ${mode} pooling`, async () => {
      const raw = await rawIn(mode);
      await raw.send(parse('SELECT generate_series(1, 10)'), bind([], '', 'p'), execute(4, 'p'), FLUSH);
      assert.equal(letters(await raw.until('s')), '12DDDDs');
      await raw.send(execute(4, 'p'), execute(4, 'p'), SYNC);
      assert.equal(letters(await raw.until('Z')), 'DDDDsDDCZ');
      await raw.end();
    });

    it(`packets may arrive in any pieces: ${mode} pooling`, async () => {
      const raw = await rawIn(mode);
      const bytes = Buffer.concat([whole('SELECT $1', 'in pieces'), SYNC, message('Q', cstring('SELECT 2'))]);
      for (const size of [1, 2, 3, 5, 7, 11]) {
        for (let at = 0; at < bytes.length; at += size) await raw.send(bytes.subarray(at, at + size));
        const answer = await untilReady(raw, 2);
        assert.equal(letters(answer), '12TDCZTDCZ', `pieces of ${size}`);
        assert.deepEqual(rows(answer), ['in pieces', '2']);
      }
      await raw.end();
    });

    it(`parameters and rows of megabytes pass through a pipeline: ${mode} pooling`, async () => {
      const raw = await rawIn(mode);
      const sizes = [0, 1, 65_535, 65_536, 1_000_000, 5_000_000];
      await raw.send(...sizes.map((size) => whole('SELECT $1', 'v'.repeat(size))), SYNC);
      const answer = await raw.until('Z');
      assert.deepEqual(
        rows(answer).map((value) => value?.length),
        sizes,
      );
      await raw.end();
    });

    it(`twenty clients with pipelines on two servers each get their own answers: ${mode} pooling`, async () => {
      const many = mode === 'session' ? 2 : 20;
      const clients = await Promise.all(Array.from({ length: many }, () => rawIn(mode)));
      await Promise.all(
        clients.map(async (raw, who) => {
          for (let round = 0; round < 10; round++) {
            const sent = Array.from({ length: 20 }, (_, n) =>
              Buffer.concat([whole(n === 13 ? `SELECT ${who}/0` : `SELECT '${who}:${round}:${n}'`), SYNC]),
            );
            await raw.send(...sent);
            const answer = await untilReady(raw, 20);
            const wanted = Array.from({ length: 20 }, (_, n) => `${who}:${round}:${n}`).filter((_, n) => n !== 13);
            assert.deepEqual(rows(answer), wanted);
          }
        }),
      );
      await Promise.all(clients.map((raw) => raw.end()));
    });
  });
}

describe('the server of a pipeline in transaction pooling', () => {
  it('a client keeps its server between BEGIN and COMMIT of a pipeline, even through an error', async () => {
    const raw = await rawIn('transaction');
    await raw.send(whole('BEGIN'), SYNC, whole('SELECT pg_backend_pid()'), SYNC, whole('SELECT 1/0'), SYNC);
    const begun = await untilReady(raw, 3);
    assert.deepEqual(
      begun.filter((msg) => msg.type === 'Z').map((msg) => msg.body.toString()),
      ['T', 'T', 'E'],
    );
    const servers = (await bouncer.admin('SHOW SERVERS')).filter((server) => server.database === 'transaction');
    const mine = servers.find((server) => server.remote_pid === Number(rows(begun)[0]));
    assert.equal(mine?.state, 'active');
    await raw.send(whole('ROLLBACK'), SYNC);
    assert.equal((await raw.until('Z')).at(-1)?.body.toString(), 'I');
    const after = (await bouncer.admin('SHOW SERVERS')).find((server) => server.remote_pid === mine?.remote_pid);
    assert.equal(after?.state, 'idle');
    await raw.end();
  });

  it('a Flush while no answer is outstanding takes no server connection', async () => {
    const idle = [await rawIn('transaction'), await rawIn('transaction')];
    for (const raw of idle) {
      await raw.send(whole('SELECT 1'), SYNC);
      await raw.until('Z');
      await raw.send(FLUSH);
    }
    // in session pooling, and in a transaction, it has no effect either
    const busy = [await rawIn('session'), await rawIn('transaction')];
    for (const raw of busy) {
      await raw.query('BEGIN');
      await raw.send(FLUSH);
      assert.deepEqual(rows(await raw.query('SELECT 2')), ['2']);
      assert.equal((await raw.query('COMMIT')).at(-1)?.body.toString(), 'I');
    }
    for (const raw of [...idle, ...busy]) await raw.end();
  });

  it('a client that disconnects within a pipeline ends its server connection and affects no other client', async () => {
    const raw = await rawIn('transaction');
    const other = await rawIn('transaction');
    await raw.send(whole('SELECT pg_sleep(0.2)'), SYNC, whole('SELECT 1'));
    const from = bouncer.log.mark();
    await raw.destroy(true);
    await bouncer.logWait(/S-0x.* closing because: client disconnect/, from);
    for (let n = 0; n < 10; n++) assert.deepEqual(rows(await other.query(`SELECT ${n}`)), [String(n)]);
    await other.end();
  });
});
