/*
 * Protocol-level prepared statements in transaction and statement pooling, in bytes: which server has what, whose name
 * means what, where made-up answers appear in a pipeline, and what an error in its middle leaves behind.
 */

import assert from 'node:assert/strict';
import { ask, errorIn, login, rowsBecome, show, start, withPooler } from '../harness/answers';
import type { Bouncer } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { it } from '../harness/machine';
import { cstring, int16, int32, letters, message, type RawClient, rowValues } from '../harness/raw-client';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

const SYNC = message('S');
const FLUSH = message('H');
const EXECUTE = message('E', cstring(''), int32(0));

function parse(name: string, sql: string, types: number[] = []): Buffer {
  return message('P', cstring(name), cstring(sql), int16(types.length), ...types.map(int32));
}

function bind(name: string, values: (string | Buffer)[] = [], portal = ''): Buffer {
  const columns = values.flatMap((value) => {
    const bytes = typeof value === 'string' ? Buffer.from(value, 'latin1') : value;
    return [int32(bytes.length), bytes];
  });
  return message('B', cstring(portal), cstring(name), int16(0), int16(values.length), ...columns, int16(0));
}

function describeStatement(name: string): Buffer {
  return message('D', Buffer.from('S'), cstring(name));
}

function close(name: string): Buffer {
  return message('C', Buffer.from('S'), cstring(name));
}

/** Bind, Execute and Sync of a named statement: the first value, or the error's text. */
async function use(client: RawClient, name: string, values: string[] = []): Promise<string | null> {
  await client.send(bind(name, values), EXECUTE, SYNC);
  const answer = await client.until('Z');
  const row = answer.find((msg) => msg.type === 'D');
  return row === undefined ? (errorIn(answer)?.M ?? null) : (rowValues(row)[0] ?? null);
}

async function prepare(client: RawClient, name: string, sql: string): Promise<string> {
  await client.send(parse(name, sql), SYNC);
  return letters(await client.until('Z'));
}

/** The names that the server of this client's next transaction has. */
async function onServer(client: RawClient): Promise<string[]> {
  const answer = await client.query('SELECT name FROM pg_prepared_statements ORDER BY prepare_time, name');
  return answer.filter((msg) => msg.type === 'D').map((msg) => rowValues(msg)[0] ?? '');
}

function withTx(settings: Record<string, string | number>, body: (pooler: Bouncer) => Promise<void>): Promise<void> {
  return withPooler({ cluster: pg, settings: { pool_mode: 'transaction', ...settings } }, body);
}

const ONE_SERVER = { default_pool_size: 1, server_reset_query: '' };

describe('a named statement', () => {
  it('works on whichever server its client gets', () =>
    withTx({ default_pool_size: 2 }, async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      assert.equal(await prepare(a, 'q', "SELECT 'answer'"), '1Z');
      const first = await ask(b, 'BEGIN').then(() => ask(b, 'SELECT pg_backend_pid()'));
      assert.equal(await use(a, 'q'), 'answer');
      const second = await ask(a, 'SELECT pg_backend_pid()');
      assert.notEqual(first, second);
    }));

  it('is prepared once on a server, however many clients name it as they like', () =>
    withTx(ONE_SERVER, async (pooler) => {
      const clients = [await login(pooler), await login(pooler), await login(pooler)];
      for (const [i, client] of clients.entries()) {
        assert.equal(await prepare(client, `mine${i}`, 'SELECT 7'), '1Z');
        assert.equal(await use(client, `mine${i}`), '7');
      }
      assert.deepEqual(await onServer(clients[0] as RawClient), ['PGBOUNCER_1']);
    }));

  it('with other parameter types is another one', () =>
    withTx(ONE_SERVER, async (pooler) => {
      const client = await login(pooler);
      await client.send(parse('t', 'SELECT pg_typeof($1)', [25]), parse('i', 'SELECT pg_typeof($1)', [23]), SYNC);
      assert.equal(letters(await client.until('Z')), '11Z');
      assert.equal(await use(client, 't', ['1']), 'text');
      assert.equal(await use(client, 'i', ['1']), 'integer');
    }));

  it('is described under its name, on a server that has to prepare it first', () =>
    withTx({ default_pool_size: 2 }, async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      await prepare(a, 'q', 'SELECT $1::int AS column_name');
      await ask(b, 'BEGIN');
      await a.send(describeStatement('q'), SYNC);
      const answer = await a.until('Z');
      assert.equal(letters(answer), 'tTZ');
      assert.match(answer[1]?.body.toString('latin1') ?? '', /column_name/);
    }));

  it('outlives the client that prepared it for others, but not its last user', () =>
    withTx(ONE_SERVER, async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      await prepare(a, 'q', 'SELECT 1');
      await prepare(b, 'q', 'SELECT 1');
      await a.end();
      assert.equal(await use(b, 'q'), '1');
      // the server still has it, so the query keeps its number
      await b.end();
      const c = await login(pooler);
      await prepare(c, 'q', 'SELECT 1');
      assert.deepEqual(await onServer(c), ['PGBOUNCER_1']);
      await pooler.admin('RECONNECT');
      await c.end();
      await rowsBecome(pooler, 'SERVERS', { prepared_statements: 1 }, 0);
      const d = await login(pooler);
      await prepare(d, 'q', 'SELECT 1');
      assert.deepEqual(await onServer(d), ['PGBOUNCER_2']);
    }));

  it('is one client only', () =>
    withTx(ONE_SERVER, async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      await prepare(a, 'q', 'SELECT 1');
      await b.send(bind('q'), EXECUTE, SYNC);
      const error = errorIn(await b.until('Z'));
      assert.deepEqual([error?.S, error?.C, error?.M], ['ERROR', '26000', 'prepared statement "q" does not exist']);
      assert.equal(await use(a, 'q'), '1');
    }));

  it('cannot be prepared twice', () =>
    withTx(ONE_SERVER, async (pooler) => {
      const client = await login(pooler);
      await prepare(client, 'q', 'SELECT 1');
      await client.send(parse('q', 'SELECT 2'), SYNC);
      const error = errorIn(await client.until('Z'));
      assert.deepEqual([error?.S, error?.C, error?.M], ['ERROR', '42P05', 'prepared statement "q" already exists']);
      assert.equal(await use(client, 'q'), '1');
    }));

  it('that is closed leaves its name free and answers in its place', () =>
    withTx(ONE_SERVER, async (pooler) => {
      const client = await login(pooler);
      await prepare(client, 'q', 'SELECT 1');
      await client.send(close('q'), close('unknown'));
      assert.equal(letters([...(await client.until('3')), ...(await client.until('3'))]), '33');
      await client.send(parse('q', 'SELECT 2'), bind('q'), EXECUTE, close('q'), parse('q', 'SELECT 3'), SYNC);
      assert.equal(letters(await client.until('Z')), '12DC31Z');
      assert.equal(await use(client, 'q'), '3');
    }));

  it('works in statement pooling', () =>
    withTx({ ...ONE_SERVER, pool_mode: 'statement' }, async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      await prepare(a, 'q', 'SELECT 4');
      await ask(b, 'DISCARD ALL');
      assert.equal(await use(a, 'q'), '4');
    }));

  for (const [what, settings] of [
    ['with max_prepared_statements = 0', { max_prepared_statements: 0 }],
    ['in session pooling', { pool_mode: 'session' }],
  ] as const) {
    it(`${what} reaches the server as it is`, () =>
      withTx({ ...ONE_SERVER, ...settings }, async (pooler) => {
        const client = await login(pooler);
        await client.send(parse('own', 'SELECT 5'), bind('own'), EXECUTE, SYNC);
        assert.equal(letters(await client.until('Z')), '12DCZ');
        assert.deepEqual(await onServer(client), ['own']);
        await client.send(parse('own', 'SELECT 5'), SYNC);
        assert.match(errorIn(await client.until('Z'))?.M ?? '', /already exists/);
        await client.send(close('own'), SYNC);
        assert.equal(letters(await client.until('Z')), '3Z');
        assert.deepEqual(await onServer(client), []);
      }));
  }

  it('without a name passes as it is', () =>
    withTx(ONE_SERVER, async (pooler) => {
      const client = await login(pooler);
      const portal = message('D', Buffer.from('P'), cstring('c'));
      const run = message('E', cstring('c'), int32(0));
      const closePortal = message('C', Buffer.from('P'), cstring('c'));
      await client.send(
        parse('', 'SELECT 6'),
        describeStatement(''),
        bind('', [], 'c'),
        portal,
        run,
        closePortal,
        close(''),
        SYNC,
      );
      assert.equal(letters(await client.until('Z')), '1tT2TDC33Z');
      assert.deepEqual(await onServer(client), []);
    }));
});

describe('the statements of a server', () => {
  it('are at most max_prepared_statements, the least recently used go first', () =>
    withTx({ ...ONE_SERVER, max_prepared_statements: 2 }, async (pooler) => {
      const client = await login(pooler);
      for (const i of [1, 2]) await prepare(client, `s${i}`, `SELECT ${i}`);
      assert.equal(await use(client, 's1'), '1');
      assert.equal(await prepare(client, 's3', 'SELECT 3'), '1Z');
      assert.deepEqual((await onServer(client)).sort(), ['PGBOUNCER_1', 'PGBOUNCER_3']);
      assert.equal(await use(client, 's2'), '2');
      assert.deepEqual((await onServer(client)).sort(), ['PGBOUNCER_2', 'PGBOUNCER_3']);
      assert.equal((await show(pooler, 'SERVERS'))[0]?.prepared_statements, 2);
      assert.equal((await show(pooler, 'CLIENTS', { database: 'postgres' }))[0]?.prepared_statements, 3);
    }));

  it('are evicted inside one pipeline without the client seeing it', () =>
    withTx({ ...ONE_SERVER, max_prepared_statements: 1 }, async (pooler) => {
      const client = await login(pooler);
      const pieces: Buffer[] = [];
      for (let i = 0; i < 200; i++) pieces.push(parse(`s${i}`, `SELECT ${i}`), bind(`s${i}`), EXECUTE);
      for (let i = 0; i < 200; i++) pieces.push(bind(`s${i}`), EXECUTE);
      await client.send(...pieces, SYNC);
      const answer = await client.until('Z');
      assert.equal(letters(answer), `${'12DC'.repeat(200)}${'2DC'.repeat(200)}Z`);
      const rows = answer.filter((msg) => msg.type === 'D').map((msg) => Number(rowValues(msg)[0]));
      assert.deepEqual(rows, [...Array(200).keys(), ...Array(200).keys()]);
      assert.equal((await onServer(client)).length, 1);
    }));

  for (const sql of ['DEALLOCATE ALL', 'DISCARD ALL']) {
    it(`are forgotten with its client's after ${sql}, other clients keep theirs`, () =>
      withTx(ONE_SERVER, async (pooler) => {
        const [a, b] = [await login(pooler), await login(pooler)];
        await prepare(a, 'q', 'SELECT 1');
        await prepare(b, 'q', 'SELECT 1');
        await ask(a, sql);
        assert.deepEqual(await onServer(a), []);
        assert.equal(await use(b, 'q'), '1');
        assert.equal(await prepare(a, 'q', 'SELECT 1'), '1Z', 'the name is free again');
      }));

    it(`that follow ${sql} in the same pipeline are there`, () =>
      withTx(ONE_SERVER, async (pooler) => {
        const client = await login(pooler);
        await prepare(client, 'old', 'SELECT 1');
        await client.send(parse('', sql), bind(''), EXECUTE, parse('new', 'SELECT 2'), bind('new'), EXECUTE, SYNC);
        assert.equal(letters(await client.until('Z')), '12C12DCZ');
        assert.equal(await use(client, 'new'), '2');
        assert.equal(await prepare(client, 'again', 'SELECT 2'), '1Z');
        assert.deepEqual(await onServer(client), ['PGBOUNCER_2']);
      }));
  }

  it('are forgotten when the reset query drops them', () =>
    withTx(
      { default_pool_size: 1, server_reset_query_always: 1, server_reset_query: 'DISCARD ALL' },
      async (pooler) => {
        const client = await login(pooler);
        await prepare(client, 'q', 'SELECT 8');
        for (let i = 0; i < 3; i++) assert.equal(await use(client, 'q'), '8');
      },
    ));
});

describe('an answer that no server gave', () => {
  it('comes when the answers in front of it have come', () =>
    withTx({ default_pool_size: 1 }, async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      await prepare(b, 'x', 'SELECT 2');
      const run = [parse('', 'SELECT 1'), bind(''), EXECUTE];
      await a.send(
        ...run,
        parse('y', 'SELECT 2'),
        close('y'),
        ...run,
        parse('z', 'SELECT 2'),
        bind('z'),
        EXECUTE,
        SYNC,
      );
      assert.equal(letters(await a.until('Z')), '12DC1312DC12DCZ');
    }));

  it('comes behind a large answer, not inside it', () =>
    withTx({ default_pool_size: 1 }, async (pooler) => {
      const client = await login(pooler);
      await prepare(client, 'x', 'SELECT 2');
      const columns = Array.from({ length: 1500 }, (_, i) => `1 AS "${String(i).padStart(60, 'c')}"`);
      await prepare(client, 'wide', `SELECT ${columns.join()}`);
      for (let i = 0; i < 20; i++) {
        await client.send(describeStatement('wide'), FLUSH);
        // while the description is on its way and nothing else is owed
        await client.bytes(5).then((head) => client.bytes((head as Buffer).readInt32BE(1) - 4));
        await client.bytes(1);
        await client.send(parse(`same${i}`, 'SELECT 2'));
        const length = (await client.bytes(4)) as Buffer;
        await client.bytes(length.readInt32BE(0) - 4);
        assert.equal((await client.next())?.type, '1');
        await client.send(SYNC);
        assert.equal(letters(await client.until('Z')), 'Z');
      }
    }));
});

describe('an error in a pipeline', () => {
  it('leaves what was skipped unprepared, and the next pipeline whole', () =>
    withTx(ONE_SERVER, async (pooler) => {
      const client = await login(pooler);
      await client.send(
        ...[parse('good', 'SELECT 1'), bind('good'), EXECUTE, parse('bad', 'SELECT nothing_such'), bind('bad')],
        ...[EXECUTE, parse('skipped', 'SELECT 3'), bind('skipped'), EXECUTE, SYNC],
        ...[bind('good'), EXECUTE, SYNC],
      );
      assert.equal(letters(await client.until('Z')), '12DCEZ');
      assert.equal(letters(await client.until('Z')), '2DCZ');
      assert.deepEqual(await onServer(client), ['PGBOUNCER_1']);
      // a client that did not notice may use it, one that did may prepare it
      assert.equal(await use(client, 'skipped'), '3');
      await client.send(parse('', 'SELECT 1/0'), bind(''), EXECUTE, close('good'), SYNC);
      assert.equal(letters(await client.until('Z')), '1EZ');
      assert.equal(await use(client, 'good'), '1');
      assert.equal(await prepare(client, 'good', 'SELECT 4'), '1Z');
    }));

  it('does not keep a failed query prepared', () =>
    withTx(ONE_SERVER, async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      await a.send(parse('q', 'SELECT * FROM later'), SYNC);
      assert.match(errorIn(await a.until('Z'))?.M ?? '', /"later" does not exist/);
      assert.equal((await show(pooler, 'SERVERS'))[0]?.prepared_statements, 0);
      await ask(a, 'CREATE TABLE later AS SELECT 9 AS n');
      try {
        assert.equal(await prepare(b, 'q', 'SELECT * FROM later'), '1Z');
        assert.equal(await prepare(a, 'q', 'SELECT * FROM later'), '1Z', 'the name that failed is still free');
        assert.equal(await use(a, 'q'), '9');
      } finally {
        await ask(a, 'DROP TABLE later');
      }
    }));

  it('leaves a statement whose eviction was skipped where it is', () =>
    withTx({ ...ONE_SERVER, max_prepared_statements: 1 }, async (pooler) => {
      const client = await login(pooler);
      await prepare(client, 's1', 'SELECT 1');
      await client.send(parse('', 'SELECT 1/0'), bind(''), EXECUTE, parse('s2', 'SELECT 2'), bind('s2'), EXECUTE, SYNC);
      assert.equal(letters(await client.until('Z')), '1EZ');
      assert.deepEqual(await onServer(client), ['PGBOUNCER_1']);
      assert.equal(await use(client, 's1'), '1');
      assert.equal(await use(client, 's2'), '2');
      assert.deepEqual(await onServer(client), ['PGBOUNCER_2']);
    }));

  it('undoes preparing, evicting and preparing the same again', () =>
    withTx({ ...ONE_SERVER, max_prepared_statements: 1 }, async (pooler) => {
      const client = await login(pooler);
      await prepare(client, 's1', 'SELECT 1');
      await prepare(client, 's2', 'SELECT 2');
      const error = [parse('', 'SELECT 1/0'), bind(''), EXECUTE];
      await client.send(...error, bind('s1'), EXECUTE, bind('s2'), EXECUTE, bind('s1'), EXECUTE, SYNC);
      assert.equal(letters(await client.until('Z')), '1EZ');
      assert.deepEqual(await onServer(client), ['PGBOUNCER_2']);
      for (let i = 0; i < 2; i++) for (const n of ['1', '2']) assert.equal(await use(client, `s${n}`), n);
    }));

  it('wherever it is, what the pooler believes a server to have is what it has', () =>
    withTx({ ...ONE_SERVER, max_prepared_statements: 3 }, async (pooler) => {
      let seed = 20_260_726;
      const random = (n: number) => {
        seed = (Math.imul(seed, 1_103_515_245) + 12_345) >>> 0;
        return (seed >>> 8) % n;
      };
      const client = await login(pooler);
      const named = new Set<number>();
      for (let round = 0; round < 150; round++) {
        const pieces: Buffer[] = [];
        for (let i = random(12); i >= 0; i--) {
          const n = random(7);
          if (random(5) === 0) {
            pieces.push(close(`s${n}`));
            named.delete(n);
          } else if (!named.has(n)) {
            pieces.push(parse(`s${n}`, `SELECT ${n}`));
            named.add(n);
          }
          if (named.has(n)) pieces.push(bind(`s${n}`), EXECUTE);
          if (random(10) === 0) pieces.push(parse('', 'SELECT 1/0'), bind(''), EXECUTE);
        }
        await client.send(...pieces, SYNC);
        const answer = await client.until('Z');
        assert.ok(['division by zero', undefined].includes(errorIn(answer)?.M), errorIn(answer)?.M);
        const real = await onServer(client);
        assert.equal((await show(pooler, 'SERVERS'))[0]?.prepared_statements, real.length, `in round ${round}`);
        for (const n of named) assert.equal(await use(client, `s${n}`), String(n), `in round ${round}`);
        if (random(10) === 0) {
          await ask(client, 'DISCARD ALL');
          named.clear();
        }
      }
    }));
});

describe('packets about statements', () => {
  it('may come one byte at a time', () =>
    withTx(ONE_SERVER, async (pooler) => {
      const client = await login(pooler);
      const bytes = Buffer.concat([
        ...[parse('drop', 'SELECT $1::text'), describeStatement('drop'), bind('drop', ['by drop'], 'p')],
        ...[message('E', cstring('p'), int32(0)), close('drop'), SYNC],
      ]);
      for (const byte of bytes) await client.send(Buffer.from([byte]));
      const answer = await client.until('Z');
      assert.equal(letters(answer), '1tT2DC3Z');
      assert.deepEqual(rowValues(answer[4] as never), ['by drop']);
    }));

  it('may be large', () =>
    withTx({ default_pool_size: 2 }, async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      const text = 'x'.repeat(5 << 20);
      await a.send(parse('large', `SELECT length('${text}'), $1::text`), bind('large', [text]), EXECUTE, SYNC);
      assert.equal(letters(await a.until('Z')), '12DCZ');
      // and again on another server, in front of small ones
      await ask(b, 'BEGIN');
      await a.send(bind('large', ['1']), EXECUTE, bind('large', ['2']), EXECUTE, SYNC);
      const rows = (await a.until('Z')).filter((msg) => msg.type === 'D').map(rowValues);
      assert.deepEqual(rows, [
        [String(5 << 20), '1'],
        [String(5 << 20), '2'],
      ]);
      // unnamed ones are not put together
      await a.send(parse('', `SELECT length('${text}')`), bind(''), EXECUTE, SYNC);
      assert.equal(letters(await a.until('Z')), '12DCZ');
    }));

  it('may be large while the client waits for a server', () =>
    withTx({ default_pool_size: 1 }, async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      await ask(b, 'BEGIN');
      await a.send(parse('large', `SELECT length('${'x'.repeat(300_000)}')`), bind('large'), EXECUTE, SYNC);
      await rowsBecome(pooler, 'CLIENTS', { state: 'waiting' }, 1);
      await ask(b, 'COMMIT');
      assert.equal(letters(await a.until('Z')), '12DCZ');
    }));

  it('may have long names', () =>
    withTx(ONE_SERVER, async (pooler) => {
      const client = await login(pooler);
      const name = 'n'.repeat(100_000);
      await client.send(parse(name, 'SELECT 1'), describeStatement(name), bind(name), EXECUTE, SYNC);
      assert.equal(letters(await client.until('Z')), '1tT2DCZ');
      await client.send(bind('', [], name), SYNC, close(name), SYNC);
      assert.match(errorIn(await client.until('Z'))?.M ?? '', /unnamed prepared statement does not exist/);
      assert.equal(letters(await client.until('Z')), '3Z');
    }));

  const broken: [string, Buffer, string][] = [
    ['Parse without an end of its name', message('P', Buffer.from('name')), 'failed to parse packet'],
    ['Parse without a query', message('P', cstring('name')), 'broken Parse packet'],
    ['Parse without parameter types', message('P', cstring('name'), cstring('SELECT 1')), 'broken Parse packet'],
    ['Parse with too few of them', message('P', cstring('a'), cstring('b'), int16(2), int32(1)), 'broken Parse packet'],
    ['Bind without a name', message('B', cstring('portal')), 'failed to parse packet'],
    ['Bind without an end of its name', message('B', cstring(''), Buffer.from('name')), 'failed to parse packet'],
    ['Describe of nothing', message('D'), 'failed to parse packet'],
    ['Close without an end of its name', message('C', Buffer.from('Sname')), 'failed to parse packet'],
  ];
  for (const [what, packet, reason] of broken) {
    it(`that are broken end the connection: ${what}`, () =>
      withTx(ONE_SERVER, async (pooler) => {
        const client = await login(pooler);
        await client.send(packet, SYNC);
        assert.equal(errorIn(await client.until(''))?.M, reason);
      }));
  }

  it('that are too large to be put together end the connection', () =>
    withTx(ONE_SERVER, async (pooler) => {
      const client = await login(pooler);
      await client.send(Buffer.from('P'), int32(70 << 20), cstring('name'));
      assert.equal(errorIn(await client.until(''))?.M, 'too large packet');
    }));
});

describe('the counters', () => {
  it('of SHOW STATS tell what clients and servers prepared and what was bound', () =>
    withTx({ default_pool_size: 2 }, async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      await prepare(a, 'q', 'SELECT 1');
      await prepare(b, 'q', 'SELECT 1');
      for (let i = 0; i < 3; i++) await use(a, 'q');
      await ask(b, 'BEGIN');
      await use(a, 'q');
      await a.send(parse('', 'SELECT 1'), bind(''), EXECUTE, SYNC);
      await a.until('Z');
      const [row] = await show(pooler, 'STATS', { database: 'postgres' });
      assert.equal(Number(row?.total_client_parse_count), 2);
      assert.equal(Number(row?.total_server_parse_count), 2);
      assert.equal(Number(row?.total_bind_count), 4);
    }));
});

describe('a client that leaves', () => {
  it('in the middle of a statement takes its server along and harms nobody', () =>
    withTx(ONE_SERVER, async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      await prepare(b, 'q', 'SELECT 1');
      await a.send(parse('slow', 'SELECT pg_sleep(60)'), bind('slow'), EXECUTE, close('slow'), SYNC);
      await rowsBecome(pooler, 'SERVERS', { state: 'active' }, 1);
      await a.destroy();
      assert.equal(await use(b, 'q'), '1');
      await start(b, 'SELECT 1');
      await b.until('Z');
    }));
});
