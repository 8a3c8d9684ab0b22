/*
 * Security fixes without a CVE number in PgBouncer's changelog up to 1.18, each as an attack by a client or a server.
 * Tests are named after the version with the fix.
 *
 * - 1.6 (2015): a login whose header arrives in pieces was a bad packet
 * - 1.6.1 (2015): auth_type=any: logging a console login could crash
 * - 1.7.1 (2016): verify-ca and verify-full accepted clients without a certificate; allow and require verified none
 * - 1.8 (2017): a broken line discarded the whole HBA file; a cancel request hit the next client of the server
 * - 1.13 (2020): auth_query whose row has no user name
 * - 1.15 (2020): errors revealed which users exist
 * - 1.16 (2021): `pgbouncer` as the name of an ordinary database; accumulating cancel requests
 * - 1.17 (2022): errors before authentication revealed which databases exist, and the server's errors
 * - 1.18 (2022): a host list that is too long became the Unix socket; the race of 1.8 again
 *
 * security-fixes-since-1.19.test.ts has the later fixes, and security-copy.test.ts the fix of 1.22.1.
 */

import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { ADMIN_USER, type Bouncer, eventually, it, PgCluster } from '../harness';
import { errorResponse, ScriptedServer, withAttackedPooler } from '../harness/attacked-pooler';
import { CertFolder } from '../harness/certs';
import { fails } from '../harness/expect';
import { READY, WELCOME } from '../harness/hostile/fake-server';
import { after, before } from '../harness/limits';
import {
  CANCEL_REQUEST,
  cancelRequest,
  cstring,
  int16,
  int32,
  letters,
  message,
  PROTOCOL_30,
  RawClient,
  startupPacket,
} from '../harness/raw-client';

const certs = new CertFolder();
const ca = certs.authority('ca');
const otherCa = certs.authority('otherca');
const site = certs.issue(ca, 'site', { cn: 'localhost', san: 'DNS:localhost,IP:127.0.0.1' });
const ann = certs.issue(ca, 'ann', { cn: 'ann' });
const stranger = certs.issue(otherCa, 'stranger', { cn: 'ann' });

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

it('1.6: a login and a query may arrive byte by byte', () =>
  withAttackedPooler(cluster, {}, async (bouncer) => {
    const client = await bouncer.raw();
    const bytes = Buffer.concat([
      startupPacket(PROTOCOL_30, { user: 'postgres', database: 'postgres' }),
      message('Q', cstring('SELECT 42')),
    ]);
    for (let at = 0; at < bytes.length; at++) await client.send(bytes.subarray(at, at + 1));
    await client.until('Z');
    assert.equal(letters(await client.until('Z')), 'TDCZ');
    await client.end();
  }));

it('1.6.1: auth_type=any with verbose logging survives console logins', () =>
  withAttackedPooler(
    cluster,
    {
      settings: { auth_type: 'any', verbose: 2 },
      databases: { postgres: cluster.connstr('postgres', 'user=postgres') },
      userlist: { postgres: '' },
    },
    async (bouncer) => {
      for (const user of ['admin', 'stats']) {
        const client = await bouncer.raw();
        const welcome = await client.login({ user, database: 'pgbouncer' });
        assert.equal(welcome.at(-1)?.type, 'Z');
        assert.match(letters(await client.query('SHOW CLIENTS')), /^TD+CZ$/);
        await client.end();
      }
      const nobody = await bouncer.raw();
      const answer = await nobody.login({ user: 'somebody', database: 'pgbouncer' });
      // a guest without rights, or refused
      if (answer.at(-1)?.type === 'Z') {
        assert.equal((await nobody.query('SHUTDOWN'))[0]?.type, 'E');
      }
      await nobody.destroy();
    },
  ));

for (const mode of ['allow', 'require', 'verify-ca', 'verify-full']) {
  it(`1.7.1: client_tls_sslmode=${mode} verifies certificates`, () =>
    withAttackedPooler(
      cluster,
      {
        settings: {
          client_tls_sslmode: mode,
          client_tls_key_file: site.key,
          client_tls_cert_file: site.cert,
          client_tls_ca_file: ca.cert,
        },
      },
      async (bouncer) => {
        const base = { rejectUnauthorized: false };
        const shown = (cert: { cert: string; key: string }) => ({
          ...base,
          cert: readFileSync(cert.cert),
          key: readFileSync(cert.key),
        });
        const log = bouncer.log.mark();
        await assert.rejects(bouncer.sql('SELECT 1', { ssl: shown(stranger) }));
        await bouncer.logWait(/TLS handshake error: .*certificate verify failed/, log);
        assert.equal((await bouncer.sql('SELECT 1 AS one', { ssl: shown(ann) })).rows[0].one, 1);
        if (mode.startsWith('verify')) await assert.rejects(bouncer.sql('SELECT 1', { ssl: base }));
        else assert.equal((await bouncer.sql('SELECT 1 AS one', { ssl: base })).rows[0].one, 1);
      },
      { rejectUnauthorized: false, cert: readFileSync(ann.cert), key: readFileSync(ann.key) },
    ));
}

it('1.8, 1.18: a cancel request for a completed query cancels no other query', () =>
  withAttackedPooler(cluster, { settings: { pool_mode: 'transaction', default_pool_size: 1 } }, async (bouncer) => {
    const attacker = await bouncer.raw();
    await attacker.login();
    const victim = await bouncer.raw();
    await victim.login();
    for (let round = 0; round < 10; round++) {
      // the only server of the pool passes from the attacker to the victim
      await attacker.query('SELECT 1');
      await victim.sendMessage('Q', cstring('SELECT pg_sleep(0.05)'));
      await Promise.all([1, 2, 3].map(() => cancelRequest(target(bouncer), attacker.backendPid, attacker.backendKey)));
      assert.equal(letters(await victim.until('Z')), 'TDCZ');
    }
    await attacker.end();
    await victim.end();
  }));

const target = (bouncer: Bouncer) => ({ port: bouncer.port });

it('1.8: a broken HBA line does not affect other lines', () =>
  withAttackedPooler(cluster, {}, async (bouncer) => {
    const { writeFileSync } = await import('node:fs');
    const file = `${bouncer.dir}/hba.conf`;
    writeFileSync(
      file,
      [
        'host all "postgres 127.0.0.1/32 trust',
        'host all mallory 127.0.0.1/99 trust',
        'host all mallory 127.0.0.1/32 trust map=',
        'host all mallory 127.0.0.1 trust',
        'host all postgres 127.0.0.1/32 trust',
        'host pgbouncer admin 127.0.0.1/32 trust',
        '',
      ].join('\n'),
    );
    await bouncer.admin(`SET auth_hba_file = '${file}'`);
    bouncer.rewrite({ settings: { auth_type: 'hba', auth_hba_file: file }, userlist: { mallory: '' } });
    await bouncer.admin('RELOAD');
    assert.equal((await bouncer.sql('SELECT 1 AS one')).rows[0].one, 1);
    await fails(bouncer.connect({ user: 'mallory' }), 'no authentication method is found');
  }));

it('1.13: an auth_query with an unusable row is a config error', async () => {
  const text = (value: string | null) =>
    value === null ? int32(-1) : Buffer.concat([int32(value.length), Buffer.from(value)]);
  const rows: Buffer[] = [
    message('D', int16(2), text(null), text('pass')),
    message('D', int16(2), text(null), text(null)),
    message('D', int16(2), text('ghost'), text(null)),
    message('D', int16(2), text(''), text('')),
    message('D', int16(2), text('ghost')),
    message('D', int16(2), int32(-2), text('pass')),
    message('D', int16(2), int32(0x7fff_ffff), text('pass')),
    message('D', int16(2), text('ghost'), int32(1000)),
    message('D', int16(1), text('ghost')),
    message('D', int16(0)),
    message('D', int16(0xffff)),
    message('D'),
    message('T', int16(1)),
    message('T'),
  ];
  await withAttackedPooler(
    cluster,
    {
      databases: { '*': `${atLiar()} auth_user=seeker` },
      settings: { auth_type: 'plain', server_tls_sslmode: 'disable' },
      userlist: { seeker: 'seeker-password' },
    },
    async (bouncer) => {
      const refused = async (hostile: Buffer, index: number) => {
        liar.play(`row${index}`, async ({ socket, next }) => {
          socket.write(WELCOME);
          for (let msg = await next(); msg !== null && msg.type !== 'S'; msg = await next());
          socket.write(Buffer.concat([message('1'), message('2'), hostile, message('C', cstring('SELECT 1')), READY]));
        });
        for (const password of ['pass', 'md5']) {
          const client = await bouncer.raw();
          const answer = await client.login({ user: 'ghost', database: `row${index}`, password });
          assert.equal(answer.at(-1)?.type, 'E', `row ${index} let a client log in`);
          await client.destroy();
        }
      };
      // at the same time, because clients of such servers wait for another attempt
      await Promise.all(rows.map(refused));
    },
  );
});

for (const method of ['plain', 'md5', 'scram-sha-256']) {
  it(`1.15, 1.17: errors before authentication reveal neither users nor databases (${method})`, () =>
    withAttackedPooler(
      cluster,
      { settings: { auth_type: method }, userlist: { known: 'known-password' }, databases: { down: 'host=/nowhere' } },
      async (bouncer) => {
        const answers = new Map<string, string>();
        for (const user of ['known', 'unknown']) {
          for (const database of ['postgres', 'nothing', 'down']) {
            const client = await bouncer.raw();
            const answer = await client.login({ user, database, password: 'guess' });
            const shape = answer.map((msg) => (msg.type === 'R' ? `R${msg.body.readInt32BE(0)}` : msg.type)).join();
            answers.set(`${user} ${database}`, `${shape} ${answer.at(-1)?.body.toString('latin1')}`);
            await client.destroy();
          }
        }
        assert.equal(new Set(answers.values()).size, 1, JSON.stringify([...answers]));
        // after authentication, the error names the database
        const client = await bouncer.raw();
        const told = await client.login({ user: 'known', database: 'nothing', password: 'known-password' });
        assert.match(told.at(-1)?.body.toString('latin1') ?? '', /no such database: nothing/);
        await client.destroy();
      },
    ));
}

it('1.15: each unknown user has its own constant SCRAM salt', () =>
  withAttackedPooler(cluster, { settings: { auth_type: 'scram-sha-256' } }, async (bouncer) => {
    const saltOf = async (user: string): Promise<string> => {
      const client = await bouncer.raw();
      await client.startup({ user, database: 'postgres' });
      await client.next();
      const first = Buffer.from('n,,n=,r=abcdefghijklmnopqrstuvwx');
      await client.sendMessage('p', cstring('SCRAM-SHA-256'), int32(first.length), first);
      const text = (await client.next())?.body.toString('latin1', 4) ?? '';
      await client.destroy();
      return /s=([^,]*)/.exec(text)?.[1] ?? text;
    };
    const salts = [await saltOf('ghost1'), await saltOf('ghost1'), await saltOf('ghost2')];
    assert.equal(salts[0], salts[1]);
    assert.notEqual(salts[0], salts[2]);
    assert.match(salts[0] as string, /^[A-Za-z0-9+/]{22}==$/);
  }));

it('1.16, 1.21: cancel requests in any number and state leave nothing behind', () =>
  withAttackedPooler(
    cluster,
    { settings: { pool_mode: 'transaction', default_pool_size: 2, max_client_conn: 500, log_connections: 0 } },
    async (bouncer) => {
      const clients = await Promise.all(Array.from({ length: 6 }, () => bouncer.raw()));
      await Promise.all(clients.map((client) => client.login()));
      const storm = async (round: number): Promise<void> => {
        for (const client of clients) await client.sendMessage('Q', cstring('SELECT pg_sleep(0.01)'));
        const requests = await Promise.all(Array.from({ length: 30 }, () => RawClient.connect(target(bouncer))));
        for (const [index, request] of requests.entries()) {
          const victim = clients[index % clients.length] as RawClient;
          const key = Buffer.concat([int32(victim.backendPid), victim.backendKey]);
          if (index % 7 === 0) key[5] = (key[5] as number) ^ 0x55;
          await request.send(startupPacket(CANCEL_REQUEST, key));
          // some disconnect before their request is done
          if ((index + round) % 3 === 0) request.socket.destroy();
        }
        for (const client of clients) assert.match(letters(await client.until('Z')), /^(TDC|E|TE)Z$/);
        for (const request of requests) {
          if (!request.socket.destroyed) await request.until('');
          await request.destroy();
        }
      };
      for (let round = 0; round < 5; round++) await storm(round);
      for (const client of clients) await client.end();
      await eventually('nothing left', async () => {
        const rows = await bouncer.admin('SHOW POOLS');
        const pool = rows.find((found) => found.database === 'postgres') ?? {};
        return Object.entries(pool).every(([name, value]) => !/cancel|^cl_/.test(name) || Number(value) === 0);
      });
    },
  ));

it('1.17: errors of the server are shown only after authentication', () =>
  withAttackedPooler(
    cluster,
    {
      databases: { secretive: atLiar() },
      settings: { auth_type: 'md5', server_tls_sslmode: 'disable', server_login_retry: 30 },
      userlist: { known: 'known-password' },
    },
    async (bouncer) => {
      liar.play('secretive', async ({ socket }) => void socket.end(errorResponse('SFATAL', 'C53300', 'Msecret 4711')));
      const known = await bouncer.raw();
      const told = await known.login({ user: 'known', database: 'secretive', password: 'known-password' });
      assert.match(told.at(-1)?.body.toString('latin1') ?? '', /secret 4711/);
      await known.destroy();
      const guest = await bouncer.raw();
      const answer = await guest.login({ user: 'known', database: 'secretive', password: 'guess' });
      assert.doesNotMatch(Buffer.concat(answer.map((msg) => msg.body)).toString('latin1'), /secret|4711|cached/);
      await guest.destroy();
    },
  ));

it('1.18: a host list of any length is used in turn, and never means the Unix socket', () =>
  withAttackedPooler(
    cluster,
    {
      databases: {
        many: `host=${Array.from({ length: 600 }, () => '127.0.0.1').join(',')} port=${cluster.port} dbname=postgres`,
      },
      settings: { default_pool_size: 5, server_round_robin: 1 },
    },
    async (bouncer) => {
      const clients = await Promise.all(Array.from({ length: 5 }, () => bouncer.connect({ database: 'many' })));
      for (const client of clients) {
        const answer = await client.query('SELECT host(inet_server_addr()) AS host');
        assert.equal(answer.rows[0].host, '127.0.0.1');
        await client.end();
      }
    },
  ));
