/*
 * Protocol 3.2: negotiation with clients, long cancel keys in both directions, and servers that do not support 3.2. The
 * servers are the machine's PostgreSQL, the newest PostgreSQL, and scripted servers.
 */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Server } from 'node:net';
import { ADMIN_PASSWORD, Bouncer, type BouncerOptions, eventually, it, PgCluster } from '../harness';
import { backendsBecome } from '../harness/answers';
import { FakeServer, type Visit } from '../harness/hostile/fake-server';
import { after, before, describe } from '../harness/limits';
import {
  CANCEL_REQUEST,
  cancelRequest,
  cstring,
  errorFields,
  int32,
  letters,
  type Message,
  message,
  PROTOCOL_30,
  PROTOCOL_32,
  type RawClient,
  rowValues,
} from '../harness/raw-client';

const PROTOCOL_31 = 0x0003_0001;
/** the version with which libpq tests whether servers negotiate */
const GREASE = 0x0003_270f;

async function withPooler(options: BouncerOptions, body: (pooler: Bouncer) => Promise<void>): Promise<void> {
  const pooler = await Bouncer.start(options);
  try {
    await body(pooler);
  } finally {
    await pooler.stop();
  }
}

async function ask(client: RawClient, query: string): Promise<string | null | undefined> {
  const row = (await client.query(query)).find((msg) => msg.type === 'D');
  return row === undefined ? undefined : rowValues(row)[0];
}

/** Starts a query that runs until it is canceled. */
async function sleep(client: RawClient, pooler: Bouncer): Promise<void> {
  await client.sendMessage('Q', cstring('SELECT pg_sleep(60)'));
  await eventually('a server to be active', async () =>
    (await pooler.admin('SHOW SERVERS')).some((row) => row.state === 'active'),
  );
}

/** PostgreSQL ignores a cancel request that arrives before the query. */
async function queryRuns(pg: PgCluster): Promise<void> {
  await backendsBecome(pg, "query LIKE 'SELECT pg_sleep%' AND state = 'active'", 1);
}

async function canceled(client: RawClient): Promise<void> {
  const error = (await client.until('Z')).find((msg) => msg.type === 'E');
  assert.equal(errorFields(error as Message).C, '57014');
}

describe('towards clients', () => {
  let pg: PgCluster;
  let pooler: Bouncer;

  before(async () => {
    pg = await PgCluster.start();
    pooler = await Bouncer.start({ cluster: pg, settings: { pool_mode: 'transaction' } });
  });
  after(async () => {
    await pooler.stop();
    await pg.stop();
  });

  for (const [what, version, params, negotiated, secret] of [
    ['3.0', PROTOCOL_30, {}, null, 4],
    ['3.1', PROTOCOL_31, {}, null, 4],
    ['3.2', PROTOCOL_32, {}, null, 32],
    ['3.0 with extensions', PROTOCOL_30, { '_pq_.one': 'x', '_pq_.two': 'y' }, PROTOCOL_30, 4],
    ['3.2 with an extension', PROTOCOL_32, { '_pq_.one': 'x' }, PROTOCOL_32, 32],
    ['3.3', 0x0003_0003, {}, PROTOCOL_32, 32],
    ['3.9999 with an extension', GREASE, { '_pq_.test_protocol_negotiation': '' }, PROTOCOL_32, 32],
  ] as const) {
    const outcome = negotiated === null ? 'is taken as it is' : `is negotiated to 3.${negotiated & 0xffff}`;
    it(`a client with ${what} ${outcome}, with a secret of ${secret} bytes`, async () => {
      const client = await pooler.raw();
      const answer = await client.login({ version, params });
      assert.match(letters(answer), negotiated === null ? /^RS+KZ$/ : /^vRS+KZ$/);
      if (negotiated !== null) {
        const names = Object.keys(params);
        assert.deepEqual(
          answer[0]?.body,
          Buffer.concat([int32(negotiated), int32(names.length), ...names.map(cstring)]),
        );
      }
      assert.equal(client.backendKey.length, secret);
      assert.ok(client.backendPid > 0);
      assert.equal(await ask(client, 'SELECT 1'), '1');
      await sleep(client, pooler);
      await queryRuns(pg);
      await cancelRequest({ port: pooler.port }, client.backendPid, client.backendKey);
      await canceled(client);
      await client.end();
    });
  }

  it('a cancel request with a part of the key, or with more than the key, cancels nothing', async () => {
    const client = await pooler.raw();
    await client.login({ version: PROTOCOL_32 });
    await sleep(client, pooler);
    const key = client.backendKey;
    const wrong = Buffer.from(key);
    wrong[31] = (wrong[31] as number) ^ 1;
    for (const guess of [wrong, key.subarray(0, 4), key.subarray(0, 31), Buffer.concat([key, Buffer.alloc(1)])]) {
      const from = pooler.log.mark();
      await cancelRequest({ port: pooler.port }, client.backendPid, guess);
      await pooler.logWait(/closing because: failed cancel request/, from);
    }
    await cancelRequest({ port: pooler.port }, client.backendPid, key);
    await canceled(client);
    await client.end();
  });

  it('cancel keys shorter than 4 or longer than 256 bytes are refused', async () => {
    for (const length of [0, 3, 257, 1000]) {
      const from = pooler.log.mark();
      await cancelRequest({ port: pooler.port }, 1, Buffer.alloc(length));
      await pooler.logWait(/closing because: bad cancel request/, from);
    }
    const from = pooler.log.mark();
    await cancelRequest({ port: pooler.port }, 1, Buffer.alloc(256));
    await pooler.logWait(/closing because: failed cancel request/, from);
  });

  it('cancel keys stay short with peers, because PgBouncer as a peer accepts no longer keys', async () => {
    await withPooler({ cluster: pg, settings: { peer_id: 1 } }, async (peer) => {
      const client = await peer.raw();
      assert.match(letters(await client.login({ version: PROTOCOL_32 })), /^RS+KZ$/);
      assert.equal(client.backendKey.length, 4);
      await sleep(client, peer);
      await queryRuns(pg);
      await cancelRequest({ port: peer.port }, client.backendPid, client.backendKey);
      await canceled(client);
      await client.end();
      const from = peer.log.mark();
      await cancelRequest({ port: peer.port }, client.backendPid, Buffer.alloc(32));
      await peer.logWait(/closing because: failed cancel request/, from);
    });
  });

  it('the protocol is negotiated once even with auth_query', async () => {
    await pg.createUser('found', 'secret', 'md5');
    const settings = { auth_user: 'postgres', auth_query: 'SELECT usename, passwd FROM pg_shadow WHERE usename = $1' };
    await withPooler({ cluster: pg, settings }, async (asking) => {
      const client = await asking.raw();
      const answer = await client.login({ version: GREASE, user: 'found', password: 'secret' });
      assert.match(letters(answer), /^vR+S+KZ$/);
      assert.equal(client.backendKey.length, 32);
      await client.end();
    });
  });
});

/** Forwards all bytes to a server, and records versions and cancel requests. */
class Relay {
  readonly versions: number[] = [];
  readonly cancelKeys: Buffer[] = [];

  private constructor(
    private readonly server: Server,
    readonly port: number,
  ) {}

  static async to(port: number): Promise<Relay> {
    const server = createServer();
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const relay = new Relay(server, (server.address() as AddressInfo).port);
    server.on('connection', (client) => {
      client.once('data', (first: Buffer) => {
        const code = first.readInt32BE(4);
        if (code === CANCEL_REQUEST) relay.cancelKeys.push(first.subarray(8));
        else relay.versions.push(code);
        const target = connect(port, '127.0.0.1');
        target.on('error', () => client.destroy());
        client.on('error', () => target.destroy());
        target.write(first);
        client.pipe(target);
        target.pipe(client);
      });
    });
    return relay;
  }

  stop(): void {
    this.server.close();
  }
}

describe('towards PostgreSQL', () => {
  for (const [what, newest] of [
    ["the machine's own", false],
    ['the newest', true],
  ] as const) {
    it(`the pooler requests 3.2 and sends the whole cancel key to the server: ${what}`, async () => {
      const pg = await PgCluster.start({ newest });
      const major = Number((await pg.sql('SHOW server_version_num')).rows[0].server_version_num) / 10_000;
      const relay = await Relay.to(pg.port);
      const databases = { postgres: `host=127.0.0.1 port=${relay.port}` };
      await withPooler({ databases, settings: { server_tls_sslmode: 'disable' } }, async (pooler) => {
        for (const version of [PROTOCOL_30, PROTOCOL_32]) {
          const client = await pooler.raw();
          await client.login({ version });
          assert.equal(await ask(client, 'SELECT 1'), '1');
          await sleep(client, pooler);
          await queryRuns(pg);
          await cancelRequest({ port: pooler.port }, client.backendPid, client.backendKey);
          await canceled(client);
          await client.end();
        }
      });
      assert.ok(relay.versions.length > 0 && relay.versions.every((version) => version === PROTOCOL_32));
      const expected = major >= 18 ? 36 : 8;
      assert.deepEqual(
        relay.cancelKeys.map((key) => key.length),
        [expected, expected],
      );
      relay.stop();
      await pg.stop();
    });
  }
});

/* ---- scripted servers ---- */

const AUTH_OK = message('R', int32(0));
const READY = message('Z', Buffer.from('I'));
const VERSION = message('S', cstring('server_version'), cstring('18.0'));

function keyData(secret: number): Buffer {
  return message('K', int32(4711), Buffer.alloc(secret, 7));
}

function error(sqlstate: string, text: string): Buffer {
  return message('E', cstring('SFATAL'), cstring(`C${sqlstate}`), cstring(`M${text}`), Buffer.alloc(1));
}

/** Answers queries without rows. */
async function serve(visit: Visit, ...welcome: Buffer[]): Promise<void> {
  visit.socket.write(Buffer.concat([...welcome, VERSION, READY]));
  for (;;) {
    const msg = await visit.next();
    if (msg === null) return;
    if (msg.type === 'Q') visit.socket.write(Buffer.concat([message('C', cstring('SELECT 0')), READY]));
  }
}

interface Scene {
  fake: FakeServer;
  pooler: Bouncer;
  /** versions requested so far */
  versions: number[];
}

/** Runs `body` with a pooler and a server that handles each connection with `act`. */
async function scene(
  act: (visit: Visit) => Promise<void>,
  body: (scene: Scene) => Promise<void>,
  extra = '',
  settings: Record<string, string | number> = {},
): Promise<void> {
  const versions: number[] = [];
  const fake = await FakeServer.start(async (visit) => {
    versions.push(visit.version);
    await act(visit);
  });
  const databases = { postgres: `host=127.0.0.1 port=${fake.port} ${extra}` };
  try {
    await withPooler(
      { databases, settings: { server_login_retry: 60, auth_type: 'trust', server_reset_query: '', ...settings } },
      (pooler) => body({ fake, pooler, versions }),
    );
  } finally {
    await fake.stop();
  }
}

describe('towards servers that do not speak 3.2', () => {
  const refusals: [string, (visit: Visit) => void][] = [
    ['with feature_not_supported', (visit) => visit.socket.end(error('0A000', 'unsupported frontend protocol 3.2'))],
    ['as PgBouncer before 1.24', (visit) => visit.socket.end(error('08P01', "bad packet header: '0000004700030002'"))],
    ['by closing the connection', (visit) => visit.socket.end()],
    ['by resetting it', (visit) => visit.socket.resetAndDestroy()],
  ];
  for (const [how, refuse] of refusals) {
    it(`a server that refuses 3.2 ${how} is asked for 3.0 at once and from then on`, async () => {
      const act = async (visit: Visit) => {
        if (visit.version === PROTOCOL_32) refuse(visit);
        else await serve(visit, AUTH_OK, keyData(4));
      };
      await scene(act, async ({ pooler, versions }) => {
        const [first, second] = [await pooler.raw(), await pooler.raw()];
        assert.equal((await first.login()).at(-1)?.type, 'Z');
        assert.equal((await second.login()).at(-1)?.type, 'Z');
        await Promise.all([first.query('SELECT'), second.query('SELECT')]);
        assert.deepEqual(versions, [PROTOCOL_32, PROTOCOL_30, PROTOCOL_30]);
        await pooler.logWait(/server does not support protocol 3.2, using 3.0 for this database/);
        await first.end();
        await second.end();
        // the database may have lost its pool
        if (how.startsWith('by')) for (const sql of ['KILL', 'RESUME postgres']) await pooler.admin(sql);
        await pooler.admin('RECONNECT');
        const third = await pooler.raw();
        await third.login();
        await third.query('SELECT');
        assert.deepEqual(versions.slice(3), [PROTOCOL_32, PROTOCOL_30]);
        await third.end();
      });
    });
  }

  it("a server that refuses 3.0 too counts as failed, with the server's error", async () => {
    const act = async (visit: Visit) => void visit.socket.end(error('08P01', 'no more connections allowed'));
    await scene(act, async ({ pooler, versions }) => {
      const client = await pooler.raw();
      const answer = await client.login();
      assert.equal(errorFields(answer.at(-1) as Message).M, 'no more connections allowed');
      assert.deepEqual(versions, [PROTOCOL_32, PROTOCOL_30]);
      const other = await pooler.raw();
      await other.startup({ user: 'postgres', database: 'postgres' });
      await eventually('the client to wait', async () =>
        (await pooler.admin('SHOW POOLS')).some((row) => row.database === 'postgres' && row.cl_waiting === 1),
      );
      assert.equal(versions.length, 2, 'server_login_retry holds');
      await other.destroy();
    });
  });

  it('an error that is not about the version causes no attempt with another version', async () => {
    const act = async (visit: Visit) => void visit.socket.end(error('28000', 'no pg_hba.conf entry'));
    await scene(act, async ({ pooler, versions }) => {
      const client = await pooler.raw();
      assert.equal(errorFields((await client.login()).at(-1) as Message).M, 'no pg_hba.conf entry');
      assert.deepEqual(versions, [PROTOCOL_32]);
    });
  });

  it('a server that does not answer is asked for 3.0 after server_connect_timeout', async () => {
    const act = async (visit: Visit) => {
      if (visit.version === PROTOCOL_30) await serve(visit, AUTH_OK, keyData(4));
    };
    const settings = { server_connect_timeout: 1, server_login_retry: 1 };
    await scene(
      act,
      async ({ pooler, versions }) => {
        const client = await pooler.raw();
        assert.equal((await client.login()).at(-1)?.type, 'Z');
        assert.deepEqual(versions, [PROTOCOL_32, PROTOCOL_30]);
        await client.end();
      },
      '',
      settings,
    );
  });

  it('a replication client is served after the server has refused 3.2', async () => {
    const act = async (visit: Visit) => {
      if (visit.version === PROTOCOL_32) visit.socket.end();
      else await serve(visit, AUTH_OK, keyData(4));
    };
    await scene(act, async ({ pooler, versions }) => {
      const plain = await pooler.raw();
      await plain.login();
      await pooler.admin('RECONNECT');
      const client = await pooler.raw();
      assert.equal((await client.login({ params: { replication: 'database' } })).at(-1)?.type, 'Z');
      assert.equal(letters(await client.query('IDENTIFY_SYSTEM')), 'CZ');
      assert.deepEqual(versions, [PROTOCOL_32, PROTOCOL_30, PROTOCOL_32, PROTOCOL_30]);
      await client.end();
      await plain.end();
    });
  });

  it('max_protocol_version=3.0 makes the pooler request 3.0', async () => {
    const act = (visit: Visit) => serve(visit, AUTH_OK, keyData(4));
    const body = async ({ pooler, versions }: Scene) => {
      const client = await pooler.raw();
      await client.login({ version: PROTOCOL_32 });
      assert.equal(client.backendKey.length, 32, "the client's version is its own");
      assert.deepEqual(versions, [PROTOCOL_30]);
      await client.end();
    };
    await scene(act, body, 'max_protocol_version=3.0');
  });

  for (const [what, answer] of [
    ['the whole version', message('v', int32(PROTOCOL_30), int32(0))],
    ['the minor version', message('v', int32(0), int32(0))],
    ['3.2 itself', message('v', int32(PROTOCOL_32), int32(0))],
  ] as const) {
    it(`a server that negotiates the version is used, with ${what}`, async () => {
      await scene(
        (visit) => serve(visit, answer, AUTH_OK, keyData(4)),
        async ({ pooler, versions }) => {
          const client = await pooler.raw();
          assert.equal((await client.login()).at(-1)?.type, 'Z');
          assert.deepEqual(versions, [PROTOCOL_32]);
          await client.end();
        },
      );
    });
  }

  const negotiated = message('v', int32(PROTOCOL_30), int32(0));
  for (const [what, welcome, extra] of [
    ['twice', [negotiated, negotiated], ''],
    ['after authentication', [AUTH_OK, negotiated], ''],
    ['to 3.3', [message('v', int32(0x0003_0003), int32(0))], ''],
    ['to 2.0', [message('v', int32(0x0002_0000), int32(0))], ''],
    ['in too few bytes', [message('v', int32(PROTOCOL_30))], ''],
    ['unasked', [negotiated], 'max_protocol_version=3.0'],
  ] as const) {
    it(`a server that negotiates ${what} is closed`, async () => {
      await scene(
        (visit) => serve(visit, ...welcome),
        async ({ pooler }) => {
          const client = await pooler.raw();
          await client.startup({ user: 'postgres', database: 'postgres' });
          await pooler.logWait(
            /closing because: (bad NegotiateProtocolVersion from server|unexpected pkt in login phase)/,
          );
          await client.destroy();
        },
        extra,
      );
    });
  }
});

describe('cancel keys of servers', () => {
  for (const secret of [4, 32, 256]) {
    it(`a server's cancel key with a secret of ${secret} bytes is sent back whole`, async () => {
      const whole = Buffer.concat([int32(4711), Buffer.alloc(secret, 7)]);
      const seen: Buffer[] = [];
      const fake = createServer((socket) => {
        socket.on('error', () => {});
        socket.once('data', (first) => {
          if (first.readInt32BE(4) === CANCEL_REQUEST) {
            seen.push(first.subarray(8, first.readInt32BE(0)));
            socket.end();
          } else {
            socket.write(Buffer.concat([AUTH_OK, keyData(secret), VERSION, READY]));
          }
        });
      });
      fake.listen(0, '127.0.0.1');
      await once(fake, 'listening');
      const databases = { postgres: `host=127.0.0.1 port=${(fake.address() as AddressInfo).port}` };
      const settings = { server_tls_sslmode: 'disable', auth_type: 'trust' };
      await withPooler({ databases, settings }, async (pooler) => {
        const client = await pooler.raw();
        await client.login();
        await sleep(client, pooler);
        await cancelRequest({ port: pooler.port }, client.backendPid, client.backendKey);
        assert.deepEqual(seen, [whole]);
        await client.destroy();
      });
      fake.close();
    });
  }

  for (const secret of [3, 257]) {
    it(`a server's cancel key with a secret of ${secret} bytes is refused`, async () => {
      await scene(
        (visit) => serve(visit, AUTH_OK, keyData(secret)),
        async ({ pooler }) => {
          const client = await pooler.raw();
          await client.startup({ user: 'postgres', database: 'postgres' });
          await pooler.logWait(/closing because: bad cancel key/);
          await client.destroy();
        },
      );
    });
  }
});

it('the console supports protocol 3.2', async () => {
  await withPooler({ databases: { app: 'host=127.0.0.1' } }, async (pooler) => {
    const raw = await pooler.raw();
    const login = { user: 'admin', database: 'pgbouncer', password: ADMIN_PASSWORD, version: PROTOCOL_32 };
    assert.equal((await raw.login(login)).at(-1)?.type, 'Z');
    assert.equal(raw.backendKey.length, 32);
    await raw.end();
  });
});
