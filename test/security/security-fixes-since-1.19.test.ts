/*
 * Security fixes without a CVE number in PgBouncer 1.19 and later, each as an attack by a client or a server. Tests are
 * named after the version with the fix.
 *
 * - 1.19 (2023): a memory leak in every failed TLS handshake
 * - 1.20 (2023): the admin database as auth_dbname ended the process
 * - 1.21 (2023): states left behind by cancel requests ended the process (also 1.19.1, and 1.23.1 for reloads)
 * - 1.25.0 (2025): passwords of 1024 bytes and more; startup packets that continue behind their end
 * - 1.25.1 (2025): reading beyond the end of a server's SCRAM messages
 */

import assert from 'node:assert/strict';
import { connect as tlsConnect } from 'node:tls';
import { ADMIN_USER, type Bouncer, eventually, it, PgCluster } from '../harness';
import { authentication, refusedWith, ScriptedServer, withAttackedPooler } from '../harness/attacked-pooler';
import { CertFolder } from '../harness/certs';
import { holding } from '../harness/hostile/attack';
import { oneRow, WELCOME } from '../harness/hostile/fake-server';
import { after, before } from '../harness/limits';
import { cstring, message, PROTOCOL_30, startupPacket } from '../harness/raw-client';

const certs = new CertFolder();
const ca = certs.authority('ca');
const site = certs.issue(ca, 'site', { cn: 'localhost', san: 'DNS:localhost,IP:127.0.0.1' });

let cluster: PgCluster;
let liar: ScriptedServer;

before(async () => {
  cluster = await PgCluster.start();
  liar = await ScriptedServer.start();
  await cluster.createUser('seeker', 'seeker-password', 'scram', 'SUPERUSER');
  await cluster.createUser(ADMIN_USER, 'admin-password');
});

after(async () => {
  await liar?.stop();
  await cluster?.stop();
});

const atLiar = () => `host=127.0.0.1 port=${liar.port}`;

it('1.19: failed TLS handshakes leave no memory behind', () =>
  withAttackedPooler(
    cluster,
    {
      settings: {
        client_tls_sslmode: 'allow',
        client_tls_key_file: site.key,
        client_tls_cert_file: site.cert,
        log_connections: 0,
        log_disconnections: 0,
      },
    },
    async (bouncer) => {
      const fail = async (index: number): Promise<void> => {
        const client = await bouncer.raw();
        if (index % 2 === 0) assert.equal(await client.request(80877103), 'S');
        const hello = Buffer.concat([Buffer.from('16030100f8010000f40303', 'hex'), Buffer.alloc(240, index)]);
        if (index % 4 < 2) {
          await client.send(index % 8 < 4 ? hello : hello.subarray(0, 30));
        } else {
          // a valid ClientHello, and then nothing
          const tls = tlsConnect({ socket: client.socket, rejectUnauthorized: false, minVersion: 'TLSv1.3' });
          tls.on('error', () => {});
        }
        client.socket.end();
        await client.destroy();
      };
      for (let n = 0; n < 100; n++) await fail(n);
      await eventually('descriptors to settle', () => holding(bouncer.pid).descriptors < 100);
      const first = holding(bouncer.pid);
      for (let n = 0; n < 1500; n++) await fail(n);
      await eventually('descriptors to be closed', () => holding(bouncer.pid).descriptors <= first.descriptors);
      const grown = holding(bouncer.pid).rssKb - first.rssKb;
      // an OpenSSL connection has at least 20 kB: 1500 leaks would be 30 MB
      assert.ok(grown < 20_000, `${grown} kB more after 1500 handshakes that failed`);
    },
  ));

it('1.20: the admin database as auth_dbname is refused', () =>
  withAttackedPooler(
    cluster,
    { settings: { auth_type: 'plain', auth_user: 'seeker' }, userlist: { seeker: 'seeker-password' } },
    async (bouncer) => {
      await bouncer.admin("SET auth_dbname = 'pgbouncer'").catch(() => {});
      for (const database of ['postgres', 'pgbouncer', 'nowhere']) {
        const client = await bouncer.raw();
        const answer = await client.login({ user: 'ghost', database, password: 'any' });
        const error = answer.at(-1)?.body.toString('latin1') ?? '';
        assert.match(error, database === 'pgbouncer' ? /bouncer config error/ : /authentication failed|no such user/);
        await client.destroy();
      }
    },
  ));

it('1.23.1: RELOAD removes databases and users that are in use', () =>
  withAttackedPooler(cluster, { settings: { pool_mode: 'transaction' } }, async (bouncer) => {
    for (let round = 0; round < 5; round++) {
      bouncer.rewrite({
        databases: { postgres: cluster.connstr(), [`db${round}`]: cluster.connstr('postgres', 'user=postgres') },
        users: { [`user${round}`]: 'pool_mode=session max_user_connections=3' },
        userlist: { [`user${round}`]: 'x' },
      });
      await bouncer.admin('RELOAD');
      const clients = await Promise.all([0, 1, 2].map(() => bouncer.connect({ database: `db${round}` })));
      // RELOAD removes the database while these queries run or wait for their servers
      const outcomes = clients.map((client) =>
        client.query('SELECT pg_sleep(0.02)').then(
          (result) => `${result.rows.length} row`,
          (err: Error) => err.message,
        ),
      );
      bouncer.rewrite({ databases: { postgres: cluster.connstr() } });
      await bouncer.admin('RELOAD');
      for (const outcome of await Promise.all(outcomes)) assert.match(outcome, /^(1 row|database removed)$/);
      assert.ok((await bouncer.admin('SHOW USERS')).some((row) => row.name === `user${round}`));
      assert.deepEqual(
        (await bouncer.admin('SHOW DATABASES')).map((row) => row.name),
        ['pgbouncer', 'postgres'],
      );
      for (const client of clients) await client.end().catch(() => {});
    }
  }));

for (const method of ['plain', 'md5', 'scram-sha-256']) {
  it(`1.25.0: long passwords are checked in full (${method})`, async () => {
    const passwords: Record<string, string> = {};
    for (const length of [995, 996, 1023, 1024, 1025, 2048, 16_000]) passwords[`long${length}`] = 'x'.repeat(length);
    await withAttackedPooler(cluster, { settings: { auth_type: method }, userlist: passwords }, async (bouncer) => {
      for (const [user, password] of Object.entries(passwords)) {
        const client = await bouncer.raw();
        // after a right password, the error is about the database, which does not exist
        const answer = await client.login({ user, database: 'nothing', password });
        assert.match(answer.at(-1)?.body.toString('latin1') ?? '', /no such database/, user);
        await client.destroy();
        const wrong = await bouncer.raw();
        const refused = await wrong.login({ user, database: 'nothing', password: `${password.slice(1)}y` });
        assert.match(refused.at(-1)?.body.toString('latin1') ?? '', /authentication failed/, user);
        await wrong.destroy();
      }
      const endless = await bouncer.raw();
      const answer = await endless.login({ user: 'long1024', password: 'x'.repeat(100_000) });
      assert.equal(answer.at(-1)?.type, 'E');
      await endless.destroy();
    });
  });
}

it('1.25.0: a startup packet with a wrong length or terminator is refused', () =>
  withAttackedPooler(cluster, {}, async (bouncer) => {
    const good = Buffer.concat([cstring('user'), cstring('postgres')]);
    const bodies = [
      good,
      Buffer.concat([good, Buffer.from('\0more')]),
      Buffer.concat([good, Buffer.from('\0\0')]),
      Buffer.concat([good, cstring('database')]),
      Buffer.concat([good, cstring('database'), Buffer.from('postgres')]),
      Buffer.from('user'),
      Buffer.from('user\0postgres'),
      Buffer.alloc(0),
      Buffer.concat([Buffer.alloc(1), good, Buffer.alloc(1)]),
    ];
    for (const body of bodies) {
      const client = await bouncer.raw();
      await client.send(startupPacket(PROTOCOL_30, body));
      await refusedWith(client, 'invalid startup packet layout: expected terminator as last byte');
    }
    const nobody = await bouncer.raw();
    await nobody.send(startupPacket(PROTOCOL_30, Buffer.alloc(1)));
    await refusedWith(nobody, 'no username supplied');
  }));

it('1.25.1: a server with broken SCRAM messages is refused', () =>
  withAttackedPooler(
    cluster,
    {
      databases: { '*': `${atLiar()} user=seeker password=seeker-password` },
      settings: { server_tls_sslmode: 'disable' },
    },
    async (bouncer) => {
      const salt = 'MDEyMzQ1Njc4OWFiY2RlZg==';
      type Says = (nonce: string) => string;
      const firsts: Says[] = [
        () => '',
        () => 'r',
        () => 'r=',
        (nonce) => `r=${nonce}`,
        (nonce) => `r=${nonce}x,s=`,
        (nonce) => `r=${nonce}x,s=${salt}`,
        (nonce) => `r=${nonce}x,s=${salt},i=`,
        (nonce) => `r=${nonce}x,s=${salt},i=0`,
        (nonce) => `r=${nonce}x,s=${salt},i=-1`,
        (nonce) => `r=${nonce}x,s=${salt},i=4096x`,
        (nonce) => `r=${nonce}x,s=${salt},i=4096,x=1`,
        (nonce) => `r=${nonce}x,s=***,i=4096`,
        (nonce) => `s=${salt},r=${nonce}x,i=4096`,
        (nonce) => `r=${nonce.slice(1)}x,s=${salt},i=4096`,
        () => `e=other-error`,
        () => '\0\0\0\0',
      ];
      const first = async (says: Says, index: number) => {
        let last: string | undefined;
        liar.play(`first${index}`, async ({ socket, next }) => {
          socket.write(authentication(10, cstring('SCRAM-SHA-256'), Buffer.alloc(1)));
          const nonce = /r=(.*)$/s.exec((await next())?.body.toString('latin1') ?? '')?.[1] ?? '';
          socket.write(authentication(11, Buffer.from(says(nonce))));
          last = (await next())?.type ?? 'end';
          socket.end();
        });
        await refusedByAll(bouncer, `first${index}`);
        await eventually('the pooler to leave', () => last !== undefined);
        assert.notEqual(last, 'p', `${says('nonce')} was answered`);
      };
      // a server that does not know the password cannot send a valid proof
      const proofs = ['', 'v', 'v=', 'v=AAAA', `v=${Buffer.alloc(32).toString('base64')}`, 'e=', 'e=denied', 'v=\0'];
      const final = async (proof: string, index: number) => {
        liar.play(`final${index}`, async ({ socket, next }) => {
          socket.write(authentication(10, cstring('SCRAM-SHA-256'), Buffer.alloc(1)));
          const nonce = /r=(.*)$/s.exec((await next())?.body.toString('latin1') ?? '')?.[1] ?? '';
          socket.write(authentication(11, Buffer.from(`r=${nonce}x,s=${salt},i=4096`)));
          await next();
          socket.end(Buffer.concat([authentication(12, Buffer.from(proof)), WELCOME, oneRow('taken in')]));
        });
        await refusedByAll(bouncer, `final${index}`);
      };
      // nor a server that sends AuthenticationOk in the middle of the exchange
      liar.play('twice', async ({ socket }) => {
        const sasl = authentication(10, cstring('SCRAM-SHA-256'), Buffer.alloc(1));
        socket.end(Buffer.concat([sasl, sasl, WELCOME]));
      });
      // nor a server that ends the exchange early, or continues after its end
      const early: [string, (nonce: string) => Buffer][] = [
        [
          'okEarly',
          (nonce) => Buffer.concat([authentication(11, Buffer.from(`r=${nonce}x,s=${salt},i=4096`)), WELCOME]),
        ],
        ['okAtOnce', () => WELCOME],
      ];
      for (const [database, says] of early) {
        liar.play(database, async ({ socket, next }) => {
          socket.write(authentication(10, cstring('SCRAM-SHA-256'), Buffer.alloc(1)));
          const nonce = /r=(.*)$/s.exec((await next())?.body.toString('latin1') ?? '')?.[1] ?? '';
          socket.end(Buffer.concat([says(nonce), oneRow('taken in')]));
        });
      }
      // nor a server that neither requests nor sends a proof
      liar.play('unasked', async ({ socket }) => {
        socket.end(Buffer.concat([message('Z', Buffer.from('I')), oneRow('taken in')]));
      });
      const others = ['twice', 'unasked', ...early.map(([database]) => database)];
      // at the same time, because clients of such servers wait for another attempt
      await Promise.all([
        ...firsts.map(first),
        ...proofs.map(final),
        ...others.map((database) => refusedByAll(bouncer, database)),
      ]);
    },
  ));

/** Checks that the server of that database is refused, and that its client gets an error. */
async function refusedByAll(bouncer: Bouncer, database: string): Promise<void> {
  const client = await bouncer.raw();
  const answer = await client.login({ database });
  assert.equal(answer.at(-1)?.type, 'E', `${database}: the server was taken for good`);
  await client.destroy();
}
