/*
 * SCRAM channel binding (tls-server-end-point) with clients and with servers: who uses it, what is refused, and what an
 * attacker in the middle can do.
 */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { TLSSocket, connect as tlsConnect } from 'node:tls';
import { Bouncer, type BouncerOptions } from '../harness/bouncer';
import { type Cert, CertFolder } from '../harness/certs';
import { PgCluster } from '../harness/cluster';
import { after, before } from '../harness/limits';
import { it, run } from '../harness/machine';
import { itUnless, noPsql, psql } from '../harness/needs';
import { cstring, errorFields, int32, letters, type RawClient } from '../harness/raw-client';
import { type Binding, bindingOf, ScramClient } from '../harness/scram';

const certs = new CertFolder();
const ca = certs.authority('ca');
const site = certs.issue(ca, 'site', { cn: 'localhost', san: 'DNS:localhost,IP:127.0.0.1' });
const next = certs.issue(ca, 'next', { cn: 'localhost', san: 'DNS:localhost,IP:127.0.0.1' });
const PASSWORD = 'secret';
const PLUS = 'SCRAM-SHA-256-PLUS';

let pg: PgCluster;
before(async () => {
  pg = await PgCluster.start({ settings: { ssl: 'on', ssl_cert_file: site.cert, ssl_key_file: site.key } });
  await pg.createUser('ann', PASSWORD);
  await pg.setAuth('scram-sha-256');
});
after(() => pg.stop());

type Settings = NonNullable<BouncerOptions['settings']>;

const clientTls = (cert: Cert = site): Settings => ({
  client_tls_sslmode: 'allow',
  client_tls_key_file: cert.key,
  client_tls_cert_file: cert.cert,
});

/** A pooler that asks for SCRAM, with TLS to clients and to the server, and that logs all that it is told. */
async function withPooler(
  settings: Settings,
  body: (pooler: Bouncer) => Promise<void>,
  more: Partial<BouncerOptions> = {},
): Promise<void> {
  const short = { server_login_retry: 1, query_wait_timeout: 3 };
  const pooler = await Bouncer.start({
    databases: { app: `host=127.0.0.1 port=${pg.port} dbname=postgres` },
    userlist: { ann: PASSWORD },
    args: ['-vv'],
    settings: { auth_type: 'scram-sha-256', server_tls_sslmode: 'require', ...clientTls(), ...short, ...settings },
    ...more,
  });
  try {
    await body(pooler);
  } finally {
    await pooler.stop();
  }
}

const ANN = { user: 'ann', password: PASSWORD, database: 'app' };
const ssl = { ca: readFileSync(ca.cert, 'utf8'), servername: 'localhost' };

async function outcome(pooler: Bouncer, more: object = {}): Promise<string> {
  try {
    return String((await pooler.sql('SELECT 1 AS one', { ...ANN, ssl, ...more })).rows[0].one);
  } catch (err) {
    return (err as Error).message;
  }
}

/** A client inside TLS, and the mechanisms that it is offered. */
async function greeted(pooler: Bouncer, tls = true): Promise<{ client: RawClient; offered: string[] }> {
  const plain = await pooler.raw();
  const client = tls ? await plain.secure(ssl) : plain;
  await client.startup({ user: 'ann', database: 'app' });
  const request = await client.next();
  assert.equal(request?.body.readInt32BE(0), 10);
  return { client, offered: request.body.toString('latin1', 4).split('\0').slice(0, -2) };
}

/** Answers the greeting. @returns 'Z', or the error */
async function answered(client: RawClient, mechanism: string, binding?: Binding): Promise<string> {
  const scram = new ScramClient(PASSWORD, binding);
  const first = Buffer.from(scram.first(), 'latin1');
  await client.sendMessage('p', cstring(mechanism), int32(first.length), first);
  const challenge = await client.next();
  if (challenge?.type !== 'R') return errorFields(challenge as never).M ?? '';
  await client.sendMessage('p', Buffer.from(scram.final(challenge.body.toString('latin1', 4)), 'latin1'));
  const last = (await client.until('ZE')).at(-1);
  await client.destroy();
  return last?.type === 'E' ? (errorFields(last).M ?? '') : letters(last === undefined ? [] : [last]);
}

itUnless(noPsql)('psql with channel_binding=require logs in over TLS, to the pooler and through it', () =>
  withPooler({}, async (pooler) => {
    const ask = (mode: string, more = '') => {
      const at = `host=127.0.0.1 port=${pooler.port} user=ann dbname=app password=${PASSWORD}`;
      const line = `${at} channel_binding=${mode} sslmode=require sslcert=${certs.dir}/none ${more}`;
      return run(psql as string, ['-XAtc', 'SELECT 7', line]);
    };
    const bound = await ask('require');
    assert.equal(bound.stdout, '7\n', bound.stderr);
    await pooler.logWait(/C: selected SASL mechanism: SCRAM-SHA-256-PLUS/);
    await pooler.logWait(/SCRAM client-first-message = "p=tls-server-end-point,,n=,r=/);
    assert.deepEqual((await ask('disable')).stdout, '7\n');
    assert.deepEqual((await ask('prefer')).stdout, '7\n');
    const plain = await ask('require', 'sslmode=disable');
    assert.match(plain.stderr, /channel binding required/);
  }),
);

it('node-postgres binds its login if it is told to', () =>
  withPooler({}, async (pooler) => {
    assert.equal(await outcome(pooler), '1');
    await pooler.logWait(/C: selected SASL mechanism: SCRAM-SHA-256\n/);
    assert.equal(await outcome(pooler, { enableChannelBinding: true }), '1');
    await pooler.logWait(/C: selected SASL mechanism: SCRAM-SHA-256-PLUS/);
  }));

it('the mechanism is offered over TLS only, and its choice is checked as in PostgreSQL', () =>
  withPooler({}, async (pooler) => {
    const plain = await greeted(pooler, false);
    assert.deepEqual(plain.offered, ['SCRAM-SHA-256']);
    assert.match(await answered(plain.client, PLUS), /invalid SASL authentication mechanism/);

    const cases: [mechanism: string, header: string, result: RegExp, log: RegExp | null][] = [
      [PLUS, 'p=tls-server-end-point,,', /^Z$/, null],
      ['SCRAM-SHA-256', 'n,,', /^Z$/, null],
      ['SCRAM-SHA-256', 'y,,', /SASL authentication failed/, /the client did not see that it was offered/],
      [PLUS, 'n,,', /SASL authentication failed/, /SCRAM-SHA-256-PLUS without channel binding/],
      [PLUS, 'y,,', /SASL authentication failed/, /SCRAM-SHA-256-PLUS without channel binding/],
      ['SCRAM-SHA-256', 'p=tls-server-end-point,,', /failed/, /channel binding without the mechanism/],
      [PLUS, 'p=tls-unique,,', /failed/, /unsupported SCRAM channel-binding type/],
      [PLUS, 'p', /failed/, /expected "=" after attribute "p"/],
    ];
    for (const [mechanism, header, result, log] of cases) {
      const { client, offered } = await greeted(pooler);
      assert.deepEqual(offered, [PLUS, 'SCRAM-SHA-256']);
      const { hash } = bindingOf(client.socket);
      const bound = header.startsWith('p') ? hash : Buffer.alloc(0);
      assert.match(await answered(client, mechanism, { header, hash: bound }), result, `${mechanism} ${header}`);
      if (log !== null) await pooler.logWait(log);
    }

    const { client } = await greeted(pooler);
    const wrong = { ...bindingOf(client.socket), hash: Buffer.alloc(32) };
    assert.match(await answered(client, PLUS, wrong), /SASL authentication failed/);
    await pooler.logWait(/SCRAM channel binding check failed/);
  }));

it('a login is bound to the certificate that the client has seen, whatever a RELOAD brings', () =>
  withPooler({}, async (pooler) => {
    const { client } = await greeted(pooler);
    const binding = bindingOf(client.socket);
    pooler.rewrite({ settings: clientTls(next) });
    await pooler.admin('RELOAD');
    assert.equal(await answered(client, PLUS, binding), 'Z');
    const later = await greeted(pooler);
    assert.notDeepEqual(bindingOf(later.client.socket).hash, binding.hash);
    assert.equal(await answered(later.client, PLUS, bindingOf(later.client.socket)), 'Z');
  }));

for (const [kind, digest, hash] of [
  ['rsa', 'sha1', 'sha256'],
  ['rsa', 'sha512', 'sha512'],
  ['ec', 'sha512', 'sha512'],
  ['rsa-pss', 'sha512', 'sha512'],
  ['ed25519', 'sha256', null],
] as const) {
  it(`the hash for a certificate of type ${kind} with ${digest} is ${hash ?? 'not defined, so PLUS is not offered'}`, () =>
    withPooler(clientTls(certs.selfSigned(`${kind}-${digest}`, kind, digest)), async (pooler) => {
      const client = await (await pooler.raw()).secure({ rejectUnauthorized: false });
      await client.startup({ user: 'ann', database: 'app' });
      const request = await client.next();
      assert.equal(request?.body.includes(PLUS), hash !== null);
      const binding = hash === null ? undefined : bindingOf(client.socket, hash);
      assert.equal(await answered(client, hash === null ? 'SCRAM-SHA-256' : PLUS, binding), 'Z');
    }));
}

it('server_channel_binding decides how the pooler logs in to a server', async () => {
  const first = (flag: string) => new RegExp(`SCRAM client-first-message = "${flag},,n=,r=`);
  await withPooler({ server_channel_binding: 'disable' }, async (pooler) => {
    assert.equal(await outcome(pooler), '1');
    await pooler.logWait(first('n'));
    assert.doesNotMatch(pooler.log.text, /p=tls-server-end-point/);
  });
  await withPooler({ server_channel_binding: 'require' }, async (pooler) => {
    assert.equal(await outcome(pooler), '1');
    await pooler.logWait(first('p=tls-server-end-point'));
  });
  const required = /server login failed: channel binding is required/;
  await withPooler({ server_channel_binding: 'require', server_tls_sslmode: 'disable' }, async (pooler) => {
    assert.match(await outcome(pooler), required);
    // a Unix socket has no TLS, and needs none
    pooler.rewrite({ databases: { app: `host=${pg.socketDir} port=${pg.port} dbname=postgres` } });
    await pooler.admin('RELOAD');
    assert.equal(await outcome(pooler), '1');
  });
  await pg.setAuth('password');
  await withPooler({ server_channel_binding: 'require' }, async (pooler) => {
    assert.match(await outcome(pooler), required);
  });
  await pg.setAuth('trust');
  await withPooler({ server_channel_binding: 'require' }, async (pooler) => {
    assert.match(await outcome(pooler), required);
  });
  await pg.setAuth('scram-sha-256');
});

it('keys that a client brings log in to a server with channel binding', async () => {
  const stored = (await pg.storedSecret('ann')) as string;
  const settings = { server_channel_binding: 'require' };
  await withPooler(
    settings,
    async (pooler) => {
      assert.equal(await outcome(pooler, { enableChannelBinding: true }), '1');
    },
    { userlist: { ann: stored } },
  );
});

/** Ends the pooler's TLS with a certificate of its own, and passes everything on to the server, inside TLS. */
async function inTheMiddle(port: number, cert: Cert) {
  const server = createServer((from: Socket) => {
    from.on('error', () => {});
    from.once('data', () => {
      from.write('S');
      const near = new TLSSocket(from, { isServer: true, key: readFileSync(cert.key), cert: readFileSync(cert.cert) });
      const to = connect(port, '127.0.0.1');
      to.write(Buffer.concat([int32(8), int32(80877103)]));
      to.once('data', () => {
        const far = tlsConnect({ socket: to, rejectUnauthorized: false });
        for (const end of [near, far]) end.on('error', () => {});
        near.pipe(far);
        far.pipe(near);
      });
    });
  });
  await new Promise<void>((settle) => server.listen(0, '127.0.0.1', settle));
  return { port: (server.address() as AddressInfo).port, close: () => server.close() };
}

it('a login that is passed on by an attacker with another certificate is refused by the server', async () => {
  const attacker = await inTheMiddle(pg.port, next);
  const databases = { app: `host=127.0.0.1 port=${attacker.port} dbname=postgres` };
  const mark = pg.log.text.length;
  await withPooler(
    {},
    async (pooler) => {
      assert.match(await outcome(pooler), /channel binding check failed/);
      assert.equal(mark < pg.log.text.length, true);
    },
    { databases },
  );
  // without channel binding, nothing tells the server
  await withPooler(
    { server_channel_binding: 'disable' },
    async (pooler) => {
      assert.equal(await outcome(pooler), '1');
    },
    { databases },
  );
  attacker.close();
});
