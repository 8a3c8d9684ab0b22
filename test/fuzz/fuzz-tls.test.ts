/*
 * Broken TLS handshakes against a running pooler: mutations of a real ClientHello, direct and behind an SSLRequest, in
 * pieces. Afterwards a valid handshake succeeds, and nothing is left behind. FUZZ_SEED as in fuzz.test.ts.
 */

import assert from 'node:assert/strict';
import { type Duplex, Transform } from 'node:stream';
import { connect as tlsConnect } from 'node:tls';
import { Bouncer, eventually, it, PgCluster } from '../harness';
import { CertFolder } from '../harness/certs';
import { eachCase, holding } from '../harness/hostile/attack';
import { Random } from '../harness/hostile/random';
import { after, before } from '../harness/limits';
import { SSL_REQUEST } from '../harness/raw-client';

const CASES = 400;
const AT_ONCE = 8;
const seed = process.env.FUZZ_SEED ? Number(process.env.FUZZ_SEED) >>> 0 : 1;
const certs = new CertFolder();
const ca = certs.authority('ca');
const site = certs.issue(ca, 'site', { cn: 'localhost', san: 'DNS:localhost,IP:127.0.0.1' });

let cluster: PgCluster;
let bouncer: Bouncer;

before(async () => {
  cluster = await PgCluster.start();
  bouncer = await Bouncer.start({
    cluster,
    settings: {
      client_tls_sslmode: 'allow',
      client_tls_key_file: site.key,
      client_tls_cert_file: site.cert,
      client_tls_ca_file: ca.cert,
      log_connections: 0,
      log_disconnections: 0,
      client_login_timeout: 5,
    },
  });
});

after(async () => {
  await bouncer?.stop();
  await cluster?.stop();
});

/** The first flight of Node's own client. */
function clientHello(minVersion: 'TLSv1.2' | 'TLSv1.3', maxVersion: 'TLSv1.2' | 'TLSv1.3'): Promise<Buffer> {
  return new Promise((settle) => {
    const wire = new Transform({
      transform(chunk, _encoding, done) {
        settle(chunk);
        done();
      },
    });
    const tls = tlsConnect({ socket: wire as Duplex, minVersion, maxVersion, ALPNProtocols: ['postgresql'] });
    tls.on('error', () => {});
  });
}

it(`${CASES} broken TLS handshakes harm no other client`, async () => {
  const hellos = [await clientHello('TLSv1.2', 'TLSv1.2'), await clientHello('TLSv1.3', 'TLSv1.3')];
  const ssl = { rejectUnauthorized: false };
  assert.equal((await bouncer.sql('SELECT 1 AS one', { ssl })).rows[0].one, 1);
  const before = holding(bouncer.pid);
  await eachCase(CASES, AT_ONCE, async (index) => {
    const random = new Random(seed + index * 7919);
    const client = await bouncer.raw();
    let bytes = random.pick(hellos);
    if (!random.one(8)) bytes = random.mutate(bytes);
    if (random.one(5)) bytes = Buffer.concat([bytes, random.bytes(random.below(2000))]);
    if (random.one(5)) bytes = bytes.subarray(0, random.below(bytes.length));
    if (random.one(2)) assert.equal(await client.request(SSL_REQUEST), 'S');
    const step = random.one(3) ? Math.max(1, random.below(bytes.length)) : bytes.length;
    for (let at = 0; at < bytes.length; at += step) await client.send(bytes.subarray(at, at + step));
    client.resume();
    if (random.one(3)) client.socket.resetAndDestroy();
    else client.socket.end();
    await client.closed;
  });
  assert.equal((await bouncer.sql('SELECT 1 AS one', { ssl })).rows[0].one, 1);
  await eventually('descriptors to be closed', () => holding(bouncer.pid).descriptors <= before.descriptors + 2);
  const faults = bouncer.log.text.split('\n').filter((line) => /\] FATAL |exception|internal error/.test(line));
  assert.deepEqual(faults, []);
});
