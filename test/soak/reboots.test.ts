/*
 * A day of reboots in small: REBOOTS (4; for a long run 100) new processes take over one after the other. Clients and
 * servers use TLS, in every cipher suite that a reboot keeps. Some clients stay from the first process to the last,
 * others come and go, cancel and vanish. No connection is lost, every byte is checked, and no process holds more than the
 * one before. SOAK_SEED repeats the choices of a run, as far as timing allows.
 */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import type { ConnectionOptions, SecureVersion } from 'node:tls';
import { it, PgCluster } from '../harness';
import { type Cert, CertFolder, onlySuite, suiteSettings } from '../harness/certs';
import { holding, lists } from '../harness/hostile/attack';
import { Random, seedFrom } from '../harness/hostile/random';
import { RawClient } from '../harness/raw-client';
import { type RebootChain, withRebootChain } from '../harness/reboot-chain';
import { newTally, SoakClient, type Tally } from './client';
import { SteadyClient } from './steady';

const REBOOTS = Number(process.env.REBOOTS ?? 4);
/** Most time that a reboot with its round takes, on a slow machine. */
const ROUND_MS_MAX = 20_000;
/**
 * Each process has a heap of its own, which the garbage collector may have made 16 MB larger than another's: that is all
 * that a few samples can tell. Of many, the smallest one of each half had no such luck. What a process takes over and never
 * gives up would come on top at every reboot.
 */
const RSS_BREATH_KB = REBOOTS < 40 ? 24 * 1024 : 4 * 1024;
/** The first processes have fewer statements and values to hand over than the later ones. */
const WARM_UP = 1 / 3;

const seed = seedFrom('SOAK_SEED');

/** A cipher suite by OpenSSL's name, with its version. */
interface Suite {
  name: string;
  version: SecureVersion;
  /** PostgreSQL can use it too */
  servers: boolean;
}

const suite12 = (name: string): Suite => ({ name, version: 'TLSv1.2', servers: true });
const suite13 = (name: string, servers: boolean): Suite => ({ name, version: 'TLSv1.3', servers });

/** By the type of the certificate's key. */
const SUITES: Record<'ec' | 'rsa', Suite[]> = {
  ec: [
    suite13('TLS_AES_128_GCM_SHA256', true),
    suite13('TLS_AES_256_GCM_SHA384', true),
    suite13('TLS_CHACHA20_POLY1305_SHA256', true),
    suite13('TLS_AES_128_CCM_SHA256', false),
    suite13('TLS_AES_128_CCM_8_SHA256', false),
    ...['AES128-GCM-SHA256', 'AES256-GCM-SHA384', 'CHACHA20-POLY1305'].map((name) => suite12(`ECDHE-ECDSA-${name}`)),
    ...['AES128-CCM', 'AES256-CCM', 'AES128-CCM8', 'AES256-CCM8'].map((name) => suite12(`ECDHE-ECDSA-${name}`)),
  ],
  rsa: [
    ...['AES128-GCM-SHA256', 'AES256-GCM-SHA384', 'CHACHA20-POLY1305'].map((name) => suite12(`ECDHE-RSA-${name}`)),
    ...['AES128-GCM-SHA256', 'CHACHA20-POLY1305', 'AES256-CCM'].map((name) => suite12(`DHE-RSA-${name}`)),
    ...['AES128-GCM-SHA256', 'AES256-GCM-SHA384', 'AES128-CCM'].map(suite12),
    suite13('TLS_AES_256_GCM_SHA384', true),
  ],
};

const certs = new CertFolder();
const ca = certs.authority('ca');

/** The suites of a protocol version in the form of the settings. */
function listOf(suites: readonly Suite[], version: SecureVersion): string {
  return suites
    .filter((suite) => suite.version === version)
    .map(({ name }) => name)
    .join(':');
}

/** [pgbouncer]: clients may use every suite, servers only one. */
function settingsFor(site: Cert, suites: readonly Suite[], ofServers: Suite): Record<string, string | number> {
  return {
    pool_mode: 'transaction',
    default_pool_size: 60,
    max_client_conn: 1000,
    log_connections: 0,
    log_disconnections: 0,
    client_tls_sslmode: 'allow',
    client_tls_key_file: site.key,
    client_tls_cert_file: site.cert,
    client_tls_ciphers: onlySuite(listOf(suites, 'TLSv1.2')),
    client_tls13_ciphers: listOf(suites, 'TLSv1.3'),
    server_tls_sslmode: 'verify-full',
    server_tls_ca_file: ca.cert,
    server_tls_protocols: ofServers.version.toLowerCase(),
    ...suiteSettings('server', ofServers.name),
  };
}

function optionsOf({ name, version }: Suite): ConnectionOptions {
  const trusting = { ca: readFileSync(ca.cert, 'utf8'), servername: 'localhost' };
  return { ...trusting, ciphers: onlySuite(name), minVersion: version, maxVersion: version };
}

async function connectWith(chain: RebootChain, suite: Suite): Promise<RawClient> {
  return (await RawClient.connect({ port: chain.port })).secure(optionsOf(suite));
}

async function stayers(chain: RebootChain, suites: readonly Suite[]): Promise<SteadyClient[]> {
  const clients: SteadyClient[] = [];
  for (const suite of suites) {
    for (let n = 0; n < 3; n++) {
      const conn = await connectWith(chain, suite);
      assert.equal((await conn.login({ database: 'postgres' })).at(-1)?.type, 'Z');
      clients.push(new SteadyClient(conn, suite.name, n, new Random(seed + clients.length)));
    }
  }
  return clients;
}

/** What one process holds besides its connections. */
interface Sample {
  descriptors: number;
  rssKb: number;
}

async function sample(chain: RebootChain): Promise<Sample> {
  const now = lists((await chain.show('LISTS')) as Record<string, string | number>[]);
  const { descriptors, rssKb } = holding(chain.now.pid);
  // the console's own connection is closed by now
  return { descriptors: descriptors - (Number(now.used_clients) - 1) - Number(now.used_servers), rssKb };
}

/** Clients that come and go until the round is over. */
function visit(chain: RebootChain, suites: readonly Suite[], round: number, tally: Tally, over: () => boolean) {
  return suites.map((suite, n) => {
    const pooler = { raw: () => connectWith(chain, suite) };
    return new SoakClient(pooler, n, new Random(seed + 1000 * round + n), tally, over).run();
  });
}

/** One reboot, under load from before its start until after its end. */
async function round(
  chain: RebootChain,
  clients: readonly SteadyClient[],
  visiting: (over: () => boolean) => Promise<void>[],
): Promise<void> {
  let done = false;
  const over = () => done;
  const work = Promise.all([...clients.map((client) => client.round(over)), ...visiting(over)]);
  const reboot = chain.reboot('ts').finally(() => {
    done = true;
  });
  await Promise.all([work, reboot]);
}

function checkSamples(samples: readonly Sample[]): void {
  const others = samples.map(({ descriptors }) => descriptors);
  assert.deepEqual(new Set(others), new Set(others.slice(0, 1)), `descriptors beside connections: ${others}`);
  const late = samples.slice(Math.floor(samples.length * WARM_UP)).map(({ rssKb }) => rssKb);
  const half = late.length >> 1;
  const [early, end] = [Math.min(...late.slice(0, half)), Math.min(...late.slice(half))];
  assert.ok(end - early < RSS_BREATH_KB, `resident memory grew from ${early} to ${end} kB`);
}

async function manyReboots(keyType: 'ec' | 'rsa'): Promise<void> {
  const suites = SUITES[keyType];
  const ofServers = suites.filter(({ servers }) => servers);
  const san = 'DNS:localhost,IP:127.0.0.1';
  const site = certs.issue(ca, keyType, { cn: 'localhost', san, keyType });
  const quiet = { log_connections: 'off', log_disconnections: 'off' };
  const pg = await PgCluster.start({
    settings: { ssl: 'on', ssl_cert_file: site.cert, ssl_key_file: site.key, ...quiet },
  });
  const first = ofServers[0] as Suite;
  await withRebootChain({ cluster: pg, settings: settingsFor(site, suites, first) }, async (chain) => {
    await chain.start('ts');
    const clients = await stayers(chain, suites);
    const tally = newTally();
    const samples: Sample[] = [];
    for (let i = 0; i < REBOOTS; i++) {
      const suite = ofServers[Math.floor((i * ofServers.length) / REBOOTS)] as Suite;
      chain.write({ settings: settingsFor(site, suites, suite) });
      await round(chain, clients, (over) => visit(chain, suites, i, tally, over));
      // needs a server of the new suite if there is none yet
      await chain.sql('SELECT 1');
      samples.push(await sample(chain));
      const servers = await chain.show('SERVERS');
      assert.ok(
        servers.some(({ tls }) => String(tls).startsWith(`${suite.version}/${suite.name}`)),
        suite.name,
      );
    }
    for (const client of clients) await client.end();
    const answers = clients.reduce((sum, client) => sum + client.answers, 0);
    console.log(
      JSON.stringify({ keyType, reboots: REBOOTS, steady: clients.length, steadyAnswers: answers, ...tally }),
    );
    console.log(JSON.stringify({ rssKb: samples.map(({ rssKb }) => rssKb), descriptors: samples[0]?.descriptors }));
    assert.equal(tally.serversLost + tally.refused, 0);
    assert.ok(tally.answers > REBOOTS && answers > REBOOTS * suites.length);
    checkSamples(samples);
    const warnings = chain.generations.flatMap((one) =>
      one.log.text.split('\n').filter((line) => / FATAL |cannot be handed over|exception|internal error/.test(line)),
    );
    assert.deepEqual(warnings.slice(0, 5), []);
  });
  await pg.stop();
}

for (const keyType of ['ec', 'rsa'] as const) {
  it(
    `${REBOOTS} reboots in a row, with every suite for certificates with ${keyType} keys`,
    () => manyReboots(keyType),
    60_000 + REBOOTS * ROUND_MS_MAX,
  );
}
