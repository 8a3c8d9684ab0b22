/*
 * Prepared statements: errors in pipelines, unusual packets, counters, clients that leave.
 */

import assert from 'node:assert/strict';
import { ask, errorIn, login, rowsBecome, show, start, withPooler } from '../harness/answers';
import type { Bouncer } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { it } from '../harness/machine';
import {
  bind,
  close,
  describeStatement,
  EXECUTE,
  onServer,
  parse,
  prepare,
  SYNC,
  use,
} from '../harness/prepared-packets';
import { cstring, int16, int32, letters, message, rowValues } from '../harness/raw-client';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

function withTx(settings: Record<string, string | number>, body: (pooler: Bouncer) => Promise<void>): Promise<void> {
  return withPooler({ cluster: pg, settings: { pool_mode: 'transaction', ...settings } }, body);
}

const ONE_SERVER = { default_pool_size: 1, server_reset_query: '' };

describe('an error in a pipeline', () => {
  it('statements skipped after an error are not prepared, and the next pipeline works', () =>
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
      // the client may use the skipped name or prepare it again
      assert.equal(await use(client, 'skipped'), '3');
      await client.send(parse('', 'SELECT 1/0'), bind(''), EXECUTE, close('good'), SYNC);
      assert.equal(letters(await client.until('Z')), '1EZ');
      assert.equal(await use(client, 'good'), '1');
      assert.equal(await prepare(client, 'good', 'SELECT 4'), '1Z');
    }));

  it('a failed query is not kept as prepared', () =>
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

  it('a statement whose eviction was skipped after an error stays on the server', () =>
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

  it('an error undoes preparing, evicting and preparing the same statement again', () =>
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

  it("the pooler's list of a server's statements is correct after an error anywhere in a pipeline", () =>
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
  it('packets about statements may arrive one byte at a time', () =>
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

  it('packets about statements may be large', () =>
    withTx({ default_pool_size: 2 }, async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      const text = 'x'.repeat(5 << 20);
      await a.send(parse('large', `SELECT length('${text}'), $1::text`), bind('large', [text]), EXECUTE, SYNC);
      assert.equal(letters(await a.until('Z')), '12DCZ');
      // and again on another server, before small packets
      await ask(b, 'BEGIN');
      await a.send(bind('large', ['1']), EXECUTE, bind('large', ['2']), EXECUTE, SYNC);
      const rows = (await a.until('Z')).filter((msg) => msg.type === 'D').map(rowValues);
      assert.deepEqual(rows, [
        [String(5 << 20), '1'],
        [String(5 << 20), '2'],
      ]);
      // packets of unnamed statements are not reassembled
      await a.send(parse('', `SELECT length('${text}')`), bind(''), EXECUTE, SYNC);
      assert.equal(letters(await a.until('Z')), '12DCZ');
    }));

  it('packets about statements may be large while the client waits for a server', () =>
    withTx({ default_pool_size: 1 }, async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      await ask(b, 'BEGIN');
      await a.send(parse('large', `SELECT length('${'x'.repeat(300_000)}')`), bind('large'), EXECUTE, SYNC);
      await rowsBecome(pooler, 'CLIENTS', { state: 'waiting' }, 1);
      await ask(b, 'COMMIT');
      assert.equal(letters(await a.until('Z')), '12DCZ');
    }));

  it('statements may have long names', () =>
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
    it(`broken packets about statements end the connection: ${what}`, () =>
      withTx(ONE_SERVER, async (pooler) => {
        const client = await login(pooler);
        await client.send(packet, SYNC);
        assert.equal(errorIn(await client.until(''))?.M, reason);
      }));
  }

  it('packets about statements that are too large to be reassembled end the connection', () =>
    withTx(ONE_SERVER, async (pooler) => {
      const client = await login(pooler);
      await client.send(Buffer.from('P'), int32(70 << 20), cstring('name'));
      assert.equal(errorIn(await client.until(''))?.M, 'too large packet');
    }));
});

describe('the counters', () => {
  it('SHOW STATS counts Parse messages of clients and servers, and Bind messages', () =>
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
  it('a client that disconnects within a packet ends its server connection and affects no other client', () =>
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
