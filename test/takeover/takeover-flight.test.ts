/*
 * Takeovers with work in flight: cancel requests, client logins, and server connections that are not open yet. Without TLS,
 * and with TLS on both sides.
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
import { type ChainOptions, type Kind, type RebootChain, withRebootChain } from '../harness/reboot-chain';
import { bindingOf, md5Answer, ScramClient } from '../harness/scram';
import { TlsPlace, TRANSPORTS } from '../harness/tls-place';

const place = new TlsPlace();
let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start({ settings: place.ofServers });
  await pg.createUser('scrammer', 'secret', 'scram');
  await pg.createUser('lucy', 'right', 'scram');
});
after(async () => {
  await pg.stop();
});

/** Runs `body` with a pooler that reaches database `app` through a gate. */
async function gated(
  body: (chain: RebootChain, gate: Gate) => Promise<void>,
  more: Partial<ChainOptions> = {},
  secured = false,
  kind: Kind = 'ts',
): Promise<void> {
  const gate = await Gate.open(pg.port);
  const databases = { app: `host=127.0.0.1 port=${gate.port} dbname=postgres` };
  const settings = { pool_mode: 'transaction', ...more.settings };
  try {
    await withRebootChain(place.optionsOf({ cluster: pg, databases, ...more, settings }, secured), async (chain) => {
      await chain.start(kind);
      await body(chain, gate);
    });
  } finally {
    gate.close();
  }
}

async function loggedIn(chain: RebootChain): Promise<RawClient> {
  const client = await chain.raw();
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

async function poolRow(chain: RebootChain): Promise<Record<string, string | number | null>> {
  return (await chain.show('POOLS')).find((row) => row.database === 'app') ?? {};
}

/* ---- cancel requests ---- */

let victims = 0;

/** Starts a query that runs until it is canceled. */
async function victim(chain: RebootChain): Promise<RawClient> {
  const client = await loggedIn(chain);
  const mark = `victim ${++victims},`;
  await client.sendMessage('Q', cstring(`SELECT /* ${mark} */ pg_sleep(600)`));
  const running = `SELECT 1 FROM pg_stat_activity WHERE query LIKE '%${mark}%' AND wait_event = 'PgSleep'`;
  await eventually('the query to run', async () => (await pg.sql(running)).rowCount === 1);
  return client;
}

/** Sends a cancel request and leaves its connection open. */
async function beginCancel(chain: RebootChain, whom: RawClient): Promise<RawClient> {
  const request = await chain.raw();
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

async function cancelsAcross(secured: boolean): Promise<void> {
  await gated(
    async (chain, gate) => {
      const victims = [await victim(chain), await victim(chain)];
      const [one, two] = victims as [RawClient, RawClient];
      gate.holds = 'cancels';
      const requests = [await beginCancel(chain, one), await beginCancel(chain, one)];
      await gate.waitHeld(2);
      requests.push(await beginCancel(chain, two));
      const waits = async (): Promise<boolean> => {
        const row = await poolRow(chain);
        // a request that goes through TLS waits for the handshake
        const delivering = secured ? 0 : 2;
        return row.cl_active_cancel_req === delivering && row.cl_waiting_cancel_req === 3 - delivering;
      };
      await eventually('the third to wait', waits);
      await chain.reboot('ts');
      assert.ok(await waits(), JSON.stringify(await poolRow(chain)));
      gate.releaseAll();
      for (const client of victims) await isCanceled(client);
      for (const request of requests) assert.deepEqual(await request.until(''), []);
      const row = await poolRow(chain);
      assert.deepEqual([row.cl_active_cancel_req, row.cl_waiting_cancel_req], [0, 0]);
    },
    { settings: { default_pool_size: 2 } },
    secured,
  );
}

/** A connection of the pooler, in TLS if its clients use it, with the first bytes of a cancel request. */
async function halfCancel(chain: RebootChain, whom: RawClient): Promise<{ request: RawClient; rest: Buffer }> {
  const packet = startupPacket(CANCEL_REQUEST, Buffer.concat([int32(whom.backendPid), whom.backendKey]));
  const request = await chain.raw();
  await request.send(packet.subarray(0, 7));
  return { request, rest: packet.subarray(7) };
}

async function cancelsAround(secured: boolean): Promise<void> {
  await gated(
    async (chain) => {
      const [first, second, third] = [await victim(chain), await victim(chain), await victim(chain)];
      const before = await beginCancel(chain, first);
      await isCanceled(first);
      const half = await halfCancel(chain, second);
      await chain.reboot('ts');
      await chain.reboot('ts');
      await half.request.send(half.rest);
      await isCanceled(second);
      // the key is from the first process
      const after = await beginCancel(chain, third);
      await isCanceled(third);
      for (const request of [before, half.request, after]) {
        assert.deepEqual(await request.until(''), []);
        assert.equal(request.error, null);
      }
    },
    {},
    secured,
  );
}

for (const [secured, suffix] of TRANSPORTS) {
  it(`cancel requests that are being delivered or wait for a connection arrive across a takeover${suffix}`, () =>
    cancelsAcross(secured));
  it(`cancel requests before, across and after takeovers cancel their query, and no other${suffix}`, () =>
    cancelsAround(secured));
  it(`a cancel request whose server connection is being opened arrives across a takeover${suffix}`, () =>
    cancelWhileConnecting(secured));
}

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

async function cancelWhileConnecting(secured: boolean): Promise<void> {
  const args = ['-e', NARROW_RELAY, String(pg.port)];
  const relay = startProgram(installed().node, args, { stdio: ['ignore', 'ignore', 'pipe'] });
  const port = Number((await new LogTail(relay).wait(/port (\d+)\n/))[1]);
  const databases = { app: `host=127.0.0.1 port=${port} dbname=postgres` };
  const options = place.optionsOf({ cluster: pg, databases, settings: { pool_mode: 'transaction' } }, secured);
  await withRebootChain(options, async (chain) => {
    await chain.start('ts');
    const client = await victim(chain);
    relay.kill('SIGSTOP');
    const fill = [1, 2, 3, 4].map(() => connect(port, '127.0.0.1').on('error', () => {}));
    await eventually('the queue to be full', () => fill.filter((socket) => !socket.connecting).length >= 2);
    const request = await beginCancel(chain, client);
    await eventually('the connection to be made', async () => (await poolRow(chain)).sv_login === 1);
    await chain.reboot('ts');
    const row = await poolRow(chain);
    assert.equal(row.cl_waiting_cancel_req, 1, JSON.stringify(row));
    for (const socket of fill) socket.destroy();
    relay.kill('SIGCONT');
    await isCanceled(client);
    assert.deepEqual(await request.until(''), []);
  });
  relay.kill('SIGKILL');
}

itUnless(noOriginal)('a takeover by PgBouncer waits in SUSPEND until cancel requests are delivered', () =>
  gated(
    async (chain, gate) => {
      const victims = [await victim(chain), await victim(chain)];
      const [one, two] = victims as [RawClient, RawClient];
      gate.holds = 'cancels';
      const requests = [await beginCancel(chain, one), await beginCancel(chain, one)];
      await gate.waitHeld(2);
      requests.push(await beginCancel(chain, two));
      await eventually('the third to wait', async () => (await poolRow(chain)).cl_waiting_cancel_req === 1);
      await chain.reboot('c', {}, async () => gate.releaseAll());
      for (const client of victims) await isCanceled(client);
      for (const request of requests) assert.deepEqual(await request.until(''), []);
    },
    { settings: { default_pool_size: 2, suspend_timeout: 15 } },
  ),
);

/* ---- server connections ---- */

async function serverLogins(holds: 'logins' | 'answers to logins', secured: boolean): Promise<void> {
  await gated(
    async (chain, gate) => {
      // the first client of a pool waits for its welcome message
      gate.holds = holds;
      const first = await chain.raw();
      const welcome = first.login({ database: 'app' });
      await gate.waitHeld(1);
      await chain.reboot('ts');
      gate.releaseAll();
      assert.equal((await welcome).at(-1)?.type, 'Z');
      assert.equal(first.parameters.server_encoding, 'UTF8');
      assert.equal(firstValue(await first.query('BEGIN')), null);

      // later clients have logged in and wait for a server
      const [second, third] = [await loggedIn(chain), await loggedIn(chain)];
      gate.holds = holds;
      await second.sendMessage('Q', cstring("SELECT 'second'"));
      await gate.waitHeld(1);
      await third.sendMessage('Q', cstring("SELECT 'third'"));
      await eventually('both to wait', async () => (await poolRow(chain)).cl_waiting === 2);
      await chain.reboot('ts');
      gate.releaseAll();
      assert.equal(firstValue(await second.until('Z')), 'second');
      assert.equal(firstValue(await third.until('Z')), 'third');
      assert.equal(firstValue(await first.query('SELECT 1')), '1');
      for (const client of [first, second, third]) await client.end();
    },
    {},
    secured,
  );
}

async function replicationLogin(secured: boolean): Promise<void> {
  await gated(
    async (chain, gate) => {
      gate.holds = 'answers to logins';
      const client = await chain.raw();
      const welcome = client.login({ database: 'app', params: { replication: 'database' } });
      await gate.waitHeld(1);
      await chain.reboot('ts');
      gate.releaseAll();
      assert.equal((await welcome).at(-1)?.type, 'Z', letters(await welcome));
      assert.ok(firstValue(await client.query('IDENTIFY_SYSTEM')));
      await client.end();
    },
    {},
    secured,
  );
}

for (const [secured, suffix] of TRANSPORTS) {
  for (const holds of ['logins', 'answers to logins'] as const) {
    it(`clients whose server is logging in get their answers across a takeover: ${holds} held${suffix}`, () =>
      serverLogins(holds, secured));
  }
  it(`a replication client whose server is logging in gets its answer across a takeover${suffix}`, () =>
    replicationLogin(secured));
}

const ways = [
  ['ts', 'ts', false],
  ['ts', 'ts', true],
  ['ts', 'c', false],
  ['c', 'ts', false],
] as [Kind, Kind, boolean][];

for (const [from, to, secured] of ways) {
  itUnless(from === to ? null : noOriginal)(
    `a server that is logging in at a takeover is not used before it is ready: ${from} to ${to}${secured ? ', with TLS' : ''}`,
    () =>
      gated(
        async (chain, gate) => {
          const first = await loggedIn(chain);
          await first.query('BEGIN');
          gate.holds = 'answers to logins';
          const second = await loggedIn(chain);
          await second.sendMessage('Q', cstring("SELECT 'second'"));
          await gate.waitHeld(1);
          // the second client gets the first client's server, so no client waits for the new server any more
          await first.query('COMMIT');
          assert.equal(firstValue(await second.until('Z')), 'second');
          await first.query('BEGIN');
          await chain.reboot(to);
          await gate.waitHeld(0);
          gate.releaseAll();
          assert.equal(firstValue(await second.query('SELECT 2')), '2');
          for (const client of [first, second]) await client.end();
        },
        {},
        secured,
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

async function asked(chain: RebootChain, method: string, password: string): Promise<Asked> {
  const client = await chain.raw();
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
  const plus = method === 'scram-plus';
  const scram = new ScramClient(password, plus ? bindingOf(client.socket) : undefined);
  const first = Buffer.from(scram.first(), 'latin1');
  await client.sendMessage('p', cstring(`SCRAM-SHA-256${plus ? '-PLUS' : ''}`), int32(first.length), first);
  const challenge = (await client.next()) as Message;
  const final = Buffer.from(scram.final(challenge.body.toString('latin1', 4)), 'latin1');
  return { client, answer: message('p', final) };
}

async function passwordsAcross(method: string, secured: boolean): Promise<void> {
  await gated(
    async (chain) => {
      const right = await asked(chain, method, 'secret');
      const half = await asked(chain, method, 'secret');
      const wrong = await asked(chain, method, 'guess');
      await half.client.send(half.answer.subarray(0, 9));
      await chain.reboot('ts');
      await chain.reboot('ts');
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
    {
      settings: { auth_type: method === 'scram-plus' ? 'scram-sha-256' : method },
      userlist: { scrammer: 'secret', postgres: 'pw' },
    },
    secured,
  );
}

for (const method of ['md5', 'plain', 'scram-sha-256']) {
  for (const [secured, suffix] of TRANSPORTS) {
    it(`a client asked for its password by the old process logs in to the new process with auth_type ${method}${suffix}`, () =>
      passwordsAcross(method, secured));
  }
}

it('a client asked for its password by the old process logs in to the new process with channel binding', () =>
  passwordsAcross('scram-plus', true));

async function directoryLogin(secured: boolean): Promise<void> {
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
    await gated(
      async (chain) => {
        const clients = [await chain.raw(), await chain.raw()];
        const logins = ['right', 'wrong'].map((password, i) =>
          (clients[i] as RawClient).login({ user: 'lucy', password, database: 'app' }),
        );
        await eventually('the directory to be asked', () => waiting.size === 2);
        await chain.reboot('ts');
        await eventually('the new process to ask too', () => waiting.size === 4);
        open = true;
        for (const go of waiting) go();
        const [right, wrong] = await Promise.all(logins);
        assert.equal(right?.at(-1)?.type, 'Z', letters(right ?? []));
        assert.equal(errorFields(wrong?.at(-1) as Message).M, 'LDAP authentication failed');
        assert.equal(firstValue(await (clients[0] as RawClient).query('SELECT current_user')), 'lucy');
        for (const client of clients) await client.destroy();
      },
      more,
      secured,
    );
  } finally {
    await slow.stop();
    await ldap.stop();
  }
}

for (const [secured, suffix] of TRANSPORTS) {
  itUnless(noSlapd)(`a login that waits for a directory is decided by the new process${suffix}`, () =>
    directoryLogin(secured),
  );
}
