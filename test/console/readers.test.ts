/*
 * Programs that read the console: the queries that each sends, and how it reads the answers. A reader that picks values
 * by position, or a layout by SHOW VERSION, works only with the compat_version that it knows.
 */

import assert from 'node:assert/strict';
import { ask, login, withPooler } from '../harness/answers';
import { Bouncer } from '../harness/bouncer';
import { cluster, withCluster } from '../harness/fixtures';
import { describe } from '../harness/limits';
import { it } from '../harness/machine';
import { errorFields, letters, type RawClient, rowValues } from '../harness/raw-client';

/** An answer as a driver returns it. */
interface Table {
  names: string[];
  rows: (string | null)[][];
  notices: number;
}

type Show = (query: string) => Promise<Table>;

interface Reader {
  name: string;
  /** startup parameters of its driver */
  params?: Record<string, string>;
  /** the error with which it gives up, by compat_version */
  fails?: Record<string, RegExp>;
  read(show: Show): Promise<void>;
}

function words(text: string): string[] {
  return text.trim().split(/\s+/);
}

/** Go's Scan() into an int. */
function goInt(text: string | null): number {
  if (text === null) throw new Error('converting NULL to int is unsupported');
  if (!/^-?\d+$/.test(text)) throw new Error(`strconv.ParseInt: parsing "${text}": invalid syntax`);
  return Number(text);
}

/** Go's Scan() of a row into as many places. */
function goScan(table: Table, places: number, texts: number[]): void {
  const count = table.names.length;
  if (count !== places) throw new Error(`sql: expected ${count} destination arguments in Scan, not ${places}`);
  for (const row of table.rows) row.forEach((value, at) => void (texts.includes(at) || goInt(value)));
}

/** A reader by name: each of these columns exists, and each of its values is a number. */
function numbers(table: Table, columns: string): void {
  for (const column of words(columns)) {
    const at = table.names.indexOf(column);
    assert.ok(at >= 0, `no column ${column}`);
    for (const row of table.rows) assert.match(row[at] ?? 'NULL', /^-?\d+$/, column);
  }
}

/** A reader by name: each of these columns exists, and none of its values is NULL. */
function labels(table: Table, columns: string): void {
  for (const column of words(columns)) {
    const at = table.names.indexOf(column);
    assert.ok(at >= 0, `no column ${column}`);
    for (const row of table.rows) assert.notEqual(row[at], null, column);
  }
}

const LISTS = words(`databases users peers pools peer_pools free_clients used_clients login_clients free_servers
  used_servers dns_names dns_zones dns_queries dns_pending`);

const STATS = `total_xact_count total_query_count total_received total_sent total_xact_time total_query_time
  total_wait_time avg_xact_count avg_query_count avg_recv avg_sent avg_xact_time avg_query_time avg_wait_time`;

async function exporter(show: Show): Promise<void> {
  assert.deepEqual((await show('SHOW VERSION;')).names, ['version']);
  const lists = await show('SHOW LISTS;');
  assert.equal(lists.names.length, 2);
  numbers(lists, 'items');
  const config = await show('SHOW CONFIG;');
  assert.equal(config.names.length, 4);
  for (const name of ['max_client_conn', 'max_user_connections']) {
    assert.match(String(config.rows.find(([key]) => key === name)?.[1]), /^\d+$/, name);
  }
  const databases = await show('SHOW databases;');
  numbers(databases, 'pool_size max_connections current_connections paused disabled');
  assert.ok(words('name host port database force_user pool_mode').every((name) => databases.names.includes(name)));
  numbers(
    await show('SHOW stats_totals;'),
    `query_count query_time bytes_received bytes_sent wait_time xact_count xact_time client_parse_count
    server_parse_count bind_count`,
  );
  const pools = await show('SHOW pools;');
  numbers(
    pools,
    `cl_active cl_active_cancel_req cl_waiting cl_waiting_cancel_req sv_active sv_active_cancel sv_being_canceled
    sv_idle sv_used sv_tested sv_login maxwait`,
  );
  labels(pools, 'database user');
  labels(await show('SHOW clients;'), 'database user state');
}

async function cloudNativePools(show: Show): Promise<void> {
  const pools = await show('SHOW POOLS;');
  // pool_mode and load_balance_hosts are no numbers
  goScan(pools, 17, [0, 1, 15, 16]);
  const lists = await show('SHOW LISTS;');
  goScan(lists, 2, [0]);
  for (const [name] of lists.rows) assert.ok(LISTS.includes(name as string), `Missing metric ${name}`);
}

async function cloudNativeByPosition(show: Show): Promise<void> {
  const stats = await show('SHOW STATS;');
  const known: Record<number, number> = { 15: 15, 17: 17 };
  goScan(stats, known[stats.names.length] ?? 23, [0]);
  await cloudNativePools(show);
}

async function cloudNativeByName(show: Show): Promise<void> {
  numbers(await show('SHOW STATS;'), `${STATS} total_server_assignment_count avg_server_assignment_count`);
  await cloudNativePools(show);
}

async function datadog(show: Show): Promise<void> {
  numbers(await show('SHOW STATS'), STATS);
  const pools = await show('SHOW POOLS');
  numbers(pools, 'cl_active cl_waiting sv_active sv_idle sv_used sv_tested sv_login maxwait maxwait_us');
  labels(pools, 'database user');
  numbers(await show('SHOW DATABASES'), 'pool_size max_connections current_connections');
  const config = await show('SHOW CONFIG');
  assert.deepEqual(config.names.slice(0, 2), ['key', 'value']);
  const version = await show('SHOW VERSION;');
  // it takes the text of a notice, if there is one
  assert.equal(version.notices, 0);
  assert.match(version.rows[0]?.[0] as string, /\d+\.\d+\.\d+/);
}

async function telegraf(show: Show): Promise<void> {
  const ignored = ['database', 'user', 'pool_mode', 'avg_req', 'avg_recv', 'avg_sent', 'avg_query'];
  const stats = await show('SHOW STATS');
  for (const row of stats.rows) {
    stats.names.forEach((name, at) => void (ignored.includes(name) || goInt(row[at] ?? null)));
  }
  labels(stats, 'database');
  labels(await show('SHOW POOLS'), 'database');
}

async function crunchyCollector(show: Show): Promise<void> {
  const clients = await show('SHOW CLIENTS;');
  numbers(clients, 'wait');
  labels(clients, 'database user state application_name link');
  const databases = await show('SHOW DATABASES;');
  numbers(databases, 'pool_size min_pool_size reserve_pool_size max_connections current_connections paused disabled');
  labels(databases, 'name port database');
  const lists = await show('SHOW LISTS;');
  numbers(lists, 'items');
  labels(lists, 'list');
  const pools = await show('SHOW POOLS;');
  numbers(pools, 'cl_active cl_waiting sv_active sv_idle sv_used');
  labels(pools, 'database user');
  const servers = await show('SHOW SERVERS;');
  assert.notEqual(servers.rows.length, 0);
  numbers(servers, 'close_needed');
  labels(servers, 'database user state application_name link');
}

/** The columns that pgbouncer_fdw declares from 1.24 on: t text, i int, I bigint, b boolean, z timestamp. */
const FDW: Record<string, string> = {
  'show clients': 'ttttttitizziiittittii',
  'show config': 'tttb',
  'show databases': 'ttittiiiitiiiiiii',
  'show dns_hosts': 'tIt',
  'show dns_zones': 'tti',
  'show lists': 'ti',
  'show pools': 'ttiiiiiiiiiiiiiti',
  'show servers': 'ttttttitizziiittittii',
  'show stats': 'tiIIIIIIIiiiiIIIIIIIiii',
  'show users': 'ttttiiii',
};

const FDW_INPUT: Record<string, RegExp> = {
  t: /^/,
  i: /^-?\d{1,10}$/,
  I: /^-?\d{1,19}$/,
  b: /^(yes|no)$/,
  z: /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \w+$/,
};

/** dblink(): as many columns as declared, and each value is read by the input function of its type. */
async function foreignData(show: Show): Promise<void> {
  const version = (await show('show version')).rows[0]?.[0] as string;
  const parts = (/\d.+/.exec(version)?.[0] ?? '').split('.');
  for (const part of [parts[0], parts[1], parts[2]]) {
    if (!/^\d+$/.test(part ?? '')) throw new Error(`invalid input syntax for type integer: "${part}"`);
  }
  assert.ok(parts[0] === '1' && Number(parts[1]) >= 24);
  for (const [query, types] of Object.entries(FDW)) {
    const { names, rows } = await show(query);
    if (names.length !== types.length) {
      throw new Error(`${query}: remote query result rowtype does not match the specified FROM clause rowtype`);
    }
    for (const row of rows) {
      row.forEach((value, at) => {
        if (value !== null) assert.match(value, FDW_INPUT[types[at] as string] as RegExp, `${query}: ${names[at]}`);
      });
    }
  }
}

const readers: Reader[] = [
  {
    name: 'pgbouncer_exporter 0.12',
    params: { client_encoding: 'UTF8', datestyle: 'ISO, MDY', extra_float_digits: '2' },
    read: exporter,
  },
  {
    name: 'CloudNativePG before September 2026',
    fails: { '1.26': /sql: expected 25 destination arguments in Scan, not 23$/ },
    read: cloudNativeByPosition,
  },
  { name: 'CloudNativePG since September 2026', read: cloudNativeByName },
  { name: 'Datadog', read: datadog },
  { name: 'Telegraf', params: { client_encoding: 'UTF8' }, read: telegraf },
  { name: "the OpenTelemetry collector of Crunchy's operator", read: crunchyCollector },
  {
    name: 'pgbouncer_fdw 1.4',
    fails: { '1.26': /show stats: remote query result rowtype does not match/ },
    read: foreignData,
  },
];

withCluster();

/** Answers of one console connection, as text, by the simple protocol, which all these readers use. */
function showOn(client: RawClient): Show {
  return async (query) => {
    const answer = await client.query(query);
    const error = answer.find(({ type }) => type === 'E');
    if (error !== undefined) throw new Error(errorFields(error).M);
    const description = answer.find(({ type }) => type === 'T');
    assert.ok(description !== undefined, letters(answer));
    const names: string[] = [];
    let at = 2;
    while (names.length < description.body.readUInt16BE(0)) {
      const end = description.body.indexOf(0, at);
      names.push(description.body.toString('latin1', at, end));
      at = end + 1 + 18;
    }
    const rows = answer.filter(({ type }) => type === 'D').map(rowValues);
    return { names, rows, notices: answer.filter(({ type }) => type === 'N').length };
  };
}

/** Something in every SHOW: a client in a transaction, an idle client, and statistics. */
async function busy(pooler: Bouncer): Promise<void> {
  const inTransaction = await login(pooler);
  await ask(inTransaction, 'BEGIN');
  await ask(await login(pooler), 'SELECT 1');
}

for (const compat of ['1.25', '1.26']) {
  describe(`readers of the console with compat_version = ${compat}`, () => {
    for (const { name, params, fails, read } of readers) {
      const failure = fails?.[compat];
      it(`${name} ${failure === undefined ? 'reads the console' : `fails as with PgBouncer ${compat}`}`, async () => {
        const settings = { compat_version: compat, ignore_startup_parameters: 'extra_float_digits' };
        await withPooler({ cluster: cluster(), settings }, async (pooler) => {
          await busy(pooler);
          const who = { user: 'admin', database: 'pgbouncer', password: 'admin-password' };
          const show = showOn(await login(pooler, { ...who, ...(params === undefined ? {} : { params }) }));
          if (failure === undefined) await read(show);
          else await assert.rejects(read(show), failure);
        });
      });
    }
  });
}

describe('compat_version', () => {
  const columns = { STATS: [23, 25], STATS_TOTALS: [12, 13], STATS_AVERAGES: [12, 13] } as const;
  for (const [at, compat] of ['1.25', '1.26'].entries()) {
    it(`compat_version = ${compat} shows the version and the statistics of PgBouncer ${compat}`, async () => {
      const settings = { compat_version: compat, stats_period: 1 };
      await withPooler({ cluster: cluster(), settings }, async (pooler) => {
        await busy(pooler);
        const client = await login(pooler, { user: 'admin', database: 'pgbouncer', password: 'admin-password' });
        const show = showOn(client);
        const version = ['1.25.2', '1.26.1'][at];
        assert.deepEqual((await show('SHOW VERSION')).rows, [[`PgBouncer ${version}`]]);
        assert.equal(client.parameters.server_version, `${version}/bouncer`);
        assert.equal(client.parameters['pgbouncer.version'], version);
        for (const [word, counts] of Object.entries(columns)) {
          const { names, rows } = await show(`SHOW ${word}`);
          assert.equal(names.length, counts[at], word);
          for (const row of rows) assert.equal(row.length, counts[at], word);
          assert.equal(names.filter((name) => name.includes('client_login')).length > 0, at === 1);
        }
        const totals = (await show('SHOW TOTALS')).rows.map(([name]) => name);
        assert.equal(totals.length, at === 1 ? 24 : 22);
        const rest = at === 1 ? '\\d+ client logins/s, in' : 'in';
        await pooler.logWait(new RegExp(`LOG stats: .* binds/s, ${rest} \\d+ B/s`));
      });
    });
  }

  it('TSBOUNCER_COMPAT_VERSION in the environment is the default of compat_version', async () => {
    const versionOf = async (compat: string, settings: Record<string, string> = {}): Promise<unknown> => {
      const pooler = await Bouncer.start({ cluster: cluster(), settings, env: { TSBOUNCER_COMPAT_VERSION: compat } });
      const rows = await pooler.admin('SHOW VERSION');
      await pooler.stop();
      return rows[0]?.version;
    };
    assert.equal(await versionOf('1.25'), 'PgBouncer 1.25.2');
    assert.equal(await versionOf('1.25', { compat_version: '1.26' }), 'PgBouncer 1.26.1');
    await assert.rejects(versionOf('1.2'), /FATAL invalid value "1\.2" for TSBOUNCER_COMPAT_VERSION/);
  });

  it('compat_version other than 1.25 and 1.26 is an error', async () => {
    const options = { cluster: cluster(), settings: { compat_version: '1.24' } };
    await assert.rejects(
      withPooler(options, async () => {}),
      /invalid value "1\.24" for parameter compat_version/,
    );
  });
});
