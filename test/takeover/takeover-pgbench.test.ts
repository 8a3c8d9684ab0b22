/*
 * Twenty reboots in a row under pgbench with 64 clients: no transaction fails, no server connection is opened or
 * closed, and the last process is no larger than the second. Without TLS, and with TLS on both sides.
 */

import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { itUnless, noPgbench, type Outcome, PgCluster, pgbench, run } from '../harness';
import { type PoolerProcess, type RebootChain, withRebootChain } from '../harness/reboot-chain';
import { TlsPlace } from '../harness/tls-place';

const program = pgbench as string;
const REBOOTS = 20;
const CLIENTS = 64;
/** pgbench runs until the last reboot, but at most this long. */
const SECONDS_MAX = 300;
/** ThreadSanitizer remembers the last accesses of memory in four times as much memory. */
const RSS_FACTOR = process.env.TSBOUNCER_PRELOAD?.includes('tsan') === true ? 5 : 1;
/** Allowance for garbage that is not collected yet. */
const RSS_KB_MAX = 30_000 * RSS_FACTOR;

const settings = { pool_mode: 'transaction', max_prepared_statements: 100, log_connections: 0, log_disconnections: 0 };

const itBenched = itUnless(noPgbench);
const place = new TlsPlace();

/**
 * Runs `body` with a pooler and the tables of pgbench.
 * @param secured both sides use TLS
 */
async function benched(
  secured: boolean,
  body: (chain: RebootChain, server: PgCluster, tcp: string[]) => Promise<void>,
): Promise<void> {
  const server = await PgCluster.start({ settings: place.ofServers });
  await withRebootChain(place.optionsOf({ cluster: server, settings }, secured), async (chain) => {
    await chain.start('ts');
    const more = secured ? `${place.libpq} dbname=postgres` : 'host=127.0.0.1 sslmode=disable dbname=postgres';
    const tcp = [`${more} port=${chain.port} user=postgres`];
    const init = await run(program, ['-i', '-q', ...tcp]);
    assert.equal(init.code, 0, init.stderr);
    await body(chain, server, tcp);
  });
  await server.stop();
}

function assertNothingFailed(end: Outcome): void {
  assert.equal(end.code, 0, end.stderr);
  assert.match(end.stdout, /number of failed transactions: 0 /);
  assert.equal(/error|abort|lost/i.test(end.stderr), false, end.stderr);
}

function descriptors(generation: PoolerProcess): number {
  return readdirSync(`/proc/${generation.pid}/fd`).length;
}

function rssKb(generation: PoolerProcess): number {
  return Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${generation.pid}/status`, 'latin1'))?.[1] ?? 0);
}

for (const [protocol, secured] of [
  ['simple', false],
  ['extended', true],
] as const) {
  itBenched(
    `${REBOOTS} reboots under pgbench fail no transaction: ${CLIENTS} clients, ${protocol} protocol${secured ? ', TLS' : ''}`,
    async () => {
      await benched(secured, async (chain, server, at) => {
        const load = ['-n', '-S', '-c', String(CLIENTS), '-j', '2', '-M', protocol, '-T', String(SECONDS_MAX)];
        const args = [...load, ...at];
        let over = false;
        let loader: ChildProcess | null = null;
        const started = (child: ChildProcess): void => {
          loader = child;
        };
        const bench = run(program, args, { timeoutMs: SECONDS_MAX * 1000, started }).finally(() => {
          over = true;
        });
        // the pool has to be full before the servers are counted
        while (Number((await chain.show('POOLS')).find((row) => row.database === 'postgres')?.sv_active ?? 0) < 20);
        const startsSql = `SELECT string_agg(pid || ' ' || backend_start, ',' ORDER BY pid) AS starts FROM pg_stat_activity
        WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()`;
        const starts = (await server.sql(startsSql)).rows[0].starts;
        let early: [number, number] = [0, 0];
        for (let i = 1; i <= REBOOTS; i++) {
          const generation = await chain.reboot('ts');
          if (i === 2) early = [descriptors(generation), rssKb(generation)];
        }
        assert.equal(over, false, 'pgbench was over before the last reboot');
        assert.equal((await server.sql(startsSql)).rows[0].starts, starts, 'server connections changed');
        const late = [descriptors(chain.now), rssKb(chain.now)] as const;
        assert.equal(late[0], early[0], 'descriptors leak');
        assert.ok(late[1] - early[1] < RSS_KB_MAX, `memory grew from ${early[1]} to ${late[1]} KB`);
        // SIGALRM, with which -T ends pgbench, ends it now
        (loader as ChildProcess | null)?.kill('SIGALRM');
        const end = await bench;
        assertNothingFailed(end);
      });
    },
    SECONDS_MAX * 1000,
  );
}

itBenched('reboots while clients with TLS come and go all the time, and others use prepared statements', async () => {
  await benched(true, async (chain, _server, tcp) => {
    const unix = ['-h', chain.dir, '-p', String(chain.port), '-U', 'postgres'];
    const load = ['-n', '-S', '-c', '8', '-T', '10'];
    const both = [
      run(program, ['-C', ...load, ...tcp], { timeoutMs: 60_000 }),
      run(program, [...unix, '-M', 'prepared', ...load, 'postgres'], { timeoutMs: 60_000 }),
    ];
    for (let i = 0; i < 5; i++) await chain.reboot('ts');
    for (const end of await Promise.all(both)) {
      assertNothingFailed(end);
    }
    const lists = Object.fromEntries((await chain.show('LISTS')).map((row) => [row.list, Number(row.items)]));
    assert.equal(lists.used_clients, 1, 'only the console is left');
  });
});
