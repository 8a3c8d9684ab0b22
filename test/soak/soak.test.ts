/*
 * Two hundred clients, half of them with TLS, work at random for SOAK_SECONDS (20; for a long soak 600), while servers are
 * killed and the console is busy. No client waits forever or gets another client's answer, and afterwards the pooler holds no more
 * than before. SOAK_SEED repeats the choices of a run, as far as timing allows.
 */

import assert from 'node:assert/strict';
import { setTimeout as pause } from 'node:timers/promises';
import { Bouncer, eventually, it, PgCluster } from '../harness';
import { holding, lists } from '../harness/hostile/attack';
import { Random, seedFrom } from '../harness/hostile/random';
import { after, before } from '../harness/limits';
import { TlsPlace } from '../harness/tls-place';
import { newTally, SoakClient, type Tally } from './client';

const CLIENTS = 200;
const SECONDS = Number(process.env.SOAK_SECONDS ?? 20);
const SAMPLE_MS = 250;
/** The share of the run after which memory must not grow any more. */
const WARM_UP = 0.4;
/** Normal variation of the heap, in kB. */
const RSS_BREATH_KB = 24 * 1024;

const seed = seedFrom('SOAK_SEED');
const place = new TlsPlace();
let cluster: PgCluster;
let bouncer: Bouncer;

before(async () => {
  console.log(`SOAK_SEED=${seed} SOAK_SECONDS=${SECONDS}`);
  cluster = await PgCluster.start({
    settings: { ...place.ofServers, log_connections: 'off', log_disconnections: 'off' },
  });
  bouncer = await Bouncer.start({
    cluster,
    databases: { postgres: cluster.connstr() },
    settings: {
      ...place.toClients,
      ...place.toServers,
      pool_mode: 'transaction',
      default_pool_size: 20,
      reserve_pool_size: 3,
      reserve_pool_timeout: 1,
      max_client_conn: 2000,
      server_idle_timeout: 2,
      server_lifetime: 5,
      server_login_retry: 0.2,
      log_connections: 0,
      log_disconnections: 0,
      log_pooler_errors: 0,
      stats_period: 5,
    },
  });
});

after(async () => {
  await bouncer?.stop();
  await cluster?.stop();
});

/** SHOW LISTS once only the console client is connected. */
function idleLists(): Promise<Record<string, number>> {
  return eventually('the pooler to be idle', async () => {
    const now = lists(await bouncer.admin('SHOW LISTS'));
    return now.used_clients === 1 && now.used_servers === 0 ? now : null;
  });
}

interface Havoc {
  killed: number;
  commands: number;
}

/** Kills servers and runs console commands until the end. */
async function havoc(random: Random, over: () => boolean): Promise<Havoc> {
  const done: Havoc = { killed: 0, commands: 0 };
  const shows = ['SHOW POOLS', 'SHOW CLIENTS', 'SHOW SERVERS', 'SHOW SOCKETS', 'SHOW STATS', 'SHOW MEM', 'SHOW CONFIG'];
  while (!over()) {
    await pause(random.between(20, 200));
    const kind = random.below(10);
    if (kind < 4) {
      const count = random.one(10) ? 100 : random.between(1, 3);
      const some = `pid IN (SELECT pid FROM pg_stat_activity ORDER BY md5(pid::text || '${random.u32()}') LIMIT ${count})`;
      done.killed += await cluster.killBackends(some);
      continue;
    }
    done.commands++;
    if (kind < 6) {
      await bouncer.admin('RELOAD');
    } else if (kind < 7) {
      await bouncer.admin('RECONNECT');
    } else {
      // no PAUSE: it would wait for queries that end only when canceled, and close the connections of cancel requests
      await bouncer.admin(random.pick(shows));
    }
  }
  return done;
}

/** Samples of resident memory, in kB, with their times in seconds. */
async function watch(over: () => boolean): Promise<{ second: number; rssKb: number }[]> {
  const samples: { second: number; rssKb: number }[] = [];
  for (const start = Date.now(); !over(); await pause(SAMPLE_MS)) {
    samples.push({ second: (Date.now() - start) / 1000, rssKb: holding(bouncer.pid).rssKb });
  }
  return samples;
}

function median(values: number[]): number {
  return [...values].sort((a, b) => a - b)[values.length >> 1] ?? 0;
}

/** The same pooler for clients with TLS. */
const secured = { raw: async () => (await bouncer.raw()).secure(place.trusting) };

async function allClients(tally: Tally, over: () => boolean): Promise<void> {
  const clients = Array.from(
    { length: CLIENTS },
    (_, n) => new SoakClient(n % 2 === 0 ? bouncer : secured, n, new Random(seed + n), tally, over),
  );
  await Promise.all(clients.map((client) => client.run()));
}

it(
  `${CLIENTS} clients work for ${SECONDS} s without a wrong answer, a stuck client or a leak`,
  async () => {
    await bouncer.sql('SELECT 1');
    await bouncer.admin('SHOW VERSION');
    const listsBefore = await idleLists();
    const before = holding(bouncer.pid);

    const endMs = Date.now() + SECONDS * 1000;
    let failed = false;
    const over = () => failed || Date.now() > endMs;
    const stopAll = (err: unknown) => {
      failed = true;
      throw err;
    };
    const tally = newTally();
    const [, done, samples] = await Promise.all([
      allClients(tally, over).catch(stopAll),
      havoc(new Random(seed), over).catch(stopAll),
      watch(over),
    ]);

    assert.deepEqual(await idleLists(), listsBefore);
    await eventually('descriptors to be closed', () => holding(bouncer.pid).descriptors === before.descriptors);
    const late = samples.filter(({ second }) => second > SECONDS * WARM_UP).map(({ rssKb }) => rssKb);
    const half = late.length >> 1;
    const early = median(late.slice(0, half));
    const end = median(late.slice(half));
    const summary = { ...tally, ...done, rssKb: { idle: before.rssKb, early, end, peak: Math.max(...late) } };
    console.log(JSON.stringify(summary));

    assert.ok(
      tally.serversLost <= done.killed,
      `${tally.serversLost} clients lost their server, ${done.killed} were killed`,
    );
    assert.ok(end - early < RSS_BREATH_KB, `resident memory grew from ${early} to ${end} kB`);
    assert.ok(tally.answers > SECONDS * 100, `only ${tally.answers} answers`);
    for (const count of [tally.errors, tally.canceled, tally.vanished, done.killed, done.commands])
      assert.ok(count > 0);
    const faults = bouncer.log.text.split('\n').filter((line) => /\] FATAL |exception|internal error/.test(line));
    assert.deepEqual(faults.slice(0, 5), []);
  },
  SECONDS * 1000 + 90_000,
);
