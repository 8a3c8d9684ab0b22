/*
 * What drivers send to the console besides commands: SET and SHOW of PostgreSQL's parameters, DISCARD ALL, DEALLOCATE.
 * Also the conversations of pgx, pgjdbc and Npgsql with the console, at the level of messages.
 */

import assert from 'node:assert/strict';
import { ADMIN_PASSWORD, type Bouncer, it, STATS_PASSWORD, STATS_USER } from '../harness';
import { errorIn } from '../harness/answers';
import { startPooler, withCluster } from '../harness/fixtures';
import { after, before, describe } from '../harness/limits';
import {
  cstring,
  int16,
  int32,
  letters,
  type Message,
  message,
  type RawClient,
  rowValues,
} from '../harness/raw-client';

const SYNC = message('S');
const TEXT = 0;
const BINARY = 1;

function parse(name: string, query: string): Buffer {
  return message('P', cstring(name), cstring(query), int16(0));
}

/** @param formats of the columns: one for all of them, none = text */
function bind(statement: string, ...formats: number[]): Buffer {
  const none = int16(0);
  return message('B', cstring(''), cstring(statement), none, none, int16(formats.length), ...formats.map(int16));
}

function describeOf(kind: 'S' | 'P', name: string): Buffer {
  return message('D', Buffer.from(kind), cstring(name));
}

function execute(limit = 0): Buffer {
  return message('E', cstring(''), int32(limit));
}

function oneShot(query: string, format = TEXT): Buffer[] {
  return [parse('', query), bind('', format), describeOf('P', ''), execute(), SYNC];
}

let bouncer: Bouncer;
withCluster();

/** A describe() with a pooler. */
function withConsole(what: string, body: () => void): void {
  describe(what, () => {
    before(async () => {
      bouncer = await startPooler({ ignore_startup_parameters: 'extra_float_digits' });
    });
    after(() => bouncer.stop());
    body();
  });
}

async function consoleOf(params: Record<string, string> = {}, user = 'admin'): Promise<RawClient> {
  const raw = await bouncer.raw();
  const password = user === STATS_USER ? STATS_PASSWORD : ADMIN_PASSWORD;
  assert.equal((await raw.login({ user, database: 'pgbouncer', password, params })).at(-1)?.type, 'Z');
  return raw;
}

async function extended(raw: RawClient, ...messages: Buffer[]): Promise<Message[]> {
  await raw.send(...messages);
  return raw.until('Z');
}

withConsole('parameters that drivers set', () => {
  const accepted = [
    'SET extra_float_digits = 3',
    "SET application_name = 'PostgreSQL JDBC Driver'",
    "SET client_min_messages TO 'warning'",
    'SET DateStyle TO ISO',
    "SET intervalstyle = 'iso_8601'",
    "SET SESSION timezone TO 'UTC'",
    "SET TIME ZONE 'Europe/Berlin'",
    'set local time zone default;',
    "SET NAMES 'UTF8'",
    'SET search_path = app, "Shop", public',
    'SET statement_timeout = 0',
    'SET SESSION idle_in_transaction_session_timeout = 1.5',
    'SET lock_timeout TO DEFAULT',
    'SET extra_float_digits = -1',
    'SET bytea_output = hex',
    'SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY',
    'SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE',
    ' SET\n\tdefault_transaction_read_only\n= on ; ',
  ];
  for (const query of accepted) {
    it(`${JSON.stringify(query)} is accepted without effect`, async () => {
      for (const user of ['admin', STATS_USER]) {
        const raw = await consoleOf({}, user);
        assert.equal(letters(await raw.query(query)), 'NCZ');
        assert.equal(letters(await extended(raw, ...oneShot(query))), '12nNCZ');
        await raw.end();
      }
    });
  }

  const refused = [
    'SET no_such_parameter = 1',
    'SET SESSION verbose = 3',
    "SET LOCAL server_check_query TO 'x', 'y'",
    'SET ROLE postgres',
    "SET SESSION AUTHORIZATION 'postgres'",
    'SET session_authorization = postgres, x',
    "SET SESSION timezone TO 'UTC'; KILL app",
    "SET SESSION timezone TO 'UTC', ",
    'SET NAMES',
    `SET SESSION timezone TO ${' '.repeat(50_000)}!`,
    `SET SESSION timezone TO ${"''".repeat(50_000)}!`,
    `SET SESSION timezone TO a${', a'.repeat(300)} !`,
    `SET SESSION CHARACTERISTICS AS TRANSACTION ${'READ ONLY '.repeat(90)} !`,
  ];
  for (const query of refused) {
    it(`${JSON.stringify(query.slice(0, 60))} is refused`, async () => {
      const raw = await consoleOf();
      assert.match(errorIn(await raw.query(query))?.M ?? 'accepted', /^(invalid command|SET failed)/);
      // at Parse, or at Execute if it may be a setting
      assert.match(errorIn(await extended(raw, ...oneShot(query)))?.M ?? 'accepted', /^(invalid command|SET failed)/);
      assert.notEqual((await bouncer.admin('SHOW CONFIG')).find(({ key }) => key === 'verbose')?.value, '3');
      await raw.end();
    });
  }

  const shown: Record<string, string> = {
    'SHOW TRANSACTION ISOLATION LEVEL': 'read committed',
    'show time zone;': 'GMT',
    'SHOW standard_conforming_strings': 'on',
    'SHOW search_path': '"$user", public',
  };
  for (const [query, value] of Object.entries(shown)) {
    it(`${query} returns PostgreSQL's default`, async () => {
      const raw = await consoleOf();
      for (const answer of [await raw.query(query), await extended(raw, ...oneShot(query))]) {
        const row = answer.find(({ type }) => type === 'D');
        assert.deepEqual(rowValues(row as Message), [value], letters(answer));
      }
      assert.match(letters(await extended(raw, parse('s', query), describeOf('S', 's'), SYNC)), /^1tTZ$/);
      await raw.end();
    });
  }
});

withConsole('conversations of drivers with the console', () => {
  it('pgx: prepares each query once, asks for binary columns, and pings with a comment', async () => {
    const raw = await consoleOf({ client_encoding: 'UTF8', application_name: 'pgx' });
    // it refuses to work without these two
    assert.equal(raw.parameters.standard_conforming_strings, 'on');
    assert.equal(raw.parameters.client_encoding, 'UTF8');
    const name = 'stmtcache_5ba6e4e1f0a3c0f2d2b1';
    const prepared = await extended(raw, parse(name, 'SHOW STATS'), describeOf('S', name), SYNC);
    assert.equal(letters(prepared), '1tTZ');
    for (let turn = 0; turn < 2; turn++) {
      const answer = await extended(raw, bind(name, BINARY), describeOf('P', ''), execute(), SYNC);
      assert.match(letters(answer), /^2TD+CZ$/);
    }
    assert.match(letters(await raw.query('-- ping')), /^IZ$/);
    assert.match(letters(await extended(raw, message('C', Buffer.from('S'), cstring(name)), SYNC)), /^3Z$/);
    assert.match(errorIn(await extended(raw, bind(name), SYNC))?.M ?? '', /does not exist/);
    await raw.end();
  });

  it('pgjdbc: sets its parameters in the extended protocol, and asks for the isolation level', async () => {
    const raw = await consoleOf({
      client_encoding: 'UTF8',
      DateStyle: 'ISO',
      TimeZone: 'Europe/Berlin',
      extra_float_digits: '3',
    });
    // the version that it parses, and its check of encoding and DateStyle
    assert.match(raw.parameters.server_version as string, /^\d+\.\d+/);
    assert.match(raw.parameters.DateStyle as string, /^ISO/);
    for (const query of ['SET extra_float_digits = 3', "SET application_name = 'PostgreSQL JDBC Driver'"]) {
      assert.equal(letters(await extended(raw, ...oneShot(query))), '12nNCZ');
    }
    assert.equal(letters(await extended(raw, ...oneShot('SHOW TRANSACTION ISOLATION LEVEL'))), '12TDCZ');
    // isValid(), then a query with setFetchSize(1), and the server-side statement after five uses
    assert.equal(letters(await extended(raw, ...oneShot(''))), '12nIZ');
    const page = await extended(raw, parse('', 'SHOW LISTS'), bind('', TEXT), describeOf('P', ''), execute(1), SYNC);
    assert.equal(letters(page), '12TDsZ');
    assert.match(letters(await extended(raw, parse('S_1', 'SHOW POOLS'), SYNC)), /^1Z$/);
    for (let turn = 0; turn < 6; turn++) {
      assert.match(letters(await extended(raw, bind('S_1', TEXT), describeOf('P', ''), execute(), SYNC)), /^2TD*CZ$/);
    }
    await raw.end();
  });

  it('Npgsql: sends DISCARD ALL in front of the next use of a pooled connection', async () => {
    const raw = await consoleOf({ client_encoding: 'UTF8' });
    await extended(raw, parse('_p1', 'SHOW VERSION'), SYNC);
    await raw.send(message('Q', cstring('DISCARD ALL')), ...oneShot('SHOW VERSION', BINARY));
    assert.equal(letters(await raw.until('Z')), 'CZ');
    const answer = await raw.until('Z');
    assert.equal(letters(answer), '12TDCZ');
    assert.match(rowValues(answer[3] as Message)[0] as string, /^PgBouncer \d/);
    // its statements are gone
    assert.match(errorIn(await extended(raw, bind('_p1'), SYNC))?.M ?? '', /does not exist/);
    await raw.end();
  });

  it('DEALLOCATE drops a statement of the protocol, or all', async () => {
    const raw = await consoleOf();
    await extended(raw, parse('one', 'SHOW VERSION'), parse('two', 'SHOW VERSION'), parse('Three', 'SHOW LISTS'), SYNC);
    assert.equal((await raw.query('DEALLOCATE one'))[0]?.body.toString(), 'DEALLOCATE\0');
    assert.equal(errorIn(await raw.query('DEALLOCATE one'))?.C, '26000');
    assert.equal(letters(await raw.query('DEALLOCATE "Three"')), 'CZ');
    assert.match(letters(await extended(raw, bind('two'), execute(), SYNC)), /^2D+CZ$/);
    assert.equal((await raw.query('deallocate all;'))[0]?.body.toString(), 'DEALLOCATE ALL\0');
    assert.equal(errorIn(await extended(raw, bind('two'), SYNC))?.C, '26000');
    for (const query of ['DISCARD', 'DISCARD PLANS', 'DEALLOCATE']) {
      assert.match(errorIn(await raw.query(query))?.M ?? '', /^invalid command/);
    }
    await raw.end();
  });
});
