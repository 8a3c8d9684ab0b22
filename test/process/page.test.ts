/*
 * The live page at / of metrics_port: what /status.json says against the console, who gets it, what a browser is told to
 * refuse, and that its memory is bounded. test/browser has the tests in a browser.
 */

import assert from 'node:assert/strict';
import { readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { MetricsLayout, MetricsReport } from '../../src/core/base/worker-messages';
import { History, SAMPLES_MAX, TOTAL_COLUMNS } from '../../src/workers/history';
import { type KnownPool, MetricsState } from '../../src/workers/metrics-state';
import { percentiles } from '../../src/workers/percentiles';
import { Status } from '../../src/workers/status';
import { freePort } from '../../tools/postgres';
import { ask, login, refusal, start, withPooler } from '../harness/answers';
import { PgCluster } from '../harness/cluster';
import { httpGet, statusJson } from '../harness/http';
import { after, before, describe } from '../harness/limits';
import { eventually, it, PROJECT_DIR, tempDir } from '../harness/machine';
import { withRebootChain } from '../harness/reboot-chain';

const TX = { pool_mode: 'transaction' };
const FILES = join(PROJECT_DIR, 'src', 'workers', 'page');

interface StatusText {
  pid: number;
  notReady: string;
  maxClientConn: number;
  history: { columns: string[]; count: number; rows: number[][] };
  percentiles: Record<string, number[]>;
  pools: { columns: string[]; count: number; found: number; rows: (string | number | number[])[][] };
  databases: { name: string; paused: boolean; disabled: boolean }[];
  lines: { id: number; at: number; level: string; text: string }[];
  linesEver: number;
  linesLeftOut: number;
  reboots: { at: number; from: number; to: number; outcome: string }[];
}

let pg: PgCluster;
before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

function pool(status: StatusText, database: string, user: string): Record<string, string | number | number[]> | null {
  const row = status.pools.rows.find(([db, name]) => db === database && name === user);
  return row === undefined
    ? null
    : Object.fromEntries(status.pools.columns.map((column, at) => [column, row[at] ?? 0]));
}

/** The sums of the samples. */
function total(status: StatusText, column: string): number {
  const at = status.history.columns.indexOf(column);
  return status.history.rows.reduce((sum, row) => sum + (row[at] ?? 0), 0);
}

const becomes = (port: number, what: string, ready: (status: StatusText) => boolean, query = '') =>
  statusJson<StatusText>(port, what, ready, query);

describe('/status.json', () => {
  it('has the numbers of SHOW POOLS and SHOW STATS', async () => {
    const port = await freePort();
    const settings = { ...TX, metrics_port: port, default_pool_size: 2 };
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      const clients = await Promise.all([1, 2, 3, 4].map(() => login(pooler)));
      // queries count as the difference to a sample before them
      await becomes(port, 'the first sample', ({ history }) => history.rows.length > 0);
      for (const client of clients.slice(0, 2)) await ask(client, 'BEGIN');
      for (const client of clients.slice(2)) await start(client, 'SELECT 1');
      const status = await becomes(port, 'the waiting clients', (found) => {
        const one = pool(found, 'postgres', 'postgres');
        return one?.cl_waiting === 2 && total(found, 'query_count') >= 2;
      });
      const [shown] = (await pooler.admin('SHOW POOLS')).filter((row) => row.database === 'postgres');
      const [stats] = (await pooler.admin('SHOW STATS')).filter((row) => row.database === 'postgres');
      const one = pool(status, 'postgres', 'postgres') ?? {};
      const columns = Object.keys(shown ?? {}).filter((name) => /^(cl|sv)_/.test(name));
      assert.equal(columns.length, 11);
      for (const name of columns) assert.equal(one[name], shown?.[name], name);
      assert.equal(one.pool_size, 2);
      assert.ok((one.maxwait as number) > 0);
      assert.equal(total(status, 'query_count'), Number(stats?.total_query_count));
      // the most saturated pool comes first
      assert.deepEqual(status.pools.rows[0]?.slice(0, 2), ['postgres', 'postgres']);
      assert.equal(status.pools.count, 2);
      const { percentiles: times } = await becomes(
        port,
        'the percentiles',
        (got) => got.percentiles.query?.length === 3,
      );
      assert.deepEqual(
        times.query,
        [...(times.query ?? [])].sort((a, b) => a - b),
      );
      await pooler.admin('SET default_pool_size = 3');
      await becomes(port, 'the new size', (got) => pool(got, 'postgres', 'postgres')?.pool_size === 3);
      const { found, rows } = (await becomes(port, 'an answer', () => true, '?filter=PGB')).pools;
      assert.deepEqual([found, rows.map(([name]) => name)], [1, ['pgbouncer']]);
      const none = await becomes(port, 'an answer', () => true, '?filter=nothing');
      assert.deepEqual([none.pools.found, none.pools.rows.length, none.pools.count], [0, 0, 2]);
      for (const client of clients) await client.destroy();
    });
  });

  it('sends only what a page does not have yet', async () => {
    const port = await freePort();
    await withPooler({ cluster: pg, settings: { metrics_port: port } }, async (pooler) => {
      await refusal(pooler, { user: 'mallory' });
      const first = await becomes(port, 'samples and a line', (got) => got.history.count >= 2 && got.linesEver >= 1);
      assert.equal(first.history.rows.length, first.history.count);
      const have = `&since=${first.history.count}&lines=${first.linesEver}`;
      const more = await becomes(port, 'a later sample', (got) => got.history.count > first.history.count);
      const next = await becomes(port, 'an answer', () => true, `?process=${first.pid}${have}`);
      assert.ok(next.history.count >= more.history.count);
      assert.equal(next.history.rows.length, next.history.count - first.history.count);
      assert.ok(next.lines.every(({ id }) => id > first.linesEver));
      // what it has of another process does not count
      const other = await becomes(port, 'an answer', () => true, `?process=1${have}`);
      assert.equal(other.history.rows.length, other.history.count);
      assert.ok(other.lines.some(({ id }) => id === 1));
    });
  });

  it('has warnings and errors of the log as text, and databases that are paused or disabled', async () => {
    const port = await freePort();
    const hostile = '<img src=x onerror=alert(1)>';
    const settings = { metrics_port: port, auth_type: 'plain' };
    const options = { cluster: pg, settings, databases: { postgres: pg.connstr() } };
    await withPooler(options, async (pooler) => {
      await refusal(pooler, { user: hostile, password: 'x' });
      const status = await becomes(port, 'the line', ({ lines }) => lines.some(({ text }) => text.includes(hostile)));
      const line = status.lines.find(({ text }) => text.includes(hostile));
      assert.equal(line?.level, 'WARNING');
      assert.ok(Math.abs((line?.at ?? 0) - Date.now()) < 60_000);
      assert.deepEqual(status.databases, []);
      await pooler.admin('DISABLE postgres');
      const { databases } = await becomes(port, 'the disabled database', (got) => got.databases.length > 0);
      assert.deepEqual(databases, [{ name: 'postgres', paused: false, disabled: true }]);
      await pooler.admin('PAUSE');
      await becomes(port, 'the paused pooler', ({ notReady }) => notReady === 'paused');
      await pooler.admin('RESUME');
    });
  });

  it('the new process of an online reboot tells of all reboots', async () => {
    const port = await freePort();
    await withRebootChain({ cluster: pg, settings: { metrics_port: port } }, async (chain) => {
      const first = await chain.start('ts');
      assert.deepEqual((await becomes(port, 'an answer', () => true)).reboots, []);
      const second = await chain.reboot('ts');
      await becomes(port, 'the second process', ({ pid }) => pid === second.pid);
      const third = await chain.reboot('ts');
      const { reboots } = await becomes(port, 'the third process', ({ pid }) => pid === third.pid);
      assert.deepEqual(
        reboots.map(({ from, to }) => [from, to]),
        [
          [first.pid, second.pid],
          [second.pid, third.pid],
        ],
      );
      for (const { outcome, at } of reboots) {
        assert.match(outcome, /^took over 2 listening sockets/);
        assert.ok(Math.abs(at - Date.now()) < 120_000);
      }
    });
  });
});

describe('the files of the page', () => {
  it('come with a policy that allows nothing but the own files, and have no inline script, style or outside address', async () => {
    const port = await freePort();
    await withPooler({ cluster: pg, settings: { metrics_port: port } }, async () => {
      await becomes(port, 'an answer', () => true);
      for (const path of ['/', ...readdirSync(FILES).map((name) => `/${name.replace('index.html', '')}`)]) {
        const { status, headers, body } = await httpGet(port, path);
        assert.equal(status, 200, path);
        const policy = String(headers['content-security-policy']);
        assert.match(policy, /default-src 'none'.*script-src 'self';.*frame-ancestors 'none'.*trusted-types 'none'/);
        assert.doesNotMatch(policy, /unsafe|https?:|\*|data:/);
        assert.equal(headers['x-content-type-options'], 'nosniff');
        assert.doesNotMatch(body.replaceAll('http://www.w3.org/2000/svg', ''), /https?:\/\//, path);
        assert.doesNotMatch(body, /innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(/, path);
      }
      const { body, headers } = await httpGet(port, '/');
      assert.match(String(headers['content-type']), /^text\/html/);
      assert.doesNotMatch(body, /<script(?![^>]* src=)|<style| style=| on\w+=/);
      const zipped = await httpGet(port, '/page.mjs', { 'Accept-Encoding': 'gzip' });
      assert.equal(zipped.headers['content-encoding'], 'gzip');
      for (const path of ['/package.json', '/page/page.mjs', '/..%2f..%2fmain.js', '/page.mjs/']) {
        assert.equal((await httpGet(port, path)).status, 404, path);
      }
    });
  });

  it('need the token of metrics_token_file, which a browser sends as a password', async () => {
    const port = await freePort();
    const file = join(tempDir('token'), 'token');
    writeFileSync(file, 'sécret: 1\n', { mode: 0o644 });
    await withPooler({ cluster: pg, settings: { metrics_port: port, metrics_token_file: file } }, async () => {
      await eventually('an answer', () =>
        httpGet(port, '/readyz').then(
          ({ status }) => status === 200,
          () => false,
        ),
      );
      const basic = (login_: string) => ({ Authorization: `Basic ${Buffer.from(login_).toString('base64')}` });
      for (const path of ['/', '/status.json', '/page.mjs']) {
        const refused = await httpGet(port, path);
        assert.equal(refused.status, 401, path);
        assert.match(String(refused.headers['www-authenticate']), /^Basic realm=/);
        for (const text of ['', 'sécret: 1', ':', 'me:sécret', 'sécret: 1:', 'me:sécret: 12']) {
          assert.equal((await httpGet(port, path, basic(text))).status, 401, text);
        }
        assert.equal((await httpGet(port, path, { Authorization: 'Basic !' })).status, 401);
        assert.equal((await httpGet(port, path, basic('anybody:sécret: 1'))).status, 200, path);
        assert.equal((await httpGet(port, path, { Authorization: 'Bearer s\u00c3\u00a9cret: 1' })).status, 401, path);
      }
      assert.equal((await httpGet(port, '/metrics', basic(':sécret: 1'))).status, 200);
      assert.equal((await httpGet(port, '/metrics')).headers['www-authenticate'], 'Bearer');
    });
  });

  it('loses no sample when the wall clock is set back', async () => {
    const { Samples } = await import(join(FILES, 'history.mjs'));
    const samples = new Samples();
    const answer = (pid: number, time: number, wall: number) => {
      samples.add({ pid, time, wall, history: { columns: ['time', 'seconds'], rows: [[time, 1]], count: time } });
      return samples.list.map(({ values }: { values: { time: number } }) => values.time);
    };
    answer(1, 8, 5_000_008_000);
    assert.deepEqual(answer(2, 9, 5_000_009_000), [8, 9]);
    assert.deepEqual(answer(2, 10, 4_000_000_000), [10], 'an hour earlier and more');
    assert.deepEqual(answer(2, 11, 4_000_001_000), [10, 11]);
    assert.deepEqual(samples.changes, [], 'the change of the process is in the future');
  });

  it('writes numbers, times and names so that an operator can read them', async () => {
    const { short, whole, duration, age, name, percent } = await import(join(FILES, 'format.mjs'));
    assert.deepEqual([0, 7, 7.5, 999, 1240, 38_100_000].map(short), ['0', '7', '7.5', '999', '1.2 k', '38.1 M']);
    assert.equal(whole(1234567), '1\u202f234\u202f567');
    assert.deepEqual([0, 850, 1240, 310_000, 3_100_000].map(duration), ['0', '850 µs', '1.2 ms', '310 ms', '3.1 s']);
    assert.deepEqual([34_000, 720_000, 12_000_000, 436_000_000].map(age), ['34 s', '12 min', '3 h 20 min', '5 d 1 h']);
    assert.equal(percent(2.8), '280 %');
    assert.equal(name('a<b>\u001b[2J\u202ec'), 'a<b>\\u{1b}[2J\\u{202e}c');
  });
});

/* ---- memory ---- */

const LAYOUT: MetricsLayout = {
  pool: ['cl_active', 'cl_waiting', 'sv_active', 'maxwait', 'pool_size', 'query_count', 'query_time'],
  database: [],
  tallies: [],
  timings: ['query'],
  timingBounds: [100, 200, 1000],
};

/** A pool with that many queries since it began, in so many of 100 usec and so many of 1 ms. */
function known(database: string, fast: number, slow = 0): KnownPool {
  const queries = fast + slow;
  const numbers = new Float64Array([1, 0, queries > 0 ? 1 : 0, 0, 4, queries, fast * 100 + slow * 1000]);
  return { database, user: 'u', numbers, timings: new Float64Array([fast, 0, slow, 0, fast * 100 + slow * 1000]) };
}

function lastQueries({ totals }: History): number | undefined {
  return totals.slot(totals.count - 1)[TOTAL_COLUMNS.indexOf('query_count')];
}

describe('the history', () => {
  it('keeps five minutes, and the rings of the busiest 200 pools', () => {
    const history = new History(LAYOUT);
    const pools = new Map(Array.from({ length: 400 }, (_, at) => [at, known(`db${at}`, 0)]));
    for (let second = 1; second <= SAMPLES_MAX + 50; second++) {
      // other pools are busy later
      const from = second < 200 ? 0 : 100;
      for (let at = from; at < from + 250; at++) {
        const before = pools.get(at)?.numbers[LAYOUT.pool.indexOf('query_count')] ?? 0;
        pools.set(at, known(`db${at}`, before + 1000 - at));
      }
      history.add(pools, second * 1e6);
    }
    assert.equal(history.totals.count - history.totals.first, SAMPLES_MAX);
    const kept = [...pools.keys()].filter((id) => history.rates(id, 10) !== null);
    assert.deepEqual([kept.length, kept[0], kept.at(-1)], [200, 100, 299]);
    const rates = history.rates(100, 10);
    assert.deepEqual([rates?.queries, rates?.queryTime, rates?.active], [900, 100, 1]);
  });

  it('counts a pool that comes again from 0, and what was counted before the first sample not at all', () => {
    const history = new History(LAYOUT);
    const [one, two] = [known('a', 100), known('b', 7)];
    const pools = new Map([
      [1, one],
      [2, two],
    ]);
    history.add(pools, 1e6);
    assert.equal(lastQueries(history), 0);
    history.add(pools.set(1, known('a', 101)).set(2, known('b', 9)), 2e6);
    assert.equal(lastQueries(history), 3);
    pools.delete(1);
    history.add(pools.set(2, known('b', 10)), 3e6);
    assert.equal(lastQueries(history), 1);
    history.add(pools.set(3, known('a', 5)), 4e6);
    assert.equal(lastQueries(history), 5);
    // no time has passed
    history.add(pools.set(3, known('a', 6)), 4e6);
    assert.equal(history.totals.count, 4);
    history.add(pools, 5e6);
    assert.equal(lastQueries(history), 1);
  });

  it('has percentiles of the last minutes, and of the last minute of a pool', () => {
    const history = new History(LAYOUT);
    // before the first sample: long queries that do not count
    const pools = new Map([[1, known('a', 0, 1000)]]);
    history.add(pools, 1e6);
    history.add(pools.set(1, known('a', 60, 1040)), 2e6);
    history.add(pools.set(1, known('a', 120, 1080)), 3e6);
    const counted = history.timings.sum(SAMPLES_MAX);
    assert.deepEqual([...counted], [120, 0, 80, 0, 92_000]);
    const found = percentiles(counted, 0, LAYOUT.timingBounds, [0.5, 0.8, 1]);
    assert.deepEqual(found, [83, 600, 1000]);
    assert.deepEqual([...(history.lastMinute(1) ?? [])], [120, 0, 80, 0, 92_000]);
    assert.deepEqual(percentiles(new Float64Array([0, 0, 0, 4, 1e9]), 0, LAYOUT.timingBounds, [0.5]), [1000]);
    assert.deepEqual(percentiles(new Float64Array(5), 0, LAYOUT.timingBounds, [0.5]), []);
  });

  it('keeps a bounded number of lines of the log', () => {
    const state = new MetricsState(LAYOUT);
    const status = new Status(state);
    for (let second = 1; second <= 20; second++) {
      const lines = Array.from({ length: 50 }, (_, at) => ({ at: 0, level: 'WARNING', text: `${second} ${at}` }));
      const report = {
        ...{ notReady: '', lists: {}, newPools: [], gonePools: [], newDatabases: [], goneDatabases: [] },
        ...{ pools: new Float64Array(0), timings: new Float64Array(0), databases: new Float64Array(0), more: false },
        live: { version: '', time: second * 1e6, wall: 0, up: 0, lines, linesLeftOut: 3, reboots: [] },
      } as unknown as MetricsReport;
      state.hear(report);
      status.add(report);
    }
    const answer = JSON.parse(status.text({ since: 0, lines: 0, filter: '' }, '') ?? '') as StatusText;
    assert.deepEqual([answer.lines.length, answer.linesEver, answer.linesLeftOut], [100, 1000, 60]);
    assert.equal(answer.lines.at(-1)?.text, '20 49');
    assert.equal(answer.history.count, 20);
  });
});

it('a storm of warnings costs the page only their number', async () => {
  const port = await freePort();
  await withPooler({ cluster: pg, settings: { metrics_port: port } }, async (pooler) => {
    await becomes(port, 'an answer', () => true);
    await Promise.all(Array.from({ length: 120 }, () => refusal(pooler, { database: 'pgbouncer', user: 'postgres' })));
    const status = await becomes(port, 'the storm', (got) => got.linesEver + got.linesLeftOut >= 120);
    assert.ok(status.lines.length <= 100);
    assert.equal(await ask(await login(pooler), 'SELECT 1'), '1');
  });
});
