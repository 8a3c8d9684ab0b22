/*
 * Resident memory: empty, per idle client, with and after a burst of very many clients.
 */
import type { Bench, Contender } from '../contenders';
import { rssKb } from '../cpu';
import { generatorHasTls, type LoadRun, startLoad } from '../generator';
import { login, startPooler } from '../poolers';
import { addRow, figureAim, inTurns, note, say, wanted } from '../rows';
import { BURST_CLIENTS, IDLE_CLIENTS, KB, options } from '../settings';

/** ms; memory that is released periodically has been released by then */
const REST_MS = 5000;
/** s; idle clients are stopped long before */
const IDLE_SECONDS_MAX = 60;
/** the first logins do the one-time allocations */
const FIRST_CLIENTS = 20;

const sleep = (ms: number) => new Promise((wake) => setTimeout(wake, ms));

/** Memory per client, on fresh poolers. */
async function benchIdleClients({ cluster, contenders }: Bench): Promise<void> {
  const name = 'resident memory, empty';
  const perClient = `resident memory per idle client (${IDLE_CLIENTS})`;
  if (!wanted(name) && !wanted(perClient)) return;
  say(name);
  const empty = addRow(name, 'MB', 1, { aims: figureAim(45) });
  const each = addRow(perClient, 'kB', 2, { aims: figureAim(2.4) });
  await inTurns(contenders, async (who) => {
    const pooler = await startPooler({ cluster, contender: who });
    note(empty, who, rssKb(pooler.pid) / KB);
    const first = await login(pooler.port, new Array<string>(FIRST_CLIENTS).fill('postgres'));
    const before = rssKb(pooler.pid);
    const clients = await login(pooler.port, new Array<string>(IDLE_CLIENTS).fill('postgres'));
    note(each, who, (rssKb(pooler.pid) - before) / IDLE_CLIENTS);
    await Promise.all([...first, ...clients].map((client) => client.destroy()));
    await pooler.stop();
  });
}

/** Logs idle clients in, and keeps them for `work`. */
async function withIdleClients(run: Omit<LoadRun, 'mode' | 'seconds'>, work: () => Promise<void>): Promise<void> {
  const idle = startLoad({ ...run, mode: 'idle', seconds: IDLE_SECONDS_MAX });
  await idle.connected;
  await work();
  idle.stop();
  await idle.result;
}

async function benchIdleTlsClients({ cluster, contenders, identity: { cert, key } }: Bench): Promise<void> {
  const name = `resident memory per idle TLS client (${IDLE_CLIENTS})`;
  if (!wanted(name) || !generatorHasTls()) return;
  say(name);
  const row = addRow(name, 'kB', 1, { aims: figureAim(20) });
  const settings = { client_tls_sslmode: 'require', client_tls_cert_file: cert, client_tls_key_file: key };
  await inTurns(contenders, async (who) => {
    const pooler = await startPooler({ cluster, contender: who, settings });
    const run = { port: pooler.port, tls: true };
    await withIdleClients({ ...run, clients: FIRST_CLIENTS }, async () => {
      const before = rssKb(pooler.pid);
      await withIdleClients({ ...run, clients: IDLE_CLIENTS }, async () => {
        await sleep(REST_MS);
        note(row, who, (rssKb(pooler.pid) - before) / IDLE_CLIENTS);
      });
    });
    await pooler.stop();
  });
}

/** One round of a burst: the start, all clients at once, queries of all, and what remains when they have left. */
async function burst({ cluster }: Bench, contender: Contender) {
  const start = performance.now();
  const pooler = await startPooler({ cluster, contender, settings: { default_pool_size: 40 } });
  const load = startLoad({ port: pooler.port, clients: BURST_CLIENTS, seconds: options.seconds });
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
  const title = `burst of ${BURST_CLIENTS} clients, memory`;
  if (!wanted(title)) return;
  say(title);
  const connected = addRow(`${title}: from the start until all are connected`, 'ms', 0);
  const idle = addRow(`${title}: when all are connected`, 'MB', 1);
  const busy = addRow(`${title}: after ${options.seconds} s of queries`, 'MB', 1);
  const after = addRow(`${title}: ${REST_MS / 1000} s after they have left`, 'MB', 1);
  await inTurns(bench.contenders, async (who) => {
    const figures = await burst(bench, who);
    note(connected, who, figures.connectedMs);
    note(idle, who, figures.connectedKb / KB);
    note(busy, who, figures.busyKb / KB);
    note(after, who, figures.afterKb / KB);
  });
}

export async function benchMemory(bench: Bench): Promise<void> {
  await benchIdleClients(bench);
  await benchIdleTlsClients(bench);
  await benchBurst(bench);
}
