/*
 * Protocol-level prepared statements in transaction and statement mode: names that follow their clients, pipelines with
 * errors in the middle, effects of Close, DEALLOCATE ALL and DISCARD ALL, and the counters.
 */

import { message } from '../../test/harness/raw-client';
import type { Scenario, Step } from '../side';
import {
  admin,
  bind,
  bye,
  change,
  closeObject,
  describe,
  exchange,
  execute,
  flush,
  login,
  parse,
  query,
  receive,
  send,
  simple,
  sync,
} from '../steps';

const SETTINGS = { pool_mode: 'transaction', max_prepared_statements: 5, default_pool_size: 1 };

function use(client: string, name: string, ...values: string[]): Step {
  return exchange(client, `uses "${name}"`, bind('', name, ...values), execute(''), sync());
}

function prepare(client: string, name: string, sql: string): Step {
  return exchange(client, `prepares "${name}" as ${sql}`, parse(name, sql), sync());
}

/** The statement names on the server, in the order of their preparation. */
const onServer = query('a', 'SELECT name, statement FROM pg_prepared_statements ORDER BY prepare_time, name');

const sharing: Step[] = [
  login('a'),
  login('b'),
  prepare('a', 'one', 'SELECT $1::int4 + 1'),
  prepare('b', 'mine', 'SELECT $1::int4 + 1'),
  prepare('b', 'one', 'SELECT $1::text'),
  use('a', 'one', '41'),
  use('b', 'mine', '1'),
  use('b', 'one', 'text'),
  exchange('a', 'describes "one"', describe('S', 'one'), sync()),
  exchange('a', 'describes "nothing"', describe('S', 'nothing'), sync()),
  use('a', 'nothing'),
  prepare('a', 'one', 'SELECT 2'),
  exchange('a', 'closes "one" and "nothing"', closeObject('S', 'one'), closeObject('S', 'nothing'), sync()),
  use('a', 'one', '41'),
  prepare('a', 'one', 'SELECT 2'),
  use('a', 'one'),
  exchange('a', 'the unnamed one', parse('', 'SELECT 3'), bind('', ''), describe('P', ''), execute(''), sync()),
  exchange('a', 'closes the unnamed one', closeObject('S', ''), sync()),
  exchange(
    'a',
    'a portal by name',
    bind('p', 'one'),
    describe('P', 'p'),
    execute('p', 1),
    closeObject('P', 'p'),
    sync(),
  ),
  onServer,
  admin('SHOW STATS'),
  admin('SHOW STATS_TOTALS'),
  admin('SHOW CLIENTS'),
  admin('SHOW SERVERS'),
  bye('a', 'b'),
];

const pipelines: Step[] = [
  login('a'),
  exchange(
    'a',
    'three statements in one pipeline',
    ...[1, 2, 3].flatMap((n) => [parse(`s${n}`, `SELECT ${n}`), bind('', `s${n}`), execute('')]),
    sync(),
  ),
  exchange(
    'a',
    'an error in its middle',
    parse('good', 'SELECT 1'),
    parse('bad', 'SELEKT'),
    parse('late', 'SELECT 2'),
    bind('', 'good'),
    execute(''),
    sync(),
  ),
  use('a', 'good'),
  use('a', 'bad'),
  use('a', 'late'),
  exchange(
    'a',
    'an error at Execute',
    parse('z', 'SELECT 1/0'),
    bind('', 'z'),
    execute(''),
    bind('', 's1'),
    execute(''),
    sync(),
  ),
  use('a', 's1'),
  send('a', 'a pipeline with two ends', bind('', 's1'), execute(''), sync(), bind('', 's2'), execute(''), sync()),
  receive('a'),
  receive('a'),
  send('a', 'Parse and Flush', parse('f', 'SELECT 7'), flush()),
  receive('a', '1'),
  exchange('a', 'the rest', bind('', 'f'), execute(''), sync()),
  exchange('a', 'a transaction around', simple('BEGIN')),
  use('a', 's1'),
  exchange('a', 'its failure', simple('SELECT 1/0')),
  use('a', 's1'),
  exchange('a', 'its end', simple('ROLLBACK')),
  use('a', 's1'),
  exchange(
    'a',
    'Close and Parse of one name',
    closeObject('S', 's1'),
    parse('s1', 'SELECT 11'),
    bind('', 's1'),
    execute(''),
    sync(),
  ),
  exchange('a', 'only Sync', sync()),
  onServer,
  bye('a'),
];

/** So many statements that some are evicted from the server. */
const many: Step[] = [
  login('a'),
  ...[1, 2, 3, 4, 5, 6, 7].map((n) => prepare('a', `m${n}`, `SELECT ${n}`)),
  ...[1, 7, 2, 6].map((n) => use('a', `m${n}`)),
  onServer,
  change('fewer', { settings: { max_prepared_statements: 2 } }),
  admin('RELOAD'),
  ...[1, 2, 3].map((n) => use('a', `m${n}`)),
  onServer,
  change('none', { settings: { max_prepared_statements: 0 } }),
  admin('RELOAD'),
  use('a', 'm1'),
  prepare('a', 'plain', 'SELECT 1'),
  use('a', 'plain'),
  bye('a'),
];

const forgetting: Step[] = ['DEALLOCATE ALL', 'DISCARD ALL', 'deallocate all;', 'DEALLOCATE one'].flatMap((sql, at) => [
  login(`c${at}`),
  prepare(`c${at}`, 'one', 'SELECT 1'),
  query(`c${at}`, sql),
  use(`c${at}`, 'one'),
  exchange(`c${at}`, `${sql} in the extended protocol`, parse('', sql), bind('', ''), execute(''), sync()),
  use(`c${at}`, 'one'),
  prepare(`c${at}`, 'one', 'SELECT 2'),
  use(`c${at}`, 'one'),
  bye(`c${at}`),
]);

const malformed: Step[] = [
  ['Parse without an end', message('P', Buffer.from('open'))],
  ['Bind without an end', message('B', Buffer.from('open'))],
  ['Close of something else', message('C', Buffer.from('Xname\0'))],
  ['Describe of something else', message('D', Buffer.from('Xname\0'))],
  ['an empty Close', message('C')],
].flatMap(([text, bytes]) => [
  login('a'),
  exchange('a', text as string, bytes as Buffer, sync()),
  login('b'),
  query('b', 'SELECT 1'),
  bye('b'),
]);

export const prepared: Scenario[] = [
  { name: 'shared by clients', steps: sharing },
  { name: 'pipelines', steps: pipelines },
  { name: 'more than there may be', steps: many },
  { name: 'forgotten', steps: forgetting },
  { name: 'malformed', steps: malformed },
  { name: 'in statement mode', settings: { pool_mode: 'statement' }, steps: sharing },
  { name: 'in session mode', settings: { pool_mode: 'session', default_pool_size: 5 }, steps: pipelines },
].map(
  (scenario): Scenario => ({
    ...scenario,
    since: '1.22',
    settings: { ...SETTINGS, ...scenario.settings },
    own: { prepared_errors_fatal: 1 },
    raceInLog: true,
  }),
);
