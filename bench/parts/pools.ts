/*
 * COPY of a gigabyte, and one busy client while thousands of other pools are idle.
 */
import type { Bench } from '../contenders';
import { cpuUsec } from '../cpu';
import { startAuthOnlyServer } from '../fake-server';
import { copyOut } from '../pgbench';
import { login, manyDatabases, type RunningPooler, withPoolers } from '../poolers';
import { addRow, figureAim, inTurns, note, ratioAim, say, wanted } from '../rows';
import { COPY_MB, POOLS } from '../settings';
import { transactions } from './transactions';

/** clients that are connected at a time while pools are made */
const LOGINS = 500;

export async function benchCopy(poolers: RunningPooler[]): Promise<void> {
  const name = `COPY TO STDOUT, ${COPY_MB} MB`;
  if (!wanted(name)) return;
  say(name);
  const wall = addRow(`${name}, wall`, 's', 2, { aims: ratioAim(0.6) });
  const cpu = addRow(`${name}, pooler CPU`, 's', 2, { aims: ratioAim(0.4) });
  await inTurns(poolers, async (who) => {
    const before = cpuUsec(who.pooler.pid);
    note(wall, who, (await copyOut(who.pooler.port, COPY_MB)) / 1000);
    note(cpu, who, (cpuUsec(who.pooler.pid) - before) / 1e6);
  });
}

/** Makes pools without servers, and checks their number where the program reports it. */
export async function fillPools({ name, contender, pooler }: RunningPooler, databases: string[]): Promise<void> {
  for (let first = 0; first < databases.length; first += LOGINS) {
    const clients = await login(pooler.port, databases.slice(first, first + LOGINS));
    await Promise.all(clients.map((client) => client.destroy()));
  }
  const lists = await pooler.admin('SHOW LISTS').catch((err: Error) => {
    if (contender.kind !== 'other') throw err;
    return [];
  });
  const items = lists.find((row) => row.list === 'pools')?.items;
  if (items !== undefined && Number(items) < databases.length) throw new Error(`${name} has only ${items} pools`);
}

/** One busy client with thousands of idle pools, relative to the same client with one pool, for each pooler. */
export async function benchPools({ cluster, contenders, script }: Bench, poolers: RunningPooler[]): Promise<void> {
  const name = `${POOLS} pools`;
  if (!wanted(name)) return;
  say(name);
  const one = addRow('one pool: CPU per transaction, 1 client', 'us', 1);
  const many = addRow(`${POOLS} pools: CPU per transaction, 1 client`, 'us', 1);
  const ratio = addRow(`${POOLS} pools against one: own ratio`, '', 2, { aims: figureAim(1.05) });
  const doorman = await startAuthOnlyServer();
  const names = Array.from({ length: POOLS }, (_, n) => `p${n}`);
  const databases = manyDatabases(cluster, names, doorman.port);
  await withPoolers(contenders, { cluster, databases }, async (crowded) => {
    for (const each of crowded) await fillPools(each, names);
    await inTurns(poolers, async (who) => {
      const among = crowded.find((each) => each.name === who.name) as RunningPooler;
      const run = { script, clients: 1, protocol: 'simple' } as const;
      const [alone, crowd] = [await transactions(who, run), await transactions(among, run)];
      note(one, who, alone.cpu);
      note(many, who, crowd.cpu);
      note(ratio, who, crowd.cpu / alone.cpu);
    });
  });
  doorman.server.close();
}
