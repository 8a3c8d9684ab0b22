/*
 * TLS between the pooler and servers: what each server_tls_sslmode accepts, which certificates and names are valid, the
 * pooler's own certificate, and when changed settings replace connections.
 */

import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { type AddressInfo, createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { giveTo } from '../../tools/unprivileged';
import { Bouncer, type BouncerOptions } from '../harness/bouncer';
import { type Cert, CertFolder } from '../harness/certs';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { eventually, it, user } from '../harness/machine';
import { cstring, int16, letters, message } from '../harness/raw-client';

const certs = new CertFolder();
const ca = certs.authority('ca');
const otherCa = certs.authority('otherca');
const site = certs.issue(ca, 'site', { cn: 'pg.example', san: 'DNS:localhost,IP:127.0.0.1' });
const elsewhere = certs.issue(ca, 'elsewhere', { cn: 'elsewhere.example', san: 'DNS:elsewhere.example' });
const pooled = certs.issue(ca, 'pooled', { cn: 'pooled' });

let plain: PgCluster;
let safe: PgCluster;
/** the server's certificate is for another name */
let moved: PgCluster;

const ssl = (cert: Cert) => ({ ssl: 'on', ssl_cert_file: cert.cert, ssl_key_file: cert.key, ssl_ca_file: ca.cert });

before(async () => {
  plain = await PgCluster.start();
  safe = await PgCluster.start({ settings: ssl(site) });
  moved = await PgCluster.start({ settings: ssl(elsewhere) });
});
after(async () => {
  await plain.stop();
  await safe.stop();
  await moved.stop();
});

type Settings = NonNullable<BouncerOptions['settings']>;

const IN_USE = 'SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()';
const REFUSED = { server_login_retry: 1, query_wait_timeout: 2 };

/** A pooler with a database for each server, by address and by name. */
async function withPooler(settings: Settings, body: (pooler: Bouncer) => Promise<void>): Promise<void> {
  const at = (host: string, pg: PgCluster) => `host=${host} port=${pg.port} dbname=postgres`;
  const databases = {
    plain: at('127.0.0.1', plain),
    safe: at('127.0.0.1', safe),
    safename: at('localhost', safe),
    safeunix: at(safe.socketDir, safe),
    moved: at('127.0.0.1', moved),
  };
  const pooler = await Bouncer.start({ databases, settings: { ...REFUSED, ...settings } });
  try {
    await body(pooler);
  } finally {
    await pooler.stop();
  }
}

/** Whether the pooler's connection to that database is encrypted, or the error's text if it fails. */
async function encrypted(pooler: Bouncer, database: string): Promise<boolean | string> {
  try {
    return (await pooler.sql(IN_USE, { database })).rows[0].ssl;
  } catch (err) {
    return err instanceof Error ? err.message : String(err);
  }
}

async function refused(pooler: Bouncer, database: string, log: RegExp): Promise<void> {
  const from = pooler.log.mark();
  assert.equal(typeof (await encrypted(pooler, database)), 'string');
  await pooler.logWait(log, from);
}

/** A server that answers the first packet with `answer` and then stays silent. */
async function fakeServer(answer: Buffer): Promise<{ server: Server; port: number }> {
  const server = createServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', () => socket.write(answer));
  });
  await new Promise<void>((settle) => server.listen(0, '127.0.0.1', settle));
  return { server, port: (server.address() as AddressInfo).port };
}

describe('server_tls_sslmode', () => {
  it('server_tls_sslmode=disable never uses TLS', () =>
    withPooler({ server_tls_sslmode: 'disable' }, async (pooler) => {
      assert.equal(await encrypted(pooler, 'plain'), false);
      assert.equal(await encrypted(pooler, 'safe'), false);
    }));

  for (const mode of ['allow', 'prefer']) {
    it(`server_tls_sslmode=${mode} uses TLS if the server supports it`, () =>
      withPooler({ server_tls_sslmode: mode }, async (pooler) => {
        assert.equal(await encrypted(pooler, 'plain'), false);
        assert.equal(await encrypted(pooler, 'safe'), true);
        assert.equal(await encrypted(pooler, 'moved'), true);
        assert.equal(await encrypted(pooler, 'safeunix'), false);
        await pooler.logWait(
          /LOG S-\S+: safe\/postgres@127\.0\.0\.1:\d+ SSL established: TLSv1\.3\/TLS_AES_256_GCM_SHA384\n/,
        );
      }));
  }

  it('server_tls_sslmode=require needs TLS with any certificate, except on a Unix socket', () =>
    withPooler({ server_tls_sslmode: 'require' }, async (pooler) => {
      assert.equal(await encrypted(pooler, 'safe'), true);
      assert.equal(await encrypted(pooler, 'moved'), true);
      assert.equal(await encrypted(pooler, 'safeunix'), false);
      await refused(pooler, 'plain', /closing because: server refused SSL/);
    }));

  it('server_tls_sslmode=verify-ca needs a certificate of a known CA', () =>
    withPooler({ server_tls_sslmode: 'verify-ca', server_tls_ca_file: ca.cert }, async (pooler) => {
      assert.equal(await encrypted(pooler, 'safe'), true);
      assert.equal(await encrypted(pooler, 'moved'), true);
      await refused(pooler, 'plain', /closing because: server refused SSL/);
      await pooler.admin(`SET server_tls_ca_file = '${otherCa.cert}'`);
      await refused(pooler, 'safe', /WARNING TLS handshake error: handshake failed: error:.*certificate verify failed/);
    }));

  it('server_tls_sslmode=verify-full also needs the name or address in the certificate', () =>
    withPooler({ server_tls_sslmode: 'verify-full', server_tls_ca_file: ca.cert }, async (pooler) => {
      assert.equal(await encrypted(pooler, 'safe'), true);
      assert.equal(await encrypted(pooler, 'safename'), true);
      await refused(pooler, 'moved', /TLS handshake error: name `127\.0\.0\.1' not present in server certificate/);
      await pooler.admin(`SET server_tls_ca_file = '${otherCa.cert}'`);
      await refused(pooler, 'safename', /certificate verify failed/);
    }));
});

describe('with servers', () => {
  it('SHOW SERVERS shows protocol and cipher, which follow the settings', () =>
    withPooler(
      {
        server_tls_sslmode: 'require',
        server_tls_protocols: 'tlsv1.2',
        server_tls_ciphers: 'ECDHE-ECDSA-AES128-GCM-SHA256',
      },
      async (pooler) => {
        const client = await pooler.connect({ database: 'safe' });
        assert.equal((await client.query(IN_USE)).rows[0].ssl, true);
        assert.deepEqual(
          (await pooler.admin('SHOW SERVERS')).map((row) => row.tls),
          ['TLSv1.2/ECDHE-ECDSA-AES128-GCM-SHA256'],
        );
        await client.end();
        await pooler.admin("SET server_tls_protocols = 'tlsv1.3'");
        await pooler.admin("SET server_tls13_ciphers = 'TLS_CHACHA20_POLY1305_SHA256'");
        assert.equal(await encrypted(pooler, 'safe'), true);
        await pooler.logWait(/SSL established: TLSv1\.3\/TLS_CHACHA20_POLY1305_SHA256/);
      },
    ));

  it('the pooler presents its own certificate to servers', async () => {
    await safe.setHba([
      'local all all trust',
      'hostssl all pooled 127.0.0.1/32 cert',
      'host all all 127.0.0.1/32 trust',
    ]);
    await safe.createUser('pooled', '', 'none');
    const settings = { server_tls_sslmode: 'verify-ca', server_tls_ca_file: ca.cert };
    const whoami = (pooler: Bouncer) => pooler.sql('SELECT current_user AS u', { database: 'safe', user: 'pooled' });
    const pooler = await Bouncer.start({
      databases: { safe: `host=127.0.0.1 port=${safe.port} dbname=postgres` },
      settings: { ...REFUSED, ...settings, server_tls_key_file: pooled.key, server_tls_cert_file: pooled.cert },
      userlist: { pooled: '' },
    });
    assert.equal((await whoami(pooler)).rows[0].u, 'pooled');
    // the file is read for every connection
    const kept = readFileSync(pooled.cert);
    writeFileSync(pooled.cert, 'no certificate\n');
    await pooler.admin('RECONNECT');
    await assert.rejects(whoami(pooler));
    await pooler.logWait(/WARNING TLS connect error: failed to load certificate file ".*pooled\.crt": error:/);
    await pooler.logWait(/closing because: sslreq processing failed/);
    writeFileSync(pooled.cert, kept);
    giveTo(user, join(certs.dir, 'pooled.crt'));
    await eventually(
      'the good file to be used',
      async () => (await whoami(pooler).catch(() => null))?.rows[0].u === 'pooled',
    );
    await pooler.stop();
  });

  it('an invalid answer to SSLRequest, or bytes behind the answer, end the server connection', async () => {
    const cases: [Buffer, RegExp][] = [
      [Buffer.from('E'), /closing because: bad sslreq answer/],
      [
        Buffer.concat([Buffer.from('S'), message('R', Buffer.alloc(4))]),
        /closing because: received unencrypted data after SSL response/,
      ],
      [
        Buffer.concat([Buffer.from('N'), message('R', Buffer.alloc(4))]),
        /closing because: received unencrypted data after SSL response/,
      ],
      [Buffer.from('N'), /closing because: server refused SSL/],
    ];
    const ended = async ([answer, log]: [Buffer, RegExp]) => {
      const { server, port } = await fakeServer(answer);
      const settings = { ...REFUSED, server_tls_sslmode: 'require' };
      const pooler = await Bouncer.start({ databases: { fake: `host=127.0.0.1 port=${port}` }, settings });
      await assert.rejects(pooler.sql('SELECT 1', { database: 'fake' }));
      await pooler.logWait(log);
      await pooler.stop();
      server.close();
    };
    // at the same time, because their clients wait for another attempt
    await Promise.all(cases.map(ended));
  });

  it('a server that never completes the TLS handshake is closed', async () => {
    const { server, port } = await fakeServer(Buffer.from('S'));
    const settings = { ...REFUSED, server_tls_sslmode: 'require', server_connect_timeout: 1 };
    const pooler = await Bouncer.start({ databases: { fake: `host=127.0.0.1 port=${port}` }, settings });
    await assert.rejects(pooler.sql('SELECT 1', { database: 'fake' }));
    await pooler.logWait(/closing because: connect timeout/);
    await pooler.stop();
    server.close();
  });

  it('TLS server connections carry megabytes in both directions', () =>
    withPooler({ server_tls_sslmode: 'require', pool_mode: 'transaction' }, async (pooler) => {
      const client = await pooler.connect({ database: 'safe' });
      const text = 'x'.repeat(12_000_000);
      assert.equal((await client.query('SELECT length($1::text) AS n', [text])).rows[0].n, text.length);
      const got = await client.query('SELECT repeat(md5(g::text), 1000) AS v FROM generate_series(1, 500) g');
      assert.ok(got.rows.every((row) => row.v.length === 32_000));
      await client.end();
    }));

  it('a large request behind a large result does not keep the server from sending that', () =>
    withPooler(
      { server_tls_sslmode: 'require', pool_mode: 'transaction', max_prepared_statements: 100 },
      async (pooler) => {
        const client = await pooler.raw();
        await client.login({ database: 'safe' });
        // more than all buffers on the way hold
        const rows = 40;
        await client.sendMessage('Q', cstring(`SELECT repeat('x', 1000000) FROM generate_series(1, ${rows})`));
        assert.equal((await client.next())?.type, 'T');
        client.pause();
        const large = `SELECT '${'y'.repeat(16_000_000)}'`;
        await client.send(message('P', cstring('large'), cstring(large), int16(0)), message('S'));
        client.resume();
        assert.equal(letters(await client.until('Z')), `${'D'.repeat(rows)}CZ`);
        assert.equal(letters(await client.until('Z')), '1Z');
        await client.end();
      },
    ));
});

describe('changed settings', () => {
  it('RELOAD replaces server connections if the TLS settings have changed, and only then', () =>
    withPooler({ server_tls_sslmode: 'prefer' }, async (pooler) => {
      const ids = async () =>
        (await pooler.admin('SHOW SERVERS')).filter((row) => row.database === 'safe').map((row) => row.ptr);
      assert.equal(await encrypted(pooler, 'safe'), true);
      const first = await ids();
      assert.equal(first.length, 1);
      await pooler.admin('RELOAD');
      assert.equal(await encrypted(pooler, 'safe'), true);
      assert.deepEqual(await ids(), first);
      for (const change of [
        "server_tls_sslmode = 'require'",
        "server_tls_protocols = 'tlsv1.2'",
        `server_tls_ca_file = '${ca.cert}'`,
      ]) {
        const before = await ids();
        await pooler.admin(`SET ${change}`);
        await eventually('the old connection to go', async () => !(await ids()).includes(before[0] as string));
        assert.equal(await encrypted(pooler, 'safe'), true);
      }
      await pooler.admin("SET server_tls_sslmode = 'disable'");
      await eventually('the last encrypted one to go', async () => (await ids()).length === 0);
      assert.equal(await encrypted(pooler, 'safe'), false);
    }));
});
