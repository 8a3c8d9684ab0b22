/*
 * npm run hostile-memory: opens 100,000 connections of hostile clients that never authenticate, against one pooler with
 * a heap of 256 MB. Prints how much resident memory each kind leaves behind, and fails if all kinds together leave more
 * than 10 MB. HOSTILE_CONNECTIONS sets another number.
 */

import { randomBytes } from 'node:crypto';
import { writeFileSync } from 'node:fs';
import { connect, type Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as pause } from 'node:timers/promises';
import { connect as connectTls } from 'node:tls';
import { Bouncer, findProgram, PgCluster, run, tempDir, user } from '../test/harness';
import { CertFolder } from '../test/harness/certs';
import { eachCase } from '../test/harness/hostile/attack';
import {
  CANCEL_REQUEST,
  cstring,
  int32,
  message,
  PROTOCOL_30,
  RawClient,
  SSL_REQUEST,
  startupPacket,
} from '../test/harness/raw-client';
import { giveTo } from '../tools/unprivileged';
import { rssKb } from './cpu';

const CONNECTIONS = Number(process.env.HOSTILE_CONNECTIONS ?? 100_000);
const GROWTH_MAX_MB = 10;
const AT_ONCE = 100;
/** A part of each kind runs first, so that one-time allocations are done. */
const WARM_UP = 0.05;
/** ms; several maintenance rounds */
const REST_MS = 4000;
/** ms; a login that fails is answered late */
const ANSWER_MS_MAX = 30_000;
/** Shorter than the longest startup packet. */
const LONG = 6000;
const KEY_UPDATES = 2000;
const KB = 1024;

interface Kind {
  name: string;
  /** of all connections */
  share: number;
  one: (port: number, index: number) => Promise<void>;
}

/** A unique text of that length. */
function fresh(length: number): string {
  return randomBytes(Math.ceil(length / 2))
    .toString('hex')
    .slice(0, length);
}

/** Connects from one of several addresses, because one address has too few ports. */
function dial(port: number, index: number): Socket {
  const socket = connect({ host: '127.0.0.1', port, localAddress: `127.0.0.${2 + (index % 16)}` });
  socket.on('error', () => socket.destroy());
  return socket;
}

/** Waits until the pooler has sent something or closed the connection. */
function answered(socket: Socket): Promise<Buffer | null> {
  return new Promise((settle) => {
    const timer = setTimeout(() => settle(null), ANSWER_MS_MAX);
    const done = (bytes: Buffer | null) => {
      clearTimeout(timer);
      settle(bytes);
    };
    socket.once('data', done);
    socket.once('close', () => done(null));
  });
}

async function sendAndLeave(port: number, index: number, bytes: Buffer): Promise<void> {
  const socket = dial(port, index);
  socket.write(bytes);
  await answered(socket);
  socket.destroy();
}

/** Sends bytes that the pooler does not answer yet, and disconnects. */
async function sendAndVanish(port: number, index: number, bytes: Buffer): Promise<void> {
  const socket = dial(port, index);
  await new Promise<void>((settle) => {
    socket.once('connect', () => socket.write(bytes, () => settle()));
    socket.once('close', () => settle());
  });
  await pause(5);
  socket.destroy();
}

function strangers(index: number): Buffer {
  const names = { user: fresh(63), database: fresh(63) };
  const long: Record<string, string> =
    index % 2 === 0 ? { application_name: fresh(LONG) } : { options: `-c search_path=${fresh(LONG)}` };
  return startupPacket(PROTOCOL_30, { ...names, ...long, client_encoding: fresh(40), TimeZone: fresh(40) });
}

async function wrongPassword(port: number, user: string): Promise<void> {
  const client = await RawClient.connect({ port });
  await client.login({ user, database: fresh(20), password: fresh(200) }).catch(() => {});
  await client.destroy();
}

/** A TLS connection that requests key updates repeatedly. */
async function keyUpdates(port: number): Promise<void> {
  const openssl = findProgram('openssl');
  if (openssl === null) throw new Error('openssl is not installed');
  const args = ['s_client', '-starttls', 'postgres', '-tls1_3', '-connect', `127.0.0.1:${port}`, '-quiet'];
  await run(openssl, args, { input: 'K\n'.repeat(KEY_UPDATES), asSelf: true });
}

const ASK_FOR_TLS = Buffer.concat([int32(8), int32(SSL_REQUEST)]);

async function tlsLogin(port: number, index: number): Promise<void> {
  const plain = dial(port, index);
  plain.write(ASK_FOR_TLS);
  if ((await answered(plain))?.[0] !== 0x53) return;
  const socket = connectTls({ socket: plain, rejectUnauthorized: false });
  socket.on('error', () => socket.destroy());
  await new Promise<void>((settle) => {
    socket.once('secureConnect', () => settle());
    socket.once('close', () => settle());
  });
  socket.write(strangers(index));
  await answered(socket);
  socket.destroy();
}

/** The beginning of a handshake that announces a length. */
const HELLO = Buffer.concat([Buffer.from('16030102000100', 'hex'), Buffer.from('01fc0303', 'hex'), randomBytes(200)]);

const KINDS: Kind[] = [
  {
    name: 'startup packets with ever new values',
    share: 0.5,
    one: (port, index) => sendAndLeave(port, index, strangers(index)),
  },
  {
    name: 'wrong passwords, SCRAM',
    share: 0.06,
    one: (port, index) => wrongPassword(port, index % 2 === 0 ? 'scrammer' : fresh(30)),
  },
  { name: 'wrong passwords, md5', share: 0.06, one: (port) => wrongPassword(port, 'hasher') },
  { name: 'wrong passwords, plain', share: 0.06, one: (port) => wrongPassword(port, 'plainer') },
  {
    name: 'users that auth_query does not know',
    share: 0.04,
    one: (port, index) =>
      sendAndLeave(port, index, startupPacket(PROTOCOL_30, { user: fresh(63), database: 'asking' })),
  },
  {
    name: 'halves of startup packets',
    share: 0.12,
    one: (port, index) => {
      const packet = strangers(index);
      return sendAndVanish(port, index, packet.subarray(0, 1 + (index % (packet.length - 1))));
    },
  },
  {
    name: 'cancel requests with random keys',
    share: 0.08,
    one: (port, index) => sendAndVanish(port, index, Buffer.concat([int32(16), int32(CANCEL_REQUEST), randomBytes(8)])),
  },
  {
    name: 'messages in place of a startup packet',
    share: 0.03,
    one: (port, index) => sendAndLeave(port, index, message('p', cstring(fresh(LONG)))),
  },
  {
    name: 'halves of TLS handshakes',
    share: 0.03,
    one: async (port, index) => {
      const socket = dial(port, index);
      socket.write(ASK_FOR_TLS);
      await answered(socket);
      socket.write(HELLO.subarray(0, 1 + (index % HELLO.length)));
      await pause(5);
      socket.destroy();
    },
  },
  { name: 'TLS, then startup packets', share: 0.0195, one: tlsLogin },
  { name: `TLS, then ${KEY_UPDATES} key updates`, share: 0.0005, one: keyUpdates },
];

const RULES = `local all all peer
host all admin all trust
host all hasher all md5
host all plainer all password
host all all all scram-sha-256
`;

async function startTarget(cluster: PgCluster): Promise<Bouncer> {
  const certs = new CertFolder();
  const identity = certs.authority('localhost');
  const dir = tempDir('rules');
  const rules = join(dir, 'hba.conf');
  writeFileSync(rules, RULES);
  giveTo(user, rules);
  return Bouncer.start({
    cluster,
    databases: {
      asking: cluster.connstr('postgres', 'auth_user=postgres'),
      '*': cluster.connstr('postgres'),
    },
    userlist: { scrammer: 'right', hasher: 'right', plainer: 'right' },
    settings: {
      auth_type: 'hba',
      auth_hba_file: rules,
      auth_query: 'SELECT usename, passwd FROM pg_shadow WHERE usename = $1',
      max_client_conn: 2000,
      client_tls_sslmode: 'allow',
      client_tls_key_file: identity.key,
      client_tls_cert_file: identity.cert,
      log_connections: 0,
      log_disconnections: 0,
      log_pooler_errors: 0,
    },
    env: { NODE_OPTIONS: '--max-old-space-size=256' },
  });
}

async function main(): Promise<void> {
  const cluster = await PgCluster.start({ settings: { log_connections: 'off' } });
  const bouncer = await startTarget(cluster);
  const run = async (kind: Kind, part: number): Promise<number> => {
    const count = Math.max(1, Math.round(CONNECTIONS * kind.share * part));
    await eachCase(count, AT_ONCE, (index) => kind.one(bouncer.port, index));
    return count;
  };
  for (const kind of KINDS) await run(kind, WARM_UP);
  await pause(REST_MS);
  const begin = rssKb(bouncer.pid) / KB;
  let before = begin;
  let total = 0;
  console.log(`${'kind'.padEnd(42)}${'connections'.padStart(12)}${'MB before'.padStart(11)}${'MB after'.padStart(10)}`);
  for (const kind of KINDS) {
    const count = await run(kind, 1);
    await pause(REST_MS);
    const after = rssKb(bouncer.pid) / KB;
    console.log(
      kind.name.padEnd(42) +
        String(count).padStart(12) +
        before.toFixed(1).padStart(11) +
        after.toFixed(1).padStart(10),
    );
    before = after;
    total += count;
  }
  const lists = await bouncer.admin('SHOW LISTS');
  console.log(`\nSHOW LISTS: ${lists.map((row) => `${row.list} ${row.items}`).join(', ')}`);
  console.log(`${total} connections: ${begin.toFixed(1)} MB at the start, ${before.toFixed(1)} MB at the end`);
  await bouncer.stop();
  await cluster.stop();
  if (before - begin > GROWTH_MAX_MB) throw new Error(`grew by more than ${GROWTH_MAX_MB} MB`);
}

main().then(
  () => process.exit(0),
  (err) => {
    console.error(err instanceof Error ? err.message : err);
    process.exit(1);
  },
);
