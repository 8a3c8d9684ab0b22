/*
 * The measured poolers, all with one PostgreSQL server: pool of 20, transaction mode, trust, by default without TLS,
 * connection logging off.
 */
import { existsSync, readFileSync } from 'node:fs';
import type { ConnectionOptions } from 'node:tls';
import { Bouncer, eventually, howEnded, type PgCluster } from '../test/harness';
import { RawClient } from '../test/harness/raw-client';
import type { Contender } from './contenders';

// without the constant checks of the pooler's records, which tests enable, because they would be measured too
process.env.TSBOUNCER_CHECK = '0';

/** Number of simultaneous logins of this process. */
const LOGINS_AT_ONCE = 50;

/** [pgbouncer] of every pooler that is measured. */
const BENCH_SETTINGS = {
  pool_mode: 'transaction',
  default_pool_size: 20,
  max_client_conn: 12_000,
  server_tls_sslmode: 'disable',
  log_connections: 0,
  log_disconnections: 0,
  log_stats: 0,
};

interface PoolerOptions {
  cluster: PgCluster;
  contender: Contender;
  /** [databases]; default: `postgres` on the cluster */
  databases?: Record<string, string>;
  /** on top of BENCH_SETTINGS */
  settings?: Record<string, string | number>;
  userlist?: Record<string, string>;
  /** ms that it may take to be up */
  upMs?: number;
}

/** A pooler that runs, and what it is. */
export interface RunningPooler {
  name: string;
  contender: Contender;
  pooler: Bouncer;
}

/** Waits until it is up. Throws with the cause if the pooler ended instead. */
async function waitUp(pooler: Bouncer, contender: Contender, upMs?: number): Promise<void> {
  if (contender.kind === 'other') {
    // it need not log that it is up
    const ended = pooler.ended.then(() => {
      throw new Error(
        `${contender.name}: ${contender.command.join(' ')} ${howEnded(pooler.child)}:\n${pooler.log.text}`,
      );
    });
    const up = eventually(`${contender.name} to accept connections`, () => accepts(pooler.port), upMs);
    await Promise.race([up, ended]);
    if (hasChildren(pooler.pid))
      throw new Error(`${contender.name}: the figures are of one process, but this command starts another: use exec`);
    return;
  }
  try {
    await pooler.logWait(/process up: /, 0, upMs);
  } catch (err) {
    const unknown = /unknown parameter: pgbouncer\/(\S+)/.exec(pooler.log.text)?.[1];
    if (unknown !== undefined) throw new UnknownSetting(`${contender.name}: this version has no setting ${unknown}`);
    throw new Error(`${contender.name}: ${(err as Error).message}`);
  }
}

/** The program does not have a setting that it should run with. */
export class UnknownSetting extends Error {}

/** Whether a process has started others: a script that does not end with exec, or a pooler of several processes. */
function hasChildren(pid: number): boolean {
  const children = `/proc/${pid}/task/${pid}/children`;
  // kernels without CONFIG_PROC_CHILDREN do not tell
  return existsSync(children) && readFileSync(children, 'latin1').trim() !== '';
}

async function accepts(port: number): Promise<boolean> {
  const client = await RawClient.connect({ port }).catch(() => null);
  await client?.destroy();
  return client !== null;
}

/** [pgbouncer] of this contender. */
export function settingsOf(contender: Contender, settings: PoolerOptions['settings'] = {}) {
  return { ...BENCH_SETTINGS, ...settings, ...contender.settings };
}

/** Starts one. */
export async function startPooler(options: PoolerOptions): Promise<Bouncer> {
  const { cluster, contender, databases, settings, userlist, upMs } = options;
  const pooler = await Bouncer.start({
    cluster,
    original: contender.kind === 'PgBouncer',
    databases: databases ?? { postgres: cluster.connstr() },
    settings: settingsOf(contender, settings),
    wait: false,
    ...(contender.kind === 'other' ? { command: contender.command } : {}),
    ...(userlist === undefined ? {} : { userlist }),
  });
  try {
    await waitUp(pooler, contender, upMs);
  } catch (err) {
    await pooler.stop();
    throw err;
  }
  return pooler;
}

/** Many databases on a server at that port, beside `postgres` on the cluster. */
export function manyDatabases(cluster: PgCluster, names: string[], port: number): Record<string, string> {
  const section: Record<string, string> = { postgres: cluster.connstr() };
  for (const name of names) section[name] = `host=127.0.0.1 port=${port} dbname=${name}`;
  return section;
}

/** Starts a pooler of each contender for `work`, and stops them. */
export async function withPoolers(
  contenders: Contender[],
  options: Omit<PoolerOptions, 'contender'>,
  work: (poolers: RunningPooler[]) => Promise<void>,
): Promise<void> {
  const poolers: RunningPooler[] = [];
  for (const contender of contenders) {
    poolers.push({ name: contender.name, contender, pooler: await startPooler({ ...options, contender }) });
  }
  await work(poolers);
  for (const { pooler } of poolers) await pooler.stop();
}

/** Logs clients in, some at once. @param tls with TLS @returns them, connected */
export async function login(port: number, databases: string[], tls?: ConnectionOptions): Promise<RawClient[]> {
  const clients: RawClient[] = [];
  const left = [...databases];
  const worker = async (): Promise<void> => {
    for (let database = left.pop(); database !== undefined; database = left.pop()) {
      const plain = await RawClient.connect({ port });
      const client = tls === undefined ? plain : await plain.secure(tls);
      const answer = await client.login({ database });
      const last = answer.at(-1);
      if (last?.type !== 'Z') throw new Error(`a login on ${database} failed: ${last?.body.toString('latin1')}`);
      clients.push(client);
    }
  };
  await Promise.all(Array.from({ length: LOGINS_AT_ONCE }, worker));
  return clients;
}
