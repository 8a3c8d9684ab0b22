/*
 * Protocol-level prepared statements in transaction and statement pooling: which statements a server has, the names of
 * each client, and answers that the pooler gives itself.
 */

import assert from 'node:assert/strict';
import { ask, errorIn, login, rowsBecome, show, withPooler } from '../harness/answers';
import type { Bouncer } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { it } from '../harness/machine';
import {
  bind,
  close,
  describeStatement,
  EXECUTE,
  FLUSH,
  onServer,
  parse,
  prepare,
  SYNC,
  use,
} from '../harness/prepared-packets';
import { cstring, int32, letters, message, type RawClient, rowValues } from '../harness/raw-client';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

function withTx(settings: Record<string, string | number>, body: (pooler: Bouncer) => Promise<void>): Promise<void> {
  return withPooler({ cluster: pg, settings: { pool_mode: 'transaction', ...settings } }, body);
}

const ONE_SERVER = { default_pool_size: 1, server_reset_query: '' };

describe('a named statement', () => {
  it('a named statement works on every server that its client gets', () =>
    withTx({ default_pool_size: 2 }, async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      assert.equal(await prepare(a, 'q', "SELECT 'answer'"), '1Z');
      const first = await ask(b, 'BEGIN').then(() => ask(b, 'SELECT pg_backend_pid()'));
      assert.equal(await use(a, 'q'), 'answer');
      const second = await ask(a, 'SELECT pg_backend_pid()');
      assert.notEqual(first, second);
    }));

  it('a query is prepared once on a server, however many clients use it under any name', () =>
    withTx(ONE_SERVER, async (pooler) => {
      const clients = [await login(pooler), await login(pooler), await login(pooler)];
      for (const [i, client] of clients.entries()) {
        assert.equal(await prepare(client, `mine${i}`, 'SELECT 7'), '1Z');
        assert.equal(await use(client, `mine${i}`), '7');
      }
      assert.deepEqual(await onServer(clients[0] as RawClient), ['PGBOUNCER_1']);
    }));

  it('the same query with other parameter types is another statement', () =>
    withTx(ONE_SERVER, async (pooler) => {
      const client = await login(pooler);
      await client.send(parse('t', 'SELECT pg_typeof($1)', [25]), parse('i', 'SELECT pg_typeof($1)', [23]), SYNC);
      assert.equal(letters(await client.until('Z')), '11Z');
      assert.equal(await use(client, 't', ['1']), 'text');
      assert.equal(await use(client, 'i', ['1']), 'integer');
    }));

  it('Describe of a named statement works on a server that has to prepare it first', () =>
    withTx({ default_pool_size: 2 }, async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      await prepare(a, 'q', 'SELECT $1::int AS column_name');
      await ask(b, 'BEGIN');
      await a.send(describeStatement('q'), SYNC);
      const answer = await a.until('Z');
      assert.equal(letters(answer), 'tTZ');
      assert.match(answer[1]?.body.toString('latin1') ?? '', /column_name/);
    }));

  it('a query is kept while a client uses it, even without the client that prepared it', () =>
    withTx(ONE_SERVER, async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      await prepare(a, 'q', 'SELECT 1');
      await prepare(b, 'q', 'SELECT 1');
      await a.end();
      assert.equal(await use(b, 'q'), '1');
      // the server still has the statement, so the query keeps its number
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

  it('a statement name belongs to one client', () =>
    withTx(ONE_SERVER, async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      await prepare(a, 'q', 'SELECT 1');
      await b.send(bind('q'), EXECUTE, SYNC);
      const error = errorIn(await b.until('Z'));
      assert.deepEqual([error?.S, error?.C, error?.M], ['ERROR', '26000', 'prepared statement "q" does not exist']);
      assert.equal(await use(a, 'q'), '1');
    }));

  it('a named statement cannot be prepared twice', () =>
    withTx(ONE_SERVER, async (pooler) => {
      const client = await login(pooler);
      await prepare(client, 'q', 'SELECT 1');
      await client.send(parse('q', 'SELECT 2'), SYNC);
      const error = errorIn(await client.until('Z'));
      assert.deepEqual([error?.S, error?.C, error?.M], ['ERROR', '42P05', 'prepared statement "q" already exists']);
      assert.equal(await use(client, 'q'), '1');
    }));

  it('Close frees the name of a statement and is answered in its place', () =>
    withTx(ONE_SERVER, async (pooler) => {
      const client = await login(pooler);
      await prepare(client, 'q', 'SELECT 1');
      await client.send(close('q'), close('unknown'));
      assert.equal(letters([...(await client.until('3')), ...(await client.until('3'))]), '33');
      await client.send(parse('q', 'SELECT 2'), bind('q'), EXECUTE, close('q'), parse('q', 'SELECT 3'), SYNC);
      assert.equal(letters(await client.until('Z')), '12DC31Z');
      assert.equal(await use(client, 'q'), '3');
    }));

  it('a named statement works in statement pooling', () =>
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
    it(`${what} reaches the server unchanged`, () =>
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

  it('an unnamed statement passes unchanged', () =>
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
  it('a server keeps at most max_prepared_statements statements and evicts the least recently used first', () =>
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

  it('statements are evicted within a pipeline without visible messages', () =>
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
    it(`${sql} drops the statements of its client and server, and other clients keep theirs`, () =>
      withTx(ONE_SERVER, async (pooler) => {
        const [a, b] = [await login(pooler), await login(pooler)];
        await prepare(a, 'q', 'SELECT 1');
        await prepare(b, 'q', 'SELECT 1');
        await ask(a, sql);
        assert.deepEqual(await onServer(a), []);
        assert.equal(await use(b, 'q'), '1');
        assert.equal(await prepare(a, 'q', 'SELECT 1'), '1Z', 'the name is free again');
      }));

    it(`statements that follow ${sql} in the same pipeline exist`, () =>
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

  it('statements that the reset query drops are prepared again', () =>
    withTx(
      { default_pool_size: 1, server_reset_query_always: 1, server_reset_query: 'DISCARD ALL' },
      async (pooler) => {
        const client = await login(pooler);
        await prepare(client, 'q', 'SELECT 8');
        for (let i = 0; i < 3; i++) assert.equal(await use(client, 'q'), '8');
      },
    ));
});

describe('answers of the pooler itself', () => {
  it('an answer of the pooler comes after the outstanding answers before it', () =>
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

  it('an answer of the pooler comes behind a large answer, not inside it', () =>
    withTx({ default_pool_size: 1 }, async (pooler) => {
      const client = await login(pooler);
      await prepare(client, 'x', 'SELECT 2');
      const columns = Array.from({ length: 1500 }, (_, i) => `1 AS "${String(i).padStart(60, 'c')}"`);
      await prepare(client, 'wide', `SELECT ${columns.join()}`);
      for (let i = 0; i < 20; i++) {
        await client.send(describeStatement('wide'), FLUSH);
        // while the description is being sent and no other request is outstanding
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
