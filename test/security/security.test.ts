/*
 * One test for each CVE of PgBouncer, which runs the attack against this pooler. The attacks were:
 *
 * - CVE-2012-4575: with a `*` database, a name longer than config names may be ended the process
 * - CVE-2015-4054: a password before the startup packet dereferenced a null pointer
 * - CVE-2015-6817: a user unknown to auth_query was logged in as auth_user
 * - CVE-2021-3935: plain bytes injected before the TLS handshake were processed as if sent inside TLS (CVE-2021-23222
 *   is the same towards the server)
 * - CVE-2025-2291: auth_query returned passwords past their VALID UNTIL
 * - CVE-2025-12819: the search_path of an unauthenticated client was set on the connection of auth_query, which then
 *   used the client's tables, functions and operators
 * - CVE-2026-6664: a length near 2^32 in a SASL message overflowed in the bounds check
 * - CVE-2026-6665: a server's SCRAM nonce was written beyond the buffer of the answer
 * - CVE-2026-6666: a server's error without SQLSTATE dereferenced a null pointer
 * - CVE-2026-6667: stats users could use KILL_CLIENT
 *
 * security-fixes.test.ts has the fixes in the changelog without a CVE number.
 */

import assert from 'node:assert/strict';
import { createHash, createHmac, pbkdf2Sync } from 'node:crypto';
import { ADMIN_PASSWORD, ADMIN_USER, eventually, it, PgCluster, STATS_PASSWORD, STATS_USER } from '../harness';
import {
  authentication,
  errorResponse,
  refusedWith,
  ScriptedServer,
  withAttackedPooler,
} from '../harness/attacked-pooler';
import { CertFolder } from '../harness/certs';
import { fails } from '../harness/expect';
import { oneRow, READY, WELCOME } from '../harness/hostile/fake-server';
import { after, before } from '../harness/limits';
import {
  cstring,
  GSSENC_REQUEST,
  int16,
  int32,
  message,
  PROTOCOL_30,
  SSL_REQUEST,
  startupPacket,
} from '../harness/raw-client';

const certs = new CertFolder();
const ca = certs.authority('ca');
const site = certs.issue(ca, 'site', { cn: 'localhost', san: 'DNS:localhost,IP:127.0.0.1' });

const trusting = { rejectUnauthorized: false };

let cluster: PgCluster;
let liar: ScriptedServer;

before(async () => {
  cluster = await PgCluster.start();
  liar = await ScriptedServer.start();
  await cluster.createUser('seeker', 'seeker-password', 'scram', 'SUPERUSER');
  await cluster.createUser(ADMIN_USER, ADMIN_PASSWORD);
});

after(async () => {
  await liar?.stop();
  await cluster?.stop();
});

const atLiar = () => `host=127.0.0.1 port=${liar.port}`;

it('CVE-2012-4575: a database name of any length is only an unknown database', () =>
  withAttackedPooler(cluster, { databases: { '*': `host=127.0.0.1 port=${cluster.port}` } }, async (bouncer) => {
    for (const length of [62, 63, 64, 65, 127, 128, 129, 256, 1024, 9000]) {
      const client = await bouncer.raw();
      await client.startup({ user: 'postgres', database: 'd'.repeat(length) });
      await refusedWith(client, /does not exist|no such database|too long/);
    }
  }));

it('CVE-2015-4054: a password before the startup packet is refused', () =>
  withAttackedPooler(cluster, { settings: { auth_type: 'md5' } }, async (bouncer) => {
    const passwords = [cstring('secret'), cstring(''), cstring(`md5${'0'.repeat(32)}`), Buffer.alloc(0)];
    for (const password of passwords) {
      const client = await bouncer.raw();
      await client.sendMessage('p', password);
      await refusedWith(client, 'client password pkt before startup packet');
    }
    // likewise after a refused encryption request, and followed by a login in the same segment
    const client = await bouncer.raw();
    assert.equal(await client.request(SSL_REQUEST), 'N');
    await client.send(
      message('p', cstring('x')),
      startupPacket(PROTOCOL_30, { user: 'postgres', database: 'postgres' }),
    );
    await refusedWith(client, 'client password pkt before startup packet');
  }));

for (const method of ['trust', 'plain', 'md5', 'scram-sha-256']) {
  it(`CVE-2015-6817: a login with an unknown name does not become auth_user (${method})`, () =>
    withAttackedPooler(
      cluster,
      {
        settings: { auth_type: method, auth_user: 'seeker' },
        userlist: { seeker: 'seeker-password' },
      },
      async (bouncer) => {
        const wrong = { trust: /^no such user$/ }[method] ?? /^(no such user|password|empty password|SASL)/;
        for (const password of ['seeker-password', '', 'ghost', ADMIN_PASSWORD]) {
          const client = await bouncer.raw();
          const answer = await client.login({ user: 'ghost', password });
          assert.equal(answer.at(-1)?.type, 'E', `ghost is in, with password '${password}'`);
          assert.match(String(/M([^\0]*)/.exec(answer.at(-1)?.body.toString('latin1') ?? '')?.[1]), wrong);
          await client.destroy();
        }
        const clients = await bouncer.admin('SHOW CLIENTS');
        assert.deepEqual([...new Set(clients.map((row) => row.user))], [ADMIN_USER]);
      },
    ));
}

const INJECTED = Buffer.concat([
  startupPacket(PROTOCOL_30, { user: 'postgres', database: 'postgres' }),
  message('Q', cstring('CREATE TABLE injected ()')),
]);

it('CVE-2021-3935: plain bytes behind an encryption request are not processed', () =>
  withAttackedPooler(
    cluster,
    {
      settings: {
        client_tls_sslmode: 'require',
        client_tls_key_file: site.key,
        client_tls_cert_file: site.cert,
        unix_socket_dir: '',
      },
    },
    async (bouncer) => {
      const requests: [number, string][] = [
        [SSL_REQUEST, 'received unencrypted data after SSL request'],
        [GSSENC_REQUEST, 'received unencrypted data after GSSAPI encryption request'],
      ];
      for (const [code, reason] of requests) {
        for (const injected of [INJECTED, INJECTED.subarray(0, 1), Buffer.alloc(1)]) {
          const client = await bouncer.raw();
          await client.send(startupPacket(code, Buffer.alloc(0)), injected);
          // an error, because accepting would start the handshake with plain bytes before it
          await refusedWith(client, reason);
        }
      }
      // these bytes arrive too late to be distinguished from a broken handshake
      const client = await bouncer.raw();
      assert.equal(await client.request(SSL_REQUEST), 'S');
      await client.send(INJECTED);
      await client.until('');
      await client.destroy();
      await bouncer.logWait(/TLS handshake error: handshake failed/);
      const tables = await cluster.sql(`SELECT count(*)::int AS n FROM pg_class WHERE relname = 'injected'`);
      assert.equal(tables.rows[0].n, 0);
      assert.deepEqual(await bouncer.admin('SHOW SERVERS', { ssl: trusting }), []);
    },
    trusting,
  ));

it('CVE-2021-23222: plain bytes behind a server’s answer to SSLRequest are not processed', () =>
  withAttackedPooler(
    cluster,
    { databases: { lied: atLiar() }, settings: { server_tls_sslmode: 'prefer' } },
    async (bouncer) => {
      liar.fake.sslAnswer = () => Buffer.concat([Buffer.from('S'), WELCOME, oneRow('injected')]);
      liar.play('lied', async ({ socket }) => {
        socket.write(Buffer.concat([WELCOME, oneRow('injected')]));
      });
      const client = await bouncer.raw();
      await client.startup({ user: 'postgres', database: 'lied' });
      await client.sendMessage('Q', cstring('SELECT 1'));
      await bouncer.logWait(/closing because: received unencrypted data after SSL response/);
      await refusedWith(client, /./);
      liar.fake.sslAnswer = () => Buffer.from('N');
    },
  ));

it('CVE-2025-2291: an expired password is refused', async () => {
  await cluster.createUser('expired', 'pass', 'md5', "VALID UNTIL '2001-01-01'");
  await cluster.createUser('expired_scram', 'pass', 'scram', "VALID UNTIL '2001-01-01'");
  await cluster.createUser('fresh', 'pass', 'scram', "VALID UNTIL '2101-01-01'");
  await cluster.createUser('forever', 'pass', 'scram', "VALID UNTIL 'infinity'");
  for (const auth_type of ['md5', 'scram-sha-256', 'plain']) {
    await withAttackedPooler(
      cluster,
      { settings: { auth_type, auth_user: 'seeker' }, userlist: { seeker: 'seeker-password' } },
      async (bouncer) => {
        const wrong = /^(SASL|password) authentication failed$/;
        for (const user of ['expired', 'expired_scram']) {
          // includes the texts that mean "no password" in versions of PgBouncer
          for (const password of ['pass', 'md5', '', 'NULL']) {
            const client = await bouncer.raw();
            const answer = await client.login({ user, password });
            assert.equal(answer.at(-1)?.type, 'E', `${user} is in, with '${password}'`);
            await client.destroy();
          }
          await fails(bouncer.connect({ user, password: 'pass' }), wrong);
        }
        for (const user of ['fresh', 'forever']) {
          const result = await bouncer.sql('SELECT current_user AS me', { user, password: 'pass' });
          assert.equal(result.rows[0].me, user);
        }
      },
    );
  }
});

it('CVE-2025-12819: auth_query does not depend on parameters of the client', async () => {
  // a server that reports search_path, as version 18 does, and records its queries
  const asked: string[] = [];
  const reports = message('S', cstring('search_path'), cstring('"$user", public'));
  const bindRow = message('D', int16(2), int32(5), Buffer.from('ghost'), int32(4), Buffer.from('pass'));
  liar.play('lied', async ({ socket, next }) => {
    socket.write(Buffer.concat([WELCOME.subarray(0, -6), reports, READY]));
    for (let msg = await next(); msg !== null; msg = await next()) {
      asked.push(msg.body.toString('latin1'));
      if (msg.type === 'Q') socket.write(Buffer.concat([message('C', cstring('SET')), READY]));
      if (msg.type !== 'S') continue;
      socket.write(Buffer.concat([message('1'), message('2'), bindRow, message('C', cstring('SELECT 1')), READY]));
    }
    socket.end();
  });
  const settings = {
    auth_type: 'plain',
    auth_user: 'seeker',
    track_extra_parameters: 'search_path',
    server_tls_sslmode: 'disable',
    pool_mode: 'transaction',
  };
  const evil = 'evil, pg_catalog, "; CREATE TABLE injected ()"';
  await withAttackedPooler(
    cluster,
    { databases: { lied: atLiar() }, settings, userlist: { seeker: 'seeker-password' } },
    async (bouncer) => {
      const startups: Record<string, string>[] = [
        { search_path: evil },
        { options: `-c search_path=${evil.replaceAll(' ', '\\ ')}` },
        { DateStyle: 'German', TimeZone: 'Asia/Tokyo', search_path: evil },
      ];
      for (const params of startups) {
        const client = await bouncer.raw();
        const answer = await client.login({ user: 'ghost', database: 'lied', password: 'wrong', params });
        assert.equal(answer.at(-1)?.type, 'E');
        await client.destroy();
      }
      assert.ok(
        asked.some((text) => text.includes('pg_authid')),
        'auth_query was asked',
      );
      assert.deepEqual(
        asked.filter((text) => /evil|German|Tokyo|^SET/i.test(text)),
        [],
      );
      // after authentication, the client's parameters apply
      const client = await bouncer.raw();
      await client.login({ user: 'ghost', database: 'lied', password: 'pass', params: { search_path: 'mine' } });
      await client.sendMessage('Q', cstring('SELECT 1'));
      await eventually('the search_path of a known client', () => asked.some((text) => text.includes('mine')));
      await client.destroy();
    },
  );
});

/** Lengths that overflow or almost overflow 32 bits when a number is added. */
const WRAPPING = [0xffff_ffff, 0xffff_fffe, 0xffff_fff0, 0xffff_ff00, 0x8000_0000, 0x7fff_ffff, 0x7fff_fff0, 70_000];

it('CVE-2026-6664: a SASL message whose length overflows is refused', () =>
  withAttackedPooler(cluster, { settings: { auth_type: 'scram-sha-256' } }, async (bouncer) => {
    const first = Buffer.from('n,,n=,r=abcdefghijklmnopqrstuvwx');
    for (const length of [...WRAPPING, first.length + 1]) {
      for (const body of [first, Buffer.alloc(0), Buffer.alloc(60_000, 0x41)]) {
        if (length > body.length) {
          const client = await bouncer.raw();
          await client.startup({ user: 'admin', database: 'postgres' });
          assert.equal((await client.next())?.type, 'R');
          await client.sendMessage('p', cstring('SCRAM-SHA-256'), int32(length), body);
          await refusedWith(client, 'SASL authentication failed');
        }
      }
    }
    // likewise for the length of the packet
    for (const length of WRAPPING) {
      const client = await bouncer.raw();
      await client.startup({ user: 'admin', database: 'postgres' });
      assert.equal((await client.next())?.type, 'R');
      await client.send(Buffer.from('p'), int32(length), cstring('SCRAM-SHA-256'), int32(first.length), first);
      if (length > 128 * 1024) await refusedWith(client, /^bad packet header/);
      else await client.destroy();
    }
  }));

const hmac = (key: Buffer, text: string) => createHmac('sha256', key).update(text, 'latin1').digest();

/** The proof that RFC 5802 requires in this exchange. */
function proofOf(password: string, salt: Buffer, clientFirst: string, serverFirst: string, final: string): string {
  const clientKey = hmac(pbkdf2Sync(password, salt, 4096, 32, 'sha256'), 'Client Key');
  const signature = hmac(createHash('sha256').update(clientKey).digest(), `${clientFirst},${serverFirst},${final}`);
  return Buffer.from(clientKey.map((byte, at) => byte ^ (signature[at] as number))).toString('base64');
}

it('CVE-2026-6665: a server’s nonce of any length is returned whole, or the server is disconnected', () =>
  withAttackedPooler(
    cluster,
    {
      databases: { '*': `${atLiar()} user=seeker password=seeker-password` },
      settings: { server_tls_sslmode: 'disable' },
    },
    async (bouncer) => {
      const salt = Buffer.from('0123456789abcdef');
      for (const extra of [18, 200, 1000, 4096, 65_000, 200_000, 300_000]) {
        let answer: { type: string; body: Buffer } | null | undefined;
        let clientFirst = '';
        let serverFirst = '';
        liar.play(`nonce${extra}`, async ({ socket, next }) => {
          socket.write(authentication(10, cstring('SCRAM-SHA-256'), Buffer.alloc(1)));
          const first = (await next())?.body.toString('latin1') ?? '';
          clientFirst = first.slice(first.indexOf('n='));
          const nonce = clientFirst.slice(clientFirst.indexOf('r=') + 2) + 'x'.repeat(extra);
          serverFirst = `r=${nonce},s=${salt.toString('base64')},i=4096`;
          socket.write(authentication(11, Buffer.from(serverFirst)));
          answer = await next();
          socket.end(errorResponse('SFATAL', 'C28P01', 'Mthat was all'));
        });
        const client = await bouncer.raw();
        await client.startup({ user: 'postgres', database: `nonce${extra}` });
        await client.sendMessage('Q', cstring('SELECT 1'));
        await refusedWith(client, /./);
        await eventually('the server to hear of it', () => answer !== undefined);
        if (extra >= 262_144) {
          assert.notEqual(answer?.type, 'p', 'longer than any message of a login');
          continue;
        }
        const [, final, proof] = /^(.*),p=([^,]*)$/.exec(answer?.body.toString('latin1') ?? '') ?? [];
        assert.equal(final, `c=biws,${serverFirst.slice(0, serverFirst.indexOf(','))}`);
        assert.equal(proof, proofOf('seeker-password', salt, clientFirst, serverFirst, final as string));
      }
    },
  ));

it('CVE-2026-6666: a server’s error without SQLSTATE, or without fields, is handled', () =>
  withAttackedPooler(
    cluster,
    {
      databases: { '*': `${atLiar()} auth_user=seeker` },
      settings: { server_tls_sslmode: 'disable', auth_type: 'plain', pool_mode: 'transaction' },
      userlist: { seeker: 'seeker-password', known: 'pass' },
    },
    async (bouncer) => {
      const errors = [
        errorResponse('SFATAL', 'Mgo away'),
        errorResponse('Mgo away'),
        errorResponse('SFATAL'),
        errorResponse(),
        message('E'),
        message('E', cstring('SFATAL'), Buffer.from('Mno end')),
        message('E', Buffer.from('C')),
      ];
      const handled = async (error: Buffer, index: number) => {
        // instead of a login: the client gets a complete error
        for (const user of ['known', 'ghost']) {
          const database = `${user}login${index}`;
          liar.play(database, async ({ socket }) => void socket.end(error));
          const client = await bouncer.raw();
          const answer = await client.login({ user, database, password: 'pass' });
          assert.match(answer.at(-1)?.body.toString('latin1') ?? '', /^SFATAL\0C08P01\0M[^\0]*\0\0$/);
          await client.destroy();
        }
        // instead of the answer to auth_query
        liar.play(`looked${index}`, async ({ socket, next }) => {
          socket.write(WELCOME);
          await next();
          socket.end(error);
        });
        const ghost = await bouncer.raw();
        const refused = await ghost.login({ user: 'ghost', database: `looked${index}`, password: 'any' });
        assert.equal(refused.at(-1)?.type, 'E');
        await ghost.destroy();

        // instead of the answer to a query: forwarded unchanged
        liar.play(`asked${index}`, async ({ socket, next }) => {
          socket.write(WELCOME);
          for (let msg = await next(); msg?.type === 'Q'; msg = await next())
            socket.write(Buffer.concat([error, READY]));
          socket.end();
        });
        const client = await bouncer.raw();
        await client.login({ user: 'known', database: `asked${index}`, password: 'pass' });
        assert.deepEqual((await client.query('SELECT 1'))[0], { type: 'E', body: error.subarray(5) });
        await client.destroy();
        // and as an answer to a preceding SET, after which the client is disconnected with the server's text
        const picky = await bouncer.raw();
        await picky.login({ user: 'known', database: `asked${index}`, password: 'pass', params: { TimeZone: 'Mars' } });
        await picky.sendMessage('Q', cstring('SELECT 1'));
        await refusedWith(picky, index < 2 ? 'go away' : 'invalid server parameter');
      };
      // at the same time, because clients of such servers wait for another attempt
      await Promise.all(errors.map(handled));
    },
  ));

it('CVE-2026-6667: a stats user cannot run commands that change state', () =>
  withAttackedPooler(cluster, {}, async (bouncer) => {
    const victim = await bouncer.connect();
    const stats = await bouncer.console({ user: STATS_USER, password: STATS_PASSWORD });
    const rows = (await stats.query('SHOW CLIENTS')).rows;
    const id = rows.find((row) => row.database === 'postgres')?.id;
    assert.ok(id !== undefined, 'the victim is seen');
    const commands = [
      `KILL_CLIENT ${id}`,
      `kill_client ${id};`,
      `"KILL_CLIENT" ${id}`,
      'KILL_CLIENT 1',
      'KILL_CLIENT',
      'KILL postgres',
      'KILL',
      'PAUSE',
      'PAUSE postgres',
      'SUSPEND',
      'DISABLE postgres',
      'ENABLE postgres',
      'RESUME',
      'RECONNECT',
      'RECONNECT postgres',
      'RELOAD',
      'WAIT_CLOSE',
      'SHUTDOWN',
      'SHUTDOWN WAIT_FOR_CLIENTS',
      'SHUTDOWN WAIT_FOR_SERVERS',
      'SHOW FDS',
      "SET auth_type = 'trust'",
      "SET admin_users = 'stats'",
    ];
    for (const command of commands) {
      await assert.rejects(stats.query(command), /admin access needed/, command);
    }
    // only a new process may use this command
    await assert.rejects(stats.query('HANDOVER 1'), /./);
    assert.equal((await victim.query('SELECT 1 AS one')).rows[0].one, 1);
    // the command itself exists: an administrator may use it
    await bouncer.admin(`KILL_CLIENT ${id}`);
    await assert.rejects(victim.query('SELECT 1'));
    assert.equal((await stats.query('SHOW POOLS')).rows.length > 0, true);
    await stats.end();
    // users on neither list cannot log in to the console
    await fails(bouncer.console({ user: 'postgres', password: '' }), 'not allowed');
  }));
