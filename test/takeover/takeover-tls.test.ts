/*
 * Takeovers with TLS, to clients, to servers, and to both: every connection stays, and every byte arrives. The clients are in
 * the middle of all kinds of work, as in takeover-matrix.test.ts, and three new processes take over, one after the other.
 */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import type { ConnectionOptions, SecureVersion } from 'node:tls';
import { eventually, it, PgCluster } from '../harness';
import { ask } from '../harness/actor';
import { castOf, play } from '../harness/actors';
import { CertFolder } from '../harness/certs';
import { after, before } from '../harness/limits';
import { RawClient } from '../harness/raw-client';
import { type ChainOptions, type RebootChain, withRebootChain } from '../harness/reboot-chain';
import { castFor, optionsOf } from '../harness/reboot-fixtures';

const certs = new CertFolder();
const ca = certs.authority('ca');
const site = certs.issue(ca, 'site', { cn: 'localhost', san: 'DNS:localhost,IP:127.0.0.1' });
const trusting: ConnectionOptions = { ca: readFileSync(ca.cert, 'utf8'), servername: 'localhost' };

const TO_CLIENTS = { client_tls_sslmode: 'allow', client_tls_key_file: site.key, client_tls_cert_file: site.cert };
const TO_SERVERS = { server_tls_sslmode: 'verify-full', server_tls_ca_file: ca.cert };

let plain: PgCluster;
let safe: PgCluster;

before(async () => {
  plain = await PgCluster.start();
  safe = await PgCluster.start({ settings: { ssl: 'on', ssl_cert_file: site.cert, ssl_key_file: site.key } });
});
after(async () => {
  await plain.stop();
  await safe.stop();
});

interface Way {
  name: string;
  version: SecureVersion;
  clients: boolean;
  servers: boolean;
  /** OpenSSL's name of a suite */
  suite?: string;
}

function optionsFor({ version, clients, servers, suite }: Way): ChainOptions {
  const protocols = version.toLowerCase();
  const suites: Record<string, string> = {};
  if (suite !== undefined) {
    const kind = version === 'TLSv1.3' ? 'tls13_ciphers' : 'tls_ciphers';
    for (const side of ['client', 'server']) suites[`${side}_${kind}`] = suite;
  }
  const settings = {
    ...(clients ? { ...TO_CLIENTS, client_tls_protocols: protocols } : {}),
    ...(servers ? { ...TO_SERVERS, server_tls_protocols: protocols } : {}),
    ...suites,
    track_extra_parameters: 'IntervalStyle',
  };
  const options = optionsOf(servers ? safe : plain, 'transaction', settings);
  return clients ? { ...options, tls: trusting } : options;
}

async function tlsOf(chain: RebootChain, what: 'CLIENTS' | 'SERVERS'): Promise<string[]> {
  const rows = (await chain.show(what)).filter((row) => row.database !== 'pgbouncer');
  return rows.map((row) => String(row.tls)).sort();
}

async function survives(way: Way): Promise<void> {
  const pg = way.servers ? safe : plain;
  const starts = (): number => pg.log.count(/connection authorized: user=postgres database=\w+/);
  await withRebootChain(optionsFor(way), async (chain) => {
    await chain.start('ts');
    const cast = castFor(chain, 'transaction', (context) => castOf(context, true));
    await play(cast, async () => {
      await eventually('every query to have its server', async () => {
        const pools = (await chain.show('POOLS')).filter((row) => row.database === 'postgres');
        return pools.every((row) => Number(row.sv_login) === 0 && Number(row.cl_waiting) === 0);
      });
      const before = starts();
      const clients = await tlsOf(chain, 'CLIENTS');
      assert.equal(
        clients.some((tls) => tls.startsWith(`${way.version}/`)),
        way.clients,
      );
      for (let i = 0; i < 3; i++) await chain.reboot('ts');
      assert.equal(starts(), before, 'a reboot opened server connections');
      const servers = await tlsOf(chain, 'SERVERS');
      assert.ok(
        servers.length > 0 && servers.every((tls) => tls.startsWith(`${way.version}/`) === way.servers),
        String(servers),
      );
    });
    const warnings = chain.generations.flatMap((one) =>
      one.log.text.split('\n').filter((line) => / (WARNING|ERROR|FATAL) /.test(line)),
    );
    assert.deepEqual(warnings, []);
  });
}

for (const version of ['TLSv1.2', 'TLSv1.3'] as const) {
  for (const [name, clients, servers] of [
    ['clients', true, false],
    ['servers', false, true],
    ['clients and servers', true, true],
  ] as const) {
    const way = { name, version, clients, servers };
    it(`three takeovers in a row with ${version} to ${name} lose no byte`, () => survives(way));
  }
}

/** @returns whether a client may finish a handshake that it begins while the old process stops reading from idle clients */
async function finishesHandshake(): Promise<boolean> {
  let finished = false;
  const settings = { ...TO_CLIENTS, max_client_conn: 1000 };
  await withRebootChain({ cluster: plain, settings }, async (chain) => {
    const old = await chain.start('ts', { TSBOUNCER_TEST: '1', TSBOUNCER_TAKEOVER_STOP: 'give-resting' });
    const late = await RawClient.connect({ port: chain.port });
    // so many that it takes several turns of the loop; the first login shows that the connection before it is accepted
    for (let i = 0; i < 600; i++) assert.equal((await (await chain.raw()).login()).at(-1)?.type, 'Z');
    const next = chain.spawn('ts', ['-R']);
    await old.waitStopped();
    const shaking = late.shake({ ...trusting, ALPNProtocols: ['postgresql'] });
    const outcome = Promise.allSettled([shaking]);
    old.child.kill('SIGCONT');
    await next.waitUp();
    const [shaken] = await outcome;
    if (shaken.status === 'rejected') return;
    if ((await shaken.value.login()).at(-1)?.type !== 'Z') return;
    assert.equal(await ask(shaken.value, 'SELECT 1'), '1');
    finished = true;
  });
  return finished;
}

it('a handshake that begins while reading from idle clients stops is waited for', async () => {
  // on a busy machine, the half second for handshakes may pass while the old process is stopped
  for (let i = 0; i < 3; i++) if (await finishesHandshake()) return;
  assert.fail('every handshake was cut off');
});
