/*
 * Named statements in transaction pooling as applications use them: the drivers `pg` and `postgres`, and pgbench with
 * more clients than servers.
 */

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import postgres from 'postgres';
import { Bouncer, it, noPgbench, PgCluster, pgbench, run, withTimeout } from '../harness';
import { fails } from '../harness/expect';
import { after, before, describe } from '../harness/limits';

const POOL_SIZE = 20;
const TRANSACTIONS = 4000;
const RUN_MS_MAX = 60_000;

let pg: PgCluster;
let bouncer: Bouncer;

before(async () => {
  pg = await PgCluster.start();
  bouncer = await Bouncer.start({
    cluster: pg,
    databases: { few: pg.connstr('postgres', 'pool_size=3'), evicting: pg.connstr(), postgres: pg.connstr() },
    settings: { pool_mode: 'transaction', default_pool_size: POOL_SIZE, max_client_conn: 300 },
  });
});
after(async () => {
  await bouncer.stop();
  await pg.stop();
});

async function statistics(database: string): Promise<Record<string, number>> {
  const [row] = (await bouncer.admin('SHOW STATS')).filter((stats) => stats.database === database);
  return Object.fromEntries(Object.entries(row ?? {}).map(([name, value]) => [name, Number(value)]));
}

describe('pg', () => {
  it('pg uses named statements on changing servers', async () => {
    const clients = await Promise.all(Array.from({ length: 8 }, () => bouncer.connect({ database: 'few' })));
    try {
      const answers = await Promise.all(
        clients.map(async (client, i) => {
          const sums: number[] = [];
          for (let n = 0; n < 50; n++) {
            const query = { name: `sum${n % 5}`, text: `SELECT $1::int + $2::int + ${n % 5} AS sum`, values: [i, n] };
            sums.push((await client.query(query)).rows[0].sum);
          }
          return sums;
        }),
      );
      const expected = (i: number) => Array.from({ length: 50 }, (_, n) => i + n + (n % 5));
      assert.deepEqual(
        answers,
        clients.map((_, i) => expected(i)),
      );
    } finally {
      await Promise.all(clients.map((client) => client.end()));
    }
    const stats = await statistics('few');
    assert.equal(stats.total_client_parse_count, 8 * 5);
    assert.equal(stats.total_bind_count, 8 * 50);
    assert.ok((stats.total_server_parse_count ?? 0) <= 3 * 5, `${stats.total_server_parse_count} times prepared`);
  });

  it('pg may prepare a statement again after an error', async () => {
    const client = await bouncer.connect();
    try {
      const query = { name: 'later', text: 'SELECT n FROM made_later' };
      await fails(client.query(query), /"made_later" does not exist/, '42P01');
      await client.query('CREATE TABLE made_later AS SELECT 5 AS n');
      assert.deepEqual((await client.query(query)).rows, [{ n: 5 }]);
      await client.query('DROP TABLE made_later');
    } finally {
      await client.end();
    }
  });
});

describe('postgres', () => {
  it('postgres pipelines prepared statements over few servers', async () => {
    const sql = postgres({
      host: bouncer.host,
      port: bouncer.port,
      user: 'postgres',
      database: 'few',
      max: 6,
      prepare: true,
    });
    try {
      const some = Array.from({ length: 400 }, (_, n) => n);
      const all = some.map(async (n) => {
        if (n % 7 === 0) return (await sql`SELECT ${n}::int AS n, 'seven' AS why`)[0]?.n;
        if (n % 11 === 0)
          return sql`SELECT 1 / ${0}::int`.then(
            () => null,
            () => n,
          );
        return sql.begin(async (tx) => (await tx`SELECT ${n}::int AS n`)[0]?.n);
      });
      assert.deepEqual(await withTimeout(Promise.all(all), 'the answers', RUN_MS_MAX), some);
    } finally {
      await sql.end({ timeout: 5 });
    }
  });
});

describe('pgbench', { skip: noPgbench ?? false }, () => {
  async function bench(database: string, clients: number, script: string): Promise<void> {
    const file = join(bouncer.dir, 'script.sql');
    writeFileSync(file, script);
    const each = Math.ceil(TRANSACTIONS / clients);
    const target = ['-h', bouncer.host, '-p', String(bouncer.port), '-U', 'postgres'];
    // a thread per client, because pgbench prepares with a call that blocks its thread
    const load = ['-n', '-M', 'prepared', '-c', String(clients), '-j', String(clients), '-t', String(each), '-f', file];
    const outcome = await run(pgbench as string, [...target, ...load, database], { timeoutMs: RUN_MS_MAX });
    const all = `${outcome.stdout}\n${outcome.stderr}`;
    assert.equal(outcome.code, 0, all);
    assert.match(outcome.stdout, new RegExp(`actually processed: ${each * clients}/${each * clients}\n`), all);
    assert.match(outcome.stdout, /number of failed transactions: 0 /, all);
  }

  for (const clients of [1, 16, 64]) {
    it(`pgbench runs prepared statements of ${clients} clients on ${POOL_SIZE} servers`, () =>
      bench(
        'postgres',
        clients,
        '\\set n random(1, 1000)\nSELECT :n;\nBEGIN;\nSELECT :n + 1;\nSELECT 2 * :n;\nEND;\n',
      ));
  }

  it('pgbench runs more prepared statements than a server keeps', async () => {
    await bouncer.admin('SET max_prepared_statements = 4');
    try {
      const selects = Array.from({ length: 10 }, (_, i) => `SELECT ${i} + :n;`);
      await bench('evicting', 32, `\\set n random(1, 1000)\n${selects.join('\n')}\n`);
      const servers = (await bouncer.admin('SHOW SERVERS')).filter((server) => server.database === 'evicting');
      assert.ok(servers.length > 0);
      for (const server of servers) assert.ok(Number(server.prepared_statements) <= 4);
    } finally {
      await bouncer.admin('SET max_prepared_statements = 200');
    }
  });
});
