/*
 * TLS between clients and the pooler: what each client_tls_sslmode accepts, how a client may begin, which certificates
 * and protocols are accepted, the log and SHOW, and attacks and broken clients.
 */

import assert from 'node:assert/strict';
import type { ChildProcessWithoutNullStreams } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type ConnectionOptions, type TLSSocket, connect as tlsConnect } from 'node:tls';
import { Bouncer, type BouncerOptions } from '../harness/bouncer';
import { type Cert, CertFolder } from '../harness/certs';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { it, startProgram, withTimeout } from '../harness/machine';
import { itUnless, noProgram } from '../harness/needs';
import { errorFields, GSSENC_REQUEST, PROTOCOL_30, RawClient, SSL_REQUEST, startupPacket } from '../harness/raw-client';

const certs = new CertFolder();
const LOCAL = 'DNS:localhost,IP:127.0.0.1';
const ca = certs.authority('ca');
const otherCa = certs.authority('otherca');
const site = certs.issue(ca, 'site', { cn: 'localhost', san: LOCAL });
const rsaSite = certs.issue(ca, 'rsasite', { cn: 'localhost', san: LOCAL, keyType: 'rsa' });
const ann = certs.issue(ca, 'ann', { cn: 'ann' });
const stranger = certs.issue(otherCa, 'stranger', { cn: 'ann' });
const caText = readFileSync(ca.cert, 'utf8');

let pg: PgCluster;
before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

type Settings = NonNullable<BouncerOptions['settings']>;

const files = (cert: Cert = site): Settings => ({
  client_tls_key_file: cert.key,
  client_tls_cert_file: cert.cert,
  client_tls_ca_file: ca.cert,
});

async function withPooler(settings: Settings, body: (pooler: Bouncer) => Promise<void>): Promise<void> {
  const pooler = await Bouncer.start({ cluster: pg, settings: { ...files(), ...settings } });
  try {
    await body(pooler);
  } finally {
    await pooler.stop();
  }
}

const trusting: ConnectionOptions = { ca: caText, servername: 'localhost' };
const withCert = (cert: Cert): ConnectionOptions => ({
  ...trusting,
  cert: readFileSync(cert.cert),
  key: readFileSync(cert.key),
});

/** Logs in over TLS, runs a query and disconnects. @returns '1', or the error */
async function attempt(pooler: Bouncer, ssl: ConnectionOptions | false): Promise<string> {
  try {
    const result = await pooler.sql('SELECT 1 AS one', { ssl });
    return String(result.rows[0].one);
  } catch (err) {
    return err instanceof Error ? err.message : String(err);
  }
}

/** The connection, after its handshake. */
async function shaken(socket: TLSSocket): Promise<TLSSocket> {
  await withTimeout(
    new Promise<void>((settle, reject) => {
      socket.once('secureConnect', settle);
      socket.once('error', reject);
    }),
    'a TLS handshake',
  );
  socket.on('error', () => {});
  return socket;
}

/** Starts TLS on a connection whose SSLRequest was answered with S. */
function upgrade(raw: RawClient, options: ConnectionOptions = {}): Promise<TLSSocket> {
  return shaken(tlsConnect({ ...trusting, ...options, socket: raw.socket }));
}

/** Starts TLS without an SSLRequest. */
function direct(pooler: Bouncer, options: ConnectionOptions = {}): Promise<TLSSocket> {
  return shaken(
    tlsConnect({ ...trusting, ALPNProtocols: ['postgresql'], host: pooler.host, port: pooler.port, ...options }),
  );
}

/** All bytes received until the pooler closes the connection. */
async function rest(socket: TLSSocket): Promise<string> {
  const parts: Buffer[] = [];
  socket.on('data', (chunk: Buffer) => parts.push(chunk));
  await withTimeout(new Promise((settle) => socket.once('end', settle)), 'the pooler to close');
  socket.destroy();
  return Buffer.concat(parts).toString('latin1');
}

describe('client_tls_sslmode', () => {
  it('client_tls_sslmode=disable refuses TLS and accepts plain text', () =>
    withPooler({ client_tls_sslmode: 'disable' }, async (pooler) => {
      const raw = await pooler.raw();
      assert.equal(await raw.request(SSL_REQUEST), 'N');
      assert.equal((await raw.login()).at(-1)?.type, 'Z');
      await raw.end();
      await assert.rejects(direct(pooler));
      await pooler.logWait(/bad packet header: '16030/);
    }));

  for (const mode of ['allow', 'prefer']) {
    it(`client_tls_sslmode=${mode} accepts connections with and without TLS`, () =>
      withPooler({ client_tls_sslmode: mode }, async (pooler) => {
        assert.equal(await attempt(pooler, false), '1');
        assert.equal(await attempt(pooler, trusting), '1');
        assert.equal(await attempt(pooler, withCert(ann)), '1');
        // a certificate that the client presents has to be valid, even if none is required
        assert.match(await attempt(pooler, withCert(stranger)), /unknown ca|ECONNRESET|terminated|closed/i);
        await pooler.logWait(/WARNING TLS handshake error: handshake failed: error:.*certificate verify failed/);
      }));
  }

  it('client_tls_sslmode=require refuses plain text, except on the Unix socket and for cancel requests', () =>
    withPooler({ client_tls_sslmode: 'require' }, async (pooler) => {
      assert.equal(await attempt(pooler, false), 'SSL required');
      assert.equal(await attempt(pooler, trusting), '1');
      const local = await pooler.connect({ host: pooler.socketDir });
      assert.equal((await local.query('SELECT 1 AS one')).rows[0].one, 1);
      await local.end();
      const unix = await RawClient.connect({ path: join(pooler.socketDir, `.s.PGSQL.${pooler.port}`) });
      assert.equal(await unix.request(SSL_REQUEST), 'N');
      await unix.destroy();
    }));

  for (const mode of ['verify-ca', 'verify-full']) {
    it(`client_tls_sslmode=${mode} accepts only certificates of its CA`, () =>
      withPooler({ client_tls_sslmode: mode }, async (pooler) => {
        assert.equal(await attempt(pooler, withCert(ann)), '1');
        assert.equal(await attempt(pooler, false), 'SSL required');
        assert.notEqual(await attempt(pooler, trusting), '1');
        await pooler.logWait(/TLS handshake error: handshake failed: error:.*peer did not return a certificate/);
        assert.notEqual(await attempt(pooler, withCert(stranger)), '1');
        await pooler.logWait(/TLS handshake error: handshake failed: error:.*certificate verify failed/);
      }));
  }
});

describe('how a client begins', () => {
  it('direct TLS is accepted with ALPN protocol postgresql or without ALPN', () =>
    withPooler({ client_tls_sslmode: 'require' }, async (pooler) => {
      for (const ALPNProtocols of [['postgresql'], ['http/1.1', 'postgresql'], undefined]) {
        const socket = await direct(pooler, { ALPNProtocols });
        assert.equal(socket.alpnProtocol, ALPNProtocols === undefined ? false : 'postgresql');
        socket.write(startupPacket(PROTOCOL_30, { user: 'postgres', database: 'postgres' }));
        await new Promise((settle) => socket.once('data', settle));
        socket.destroy();
      }
      await assert.rejects(direct(pooler, { ALPNProtocols: ['http/1.1'] }), /no application protocol/);
    }));

  it('plain bytes before the TLS handshake are not processed', () =>
    withPooler({ client_tls_sslmode: 'prefer' }, async (pooler) => {
      const injected = startupPacket(PROTOCOL_30, { user: 'postgres', database: 'postgres' });
      const raw = await pooler.raw();
      await raw.send(startupPacket(SSL_REQUEST, Buffer.alloc(0)), injected);
      const [refusal] = await raw.until('');
      assert.ok(refusal !== undefined);
      assert.equal(errorFields(refusal).M, 'received unencrypted data after SSL request');
      const late = await pooler.raw();
      assert.equal(await late.request(SSL_REQUEST), 'S');
      await late.send(injected);
      // at most a TLS alert
      const answer = await late.bytes(1);
      assert.ok(answer === null || answer[0] === 0x15);
      await late.destroy();
      await pooler.logWait(/TLS handshake error: handshake failed: error:/);
      assert.equal(pooler.log.count(/login attempt: db=postgres/), 0);
    }));

  it('a second SSLRequest inside TLS ends the connection', () =>
    withPooler({ client_tls_sslmode: 'prefer' }, async (pooler) => {
      const raw = await pooler.raw();
      assert.equal(await raw.request(SSL_REQUEST), 'S');
      const socket = await upgrade(raw);
      const over = rest(socket);
      socket.write(startupPacket(SSL_REQUEST, Buffer.alloc(0)));
      assert.equal(await over, '');
      await pooler.logWait(/closing because: SSL req inside SSL/);
    }));

  it('a GSSENCRequest is refused, and TLS may follow', () =>
    withPooler({ client_tls_sslmode: 'require' }, async (pooler) => {
      const raw = await pooler.raw();
      assert.equal(await raw.request(GSSENC_REQUEST), 'N');
      assert.equal(await raw.request(SSL_REQUEST), 'S');
      (await upgrade(raw)).destroy();
    }));

  it('a client that never completes the TLS handshake is disconnected at client_login_timeout', () =>
    withPooler({ client_tls_sslmode: 'require', client_login_timeout: 1 }, async (pooler) => {
      const raw = await pooler.raw();
      assert.equal(await raw.request(SSL_REQUEST), 'S');
      assert.equal(await raw.bytes(1), null);
      await raw.destroy();
      await pooler.logWait(/closing because: client_login_timeout/);
    }));

  itUnless(noProgram('openssl'))('TLS renegotiation is refused', () =>
    withPooler({ client_tls_sslmode: 'require' }, async (pooler) => {
      const args = ['s_client', '-connect', `127.0.0.1:${pooler.port}`, '-tls1_2', '-alpn', 'postgresql'];
      const child = startProgram('openssl', args, {}) as ChildProcessWithoutNullStreams;
      const over = new Promise<number | null>((settle) => child.once('close', settle));
      let errors = '';
      child.stderr.on('data', (chunk: Buffer) => {
        errors += chunk.toString('latin1');
      });
      const shaken = new Promise<void>((settle) => {
        let said = '';
        child.stdout.on('data', (chunk: Buffer) => {
          said += chunk.toString('latin1');
          if (said.includes('Verify return code')) settle();
        });
      });
      await withTimeout(shaken, 'the end of the handshake');
      child.stdin.write('R\n');
      await pooler.logWait(/WARNING tls_sbufio_recv: unexpected handshake, closing connection/);
      assert.equal(await withTimeout(over, 'openssl to notice the end'), 1);
      assert.match(errors, /RENEGOTIATING\n.*no renegotiation/);
      assert.equal(await attempt(pooler, trusting), '1');
    }),
  );
});

describe('settings', () => {
  it('client_tls_protocols and client_tls_ciphers limit protocols and ciphers', () =>
    withPooler(
      {
        ...files(rsaSite),
        client_tls_sslmode: 'require',
        client_tls_protocols: 'tlsv1.2',
        client_tls_ciphers: 'ECDHE-RSA-AES128-GCM-SHA256',
      },
      async (pooler) => {
        assert.equal(await attempt(pooler, trusting), '1');
        await pooler.logWait(/login attempt: .* tls=TLSv1\.2\/ECDHE-RSA-AES128-GCM-SHA256\/ECDH=\w+ replication=no/);
        assert.notEqual(await attempt(pooler, { ...trusting, minVersion: 'TLSv1.3' }), '1');
        await pooler.admin("SET client_tls_ciphers = 'DHE-RSA-AES256-GCM-SHA384'", { ssl: trusting });
        assert.equal(await attempt(pooler, { ...trusting, ciphers: 'ALL' }), '1');
        await pooler.logWait(/tls=TLSv1\.2\/DHE-RSA-AES256-GCM-SHA384\/DH=2048/);
        await pooler.admin("SET client_tls_ciphers = 'all'", { ssl: trusting });
        assert.equal(await attempt(pooler, { ...trusting, ciphers: 'ECDHE-RSA-AES128-SHA' }), '1');
        await pooler.admin("SET client_tls_protocols = 'secure:!tlsv1.2'", { ssl: trusting });
        await pooler.admin("SET client_tls13_ciphers = 'TLS_CHACHA20_POLY1305_SHA256'", { ssl: trusting });
        assert.equal(await attempt(pooler, trusting), '1');
        await pooler.logWait(/tls=TLSv1\.3\/TLS_CHACHA20_POLY1305_SHA256 replication/);
      },
    ));

  it('client_tls_ecdhcurve selects a curve by name', () =>
    withPooler(
      {
        ...files(rsaSite),
        client_tls_sslmode: 'require',
        client_tls_protocols: 'tlsv1.2',
        client_tls_ecdhcurve: 'secp384r1',
      },
      async (pooler) => {
        assert.equal(await attempt(pooler, trusting), '1');
        await pooler.logWait(/tls=TLSv1\.2\/\S+\/ECDH=secp384r1/);
      },
    ));

  it('RELOAD with unusable TLS settings logs them and keeps the old settings', () =>
    withPooler({ client_tls_sslmode: 'require' }, async (pooler) => {
      const wrong: [string, string, RegExp][] = [
        ['client_tls_protocols', 'tlsv9', /ERROR invalid client_tls_protocols: tlsv9/],
        ['client_tls_ciphers', 'NO-SUCH', /ERROR invalid client_tls_ciphers: NO-SUCH/],
        ['client_tls13_ciphers', 'NO_SUCH', /ERROR TLS setup failed: failed to set the TLSv1\.3 cipher suites/],
        ['client_tls_dheparams', '1024', /ERROR invalid client_tls_dheparams: 1024/],
        ['client_tls_ecdhcurve', 'no-such', /ERROR invalid client_tls_ecdhecurve: no-such/],
        [
          'client_tls_cert_file',
          '/nowhere',
          /ERROR TLS setup failed: failed to load certificate file "\/nowhere": error:.*No such file/,
        ],
        ['client_tls_key_file', ann.key, /ERROR TLS setup failed: .*mismatch/],
        ['client_tls_ca_file', '/nowhere', /ERROR TLS setup failed: failed to load CA: error:.*No such file/],
        [
          'client_tls_key_file',
          '',
          /ERROR To allow TLS connections from clients, client_tls_key_file and client_tls_cert_file must be set\./,
        ],
        ['server_tls_protocols', 'tlsv9', /ERROR invalid server_tls_protocols: tlsv9/],
      ];
      const admin = await pooler.console({ ssl: trusting });
      const notices: string[] = [];
      admin.on('notice', (notice) => notices.push(String(notice.message)));
      for (const [name, value, log] of wrong) {
        const old = (await admin.query('SHOW CONFIG')).rows.find((row) => row.key === name)?.value ?? '';
        const from = pooler.log.mark();
        await admin.query(`SET ${name} = '${value}'`);
        await pooler.logWait(log, from);
        assert.equal(notices.pop(), 'TLS settings could not be applied, still using old configuration');
        assert.equal(await attempt(pooler, trusting), '1');
        await admin.query(`SET ${name} = '${old}'`);
      }
      await admin.end();
    }));

  it('the pooler does not start with unusable TLS settings', async () => {
    const settings = { ...files(), client_tls_sslmode: 'require', client_tls_cert_file: '/nowhere' };
    const pooler = await Bouncer.start({ cluster: pg, settings, wait: false });
    const end = await pooler.expectEnd();
    assert.equal(end.code, 1);
    assert.match(pooler.log.text, /FATAL .*TLS setup failed/);
    await pooler.stop();
  });

  it('RELOAD and SIGHUP read certificates again for new connections', () =>
    withPooler({ client_tls_sslmode: 'require' }, async (pooler) => {
      const renew = () => certs.issue(ca, 'moving', { cn: 'localhost', san: LOCAL });
      const shown = async () => {
        const socket = await direct(pooler);
        const { fingerprint256 } = socket.getPeerCertificate();
        socket.destroy();
        return fingerprint256;
      };
      const moving = renew();
      pooler.rewrite({ settings: files(moving) });
      await pooler.admin('RELOAD', { ssl: trusting });
      const first = await shown();
      const old = await pooler.connect({ ssl: trusting });
      renew();
      assert.equal(await shown(), first);
      await pooler.admin('RELOAD', { ssl: trusting });
      const second = await shown();
      assert.notEqual(second, first);
      renew();
      const from = pooler.log.mark();
      pooler.signal('SIGHUP');
      await pooler.logWait(/got SIGHUP/, from);
      await pooler.admin('SHOW VERSION', { ssl: trusting });
      const third = await shown();
      assert.notEqual(third, second);
      // a broken file changes nothing
      writeFileSync(moving.cert, 'no certificate\n');
      await assert.rejects(pooler.admin('RELOAD', { ssl: trusting }), /RELOAD failed, see logs for additional details/);
      await pooler.logWait(/ERROR TLS configuration could not be reloaded, keeping old configuration/);
      assert.equal(await shown(), third);
      assert.equal((await old.query('SELECT 1 AS one')).rows[0].one, 1);
      await old.end();
    }));
});

describe('a TLS session', () => {
  it('SHOW CLIENTS shows protocol and cipher of TLS connections only', () =>
    withPooler({ client_tls_sslmode: 'prefer' }, async (pooler) => {
      const safe = await pooler.connect({ ssl: trusting });
      const plain = await pooler.connect();
      const rows = (await pooler.admin('SHOW CLIENTS')).filter((row) => row.database === 'postgres');
      assert.deepEqual(rows.map((row) => row.tls).sort(), ['', 'TLSv1.3/TLS_AES_256_GCM_SHA384']);
      await safe.end();
      await plain.end();
    }));

  it('TLS client connections carry megabytes in both directions, even to a slow reader', () =>
    withPooler({ client_tls_sslmode: 'require', pool_mode: 'transaction' }, async (pooler) => {
      const client = await pooler.connect({ ssl: trusting });
      const text = 'x'.repeat(12_000_000);
      const sent = await client.query('SELECT length($1::text) AS n, md5($1::text) AS h', [text]);
      assert.equal(sent.rows[0].n, text.length);
      const got = await client.query('SELECT repeat(md5(g::text), 1000) AS v FROM generate_series(1, 500) g');
      assert.equal(got.rows.length, 500);
      assert.ok(got.rows.every((row) => row.v.length === 32_000));
      await client.end();

      const socket = await direct(pooler);
      let bytes = 0;
      const all = new Promise<void>((settle) => {
        socket.on('data', (chunk: Buffer) => {
          bytes += chunk.length;
          if (bytes > 20_000_000) settle();
          socket.pause();
          setImmediate(() => socket.resume());
        });
      });
      socket.write(startupPacket(PROTOCOL_30, { user: 'postgres', database: 'postgres' }));
      const query = Buffer.from("SELECT repeat('y', 1000) FROM generate_series(1, 20000)\0");
      const head = Buffer.alloc(5);
      head.write('Q');
      head.writeInt32BE(query.length + 4, 1);
      socket.write(Buffer.concat([head, query]));
      await withTimeout(all, 'all of a long answer');
      socket.destroy();
    }));

  it('many TLS connections at once each get their own answers', () =>
    withPooler({ client_tls_sslmode: 'require', pool_mode: 'transaction', default_pool_size: 3 }, async (pooler) => {
      const clients = await Promise.all(Array.from({ length: 30 }, () => pooler.connect({ ssl: trusting })));
      for (let round = 0; round < 5; round++) {
        const answers = await Promise.all(clients.map((client, i) => client.query('SELECT $1::int AS v', [i])));
        assert.deepEqual(
          answers.map((answer) => answer.rows[0].v),
          clients.map((_, i) => i),
        );
      }
      await Promise.all(clients.map((client) => client.end()));
    }));

  itUnless(noProgram('openssl'))(
    'the pooler sends close_notify when it closes a TLS connection, and needs none from the client',
    () =>
      withPooler({ client_tls_sslmode: 'require' }, async (pooler) => {
        const args = ['s_client', '-connect', `127.0.0.1:${pooler.port}`, '-alpn', 'postgresql', '-msg', '-quiet'];
        const child = startProgram('openssl', args, {}) as ChildProcessWithoutNullStreams;
        let said = '';
        for (const stream of [child.stdout, child.stderr]) {
          stream.on('data', (chunk: Buffer) => {
            said += chunk.toString('latin1');
          });
        }
        child.stdin.write(startupPacket(PROTOCOL_30, { user: 'postgres', database: 'postgres', nonsense: 'x' }));
        await withTimeout(new Promise((settle) => child.once('close', settle)), 'openssl to end');
        assert.match(said, /unsupported startup parameter: nonsense/);
        assert.match(said, /<<< TLS 1\.3, Alert \[length 0002\], warning close_notify/);

        const raw = await pooler.raw();
        assert.equal(await raw.request(SSL_REQUEST), 'S');
        // in TLS 1.3 the client's handshake would complete before its last message is sent
        const socket = await upgrade(raw, { maxVersion: 'TLSv1.2' });
        const from = pooler.log.mark();
        raw.socket.destroy();
        await new Promise((settle) => socket.once('close', settle));
        await pooler.admin('SHOW VERSION', { ssl: trusting });
        assert.equal(pooler.log.count(/WARNING|unexpected eof/, from), 0);
      }),
  );
});
