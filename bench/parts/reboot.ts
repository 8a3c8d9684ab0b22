/*
 * An online reboot from the clients' point of view: a daemon started with -R -d takes over while some clients send
 * queries without a pause and very many clients are idle. For `npm run bench`.
 */

import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ConnectionOptions } from 'node:tls';
import { eventually } from '../../test/harness';
import type { RawClient } from '../../test/harness/raw-client';
import { RebootChain } from '../../test/harness/reboot-chain';
import type { Bench, Contender } from '../contenders';
import { affordableCounts } from '../descriptors';
import { login, settingsOf } from '../poolers';
import { addRow, figureAim, inTurns, note, remark, say, THEIRS, wanted } from '../rows';
import { REBOOT_IDLE_CLIENTS } from '../settings';

const BUSY_CLIENTS = 16;
/** The gap of TLS clients is at most this many times that of plain ones. */
const TLS_GAP = 1.2;
/** Number of clients checked at once. */
const CHECKS_AT_ONCE = 50;

/** What one row measures. */
interface Scene {
  title: string;
  idleClients: number;
  /** of all clients, busy and idle; also in the settings of the poolers */
  tls: boolean;
  /** for the longest gap, in ms */
  aim: number;
}

/** Of clients that use TLS, to a pooler with a self-signed certificate. */
const TLS: ConnectionOptions = { rejectUnauthorized: false };

interface RebootResult {
  /** longest time between two answers to the same busy client, in ms */
  gapMs: number;
  /** clients, busy or idle, whose connection ended or who got an error */
  lost: number;
}

/** State shared by the busy clients. */
interface Load {
  counting: boolean;
  over: boolean;
  answers: number;
  gapMs: number;
  lost: number;
}

/** Chains whose daemons may still run, because daemons are not children of this process. */
const places = new Set<RebootChain>();

// before the harness removes the folders with the pidfiles
process.prependListener('exit', () => {
  for (const place of places) killDaemon(place, 'SIGKILL');
});

/** True if the process exists and is not a zombie (a container may have no process that reaps it). */
function alive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return !/^State:\s+Z/m.test(readFileSync(`/proc/${pid}/status`, 'latin1'));
  } catch {
    return false;
  }
}

/** The pid of the chain's daemon, or 0; the first process is a child, not a daemon. */
function daemonOf(place: RebootChain): number {
  const pid = place.pidInFile();
  return pid !== place.generations[0]?.pid && pid > 0 && alive(pid) ? pid : 0;
}

function killDaemon(place: RebootChain, signal: NodeJS.Signals): number {
  const pid = daemonOf(place);
  if (pid !== 0) process.kill(pid, signal);
  return pid;
}

/** Runs one query. @returns whether it was answered without an error */
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

/** Starts a daemon, and waits until the current process has exited and the daemon has its pidfile. */
async function rebootToDaemon(place: RebootChain): Promise<void> {
  const old = place.now;
  const launcher = place.spawn(old.kind, ['-R', '-d']);
  const { code } = await launcher.waitEnd();
  if (code !== 0) throw new Error(`the launcher ended with ${code}:\n${launcher.log.text}`);
  await old.waitEnd();
  await eventually('the pidfile of the daemon', () => daemonOf(place) !== 0);
}

/** Runs a reboot between two processes of that program. Throws if the reboot itself fails. */
async function rebootUnderLoad(bench: Bench, contender: Contender, scene: Scene): Promise<RebootResult> {
  const kind = contender.kind === 'PgBouncer' ? 'c' : 'ts';
  const { cert, key } = bench.identity;
  const secure = { client_tls_sslmode: 'require', client_tls_cert_file: cert, client_tls_key_file: key };
  const settings = settingsOf(contender, { suspend_timeout: 10, ...(scene.tls ? secure : {}) });
  const place = await RebootChain.make({ cluster: bench.cluster, settings });
  const logfile = join(place.dir, 'pooler.log');
  place.write({ settings: { logfile } });
  const connect = (count: number) =>
    login(place.port, new Array<string>(count).fill('postgres'), scene.tls ? TLS : undefined);
  const clients: RawClient[] = [];
  const load: Load = { counting: false, over: false, answers: 0, gapMs: 0, lost: 0 };
  places.add(place);
  try {
    await place.start(kind);
    const idle = await connect(scene.idleClients);
    const busy = await connect(BUSY_CLIENTS);
    clients.push(...idle, ...busy);
    const loops = busy.map((client) => stayBusy(client, load));
    // the pool is full and all clients are working before the measurement
    await eventually('the busy clients to be under way', () => load.answers >= 200 * BUSY_CLIENTS);
    load.counting = true;
    await rebootToDaemon(place);
    load.over = true;
    // each client finishes its current query, so that an unfinished gap counts in full
    await Promise.all(loops);
    return { gapMs: load.gapMs, lost: load.lost + (await countLost(idle)) };
  } catch (err) {
    const log = existsSync(logfile) ? readFileSync(logfile, 'latin1').slice(-4096) : '';
    throw new Error(`online reboot (${contender.name}): ${(err as Error).message}\n${log}`);
  } finally {
    load.over = true;
    await Promise.all(clients.map((client) => client.destroy()));
    const daemon = killDaemon(place, 'SIGQUIT');
    await eventually('the daemon to end', () => daemon === 0 || !alive(daemon));
    places.delete(place);
    await place.stop();
  }
}

/** All rows that --only selects. */
function scenes(): Scene[] {
  const list: Scene[] = [];
  for (const tls of [false, true]) {
    const titleOf = (idle: number) =>
      `online reboot, ${BUSY_CLIENTS} busy and ${idle} idle ${tls ? 'TLS ' : ''}clients`;
    for (const idleClients of affordableCounts(REBOOT_IDLE_CLIENTS.filter((count) => wanted(titleOf(count))))) {
      const plainAim = idleClients === 1000 ? 15 : 20;
      list.push({ title: titleOf(idleClients), idleClients, tls, aim: tls ? plainAim * TLS_GAP : plainAim });
    }
  }
  return list;
}

/** A new process takes over from an old process of the same program. */
export async function benchReboot(bench: Bench): Promise<void> {
  const able = bench.contenders.filter(({ kind }) => kind !== 'other');
  for (const scene of scenes()) {
    say(scene.title);
    if (able.length < bench.contenders.length) remark('online reboot: not measured for the programs of BENCH_ALSO');
    const gap = addRow(`${scene.title}: longest gap`, 'ms', 1, { aims: figureAim(scene.aim) });
    const lost = addRow(`${scene.title}: clients lost`, '', 0, { aims: figureAim(0) });
    await inTurns(able, async (who) => {
      const result = await rebootUnderLoad(bench, who, scene);
      note(lost, who, result.lost);
      // PgBouncer closes TLS connections: there is no next answer
      if (scene.tls && who.kind === 'PgBouncer') remark(`${THEIRS} closes TLS clients at a reboot: no gap there`);
      else note(gap, who, result.gapMs);
    });
  }
}
