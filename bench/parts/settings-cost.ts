/*
 * What the settings cost that PgBouncer does not have (--settings): tsbouncer with a setting and without it, each on a
 * pooler of its own, measured in turns. Where a setting works at a login, every transaction has one.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { tempDir } from '../../test/harness';
import { user } from '../../test/harness/machine';
import { get } from '../../test/harness/metrics';
import { freePort } from '../../tools/postgres';
import { giveTo } from '../../tools/unprivileged';
import type { Bench, Contender } from '../contenders';
import { generatorHasTls, type LoadRun, measureLoad, runLoad } from '../generator';
import { type RunningPooler, startPooler } from '../poolers';
import { addRow, inTurns, note, OFF, ON, OURS, say, THEIRS, wanted } from '../rows';
import { FIRST_LOAD_SECONDS, options } from '../settings';

type Settings = Record<string, string | number>;

const LOGIN = { user: 'costs_user', password: 'costs-password' };
const SCRAPE_MS = 1000;

/** What clients do. */
interface Workload {
  name: string;
  run: Partial<LoadRun> & { clients: number };
}

const QUERIES: Workload = { name: '64 clients', run: { clients: 64 } };
const EXTENDED: Workload = { name: '64 clients, extended', run: { clients: 64, protocol: 'extended' } };
const SETS: Workload = {
  name: '64 clients, SET each time',
  run: { clients: 64, query: 'SET statement_timeout = 60000' },
};
const LOGINS: Workload = { name: 'reconnecting', run: { clients: 16, mode: 'reconnect' } };
/** with server_lifetime = 0 */
const SERVER_LOGINS: Workload = { name: 'a server login each time', run: { clients: 16 } };

/** One of the two poolers of a row. */
interface Side {
  settings: Settings;
  /** added to the connect string of the database */
  connect?: string;
  run?: Partial<LoadRun>;
  /** runs while the pooler does. @returns its end */
  beside?: (settings: Settings) => () => void;
}

interface Cost {
  /** the setting, as in the ini */
  title: string;
  load: Workload;
  /** of both sides */
  common?: Settings;
  off?: Partial<Side>;
  on: Side;
}

/** Asks for the metrics once a second. */
function scrape({ metrics_port }: Settings): () => void {
  const timer = setInterval(() => get(Number(metrics_port), '/metrics').catch(() => {}), SCRAPE_MS);
  return () => clearInterval(timer);
}

/** A setting that costs at most something for each transaction. */
function plain(title: string, settings: Settings, common: Settings = {}): Cost {
  return { title, load: QUERIES, common, on: { settings } };
}

async function queryCosts(): Promise<Cost[]> {
  const metrics = { metrics_port: await freePort() };
  return [
    { title: 'metrics_port, scraped every second', load: QUERIES, on: { settings: metrics, beside: scrape } },
    plain('dirty_session=log', { dirty_session: 'log' }),
    plain('dirty_session=reset', { dirty_session: 'reset' }),
    { ...plain('dirty_session=reset', { dirty_session: 'reset' }), load: SETS },
    plain('listen_mode=pin', { listen_mode: 'pin' }),
    plain('listen_mode=share', { listen_mode: 'share' }),
    { ...plain('listen_mode=share', { listen_mode: 'share' }), load: EXTENDED },
    plain('fair_share_timeout=0.2', { fair_share_timeout: 0.2 }, { max_db_connections: 10 }),
    plain('server_recovery_timeout=5', { server_recovery_timeout: 5 }),
    plain('server_lifetime_jitter=50', { server_lifetime_jitter: 50 }),
    plain('core_dumps=1', { core_dumps: 1 }, { core_dumps: 0 }),
    {
      ...plain('max_prepared_statements=200', { max_prepared_statements: 200 }, { max_prepared_statements: 0 }),
      load: EXTENDED,
    },
  ];
}

function loginCosts(): Cost[] {
  const logged = { log_connections: 1, log_disconnections: 1 };
  const asked = { auth_user: 'postgres', auth_type: generatorHasTls() ? 'scram-sha-256' : 'trust' };
  return [
    { title: 'log_format=json', load: LOGINS, common: logged, on: { settings: { log_format: 'json' } } },
    { title: 'log_repeat_limit=10', load: LOGINS, common: logged, on: { settings: { log_repeat_limit: 10 } } },
    {
      title: 'proxy_protocol_networks=127.0.0.0/8',
      load: LOGINS,
      on: { settings: { proxy_protocol_networks: '127.0.0.0/8' }, run: { proxy: true } },
    },
    {
      title: 'auth_query_cache_time=60',
      load: { ...LOGINS, run: { ...LOGINS.run, ...LOGIN } },
      common: asked,
      off: { connect: 'user=postgres' },
      on: { settings: { auth_query_cache_time: 60 }, connect: 'user=postgres' },
    },
    {
      title: 'listen_backlog=128',
      load: LOGINS,
      on: { settings: { listen_backlog: 128 } },
    },
  ];
}

/** The path of a file with the password, which the pooler can read. */
function passwordFile(): string {
  const dir = join(tempDir('costs'), 'secret');
  mkdirSync(dir);
  writeFileSync(join(dir, 'password'), `${LOGIN.password}\n`, { mode: 0o600 });
  giveTo(user, dir);
  return join(dir, 'password');
}

function serverLoginCosts(): Cost[] {
  const common = { server_lifetime: 0, server_login_concurrency: 16 };
  const who = `user=${LOGIN.user}`;
  const given = `${who} password=${LOGIN.password}`;
  const binding = (server_channel_binding: string) => ({ settings: { server_channel_binding }, connect: given });
  return [
    {
      title: 'password_file',
      load: SERVER_LOGINS,
      common,
      off: { connect: given },
      on: { settings: {}, connect: `${who} password_file=${passwordFile()}` },
    },
    {
      title: 'target_session_attrs=read-write',
      load: SERVER_LOGINS,
      common,
      on: { settings: {}, connect: 'target_session_attrs=read-write' },
    },
    {
      title: 'server_channel_binding=require',
      load: SERVER_LOGINS,
      common: { ...common, server_tls_sslmode: 'require' },
      off: binding('disable'),
      on: binding('require'),
    },
  ];
}

/** A pooler of its own, whose code has been compiled under load. */
async function startSide(bench: Bench, cost: Cost, name: string): Promise<RunningPooler & { run: LoadRun }> {
  const side: Side = name === ON ? cost.on : { settings: {}, ...cost.off };
  const settings = { ...cost.common, ...side.settings };
  const contender = { ...(bench.contenders[0] as Contender), name };
  const databases = { postgres: bench.cluster.connstr('postgres', side.connect) };
  const { cluster } = bench;
  const pooler = await startPooler({ cluster, contender, settings, databases });
  const run = { ...cost.load.run, ...side.run, port: pooler.port, seconds: FIRST_LOAD_SECONDS };
  await runLoad(run);
  return { name, contender, pooler, run };
}

async function measureCost(bench: Bench, cost: Cost): Promise<void> {
  const name = `${cost.title}: ${cost.load.name}`;
  if (!wanted(name)) return;
  say(name);
  const row = addRow(name, 'us', 2, { base: OFF });
  const sides = [await startSide(bench, cost, OFF), await startSide(bench, cost, ON)];
  const end = cost.on.beside?.(cost.on.settings);
  await inTurns(sides, async (side) => {
    const { cpu, transactions } = await measureLoad(side.pooler.pid, { ...side.run, seconds: options.seconds });
    note(row, side, cpu.total / transactions);
  });
  end?.();
  for (const { pooler } of sides) await pooler.stop();
}

/** tsbouncer without any of the settings, and PgBouncer. */
async function measureBase(bench: Bench, load: Workload): Promise<void> {
  const name = `CPU per transaction, ${load.name}`;
  const contenders = bench.contenders.filter(({ name: who }) => who === OURS || who === THEIRS);
  if (!wanted(name)) return;
  say(name);
  const row = addRow(name, 'us', 2);
  const poolers: RunningPooler[] = [];
  for (const contender of contenders) {
    const pooler = await startPooler({ cluster: bench.cluster, contender });
    poolers.push({ name: contender.name, contender, pooler });
    await runLoad({ ...load.run, port: pooler.port, seconds: FIRST_LOAD_SECONDS });
  }
  await inTurns(poolers, async (who) => {
    const run = { ...load.run, port: who.pooler.port, seconds: options.seconds };
    const { cpu, transactions } = await measureLoad(who.pooler.pid, run);
    note(row, who, cpu.total / transactions);
  });
  for (const { pooler } of poolers) await pooler.stop();
}

/** The base, and then every setting with a cost that could be noticed. */
export async function benchSettings(bench: Bench): Promise<void> {
  const { cluster } = bench;
  await cluster.createUser(LOGIN.user, LOGIN.password);
  const scram = `host all ${LOGIN.user} ${cluster.host}/32 scram-sha-256`;
  await cluster.setHba(['local all all trust', scram, `host all all ${cluster.host}/32 trust`]);
  for (const load of [QUERIES, LOGINS]) await measureBase(bench, load);
  for (const cost of [...(await queryCosts()), ...loginCosts(), ...serverLoginCosts()]) await measureCost(bench, cost);
}
