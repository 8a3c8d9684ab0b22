/*
 * Resident memory: empty, for each idle client, server and pool, with and after a burst of very many clients.
 */
import type { Bench, Contender } from '../contenders';
import { ownKb, rssKb } from '../cpu';
import { affordable } from '../descriptors';
import { startAuthOnlyServer, startWaitingServer } from '../fake-server';
import { generatorHasTls, type LoadRun, runLoad, startLoad } from '../generator';
import { manyDatabases, type RunningPooler, startPooler } from '../poolers';
import { addRow, figureAim, inTurns, note, say, wanted } from '../rows';
import { BURST_CLIENTS, IDLE_OBJECTS, KB, options, REST_MS } from '../settings';
import { fillPools } from './pools';

/** s; idle clients are stopped long before */
const IDLE_SECONDS_MAX = 60;
/** the first logins do the one-time allocations */
const FIRST_CLIENTS = 20;
const AFTERWARDS = `${REST_MS / 1000} s after they have left`;

const sleep = (ms: number) => new Promise((wake) => setTimeout(wake, ms));

/** What thousands of are added to a pooler. */
interface Kind {
  name: string;
  /** kB of one; 0 = no aim */
  aim: number;
  settings: Record<string, string | number>;
  databases?: Record<string, string>;
  /** allocates what is not counted */
  prepare(who: RunningPooler): Promise<void>;
  /** adds them, and returns what removes them; null if nothing does */
  add(who: RunningPooler): Promise<(() => Promise<void>) | null>;
}

/** Logs idle clients in. @returns what ends them */
async function idleClients(run: Omit<LoadRun, 'mode' | 'seconds'>): Promise<() => Promise<void>> {
  const idle = startLoad({ ...run, mode: 'idle', seconds: IDLE_SECONDS_MAX });
  await idle.connected;
  return async () => {
    idle.stop();
    await idle.result;
  };
}

function clientKind(name: string, aim: number, count: number, tls: boolean, settings: Kind['settings']): Kind {
  const clients = ({ pooler }: RunningPooler, number: number) =>
    idleClients({ port: pooler.port, clients: number, tls });
  return {
    name,
    aim,
    settings,
    prepare: async (who) => (await clients(who, FIRST_CLIENTS))(),
    add: (who) => clients(who, count),
  };
}

/** Each of that many clients gets a server of its own, leaves, and leaves the server idle. RECONNECT closes them. */
function serverKind(count: number, port: number): Kind {
  return {
    name: 'idle server',
    aim: 0,
    settings: { default_pool_size: count },
    databases: { postgres: `host=127.0.0.1 port=${port} dbname=postgres` },
    prepare: async ({ pooler }) => (await idleClients({ port: pooler.port, clients: count }))(),
    add: async ({ contender, pooler }) => {
      await runLoad({ port: pooler.port, clients: count, seconds: options.seconds, mode: 'once' });
      if (contender.kind === 'other') return null;
      return async () => {
        await pooler.admin('RECONNECT');
      };
    },
  };
}

/** Pools of databases that the config lists, without servers. Nothing removes them. */
function poolKind({ cluster }: Bench, count: number, port: number): Kind {
  const names = Array.from({ length: count }, (_, n) => `p${n}`);
  return {
    name: 'pool',
    aim: 0,
    settings: {},
    databases: manyDatabases(cluster, names, port),
    prepare: async ({ pooler }) => (await idleClients({ port: pooler.port, clients: FIRST_CLIENTS }))(),
    add: async (who) => {
      await fillPools(who, names);
      return null;
    },
  };
}

/** The growth of own memory caused by `count` of a kind, on fresh poolers, and what remains of it when they are gone. */
async function benchKind({ cluster, contenders }: Bench, kind: Kind, count: number): Promise<void> {
  const title = titleOf(kind.name, count);
  say(title);
  const each = addRow(title, 'kB', 2, { aims: kind.aim > 0 ? figureAim(kind.aim) : [] });
  const kept = addRow(`${title}: ${AFTERWARDS}`, 'kB', 2);
  await inTurns(contenders, async (contender) => {
    const { settings, databases } = kind;
    const pooler = await startPooler({
      cluster,
      contender,
      settings,
      ...(databases === undefined ? {} : { databases }),
    });
    const who = { name: contender.name, contender, pooler };
    await kind.prepare(who);
    await sleep(REST_MS);
    const before = ownKb(pooler.pid);
    const remove = await kind.add(who);
    await sleep(REST_MS);
    note(each, who, (ownKb(pooler.pid) - before) / count);
    if (remove !== null) {
      await remove();
      await sleep(REST_MS);
      note(kept, who, (ownKb(pooler.pid) - before) / count);
    }
    await pooler.stop();
  });
}

function titleOf(name: string, count: number): string {
  return `memory per ${name} (${count})`;
}

async function benchEmpty({ cluster, contenders }: Bench): Promise<void> {
  const name = 'resident memory, empty';
  if (!wanted(name)) return;
  say(name);
  const row = addRow(name, 'MB', 1, { aims: figureAim(45) });
  await inTurns(contenders, async (contender) => {
    const pooler = await startPooler({ cluster, contender });
    await sleep(REST_MS);
    note(row, contender, rssKb(pooler.pid) / KB);
    await pooler.stop();
  });
}

async function benchKinds(bench: Bench): Promise<void> {
  const { cert, key } = bench.identity;
  const tls = { client_tls_sslmode: 'require', client_tls_cert_file: cert, client_tls_key_file: key };
  const names = ['idle client', 'idle TLS client', 'idle server', 'pool'];
  if (!names.some((name) => wanted(titleOf(name, IDLE_OBJECTS)))) return;
  // the servers' clients come beside them
  const count = affordable(IDLE_OBJECTS, 2);
  const [doorman, waiting] = [await startAuthOnlyServer(), await startWaitingServer(count)];
  const kinds = [
    clientKind('idle client', 2.4, count, false, {}),
    clientKind('idle TLS client', 20, count, true, tls),
    serverKind(count, waiting.port),
    poolKind(bench, count, doorman.port),
  ];
  for (const kind of kinds) {
    if (!wanted(titleOf(kind.name, IDLE_OBJECTS)) || (kind.settings === tls && !generatorHasTls())) continue;
    await benchKind(bench, kind, count);
  }
  doorman.server.close();
  waiting.server.close();
}

/** One round of a burst: the start, all clients at once, queries of all, and what remains when they have left. */
async function burst({ cluster }: Bench, contender: Contender, clients: number) {
  const start = performance.now();
  const pooler = await startPooler({ cluster, contender, settings: { default_pool_size: 40 } });
  const load = startLoad({ port: pooler.port, clients, seconds: options.seconds });
  await load.connected;
  const connectedMs = performance.now() - start;
  const connectedKb = rssKb(pooler.pid);
  await load.begun;
  await load.ended;
  const busyKb = rssKb(pooler.pid);
  await load.result;
  await sleep(REST_MS);
  const afterKb = rssKb(pooler.pid);
  await pooler.stop();
  return { connectedMs, connectedKb, busyKb, afterKb };
}

async function benchBurst(bench: Bench): Promise<void> {
  const titleFor = (clients: number) => `burst of ${clients} clients, memory`;
  if (!wanted(titleFor(BURST_CLIENTS))) return;
  const clients = affordable(BURST_CLIENTS);
  const title = titleFor(clients);
  say(title);
  const connected = addRow(`${title}: from the start until all are connected`, 'ms', 0);
  const idle = addRow(`${title}: when all are connected`, 'MB', 1);
  const busy = addRow(`${title}: after ${options.seconds} s of queries`, 'MB', 1);
  const after = addRow(`${title}: ${AFTERWARDS}`, 'MB', 1);
  await inTurns(bench.contenders, async (who) => {
    const figures = await burst(bench, who, clients);
    note(connected, who, figures.connectedMs);
    note(idle, who, figures.connectedKb / KB);
    note(busy, who, figures.busyKb / KB);
    note(after, who, figures.afterKb / KB);
  });
}

export async function benchMemory(bench: Bench): Promise<void> {
  await benchEmpty(bench);
  await benchKinds(bench);
  await benchBurst(bench);
}
