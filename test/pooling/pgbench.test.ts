/*
 * pgbench through the pooler: simple, extended and prepared, with one to five hundred clients on a pool of twenty
 * servers. No transaction may be lost or fail.
 */

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Bouncer, eventually, it, noPgbench, type Outcome, PgCluster, pgbench, run } from '../harness';
import { after, before, describe } from '../harness/limits';

const POOL_SIZE = 20;
/** Transactions of all clients together: a run takes a second or two. */
const TRANSACTIONS = 6000;
const WRITING_TRANSACTIONS = 1000;
const RUN_MS_MAX = 60_000;
const CLIENTS = [1, 16, 64, 500];
const SERVER_STATES = ['sv_active', 'sv_idle', 'sv_used', 'sv_tested', 'sv_login'];

describe('pgbench', { skip: noPgbench ?? false }, () => {
  let pg: PgCluster;
  let bouncer: Bouncer;

  before(async () => {
    pg = await PgCluster.start();
    const databases = Object.fromEntries(
      ['session', 'transaction', 'statement'].map((mode) => [mode, pg.connstr('postgres', `pool_mode=${mode}`)]),
    );
    bouncer = await Bouncer.start({
      cluster: pg,
      databases,
      settings: { default_pool_size: POOL_SIZE, max_client_conn: 1000, log_connections: 0, log_disconnections: 0 },
    });
    const made = await bench('session', '-i', '-q', '-s', '1');
    assert.equal(made.code, 0, made.stderr);
  });
  after(async () => {
    await bouncer.stop();
    await pg.stop();
  });

  function bench(database: string, ...args: string[]): Promise<Outcome> {
    const target = ['-h', bouncer.host, '-p', String(bouncer.port), '-U', 'postgres'];
    return run(pgbench as string, [...target, ...args, database], { timeoutMs: RUN_MS_MAX });
  }

  /** Runs pgbench with that many clients, and checks that no transaction was lost. */
  async function complete(database: string, clients: number, ...args: string[]): Promise<void> {
    // transactions that write wait for each other
    const total = args.includes('-S') ? TRANSACTIONS : WRITING_TRANSACTIONS;
    const each = Math.ceil(total / clients);
    // a thread per client, because pgbench prepares with a call that blocks its thread
    const threads = args.includes('prepared') ? String(clients) : clients > 1 ? '2' : '1';
    const outcome = await bench(database, '-n', '-c', String(clients), '-j', threads, '-t', String(each), ...args);
    const all = `${outcome.stdout}\n${outcome.stderr}`;
    assert.equal(outcome.code, 0, all);
    const count = each * clients;
    assert.match(outcome.stdout, new RegExp(`number of transactions actually processed: ${count}/${count}\n`), all);
    assert.match(outcome.stdout, /number of failed transactions: 0 /, all);
    assert.doesNotMatch(outcome.stderr, /error|aborted/i, all);
    const pools = (await bouncer.admin('SHOW POOLS')).filter((pool) => pool.database === database);
    const servers = pools.reduce(
      (sum, pool) => sum + SERVER_STATES.reduce((n, state) => n + Number(pool[state]), 0),
      0,
    );
    assert.ok(servers > 0 && servers <= POOL_SIZE, `${servers} servers`);
  }

  for (const clients of CLIENTS) {
    for (const mode of ['session', 'transaction', 'statement']) {
      it(`pgbench loses no transaction with the simple protocol: ${mode} pooling, ${clients} clients`, () =>
        complete(mode, clients, '-S', '-M', 'simple'));
    }
    for (const mode of ['session', 'transaction', 'statement']) {
      it(`pgbench loses no transaction with the extended protocol: ${mode} pooling, ${clients} clients`, () =>
        complete(mode, clients, '-S', '-M', 'extended'));
    }
    // with more clients than servers, the first clients finish before the others begin
    it(`pgbench loses no transaction with prepared statements: session pooling, ${clients} clients`, () =>
      complete('session', clients, '-S', '-M', 'prepared'));
  }

  it('pgbench loses no writing transaction of 64 clients', async () => {
    await complete('transaction', 64, '-M', 'simple');
    await complete('transaction', 64, '-M', 'extended');
    const sums = await pg.sql(
      'SELECT (SELECT sum(abalance) FROM pgbench_accounts) = (SELECT sum(delta) FROM pgbench_history) AS ok',
    );
    assert.equal(sums.rows[0].ok, true);
  });

  it('pgbench loses no transaction of 16 clients that connect for every transaction', async () => {
    const outcome = await bench('transaction', '-n', '-S', '-C', '-c', '16', '-j', '2', '-t', '50');
    assert.equal(outcome.code, 0, outcome.stderr);
    assert.match(outcome.stdout, /actually processed: 800\/800\n/);
  });

  it('pgbench loses no transaction of 64 clients with pipelines', async () => {
    const script = '\\startpipeline\nSELECT 1;\nSELECT 2;\nBEGIN;\nSELECT 3;\nCOMMIT;\nSELECT 4;\n\\endpipeline\n';
    const path = join(bouncer.dir, 'script.sql');
    writeFileSync(path, script);
    for (const mode of ['session', 'transaction']) {
      await complete(mode, 64, '-M', 'extended', '-f', path);
    }
  });

  it('no client is left or waiting after the pgbench runs', async () => {
    // pgbench exits without waiting until the pooler has processed the end of its connections
    await eventually('all clients to have gone', async () => {
      const lists = Object.fromEntries((await bouncer.admin('SHOW LISTS')).map(({ list, items }) => [list, items]));
      return lists.used_clients === 1 && lists.login_clients === 0;
    });
    for (const pool of await bouncer.admin('SHOW POOLS')) {
      if (pool.database === 'pgbouncer') continue;
      assert.deepEqual([pool.cl_active, pool.cl_waiting, pool.sv_active], [0, 0, 0], String(pool.database));
      assert.ok(Number(pool.sv_idle) + Number(pool.sv_used) + Number(pool.sv_tested) <= POOL_SIZE);
    }
    assert.equal(bouncer.log.count(/ (WARNING|ERROR|FATAL) /), 0, bouncer.log.text.slice(-4000));
  });
});
