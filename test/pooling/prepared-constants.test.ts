/*
 * Prepared statements with constants. PostgreSQL reads these when it parses the query, by the variables of the session.
 * A client gets what its own session would read, although clients share the statements of a server connection. The
 * same holds for the names of tables.
 */

import assert from 'node:assert/strict';
import { readingOf } from '../../src/core/pool/constants';
import { VarCache } from '../../src/core/pool/varcache';
import { ask, login, withPooler } from '../harness/answers';
import type { Bouncer } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { it } from '../harness/machine';
import { bind, close, EXECUTE, onServer, prepare, SYNC, use } from '../harness/prepared-packets';
import { RawClient, rowValues } from '../harness/raw-client';
import { withRebootChain } from '../harness/reboot-chain';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

/** One server for all clients. */
const SETTINGS = { pool_mode: 'transaction', default_pool_size: 1, server_reset_query: '' };

function withOneServer(body: (pooler: Bouncer) => Promise<void>): Promise<void> {
  return withPooler({ cluster: pg, settings: SETTINGS }, body);
}

/** A query, and variables of sessions that read it differently. */
const CASES: { sql: string; sessions: Record<string, string>[] }[] = [
  {
    sql: "SELECT extract(epoch FROM '2024-01-01 00:00'::timestamptz)::bigint",
    sessions: [{ TimeZone: 'UTC' }, { TimeZone: 'Asia/Tokyo' }],
  },
  {
    sql: "SELECT to_char('01.02.2024'::date, 'MM')",
    sessions: [{ DateStyle: 'ISO, DMY' }, { DateStyle: 'ISO, MDY' }],
  },
  {
    sql: "SELECT extract(epoch FROM interval '-1 2:00:00')::bigint",
    sessions: [{ IntervalStyle: 'postgres' }, { IntervalStyle: 'sql_standard' }],
  },
  {
    sql: "SELECT length('\xc3\xa9')",
    sessions: [{ client_encoding: 'UTF8' }, { client_encoding: 'LATIN1' }],
  },
  {
    sql: "SELECT length('\\t')",
    sessions: [{ standard_conforming_strings: 'on' }, { standard_conforming_strings: 'off' }],
  },
  {
    sql: 'SELECT extract(epoch FROM $$2024-01-01 00:00$$::timestamptz)::bigint',
    sessions: [{ TimeZone: 'UTC' }, { TimeZone: 'Asia/Tokyo' }],
  },
  {
    sql: "SELECT /* it's */ extract(epoch FROM '2024-01-01 00:00'::timestamptz)::bigint",
    sessions: [{ TimeZone: 'UTC' }, { TimeZone: 'Asia/Tokyo' }],
  },
];

/** What a direct connection answers. */
async function direct(sql: string, params: Record<string, string>): Promise<string | null> {
  const client = await RawClient.connect({ port: pg.port });
  await client.login({ params });
  const value = await ask(client, sql);
  await client.end();
  return value;
}

for (const { sql, sessions } of CASES) {
  const variable = Object.keys(sessions[0] as object).join();
  it(`clients with another ${variable} do not share a statement that depends on it: ${sql}`, () =>
    withOneServer(async (pooler) => {
      const wanted = await Promise.all(sessions.map((params) => direct(sql, params)));
      assert.notEqual(wanted[0], wanted[1]);
      const clients = await Promise.all(sessions.map((params) => login(pooler, { params })));
      // a backslash may cause a warning
      for (const client of clients) assert.match(await prepare(client, 'q', sql), /^N?1Z$/);
      for (let turn = 0; turn < 2; turn++) {
        for (const [i, client] of clients.entries()) assert.equal(await use(client, 'q'), wanted[i]);
      }
    }));
}

const TIME = CASES[0]?.sql as string;
const UTC = '1704067200';
const TOKYO = '1704034800';

it('a client that changes a variable and prepares the query again gets another statement', () =>
  withOneServer(async (pooler) => {
    const client = await login(pooler, { params: { TimeZone: 'UTC' } });
    await prepare(client, 'utc', TIME);
    await ask(client, "SET TimeZone = 'Asia/Tokyo'");
    await prepare(client, 'tokyo', TIME);
    assert.equal(await use(client, 'utc'), UTC);
    assert.equal(await use(client, 'tokyo'), TOKYO);
  }));

it('a statement that a client prepares on another server after it has changed a variable is not used by others', () =>
  withPooler({ cluster: pg, settings: { ...SETTINGS, default_pool_size: 2 } }, async (pooler) => {
    const [a, b] = [await login(pooler, { params: { TimeZone: 'UTC' } }), await login(pooler)];
    const keeper = await login(pooler);
    await prepare(a, 'q', TIME);
    // the server with the statement is busy, so that the client gets another one
    await ask(keeper, 'BEGIN');
    await ask(a, "SET TimeZone = 'Asia/Tokyo'");
    await use(a, 'q');
    await ask(b, "SET TimeZone = 'UTC'");
    await prepare(b, 'q', TIME);
    assert.equal(await use(b, 'q'), UTC);
    await ask(keeper, 'COMMIT');
  }));

it('clients share a statement whose constants do not depend on their variables', () =>
  withOneServer(async (pooler) => {
    const sql = "SELECT 'one' WHERE 1 = $1";
    for (const TimeZone of ['UTC', 'Asia/Tokyo']) {
      const client = await login(pooler, { params: { TimeZone } });
      await prepare(client, 'q', sql);
      assert.equal(await use(client, 'q', ['1']), 'one');
    }
    assert.deepEqual(await onServer(await login(pooler)), ['PGBOUNCER_1']);
  }));

it('clients whose search_path leads to other tables do not share statements', () =>
  withOneServer(async (pooler) => {
    const sql = 'SELECT * FROM goods WHERE id = $1';
    for (const [schema, columns] of [
      ['one', "1 AS id, 'from one' AS name"],
      ['two', "'1'::text AS id, 'more' AS more, 'from two' AS name"],
    ])
      await pg.sql(`CREATE SCHEMA ${schema}; CREATE TABLE ${schema}.goods AS SELECT ${columns}`);
    try {
      const ways: Record<string, string>[] = [{ search_path: 'one' }, { options: '-c search_path=two' }];
      const clients = await Promise.all(ways.map((params) => login(pooler, { params })));
      for (const client of clients) assert.equal(await prepare(client, 'q', sql), '1Z');
      for (let turn = 0; turn < 2; turn++) {
        const found: (string | null)[] = [];
        for (const client of clients) {
          await client.send(bind('q', ['1']), EXECUTE, SYNC);
          const row = (await client.until('Z')).find((msg) => msg.type === 'D');
          found.push(row === undefined ? null : (rowValues(row).at(-1) ?? null));
        }
        assert.deepEqual(found, ['from one', 'from two']);
      }
    } finally {
      await pg.sql('DROP SCHEMA one, two CASCADE');
    }
  }));

it("'now' is the time of the client's own Parse, also if the server has the statement already", () =>
  withOneServer(async (pooler) => {
    const sql = "SELECT 'now'::timestamptz::text";
    const [a, b] = [await login(pooler), await login(pooler)];
    await prepare(a, 'q', sql);
    const first = await use(a, 'q');
    assert.equal(await use(a, 'q'), first);
    await prepare(b, 'q', sql);
    const second = await use(b, 'q');
    assert.notEqual(second, first);
    await b.send(close('q'), SYNC);
    await b.until('Z');
    await prepare(b, 'q', sql);
    assert.notEqual(await use(b, 'q'), second);
  }));

it('a new process distinguishes the statements, too', () =>
  withRebootChain({ cluster: pg, settings: SETTINGS }, async (chain) => {
    await chain.start('ts');
    const [a, b] = [await chain.raw(), await chain.raw()];
    await a.login({ params: { TimeZone: 'UTC' } });
    await b.login({ params: { TimeZone: 'Asia/Tokyo' } });
    for (const client of [a, b]) await prepare(client, 'q', TIME);
    await chain.reboot('ts');
    const later = await chain.raw();
    await later.login({ params: { TimeZone: 'Asia/Tokyo' } });
    await prepare(later, 'other', TIME);
    assert.equal(await use(a, 'q'), UTC);
    assert.equal(await use(b, 'q'), TOKYO);
    assert.equal(await use(later, 'other'), TOKYO);
    for (const client of [a, b, later]) await client.end();
  }));

describe('which constants depend on variables', () => {
  const vars = new VarCache();
  for (const [sql, depends] of [
    ['SELECT $1', false],
    ["SELECT * FROM t WHERE state = 'new' AND id = $1 AND at > now()", false],
    ["SELECT 'it''s' WHERE id = 5", false],
    ["SELECT \"it's\" FROM t WHERE name = 'x' LIMIT 5", false],
    ["SELECT 'TODAY'::date", true],
    ["SELECT date '2024-01-01'", true],
    ["SELECT E'it\\'s', '2024-01-01'", true],
    ["SELECT 1 -- it's\n, '2024-01-01'", true],
    ['SELECT $x$2024-01-01$x$', true],
    ["SELECT '\xe9'", true],
  ] as const)
    it(`${depends ? 'those' : 'none'} of ${JSON.stringify(sql)}`, () => {
      assert.equal(readingOf(Buffer.from(`${sql}\0\0\0`, 'latin1'), { vars, startupVars: null }) !== '', depends);
    });
});
