/*
 * Invalid bytes from clients and servers: the pooler ends those connections and no others. Other clients work during
 * the attacks, and afterwards the pooler holds no more resources than before. HOSTILE_SEED repeats a failing run.
 */

import assert from 'node:assert/strict';
import { Bouncer, eventually, it, PgCluster, STATS_PASSWORD, STATS_USER } from '../harness';
import { attack, checkAnswer, eachCase, type Holding, holding, lists, reset } from '../harness/hostile/attack';
import { CalmClients } from '../harness/hostile/calm';
import {
  type Ending,
  FakeServer,
  finish,
  hostileAnswer,
  hostileLogin,
  hostileSslAnswer,
  NO_DATABASE,
  oneRow,
  READY,
  type Visit,
  WELCOME,
} from '../harness/hostile/fake-server';
import { Random, seedFrom } from '../harness/hostile/random';
import { hostileCommands, hostileMessages } from '../harness/hostile/sessions';
import { hostilePassword, hostileStartup } from '../harness/hostile/startups';
import { after, before } from '../harness/limits';
import { PROTOCOL_30, RawClient, rowValues, startupPacket } from '../harness/raw-client';

const STARTUPS = 5000;
const PASSWORDS_EACH = 600;
const SESSIONS = 2500;
const COMMANDS = 600;
const SERVER_LOGINS = 500;
const SERVER_ANSWERS = 500;
const SERVER_SSL = 90;
const SERVER_IDLES = 150;
const AT_ONCE = 32;
const CALM_CLIENTS = 3;
/** pools of three users of the real database, and of the console */
const OWN_POOLS = 4;
/** Most memory, heap and kernel, that this file's clients may cost the pooler. */
const GROWTH_KB_MAX = 64 * 1024;

const seed = seedFrom('HOSTILE_SEED');
const random = (kind: number, index: number) => new Random(seed + kind * 1_000_003 + index * 7919);

let cluster: PgCluster;
let bouncer: Bouncer;
let fake: FakeServer;
let calm: CalmClients;
let idleLists: Record<string, number>;
let idle: Holding;
/** the fake server's behaviour per database name */
const visits = new Map<string, (visit: Visit) => Promise<void>>();

before(async () => {
  console.log(`HOSTILE_SEED=${seed}`);
  cluster = await PgCluster.start({ settings: { log_connections: 'off', log_disconnections: 'off' } });
  fake = await FakeServer.start(async (visit) => {
    const serve = visits.get(visit.database);
    if (serve === undefined) visit.socket.end(NO_DATABASE);
    else await serve(visit);
  });
  bouncer = await Bouncer.start({
    cluster,
    databases: { postgres: cluster.connstr(), '*': `host=127.0.0.1 port=${fake.port}` },
    userlist: { calm: 'calm-password', patient: 'patient-password' },
    settings: {
      pool_mode: 'transaction',
      default_pool_size: 20,
      max_client_conn: 5000,
      log_connections: 0,
      log_disconnections: 0,
      log_pooler_errors: 0,
      client_login_timeout: 3,
      server_connect_timeout: 1,
      server_login_retry: 1,
      query_wait_timeout: 3,
      server_idle_timeout: 2,
      autodb_idle_timeout: 1,
    },
  });
  await cluster.createUser('calm', 'calm-password');
  await cluster.createUser('patient', 'patient-password');
  // runs every part once, so that one-time allocations are done
  for (let turn = 0; turn < 3; turn++) await eachCase(200, AT_ONCE, (index) => clientCase(99, index));
  await bouncer.sql('SELECT 1', { user: 'calm' });
  await bouncer.sql('SELECT 1', { user: 'patient' });
  await bouncer.admin('SHOW VERSION', { user: STATS_USER, password: STATS_PASSWORD });
  idleLists = await settledLists();
  idle = holding(bouncer.pid);
  calm = new CalmClients(bouncer, CALM_CLIENTS);
});

after(async () => {
  await bouncer?.stop();
  await fake?.stop();
  await cluster?.stop();
});

/** SHOW LISTS once only the console client, no server and no auto-database is left. */
function settledLists(): Promise<Record<string, number>> {
  let now: Record<string, number> = {};
  const idleNow = async () => {
    now = lists(await bouncer.admin('SHOW LISTS'));
    return now.used_clients === 1 && now.used_servers === 0 && now.pools === OWN_POOLS ? now : null;
  };
  return eventually('the pooler to be idle', idleNow).catch((err) => {
    throw new Error(`${err.message}: ${JSON.stringify(now)}`);
  });
}

const tcp = () => ({ port: bouncer.port });
const unix = () => ({ path: `${bouncer.socketDir}/.s.PGSQL.${bouncer.port}` });

async function clientCase(kind: number, index: number): Promise<void> {
  const r = random(kind, index);
  const target = r.one(2) ? tcp() : unix();
  checkAnswer(await attack({ target, bytes: hostileStartup(r), random: r }));
}

async function sessionCase(kind: number, index: number, user: string, database: string, bytes: (r: Random) => Buffer) {
  const r = random(kind, index);
  const login = startupPacket(PROTOCOL_30, { user, database });
  const target = r.one(2) ? tcp() : unix();
  const received = await attack({ target, login, bytes: bytes(r), random: r });
  assert.equal(received.toString('latin1', 0, 1), 'R', 'the login was not answered');
  checkAnswer(received);
}

it(`${STARTUPS} hostile startup packets harm no other client`, async () => {
  await eachCase(STARTUPS, AT_ONCE, (index) => clientCase(1, index));
});

for (const [number, method] of ['plain', 'md5', 'scram-sha-256'].entries()) {
  it(`${PASSWORDS_EACH} hostile answers to ${method} harm no other client`, async () => {
    await bouncer.admin(`SET auth_type = '${method}'`);
    await eachCase(PASSWORDS_EACH, AT_ONCE, (index) => {
      return sessionCase(10 + number, index, index % 5 === 0 ? 'nobody-knows' : 'patient', 'postgres', hostilePassword);
    });
    await bouncer.admin(`SET auth_type = 'trust'`);
  });
}

it(`${SESSIONS} hostile sessions harm no other client`, async () => {
  await eachCase(SESSIONS, AT_ONCE, (index) => sessionCase(2, index, 'postgres', 'postgres', hostileMessages));
});

it(`${COMMANDS} hostile console sessions harm no other client`, async () => {
  await eachCase(COMMANDS, AT_ONCE, (index) => sessionCase(3, index, 'stats', 'pgbouncer', hostileCommands));
});

it('clients that do not read cost only limited memory', async () => {
  // a busy machine must not cost a reader its place in the queue
  await bouncer.admin('SET server_connect_timeout = 15');
  await bouncer.admin('SET query_wait_timeout = 60');
  const readers = await Promise.all(Array.from({ length: 15 }, () => bouncer.raw()));
  await Promise.all(readers.map((reader) => reader.login()));
  for (const reader of readers) {
    reader.pause();
    await reader.sendMessage('Q', Buffer.from("SELECT repeat('x', 1000000) FROM generate_series(1, 100)\0"));
  }
  const askers = await Promise.all(Array.from({ length: 15 }, () => bouncer.raw()));
  await Promise.all(askers.map((asker) => asker.login({ user: 'stats', database: 'pgbouncer' })));
  for (const asker of askers) {
    asker.pause();
    // never read, so never sent in full: the kernel's buffers fill, and the pooler stops reading
    void asker.send(Buffer.concat(Array.from({ length: 3000 }, () => Buffer.from('Q\0\0\0\x10SHOW CONFIG\0'))));
  }
  await eventually('servers to wait for their readers', async () => {
    const pools = await bouncer.admin('SHOW POOLS');
    return pools.some((pool) => Number(pool.sv_active) >= readers.length);
  });
  for (let round = 0; round < 20; round++) {
    const { rssKb } = holding(bouncer.pid);
    assert.ok(rssKb - idle.rssKb < GROWTH_KB_MAX, `${rssKb - idle.rssKb} kB held for readers that do not read`);
    await bouncer.admin('SHOW POOLS');
  }
  await Promise.all([...readers, ...askers].map((client) => client.destroy(true)));
  await bouncer.admin('SET server_connect_timeout = 1');
  await bouncer.admin('SET query_wait_timeout = 3');
});

/** How a hostile server ends its bytes. Silence makes the pooler wait, so it is rare. */
function ending(r: Random): Ending {
  return r.one(12) ? 'silence' : r.pick(['fin', 'fin', 'rst']);
}

/** A client of the fake server: sends queries and reads all answers until the server has sent its bytes. */
async function visitor(database: string, shown: Promise<void>, r: Random): Promise<void> {
  const client = await bouncer.raw();
  await client.startup({ user: 'postgres', database });
  await client.sendMessage('Q', Buffer.from('SELECT token\0'));
  client.resume();
  await Promise.race([shown, client.closed]);
  // some clients wait for the pooler's error
  if (r.one(10)) client.socket.end();
  else reset(client.socket);
  await client.closed;
}

async function serverCase(
  name: string,
  r: Random,
  serve: (visit: Visit, first: boolean) => Promise<void>,
): Promise<void> {
  let told = () => {};
  const shown = new Promise<void>((settle) => {
    told = settle;
  });
  let first = true;
  visits.set(name, async (visit) => {
    visit.socket.once('close', told);
    await serve(visit, first);
    first = false;
    // all bytes have left this process; a silent server sends no more
    told();
  });
  await visitor(name, shown, r);
  visits.delete(name);
}

it(`${SERVER_LOGINS} servers that break the login harm no client`, async () => {
  await eachCase(SERVER_LOGINS, AT_ONCE, async (index) => {
    const r = random(4, index);
    await serverCase(`login${index}`, r, async ({ socket, next }) => {
      socket.write(hostileLogin(r));
      // some servers continue after an answer, if there is one
      if (r.one(4) && (await next()) !== null) socket.write(hostileLogin(r));
      finish(socket, ending(r));
    });
  });
});

it(`${SERVER_SSL} servers that break the answer to SSLRequest harm no client`, async () => {
  let answers = 0;
  fake.sslAnswer = () => hostileSslAnswer(random(8, answers++));
  const clients = await Promise.all(Array.from({ length: AT_ONCE }, () => bouncer.raw()));
  await Promise.all(clients.map((client, n) => client.startup({ user: 'postgres', database: `ssl${n}` })));
  // the pooler repeats its attempts
  await eventually('enough attempts', () => answers >= SERVER_SSL);
  await Promise.all(clients.map((client) => client.destroy(true)));
  fake.sslAnswer = () => Buffer.from('N');
});

it(`${SERVER_ANSWERS} servers that break their answers harm no other client`, async () => {
  await eachCase(SERVER_ANSWERS, AT_ONCE, async (index) => {
    const r = random(5, index);
    await serverCase(`answer${index}`, r, async ({ socket, next }) => {
      socket.write(WELCOME);
      if ((await next()) === null) return;
      for (let left = r.between(1, 3); left > 0; left--) socket.write(hostileAnswer(r));
      finish(socket, ending(r));
    });
  });
});

it(`${SERVER_IDLES} idle servers that send messages harm no client`, async () => {
  await eachCase(SERVER_IDLES, 8, async (index) => {
    const r = random(6, index);
    const name = `idle${index}`;
    let speak = () => {};
    visits.set(name, async ({ socket, next }) => {
      socket.write(WELCOME);
      for (let msg = await next(); msg !== null && msg.type === 'Q'; msg = await next()) {
        const token = /'(.*)'/.exec(msg.body.toString('latin1'))?.[1] ?? '';
        socket.write(oneRow(token));
        // otherwise a message begun while idle would never end
        if (token.startsWith('again')) break;
        speak = () => socket.write(r.one(3) ? oneRow('wrong') : hostileAnswer(r));
      }
      socket.end();
    });
    const first = await bouncer.raw();
    await first.login({ database: name });
    assert.deepEqual(rowOf(await first.query(`SELECT 'token${index}'`)), [`token${index}`]);
    await first.end();
    speak();
    // the console answers after the pooler has read the server's bytes
    await bouncer.admin('SHOW VERSION');
    const second = await RawClient.connect(tcp());
    await second.login({ database: name });
    const answer = await second.query(`SELECT 'again${index}'`);
    // an incomplete message may swallow the answer, but a complete message must not be taken for the answer
    const got = rowOf(answer)?.[0] ?? null;
    assert.ok(got === null || got === `again${index}`, `a client got ${got}`);
    await second.destroy();
    visits.delete(name);
  });
});

function rowOf(messages: { type: string; body: Buffer }[]): (string | null)[] | undefined {
  const row = messages.find((msg) => msg.type === 'D');
  return row === undefined ? undefined : rowValues(row as { type: string; body: Buffer });
}

it('a server whose parameters never end is closed', async () => {
  const flood = Buffer.concat(
    Array.from({ length: 1000 }, (_, n) =>
      Buffer.from(`S\0\0\0\x6eparam${String(n).padStart(4, '0')}\0${'v'.repeat(95)}\0`),
    ),
  );
  let sent = 0;
  const name = 'flood';
  await serverCase(name, random(7, 0), async ({ socket }) => {
    socket.write(WELCOME.subarray(0, 9));
    const more = () => {
      while (!socket.destroyed && sent < 512 * 1024 * 1024) {
        sent += flood.length;
        if (!socket.write(flood)) return;
      }
    };
    socket.on('drain', more);
    more();
    await new Promise<void>((settle) => socket.once('close', () => settle()));
  });
  assert.ok(sent < 64 * 1024 * 1024, `the pooler took ${sent} bytes of parameters`);
});

it('failed logins do not accumulate memory', async () => {
  let tries = 0;
  visits.set('retry', async ({ socket, next }) => {
    socket.write(Buffer.concat([WELCOME.subarray(0, 9), Buffer.from('S\0\0\0\x0ato\0be\0')]));
    if (tries++ < 2) return finish(socket, 'fin');
    socket.write(WELCOME.subarray(9));
    while ((await next()) !== null) socket.write(READY);
    socket.end();
  });
  const client = await bouncer.raw();
  const welcome = await client.login({ database: 'retry' });
  assert.equal(welcome.filter((msg) => msg.type === 'S' && msg.body.toString('latin1') === 'to\0be\0').length, 1);
  await client.end();
  visits.delete('retry');
});

it('the attacks leave no sockets, memory or servers behind', async () => {
  await calm.stop();
  assert.ok(calm.queries > 500, `only ${calm.queries} queries of the calm clients`);
  const after = await settledLists();
  assert.deepEqual(after, idleLists);
  await eventually('descriptors to be closed', () => holding(bouncer.pid).descriptors === idle.descriptors, 5000).catch(
    () => {
      assert.equal(holding(bouncer.pid).descriptors, idle.descriptors);
    },
  );
  const now = holding(bouncer.pid);
  assert.ok(now.rssKb - idle.rssKb < GROWTH_KB_MAX, `resident memory grew from ${idle.rssKb} to ${now.rssKb} kB`);
  const faults = bouncer.log.text.split('\n').filter((line) => /\] FATAL |exception|internal error/.test(line));
  assert.deepEqual(faults.slice(0, 5), []);
  console.log(
    `calm: ${calm.queries} queries, ${calm.logins} logins; RSS ${idle.rssKb} -> ${now.rssKb} kB, fds ${now.descriptors}`,
  );
});
