/*
 * An online reboot as its clients see it: a daemon started with -R -d takes over while some query without a pause and
 * very many rest. For `npm run bench`.
 */

import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { eventually, type PgCluster } from '../test/harness';
import type { RawClient } from '../test/harness/raw-client';
import { type Kind, RebootChain } from '../test/harness/reboot-chain';
import { BENCH_SETTINGS, login } from './poolers';

const BUSY_CLIENTS = 16;
/** Clients that are asked at once whether they still live. */
const CHECKS_AT_ONCE = 50;

interface RebootResult {
  /** longest time between two answers to the same busy client, in ms */
  gapMs: number;
  /** clients, busy or idle, whose connection ended or who got an error */
  lost: number;
}

/** What the busy clients have in common. */
interface Load {
  counting: boolean;
  over: boolean;
  answers: number;
  gapMs: number;
  lost: number;
}

/** Where daemons may still run: they are nobody's children. */
const places = new Set<RebootChain>();

// before the harness removes the folders that the pidfiles lie in
process.prependListener('exit', () => {
  for (const place of places) killDaemon(place, 'SIGKILL');
});

/** Alive, and not dead and waiting for a parent that looks (a container may have none). */
function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'latin1'));
  } catch {
    return false;
  }
}

/** The daemon in the place, or 0: not the first process, which is a child like any other. */
function daemonOf(place: RebootChain): number {
  const pid = place.pidInFile();
  return pid !== place.generations[0]?.pid && pid > 0 && alive(pid) ? pid : 0;
}

function killDaemon(place: RebootChain, signal: NodeJS.Signals): number {
  const pid = daemonOf(place);
  if (pid !== 0) process.kill(pid, signal);
  return pid;
}

/** One query. @returns whether it was answered, and without an error */
async function answers(client: RawClient): Promise<boolean> {
  const answer = await client.query('SELECT 1').catch(() => []);
  return answer.at(-1)?.type === 'Z' && answer.every((msg) => msg.type !== 'E');
}

async function stayBusy(client: RawClient, load: Load): Promise<void> {
  let last = performance.now();
  while (!load.over) {
    const good = await answers(client);
    const now = performance.now();
    if (load.counting) load.gapMs = Math.max(load.gapMs, now - last);
    last = now;
    load.answers++;
    if (!good) {
      load.lost++;
      return;
    }
  }
}

async function countLost(clients: RawClient[]): Promise<number> {
  let lost = 0;
  const left = [...clients];
  const worker = async (): Promise<void> => {
    for (let client = left.pop(); client !== undefined; client = left.pop()) {
      if (!(await answers(client))) lost++;
    }
  };
  await Promise.all(Array.from({ length: CHECKS_AT_ONCE }, worker));
  return lost;
}

/** Starts the successor in the background, and waits until the present process has ended and the daemon has its pidfile. */
async function rebootToDaemon(place: RebootChain): Promise<void> {
  const old = place.now;
  const launcher = place.spawn(old.kind, ['-R', '-d']);
  const { code } = await launcher.waitEnd();
  if (code !== 0) throw new Error(`the launcher ended with ${code}:\n${launcher.log.text}`);
  await old.waitEnd();
  await eventually('the pidfile of the daemon', () => daemonOf(place) !== 0);
}

/** From one process of that kind to the next. Throws when the reboot itself fails. */
export async function rebootUnderLoad(cluster: PgCluster, kind: Kind, idleClients: number): Promise<RebootResult> {
  const place = await RebootChain.make({ cluster, settings: { ...BENCH_SETTINGS, suspend_timeout: 10 } });
  const logfile = join(place.dir, 'pooler.log');
  place.write({ settings: { logfile } });
  const clients: RawClient[] = [];
  const load: Load = { counting: false, over: false, answers: 0, gapMs: 0, lost: 0 };
  places.add(place);
  try {
    await place.start(kind);
    const idle = await login(place.port, new Array<string>(idleClients).fill('postgres'));
    const busy = await login(place.port, new Array<string>(BUSY_CLIENTS).fill('postgres'));
    clients.push(...idle, ...busy);
    const loops = busy.map((client) => stayBusy(client, load));
    // the pool is full and everybody is under way before anybody counts
    await eventually('the busy clients to be under way', () => load.answers >= 200 * BUSY_CLIENTS);
    load.counting = true;
    await rebootToDaemon(place);
    load.over = true;
    // each finishes the query that it is in, so a gap that still lasts counts in full
    await Promise.all(loops);
    return { gapMs: load.gapMs, lost: load.lost + (await countLost(idle)) };
  } catch (err) {
    const log = existsSync(logfile) ? readFileSync(logfile, 'latin1').slice(-4096) : '';
    throw new Error(`online reboot (${kind}): ${(err as Error).message}\n${log}`);
  } finally {
    load.over = true;
    await Promise.all(clients.map((client) => client.destroy()));
    const daemon = killDaemon(place, 'SIGQUIT');
    await eventually('the daemon to end', () => daemon === 0 || !alive(daemon));
    places.delete(place);
    await place.stop();
  }
}
