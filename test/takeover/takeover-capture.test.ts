/*
 * TLS connections across takeovers, as a packet capture sees them: with the client's key log, every record opens with the
 * next number of its key, and no nonce is used twice. Another implementation reads the records (tls-capture.ts).
 */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import type { ConnectionOptions } from 'node:tls';
import { it, PgCluster } from '../harness';
import { ask } from '../harness/actor';
import { CertFolder, onlySuite, suiteSettings } from '../harness/certs';
import { after, before } from '../harness/limits';
import { RawClient, SSL_REQUEST } from '../harness/raw-client';
import { withRebootChain } from '../harness/reboot-chain';
import { Capture, readCapture } from '../harness/tls-capture';

const certs = new CertFolder();
const ca = certs.authority('ca');
const site = certs.issue(ca, 'site', { cn: 'localhost', san: 'DNS:localhost,IP:127.0.0.1' });
const trusting: ConnectionOptions = { ca: readFileSync(ca.cert, 'utf8'), servername: 'localhost' };
const SETTINGS = { client_tls_sslmode: 'require', client_tls_key_file: site.key, client_tls_cert_file: site.cert };

const SUITES = {
  'TLSv1.3': [
    'TLS_AES_128_GCM_SHA256',
    'TLS_AES_256_GCM_SHA384',
    'TLS_CHACHA20_POLY1305_SHA256',
    'TLS_AES_128_CCM_SHA256',
    'TLS_AES_128_CCM_8_SHA256',
  ],
  'TLSv1.2': ['AES128-GCM-SHA256', 'AES256-GCM-SHA384', 'CHACHA20-POLY1305', 'AES128-CCM', 'AES256-CCM8'].map(
    (name) => `ECDHE-ECDSA-${name}`,
  ),
} as const;
const REBOOTS = 3;
/** Several records. */
const LONG = `SELECT repeat('x', 100000)`;

let pg: PgCluster;
before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

for (const version of ['TLSv1.3', 'TLSv1.2'] as const) {
  for (const suite of SUITES[version]) {
    it(`${suite}: the records of a connection are consecutive across ${REBOOTS} takeovers`, () => {
      const settings = { ...SETTINGS, ...suiteSettings('client', suite) };
      return withRebootChain({ cluster: pg, settings }, async (chain) => {
        await chain.start('ts');
        const capture = await Capture.start(chain.port);
        const plain = await RawClient.connect({ port: capture.port });
        assert.equal(await plain.request(SSL_REQUEST), 'S');
        const options = { ...trusting, minVersion: version, maxVersion: version, ciphers: onlySuite(suite) };
        let keyLog = '';
        const client = await plain.shake(options, (line) => {
          keyLog += line.toString('latin1');
        });
        await client.login({ database: 'postgres' });
        for (let i = 0; i < REBOOTS; i++) {
          assert.equal((await ask(client, LONG))?.length, 100_000);
          // one takeover in the middle of a query
          const under = i === 1 ? ask(client, "SELECT pg_sleep(1)::text || 'slept'") : null;
          await chain.reboot('ts');
          if (under !== null) assert.equal(await under, 'slept');
          assert.equal(await ask(client, `SELECT 'after ${i}'`), `after ${i}`);
        }
        await client.end();
        const [captured] = capture.connections;
        assert.ok(captured !== undefined);
        const said = readCapture(captured, keyLog);
        await capture.stop();
        for (const { nonces, records, alerts } of [said.client, said.pooler]) {
          assert.ok(records > 2 * REBOOTS, `${records} records`);
          assert.ok(nonces.length > 0 && nonces.every((used) => used.size > 0));
          // close_notify, at the end only
          for (const alert of alerts) assert.deepEqual([...alert], [1, 0]);
          assert.ok(alerts.length <= 1);
        }
        for (let i = 0; i < REBOOTS; i++) assert.ok(said.pooler.data.includes(`after ${i}`));
        assert.ok(said.pooler.data.length > REBOOTS * 100_000);
      });
    });
  }
}
