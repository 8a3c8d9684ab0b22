/*
 * TLS connections that a new process cannot continue: their transactions get time to end before the old process exits,
 * their clients are told why they are closed, and the log counts them. If the handover fails, nothing has happened to them.
 * Between tsbouncer and PgBouncer, all TLS connections are such connections, as between two PgBouncers.
 */

import assert from 'node:assert/strict';
import type { ConnectionOptions } from 'node:tls';
import { eventually, it, itUnless, noOriginal, PgCluster } from '../harness';
import { ask, rowsOf } from '../harness/actor';
import { waitingProcess } from '../harness/handover-records';
import { after, before } from '../harness/limits';
import { cstring, errorFields, letters, RawClient } from '../harness/raw-client';
import { type ChainOptions, type Kind, type RebootChain, withRebootChain } from '../harness/reboot-chain';
import { TlsPlace } from '../harness/tls-place';

const place = new TlsPlace();
const CBC = 'ECDHE-ECDSA-AES128-SHA';
const AEAD = 'ECDHE-ECDSA-AES128-GCM-SHA256';
const WHY = 'cipher suite without AEAD';

let pg: PgCluster;
before(async () => {
  pg = await PgCluster.start({ settings: place.ofServers });
});
after(() => pg.stop());

async function withTls(settings: ChainOptions['settings'], body: (chain: RebootChain) => Promise<void>): Promise<void> {
  const own = { pool_mode: 'transaction', server_tls_sslmode: 'disable', client_tls_ciphers: `${CBC}:${AEAD}` };
  const options = { cluster: pg, settings: { ...place.toClients, ...own, ...settings } };
  await withRebootChain(options, async (chain) => {
    await chain.start('ts');
    await body(chain);
  });
}

/** A client that has logged in with that suite of TLS 1.2, or with TLS 1.3. */
async function clientOf(chain: RebootChain, suite: string | null): Promise<RawClient> {
  const tls: ConnectionOptions = { ...place.trusting };
  if (suite !== null) Object.assign(tls, { maxVersion: 'TLSv1.2', ciphers: suite });
  const client = await (await RawClient.connect({ port: chain.port })).secure(tls);
  assert.equal((await client.login({ database: 'postgres' })).at(-1)?.type, 'Z');
  return client;
}

/** Checks that the client is told the reason, and that its connection then ends properly. */
async function isTold(client: RawClient, why: string = WHY): Promise<void> {
  const last = await client.until('');
  assert.equal(letters(last), 'E');
  const { S, C, M } = errorFields(last[0] as (typeof last)[0]);
  assert.deepEqual([S, C, M], ['FATAL', '57P01', `connection cannot be handed over: ${why}`]);
  assert.equal(client.error, null);
}

it('idle clients that cannot be handed over are told why at the end, and the log counts them by reason', () =>
  withTls({}, async (chain) => {
    const kept = [await clientOf(chain, null), await clientOf(chain, AEAD)];
    const closed = [await clientOf(chain, CBC), await clientOf(chain, CBC)];
    const from = chain.now;
    await chain.reboot('ts');
    assert.match(from.log.text, new RegExp(`WARNING handover: 2 connections cannot be handed over: 2 ${WHY}`));
    assert.equal(from.log.count(new RegExp(`closing because: connection cannot be handed over: ${WHY}`)), 2);
    for (const client of closed) await isTold(client);
    for (const client of kept) {
      assert.equal(await ask(client, 'SELECT 1'), '1');
      await client.end();
    }
  }));

it('a transaction that cannot be handed over is completed in the old process, while all others are served', () =>
  withTls({}, async (chain) => {
    const [busy, idle, other] = [await clientOf(chain, CBC), await clientOf(chain, CBC), await clientOf(chain, null)];
    await busy.query('BEGIN');
    await busy.query('CREATE TEMP TABLE mine ON COMMIT DROP AS SELECT 7 AS x');
    const old = chain.now;
    const reboot = chain.reboot('ts');
    await old.log.wait(/handover: waiting for 1 clients that cannot be handed over/);
    // held: it begins nothing that would be cut off
    await idle.sendMessage('Q', cstring("SELECT 'never'"));
    for (let i = 0; i < 3; i++) {
      assert.equal(await ask(busy, 'SELECT x FROM mine'), '7');
      assert.equal(await ask(other, 'SELECT 2'), '2');
      await (await clientOf(chain, null)).end();
    }
    assert.equal(letters(await busy.query('COMMIT')), 'CZ');
    await reboot;
    await isTold(busy);
    // it gets the error, or a reset because its query has not been read
    assert.ok(['E', ''].includes(letters(await idle.until(''))));
    assert.equal(await ask(other, 'SELECT 3'), '3');
    assert.doesNotMatch(old.log.text, /handover failed/);
  }));

it('a transaction that outlasts suspend_timeout is closed with the reason, not before', () =>
  withTls({ suspend_timeout: 2 }, async (chain) => {
    const busy = await clientOf(chain, CBC);
    await busy.query('BEGIN');
    const begun = performance.now();
    await chain.reboot('ts');
    assert.ok(performance.now() - begun > 1900);
    await isTold(busy);
  }));

it('for a new process of an older version, all TLS transactions get time to end; it learns that it has to wait', () =>
  withTls({ suspend_timeout: 10 }, async (chain) => {
    const busy = await clientOf(chain, null);
    await busy.query('BEGIN');
    const { next, recordUntil } = await waitingProcess(chain, 1);
    assert.equal(letters(await busy.query('COMMIT')), 'CZ');
    await recordUntil('end');
    await next.until('Z');
    await next.sendMessage('Q', cstring('SHUTDOWN;'));
    await isTold(busy, 'new process without support for TLS');
    assert.equal((await chain.now.waitEnd()).code, 0);
  }));

it('a handover that fails closes no connection, and held clients go on', () =>
  withTls({}, async (chain) => {
    const [busy, idle] = [await clientOf(chain, CBC), await clientOf(chain, CBC)];
    await busy.query('BEGIN');
    const next = chain.spawn('ts', ['-R']);
    await chain.now.log.wait(/waiting for 1 clients/);
    await idle.sendMessage('Q', cstring("SELECT 'held'"));
    await next.kill('SIGKILL');
    assert.deepEqual(rowsOf(await idle.until('Z')), [['held']]);
    assert.equal(letters(await busy.query('COMMIT')), 'CZ');
    // and once more, frozen
    await chain.failReboot('ts', { TSBOUNCER_TEST: '1', TSBOUNCER_TAKEOVER_DIE: 'take-complete' });
    for (const client of [busy, idle]) assert.equal(await ask(client, 'SELECT 4'), '4');
    await chain.reboot('ts');
    for (const client of [busy, idle]) await isTold(client);
  }));

it('a client whose server cannot be handed over completes its transaction, and goes on in the new process', () =>
  withTls({ ...place.toServers, server_tls_protocols: 'tlsv1.2', server_tls_ciphers: CBC }, async (chain) => {
    const [busy, idle] = [await clientOf(chain, null), await clientOf(chain, AEAD)];
    await busy.query('BEGIN');
    const pid = await ask(busy, 'SELECT pg_backend_pid()');
    const reboot = chain.reboot('ts');
    await chain.now.log.wait(/waiting for 1 clients/);
    assert.equal(await ask(busy, 'SELECT pg_backend_pid()'), pid);
    assert.equal(letters(await busy.query('COMMIT')), 'CZ');
    await reboot;
    await eventually('the old server to be closed', async () => {
      const { rowCount } = await pg.sql(`SELECT 1 FROM pg_stat_activity WHERE pid = ${pid}`);
      return rowCount === 0;
    });
    for (const client of [busy, idle]) {
      assert.notEqual(await ask(client, 'SELECT pg_backend_pid()'), pid);
      await client.end();
    }
  }));

/* ---- from and to PgBouncer ---- */

const ways: [string, Kind, Kind][] = [
  ['PgBouncer to PgBouncer, for comparison', 'c', 'c'],
  ['PgBouncer to tsbouncer', 'c', 'ts'],
  ['tsbouncer to PgBouncer', 'ts', 'c'],
];

/** Clients with TLS and without, idle and in a transaction; with TLS to servers, or without. */
async function besideTls(from: Kind, to: Kind, toServers: ChainOptions['settings']): Promise<void> {
  const settings = { ...place.toClients, pool_mode: 'transaction', suspend_timeout: 3, ...toServers };
  await withRebootChain({ cluster: pg, settings }, async (chain) => {
    await chain.start(from);
    const plain = [await chain.raw(), await chain.raw()];
    for (const client of plain) assert.equal((await client.login()).at(-1)?.type, 'Z');
    const secure = [await clientOf(chain, null), await clientOf(chain, null)];
    const linked = toServers?.server_tls_sslmode === 'disable' ? [plain[1], secure[1]] : [secure[1]];
    for (const client of linked) await client?.query('BEGIN');
    await chain.reboot(to);
    // without a word in the middle of a message, and nothing more after it
    for (const client of secure) assert.ok(['', 'E'].includes(letters(await client.until(''))));
    for (const client of plain) {
      assert.equal(await ask(client, 'SELECT 1'), '1');
      await client.end();
    }
    const later = await clientOf(chain, null);
    assert.equal(await ask(later, 'SELECT 2'), '2');
    await later.end();
  });
}

for (const [name, from, to] of ways) {
  itUnless(noOriginal)(`plain clients stay and TLS clients are closed: ${name}`, () =>
    besideTls(from, to, { server_tls_sslmode: 'disable' }),
  );
  itUnless(noOriginal)(`idle plain clients stay if servers use TLS: ${name}`, () =>
    besideTls(from, to, place.toServers),
  );
}
