/*
 * CPU per transaction with pgbench: 1, 16 and 64 clients on a pool of 20, plain, prepared and with TLS.
 */
import { type Bench, type Contender, withFeature } from '../contenders';
import { cpuBetween, sampleCpu } from '../cpu';
import { type PgbenchRun, pgbench } from '../pgbench';
import { type RunningPooler, withPoolers } from '../poolers';
import { type Aim, addMainAims, addRow, inTurns, note, ratioAim, say, wanted } from '../rows';
import { options, PGBENCH_CLIENTS } from '../settings';

/** PgBouncer's first release with support for prepared statements. */
const PREPARED_SINCE: [number, number] = [1, 21];

/** usec of the pooler's processor time per transaction, and transactions per second. */
export async function transactions({ pooler }: RunningPooler, run: Omit<PgbenchRun, 'port' | 'seconds'>) {
  for (let { seconds } = options, left = 4; left > 0; seconds *= 2, left--) {
    const before = sampleCpu(pooler.pid);
    const result = await pgbench({ ...run, port: pooler.port, seconds });
    const cpu = cpuBetween(pooler.pid, before, sampleCpu(pooler.pid));
    const { transactions: count, perSecond } = result;
    if (count > 0) return { cpu: cpu.total / count, main: cpu.main / count, perSecond, transactions: count };
  }
  throw new Error(`${run.clients} clients of pgbench did not get to a transaction`);
}

/** Of the ratio, with io_uring and with epoll. */
const AIMS: Record<number, Aim[]> = {
  1: ratioAim(0.95, 1.0),
  16: ratioAim(0.8, 0.95),
  64: ratioAim(0.6, 0.85),
};

/** The simple and the extended protocol without TLS. */
export async function benchTransactions({ script }: Bench, poolers: RunningPooler[]): Promise<void> {
  for (const protocol of ['simple', 'extended'] as const) {
    for (const clients of PGBENCH_CLIENTS) {
      const name = `CPU per transaction, ${protocol}, ${clients} client${clients > 1 ? 's' : ''}`;
      if (!wanted(name)) continue;
      say(name);
      const cpu = addRow(name, 'us', 1, { aims: AIMS[clients] ?? [] });
      const main = addRow(`${name}: main thread`, 'us', 1, { detail: true });
      const more = { better: 'more', aims: ratioAim(1.25) } as const;
      const speed = clients === 64 ? addRow(`transactions/s, ${protocol}, 64 clients`, '/s', 0, more) : null;
      await inTurns(poolers, async (who) => {
        const result = await transactions(who, { script, clients, protocol });
        note(cpu, who, result.cpu);
        note(main, who, result.main);
        note(speed, who, result.perSecond);
      });
      addMainAims(main, cpu, false);
    }
  }
}

/** Poolers with other settings, and their aims. */
interface Variant {
  title: string;
  settings: Record<string, string | number>;
  protocol: PgbenchRun['protocol'];
  /** the ratio for 16 and for 64 clients */
  aims: readonly [number, number];
  /** pgbench uses TLS */
  tls?: boolean;
}

/** CPU per transaction at 16 and 64 clients on poolers of their own. */
async function benchVariant(bench: Bench, contenders: Contender[], variant: Variant): Promise<void> {
  const { title, settings, protocol, tls = false } = variant;
  const counts = PGBENCH_CLIENTS.filter((clients) => clients > 1 && wanted(`${title}, ${clients} clients`));
  if (counts.length === 0) return;
  const run = { script: bench.script, protocol, ...(tls ? { sslmode: 'require' as const } : {}) };
  await withPoolers(contenders, { cluster: bench.cluster, settings }, async (poolers) => {
    // opens all servers of the pools before the measurements
    for (const who of poolers) await pgbench({ ...run, port: who.pooler.port, clients: 64, seconds: 1 });
    for (const clients of counts) {
      const name = `${title}, ${clients} clients`;
      say(name);
      const cpu = addRow(name, 'us', 1, { aims: ratioAim(variant.aims[clients === 16 ? 0 : 1]) });
      const main = addRow(`${name}: main thread`, 'us', 1, { detail: true });
      await inTurns(poolers, async (who) => {
        const result = await transactions(who, { ...run, clients });
        note(cpu, who, result.cpu);
        note(main, who, result.main);
      });
      addMainAims(main, cpu, tls);
    }
  });
}

/** Skips PgBouncer versions that do not support prepared statements. */
export async function benchPrepared(bench: Bench): Promise<void> {
  const title = 'CPU per transaction, prepared';
  if (!wanted(`${title}, 16 clients`) && !wanted(`${title}, 64 clients`)) return;
  const able = withFeature(bench.contenders, 'prepared statements in transaction mode', PREPARED_SINCE);
  const settings = { max_prepared_statements: 200 };
  await benchVariant(bench, able, { title, settings, protocol: 'prepared', aims: [0.65, 0.5] });
}

/** TLS to the clients, to PostgreSQL, to both. The certificate is self-signed, which `require` accepts. */
export async function benchTls(bench: Bench): Promise<void> {
  const { cert, key } = bench.identity;
  const client = { client_tls_sslmode: 'require', client_tls_cert_file: cert, client_tls_key_file: key };
  const server = { server_tls_sslmode: 'require' };
  const both = { ...client, ...server };
  const common = { protocol: 'simple', aims: [0.75, 0.75] } as const;
  const title = 'CPU per transaction, simple,';
  const variants: Variant[] = [
    { ...common, title: `${title} client TLS`, settings: client, tls: true },
    { ...common, title: `${title} server TLS`, settings: server },
    { ...common, title: `${title} TLS on both sides`, settings: both, tls: true },
  ];
  for (const variant of options.quick ? variants.slice(-1) : variants)
    await benchVariant(bench, bench.contenders, variant);
}

/** pgbench with a new connection for every transaction. */
export async function benchConnections({ script }: Bench, poolers: RunningPooler[]): Promise<void> {
  const name = 'new connections/s, 16 clients';
  if (!wanted(name)) return;
  say(name);
  const speed = addRow(name, '/s', 0, { better: 'more', aims: ratioAim(1.05) });
  const cpu = addRow('CPU per new connection', 'us', 1, { aims: ratioAim(0.95) });
  await inTurns(poolers, async (who) => {
    const result = await transactions(who, { script, clients: 16, protocol: 'simple', connect: true });
    note(speed, who, result.perSecond);
    note(cpu, who, result.cpu);
  });
}
