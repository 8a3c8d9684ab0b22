/*
 * Latency, throughput and CPU with 1 to 10,000 clients of the load generator on a pool of 40: the rows that other
 * poolers publish.
 */
import { type Bench, withFeature } from '../contenders';
import type { CpuUse } from '../cpu';
import { affordableCounts } from '../descriptors';
import { generatorHasTls, type LoadRun, measureLoad, runLoad } from '../generator';
import { type RunningPooler, withPoolers } from '../poolers';
import { type Aim, addMainAims, addRow, inTurns, note, type Row, ratioAim, say, wanted } from '../rows';
import { LOAD_CLIENTS, LOAD_TLS_CLIENTS, options, WARM_UP_SECONDS } from '../settings';

const POOL = 40;
const PREPARED_SINCE: [number, number] = [1, 21];
const USEC_PER_MS = 1000;

/** The aims for the ratios of a row. */
interface LoadAims {
  p99?: number;
  perSecond?: number;
  cpu?: number;
}

const AIMS: Record<string, LoadAims> = {
  'simple 40': { p99: 0.95, perSecond: 1.1, cpu: 0.75 },
  'simple 120': { p99: 0.9, perSecond: 1.2, cpu: 0.65 },
  'simple 500': { p99: 0.7, perSecond: 1.5, cpu: 0.6 },
  'simple 2000': { p99: 0.6, perSecond: 1.7, cpu: 0.6 },
  'simple 10000': { p99: 0.5, perSecond: 2, cpu: 0.6 },
  'prepared 500': { p99: 0.6, perSecond: 1.6, cpu: 0.5 },
};

/** From so many clients on, the table shows what the load generator itself uses. */
const CROWD = 500;
/** A thread that uses more than this share of the pooler's CPU has a row of its own. */
const THREAD_SHARE = 0.01;

function aim(bound: number | undefined): { aims: Aim[] } {
  return { aims: bound === undefined ? [] : ratioAim(bound) };
}

function addRows(title: string, aims: LoadAims, crowd: boolean) {
  return {
    p50: addRow(`${title}: p50`, 'ms', 2),
    p99: addRow(`${title}: p99`, 'ms', 2, aim(aims.p99)),
    spread: addRow(`${title}: p99/p50`, '', 1),
    perSecond: addRow(`${title}: transactions/s`, '/s', 0, { better: 'more', ...aim(aims.perSecond) }),
    cpu: addRow(`${title}: CPU per transaction`, 'us', 1, aim(aims.cpu)),
    user: addRow(`${title}: CPU per transaction, user`, 'us', 1, { detail: true }),
    system: addRow(`${title}: CPU per transaction, system`, 'us', 1, { detail: true }),
    main: addRow(`${title}: CPU per transaction, main thread`, 'us', 1, { detail: true }),
    others: addRow(`${title}: CPU per transaction, other threads`, 'us', 1, { detail: true }),
    connect: addRow(`${title}: until all are connected`, 'ms', 0, { detail: true }),
    generator: addRow(`${title}: CPU per transaction of the load generator`, 'us', 1, { detail: !crowd }),
  };
}

/** Adds rows for the other threads of the pooler that do much, by name. */
function noteThreads(title: string, threads: Map<string, Row>, who: RunningPooler, cpu: CpuUse, transactions: number) {
  for (const [name, usec] of Object.entries(cpu.threads)) {
    if (usec < cpu.total * THREAD_SHARE) continue;
    const row =
      threads.get(name) ?? addRow(`${title}: CPU per transaction, threads named ${name}`, 'us', 1, { detail: true });
    threads.set(name, row);
    note(row, who, usec / transactions);
  }
}

async function benchCount(poolers: RunningPooler[], title: string, run: Omit<LoadRun, 'port'>): Promise<void> {
  say(title);
  const key = `${run.protocol} ${run.clients}`;
  const rows = addRows(title, run.tls === true ? {} : (AIMS[key] ?? {}), run.clients >= CROWD);
  const threads = new Map<string, Row>();
  await inTurns(poolers, async (who) => {
    const result = await measureLoad(who.pooler.pid, { ...run, port: who.pooler.port });
    const { latencyUs, cpu, transactions } = result;
    note(rows.p50, who, latencyUs.p50 / USEC_PER_MS);
    note(rows.p99, who, latencyUs.p99 / USEC_PER_MS);
    note(rows.spread, who, latencyUs.p99 / latencyUs.p50);
    note(rows.perSecond, who, result.perSecond);
    note(rows.cpu, who, cpu.total / transactions);
    note(rows.user, who, cpu.user / transactions);
    note(rows.system, who, cpu.system / transactions);
    note(rows.main, who, cpu.main / transactions);
    note(rows.others, who, cpu.others / transactions);
    note(rows.connect, who, result.connectSeconds * 1000);
    note(rows.generator, who, result.cpuUsPerTransaction);
    noteThreads(title, threads, who, cpu, transactions);
  });
  addMainAims(rows.main, rows.cpu, run.tls === true);
}

/** Simple and prepared, plain and with TLS, each on poolers of their own. */
export async function benchClients(bench: Bench): Promise<void> {
  const { cert, key } = bench.identity;
  const client = { client_tls_sslmode: 'require', client_tls_cert_file: cert, client_tls_key_file: key };
  for (const tls of [false, true]) {
    for (const protocol of ['simple', 'prepared'] as const) {
      const kind = `${protocol}${tls ? ', client TLS' : ''}`;
      const titleOf = (clients: number) => `pool ${POOL}, ${kind}, ${clients} client${clients > 1 ? 's' : ''}`;
      const sizes = (tls ? LOAD_TLS_CLIENTS : LOAD_CLIENTS).filter((clients) => wanted(titleOf(clients)));
      const counts = affordableCounts(sizes);
      if (counts.length === 0 || (tls && !generatorHasTls())) continue;
      const able =
        protocol === 'simple' ? bench.contenders : withFeature(bench.contenders, 'prepared statements', PREPARED_SINCE);
      const settings: Record<string, string | number> = { default_pool_size: POOL };
      if (protocol === 'prepared') settings.max_prepared_statements = 200;
      if (tls) Object.assign(settings, client);
      await withPoolers(able, { cluster: bench.cluster, settings }, async (poolers) => {
        // opens all servers of the pools before the measurements
        for (const { pooler } of poolers)
          await runLoad({ port: pooler.port, clients: 2 * POOL, seconds: WARM_UP_SECONDS, protocol, tls });
        for (const clients of counts)
          await benchCount(poolers, titleOf(clients), { clients, seconds: options.seconds, protocol, tls });
      });
    }
  }
}
