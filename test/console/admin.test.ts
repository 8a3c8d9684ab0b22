/*
 * The console without sockets: its grammar, the columns of every SHOW, and the rows of the SHOW commands that only read
 * the pools.
 */

import assert from 'node:assert/strict';
import { helpText, showColumns } from '../../src/admin/columns';
import { parseQuery, QueryKind } from '../../src/admin/parse';
import { putDatabases, putPeers, putPools, putUsers } from '../../src/admin/show-pools';
import { putStats, putStatsAverages, putStatsTotals, putTotals } from '../../src/admin/show-stats';
import { LoadBalanceHosts, PoolMode } from '../../src/core/config/choices';
import { DATABASE_DEFAULTS, USER_DEFAULTS } from '../../src/core/config/records';
import { addDatabase, addPeer } from '../../src/core/pool/database';
import { getPool } from '../../src/core/pool/pool';
import { Stat } from '../../src/core/pool/stats';
import { findOrAddGlobalUser } from '../../src/core/pool/user';
import type { ColumnValue } from '../../src/core/wire/messages';
import { describe, test } from '../harness/limits';

function command(query: string, name: string, arg: string): void {
  assert.deepEqual(parseQuery(query), { kind: QueryKind.COMMAND, name, arg }, JSON.stringify(query));
}

function set(query: string, name: string, arg: string): void {
  assert.deepEqual(parseQuery(query), { kind: QueryKind.SET, name, arg }, JSON.stringify(query));
}

function kind(query: string, expected: QueryKind): void {
  assert.equal(parseQuery(query).kind, expected, JSON.stringify(query));
}

describe('the grammar of the console', () => {
  test('the grammar accepts a command of one or two words', () => {
    command('show stats', 'show', 'stats');
    command('SHOW Stats;', 'SHOW', 'Stats');
    command('pause', 'pause', '');
    command(' \t\r\n reload \n ; \t', 'reload', '');
    command('kill_client 42', 'kill_client', '42');
    command('9', '9', '');
  });

  test('the grammar treats space, tab, newline and carriage return as blanks', () => {
    command('show\t\r\nstats', 'show', 'stats');
    kind('show\vstats', QueryKind.SYNTAX_ERROR);
    kind('show\fstats', QueryKind.SYNTAX_ERROR);
    kind('show\u00a0stats', QueryKind.SYNTAX_ERROR);
  });

  test('a quoted word may contain any characters, with quotes doubled', () => {
    command('pause "my-db"', 'pause', 'my-db');
    command('pause "a""b"', 'pause', 'a"b');
    command('pause """"', 'pause', '"');
    command('pause ""', 'pause', '');
    command('"pause" "; show stats"', 'pause', '; show stats');
    command('pause "\xc3\xa9\n"', 'pause', '\xc3\xa9\n');
    kind('pause "', QueryKind.SYNTAX_ERROR);
    kind('pause """', QueryKind.SYNTAX_ERROR);
    kind('pause "a"b', QueryKind.SYNTAX_ERROR);
    kind('pause"a"', QueryKind.SYNTAX_ERROR);
  });

  test('a query contains one command and at most one semicolon', () => {
    kind('show stats; show pools', QueryKind.SYNTAX_ERROR);
    kind('show stats;;', QueryKind.SYNTAX_ERROR);
    kind('show stats pools', QueryKind.SYNTAX_ERROR);
    kind('', QueryKind.SYNTAX_ERROR);
    kind(';', QueryKind.SYNTAX_ERROR);
    kind(' \n', QueryKind.SYNTAX_ERROR);
    kind('-- ping', QueryKind.SYNTAX_ERROR);
    kind('pause my-db', QueryKind.SYNTAX_ERROR);
    kind("pause 'db'", QueryKind.SYNTAX_ERROR);
    kind('select 1+1', QueryKind.SYNTAX_ERROR);
  });

  test('texts that are too long, counting their quotes, are bad arguments', () => {
    command('x'.repeat(15), 'x'.repeat(15), '');
    kind('x'.repeat(16), QueryKind.BAD_ARGUMENTS);
    command(`pause ${'d'.repeat(63)}`, 'pause', 'd'.repeat(63));
    kind(`pause ${'d'.repeat(64)}`, QueryKind.BAD_ARGUMENTS);
    command(`pause "${'d'.repeat(61)}"`, 'pause', 'd'.repeat(61));
    kind(`pause "${'d'.repeat(62)}"`, QueryKind.BAD_ARGUMENTS);
    set(`set a='${'v'.repeat(253)}'`, 'a', 'v'.repeat(253));
    kind(`set a='${'v'.repeat(254)}'`, QueryKind.BAD_ARGUMENTS);
    kind(`set ${'k'.repeat(64)}=1`, QueryKind.BAD_ARGUMENTS);
  });

  test('SET accepts = or TO, followed by a word or a string', () => {
    set('set verbose=1', 'verbose', '1');
    set('SET verbose = 1 ;', 'verbose', '1');
    set('set verbose to 1', 'verbose', '1');
    set('set verbose TO "1"', 'verbose', '1');
    set("set server_check_query='select 1'", 'server_check_query', 'select 1');
    set("set server_check_query to 'it''s;'", 'server_check_query', "it's;");
    set("set logfile=''", 'logfile', '');
    set('set logfile=""', 'logfile', '');
    set('set "pool_mode"="session"', 'pool_mode', 'session');
    set('\tset\na\n=\nb\n', 'a', 'b');
  });

  test('TO needs no blanks around it; the longest name is chosen', () => {
    set("set ato'b'", 'a', 'b');
    set('set "a"to1', 'a', '1');
    set("set toto 'x'", 'to', 'x');
    set('set atotob to c', 'atotob', 'c');
    set('set a tob', 'a', 'b');
    set("set atotob to'c'", 'atotob', 'c');
    set('set ato "b"', 'a', 'b');
    // two words are always a command
    command('set atob', 'set', 'atob');
    kind('set atob c', QueryKind.SYNTAX_ERROR);
    kind("set to 'x'", QueryKind.SYNTAX_ERROR);
  });

  test('SET refuses malformed names and values', () => {
    command('set verbose', 'set', 'verbose');
    kind('set verbose 1', QueryKind.SYNTAX_ERROR);
    kind('set verbose=', QueryKind.SYNTAX_ERROR);
    kind('set verbose=-1', QueryKind.SYNTAX_ERROR);
    kind("set a='b", QueryKind.SYNTAX_ERROR);
    kind("set a='b'c", QueryKind.SYNTAX_ERROR);
    kind("set 'a'=b", QueryKind.SYNTAX_ERROR);
    kind('setverbose=1', QueryKind.SYNTAX_ERROR);
    kind('set a=1; set b=2', QueryKind.SYNTAX_ERROR);
    kind('set ""=1', QueryKind.BAD_ARGUMENTS);
  });

  test('parsing a long query takes linear time', () => {
    const begin = process.hrtime.bigint();
    kind(`set ${'to'.repeat(100_000)}!`, QueryKind.SYNTAX_ERROR);
    kind(`pause "${'a'.repeat(200_000)}`, QueryKind.SYNTAX_ERROR);
    kind(`pause${' '.repeat(200_000)}!`, QueryKind.SYNTAX_ERROR);
    assert.ok(process.hrtime.bigint() - begin < 1_000_000_000n);
  });
});

/** The columns in PgBouncer's usage.md, and two columns that it omits. */
const documented: Record<keyof typeof showColumns, [types: string, names: string]> = {
  stats: [
    'sNNNNNNNNNNNNNNNNNNNNNNNN',
    'database total_server_assignment_count total_xact_count total_query_count total_received total_sent total_xact_time total_query_time total_wait_time total_client_parse_count total_server_parse_count total_bind_count total_client_login_count avg_server_assignment_count avg_xact_count avg_query_count avg_recv avg_sent avg_xact_time avg_query_time avg_wait_time avg_client_parse_count avg_server_parse_count avg_bind_count avg_client_login_count',
  ],
  stats_totals: [
    'sNNNNNNNNNNNN',
    'database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time query_time wait_time client_parse_count server_parse_count bind_count client_login_count',
  ],
  stats_averages: [
    'sNNNNNNNNNNNN',
    'database server_assignment_count xact_count query_count bytes_received bytes_sent xact_time query_time wait_time avg_client_parse_count avg_server_parse_count avg_bind_count avg_client_login_count',
  ],
  totals: ['sN', 'name value'],
  servers: [
    'ssssssisiTTiiississii',
    'type user database replication state addr port local_addr local_port connect_time request_time wait wait_us close_needed ptr link remote_pid tls application_name prepared_statements id',
  ],
  clients: [
    'ssssssisiTTiiississii',
    'type user database replication state addr port local_addr local_port connect_time request_time wait wait_us close_needed ptr link remote_pid tls application_name prepared_statements id',
  ],
  sockets: [
    'ssssssisiTTiiississiiiiiiiii',
    'type user database replication state addr port local_addr local_port connect_time request_time wait wait_us close_needed ptr link remote_pid tls application_name prepared_statements id recv_pos pkt_pos pkt_remain send_pos send_remain pkt_avail send_avail',
  ],
  active_sockets: [
    'ssssssisiTTiiississiiiiiiiii',
    'type user database replication state addr port local_addr local_port connect_time request_time wait wait_us close_needed ptr link remote_pid tls application_name prepared_statements id recv_pos pkt_pos pkt_remain send_pos send_remain pkt_avail send_avail',
  ],
  pools: [
    'ssiiiiiiiiiiiiiss',
    'database user cl_active cl_waiting cl_active_cancel_req cl_waiting_cancel_req sv_active sv_active_cancel sv_being_canceled sv_idle sv_used sv_tested sv_login maxwait maxwait_us pool_mode load_balance_hosts',
  ],
  peer_pools: ['iiiii', 'peer_id cl_active_cancel_req cl_waiting_cancel_req sv_active_cancel sv_login'],
  lists: ['si', 'list items'],
  users: [
    'ssssiiii',
    'name pool_size reserve_pool_size pool_mode max_user_connections current_connections max_user_client_connections current_client_connections',
  ],
  databases: [
    'ssissiiiissiiiiii',
    'name host port database force_user pool_size min_pool_size reserve_pool_size server_lifetime pool_mode load_balance_hosts max_connections current_connections max_client_connections current_client_connections paused disabled',
  ],
  peers: ['isii', 'peer_id host port pool_size'],
  fds: [
    'issssiqisssssbb',
    'fd task user database addr port cancel link client_encoding std_strings datestyle timezone password scram_client_key scram_server_key',
  ],
  config: ['ssss', 'key value default changeable'],
  mem: ['siiii', 'name size used free memtotal'],
  dns_hosts: ['sqs', 'hostname ttl addrs'],
  dns_zones: ['sqi', 'zonename serial count'],
  version: ['s', 'version'],
  tsbouncer_version: ['s', 'tsbouncer_version'],
  state: ['ss', 'key value'],
  threads: ['siNNNNi', 'thread handles turns received sent cpu_us busy_percent'],
  waits: ['ssiiiss', 'database user cl_waiting maxwait maxwait_us waits_for held_by'],
};

describe('SHOW', () => {
  test('every SHOW has the documented columns', () => {
    assert.deepEqual(Object.keys(showColumns).sort(), Object.keys(documented).sort());
    for (const [word, [types, names]] of Object.entries(documented)) {
      const columns = showColumns[word as keyof typeof showColumns];
      assert.equal(columns.types, types, word);
      assert.equal(columns.names.join(' '), names, word);
    }
  });

  test('SHOW HELP names every other word', () => {
    const words = new Set(
      helpText
        .split('\n')
        .filter((line) => line.startsWith('\tSHOW '))
        .flatMap((line) => line.slice('\tSHOW '.length).toLowerCase().split('|')),
    );
    for (const word of Object.keys(showColumns)) assert.ok(words.has(word), word);
    assert.equal(words.size, Object.keys(showColumns).length + 1);
  });
});

/** The rows of a SHOW; each must have a value for every column. */
function rowsOf(
  word: keyof typeof showColumns,
  rows: (put: (...values: ColumnValue[]) => void) => void,
): ColumnValue[][] {
  const collected: ColumnValue[][] = [];
  rows((...values) => {
    assert.equal(values.length, showColumns[word].names.length, word);
    collected.push(values);
  });
  return collected;
}

describe('rows', () => {
  const app = addDatabase('app');
  app.config = {
    ...DATABASE_DEFAULTS,
    host: '/tmp,localhost',
    loadBalanceHosts: LoadBalanceHosts.ROUND_ROBIN,
    dbname: 'real',
    poolSize: 7,
    serverLifetime: 90_000_000,
  };
  const zoo = addDatabase('zoo');
  zoo.config = { ...DATABASE_DEFAULTS, poolMode: PoolMode.TX };
  zoo.paused = true;
  const alice = findOrAddGlobalUser('alice');
  alice.config = { ...USER_DEFAULTS, poolSize: 3 };
  const bob = findOrAddGlobalUser('bob');
  bob.config = { ...USER_DEFAULTS, poolMode: PoolMode.STMT };
  const pools = [getPool(app, alice.credentials), getPool(app, bob.credentials), getPool(zoo, alice.credentials)];
  for (const pool of pools) {
    pool.stats[Stat.XACT_COUNT] = 10;
    pool.stats[Stat.XACT_TIME] = 1000;
    pool.stats[Stat.CLIENT_LOGIN_COUNT] = 1;
  }

  test('SHOW DATABASES falls back to the general settings and shows unset modes as null', () => {
    const rows = rowsOf('databases', putDatabases);
    assert.deepEqual(rows, [
      ['app', '/tmp,localhost', 5432, 'real', null, 7, 0, 0, 90, null, 'round-robin', 0, 0, 0, 0, 0, 0],
      ['zoo', null, 5432, '', null, 20, 0, 0, 3600, 'transaction', null, 0, 0, 0, 0, 1, 0],
    ]);
  });

  test('SHOW USERS shows sizes as padded text, and unset sizes as empty text', () => {
    const rows = rowsOf('users', putUsers);
    assert.deepEqual(rows, [
      ['alice', '        3', '', null, 0, 0, 0, 0],
      ['bob', '', '', 'statement', 0, 0, 0, 0],
    ]);
  });

  test('SHOW POOLS shows the current pool mode', () => {
    const rows = rowsOf('pools', putPools);
    const modes = rows.map((row) => [row[0], row[1], row[15], row[16]]);
    assert.deepEqual(modes, [
      ['app', 'alice', 'session', 'round-robin'],
      ['app', 'bob', 'statement', 'round-robin'],
      ['zoo', 'alice', 'transaction', null],
    ]);
  });

  test('SHOW PEERS orders peers by id', () => {
    addPeer(2).config = { ...DATABASE_DEFAULTS, host: 'two' };
    addPeer(1).config = { ...DATABASE_DEFAULTS, host: 'one' };
    assert.deepEqual(rowsOf('peers', putPeers), [
      [1, 'one', 5432, 20],
      [2, 'two', 5432, 20],
    ]);
  });

  test('SHOW STATS sums up the pools of each database', () => {
    const rows = rowsOf('stats', putStats);
    assert.deepEqual(
      rows.map((row) => [row[0], row[2], row[6], row[12]]),
      [
        ['app', 20, 2000, 2],
        ['zoo', 10, 1000, 1],
      ],
    );
    // mean duration of a transaction, in usec
    assert.equal(rows[0]?.[18], 100);
    assert.deepEqual(
      rowsOf('stats_totals', putStatsTotals),
      rows.map((row) => row.slice(0, 13)),
    );
    assert.deepEqual(
      rowsOf('stats_averages', putStatsAverages).map((row) => row.slice(6, 9)),
      rows.map((row) => row.slice(18, 21)),
    );
  });

  test('SHOW TOTALS sums up all pools', () => {
    const totals = new Map(rowsOf('totals', putTotals).map(([name, value]) => [name, value]));
    assert.equal(totals.size, 24);
    assert.equal(totals.get('total_xact_count'), 30);
    assert.equal(totals.get('total_client_login_count'), 3);
    assert.equal(totals.get('avg_xact_time'), 100);
    assert.ok(totals.has('total_ps_client_parse_count') && totals.has('avg_server_bytes'));
  });
});
