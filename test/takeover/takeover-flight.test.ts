/*
 * Takeovers with work in flight: cancel requests, client logins, and server connections that are not open yet.
 */

import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { eventually, installed, it, itUnless, noOriginal, PgCluster, startProgram } from '../harness';
import { BASE_DN, Directory, FalseDirectory, noSlapd } from '../harness/directory';
import { Gate } from '../harness/gate';
import { after, before } from '../harness/limits';
import { LogTail } from '../harness/log-tail';
import {
  CANCEL_REQUEST,
  cstring,
  errorFields,
  int32,
  letters,
  type Message,
  message,
  type RawClient,
  rowValues,
  startupPacket,
} from '../harness/raw-client';
import { type Kind, type PlaceOptions, type RebootChain, withPlace } from '../harness/reboot-chain';
import { md5Answer, ScramClient } from '../harness/scram';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
  await pg.createUser('scrammer', 'secret', 'scram');
  await pg.createUser('lucy', 'right', 'scram');
});
after(async () => {
  await pg.stop();
});

/** Runs `body` with a pooler that reaches database `app` through a gate. */
async function gated(
  body: (place: RebootChain, gate: Gate) => Promise<void>,
  more: Partial<PlaceOptions> = {},
  kind: Kind = 'ts',
): Promise<void> {
  const gate = await Gate.open(pg.port);
  const databases = { app: `host=127.0.0.1 port=${gate.port} dbname=postgres` };
  const settings = { pool_mode: 'transaction', ...more.settings };
  try {
    await withPlace({ cluster: pg, databases, ...more, settings }, async (place) => {
      await place.start(kind);
      await body(place, gate);
    });
  } finally {
    gate.close();
  }
}

async function loggedIn(place: RebootChain): Promise<RawClient> {
  const client = await place.raw();
  const answer = await client.login({ database: 'app' });
  assert.equal(answer.at(-1)?.type, 'Z', letters(answer));
  return client;
}

function firstValue(messages: Message[]): string | null {
  const error = messages.find((msg) => msg.type === 'E');
  if (error !== undefined) throw new Error(errorFields(error).M);
  const row = messages.find((msg) => msg.type === 'D');
  return row === undefined ? null : (rowValues(row)[0] ?? null);
}

async function poolRow(place: RebootChain): Promise<Record<string, string | number | null>> {
  return (await place.show('POOLS')).find((row) => row.database === 'app') ?? {};
}

/* ---- cancel requests ---- */

/** Starts a query that runs until it is canceled. */
async function victim(place: RebootChain): Promise<RawClient> {
  const client = await loggedIn(place);
  const mark = `victim ${client.socket.localPort}`;
  await client.sendMessage('Q', cstring(`SELECT /* ${mark} */ pg_sleep(600)`));
  const running = `SELECT 1 FROM pg_stat_activity WHERE query LIKE '%${mark}%' AND wait_event = 'PgSleep'`;
  await eventually('the query to run', async () => (await pg.sql(running)).rowCount === 1);
  return client;
}

/** Sends a cancel request and leaves its connection open. */
async function beginCancel(place: RebootChain, whom: RawClient): Promise<RawClient> {
  const request = await place.raw();
  await request.send(startupPacket(CANCEL_REQUEST, Buffer.concat([int32(whom.backendPid), whom.backendKey])));
  return request;
}

/** Checks that the client's query is canceled once, and that the client still works. */
async function isCanceled(client: RawClient): Promise<void> {
  const answer = await client.until('Z');
  assert.equal(letters(answer.filter((msg) => 'EZ'.includes(msg.type))), 'EZ');
  const error = errorFields(answer.find((msg) => msg.type === 'E') as Message);
  assert.deepEqual([error.C, error.M], ['57014', 'canceling statement due to user request']);
  assert.equal(firstValue(await client.query('SELECT 7')), '7');
  await client.end();
}

it('cancel requests that are being delivered or wait for a connection arrive across a takeover', () =>
  gated(
    async (place, gate) => {
      const victims = [await victim(place), await victim(place)];
      const [one, two] = victims as [RawClient, RawClient];
      gate.holds = 'cancels';
      const requests = [await beginCancel(place, one), await beginCancel(place, one)];
      await gate.waitHeld(2);
      requests.push(await beginCancel(place, two));
      const waits = async (): Promise<boolean> => {
        const row = await poolRow(place);
        return row.cl_active_cancel_req === 2 && row.cl_waiting_cancel_req === 1;
      };
      await eventually('the third to wait', waits);
      await place.reboot('ts');
      assert.ok(await waits(), JSON.stringify(await poolRow(place)));
      gate.letGo();
      for (const client of victims) await isCanceled(client);
      for (const request of requests) assert.deepEqual(await request.until(''), []);
      const row = await poolRow(place);
      assert.deepEqual([row.cl_active_cancel_req, row.cl_waiting_cancel_req], [0, 0]);
    },
    { settings: { default_pool_size: 2 } },
  ));

/** A relay with a short listen queue: connecting to it hangs while the relay is stopped. */
const NARROW_RELAY = `
const net = require('node:net');
const relay = net.createServer((from) => {
  const to = net.connect(Number(process.argv[1]), '127.0.0.1');
  from.pipe(to);
  to.pipe(from);
  for (const end of [from, to]) end.on('error', () => {}).on('close', () => { from.destroy(); to.destroy(); });
});
relay.listen({ port: 0, host: '127.0.0.1', backlog: 1 }, () => console.error('port ' + relay.address().port));
`;

it('a cancel request whose server connection is being opened arrives across a takeover', async () => {
  const args = ['-e', NARROW_RELAY, String(pg.port)];
  const relay = startProgram(installed().node, args, { stdio: ['ignore', 'ignore', 'pipe'] });
  const port = Number((await new LogTail(relay).wait(/port (\d+)\n/))[1]);
  const databases = { app: `host=127.0.0.1 port=${port} dbname=postgres` };
  await withPlace({ cluster: pg, databases, settings: { pool_mode: 'transaction' } }, async (place) => {
    await place.start('ts');
    const client = await victim(place);
    relay.kill('SIGSTOP');
    const fill = [1, 2, 3, 4].map(() => connect(port, '127.0.0.1').on('error', () => {}));
    await eventually('the queue to be full', () => fill.filter((socket) => !socket.connecting).length >= 2);
    const request = await beginCancel(place, client);
    await eventually('the connection to be made', async () => (await poolRow(place)).sv_login === 1);
    await place.reboot('ts');
    const row = await poolRow(place);
    assert.equal(row.cl_waiting_cancel_req, 1, JSON.stringify(row));
    for (const socket of fill) socket.destroy();
    relay.kill('SIGCONT');
    await isCanceled(client);
    assert.deepEqual(await request.until(''), []);
  });
  relay.kill('SIGKILL');
});

itUnless(noOriginal)('a takeover by PgBouncer waits in SUSPEND until cancel requests are delivered', () =>
  gated(
    async (place, gate) => {
      const victims = [await victim(place), await victim(place)];
      const [one, two] = victims as [RawClient, RawClient];
      gate.holds = 'cancels';
      const requests = [await beginCancel(place, one), await beginCancel(place, one)];
      await gate.waitHeld(2);
      requests.push(await beginCancel(place, two));
      await eventually('the third to wait', async () => (await poolRow(place)).cl_waiting_cancel_req === 1);
      await place.reboot('c', {}, async () => gate.letGo());
      for (const client of victims) await isCanceled(client);
      for (const request of requests) assert.deepEqual(await request.until(''), []);
    },
    { settings: { default_pool_size: 2, suspend_timeout: 15 } },
  ),
);

/* ---- server connections ---- */

for (const holds of ['logins', 'answers to logins'] as const) {
  it(`clients whose server is logging in get their answers across a takeover: ${holds} logins held`, () =>
    gated(async (place, gate) => {
      // the first client of a pool waits for its welcome message message
      gate.holds = holds;
      const first = await place.raw();
      const welcome = first.login({ database: 'app' });
      await gate.waitHeld(1);
      await place.reboot('ts');
      gate.letGo();
      assert.equal((await welcome).at(-1)?.type, 'Z');
      assert.equal(first.parameters.server_encoding, 'UTF8');
      assert.equal(firstValue(await first.query('BEGIN')), null);

      // later clients have logged in and wait for a server
      const [second, third] = [await loggedIn(place), await loggedIn(place)];
      gate.holds = holds;
      await second.sendMessage('Q', cstring("SELECT 'second'"));
      await gate.waitHeld(1);
      await third.sendMessage('Q', cstring("SELECT 'third'"));
      await eventually('both to wait', async () => (await poolRow(place)).cl_waiting === 2);
      await place.reboot('ts');
      gate.letGo();
      assert.equal(firstValue(await second.until('Z')), 'second');
      assert.equal(firstValue(await third.until('Z')), 'third');
      assert.equal(firstValue(await first.query('SELECT 1')), '1');
      for (const client of [first, second, third]) await client.end();
    }));
}

it('a replication client whose server is logging in gets its answer across a takeover', () =>
  gated(async (place, gate) => {
    gate.holds = 'answers to logins';
    const client = await place.raw();
    const welcome = client.login({ database: 'app', params: { replication: 'database' } });
    await gate.waitHeld(1);
    await place.reboot('ts');
    gate.letGo();
    assert.equal((await welcome).at(-1)?.type, 'Z', letters(await welcome));
    assert.ok(firstValue(await client.query('IDENTIFY_SYSTEM')));
    await client.end();
  }));

const ways = [
  ['ts', 'ts'],
  ['ts', 'c'],
  ['c', 'ts'],
] as [Kind, Kind][];

for (const [from, to] of ways) {
  itUnless(from === to ? null : noOriginal)(
    `a server that is logging in at a takeover is not used before it is ready: ${from} to ${to}`,
    () =>
      gated(
        async (place, gate) => {
          const first = await loggedIn(place);
          await first.query('BEGIN');
          gate.holds = 'answers to logins';
          const second = await loggedIn(place);
          await second.sendMessage('Q', cstring("SELECT 'second'"));
          await gate.waitHeld(1);
          // the second client gets the first client's server, so no client waits for the new server any more
          await first.query('COMMIT');
          assert.equal(firstValue(await second.until('Z')), 'second');
          await first.query('BEGIN');
          await place.reboot(to);
          await gate.waitHeld(0);
          gate.letGo();
          assert.equal(firstValue(await second.query('SELECT 2')), '2');
          for (const client of [first, second]) await client.end();
        },
        {},
        from,
      ),
  );
}

/* ---- logins ---- */

function passwordPacket(text: string): Buffer {
  return message('p', cstring(text));
}

/** A client that has been asked for its password, and its answer. */
interface Asked {
  client: RawClient;
  answer: Buffer;
}

async function asked(place: RebootChain, method: string, password: string): Promise<Asked> {
  const client = await place.raw();
  await client.startup({ user: 'scrammer', database: 'app' });
  const request = (await client.next()) as Message;
  assert.equal(request.type, 'R');
  if (method === 'md5') {
    assert.equal(request.body.readInt32BE(0), 5);
    return { client, answer: passwordPacket(md5Answer('scrammer', password, request.body.subarray(4))) };
  }
  if (method === 'plain') {
    assert.equal(request.body.readInt32BE(0), 3);
    return { client, answer: passwordPacket(password) };
  }
  assert.equal(request.body.readInt32BE(0), 10);
  const scram = new ScramClient(password);
  const first = Buffer.from(scram.first(), 'latin1');
  await client.sendMessage('p', cstring('SCRAM-SHA-256'), int32(first.length), first);
  const challenge = (await client.next()) as Message;
  const final = Buffer.from(scram.final(challenge.body.toString('latin1', 4)), 'latin1');
  return { client, answer: message('p', final) };
}

for (const method of ['md5', 'plain', 'scram-sha-256']) {
  it(`a client asked for its password by the old process logs in to the new process with auth_type ${method}`, () =>
    gated(
      async (place) => {
        const right = await asked(place, method, 'secret');
        const half = await asked(place, method, 'secret');
        const wrong = await asked(place, method, 'guess');
        await half.client.send(half.answer.subarray(0, 9));
        await place.reboot('ts');
        await place.reboot('ts');
        await right.client.send(right.answer);
        await half.client.send(half.answer.subarray(9));
        for (const { client } of [right, half]) {
          const welcome = await client.until('ZE');
          assert.equal(welcome.at(-1)?.type, 'Z', letters(welcome));
          assert.equal(firstValue(await client.query('SELECT current_user')), 'scrammer');
          await client.end();
        }
        await wrong.client.send(wrong.answer);
        const refused = (await wrong.client.until('ZE')).at(-1) as Message;
        assert.equal(refused.type, 'E');
        assert.match(errorFields(refused).M ?? '', /authentication failed/);
        assert.equal(await wrong.client.next(), null);
      },
      { settings: { auth_type: method }, userlist: { scrammer: 'secret', postgres: 'pw' } },
    ));
}

async function directoryLogin(): Promise<void> {
  const ldap = await Directory.start();
  let open = false;
  const waiting = new Set<() => void>();
  const slow = await FalseDirectory.start((socket) => {
    socket.pause();
    const go = () => {
      const behind = connect(ldap.port, '127.0.0.1').on('error', () => {});
      socket.pipe(behind);
      behind.pipe(socket);
      socket.once('close', () => behind.destroy());
    };
    if (open) go();
    else waiting.add(go);
  });
  try {
    const options = `ldapserver=127.0.0.1 ldapport=${slow.port} ldapprefix="uid=" ldapsuffix=",${BASE_DN}"`;
    const more = { settings: { auth_type: 'ldap', auth_ldap_options: options }, userlist: { postgres: '' } };
    await gated(async (place) => {
      const clients = [await place.raw(), await place.raw()];
      const logins = ['right', 'wrong'].map((password, i) =>
        (clients[i] as RawClient).login({ user: 'lucy', password, database: 'app' }),
      );
      await eventually('the directory to be asked', () => waiting.size === 2);
      await place.reboot('ts');
      await eventually('the new process to ask too', () => waiting.size === 4);
      open = true;
      for (const go of waiting) go();
      const [right, wrong] = await Promise.all(logins);
      assert.equal(right?.at(-1)?.type, 'Z', letters(right ?? []));
      assert.equal(errorFields(wrong?.at(-1) as Message).M, 'LDAP authentication failed');
      assert.equal(firstValue(await (clients[0] as RawClient).query('SELECT current_user')), 'lucy');
      for (const client of clients) await client.destroy();
    }, more);
  } finally {
    await slow.stop();
    await ldap.stop();
  }
}

itUnless(noSlapd)('a login that waits for a directory is decided by the new process', directoryLogin);
