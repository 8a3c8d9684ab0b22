/*
 * Takeovers with TLS, part by part: every suite, certificates, handshakes and logins under way, and failures before
 * the new process owns anything.
 */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import type { ConnectionOptions } from 'node:tls';
import { eventually, it, PgCluster } from '../harness';
import { ask, ROWS } from '../harness/actor';
import { CertFolder, onlySuite, suiteSettings } from '../harness/certs';
import { recordsOf } from '../harness/handover-records';
import { after, before } from '../harness/limits';
import { cstring, errorFields, RawClient, SSL_REQUEST } from '../harness/raw-client';
import { type ChainOptions, otherVersion, type RebootChain, withRebootChain } from '../harness/reboot-chain';

const certs = new CertFolder();
const ca = certs.authority('ca');
const site = certs.issue(ca, 'site', { cn: 'localhost', san: 'DNS:localhost,IP:127.0.0.1' });
const ann = certs.issue(ca, 'ann', { cn: 'postgres' });
const trusting: ConnectionOptions = { ca: readFileSync(ca.cert, 'utf8'), servername: 'localhost' };

const TO_CLIENTS = {
  client_tls_sslmode: 'allow',
  client_tls_key_file: site.key,
  client_tls_cert_file: site.cert,
  client_tls_ca_file: ca.cert,
};
const TO_SERVERS = { server_tls_sslmode: 'verify-full', server_tls_ca_file: ca.cert };

let pg: PgCluster;
before(async () => {
  pg = await PgCluster.start({ settings: { ssl: 'on', ssl_cert_file: site.cert, ssl_key_file: site.key } });
});
after(() => pg.stop());

/** Runs `body` with a started pooler whose raw clients use TLS. */
async function withTls(
  settings: NonNullable<ChainOptions['settings']>,
  body: (chain: RebootChain) => Promise<void>,
  tls: ConnectionOptions = {},
): Promise<void> {
  const options = { cluster: pg, tls: { ...trusting, ...tls }, settings: { ...TO_CLIENTS, ...settings } };
  await withRebootChain(options, async (chain) => {
    await chain.start('ts');
    await body(chain);
  });
}

async function loggedIn(chain: RebootChain): Promise<RawClient> {
  const client = await chain.raw();
  assert.equal((await client.login({ database: 'postgres' })).at(-1)?.type, 'Z');
  return client;
}

/** A transaction stays open across the reboots, and long answers and queries go over the same connections. */
async function worksAcross(chain: RebootChain, reboots: number): Promise<void> {
  const client = await loggedIn(chain);
  const idle = await loggedIn(chain);
  await client.query('BEGIN');
  const pid = await ask(client, 'SELECT pg_backend_pid()');
  for (let i = 0; i < reboots; i++) {
    await chain.reboot('ts');
    assert.equal(await ask(client, 'SELECT pg_backend_pid()'), pid);
    assert.equal(
      (await client.query(`SELECT repeat('x', 1000) FROM generate_series(1, ${ROWS / 10})`)).length,
      ROWS / 10 + 3,
    );
    assert.equal(await ask(client, `SELECT length('${'y'.repeat(100_000)}')`), '100000');
  }
  await client.query('COMMIT');
  for (const one of [client, idle]) {
    assert.equal(await ask(one, 'SELECT 5'), '5');
    await one.end();
  }
}

async function shownTls(chain: RebootChain, what: 'CLIENTS' | 'SERVERS'): Promise<string[]> {
  const rows = (await chain.show(what)).filter((row) => row.database !== 'pgbouncer');
  return rows.map((row) => String(row.tls));
}

/* ---- suites ---- */

const SUITES_13 = ['TLS_AES_128_GCM_SHA256', 'TLS_AES_256_GCM_SHA384', 'TLS_CHACHA20_POLY1305_SHA256'];
/** PostgreSQL offers none of these for TLS 1.3. */
const SUITES_13_CLIENTS = ['TLS_AES_128_CCM_SHA256', 'TLS_AES_128_CCM_8_SHA256'];
const SUITES_12 = ['AES128-GCM-SHA256', 'AES256-GCM-SHA384', 'CHACHA20-POLY1305', 'AES128-CCM', 'AES256-CCM8'].map(
  (name) => `ECDHE-ECDSA-${name}`,
);

for (const suite of SUITES_13) {
  it(`${suite} to clients and servers goes on after a takeover`, () =>
    withTls({ ...TO_SERVERS, client_tls13_ciphers: suite, server_tls13_ciphers: suite }, async (chain) => {
      await worksAcross(chain, 2);
      for (const tls of await shownTls(chain, 'SERVERS')) assert.equal(tls, `TLSv1.3/${suite}`);
    }));
}

for (const suite of SUITES_13_CLIENTS) {
  it(`${suite} to clients goes on after a takeover`, () =>
    withTls(suiteSettings('client', suite), (chain) => worksAcross(chain, 2), { ciphers: onlySuite(suite) }));
}

for (const suite of SUITES_12) {
  it(`${suite} of TLS 1.2 to clients and servers goes on after a takeover`, () => {
    const settings: Record<string, string> = { ...TO_SERVERS };
    for (const side of ['client', 'server'] as const) {
      Object.assign(settings, suiteSettings(side, suite));
      settings[`${side}_tls_protocols`] = 'tlsv1.2';
    }
    return withTls(
      settings,
      async (chain) => {
        await worksAcross(chain, 2);
        for (const tls of await shownTls(chain, 'SERVERS')) assert.equal(tls, `TLSv1.2/${suite}`);
      },
      { ciphers: onlySuite(suite) },
    );
  });
}

/* ---- certificates, logins ---- */

it('a certificate login that has only begun is completed by the new process', () =>
  withTls(
    { client_tls_sslmode: 'verify-full', auth_type: 'cert' },
    async (chain) => {
      const [right, wrong, done] = [await chain.raw(), await chain.raw(), await loggedIn(chain)];
      for (let i = 0; i < 3; i++) await chain.reboot('ts');
      assert.equal((await right.login({ user: 'postgres', database: 'postgres' })).at(-1)?.type, 'Z');
      const refused = await wrong.login({ user: 'admin', database: 'postgres' });
      assert.equal(refused.at(-1)?.type, 'E');
      for (const client of [right, done]) {
        assert.equal(await ask(client, 'SELECT 1'), '1');
        await client.end();
      }
    },
    { cert: readFileSync(ann.cert), key: readFileSync(ann.key) },
  ));

it('handshakes under way get time to end, and connections made meanwhile are accepted by the new process', () =>
  withTls({}, async (chain) => {
    const slow = await RawClient.connect({ port: chain.port });
    assert.equal(await slow.request(SSL_REQUEST), 'S');
    const old = chain.now;
    const reboot = chain.reboot('ts');
    await old.log.wait(/HANDOVER command issued/);
    const late = RawClient.connect({ port: chain.port }).then((client) => client.secure(trusting));
    const clients = await Promise.all([slow.shake(trusting), late]);
    await reboot;
    assert.doesNotMatch(old.log.text, /cannot be handed over/);
    for (const client of clients) {
      assert.equal((await client.login({ database: 'postgres' })).at(-1)?.type, 'Z');
      assert.equal(await ask(client, 'SELECT 1'), '1');
      await client.end();
    }
  }));

it('a handshake that does not go on delays a reboot, and its client is closed', () =>
  withTls({}, async (chain) => {
    const stuck = await RawClient.connect({ port: chain.port });
    assert.equal(await stuck.request(SSL_REQUEST), 'S');
    const client = await loggedIn(chain);
    const old = chain.now;
    await chain.failReboot('ts', { TSBOUNCER_TEST: '1', TSBOUNCER_TAKEOVER_DIE: 'take-complete' });
    // accepts again
    await (await loggedIn(chain)).end();
    await chain.reboot('ts');
    assert.match(old.log.text, /1 connections cannot be handed over: 1 handshake under way/);
    assert.deepEqual(await stuck.until(''), []);
    assert.equal(await ask(client, 'SELECT 1'), '1');
    await client.end();
  }));

it('servers that were connected to under other server_tls settings are replaced', () =>
  withTls({ server_tls_sslmode: 'require' }, async (chain) => {
    const client = await loggedIn(chain);
    const pid = await ask(client, 'SELECT pg_backend_pid()');
    await chain.reboot('ts');
    assert.equal(await ask(client, 'SELECT pg_backend_pid()'), pid);
    await client.end();
    chain.write({ settings: { ...TO_CLIENTS, ...TO_SERVERS } });
    await chain.reboot('ts');
    await eventually('the server to be closed', async () => (await shownTls(chain, 'SERVERS')).length === 0);
  }));

/* ---- failures ---- */

for (const step of ['take-ahead', 'take-suspended', 'take-row', 'take-complete']) {
  it(`when the new process is killed at ${step}, TLS goes on in the old one, and later in a new one`, () =>
    withTls(TO_SERVERS, async (chain) => {
      const client = await loggedIn(chain);
      const idle = await loggedIn(chain);
      await client.query('BEGIN');
      for (let i = 0; i < 2; i++) {
        await chain.failReboot('ts', { TSBOUNCER_TEST: '1', TSBOUNCER_TAKEOVER_DIE: step });
        await chain.now.log.wait(/handover failed, resuming work/);
        assert.equal(await ask(client, 'SELECT 1'), '1');
      }
      await chain.reboot('ts');
      for (const one of [client, idle]) assert.equal(await ask(one, 'SELECT 2'), '2');
      await client.query('COMMIT');
    }));
}

it('when the old process is killed after it has described everything, TLS goes on in the new one', async () => {
  const options = { cluster: pg, tls: trusting, settings: { ...TO_CLIENTS, ...TO_SERVERS } };
  await withRebootChain(options, async (chain) => {
    const first = await chain.start('ts', { TSBOUNCER_TEST: '1', TSBOUNCER_TAKEOVER_DIE: 'give-described' });
    const client = await loggedIn(chain);
    await client.query('BEGIN');
    chain.generations.push(await chain.spawn('ts', ['-R']).waitUp());
    assert.equal((await first.waitEnd()).signal, 'SIGKILL');
    assert.equal(await ask(client, 'SELECT 3'), '3');
    await client.query('COMMIT');
  });
});

it('a transaction whose client does not read its result is not waited for: it can be handed over', () =>
  withTls({ ...TO_SERVERS, pool_mode: 'transaction', suspend_timeout: 20 }, async (chain) => {
    const client = await loggedIn(chain);
    await client.query('BEGIN');
    client.pause();
    const rows = 2000;
    await client.sendMessage('Q', cstring(`SELECT repeat('x', 10000) FROM generate_series(1, ${rows})`));
    // the pooler has records of the server that it has not decrypted
    await eventually('the pooler to stop reading from the server', async () =>
      (await chain.show('SOCKETS')).some((row) => row.database === 'postgres' && Number(row.send_avail) > 0),
    );
    const old = chain.now;
    await chain.reboot('ts');
    assert.doesNotMatch(old.log.text, /cannot be handed over/);
    client.resume();
    assert.equal((await client.until('Z')).length, rows + 3);
    await client.query('COMMIT');
    await client.end();
  }));

it('idle TLS clients are described ahead, and once more only if a record came or went since', () =>
  withTls({ pool_mode: 'transaction' }, async (chain) => {
    const clients = await Promise.all(Array.from({ length: 20 }, () => loggedIn(chain)));
    for (const client of clients) await ask(client, 'SELECT 1');
    const { ahead, frozen } = await recordsOf(chain, 2);
    assert.equal(ahead.filter((text) => text.startsWith('{"k":"ahead"') && text.includes('"tls":')).length, 20);
    assert.equal(frozen.filter((text) => text.includes('"state":"cl_active"')).length, 0);
    for (const client of clients) {
      assert.equal(await ask(client, 'SELECT 2'), '2');
      await client.end();
    }
  }));

it('a new process of an older version gets no TLS connections', () =>
  withTls({ pool_mode: 'transaction', server_tls_sslmode: 'disable' }, async (chain) => {
    const client = await loggedIn(chain);
    const { ahead, frozen } = await recordsOf(chain, 1);
    assert.equal(JSON.parse(ahead[0] ?? '').format, 1);
    assert.deepEqual(
      [...ahead, ...frozen].filter((text) => text.includes('"tls"')),
      [],
    );
    assert.match(chain.now.log.text, /1 connections cannot be handed over: 1 new process without support for TLS/);
    assert.equal(await ask(client, 'SELECT 1'), '1');
    await client.end();
  }));

// with TSBOUNCER_OTHER=/path/to/main.js, as in takeover-matrix.test.ts
if (otherVersion !== null) {
  it('another version takes over plain clients beside TLS clients, and the way back', () =>
    withTls({ pool_mode: 'transaction' }, async (chain) => {
      const secure = await loggedIn(chain);
      const plain = await chain.connect();
      for (const kind of ['other', 'ts', 'ts'] as const) {
        await chain.reboot(kind);
        assert.equal((await plain.query('SELECT 1 AS one')).rows[0].one, 1);
      }
      const kept = !/connections cannot be handed over/.test(chain.generations.map((one) => one.log.text).join('\n'));
      if (kept) {
        assert.equal(await ask(secure, 'SELECT 1'), '1');
      } else {
        const last = await secure.until('');
        assert.deepEqual(
          last.map((msg) => errorFields(msg).C),
          ['57P01'],
        );
      }
      const later = await loggedIn(chain);
      await chain.reboot('ts');
      assert.equal(await ask(later, 'SELECT 1'), '1');
      await plain.end();
    }));
}
