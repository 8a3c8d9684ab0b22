/*
 * npm run bench: measures tsbouncer and PgBouncer side by side, with the ratio of every figure, and any number of other
 * programs or settings beside them. docs/performance.md explains the figures. Nothing here passes or fails.
 */
import { writeFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { join } from 'node:path';
import { type Bouncer, PgCluster, tempDir } from '../test/harness';
import { type Cert, CertFolder } from '../test/harness/certs';
import { chartOf } from './chart';
import { allContenders, type Bench, type Contender } from './contenders';
import { benchClients } from './parts/clients';
import { benchLoginStorm, benchReconnecting, benchServersUp } from './parts/logins';
import { benchMemory } from './parts/memory';
import { benchCopy, benchPools } from './parts/pools';
import { benchReboot } from './parts/reboot';
import { benchScale } from './parts/scale';
import { benchSettings } from './parts/settings-cost';
import { benchStreams } from './parts/streams';
import { benchConnections, benchPrepared, benchTls, benchTransactions } from './parts/transactions';
import { pgbench } from './pgbench';
import { startPooler, UnknownSetting, withPoolers } from './poolers';
import {
  aimText,
  isMet,
  median,
  OFF,
  ON,
  OURS,
  ratioOf,
  remark,
  remarks,
  roundRatios,
  rows,
  say,
  THEIRS,
} from './rows';
import { options, USAGE } from './settings';
import { printCosts, printTable } from './table';

/** Servers that all poolers together may have at a time. */
const SERVER_CONNECTIONS = 900;
/** Lines of a pooler's start that say how its loop works. */
const ABOUT_LOOP = /^.*(?:io_uring|loop_backend|io_threads).*$/gim;

function startCluster({ cert, key }: Cert): Promise<PgCluster> {
  const ssl = { ssl: 'on', ssl_cert_file: cert, ssl_key_file: key };
  const quiet = { log_connections: 'off', log_disconnections: 'off' };
  const sizes = { shared_buffers: '128MB', max_connections: SERVER_CONNECTIONS };
  return PgCluster.start({ settings: { ...quiet, ...sizes, ...ssl } });
}

async function versionOf(contender: Contender, pooler: Bouncer): Promise<string> {
  const rowsOfVersion = await pooler.admin('SHOW VERSION').catch(() => []);
  const [version] = Object.values(rowsOfVersion[0] ?? {});
  return version === undefined ? contender.command.join(' ') : String(version);
}

/** Starts each once: asks for its version, and leaves an optional contender out if it does not know its settings. */
async function tryContenders(cluster: PgCluster, all: Contender[]): Promise<Contender[]> {
  const able: Contender[] = [];
  for (const contender of all) {
    try {
      const pooler = await startPooler({ cluster, contender });
      const version = await versionOf(contender, pooler);
      for (const [line] of pooler.log.text.matchAll(ABOUT_LOOP)) remark(`${contender.name}: ${line}`);
      await pooler.stop();
      able.push({ ...contender, version });
    } catch (err) {
      if (!(err instanceof UnknownSetting) || !contender.optional) throw err;
      remark(`${err.message}, so it was left out`);
    }
  }
  return able;
}

async function benchOpenPools(bench: Bench): Promise<void> {
  await withPoolers(bench.contenders, { cluster: bench.cluster }, async (poolers) => {
    // opens all servers of the pools before the measurements
    for (const { pooler } of poolers)
      await pgbench({ port: pooler.port, script: bench.script, clients: 64, seconds: 1, protocol: 'simple' });
    await benchTransactions(bench, poolers);
    await benchConnections(bench, poolers);
    await benchCopy(poolers);
    await benchPools(bench, poolers);
  });
}

/** In the order of the table. */
const PARTS: ((bench: Bench) => Promise<void>)[] = [
  benchOpenPools,
  benchPrepared,
  benchTls,
  benchClients,
  benchReconnecting,
  benchLoginStorm,
  benchServersUp,
  benchMemory,
  benchReboot,
  benchStreams,
  benchScale,
];

/** Runs all parts. What was measured before a failure is printed too. @returns false if a part has failed */
async function runParts(bench: Bench): Promise<boolean> {
  let good = true;
  for (const part of options.settings ? [benchSettings] : PARTS) {
    try {
      await part(bench);
    } catch (err) {
      good = false;
      const text = `FAILED after '${rows.at(-1)?.name ?? 'nothing'}': ${err instanceof Error ? err.message : err}`;
      say(text);
      remark(text);
    }
  }
  return good;
}

/** Everything, single rounds included. */
function jsonOf(machine: string, contenders: Contender[]): string {
  const names = [...contenders.map(({ name }) => name), ...(options.settings ? [OFF, ON] : [])];
  const figures = rows.map((row) => ({
    ...row,
    medians: Object.fromEntries(names.map((name) => [name, median(row.rounds[name])])),
    ratios: Object.fromEntries(names.map((name) => [name, ratioOf(row, name)])),
    roundRatios: Object.fromEntries(names.map((name) => [name, roundRatios(row, name)])),
    aims: row.aims.map((aim) => ({ ...aim, text: aimText(row, aim), met: isMet(row, aim) })),
  }));
  const versions = Object.fromEntries(contenders.map(({ name, version }) => [name, version]));
  const { rounds, seconds } = options;
  return `${JSON.stringify({ machine, versions, rounds, seconds, remarks, figures }, null, 2)}\n`;
}

function report(machine: string, contenders: Contender[]): void {
  const names = contenders.map(({ name }) => name);
  const versions = contenders.map(({ name, version }) => (name === version ? name : `${name}: ${version}`));
  const shown = rows.filter((row) => (options.details || !row.detail) && Object.keys(row.rounds).length > 0);
  console.log(machine);
  for (const version of versions) console.log(version);
  console.log(`${options.rounds} rounds of ${options.seconds} s: medians (smallest..largest)\n`);
  printTable(
    shown.filter(({ base }) => base === THEIRS),
    names,
  );
  const costs = shown.filter(({ base }) => base === OFF);
  if (costs.length > 0) {
    console.log(`\n${OURS} with a setting, and without it:\n`);
    printCosts(costs);
  }
  for (const text of remarks) console.log(`\n${text}`);
  const title = contenders.map(({ version }) => version).slice(0, 2);
  if (options.svg !== undefined) writeFileSync(options.svg, chartOf(shown, title.join(' against ')));
  if (options.json !== undefined) writeFileSync(options.json, jsonOf(machine, contenders));
}

async function main(): Promise<void> {
  if (options.help) {
    console.log(USAGE);
    return;
  }
  const all = allContenders();
  const identity = new CertFolder().authority('localhost');
  const cluster = await startCluster(identity);
  const script = join(tempDir('bench'), 's.sql');
  writeFileSync(script, '\\set aid random(1, 100000)\nSELECT :aid;\n');
  const contenders = await tryContenders(cluster, all);
  const server = (await cluster.sql('SHOW server_version')).rows[0]?.server_version as string;
  const [cpu] = cpus();
  const machine = `${cpus().length} x ${cpu?.model.trim()}, ${process.platform} ${release()}, Node ${process.version}, PostgreSQL ${server}`;
  const good = await runParts({ cluster, contenders, script, identity });
  await cluster.stop();
  if (!good) process.exitCode = 1;
  if (rows.length > 0) report(machine, contenders);
  else throw new Error(`no figure has ${options.only.join(' or ')} in its name`);
}

main().then(
  () => process.exit(),
  (err) => {
    console.error(err instanceof Error ? err.message : err);
    process.exit(1);
  },
);
