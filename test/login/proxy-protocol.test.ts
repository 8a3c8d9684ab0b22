/*
 * The PROXY protocol, version 2: which headers are taken, from whom, and what uses the address in them.
 */

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { userInfo } from 'node:os';
import { join } from 'node:path';
import { inNetworks } from '../../src/core/config/networks';
import { readProxyHeader } from '../../src/core/login/proxy-protocol';
import { ask, errorIn, start, withPooler } from '../harness/answers';
import type { Bouncer } from '../harness/bouncer';
import { CertFolder } from '../harness/certs';
import { PgCluster } from '../harness/cluster';
import { Random } from '../harness/hostile/random';
import { after, before, describe } from '../harness/limits';
import { eventually, it, tempDir } from '../harness/machine';
import { CANCEL_REQUEST, int32, PROTOCOL_30, RawClient, startupPacket } from '../harness/raw-client';
import { withRebootChain } from '../harness/reboot-chain';

const SIGNATURE = Buffer.from('0d0a0d0a000d0a515549540a', 'hex');
const TCP4 = 0x11;
const TCP6 = 0x21;
const PROXY = 0x21;
const LOCAL = 0x20;

function header(command: number, kind: number, body: Buffer): Buffer {
  const fixed = Buffer.from([command, kind, body.length >> 8, body.length & 255]);
  return Buffer.concat([SIGNATURE, fixed, body]);
}

/** A header for a client at 203.0.113.7:4711, with so many bytes of extensions. */
function fromClient(extra = 0, last = 7): Buffer {
  const body = Buffer.from([203, 0, 113, last, 192, 0, 2, 1, 0x12, 0x67, 0x19, 0x20]);
  return header(PROXY, TCP4, Buffer.concat([body, Buffer.alloc(extra, 4)]));
}

const STARTUP = startupPacket(PROTOCOL_30, { user: 'postgres', database: 'postgres' });

describe('headers of the PROXY protocol', () => {
  it('addresses of both families are read', () => {
    const found = readProxyHeader(fromClient(3), 0, 16 + 12 + 3);
    assert.ok(found.kind === 'header');
    assert.equal(found.length, 31);
    assert.deepEqual([found.remote?.host, found.remote?.port], ['203.0.113.7', 0x1267]);
    assert.deepEqual([found.local?.host, found.local?.port], ['192.0.2.1', 6432]);
    const body = Buffer.alloc(36);
    body.writeUInt16BE(0x2001, 0);
    body[15] = 9;
    body.writeUInt16BE(77, 32);
    const six = readProxyHeader(header(PROXY, TCP6, body), 0, 52);
    assert.ok(six.kind === 'header');
    assert.deepEqual([six.remote?.host, six.remote?.port, six.local?.host], ['2001::9', 77, '::']);
  });

  it('every part of a header asks for more', () => {
    const whole = fromClient(40);
    for (let end = 0; end < whole.length; end++) assert.equal(readProxyHeader(whole, 0, end).kind, 'partial', `${end}`);
  });

  it('commands and families without an address leave the connection its own', () => {
    for (const [command, kind] of [
      [LOCAL, 0],
      [LOCAL, TCP4],
      [PROXY, 0],
      [PROXY, 0x31],
      [PROXY, 0x12],
    ] as const) {
      const found = readProxyHeader(header(command, kind, Buffer.alloc(2)), 0, 18);
      assert.ok(found.kind === 'header' && found.remote === null && found.length === 18, `${command} ${kind}`);
    }
  });

  const bad: Record<string, [Buffer, RegExp]> = {
    'a startup packet': [STARTUP, /header expected/],
    'version 1': [Buffer.from('PROXY TCP4 1.2.3.4 1.2.3.4 5 6\r\n'), /version 1 is not supported/],
    'version 3': [header(0x31, TCP4, Buffer.alloc(12)), /bad PROXY protocol header/],
    'an unknown command': [header(0x22, TCP4, Buffer.alloc(12)), /bad PROXY protocol header/],
    'an address that is cut off': [header(PROXY, TCP4, Buffer.alloc(11)), /bad PROXY protocol header/],
    'a long header': [header(PROXY, TCP4, Buffer.alloc(4097)), /header too long/],
  };
  for (const [what, [bytes, reason]] of Object.entries(bad)) {
    it(`${what} is refused`, () => {
      const found = readProxyHeader(bytes, 0, bytes.length);
      assert.ok(found.kind === 'bad');
      assert.match(found.reason, reason);
    });
  }

  it('random bytes behind the signature never reach beyond the buffer', () => {
    const random = new Random(7);
    for (let i = 0; i < 20_000; i++) {
      const bytes = Buffer.concat([SIGNATURE, Buffer.from(random.bytes(random.below(60)))]);
      const found = readProxyHeader(bytes, 0, bytes.length);
      if (found.kind === 'header') assert.ok(found.length <= bytes.length);
    }
  });

  it('networks are compared by their bits', () => {
    const list = '10.1.2.3/8, 2001:db8::/33,192.0.2.1, unix';
    for (const host of ['10.0.0.1', '10.255.0.0', '2001:db8:7fff::1', '192.0.2.1', '::ffff:10.0.0.1', null])
      assert.equal(inNetworks(list, host), true, `${host}`);
    for (const host of ['11.0.0.1', '2001:db8:8000::', '192.0.2.2', '::ffff:11.0.0.1', '::10.0.0.1', 'unix'])
      assert.equal(inNetworks(list, host), false, host);
    assert.equal(inNetworks('10.0.0.0/8', null), false);
    assert.equal(inNetworks('0.0.0.0/0', '255.1.2.3'), true);
    assert.equal(inNetworks('fe80::/10', 'fe80::1%eth0'), true);
  });
});

describe('connections from a load balancer', () => {
  let pg: PgCluster;
  before(async () => {
    pg = await PgCluster.start();
  });
  after(() => pg.stop());

  const settings = { proxy_protocol_networks: '127.0.0.0/8' };

  /** Sends the pieces apart from each other. */
  async function connected(port: number, ...pieces: Buffer[]): Promise<RawClient> {
    const client = await RawClient.connect({ port });
    for (const piece of pieces) {
      await client.send(piece);
      if (pieces.length > 1) await new Promise((wake) => setTimeout(wake, 20));
    }
    return client;
  }

  async function loggedIn(client: RawClient): Promise<RawClient> {
    const messages = await client.until('ZE');
    assert.equal(messages.at(-1)?.type, 'Z', JSON.stringify(errorIn(messages)));
    return client;
  }

  /** Address and port of the only client of database postgres, asked over the Unix socket, which needs no header. */
  async function address(pooler: Bouncer): Promise<string> {
    const rows = await pooler.admin('SHOW CLIENTS', { host: pooler.socketDir });
    const row = rows.find(({ database }) => database === 'postgres');
    return `${row?.addr}:${row?.port}`;
  }

  it('the address is that of the client: in SHOW CLIENTS and in the log', async () => {
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      const whole = fromClient(20);
      const all = Buffer.concat([whole, STARTUP]);
      const ways: Buffer[][] = [
        [all],
        [whole, STARTUP],
        [...whole.subarray(0, 5)].map((byte) => Buffer.from([byte])).concat([all.subarray(5)]),
        [whole.subarray(0, 14), whole.subarray(14), STARTUP],
      ];
      for (const pieces of ways) {
        const from = pooler.log.mark();
        const client = await loggedIn(await connected(pooler.port, ...pieces));
        assert.equal(await ask(client, 'SELECT 1'), '1');
        assert.equal(await address(pooler), '203.0.113.7:4711');
        await client.end();
        await pooler.logWait(/postgres@203\.0\.113\.7:4711 closing because: client close request/, from);
      }
    });
  });

  it('without a header, or with a bad one, the connection is closed and the log says why', async () => {
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      for (const [bytes, reason] of [
        [STARTUP, /127\.0\.0\.1:\d+ closing because: PROXY protocol header expected/],
        [
          Buffer.from('PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n'),
          /closing because: PROXY protocol version 1 is not supported/,
        ],
        [header(PROXY, TCP4, Buffer.alloc(3)), /closing because: bad PROXY protocol header/],
      ] as const) {
        const client = await connected(pooler.port, bytes);
        assert.equal((await client.rest()).length, 0);
        await pooler.logWait(reason);
      }
      // a second header is a bad packet
      const twice = await connected(pooler.port, Buffer.concat([fromClient(), fromClient(), STARTUP]));
      assert.equal(errorIn(await twice.until('E'))?.C, '08P01');
    });
  });

  it('from other addresses a header is an error, and clients need none', async () => {
    await withPooler({ cluster: pg, settings: { proxy_protocol_networks: '10.0.0.0/8, unix' } }, async (pooler) => {
      const client = await connected(pooler.port, Buffer.concat([fromClient(), STARTUP]));
      assert.notEqual(errorIn(await client.until('E')), null);
      await (await loggedIn(await connected(pooler.port, STARTUP))).end();
    });
  });

  it('SET and RELOAD apply to new connections', async () => {
    await withPooler({ cluster: pg, settings: { tcp_defer_accept: 0 } }, async (pooler) => {
      const waiting = await connected(pooler.port);
      await eventually('an accepted connection', async () => {
        const rows = await pooler.admin('SHOW LISTS');
        return Number(rows.find(({ list }) => list === 'login_clients')?.items) === 1;
      });
      await pooler.admin("SET proxy_protocol_networks = '127.0.0.1'");
      await waiting.send(STARTUP);
      await (await loggedIn(waiting)).end();
      await (await loggedIn(await connected(pooler.port, Buffer.concat([fromClient(), STARTUP])))).end();
    });
  });

  it('HBA rules see the address of the client', async () => {
    const dir = tempDir('hba');
    const rules = join(dir, 'hba.conf');
    writeFileSync(rules, 'host all all 203.0.113.7/32 trust\nlocal all all trust\n', { mode: 0o644 });
    const hba = { ...settings, auth_type: 'hba', auth_hba_file: rules };
    await withPooler({ cluster: pg, settings: hba }, async (pooler) => {
      await (await loggedIn(await connected(pooler.port, Buffer.concat([fromClient(0, 7), STARTUP])))).end();
      const other = await connected(pooler.port, Buffer.concat([fromClient(0, 8), STARTUP]));
      assert.match(errorIn(await other.until('ZE'))?.M ?? '', /no authentication method is found/);
    });
  });

  it('a client that is forwarded over the Unix socket is not the system user of the load balancer', async () => {
    const { username } = userInfo();
    const rules = join(tempDir('hba'), 'hba.conf');
    writeFileSync(rules, `local all "${username}" peer\nhost all all 127.0.0.1/32 trust\n`, { mode: 0o644 });
    const own = { proxy_protocol_networks: 'unix', auth_type: 'hba', auth_hba_file: rules };
    await pg.sql(`CREATE ROLE "${username}" LOGIN`);
    await withPooler({ cluster: pg, settings: own, userlist: { [username]: '' } }, async (pooler) => {
      const startup = startupPacket(PROTOCOL_30, { user: username, database: 'postgres' });
      const answer = async (command: number, kind: number) => {
        const client = await RawClient.connect({ path: join(pooler.socketDir, `.s.PGSQL.${pooler.port}`) });
        await client.send(header(command, kind, Buffer.alloc(0)), startup);
        const messages = await client.until('ZE');
        await client.destroy();
        return errorIn(messages)?.M ?? null;
      };
      assert.equal(await answer(LOCAL, 0), null);
      for (const kind of [0, 0x31]) assert.equal(await answer(PROXY, kind), 'unix socket login rejected');
    });
  });

  it('TLS comes behind the header', async () => {
    const certs = new CertFolder();
    const ca = certs.authority('ca');
    const { cert, key } = certs.issue(ca, 'site', { cn: 'localhost' });
    const tls = { client_tls_sslmode: 'require', client_tls_cert_file: cert, client_tls_key_file: key };
    await withPooler({ cluster: pg, settings: { ...settings, ...tls } }, async (pooler) => {
      const plain = await connected(pooler.port, fromClient());
      const client = await plain.secure({ rejectUnauthorized: false });
      await client.send(STARTUP);
      await loggedIn(client);
      assert.equal(await address(pooler), '203.0.113.7:4711');
      await client.end();
    });
  });

  it('a cancel request comes behind a header too', async () => {
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      const client = await loggedIn(await connected(pooler.port, Buffer.concat([fromClient(), STARTUP])));
      await start(client, 'SELECT pg_sleep(60)');
      await eventually(
        'the query',
        async () =>
          (await pg.sql("SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)' AND state = 'active'")).rows
            .length > 0,
      );
      const body = Buffer.concat([int32(client.backendPid), client.backendKey]);
      const cancel = await connected(pooler.port, Buffer.concat([fromClient(), startupPacket(CANCEL_REQUEST, body)]));
      assert.equal(errorIn(await client.until('Z'))?.C, '57014');
      await cancel.destroy();
      await client.end();
    });
  });

  it('addresses survive an online reboot, and so does the wait for a header', async () => {
    await withRebootChain({ cluster: pg, settings }, async (chain) => {
      await chain.start('ts');
      const client = await loggedIn(await connected(chain.port, Buffer.concat([fromClient(), STARTUP])));
      const late = await connected(chain.port, fromClient().subarray(0, 20));
      await new Promise((wake) => setTimeout(wake, 100));
      await chain.reboot('ts');
      await late.send(Buffer.concat([fromClient().subarray(20), STARTUP]));
      await loggedIn(late);
      assert.equal(await ask(client, 'SELECT 1'), '1');
      const from = chain.now.log.mark();
      for (const one of [client, late]) await one.end();
      for (let i = 0; i < 2; i++) await chain.now.log.wait(/203\.0\.113\.7:4711 closing because: client close/, from);
    });
  });
});
