/*
 * State that survives a reboot: the long cancel keys of protocol 3.2 of clients and servers, and console sessions in
 * the extended protocol.
 */

import assert from 'node:assert/strict';
import { eventually, it, PgCluster } from '../harness';
import { FakeServer, WELCOME } from '../harness/hostile/fake-server';
import { after, before } from '../harness/limits';
import {
  cancelRequest,
  cstring,
  errorFields,
  int16,
  int32,
  letters,
  type Message,
  message,
  PROTOCOL_30,
  PROTOCOL_32,
  type RawClient,
} from '../harness/raw-client';
import { type RebootChain, withRebootChain } from '../harness/reboot-chain';
import { TlsPlace, TRANSPORTS } from '../harness/tls-place';

const place = new TlsPlace();
let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start({ newest: true, settings: place.ofServers });
});
after(async () => {
  await pg.stop();
});

async function started(body: (chain: RebootChain) => Promise<void>): Promise<void> {
  await withRebootChain({ cluster: pg, settings: { pool_mode: 'transaction' } }, async (chain) => {
    await chain.start('ts');
    await body(chain);
  });
}

async function login(chain: RebootChain): Promise<RawClient> {
  const client = await chain.raw();
  assert.equal((await client.login({ version: PROTOCOL_32 })).at(-1)?.type, 'Z');
  return client;
}

async function cancelWorks(chain: RebootChain, client: RawClient): Promise<void> {
  await cancelRequest(await chain.raw(), client.backendPid, client.backendKey);
  const error = (await client.until('Z')).find((msg) => msg.type === 'E');
  assert.equal(errorFields(error as Message).C, '57014');
}

const SYNC = message('S');

function parse(name: string, query: string): Buffer {
  return message('P', cstring(name), cstring(query), int16(0));
}

function bind(portal: string, statement: string): Buffer {
  return message('B', cstring(portal), cstring(statement), int16(0), int16(0), int16(0));
}

function execute(portal: string, limit = 0): Buffer {
  return message('E', cstring(portal), int32(limit));
}

async function consoleOf(chain: RebootChain): Promise<RawClient> {
  const raw = await chain.raw();
  const answer = await raw.login({ user: 'admin', password: 'admin', database: 'pgbouncer' });
  assert.equal(answer.at(-1)?.type, 'Z');
  return raw;
}

async function longKeys(secured: boolean): Promise<void> {
  const options = { cluster: pg, settings: { pool_mode: 'transaction' } };
  await withRebootChain(place.optionsOf(options, secured), async (chain) => {
    await chain.start('ts');
    const client = await login(chain);
    assert.equal(client.backendKey.length, 32);
    await client.sendMessage('Q', cstring('SELECT pg_sleep(60)'));
    await eventually('a server to be active', async () =>
      (await chain.show('SERVERS')).some((row) => row.state === 'active'),
    );
    await chain.reboot('ts');
    await chain.reboot('ts');
    await cancelWorks(chain, client);
    await client.end();
  });
}

for (const [secured, suffix] of TRANSPORTS) {
  it(`a query that runs across reboots is canceled with the long cancel keys of client and server${suffix}`, () =>
    longKeys(secured));
}

it('servers that have refused protocol 3.2 are not asked for it again after a reboot', async () => {
  const versions: number[] = [];
  const fake = await FakeServer.start(async ({ socket, version, next }) => {
    versions.push(version);
    if (version === PROTOCOL_32) {
      socket.end(message('E', cstring('SFATAL'), cstring('C0A000'), cstring('Munsupported protocol'), Buffer.alloc(1)));
      return;
    }
    socket.write(WELCOME);
    // no query is answered: each client needs a connection
    while ((await next()) !== null);
  });
  const databases = { postgres: `host=127.0.0.1 port=${fake.port}` };
  try {
    await withRebootChain({ cluster: pg, settings: { pool_mode: 'transaction' }, databases }, async (chain) => {
      await chain.start('ts');
      const first = await chain.raw();
      await first.login();
      await first.sendMessage('Q', cstring('SELECT 1'));
      await chain.now.log.wait(/using 3\.0 for this database/);
      const before = versions.length;
      await chain.reboot('ts');
      const second = await chain.raw();
      await second.login();
      await second.sendMessage('Q', cstring('SELECT 1'));
      await eventually('another connection', () => versions.length > before);
      assert.deepEqual(versions.slice(before), [PROTOCOL_30]);
    });
  } finally {
    await fake.stop();
  }
});

it('a client that waits for its welcome message across a reboot gets its long cancel key', () =>
  withRebootChain({ cluster: pg, databases: { postgres: 'host=127.0.0.1 port=1 dbname=postgres' } }, async (chain) => {
    await chain.start('ts');
    const client = await chain.raw();
    await client.startup({ user: 'postgres', database: 'postgres' }, PROTOCOL_32);
    await eventually('the client to wait', async () => (await chain.show('POOLS')).some((row) => row.cl_waiting === 1));
    chain.write({ databases: { postgres: pg.connstr() } });
    await chain.reboot('ts');
    assert.match(letters(await client.until('ZE')), /^RS+KZ$/);
    assert.equal(client.backendKey.length, 32);
    await client.end();
  }));

it('console statements, and portals without rows left, survive a reboot', () =>
  started(async (chain) => {
    const raw = await consoleOf(chain);
    await raw.send(parse('state', 'SHOW STATE'), SYNC);
    assert.equal(letters(await raw.until('Z')), '1Z');
    await raw.send(bind('fresh', 'state'), bind('begun', 'state'), execute('begun', 1));
    assert.equal(letters(await raw.until('s')), '22Ds');
    await chain.reboot('ts');
    await raw.send(execute('fresh'), execute('begun'), execute('fresh'), SYNC);
    const answer = await raw.until('Z');
    assert.equal(letters(answer), 'DDDCEZ');
    assert.equal(errorFields(answer.at(-2) as Message).M, 'portal "begun" does not exist');
    await raw.send(bind('', 'state'), execute(''), SYNC);
    assert.equal(letters(await raw.until('Z')), '2DDDCZ');
    await raw.end();
  }));

for (const [what, before, behind] of [
  ['its Sync', [SYNC], []],
  ['a pipeline', [SYNC, parse('', 'SHOW VERSION'), bind('', ''), execute(''), SYNC], []],
  ['nothing', [], [SYNC]],
] as const) {
  it(`a PAUSE by Execute that waits across a reboot is answered in the extended protocol, followed by ${what}`, () =>
    started(async (chain) => {
      const client = await login(chain);
      await client.query('BEGIN');
      const raw = await consoleOf(chain);
      await raw.send(parse('', 'PAUSE'), bind('', ''), execute(''), ...before);
      assert.equal(letters(await raw.until('2')), '12');
      await chain.now.log.wait(/LOG PAUSE command issued/);
      await chain.reboot('ts');
      await raw.send(...behind);
      assert.equal(letters(await client.query('COMMIT')), 'CZ');
      assert.equal(letters(await raw.until('Z')), 'CZ');
      if (before.length > 1) assert.equal(letters(await raw.until('Z')), '12DCZ');
      assert.equal(letters(await raw.query('RESUME')), 'CZ');
      await raw.end();
      await client.end();
    }));
}

it('after an ERROR on the console, the new process skips messages up to Sync', () =>
  started(async (chain) => {
    const raw = await consoleOf(chain);
    await raw.send(execute('nowhere'));
    assert.equal(letters(await raw.until('E')), 'E');
    await chain.reboot('ts');
    await raw.send(parse('', 'SHOW VERSION'), SYNC);
    assert.equal(letters(await raw.until('Z')), 'Z');
    await raw.end();
  }));
