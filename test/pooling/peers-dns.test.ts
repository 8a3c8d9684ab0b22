/*
 * peers_dns: several poolers at different addresses and the same port, as replicas behind one Service. A cancel request
 * reaches the pooler that has issued its key, whichever of them it is sent to.
 */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer, type Socket } from 'node:net';
import { addressPeerId } from '../../src/core/pool/peer-address';
import { freePort } from '../../tools/postgres';
import { giveTo } from '../../tools/unprivileged';
import { ask, errorIn, login, withPooler } from '../harness/answers';
import { Bouncer, type BouncerOptions } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { dropDir, eventually, installed, it, run, tempDir, user } from '../harness/machine';
import { PATIENT } from '../harness/name-fixtures';
import { NameServer, SERVFAIL } from '../harness/name-server';
import {
  CANCEL_REQUEST,
  cancelRequest,
  cstring,
  PROTOCOL_30,
  PROTOCOL_32,
  RawClient,
  startupPacket,
} from '../harness/raw-client';
import { withRebootChain } from '../harness/reboot-chain';

const NAME = 'peers.test';
const ONE = '127.0.0.11';
const TWO = '127.0.0.12';
const THREE = '127.0.0.13';
/** has the same number as ONE */
const LIKE_ONE = '127.0.128.11';

let pg: PgCluster;
let dir: string;
before(async () => {
  pg = await PgCluster.start();
  dir = tempDir('names');
  giveTo(user, dir);
});
after(async () => {
  await pg.stop();
  dropDir(dir);
});

interface Replicas {
  port: number;
  names: NameServer;
  /** the poolers by their addresses */
  at: Map<string, Bouncer>;
  start(host: string, options?: BouncerOptions): Promise<Bouncer>;
}

/** What every replica has in its ini. */
function replicaOptions(names: NameServer, host: string, port: number, options: BouncerOptions): BouncerOptions {
  const common = {
    listen_addr: host,
    listen_port: port,
    pool_mode: 'transaction',
    verbose: 1,
    peers_dns: NAME,
    dns_max_ttl: 0.5,
  };
  const settings = { ...common, resolv_conf: names.conf(dir, PATIENT), ...options.settings };
  return { cluster: pg, env: { LOCALDOMAIN: '', RES_OPTIONS: '' }, ...options, settings };
}

/** Runs `body` with a pooler at each of those addresses, which the name has. */
async function withReplicas(hosts: string[], body: (replicas: Replicas) => Promise<void>): Promise<void> {
  const names = await NameServer.start();
  names.names.set(NAME, { addresses: hosts });
  const port = await freePort();
  const at = new Map<string, Bouncer>();
  const start = async (host: string, options: BouncerOptions = {}): Promise<Bouncer> => {
    const pooler = await Bouncer.start(replicaOptions(names, host, port, options));
    at.set(host, pooler);
    return pooler;
  };
  try {
    for (const host of hosts) await start(host);
    await body({ port, names, at, start });
  } finally {
    for (const pooler of at.values()) await pooler.stop();
    await names.stop();
  }
}

async function peersOf(pooler: Bouncer): Promise<string[]> {
  return (await pooler.admin('SHOW PEERS', { host: pooler.socketDir })).map((row) => `${row.host}:${row.port}`);
}

async function peersBecome(pooler: Bouncer, hosts: string[]): Promise<void> {
  const { port } = pooler;
  const wanted = hosts.map((host) => `${host}:${port}`).sort();
  await eventually(`the peers ${hosts}`, async () => {
    return JSON.stringify((await peersOf(pooler)).sort()) === JSON.stringify(wanted);
  });
}

/** A client of the pooler at an address, in a query that ends only if it is canceled. */
async function sleeper(host: string, port: number, version = PROTOCOL_30): Promise<RawClient> {
  const client = await RawClient.connect({ host, port });
  const answer = await client.login({ version });
  assert.equal(answer.at(-1)?.type, 'Z');
  const mark = `victim ${client.socket.localPort}`;
  await client.sendMessage('Q', cstring(`SELECT /* ${mark} */ pg_sleep(600)`));
  const running = `SELECT 1 FROM pg_stat_activity WHERE query LIKE '%${mark}%' AND wait_event = 'PgSleep'`;
  await eventually('the query to run', async () => (await pg.sql(running)).rowCount === 1);
  return client;
}

/** Cancels the client's query by a request to that address. */
async function cancelAt(client: RawClient, host: string, port: number): Promise<void> {
  await cancelRequest({ host, port }, client.backendPid, client.backendKey);
  assert.equal(errorIn(await client.until('Z'))?.C, '57014');
  assert.equal(await ask(client, 'SELECT 1'), '1');
}

/** A key for the process at an address, which no process has issued. @param last its byte with the count of hops */
function madeUpKey(host: string, last = 0xff): Buffer {
  const id = addressPeerId(host);
  return Buffer.from([1, id & 0xff, id >> 8, 9, 9, 9, 9, last]);
}

async function sendKey(host: string, port: number, key: Buffer): Promise<void> {
  await cancelRequest({ host, port }, key.readInt32BE(0), key.subarray(4));
}

it('a cancel request reaches the pooler of its client, whichever pooler gets it', async () => {
  await withReplicas([ONE, TWO, THREE], async ({ port, at }) => {
    for (const pooler of at.values()) await peersBecome(pooler, [ONE, TWO, THREE]);
    for (const version of [PROTOCOL_30, PROTOCOL_32]) {
      for (const home of [ONE, TWO, THREE]) {
        const client = await sleeper(home, port, version);
        assert.equal(client.backendKey.length, version === PROTOCOL_30 ? 4 : 32);
        for (const other of [ONE, TWO, THREE]) {
          await cancelAt(client, other, port);
          const again = `SELECT /* again ${other} ${home} ${version} */ pg_sleep(600)`;
          await client.sendMessage('Q', cstring(again));
          const running = `SELECT 1 FROM pg_stat_activity WHERE query = '${again}' AND wait_event = 'PgSleep'`;
          await eventually('the query to run', async () => (await pg.sql(running)).rowCount === 1);
        }
        await cancelAt(client, home, port);
        await client.end();
      }
    }
  });
});

it('a client that the pooler has reached through a Unix socket cancels there', async () => {
  await withReplicas([ONE, TWO], async ({ at }) => {
    const pooler = at.get(ONE) as Bouncer;
    const path = `${pooler.socketDir}/.s.PGSQL.${pooler.port}`;
    const client = await RawClient.connect({ path });
    await client.login();
    await client.sendMessage('Q', cstring('SELECT /* by unix */ pg_sleep(600)'));
    const running = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%by unix%' AND wait_event = 'PgSleep'";
    await eventually('the query to run', async () => (await pg.sql(running)).rowCount === 1);
    await cancelRequest({ path }, client.backendPid, client.backendKey);
    assert.equal(errorIn(await client.until('Z'))?.C, '57014');
  });
});

it('a request for a pooler that has just started waits for a look-up, and is not lost', async () => {
  await withReplicas([ONE], async ({ port, at, names, start }) => {
    const one = at.get(ONE) as Bouncer;
    await peersBecome(one, [ONE]);
    // only the first pooler asks for the name
    await start(TWO, { settings: { peers_dns: 'other.test' } });
    const client = await sleeper(TWO, port);
    const { backendPid, backendKey } = client;
    await one.admin("SET dns_max_ttl = '1.5'", { host: one.socketDir });
    const asked = names.count(`AAAA ${NAME}`);
    await eventually('the next look-up', () => names.count(`AAAA ${NAME}`) > asked);
    assert.deepEqual(await peersOf(one), [`${ONE}:${port}`]);
    const from = one.log.mark();
    const request = cancelRequest({ host: ONE, port }, backendPid, backendKey);
    await one.logWait(/P: got connection: 127\.0\.0\.1:\d+ -> 127\.0\.0\.11/, from);
    names.names.set(NAME, { addresses: [ONE, TWO] });
    await request;
    assert.equal(errorIn(await client.until('Z'))?.C, '57014');
    assert.equal(one.log.count(/could not find peer/), 0);
  });
});

it('addresses come and go with the name, and a name server that fails changes nothing', async () => {
  await withReplicas([ONE, TWO], async ({ at, names }) => {
    const one = at.get(ONE) as Bouncer;
    await one.admin("SET dns_nxdomain_ttl = '0.5'", { host: one.socketDir });
    await peersBecome(one, [ONE, TWO]);
    names.names.set(NAME, { addresses: [ONE, THREE] });
    await peersBecome(one, [ONE, THREE]);
    names.names.set(NAME, { rcode: SERVFAIL });
    await one.logWait(/DNS lookup failed: peers\.test/);
    assert.equal((await peersOf(one)).length, 2);
    names.names.set(NAME, { addresses: [TWO] });
    await peersBecome(one, [TWO]);
  });
});

describe('requests with keys that no pooler has issued', () => {
  it('a request is forwarded once, and never further', async () => {
    await withReplicas([ONE, TWO, LIKE_ONE], async ({ port, at }) => {
      const poolers = [...at.values()];
      for (const pooler of poolers) await peersBecome(pooler, [ONE, TWO, LIKE_ONE]);
      const forwarded = () => poolers.map((pooler) => pooler.log.count(/forwarding cancellation request to peer/));
      const failed = () => poolers.map((pooler) => pooler.log.count(/closing because: failed cancel request/));
      // its own number: only the other pooler with this number can have issued the key
      await sendKey(ONE, port, madeUpKey(ONE));
      assert.deepEqual(forwarded(), [1, 0, 0]);
      await eventually('LIKE_ONE to refuse it', () => failed()[2] === 1);
      // the number of two others
      await sendKey(TWO, port, madeUpKey(ONE));
      await eventually('both to refuse it', () => failed()[0] === 1 && failed()[2] === 2);
      assert.deepEqual(forwarded(), [1, 1, 0]);
      // its own number, which no other has
      await sendKey(TWO, port, madeUpKey(TWO));
      // no hops left
      await sendKey(TWO, port, madeUpKey(ONE, 0xfc));
      await eventually('TWO to refuse both', () => failed()[1] === 2);
      assert.deepEqual(forwarded(), [1, 1, 0]);
    });
  });

  it('two poolers whose addresses have the same number still get the requests for their own clients', async () => {
    await withReplicas([ONE, TWO, LIKE_ONE], async ({ port, at }) => {
      assert.equal(addressPeerId(ONE), addressPeerId(LIKE_ONE));
      for (const pooler of at.values()) await peersBecome(pooler, [ONE, TWO, LIKE_ONE]);
      for (const home of [ONE, LIKE_ONE]) {
        for (const other of [TWO, ONE, LIKE_ONE]) {
          const client = await sleeper(home, port);
          await cancelAt(client, other, port);
          await client.end();
        }
      }
    });
  });

  it('many requests for unknown peers cause one look-up a second, and no connections', async () => {
    await withReplicas([ONE, TWO], async ({ port, at, names }) => {
      const [one, two] = [...at.values()] as [Bouncer, Bouncer];
      await peersBecome(one, [ONE, TWO]);
      const [asked, from] = [names.count(`A ${NAME}`), two.log.mark()];
      const began = performance.now();
      const keys = Array.from({ length: 300 }, (_, n) => madeUpKey(`127.0.1.${n % 250}`));
      await Promise.all(keys.map((key) => sendKey(ONE, port, key)));
      const seconds = (performance.now() - began) / 1000;
      // both poolers look up, in any case every five seconds
      assert.ok(names.count(`A ${NAME}`) - asked <= 2 + seconds * 1.5, `${names.count(`A ${NAME}`) - asked} look-ups`);
      assert.equal(one.log.count(/could not find peer to forward request to/), 300);
      assert.doesNotMatch(two.log.text.slice(from), /cancel request/);
    });
  });
});

describe('the setting', () => {
  it('a port in it is that of the peers, and RELOAD turns it on and off', async () => {
    await withReplicas([ONE], async ({ at }) => {
      const one = at.get(ONE) as Bouncer;
      await peersBecome(one, [ONE]);
      const host = one.socketDir;
      for (const [text, peers] of [
        [`${NAME}:7777`, [`${ONE}:7777`]],
        ['', []],
        [NAME, [`${ONE}:${one.port}`]],
      ] as [string, string[]][]) {
        await one.admin(`SET peers_dns = '${text}'`, { host });
        await eventually(`peers_dns = ${text}`, async () => (await peersOf(one)).join() === peers.join());
      }
      await one.admin('RELOAD', { host });
      await peersBecome(one, [ONE]);
    });
  });

  it('--check --diff takes the addresses for no peers that are removed', async () => {
    await withReplicas([ONE, TWO], async ({ at }) => {
      const one = at.get(ONE) as Bouncer;
      await peersBecome(one, [ONE, TWO]);
      const { node, mainJs } = installed();
      const { stdout, stderr } = await run(node, [mainJs, '--check', '--diff', one.iniPath]);
      assert.match(stderr, /no problems found/);
      assert.doesNotMatch(stdout, /^peer /m);
    });
  });

  it('it has no effect with peer_id, and the log says so', async () => {
    const peers = { 2: 'host=127.0.0.1 port=1' };
    await withPooler({ cluster: pg, peers, settings: { peer_id: 1, peers_dns: NAME } }, async (pooler) => {
      await pooler.logWait(/setting has no effect: peers_dns = peers\.test \(peer_id is set/);
      const client = await login(pooler);
      assert.equal(client.backendPid & 0xffff00, 0x10000 & 0xffff00);
      assert.deepEqual(await peersOf(pooler), ['127.0.0.1:1']);
    });
  });

  it('a client logged in before the setting was there can still cancel', async () => {
    await withReplicas([ONE], async ({ port, at }) => {
      const one = at.get(ONE) as Bouncer;
      const host = one.socketDir;
      await one.admin("SET peers_dns = ''", { host });
      const clients: RawClient[] = [];
      for (let n = 0; n < 4; n++) clients.push(await sleeper(ONE, port));
      await one.admin(`SET peers_dns = '${NAME}'`, { host });
      for (const client of clients) await cancelAt(client, ONE, port);
    });
  });
});

it('after an online reboot, keys from before it are valid at every pooler, and requests under way go on', async () => {
  await withReplicas([TWO], async ({ port, names, at }) => {
    const [two] = [...at.values()] as [Bouncer];
    // a peer that takes its time
    const held: Socket[] = [];
    const slow = createServer((socket) => {
      socket.on('error', () => {});
      socket.once('data', () => held.push(socket));
    });
    slow.listen(port, THREE);
    await once(slow, 'listening');
    names.names.set(NAME, { addresses: [ONE, TWO, THREE] });
    const { settings } = replicaOptions(names, ONE, port, {});
    await withRebootChain({ cluster: pg, settings }, async (chain) => {
      await chain.start('ts', { LOCALDOMAIN: '', RES_OPTIONS: '' });
      await peersBecome(two, [ONE, TWO, THREE]);
      const client = await sleeper(ONE, port);
      const req = await RawClient.connect({ host: ONE, port });
      await req.send(startupPacket(CANCEL_REQUEST, madeUpKey(THREE)));
      await eventually('the request to be forwarded', () => held.length === 1);
      await chain.reboot('ts', { LOCALDOMAIN: '', RES_OPTIONS: '' });
      await cancelAt(client, TWO, port);
      const late = await sleeper(TWO, port);
      await cancelAt(late, ONE, port);
      assert.equal(held[0]?.destroyed, false);
      held[0]?.end();
      assert.deepEqual(await req.until(''), []);
      await chain.now.log.wait(/closing because: successfully sent cancel request/);
      for (const each of [client, late]) await each.end();
    });
    slow.close();
  });
});

it('numbers of addresses', () => {
  assert.equal(addressPeerId('10.244.3.7'), 0x8307);
  assert.equal(addressPeerId('10.244.132.9'), 0x8409);
  assert.equal(addressPeerId('::ffff:10.244.3.7'), addressPeerId('10.244.3.7'));
  assert.equal(addressPeerId('fd00:0:0::7%eth0'), addressPeerId('fd00::7'));
  assert.equal(addressPeerId('/run/tsbouncer/.s.PGSQL.6432'), 0);
  const ids = new Set(Array.from({ length: 250 }, (_, n) => addressPeerId(`fd00:10:244:${n % 5}::${n.toString(16)}`)));
  assert.ok(ids.size > 240, `${ids.size} of 250 differ`);
  for (const id of ids) assert.ok(id >= 0x8000 && id <= 0xffff);
});
