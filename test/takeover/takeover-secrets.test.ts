/*
 * The secrets of TLS connections in a takeover: which process has them in its memory, and when; that no log has them; and
 * that the kernel writes no core dump. The clients' key logs tell the secrets.
 */

import assert from 'node:assert/strict';
import { readFileSync, statSync } from 'node:fs';
import type { ConnectionOptions } from 'node:tls';
import { spawnAs } from '../../tools/unprivileged';
import { eventually, installed, it, itUnless, PgCluster, startProgram, tempDir, user } from '../harness';
import { ask } from '../harness/actor';
import { CertFolder } from '../harness/certs';
import { after, before, runSync } from '../harness/limits';
import { countInMemory, noForeignMemory } from '../harness/memory';
import { RawClient, SSL_REQUEST } from '../harness/raw-client';
import { PoolerProcess, type RebootChain, withRebootChain } from '../harness/reboot-chain';
import { Capture, expandLabel, keyBlock, readHellos, secretsOf } from '../harness/tls-capture';

const certs = new CertFolder();
const ca = certs.authority('ca');
const site = certs.issue(ca, 'site', { cn: 'localhost', san: 'DNS:localhost,IP:127.0.0.1' });
const trusting: ConnectionOptions = { ca: readFileSync(ca.cert, 'utf8'), servername: 'localhost' };
const SETTINGS = { client_tls_sslmode: 'allow', client_tls_key_file: site.key, client_tls_cert_file: site.cert };
const SUITES = { 'TLSv1.2': 'ECDHE-ECDSA-AES128-GCM-SHA256', 'TLSv1.3': 'TLS_AES_128_GCM_SHA256' } as const;

let pg: PgCluster;
before(async () => {
  pg = await PgCluster.start();
});
const captures: Capture[] = [];
after(async () => {
  for (const capture of captures) await capture.stop();
  await pg.stop();
});

/* ---- what is secret ---- */

type Secrets = Record<string, Buffer>;

interface Client {
  raw: RawClient;
  secrets: Secrets;
}

/** A client with AES-128-GCM and SHA-256 that has run a query, and the secrets of its connection. */
async function clientOf(chain: RebootChain, version: keyof typeof SUITES): Promise<Client> {
  const capture = await Capture.start(chain.port);
  captures.push(capture);
  const plain = await RawClient.connect({ port: capture.port });
  assert.equal(await plain.request(SSL_REQUEST), 'S');
  const options = { ...trusting, minVersion: version, maxVersion: version, ciphers: SUITES[version] };
  let keyLog = '';
  const raw = await plain.shake(options, (line) => {
    keyLog += line.toString('latin1');
  });
  assert.equal((await raw.login({ database: 'postgres' })).at(-1)?.type, 'Z');
  assert.equal(await ask(raw, 'SELECT 1'), '1');
  const [sent] = capture.connections;
  const hellos = readHellos(
    Buffer.concat(sent?.client ?? []).subarray(8),
    Buffer.concat(sent?.pooler ?? []).subarray(1),
  );
  const logged = secretsOf(keyLog, hellos.clientRandom);
  const secrets: Secrets = {};
  for (const end of ['CLIENT', 'SERVER']) {
    const secret = logged[`${end}_TRAFFIC_SECRET_0`];
    if (secret === undefined) continue;
    secrets[`secret of the ${end}`] = secret;
    secrets[`key of the ${end}`] = expandLabel('sha256', secret, 'key', 16);
  }
  if (logged.CLIENT_RANDOM !== undefined) {
    const keys = keyBlock('sha256', logged.CLIENT_RANDOM, hellos.clientRandom, hellos.serverRandom, 32);
    Object.assign(secrets, { 'master secret': logged.CLIENT_RANDOM, 'client key': keys.subarray(0, 16) });
    secrets['server key'] = keys.subarray(16);
  }
  return { raw, secrets };
}

const versions = ['TLSv1.2', 'TLSv1.3'] as const;

/* ---- memory ---- */

const itMemory = itUnless(noForeignMemory());

/** The secrets that a process has more than `most` times, with their numbers. */
function excess(pid: number, secrets: Secrets, most: number): [string, number][] {
  return Object.entries(countInMemory(pid, secrets)).filter(([, count]) => count > most);
}

for (const version of versions) {
  itMemory(`${version}: the old process has no secret after its end of the handover, and no buffer keeps one`, () =>
    withRebootChain({ cluster: pg, settings: SETTINGS }, async (chain) => {
      const old = await chain.start('ts', { TSBOUNCER_TEST: '1', TSBOUNCER_TAKEOVER_STOP: 'ended' });
      const { raw, secrets } = await clientOf(chain, version);
      const before = countInMemory(old.pid, secrets);
      assert.ok(
        Object.values(before).every((count) => count > 0),
        JSON.stringify(before),
      );
      const next = chain.spawn('ts', ['-R']);
      chain.generations.push(next);
      const stopped = () => /^State:\s+T/m.test(readFileSync(`/proc/${old.pid}/status`, 'latin1'));
      await eventually('the old process to stop at its end', stopped);
      assert.equal(await ask(raw, 'SELECT 2'), '2');
      assert.deepEqual(excess(old.pid, secrets, 0), [], 'in the old process');
      // the session, and the key in its cipher
      assert.deepEqual(excess(next.pid, secrets, 1), [], 'in the new process');
      process.kill(old.pid, 'SIGCONT');
      await next.waitUp();
      await raw.end();
      await eventually('the pooler to forget the client', () => excess(next.pid, secrets, 0).length === 0);
    }),
  );
}

itMemory('a handover that fails leaves no copy behind', () =>
  withRebootChain({ cluster: pg, settings: SETTINGS }, async (chain) => {
    const old = await chain.start('ts');
    const { raw, secrets } = await clientOf(chain, 'TLSv1.3');
    const before = countInMemory(old.pid, secrets);
    for (const step of ['take-ahead', 'take-row', 'take-complete']) {
      await chain.failReboot('ts', { TSBOUNCER_TEST: '1', TSBOUNCER_TAKEOVER_DIE: step });
      assert.equal(await ask(raw, 'SELECT 1'), '1');
      assert.deepEqual(countInMemory(old.pid, secrets), before, step);
    }
    await raw.end();
    await eventually('the pooler to forget the client', () => excess(old.pid, secrets, 0).length === 0);
  }),
);

/* ---- logs ---- */

for (const version of versions) {
  it(`${version}: no log has a secret, however verbose`, () =>
    withRebootChain({ cluster: pg, settings: { ...SETTINGS, verbose: 3 } }, async (chain) => {
      await chain.start('ts');
      const { raw, secrets } = await clientOf(chain, version);
      for (let i = 0; i < 2; i++) {
        await chain.failReboot('ts', { TSBOUNCER_TEST: '1', TSBOUNCER_TAKEOVER_DIE: 'take-complete' });
        await chain.reboot('ts');
      }
      assert.equal(await ask(raw, 'SELECT 1'), '1');
      await raw.end();
      for (const { log } of chain.generations) {
        assert.match(log.text, / NOISE /);
        for (const [name, bytes] of Object.entries(secrets)) {
          const texts = (['hex', 'base64', 'base64url', 'latin1'] as const).map((how) => bytes.toString(how));
          for (const text of [...texts, bytes.toString('hex').toUpperCase()])
            assert.equal(log.text.includes(text), false, name);
        }
      }
    }));
}

/* ---- core dumps ---- */

/** The kernel gives the files of a process without core dumps to root. */
function mayDump(pid: number): boolean {
  return statSync(`/proc/${pid}/status`).uid !== 0;
}

it('core_dumps decides whether the kernel may write core dumps, at once and after a takeover', () =>
  withRebootChain({ cluster: pg }, async (chain) => {
    await chain.start('ts', { TSBOUNCER_CORE_DUMPS: undefined });
    assert.equal(mayDump(chain.now.pid), false);
    for (const core_dumps of [1, 0]) {
      chain.write({ settings: { core_dumps } });
      process.kill(chain.now.pid, 'SIGHUP');
      await eventually('the setting to be applied', () => mayDump(chain.now.pid) === (core_dumps === 1));
      await chain.reboot('ts', { TSBOUNCER_CORE_DUMPS: undefined });
      assert.equal(mayDump(chain.now.pid), core_dumps === 1);
    }
    await chain.reboot('ts', { TSBOUNCER_CORE_DUMPS: '1' });
    assert.equal(mayDump(chain.now.pid), false);
    chain.write();
    await chain.reboot('ts', { TSBOUNCER_CORE_DUMPS: '1' });
    assert.equal(mayDump(chain.now.pid), true);
  }));

/** Reads a line, then makes the program given to it crash; says how the program ended. */
const CRASHING = 'ulimit -c unlimited; exec 3<&0; (read -r line <&3; kill -ABRT "$(cat "$0")") & "$@"; wait';
const DUMPED = /\(core dumped\)/;

/** Why no core dump can be observed; null if one can. */
function noCoreDumps(): string | null {
  if (process.env.TSBOUNCER_PRELOAD !== undefined) return 'sanitizers switch core dumps off';
  const crash = 'ulimit -c unlimited; sh -c \'kill -ABRT "$$"\'; true';
  const dir = tempDir('core');
  const { stderr } = runSync('sh', ['-c', crash], { cwd: dir, ...spawnAs(user) });
  if (DUMPED.test(stderr)) return null;
  return `the kernel writes no core dumps here: core_pattern is ${readFileSync('/proc/sys/kernel/core_pattern', 'latin1').trim()}`;
}

itUnless(noCoreDumps())('a process that crashes leaves no core dump', async () => {
  for (const core_dumps of [0, 1]) {
    await withRebootChain({ cluster: pg, settings: { core_dumps } }, async (chain) => {
      const { node, mainJs } = installed();
      const shell = startProgram('sh', ['-c', CRASHING, chain.pidfile, node, mainJs, chain.ini], {
        cwd: chain.dir,
        stdio: ['pipe', 'ignore', 'pipe'],
        ...spawnAs(user),
      });
      const crashing = new PoolerProcess('ts', shell);
      try {
        await crashing.waitUp();
      } finally {
        shell.stdin?.end();
      }
      await crashing.waitEnd();
      assert.match(crashing.log.text, /Abort/);
      assert.equal(DUMPED.test(crashing.log.text), core_dumps === 1);
    });
  }
});
