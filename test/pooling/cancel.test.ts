/*
 * Cancel requests, which must cancel the right query and no other, in every pool mode, with a full pool, and however
 * long they take. A gate in front of PostgreSQL holds them while a test checks the state.
 */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import { freePort } from '../../tools/postgres';
import { Bouncer, eventually, it, PgCluster } from '../harness';
import { errorIn, login, rowsBecome, start, valueIn, withPooler } from '../harness/answers';
import { after, before, describe } from '../harness/limits';
import {
  CANCEL_REQUEST,
  cancelRequest,
  cstring,
  errorFields,
  int32,
  letters,
  type Message,
  type RawClient,
  rowValues,
  startupPacket,
} from '../harness/raw-client';
import { startUntilTold } from '../harness/until-told';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(async () => {
  await pg.stop();
});

/** Forwards all bytes to PostgreSQL, but holds cancel requests until they are released. */
class Gate {
  readonly held: Buffer[] = [];
  private readonly release: (() => void)[] = [];
  private open = false;
  private readonly sockets = new Set<Socket>();
  private readonly server = createServer((client) => this.accept(client));
  port = 0;

  static async open(): Promise<Gate> {
    const gate = new Gate();
    gate.server.listen(0, '127.0.0.1');
    await once(gate.server, 'listening');
    gate.port = (gate.server.address() as { port: number }).port;
    return gate;
  }

  /** Releases the held requests and waits until the pooler has seen them completed; later requests are not held. */
  async releaseAll(): Promise<void> {
    this.open = true;
    await eventually('the requests to be done', () => {
      for (const go of this.release.splice(0)) go();
      return this.held.length === 0;
    });
  }

  async close(): Promise<void> {
    for (const socket of this.sockets) socket.destroy();
    this.server.close();
  }

  private accept(client: Socket): void {
    this.track(client);
    client.once('data', (first: Buffer) => {
      client.pause();
      const pass = () => {
        const server = connect(pg.port, '127.0.0.1');
        this.track(server);
        server.write(first);
        client.pipe(server);
        server.pipe(client);
      };
      if (this.open || first.length < 8 || first.readInt32BE(4) !== CANCEL_REQUEST) {
        pass();
        return;
      }
      this.held.push(first);
      client.once('close', () => this.held.splice(this.held.indexOf(first), 1));
      client.resume();
      this.release.push(pass);
    });
  }

  private track(socket: Socket): void {
    this.sockets.add(socket);
    socket.on('error', () => {});
    socket.once('close', () => this.sockets.delete(socket));
  }
}

/** A test with a gate and a pooler that uses it, by default with transaction pooling. */
function itGated(
  name: string,
  body: (own: Bouncer, gate: Gate) => Promise<void>,
  settings: Record<string, string | number> = {},
): void {
  it(name, async () => {
    const gate = await Gate.open();
    const own = await Bouncer.start({
      databases: { app: `host=127.0.0.1 port=${gate.port} dbname=postgres` },
      settings: { pool_mode: 'transaction', ...settings },
    });
    try {
      await body(own, gate);
    } finally {
      await own.stop();
      await gate.close();
    }
  });
}

async function loggedIn(own: Bouncer): Promise<RawClient> {
  const raw = await own.raw();
  assert.equal(letters(await raw.login({ database: 'app' })).at(-1), 'Z');
  return raw;
}

/** Starts a query that runs until it is canceled, and waits until it runs. */
async function startSleeping(raw: RawClient): Promise<void> {
  const mark = `victim ${raw.socket.localPort}`;
  await raw.sendMessage('Q', cstring(`SELECT /* ${mark} */ pg_sleep(600)`));
  const running = `SELECT 1 FROM pg_stat_activity WHERE query LIKE '%${mark}%' AND wait_event = 'PgSleep'`;
  await eventually('the query to run', async () => (await pg.sql(running)).rowCount === 1);
}

/** Sends the cancel request and leaves its connection open. */
async function beginCancel(own: Bouncer, victim: RawClient): Promise<RawClient> {
  const req = await own.raw();
  const key = Buffer.concat([int32(victim.backendPid), victim.backendKey]);
  await req.send(startupPacket(CANCEL_REQUEST, key));
  return req;
}

function isCanceled(answer: Message[]): void {
  assert.equal(letters(answer.filter((msg) => 'EZ'.includes(msg.type))), 'EZ');
  const error = errorFields(answer.find((msg) => msg.type === 'E') as Message);
  assert.deepEqual([error.C, error.M], ['57014', 'canceling statement due to user request']);
}

async function poolRow(own: Bouncer): Promise<Record<string, string | number | null>> {
  return (await own.admin('SHOW POOLS')).find((pool) => pool.database === 'app') ?? {};
}

for (const mode of ['session', 'transaction', 'statement']) {
  it(`a cancel request cancels a running query and keeps the client: ${mode} pooling`, async () => {
    const own = await Bouncer.start({ databases: { app: pg.connstr() }, settings: { pool_mode: mode } });
    const raw = await loggedIn(own);
    for (let n = 0; n < 5; n++) {
      await startSleeping(raw);
      await cancelRequest({ port: own.port }, raw.backendPid, raw.backendKey);
      isCanceled(await raw.until('Z'));
      const [, row] = await raw.query(`SELECT ${n}`);
      assert.deepEqual(rowValues(row as Message), [String(n)]);
    }
    await raw.end();
    await own.stop();
  });
}

it('a cancel request over the Unix socket works', async () => {
  const own = await Bouncer.start({ databases: { app: `host=${pg.socketDir} port=${pg.port} dbname=postgres` } });
  const raw = await loggedIn(own);
  await startSleeping(raw);
  await cancelRequest({ path: `${own.socketDir}/.s.PGSQL.${own.port}` }, raw.backendPid, raw.backendKey);
  isCanceled(await raw.until('Z'));
  await raw.end();
  await own.stop();
});

for (const command of ['PAUSE', 'PAUSE app', 'SHUTDOWN WAIT_FOR_SERVERS']) {
  it(`a query that ${command} waits for can be canceled`, async () => {
    const own = await Bouncer.start({ databases: { app: pg.connstr() }, settings: { pool_mode: 'transaction' } });
    const [canceled, leaves] = [await loggedIn(own), await loggedIn(own)];
    for (const raw of [canceled, leaves]) await startSleeping(raw);
    const con = await own.console();
    const done = con.query(command);
    await own.logWait(/(PAUSE( 'app')?|SHUTDOWN WAIT_FOR_SERVERS) command issued/);
    const socket = { path: `${own.socketDir}/.s.PGSQL.${own.port}` };
    await cancelRequest(socket, canceled.backendPid, canceled.backendKey);
    isCanceled(await canceled.until('Z'));
    // its query is canceled by the pooler
    await leaves.destroy();
    await done;
    if (command.startsWith('SHUTDOWN')) await own.expectEnd();
    await Promise.all([canceled.destroy(), con.end().catch(() => {})]);
    await own.stop();
  });
}

describe('queries that are not canceled', () => {
  itGated('a cancel request does not cancel a query of a client with another key', async (own) => {
    const raw = await loggedIn(own);
    const other = await loggedIn(own);
    assert.notDeepEqual(raw.backendKey, other.backendKey);
    const end = await startUntilTold(pg, raw);
    const wrong = Buffer.from(raw.backendKey);
    wrong[0] = (wrong[0] as number) ^ 1;
    await cancelRequest({ port: own.port }, raw.backendPid, wrong);
    await own.logWait(/closing because: failed cancel request/);
    // another client's key has no effect on this client
    await cancelRequest({ port: own.port }, other.backendPid, other.backendKey);
    await own.logWait(/closing because: cancel request for idle client/);
    await end();
    assert.equal(letters(await raw.until('Z')), 'TDCZ');
    await raw.end();
    await other.end();
  });

  itGated(
    'a cancel request for an idle client does not cancel the query on the server that it used last',
    async (own) => {
      const raw = await loggedIn(own);
      const other = await loggedIn(own);
      await raw.query('SELECT 1');
      const end = await startUntilTold(pg, other);
      await cancelRequest({ port: own.port }, raw.backendPid, raw.backendKey);
      await end();
      assert.equal(letters(await other.until('Z')), 'TDCZ');
      await raw.end();
      await other.end();
    },
  );

  itGated('cancel requests of the wrong size are refused', async (own) => {
    const raw = await loggedIn(own);
    const end = await startUntilTold(pg, raw);
    const whole = Buffer.concat([int32(raw.backendPid), raw.backendKey]);
    for (const key of [whole.subarray(0, 4), whole.subarray(0, 7), Buffer.concat([whole, Buffer.alloc(253)])]) {
      const req = await own.raw();
      await req.send(startupPacket(CANCEL_REQUEST, key));
      assert.deepEqual(await req.until(''), []);
    }
    await eventually('three lines in the log', () => own.log.count(/closing because: bad cancel request/) === 3);
    await end();
    assert.equal(letters(await raw.until('Z')), 'TDCZ');
    await raw.end();
  });

  itGated(
    'the next client gets the server only after the cancel request for its last client is done',
    async (own, gate) => {
      const raw = await loggedIn(own);
      const next = await loggedIn(own);
      const end = await startUntilTold(pg, raw);
      const req = await beginCancel(own, raw);
      await eventually('the gate to hold the request', () => gate.held.length === 1);
      await end();
      assert.equal(letters(await raw.until('Z')), 'TDCZ');
      const servers = (await own.admin('SHOW SERVERS')).map((server) => server.state).sort();
      assert.deepEqual(servers, ['active_cancel', 'being_canceled']);
      const pool = await poolRow(own);
      assert.deepEqual([pool.sv_being_canceled, pool.sv_active_cancel, pool.cl_active_cancel_req], [1, 1, 1]);
      await next.sendMessage('Q', cstring('SELECT pg_sleep(0.2), 5'));
      await eventually('the next client to wait', async () => (await poolRow(own)).cl_waiting === 1);
      await gate.releaseAll();
      const answer = await next.until('Z');
      assert.equal(letters(answer), 'TDCZ');
      await req.destroy();
      await raw.end();
      await next.end();
    },
    { default_pool_size: 1 },
  );
});

describe('while a request is on its way', () => {
  /** @param before what makes the command wait for the server @param after what ends its effect */
  function waitsForServer(command: string, before: string | null, after: string | null): void {
    itGated(
      `${command} waits until the server is free`,
      async (own, gate) => {
        const raw = await loggedIn(own);
        const end = await startUntilTold(pg, raw);
        const req = await beginCancel(own, raw);
        await eventually('the gate to hold the request', () => gate.held.length === 1);
        await end();
        assert.equal(letters(await raw.until('Z')), 'TDCZ');
        if (before !== null) await own.admin(before);
        let answered = false;
        const waiting = own.admin(command).then(() => {
          answered = true;
        });
        await own.logWait(new RegExp(`${command} command issued`));
        assert.equal((await poolRow(own)).sv_being_canceled, 1);
        assert.equal(answered, false);
        await gate.releaseAll();
        await waiting;
        assert.equal((await poolRow(own)).sv_being_canceled, 0);
        await req.destroy();
        if (after !== null) await own.admin(after);
        assert.equal(letters(await raw.query('SELECT 5')), 'TDCZ');
        await raw.end();
      },
      { default_pool_size: 1 },
    );
  }
  waitsForServer('PAUSE', null, 'RESUME');
  waitsForServer('WAIT_CLOSE', 'RECONNECT', null);

  itGated(
    'cancel requests in progress and waiting are shown, and all end with the query',
    async (own, gate) => {
      const raw = await loggedIn(own);
      await startSleeping(raw);
      const first = await beginCancel(own, raw);
      await eventually('the gate to hold the request', () => gate.held.length === 1);
      // the server's own key, not the client's
      const key = gate.held[0]?.subarray(8) as Buffer;
      assert.notDeepEqual(key, Buffer.concat([int32(raw.backendPid), raw.backendKey]));
      const second = await beginCancel(own, raw);
      await eventually('the second to wait', async () => (await poolRow(own)).cl_waiting_cancel_req === 1);
      const states = (await own.admin('SHOW CLIENTS')).map((client) => client.state);
      assert.ok(states.includes('active_cancel_req') && states.includes('waiting_cancel_req'), states.join());
      assert.ok((await own.admin('SHOW SERVERS')).some((server) => server.state === 'active_cancel'));
      await gate.releaseAll();
      isCanceled(await raw.until('Z'));
      for (const req of [first, second]) {
        assert.deepEqual(await req.until(''), []);
        await req.destroy();
      }
      const pool = await poolRow(own);
      assert.deepEqual([pool.cl_waiting_cancel_req, pool.cl_active_cancel_req, pool.sv_active_cancel], [0, 0, 0]);
      await own.logWait(/closing because: successfully sent cancel request/);
      assert.equal(letters(await raw.query('SELECT 1')), 'TDCZ');
      await raw.end();
    },
    { default_pool_size: 1 },
  );

  itGated('a killed cancel request cancels nothing', async (own, gate) => {
    const raw = await loggedIn(own);
    const end = await startUntilTold(pg, raw);
    const req = await beginCancel(own, raw);
    await eventually('the gate to hold the request', () => gate.held.length === 1);
    const row = (await own.admin('SHOW CLIENTS')).find((client) => client.state === 'active_cancel_req');
    await own.admin(`KILL_CLIENT ${row?.id}`);
    await own.logWait(/client gave up on cancel request, so we also give up forwarding to server/);
    await eventually('the gate to be told', () => gate.held.length === 0);
    await end();
    assert.equal(letters(await raw.until('Z')), 'TDCZ');
    await req.destroy();
    await raw.end();
  });

  itGated(
    'a cancel request waits at most cancel_wait_timeout',
    async (own, gate) => {
      const raw = await loggedIn(own);
      await startSleeping(raw);
      const first = await beginCancel(own, raw);
      await eventually('the gate to hold the request', () => gate.held.length === 1);
      const second = await beginCancel(own, raw);
      await own.logWait(/closing because: cancel_wait_timeout/);
      assert.deepEqual(await second.until(''), []);
      await gate.releaseAll();
      isCanceled(await raw.until('Z'));
      await first.destroy();
      await second.destroy();
      await raw.end();
    },
    { default_pool_size: 1, cancel_wait_timeout: 1 },
  );

  itGated(
    'all queries of a full pool can be canceled at once',
    async (own, gate) => {
      const clients = await Promise.all([1, 2, 3, 4].map(() => loggedIn(own)));
      for (const raw of clients) await startSleeping(raw);
      const reqs = await Promise.all(clients.map((raw) => beginCancel(own, raw)));
      await eventually('the gate to hold all requests', () => gate.held.length === 4);
      await gate.releaseAll();
      for (const raw of clients) isCanceled(await raw.until('Z'));
      for (const raw of clients) await raw.end();
      for (const req of reqs) await req.destroy();
    },
    { default_pool_size: 4 },
  );
});

it('cancel requests that race with queries never hit the wrong client', async () => {
  const own = await Bouncer.start({
    databases: { app: pg.connstr() },
    settings: { pool_mode: 'transaction', default_pool_size: 3, log_connections: 0, log_disconnections: 0 },
  });
  const innocent = await Promise.all([1, 2, 3].map(() => loggedIn(own)));
  const target = await loggedIn(own);
  let over = false;
  const work = innocent.map(async (raw) => {
    for (let n = 0; !over; n++) assert.equal(letters(await raw.query(`SELECT pg_sleep(0.001), ${n}`)), 'TDCZ');
  });
  for (let n = 0; n < 100; n++) {
    const answer = target.query(`SELECT pg_sleep(${(n % 10) / 1000})`);
    await cancelRequest({ port: own.port }, target.backendPid, target.backendKey);
    assert.match(letters(await answer), /^(TDC|E|TE)Z$/);
  }
  over = true;
  await Promise.all(work);
  for (const raw of [...innocent, target]) await raw.end();
  const lists = Object.fromEntries((await own.admin('SHOW LISTS')).map(({ list, items }) => [list, items]));
  assert.equal(lists.used_clients, 1);
  await own.stop();
});

it('a server that has just refused a login gets cancel requests', async () => {
  await pg.createUser('few', '', 'none');
  await pg.sql('ALTER ROLE few CONNECTION LIMIT 1');
  const settings = { pool_mode: 'transaction', server_login_retry: 600 };
  await withPooler({ cluster: pg, settings, userlist: { few: '' } }, async (pooler) => {
    const [busy, waiting] = [await login(pooler, { user: 'few' }), await login(pooler, { user: 'few' })];
    await start(busy, 'SELECT pg_sleep(100)');
    await rowsBecome(pooler, 'SERVERS', { state: 'active' }, 1);
    await start(waiting, 'SELECT 1');
    await pooler.logWait(/server login failed: FATAL too many connections for role "few"/);
    await cancelRequest({ port: pooler.port }, busy.backendPid, busy.backendKey);
    assert.equal(errorIn(await busy.until('Z'))?.C, '57014');
    assert.equal(valueIn(await waiting.until('Z')), '1');
  });
});

it('peers get cancel requests without delay during PAUSE', async () => {
  let received = 0;
  const peer = createServer((socket) => {
    socket.on('error', () => {});
    socket.once('data', () => {
      received++;
      socket.end();
    });
  });
  peer.listen(0, '127.0.0.1');
  await once(peer, 'listening');
  const peers = { 2: `host=127.0.0.1 port=${(peer.address() as AddressInfo).port}` };
  // if one connection were opened in each run of the maintenance, the last requests would not live that long
  const settings = { peer_id: 1, cancel_wait_timeout: 2 };
  await withPooler({ cluster: pg, settings, peers }, async (pooler) => {
    await pooler.admin('PAUSE');
    const requests = Array.from({ length: 15 }, () => cancelRequest({ port: pooler.port }, 2 << 16, int32(3)));
    await Promise.all(requests);
    assert.equal(received, requests.length);
  });
  peer.close();
});

it('a cancel request that peers forward in a circle ends after three times', async () => {
  const [port, otherPort] = [await freePort(), await freePort()];
  const settings = { verbose: 1 };
  const peerAt = (at: number) => ({ 3: `host=127.0.0.1 port=${at}` });
  const first = { cluster: pg, settings: { ...settings, listen_port: port, peer_id: 1 }, peers: peerAt(otherPort) };
  const second = { cluster: pg, settings: { ...settings, listen_port: otherPort, peer_id: 2 }, peers: peerAt(port) };
  await withPooler(first, (one) =>
    withPooler(second, async (two) => {
      // of the process 3, with the full count of hops
      await cancelRequest({ port }, 3 << 16, int32(3));
      await two.logWait(/failed to forward cancel request because its TTL was exhausted/);
      const forwarded = [one, two].map(({ log }) => log.count(/forwarding cancellation request to peer/));
      assert.deepEqual(forwarded, [2, 1]);
    }),
  );
});
