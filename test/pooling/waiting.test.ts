/*
 * Clients that wait for a server: they can cancel their request or disconnect without costing a server connection.
 */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer, type Socket } from 'node:net';
import { join } from 'node:path';
import type { Readable } from 'node:stream';
import { connect as tlsConnect } from 'node:tls';
import { type Bouncer, type BouncerOptions, eventually, it, PgCluster, startProgram, withTimeout } from '../harness';
import { ask, backendOf, login, rowsBecome, start, withPooler } from '../harness/answers';
import { CertFolder } from '../harness/certs';
import { after, before, describe } from '../harness/limits';
import {
  CANCEL_REQUEST,
  cancelRequest,
  cstring,
  errorFields,
  int16,
  int32,
  letters,
  type Message,
  message,
  RawClient,
  startupPacket,
} from '../harness/raw-client';
import { startUntilTold } from '../harness/until-told';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

const MODES = ['session', 'transaction', 'statement'];

/** Waits until that many clients wait for a server of the default database. */
function queueIs(pooler: Bouncer, count: number): Promise<void> {
  return rowsBecome(pooler, 'POOLS', { database: 'postgres', cl_waiting: count }, 1);
}

describe('a client that cancels its request while it waits for a server', () => {
  const parse = (name: string, sql: string) => message('P', cstring(name), cstring(sql), int16(0));
  const bind = (name: string) => message('B', cstring(''), cstring(name), int16(0), int16(0), int16(0));
  const execute = message('E', cstring(''), int32(0));
  const sync = message('S');
  const query = (sql: string) => message('Q', cstring(sql));
  const flush = message('H');

  /** Sends a cancel request for the client, and waits until it is done. */
  async function cancel(pooler: Bouncer, client: RawClient): Promise<void> {
    await cancelRequest({ port: pooler.port }, client.backendPid, client.backendKey);
  }

  /** Runs `body` with a pool of one server, which another client holds, and a client that is about to wait. */
  async function withFullPool(
    body: (pooler: Bouncer, client: RawClient, free: () => Promise<void>) => Promise<void>,
    settings: BouncerOptions['settings'] = {},
  ): Promise<void> {
    const common = { pool_mode: 'transaction', default_pool_size: 1, server_reset_query: '' };
    await withPooler({ cluster: pg, settings: { ...common, ...settings } }, async (pooler) => {
      const holder = await login(pooler);
      await ask(holder, 'BEGIN');
      await body(pooler, await login(pooler), async () => {
        await ask(holder, 'COMMIT');
        await holder.end();
      });
    });
  }

  function isCanceled(answer: Message | undefined): void {
    const error = errorFields(answer as Message);
    assert.deepEqual([error.S, error.C, error.M], ['ERROR', '57014', 'canceling statement due to user request']);
  }

  for (const mode of ['session', 'transaction']) {
    it(`a waiting client that cancels its request leaves the queue with PostgreSQL's error and works: ${mode} pooling`, async () => {
      await withFullPool(
        async (pooler, client, free) => {
          for (let n = 0; n < 3; n++) {
            await client.send(query('SELECT 1'));
            await queueIs(pooler, 1);
            await cancel(pooler, client);
            const answer = await client.until('Z');
            assert.equal(letters(answer), 'EZ');
            isCanceled(answer[0]);
            assert.equal(answer[1]?.body.toString('latin1'), 'I');
            await queueIs(pooler, 0);
          }
          await client.send(query('SELECT 2'));
          await queueIs(pooler, 1);
          await free();
          assert.equal(letters(await client.until('Z')), 'TDCZ');
          assert.equal(await ask(client, 'SELECT 3'), '3');
        },
        { pool_mode: mode },
      );
    });
  }

  it('canceling a waiting extended query drops exactly the messages up to Sync', async () => {
    await withFullPool(async (pooler, client, free) => {
      await client.send(parse('', 'SELECT 1'), bind(''), execute, sync, query('SELECT 2'), query('SELECT 3'));
      await queueIs(pooler, 1);
      await cancel(pooler, client);
      const answer = await client.until('Z');
      assert.equal(letters(answer), 'EZ');
      isCanceled(answer[0]);
      await queueIs(pooler, 1);
      await free();
      assert.equal(letters(await client.until('Z')), 'TDCZ');
      assert.equal(letters(await client.until('Z')), 'TDCZ');
      assert.equal(await ask(client, 'SELECT 4'), '4');
    });
  });

  it('canceling a waiting extended query before its Sync drops all later messages up to Sync', async () => {
    await withFullPool(async (pooler, client, free) => {
      await client.send(parse('', 'SELECT 1'), flush);
      await queueIs(pooler, 1);
      await cancel(pooler, client);
      isCanceled((await client.until('E'))[0]);
      await client.send(bind(''), execute, query('SELECT nonsense'), flush, message('C', Buffer.from('Sx\0')));
      await client.send(sync, query('SELECT 2'));
      assert.equal(letters(await client.until('Z')), 'Z');
      await queueIs(pooler, 1);
      await free();
      assert.equal(letters(await client.until('Z')), 'TDCZ');
    });
  });

  it('a statement dropped by canceling can be prepared again', async () => {
    await withFullPool(async (pooler, client, free) => {
      // large enough to arrive in several deliveries
      const sql = `SELECT 7 /* ${'x'.repeat(200_000)} */`;
      await client.send(parse('name', sql), sync);
      await queueIs(pooler, 1);
      await cancel(pooler, client);
      assert.equal(letters(await client.until('Z')), 'EZ');
      await free();
      await client.send(parse('name', sql), bind('name'), execute, sync);
      assert.equal(letters(await client.until('Z')), '12DCZ');
    });
  });

  it('a client that cancels its request during PAUSE works like any other client', async () => {
    await withPooler({ cluster: pg, settings: { pool_mode: 'transaction' } }, async (pooler) => {
      const client = await login(pooler);
      await pooler.admin('PAUSE');
      await client.send(query('SELECT 1'));
      await queueIs(pooler, 1);
      await cancel(pooler, client);
      const answer = await client.until('Z');
      isCanceled(answer[0]);
      await pooler.admin('RESUME');
      assert.equal(await ask(client, 'SELECT 2'), '2');
    });
  });

  it('a waiting request can be canceled through a peer', async () => {
    const peers: Record<string, string> = {};
    const settings = { pool_mode: 'transaction', default_pool_size: 1, peer_id: 1 };
    await withPooler({ cluster: pg, settings, peers: { 1: 'host=127.0.0.1 port=1' } }, async (one) => {
      peers[1] = `host=127.0.0.1 port=${one.port}`;
      await withPooler({ cluster: pg, settings: { ...settings, peer_id: 2 }, peers }, async (two) => {
        const holder = await login(one);
        await ask(holder, 'BEGIN');
        const client = await login(one);
        await start(client, 'SELECT 1');
        await queueIs(one, 1);
        await cancel(two, client);
        const answer = await client.until('Z');
        assert.equal(letters(answer), 'EZ');
        isCanceled(answer[0]);
      });
    });
  });

  it('a canceled extended query still expects its Sync after a takeover', async () => {
    await withFullPool(async (pooler, client, free) => {
      await client.send(parse('', 'SELECT 1'), bind(''), flush);
      await queueIs(pooler, 1);
      await cancel(pooler, client);
      isCanceled((await client.until('E'))[0]);
      const next = pooler.beside(['-R']);
      await next.waitUp();
      assert.deepEqual(await pooler.expectEnd(), { code: 0, signal: null });
      await client.send(execute, query('SELECT nonsense'), sync, query('SELECT 2'));
      assert.equal(letters(await client.until('Z')), 'Z');
      await free();
      assert.equal(letters(await client.until('Z')), 'TDCZ');
      await next.stop();
    });
  });

  it('a cancel request while variables are being set cancels the request, not the SET', async () => {
    await withHeldSet(async (pooler, held, release) => {
      const other = await login(pooler);
      await ask(other, 'SELECT 1');
      const client = await login(pooler, { params: { application_name: 'mine' } });
      await client.send(query('SELECT pg_sleep(600)'), query('SELECT current_setting($$application_name$$)'));
      await eventually('the SET to be on its way', () => held());
      await cancel(pooler, client);
      release();
      const answer = await client.until('Z');
      assert.equal(letters(answer), 'EZ');
      isCanceled(answer[0]);
      assert.equal(letters(await client.until('Z')), 'TDCZ');
      // and the server is available for other clients
      await client.send(query('SELECT 1'));
      await client.until('Z');
      assert.equal(await ask(other, 'SELECT 5'), '5');
      assert.equal(pooler.log.count(/S-[^\n]* closing because/), 0);
    });
  });

  it('after a cancel request while variables are being set, the server is available for other clients', async () => {
    await withHeldSet(async (pooler, held, release) => {
      const other = await login(pooler);
      await ask(other, 'SELECT 1');
      const client = await login(pooler, { params: { application_name: 'mine' } });
      await client.send(query('SELECT pg_sleep(600)'));
      await eventually('the SET to be on its way', () => held());
      await cancel(pooler, client);
      release();
      assert.equal(letters(await client.until('Z')), 'EZ');
      assert.equal(await ask(other, 'SELECT 5'), '5');
    });
  });

  /** A pool of one server, for which the first SET is held until it is released. */
  async function withHeldSet(
    body: (pooler: Bouncer, held: () => boolean, release: () => void) => Promise<void>,
  ): Promise<void> {
    let pending: (() => void) | null = null;
    let holding = true;
    const sockets = new Set<Socket>();
    const gate = createServer((socket) => {
      const server = connect(pg.port, '127.0.0.1');
      for (const end of [socket, server]) {
        sockets.add(end);
        end.on('error', () => {});
      }
      server.pipe(socket);
      socket.on('data', (bytes: Buffer) => {
        if (holding && bytes.includes('SET application_name')) pending = () => server.write(bytes);
        else server.write(bytes);
      });
    });
    gate.listen(0, '127.0.0.1');
    await once(gate, 'listening');
    const { port } = gate.address() as { port: number };
    const settings = { pool_mode: 'transaction', default_pool_size: 1, server_tls_sslmode: 'disable' };
    const release = () => {
      holding = false;
      pending?.();
      pending = null;
    };
    try {
      await withPooler({ databases: { postgres: `host=127.0.0.1 port=${port}` }, settings }, (pooler) =>
        body(pooler, () => pending !== null, release),
      );
    } finally {
      for (const end of sockets) end.destroy();
      gate.close();
    }
  }
});

describe('a cancel request for a client', () => {
  it('a cancel request for an idle client does not affect its next query', async () => {
    await withPooler({ cluster: pg, settings: { pool_mode: 'transaction' } }, async (pooler) => {
      const client = await login(pooler);
      const key = Buffer.concat([int32(client.backendPid), client.backendKey]);
      const req = await pooler.raw();
      await req.send(startupPacket(CANCEL_REQUEST, key));
      await pooler.logWait(/closing because: cancel request for idle client/);
      await req.destroy();
      assert.equal(await ask(client, 'SELECT 1'), '1');
    });
  });
});

/**
 * A program with `linked` clients that hold a server and `waiting` clients that wait for a server. It prints "ready"
 * when they do. It opens the connections in the given order, and the kernel closes the last opened connection first.
 */
const PROGRAM = `
  const { RawClient, message, cstring } = require(process.argv[1]);
  const [port, linked, waiting, hold, lastFirst] = process.argv.slice(2);
  (async () => {
    const clients = [];
    for (let i = 0; i < Number(linked) + Number(waiting); i++) {
      const client = await RawClient.connect({ port: Number(port) });
      await client.login();
      clients.push(client);
    }
    if (lastFirst === 'true') clients.reverse();
    const query = (client, sql) => client.send(message('Q', cstring(sql)));
    for (const client of clients.slice(0, Number(linked))) {
      await query(client, hold);
      // a notice, or the end of the query, says that a server is assigned
      await client.until(hold.includes('NOTICE') ? 'N' : 'Z');
    }
    for (const client of clients.slice(Number(linked))) await query(client, 'SELECT 1');
    console.log('ready');
    setInterval(() => {}, 1000);
  })();
`;

describe('a program that is killed while some of its clients wait', () => {
  const LINKED = 10;
  const WAITING = 30;
  const SLEEP = "DO $$BEGIN RAISE NOTICE 'begins'; PERFORM pg_sleep(600); END$$";

  /** Kills such a program. @returns how many servers were closed when all of its clients are disconnected */
  async function serversLost(settings: BouncerOptions['settings'], hold: string, lastFirst: boolean): Promise<number> {
    let lost = -1;
    const common = { default_pool_size: LINKED, max_client_conn: 200 };
    await withPooler({ cluster: pg, settings: { ...common, ...settings } }, async (pooler) => {
      const args = [join(__dirname, '..', 'harness', 'raw-client.js'), pooler.port, LINKED, WAITING, hold, lastFirst];
      const program = startProgram(process.execPath, ['-e', PROGRAM, ...args.map(String)], {
        stdio: ['ignore', 'pipe', 'inherit'],
      });
      try {
        await withTimeout(once(program.stdout as Readable, 'data'), 'the program');
        await queueIs(pooler, WAITING);
        // the kernel closes the sockets one after the other: the pooler meets them when all are closed
        pooler.signal('SIGSTOP');
        const ended = once(program, 'exit');
        program.kill('SIGKILL');
        await withTimeout(ended, 'the program to end');
        pooler.signal('SIGCONT');
        await eventually('all of its clients to be gone', () => {
          return pooler.log.count(/C-[^\n]* closing because: client unexpected eof/) === LINKED + WAITING;
        });
      } finally {
        program.kill('SIGKILL');
      }
      // a server assigned to a dead client would be closed with that client
      const client = await login(pooler);
      await backendOf(client);
      lost = pooler.log.count(/S-[^\n]* closing because/);
    });
    return lost;
  }

  for (const lastFirst of [false, true]) {
    const order = lastFirst ? 'those that hold a server end first' : 'those that wait end first';
    it(`a killed program with waiting clients costs no server: session pooling, ${order}`, async () => {
      assert.equal(await serversLost({ pool_mode: 'session' }, 'SELECT 1', lastFirst), 0);
    });
    it(`a killed program with waiting clients costs no server: session pooling without reset query, ${order}`, async () => {
      assert.equal(await serversLost({ pool_mode: 'session', server_reset_query: '' }, 'SELECT 1', lastFirst), 0);
    });
    it(`a killed program costs only the servers of its transactions: transaction pooling, ${order}`, async () => {
      assert.equal(await serversLost({ pool_mode: 'transaction' }, 'BEGIN', lastFirst), LINKED);
    });
    it(`a killed program costs only the servers of its queries: statement pooling, ${order}`, async () => {
      assert.equal(await serversLost({ pool_mode: 'statement' }, SLEEP, lastFirst), LINKED);
    });
  }
});

describe('a client whose connection ends while it waits for a server', () => {
  const certs = new CertFolder();
  const ca = certs.authority('ca');
  const site = certs.issue(ca, 'site', { cn: 'localhost', san: 'IP:127.0.0.1' });
  const TLS = { client_tls_sslmode: 'allow', client_tls_key_file: site.key, client_tls_cert_file: site.cert };

  /** The client's connection, and the socket to close. */
  type Way = (pooler: Bouncer) => Promise<{ client: RawClient; socket: Socket }>;

  const plain: Way = async (pooler) => {
    const client = await pooler.raw();
    return { client, socket: client.socket };
  };
  const unix: Way = async (pooler) => {
    const client = await RawClient.connect({ path: join(pooler.socketDir, `.s.PGSQL.${pooler.port}`) });
    return { client, socket: client.socket };
  };
  const tls: Way = async (pooler) => {
    const socket = connect(pooler.port, '127.0.0.1');
    socket.on('error', () => {});
    const secure = tlsConnect({ socket, rejectUnauthorized: false, ALPNProtocols: ['postgresql'] });
    secure.on('error', () => {});
    await once(secure, 'secureConnect');
    return { client: RawClient.over(secure), socket };
  };

  for (const [name, way] of Object.entries({ TCP: plain, 'a Unix socket': unix, TLS: tls })) {
    it(`a waiting client that disconnects leaves the queue at once: over ${name}`, async () => {
      const settings = { ...TLS, pool_mode: 'transaction', default_pool_size: 1 };
      await withPooler({ cluster: pg, settings }, async (pooler) => {
        const holder = await login(pooler);
        await ask(holder, 'BEGIN');
        const { client, socket } = await way(pooler);
        assert.equal(letters(await client.login()).at(-1), 'Z');
        await start(client, 'SELECT 1');
        await queueIs(pooler, 1);
        socket.destroy();
        await pooler.logWait(/C-[^\n]* closing because: client unexpected eof/);
        await queueIs(pooler, 0);
        await ask(holder, 'COMMIT');
        assert.equal(pooler.log.count(/S-[^\n]* closing because/), 0);
      });
    });
  }

  for (const mode of MODES) {
    it(`the next client in the queue gets the server when a waiting client disconnects: ${mode} pooling`, async () => {
      await withPooler({ cluster: pg, settings: { pool_mode: mode, default_pool_size: 1 } }, async (pooler) => {
        const holder = await login(pooler);
        const end = await startUntilTold(pg, holder);
        const first = await login(pooler);
        const second = await login(pooler);
        await start(first, 'SELECT 1');
        await queueIs(pooler, 1);
        await start(second, 'SELECT 2');
        await queueIs(pooler, 2);
        await first.destroy();
        await end();
        await holder.until('Z');
        await holder.end();
        assert.equal(letters(await second.until('Z')), 'TDCZ');
        await pooler.logWait(/C-[^\n]* closing because: client unexpected eof/);
        assert.equal(pooler.log.count(/S-[^\n]* closing because/), 0);
      });
    });
  }

  it('the query of a waiting client that disconnects never reaches PostgreSQL', async () => {
    await pg.sql('CREATE TABLE seen (n int)');
    await withPooler({ cluster: pg, settings: { pool_mode: 'transaction', default_pool_size: 1 } }, async (pooler) => {
      const holder = await login(pooler);
      await ask(holder, 'BEGIN');
      const client = await login(pooler);
      await start(client, 'INSERT INTO seen VALUES (1)');
      await queueIs(pooler, 1);
      await client.destroy();
      await ask(holder, 'COMMIT');
      await queueIs(pooler, 0);
      assert.equal(await ask(holder, 'SELECT count(*) FROM seen'), '0');
    });
  });

  it('a login does not wait behind queries once the welcome message is known', async () => {
    const databases = { postgres: pg.connstr('postgres', "connect_query='SELECT pg_advisory_xact_lock_shared(5)'") };
    await withPooler({ databases, settings: { pool_mode: 'transaction', default_pool_size: 1 } }, async (pooler) => {
      const [holder, queued] = [await login(pooler), await login(pooler)];
      await ask(holder, 'BEGIN');
      const locker = await RawClient.connect({ port: pg.port });
      await locker.login();
      await ask(locker, 'SELECT pg_advisory_lock(5)');
      await start(queued, 'BEGIN');
      await pooler.admin('RECONNECT');
      await rowsBecome(pooler, 'SERVERS', { state: 'new' }, 1);
      const late = await pooler.raw();
      const answer = late.login();
      await queueIs(pooler, 2);
      await ask(locker, 'SELECT pg_advisory_unlock(5)');
      assert.equal(letters(await queued.until('Z')), 'CZ');
      assert.equal((await answer).at(-1)?.type, 'Z');
      await locker.end();
    });
  });
});
