/*
 * npm run bench: measures tsbouncer and PgBouncer side by side, with the ratio of every figure. docs/performance.md
 * explains the figures. Nothing here passes or fails.
 */
import { writeFileSync } from 'node:fs';
import { cpus, release } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { type Bouncer, originalBin, PgCluster, tempDir } from '../test/harness';
import { type Cert, CertFolder } from '../test/harness/certs';
import { chartOf } from './chart';
import { copyOut, cpuUsec, median, type PgbenchRun, pgbench, rssKb } from './measure';
import { login, startAuthOnlyServer, startPooler } from './poolers';
import { rebootUnderLoad } from './reboot';
import {
  idleTlsClients,
  type MemoryFigures,
  slowReaders,
  statementsOfOneClient,
  usersFoundAtLogin,
  usersInFile,
} from './scale';
import { streamsBesideQueries } from './streams';
import { printTable, type Row } from './table';

const { values: options } = parseArgs({
  options: {
    quick: { type: 'boolean', default: false },
    json: { type: 'string' },
    svg: { type: 'string' },
    rounds: { type: 'string' },
    seconds: { type: 'string' },
    only: { type: 'string' },
    help: { type: 'boolean', short: 'h', default: false },
  },
});

const USAGE = `Usage: npm run bench -- [OPTION]...
  --quick         one short round, for a look or for CI
  --rounds N      rounds per figure (default 3); medians are printed
  --seconds N     length of one pgbench run (default 4)
  --only WORD     only figures whose name has WORD in it, as simple, tls, prepared, reboot, streams;
                  scale: what large numbers cost, which is not measured otherwise (some minutes)
  --json FILE     also write everything, single rounds included, to FILE
  --svg FILE      also draw the ratios, as in the README
BENCH_COPY_MB sets the size of COPY (default 1024), PGBOUNCER_BIN the path of PgBouncer.`;

const ROUNDS = Number(options.rounds ?? (options.quick ? 1 : 3));
const SECONDS = Number(options.seconds ?? (options.quick ? 1 : 4));
const COPY_MB = Number(process.env.BENCH_COPY_MB ?? (options.quick ? 128 : 1024));
const IDLE_CLIENTS = options.quick ? 300 : 1000;
const POOLS = options.quick ? 1000 : 5000;
const REBOOT_IDLE_CLIENTS = options.quick ? [1000] : [1000, 5000];
/** fewer and more streams than the loop receives from in one turn */
const STREAMS = options.quick ? [200] : [16, 500];
const KB = 1024;
/** PgBouncer's first release with support for prepared statements. */
const PREPARED_SINCE: [number, number] = [1, 21];
/** PgBouncer's first release with auth_dbname. */
const AUTH_DBNAME_SINCE: [number, number] = [1, 19];

/** A pooler, with the index of its figures in a row. */
interface Contender {
  name: 'tsbouncer' | 'original';
  pooler: Bouncer;
}

let cluster: PgCluster;
let script: string;
const rows: Row[] = [];
/** Remarks below the table. */
const remarks: string[] = [];

function addRow(name: string, unit: string, goal: string, digits: number): Row {
  const row: Row = { name, unit, goal, digits, tsbouncer: [], original: [] };
  rows.push(row);
  return row;
}

const only = options.only?.toLowerCase();
const wanted = (name: string) => only === undefined || name.toLowerCase().includes(only);
const say = (text: string) => process.stderr.write(`${text}\n`);

/** Runs the contenders in turns (A B, then B A), so that other load on the machine affects both. */
async function inTurns<T>(contenders: T[], one: (contender: T) => Promise<void>): Promise<void> {
  for (let round = 0; round < ROUNDS; round++) {
    const order = round % 2 === 0 ? contenders : [...contenders].reverse();
    for (const contender of order) await one(contender);
  }
}

/** usec of the pooler's processor time per transaction, and transactions per second. */
async function transactions(pooler: Bouncer, protocol: PgbenchRun['protocol'], clients: number, tls = false) {
  const run: PgbenchRun = { port: pooler.port, script, clients, seconds: SECONDS, protocol };
  if (tls) run.sslmode = 'require';
  for (let seconds = SECONDS; seconds <= 8 * SECONDS; seconds *= 2) {
    const before = cpuUsec(pooler.pid);
    const result = await pgbench({ ...run, seconds });
    const cpu = cpuUsec(pooler.pid) - before;
    if (result.transactions > 0) return { cpu: cpu / result.transactions, perSecond: result.perSecond };
  }
  throw new Error(`${clients} clients of pgbench did not get to a transaction`);
}

const GOALS: Record<string, string> = {
  'simple 1': '<= 0.95',
  'simple 16': '<= 0.75',
  'simple 64': '<= 0.65',
  'extended 1': '',
  'extended 16': '<= 0.75',
  'extended 64': '<= 0.65',
};

async function benchTransactions(contenders: Contender[]): Promise<void> {
  for (const protocol of ['simple', 'extended'] as const) {
    for (const clients of [1, 16, 64]) {
      const name = `CPU per transaction, ${protocol}, ${clients} client${clients > 1 ? 's' : ''}`;
      if (!wanted(name)) continue;
      say(name);
      const cpu = addRow(name, 'us', GOALS[`${protocol} ${clients}`] ?? '', 1);
      const speed = clients === 64 ? addRow(`transactions/s, ${protocol}, 64 clients`, '/s', '>= 1.15', 0) : null;
      await inTurns(contenders, async ({ name: who, pooler }) => {
        const result = await transactions(pooler, protocol, clients);
        cpu[who].push(result.cpu);
        speed?.[who].push(result.perSecond);
      });
    }
  }
}

/** Poolers with other settings, and their goals. */
interface Variant {
  title: string;
  settings: Record<string, string | number>;
  protocol: PgbenchRun['protocol'];
  /** for 16 and for 64 clients */
  goals: readonly [string, string];
  /** pgbench uses TLS */
  tls?: boolean;
}

/** CPU per transaction at 16 and 64 clients on poolers of their own. */
async function benchVariant(kinds: Contender['name'][], variant: Variant): Promise<void> {
  const { title, settings, protocol, tls } = variant;
  const counts = [16, 64].filter((clients) => wanted(`${title}, ${clients} clients`));
  if (counts.length === 0) return;
  const contenders: Contender[] = [];
  for (const name of kinds) {
    const pooler = await startPooler({ cluster, original: name === 'original', settings });
    contenders.push({ name, pooler });
    await transactions(pooler, protocol, 64, tls);
  }
  for (const clients of counts) {
    const name = `${title}, ${clients} clients`;
    say(name);
    const cpu = addRow(name, 'us', kinds.length > 1 ? variant.goals[clients === 16 ? 0 : 1] : '', 1);
    await inTurns(contenders, async ({ name: who, pooler }) => {
      cpu[who].push((await transactions(pooler, protocol, clients, tls)).cpu);
    });
  }
  for (const { pooler } of contenders) await pooler.stop();
}

function isSince(version: string | undefined, since: [number, number]): boolean {
  const [, major, minor] = (/(\d+)\.(\d+)/.exec(version ?? '') ?? []).map(Number) as [number, number, number];
  return major > since[0] || (major === since[0] && minor >= since[1]);
}

/** Skips PgBouncer versions that do not support prepared statements, with a remark. */
async function benchPrepared(contenders: Contender[], versions: string[]): Promise<void> {
  const able = contenders.filter(({ name }, at) => name === 'tsbouncer' || isSince(versions[at], PREPARED_SINCE));
  const title = 'CPU per transaction, prepared';
  if (able.length < contenders.length && (wanted(`${title}, 16 clients`) || wanted(`${title}, 64 clients`))) {
    remarks.push(
      `${versions.at(-1)} has no prepared statements in transaction mode (they came with 1.21): no ratio there`,
    );
  }
  await benchVariant(
    able.map(({ name }) => name),
    { title, settings: { max_prepared_statements: 200 }, protocol: 'prepared', goals: ['<= 0.75', '<= 0.65'] },
  );
}

/** TLS to the clients, to PostgreSQL, to both. The certificate is self-signed, which `require` accepts. */
async function benchTls(kinds: Contender['name'][], { cert, key }: Cert): Promise<void> {
  const client = { client_tls_sslmode: 'require', client_tls_cert_file: cert, client_tls_key_file: key };
  const server = { server_tls_sslmode: 'require' };
  const common = { protocol: 'simple', goals: ['<= 1.0', '<= 1.0'] } as const;
  const title = 'CPU per transaction, simple,';
  await benchVariant(kinds, { ...common, title: `${title} client TLS`, settings: client, tls: true });
  await benchVariant(kinds, { ...common, title: `${title} server TLS`, settings: server });
  await benchVariant(kinds, {
    ...common,
    title: `${title} TLS on both sides`,
    settings: { ...client, ...server },
    tls: true,
  });
}

/** A new process takes over from an old process of the same program. */
async function benchReboot(kinds: Contender['name'][]): Promise<void> {
  for (const idle of REBOOT_IDLE_CLIENTS) {
    const name = `online reboot, 16 busy and ${idle} idle clients`;
    if (!wanted(name)) continue;
    say(name);
    const gap = addRow(`${name}: longest gap`, 'ms', idle === 1000 ? '<= 30 ms' : '', 1);
    const lost = addRow(`${name}: clients lost`, '', 'none', 0);
    await inTurns(kinds, async (who) => {
      const result = await rebootUnderLoad(cluster, who === 'original' ? 'c' : 'ts', idle);
      gap[who].push(result.gapMs);
      lost[who].push(result.lost);
    });
  }
}

async function benchConnections(contenders: Contender[]): Promise<void> {
  const name = 'new connections/s, 16 clients';
  if (!wanted(name)) return;
  say(name);
  const speed = addRow(name, '/s', '>= 1.0', 0);
  const cpu = addRow('CPU per new connection', 'us', '', 1);
  await inTurns(contenders, async ({ name: who, pooler }) => {
    const before = cpuUsec(pooler.pid);
    const how = {
      port: pooler.port,
      script,
      clients: 16,
      seconds: SECONDS,
      protocol: 'simple',
      connect: true,
    } as const;
    const result = await pgbench(how);
    speed[who].push(result.transactions / SECONDS);
    cpu[who].push((cpuUsec(pooler.pid) - before) / result.transactions);
  });
}

async function benchCopy(contenders: Contender[]): Promise<void> {
  const name = `COPY TO STDOUT, ${COPY_MB} MB`;
  if (!wanted(name)) return;
  say(name);
  const wall = addRow(`${name}, wall`, 's', '<= 1.0', 2);
  const cpu = addRow(`${name}, pooler CPU`, 's', '<= 0.5', 2);
  await inTurns(contenders, async ({ name: who, pooler }) => {
    const before = cpuUsec(pooler.pid);
    wall[who].push((await copyOut(pooler.port, COPY_MB)) / 1000);
    cpu[who].push((cpuUsec(pooler.pid) - before) / 1e6);
  });
}

/** Memory per client, on fresh poolers. */
async function benchMemory(kinds: Contender['name'][]): Promise<void> {
  const name = 'resident memory';
  if (!wanted(name)) return;
  say(name);
  const empty = addRow('resident memory, empty', 'MB', '<= 80 MB', 1);
  const each = addRow(`resident memory per idle client (${IDLE_CLIENTS})`, 'kB', '<= 2.7 kB', 2);
  for (let round = 0; round < ROUNDS; round++) {
    for (const who of kinds) {
      const pooler = await startPooler({ cluster, original: who === 'original' });
      empty[who].push(rssKb(pooler.pid) / KB);
      // the first logins do the one-time allocations
      const first = await login(pooler.port, new Array<string>(20).fill('postgres'));
      const before = rssKb(pooler.pid);
      const clients = await login(pooler.port, new Array<string>(IDLE_CLIENTS).fill('postgres'));
      each[who].push((rssKb(pooler.pid) - before) / IDLE_CLIENTS);
      await Promise.all([...first, ...clients].map((client) => client.destroy()));
      await pooler.stop();
    }
  }
}

/** One busy client with thousands of idle pools, relative to the same client with one pool, for each pooler. */
async function benchPools(contenders: Contender[]): Promise<void> {
  const name = `${POOLS} pools`;
  if (!wanted(name)) return;
  say(name);
  const one = addRow('one pool: CPU per transaction, 1 client', 'us', '', 1);
  const many = addRow(`${POOLS} pools: CPU per transaction, 1 client`, 'us', '', 1);
  const ratio = addRow(`${POOLS} pools against one: own ratio`, '', 'tsbouncer <= 1.1', 2);
  const doorman = await startAuthOnlyServer();
  const databases = Array.from({ length: POOLS }, (_, n) => `p${n}`);
  const crowded: Bouncer[] = [];
  for (const { name: who } of contenders) {
    const pooler = await startPooler({
      cluster,
      original: who === 'original',
      databases: { count: POOLS, port: doorman.port },
    });
    for (const client of await login(pooler.port, databases)) client.destroy();
    const { items } = (await pooler.admin('SHOW LISTS')).find((row) => row.list === 'pools') ?? {};
    if (Number(items) < POOLS) throw new Error(`${who} has only ${items} pools`);
    crowded.push(pooler);
  }
  await inTurns(contenders, async ({ name: who, pooler }) => {
    const alone = await transactions(pooler, 'simple', 1);
    const among = await transactions(crowded[contenders.findIndex((c) => c.name === who)] as Bouncer, 'simple', 1);
    one[who].push(alone.cpu);
    many[who].push(among.cpu);
    ratio[who].push(among.cpu / alone.cpu);
  });
  for (const pooler of crowded) await pooler.stop();
  doorman.server.close();
}

/** On separate poolers, one after the other, because both ends of the streams need a CPU each. */
async function benchStreams(kinds: Contender['name'][]): Promise<void> {
  for (const streams of STREAMS) {
    const name = `${streams} endless streams`;
    if (!wanted(name)) continue;
    say(name);
    const seconds = options.quick ? 2 : 10;
    const least = addRow(`${name}, least that one got in ${seconds} s`, 'MB', '', 1);
    const most = addRow(`${name}, most that one got`, 'MB', '', 1);
    const starved = addRow(`${name}, how many got nothing`, '', '0', 0);
    const p99 = addRow(`${name}, p99 of small queries beside them`, 'ms', '', 1);
    const perSecond = addRow(`${name}, small queries/s beside them`, '/s', '', 0);
    await inTurns(kinds, async (who) => {
      const figures = await streamsBesideQueries({ cluster, original: who === 'original', streams, seconds });
      least[who].push(figures.least);
      most[who].push(figures.most);
      starved[who].push(figures.starved);
      p99[who].push(figures.p99);
      perSecond[who].push(figures.perSecond);
    });
  }
}

function addMemory(title: string, names: Record<keyof MemoryFigures, string>) {
  const rowOf = (word: string) => addRow(`${title}, ${word}`, 'MB', '', 1);
  const [before, most, after] = [rowOf(names.before), rowOf(names.with), rowOf(names.after)];
  return (who: Contender['name'], figures: MemoryFigures) => {
    before[who].push(figures.before);
    most[who].push(figures.with);
    after[who].push(figures.after);
  };
}

/** Large numbers, for which PgBouncer needs minutes: only on request, once per pooler. */
async function benchScale(kinds: Contender['name'][], versions: string[], cert: Cert): Promise<void> {
  if (only === undefined || !'scale'.includes(only)) return;
  const [users, more, logins, tls, statements] = options.quick
    ? [10_000, 100, 2000, 200, 10_000]
    : [100_000, 1000, 20_000, 1000, 100_000];
  const up = addRow(`scale: auth_file of ${users} users, start`, 'ms', 'tsbouncer < 1000', 0);
  const reload = addRow(`scale: RELOAD with ${more} new users, the last is let in`, 'ms', 'tsbouncer < 1000', 0);
  const wait = addRow('scale: longest wait of another client meanwhile', 'ms', '', 0);
  const first = addRow(`scale: CPU per login of a new user and database, early of ${logins}`, 'us', '', 0);
  const last = addRow('scale: the same, at the end', 'us', '', 0);
  const tlsMemory = addMemory(`scale: ${tls} TLS clients`, { before: 'before', with: 'idle', after: 'gone' });
  const named = { before: 'before', with: 'at rest', after: 'when it has left' };
  const statementMemory = addMemory(`scale: one client with ${statements} prepared statements`, named);
  const [readers, servers] = options.quick ? [200, 20] : [2000, 200];
  const slow = addRow(`scale: ${readers} slow clients read 1 MB each from ${servers} servers`, 's', '<= 1.0', 1);
  for (const who of kinds) {
    const where = { cluster, original: who === 'original' };
    say(`scale: ${who}`);
    const figures = await usersInFile(where, users, more);
    if (figures !== null) {
      up[who].push(figures.up);
      reload[who].push(figures.reload);
      wait[who].push(figures.wait);
    } else remarks.push(`${versions[kinds.indexOf(who)]} was not up after a minute with ${users} users`);
    if (who === 'tsbouncer' || isSince(versions[kinds.indexOf(who)], AUTH_DBNAME_SINCE)) {
      const [early, late] = await usersFoundAtLogin(where, logins);
      first[who].push(early);
      last[who].push(late);
    } else remarks.push(`${versions.at(-1)} has no auth_dbname (it came with 1.19): no ratio there`);
    tlsMemory(who, await idleTlsClients(where, tls, cert));
    statementMemory(who, await statementsOfOneClient(where, statements));
    slow[who].push(await slowReaders(where, readers, servers));
  }
}

async function versionOf(contender: Contender): Promise<string> {
  const [row] = await contender.pooler.admin('SHOW VERSION');
  return String(Object.values(row ?? {})[0]);
}

async function main(): Promise<void> {
  if (options.help) {
    console.log(USAGE);
    return;
  }
  const identity = new CertFolder().authority('localhost');
  const ssl = { ssl: 'on', ssl_cert_file: identity.cert, ssl_key_file: identity.key };
  cluster = await PgCluster.start({
    settings: {
      log_connections: 'off',
      log_disconnections: 'off',
      shared_buffers: '128MB',
      max_connections: 300,
      ...ssl,
    },
  });
  script = join(tempDir('bench'), 's.sql');
  writeFileSync(script, '\\set aid random(1, 100000)\nSELECT :aid;\n');
  const kinds: Contender['name'][] = originalBin() === null ? ['tsbouncer'] : ['tsbouncer', 'original'];
  if (kinds.length === 1) say('PgBouncer is not installed: no ratios');
  const contenders: Contender[] = [];
  for (const name of kinds)
    contenders.push({ name, pooler: await startPooler({ cluster, original: name === 'original' }) });

  const versions = await Promise.all(contenders.map(versionOf));
  const server = (await cluster.sql('SHOW server_version')).rows[0]?.server_version as string;
  const machine = `${cpus().length} x ${cpus()[0]?.model.trim()}, ${process.platform} ${release()}, Node ${process.version}, PostgreSQL ${server}`;
  // opens all servers of the pools before the measurements
  for (const { pooler } of contenders)
    await pgbench({ port: pooler.port, script, clients: 64, seconds: 1, protocol: 'simple' });

  await benchTransactions(contenders);
  await benchPrepared(contenders, versions);
  await benchTls(kinds, identity);
  await benchConnections(contenders);
  await benchCopy(contenders);
  await benchPools(contenders);
  for (const { pooler } of contenders) await pooler.stop();
  await benchMemory(kinds);
  await benchReboot(kinds);
  await benchStreams(kinds);
  await benchScale(kinds, versions, identity);
  await cluster.stop();

  console.log(`${machine}\n${versions.join(' against ')}; ${ROUNDS} rounds of ${SECONDS} s, medians\n`);
  printTable(rows, kinds.length > 1);
  for (const remark of remarks) console.log(`\n${remark}`);
  if (options.svg !== undefined) writeFileSync(options.svg, chartOf(rows, versions.join(' against ')));
  if (options.json !== undefined) {
    const figures = rows.map((row) => ({
      ...row,
      medians: { tsbouncer: median(row.tsbouncer), original: median(row.original) },
    }));
    writeFileSync(
      options.json,
      `${JSON.stringify({ machine, versions, rounds: ROUNDS, seconds: SECONDS, figures }, null, 2)}\n`,
    );
  }
}

main().then(
  () => process.exit(0),
  (err) => {
    console.error(err instanceof Error ? err.message : err);
    process.exit(1);
  },
);
