/*
 * The LISTEN and UNLISTEN in the text of a query.
 */

import assert from 'node:assert/strict';
import { channelStatement, channelStatements } from '../../src/core/pool/listen-text';
import { it } from '../harness';

/** The statements as text: + = LISTEN, - = UNLISTEN, * = all. */
function read(sql: string, backslash = false): string {
  return channelStatements(sql, backslash)
    .map(({ listen, channel }) => (listen ? '+' : '-') + (channel ?? '*'))
    .join(' ');
}

it('statements are found, and their names folded', () => {
  const long = 'y'.repeat(70);
  for (const [sql, found] of [
    ['listen a', '+a'],
    [' LISTEN\tAb_1$ ; ', '+ab_1$'],
    ['LISTEN"A b"', '+A b'],
    ['LISTEN "a""b";UNLISTEN "c"', '+a"b -c'],
    ['UNLISTEN *; UNLISTEN x', '-* -x'],
    ['--c\nLISTEN--d\na', '+a'],
    ['/*/**/*/LISTEN/*;*/a;/*', '+a'],
    [`LISTEN ${long}`, `+${long.slice(0, 63)}`],
    ['BEGIN;LISTEN a;LISTEN b;COMMIT', '+a +b'],
    ['', ''],
    [';;LISTEN a', '+a'],
    ['LISTEN \xc4', '+\xc4'],
  ] as const)
    assert.equal(read(sql), found, sql);
});

it('what only looks like one is not found', () => {
  for (const sql of [
    "SELECT ';LISTEN a;'",
    "SELECT E'\\';LISTEN a;'",
    "SELECT 'it''s;LISTEN a;'",
    'SELECT 1 AS ";LISTEN a;"',
    'SELECT $$;LISTEN a;$$',
    'SELECT $b1$;LISTEN a;$$;$b1$',
    'SELECT 1 /*;LISTEN a;*/',
    'SELECT 1 --;LISTEN a;',
    'SELECT listen FROM listen',
    'LISTENER a',
    'LISTEN',
    'LISTEN 1a',
    'LISTEN U&"a"',
    "SELECT '",
    'SELECT $1;SELECT "LISTEN a',
    'SELECT $a$;LISTEN a',
    'SELECT /* LISTEN a',
    `LISTEN "${'y'.repeat(62)}\xc3\xa4"`,
  ])
    assert.equal(read(sql), '', sql);
  assert.equal(read("SELECT e'\\';LISTEN a;'; LISTEN b; SELECT $1; LISTEN c"), '+b +c');
  // a string without E
  assert.equal(read("SELECT '\\'; LISTEN a; SELECT '", false), '+a');
  assert.equal(read("SELECT '\\'; LISTEN a; SELECT '", true), '');
});

it('a single statement, and long texts', () => {
  assert.deepEqual(channelStatement('/* c */ UNLISTEN a'), { listen: false, channel: 'a' });
  assert.equal(channelStatement('SELECT 1'), null);
  for (const part of ["'", '"', '/*', '$a$', '--', "E'\\", '""', "''", 'a.', '$', '(', "e'"])
    assert.equal(typeof read(`${part.repeat(20_000)};LISTEN a`), 'string');
});
