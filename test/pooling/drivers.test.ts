/*
 * The two common drivers for Node, `pg` and `postgres`, used as in applications, in every pool mode that supports the
 * feature.
 */

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { type Client, Pool } from 'pg';
import postgres from 'postgres';
import { Bouncer, eventually, it, PgCluster, withTimeout } from '../harness';
import { backendPid, fails } from '../harness/expect';
import { after, before, describe } from '../harness/limits';

const MODES = ['session', 'transaction', 'statement'] as const;
/** Pool modes that support transactions. */
const TX_MODES = ['session', 'transaction'] as const;
const BIG = 10 << 20;
const COPY_ROWS = 100_000;
const COPY_MS_MAX = 60_000;

let pg: PgCluster;
let bouncer: Bouncer;

before(async () => {
  pg = await PgCluster.start({ settings: { max_wal_size: '4GB', autovacuum: 'off' } });
  await pg.createUser('alice', 'alices-password');
  const databases = Object.fromEntries(MODES.map((mode) => [mode, pg.connstr('postgres', `pool_mode=${mode}`)]));
  bouncer = await Bouncer.start({
    cluster: pg,
    databases,
    settings: { auth_type: 'scram-sha-256', default_pool_size: 5 },
    userlist: { alice: 'alices-password' },
  });
  await pg.sql('CREATE TABLE account (id int PRIMARY KEY, balance int NOT NULL); GRANT ALL ON account TO alice');
});
after(async () => {
  await bouncer.stop();
  await pg.stop();
});

const login = { user: 'alice', password: 'alices-password' };

async function withPg<T>(database: string, body: (client: Client) => Promise<T>): Promise<T> {
  const client = await bouncer.connect({ ...login, database });
  try {
    return await body(client);
  } finally {
    await client.end();
  }
}

async function withPostgres<T>(
  database: string,
  body: (sql: postgres.Sql) => Promise<T>,
  options: postgres.Options<Record<string, postgres.PostgresType>> = {},
): Promise<T> {
  const sql = postgres({
    ...login,
    host: bouncer.host,
    port: bouncer.port,
    database,
    max: 4,
    // a named statement exists on one server only
    prepare: database === 'session',
    onnotice: () => {},
    ...options,
  });
  try {
    return await withTimeout(body(sql), `the driver postgres on ${database}`, COPY_MS_MAX);
  } finally {
    await sql.end({ timeout: 5 });
  }
}

for (const mode of MODES) {
  describe(`pg, ${mode} pooling`, () => {
    it(`pg runs queries with parameters and types: ${mode} pooling`, () =>
      withPg(mode, async (client) => {
        const text = 'naïve — 象 \u{1f418}';
        const { rows } = await client.query(
          'SELECT $1::int + 1 AS n, $2::text AS t, $3::bytea AS b, $4::jsonb AS j, $5::int[] AS a',
          [41, text, Buffer.from([0, 1, 254, 255]), { deep: [null, true] }, [1, 2, 3]],
        );
        assert.deepEqual(rows, [
          { n: 42, t: text, b: Buffer.from([0, 1, 254, 255]), j: { deep: [null, true] }, a: [1, 2, 3] },
        ]);
        const many = (await client.query('SELECT generate_series(1, 1000) AS i; SELECT 2 AS two')) as unknown as {
          rows: unknown[];
        }[];
        assert.deepEqual(
          many.map((result) => result.rows.length),
          [1000, 1],
        );
      }));

    it(`pg reports an error and keeps the connection: ${mode} pooling`, () =>
      withPg(mode, async (client) => {
        await fails(client.query('SELECT 1/0'), 'division by zero', '22012');
        await fails(client.query('SELECT $1::int', ['x']), /invalid input syntax/, '22P02');
        assert.equal((await client.query('SELECT $1::int AS n', [7])).rows[0].n, 7);
      }));

    it(`pg reads and writes a row of 10 MB: ${mode} pooling`, () =>
      withPg(mode, async (client) => {
        const big = (await client.query('SELECT repeat($1, $2) AS big', ['y', BIG])).rows[0].big;
        assert.equal(big.length, BIG);
        const { rows } = await client.query('SELECT length($1) AS length, md5($1) AS md5', [big]);
        assert.deepEqual(rows, [{ length: BIG, md5: createHash('md5').update(big).digest('hex') }]);
      }));

    it(`many clients of a pg pool share few servers: ${mode} pooling`, async () => {
      const pool = new Pool({
        ...login,
        host: bouncer.host,
        port: bouncer.port,
        database: mode,
        max: mode === 'session' ? 5 : 30,
      });
      pool.on('error', () => {});
      const results = await Promise.all(
        Array.from({ length: 300 }, (_, n) => pool.query('SELECT $1::int AS n, pg_backend_pid() AS pid', [n])),
      );
      assert.deepEqual(
        results.map((result) => result.rows[0].n),
        Array.from({ length: 300 }, (_, n) => n),
      );
      assert.ok(new Set(results.map((result) => result.rows[0].pid)).size <= 5);
      await pool.end();
    });
  });
}

for (const mode of TX_MODES) {
  describe(`transactions, ${mode} pooling`, () => {
    it(`pg commits, rolls back, and recovers from a failed transaction: ${mode} pooling`, () =>
      withPg(mode, async (client) => {
        await client.query('TRUNCATE account');
        await client.query('BEGIN');
        const pid = await backendPid(client);
        await client.query('INSERT INTO account VALUES ($1, $2)', [1, 100]);
        assert.equal(await backendPid(client), pid);
        await client.query('COMMIT');
        await client.query('BEGIN');
        await client.query('UPDATE account SET balance = 0');
        await fails(client.query('INSERT INTO account VALUES (1, 1)'), /duplicate key/, '23505');
        await fails(client.query('SELECT 1'), /current transaction is aborted/, '25P02');
        assert.equal((await client.query('COMMIT')).command, 'ROLLBACK');
        assert.deepEqual((await client.query('SELECT * FROM account')).rows, [{ id: 1, balance: 100 }]);
      }));

    it(`concurrent transfers with pg lose nothing: ${mode} pooling`, async () => {
      await pg.sql('TRUNCATE account; INSERT INTO account SELECT n, 1000 FROM generate_series(1, 10) n');
      const transfer = (from: number, to: number) =>
        withPg(mode, async (client) => {
          await client.query('BEGIN');
          // always in the same order, to avoid deadlocks
          for (const id of [from, to].sort((a, b) => a - b)) {
            await client.query('UPDATE account SET balance = balance + $2 WHERE id = $1', [id, id === from ? -1 : 1]);
          }
          await client.query('COMMIT');
        });
      await Promise.all(Array.from({ length: 40 }, (_, n) => transfer((n % 10) + 1, ((n * 7 + 3) % 10) + 1)));
      const { rows } = await pg.sql('SELECT sum(balance)::int AS sum FROM account');
      assert.equal(rows[0].sum, 10_000);
    });

    it(`postgres runs transactions with savepoints and rolls back on exceptions: ${mode} pooling`, () =>
      withPostgres(mode, async (sql) => {
        await sql`TRUNCATE account`;
        await sql.begin(async (tx) => {
          await tx`INSERT INTO account VALUES (1, 1)`;
          await tx.savepoint(async (inner) => inner`INSERT INTO account VALUES (1, 2)`).catch(() => {});
          await tx`INSERT INTO account ${tx([{ id: 2, balance: 2 }])}`;
        });
        await assert.rejects(
          sql.begin(async (tx) => {
            await tx`DELETE FROM account`;
            throw new Error('never mind');
          }),
          /never mind/,
        );
        assert.deepEqual([...(await sql`SELECT id FROM account ORDER BY id`)], [{ id: 1 }, { id: 2 }]);
      }));
  });
}

describe('statement pooling', () => {
  it('statement pooling refuses transactions and continues in autocommit', async () => {
    const client = await bouncer.connect({ ...login, database: 'statement' });
    await fails(client.query('BEGIN'), 'transaction blocks not allowed in statement pooling mode');
    await client.end().catch(() => {});
    await withPg('statement', (other) => other.query('SELECT 1'));
  });
});

for (const mode of MODES) {
  describe(`postgres, ${mode} pooling`, () => {
    it(`postgres pipelines queries with parameters on one connection: ${mode} pooling`, () =>
      withPostgres(mode, async (sql) => {
        const rows = await Promise.all(
          Array.from({ length: 500 }, (_, n) => sql`SELECT ${n}::int AS n, ${`t${n}`} AS t`),
        );
        assert.deepEqual(
          rows.map(([row]) => row?.n),
          Array.from({ length: 500 }, (_, n) => n),
        );
      }));

    it(`an error among pipelined queries of postgres affects no other query: ${mode} pooling`, () =>
      withPostgres(
        mode,
        async (sql) => {
          const outcomes = await Promise.allSettled(
            Array.from({ length: 50 }, (_, n) => sql`SELECT 100 / ${n % 10}::int AS q`),
          );
          assert.equal(outcomes.filter((outcome) => outcome.status === 'rejected').length, 5);
          for (const [n, outcome] of outcomes.entries()) {
            if (outcome.status === 'fulfilled') assert.equal(outcome.value[0]?.q, Math.trunc(100 / (n % 10)));
            else assert.equal(outcome.reason.code, '22012');
          }
          assert.equal((await sql`SELECT 1 AS one`)[0]?.one, 1);
        },
        { max: 1 },
      ));

    it(`postgres reads a cursor and a row of 10 MB: ${mode} pooling`, () =>
      withPostgres(mode, async (sql) => {
        const [row] = await sql`SELECT repeat('z', ${BIG}) AS big`;
        assert.equal(row?.big.length, BIG);
        if (mode === 'statement') return;
        let rows = 0;
        await sql`SELECT generate_series(1, 1000)`.cursor(100, (batch) => {
          rows += batch.length;
        });
        assert.equal(rows, 1000);
      }));

    it(`postgres copies 100 MB in and out: ${mode} pooling`, () =>
      withPostgres(mode, async (sql) => {
        const table = `copy_${mode}`;
        await pg.sql(`CREATE UNLOGGED TABLE ${table} (n int, line text); GRANT ALL ON ${table} TO alice`);
        const hashIn = createHash('sha256');
        const pad = 'p'.repeat(1000);
        function* chunks() {
          for (let n = 0; n < COPY_ROWS; n += 1000) {
            const text = Buffer.from(Array.from({ length: 1000 }, (_, i) => `${n + i}\t${n + i}${pad}\n`).join(''));
            hashIn.update(text);
            yield text;
          }
        }
        await pipeline(Readable.from(chunks()), await sql`COPY ${sql(table)} FROM STDIN`.writable());
        const hashOut = createHash('sha256');
        let bytes = 0;
        const out = await sql`COPY (SELECT * FROM ${sql(table)} ORDER BY n) TO STDOUT`.readable();
        for await (const chunk of out) {
          hashOut.update(chunk);
          bytes += chunk.length;
        }
        assert.ok(bytes > 100_000_000, `${bytes}`);
        assert.equal(hashOut.digest('hex'), hashIn.digest('hex'));
        await pg.sql(`DROP TABLE ${table}`);
      }));

    it(`postgres cancels a query: ${mode} pooling`, () =>
      withPostgres(mode, async (sql) => {
        const query = sql`SELECT pg_sleep(600)`;
        const outcome = fails(
          query.then(() => {}),
          'canceling statement due to user request',
          '57014',
        );
        const running =
          "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)%' AND state = 'active' AND pid <> pg_backend_pid()";
        await eventually('the query to run', async () => ((await pg.sql(running)).rowCount ?? 0) > 0);
        query.cancel();
        await outcome;
        assert.equal((await sql`SELECT 1 AS one`)[0]?.one, 1);
      }));
  });
}

describe('what belongs to a session', () => {
  it('pg prepares a named statement once and runs it often', () =>
    withPg('session', async (client) => {
      const query = { name: 'add', text: 'SELECT $1::int + $2::int AS sum' };
      for (let n = 0; n < 50; n++) assert.equal((await client.query({ ...query, values: [n, 1] })).rows[0].sum, n + 1);
      const { rows } = await client.query('SELECT name FROM pg_prepared_statements');
      assert.deepEqual(rows, [{ name: 'add' }]);
    }));

  it('settings of a pg client are reset for the next client', async () => {
    const pid = await withPg('session', async (client) => {
      await client.query("SET work_mem = '7MB'; CREATE TEMP TABLE mine (i int); PREPARE p AS SELECT 1");
      return backendPid(client);
    });
    // all servers of the pool, so that the changed server is among them
    const clients = await Promise.all([1, 2, 3, 4, 5].map(() => bouncer.connect({ ...login, database: 'session' })));
    const pids = await Promise.all(clients.map(backendPid));
    const again = clients[pids.indexOf(pid)];
    if (again !== undefined) {
      assert.notEqual((await again.query('SHOW work_mem')).rows[0].work_mem, '7MB');
      assert.equal((await again.query('SELECT * FROM pg_prepared_statements')).rowCount, 0);
      await fails(again.query('SELECT * FROM mine'), /does not exist/, '42P01');
    }
    await Promise.all(clients.map((client) => client.end()));
    assert.ok(again !== undefined, 'the server was not used again');
  });

  it('pg receives notifications, even on an idle connection', () =>
    withPg('session', async (listener) => {
      await listener.query('LISTEN news');
      const heard = once(listener, 'notification');
      await withPg('transaction', (speaker) => speaker.query("SELECT pg_notify('news', 'hot')"));
      const [note] = await withTimeout(heard, 'the notification');
      assert.deepEqual([note.channel, note.payload], ['news', 'hot']);
      // many payloads of nearly the maximum length
      const payloads: string[] = [];
      listener.on('notification', ({ payload }) => payloads.push(payload ?? ''));
      const many = "SELECT pg_notify('news', n || repeat('x', 7900)) FROM generate_series(1, 200) n";
      await withPg('transaction', (speaker) => speaker.query(many));
      await eventually('all of them', () => payloads.length === 200);
      assert.equal(payloads[199], `200${'x'.repeat(7900)}`);
      assert.equal((await listener.query('SELECT 1 AS one')).rows[0].one, 1);
    }));

  it('postgres receives notifications', () =>
    withPostgres('session', async (sql) => {
      const payload = new Promise<string>((settle) => {
        sql.listen('gossip', settle).then(() => sql.notify('gossip', 'psst'));
      });
      assert.equal(await payload, 'psst');
    }));

  it('notices of the server reach the client', () =>
    withPg('transaction', async (client) => {
      const noticed = once(client, 'notice');
      await client.query("DO $$ BEGIN RAISE NOTICE 'mind the gap'; END $$");
      assert.equal((await noticed)[0].message, 'mind the gap');
    }));
});

describe('what follows the client in transaction pooling', () => {
  it('tracked parameters of a client are set on every server that it uses', async () => {
    const utc = await bouncer.connect({ ...login, database: 'transaction', options: '-c timezone=UTC' });
    const tokyo = await bouncer.connect({ ...login, database: 'transaction', application_name: 'tokyo' });
    await tokyo.query("SET timezone = 'Asia/Tokyo'");
    for (let n = 0; n < 10; n++) {
      assert.equal((await utc.query('SHOW timezone')).rows[0].TimeZone, 'UTC');
      assert.equal((await tokyo.query('SHOW timezone')).rows[0].TimeZone, 'Asia/Tokyo');
      assert.equal((await tokyo.query('SHOW application_name')).rows[0].application_name, 'tokyo');
    }
    await Promise.all([utc.end(), tokyo.end()]);
  });
});
