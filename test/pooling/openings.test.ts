/*
 * How a pool opens and replaces its servers: server_login_concurrency, server_lifetime_jitter, and min_pool_size at the
 * end of a server's lifetime.
 */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, createServer, type Server, type Socket } from 'node:net';
import { freePort } from '../../tools/postgres';
import { type Bouncer, eventually, it, PgCluster } from '../harness';
import { ask, login, rowsBecome, show, thrownOut, withPooler } from '../harness/answers';
import { oneRow, WELCOME } from '../harness/hostile/fake-server';
import { after, before } from '../harness/limits';
import { cancelRequest, message, type RawClient } from '../harness/raw-client';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

/** A server whose logins take a while, and whose answers wait for `release`. */
class SlowServer {
  private readonly sockets = new Set<Socket>();
  private readonly queries: Socket[] = [];
  private logins: Socket[] = [];
  private together = 1;
  private all = 1;
  private held = true;
  /** connections that are logging in: now, and at most so far */
  loggingIn = 0;
  mostLoggingIn = 0;
  loggedIn = 0;
  attempts = 0;
  refuse = false;

  private constructor(
    private readonly server: Server,
    private readonly loginMs: number,
  ) {
    server.on('connection', (socket) => this.visit(socket));
  }

  static async start(loginMs: number, host = '127.0.0.1', port = 0): Promise<SlowServer> {
    const server = createServer();
    // once it is closed, no other process takes the port
    server.listen(port === 0 ? await freePort() : port, host);
    await once(server, 'listening');
    return new SlowServer(server, loginMs);
  }

  get port(): number {
    return (this.server.address() as AddressInfo).port;
  }

  private visit(socket: Socket): void {
    this.sockets.add(socket);
    socket.on('error', () => {});
    socket.once('close', () => this.sockets.delete(socket));
    socket.once('data', () => {
      this.attempts++;
      this.loggingIn++;
      this.mostLoggingIn = Math.max(this.mostLoggingIn, this.loggingIn);
      this.logins.push(socket);
      if (this.logins.length < this.together && this.loggedIn + this.logins.length < this.all) return;
      const ready = this.logins;
      this.logins = [];
      setTimeout(() => {
        for (const each of ready) this.answerLogin(each);
      }, this.loginMs);
    });
  }

  private answerLogin(socket: Socket): void {
    this.loggingIn--;
    if (this.refuse) {
      socket.end(message('E', Buffer.from('SFATAL\0C53300\0Msorry, too many clients already\0\0')));
      return;
    }
    this.loggedIn++;
    socket.write(WELCOME);
    socket.on('data', () => {
      if (this.held) this.queries.push(socket);
      else socket.write(oneRow('answer'));
    });
  }

  /** Answers no login before `count` are in progress, or no more are missing until `all` have logged in. */
  gather(count: number, all: number): void {
    this.together = count;
    this.all = all;
  }

  hold(): void {
    this.held = true;
  }

  /** Answers all queries. */
  release(): void {
    this.held = false;
    for (const socket of this.queries.splice(0)) socket.write(oneRow('answer'));
  }

  /** Refuses new connections. */
  close(): void {
    this.server.close();
  }

  async stop(): Promise<void> {
    for (const socket of this.sockets) socket.destroy();
    if (!this.server.listening) return;
    this.server.close();
    await once(this.server, 'close');
  }
}

const TX = { pool_mode: 'transaction', server_reset_query: '', server_tls_sslmode: 'disable', max_client_conn: 300 };

async function withSlowServer(
  loginMs: number,
  settings: Record<string, string | number>,
  more: string,
  body: (pooler: Bouncer, server: SlowServer) => Promise<void>,
): Promise<void> {
  const server = await SlowServer.start(loginMs);
  try {
    const databases = { slow: `host=127.0.0.1 port=${server.port} dbname=slow max_protocol_version=3.0 ${more}` };
    await withPooler({ databases, settings: { ...TX, ...settings } }, (pooler) => body(pooler, server));
  } finally {
    await server.stop();
  }
}

/** That many clients with one query each. */
async function crowd(pooler: Bouncer, count: number): Promise<RawClient[]> {
  const clients = await Promise.all(Array.from({ length: count }, () => login(pooler, { database: 'slow' })));
  await Promise.all(clients.map((client) => client.sendMessage('Q', Buffer.from('SELECT\0'))));
  return clients;
}

async function served(clients: RawClient[]): Promise<void> {
  for (const client of clients) {
    assert.equal((await client.until('Z')).at(-1)?.type, 'Z');
    await client.end();
  }
}

for (const [limit, settings, more] of [
  [4, {}, ''],
  [16, { server_login_concurrency: 16 }, ''],
  [7, { server_login_concurrency: 16 }, 'server_login_concurrency=7'],
  [1, { server_login_concurrency: 1 }, ''],
] as const) {
  it(`a pool opens ${limit} connections at a time: ${JSON.stringify(settings)} ${more}`, async () => {
    await withSlowServer(20, { default_pool_size: 40, ...settings }, more, async (pooler, server) => {
      server.release();
      await served(await crowd(pooler, 1));
      server.hold();
      server.gather(limit, 40);
      const clients = await crowd(pooler, 40);
      await eventually('the pool to be full', async () => server.loggedIn === 40);
      assert.equal(server.mostLoggingIn, limit);
      server.release();
      await served(clients);
      assert.equal(server.loggedIn, 40);
    });
  });
}

it('a pool opens no more connections than clients wait for', async () => {
  await withSlowServer(50, { default_pool_size: 40, server_login_concurrency: 40 }, '', async (pooler, server) => {
    const clients = await crowd(pooler, 6);
    await eventually('servers for all', async () => server.loggedIn >= 6);
    server.release();
    await served(clients);
    assert.equal(server.loggedIn, 6);
  });
});

it('after a refused login a pool opens one connection at a time', async () => {
  const settings = { default_pool_size: 40, server_login_concurrency: 10, server_login_retry: 1 };
  await withSlowServer(20, settings, '', async (pooler, server) => {
    server.release();
    await served(await crowd(pooler, 1));
    server.hold();
    server.refuse = true;
    const clients = await crowd(pooler, 20);
    await pooler.logWait(/closing because: sorry, too many clients already/);
    // the server does not know yet of some that the pooler has begun
    await rowsBecome(pooler, 'POOLS', { database: 'slow', sv_login: 0 }, 1);
    const attempts = server.attempts;
    server.mostLoggingIn = 0;
    await eventually('three more attempts', async () => server.attempts >= attempts + 3);
    assert.equal(server.mostLoggingIn, 1);
    for (const client of clients) await client.destroy();
  });
});

it('a host that goes down costs one failure, however many connections were being opened', async () => {
  await withSlowServer(20, {}, '', async (_, server) => {
    const second = await SlowServer.start(20, '127.0.0.2', server.port);
    const databases = {
      slow: `host=127.0.0.1,127.0.0.2 port=${server.port} dbname=slow load_balance_hosts=disable max_protocol_version=3.0`,
    };
    const settings = { ...TX, default_pool_size: 20, server_login_concurrency: 10, server_login_retry: 60 };
    try {
      await withPooler({ databases, settings }, async (pooler) => {
        server.release();
        await served(await crowd(pooler, 1));
        await server.stop();
        const clients = await crowd(pooler, 20);
        await eventually('the pool to be full', async () => second.loggedIn === 20);
        second.release();
        await served(clients);
        assert.equal(pooler.log.count(/server login has been failing/), 0);
      });
    } finally {
      await second.stop();
    }
  });
});

it('replication clients get one connection each while other clients wait', async () => {
  const settings = { ...TX, default_pool_size: 20, server_login_concurrency: 10 };
  await withPooler({ cluster: pg, settings }, async (pooler) => {
    const one = await login(pooler);
    await ask(one, 'SELECT 1');
    const all = await Promise.all(
      Array.from({ length: 10 }, async (_, i) => {
        const client = await pooler.raw();
        await client.login(i % 2 === 0 ? { params: { replication: 'database' } } : {});
        return client;
      }),
    );
    await Promise.all(
      all.map(async (client, i) => {
        const answer = await client.query(i % 2 === 0 ? 'IDENTIFY_SYSTEM' : 'SELECT pg_sleep(0.1)');
        assert.equal(answer.at(-1)?.type, 'Z');
      }),
    );
    assert.equal((await show(pooler, 'SERVERS', { replication: 'logical' })).length, 5);
    for (const client of all) await client.end();
  });
});

it('min_pool_size servers are opened together, and never become fewer at the end of their lifetime', async () => {
  const settings = { ...TX, default_pool_size: 10, min_pool_size: 5, server_lifetime: 2, server_login_concurrency: 5 };
  await withPooler({ cluster: pg, settings }, async (pooler) => {
    const client = await login(pooler);
    await ask(client, 'SELECT 1');
    await rowsBecome(pooler, 'SERVERS', { database: 'postgres', state: 'idle' }, 5);
    let fewest = 5;
    await eventually('three replacements', async () => {
      const [pool] = await show(pooler, 'POOLS', { database: 'postgres' });
      const count = ['sv_active', 'sv_idle', 'sv_used', 'sv_tested'].reduce((sum, key) => sum + Number(pool?.[key]), 0);
      fewest = Math.min(fewest, count);
      return pooler.log.count(/server lifetime over/) >= 3;
    });
    assert.equal(fewest, 5);
    await client.end();
  });
});

it('server_lifetime_jitter ends the servers of many pools at different times', async () => {
  const names = Array.from({ length: 20 }, (_, i) => `db${i}`);
  const databases = Object.fromEntries(names.map((name) => [name, pg.connstr()]));
  const settings = { ...TX, server_lifetime: 4, server_lifetime_jitter: 75 };
  await withPooler({ databases, settings }, async (pooler) => {
    await Promise.all(names.map((name) => pooler.sql('SELECT 1', { database: name })));
    await eventually('all servers to end', async () => pooler.log.count(/server lifetime over/) === 20);
    const ages = [...pooler.log.text.matchAll(/server lifetime over \(age=(\d)s\)/g)].map(([, age]) => Number(age));
    // a server lives between 1 and 4 seconds
    for (const age of [1, 2, 3]) assert.ok(ages.includes(age), `ages ${ages}`);
    assert.ok(Math.max(...ages) <= 4 && Math.min(...ages) >= 1, `ages ${ages}`);
  });
});

it('a connect that fails at once does not stop the pooler, even if server_login_retry is 0', async () => {
  // without a folder for Unix sockets there is nothing to connect to
  const databases = { app: pg.connstr(), none: 'port=1 user=postgres', least: 'port=1 user=postgres min_pool_size=2' };
  const settings = { ...TX, unix_socket_dir: '', server_login_retry: 0, log_repeat_limit: 1 };
  await withPooler({ databases, settings }, async (pooler) => {
    const waiting = await pooler.raw();
    await waiting.startup({ user: 'postgres', database: 'none' });
    await pooler.logWait(/unix socket dir not configured: none/);
    const other = await login(pooler, { database: 'app' });
    assert.equal(await ask(other, 'SELECT 1'), '1');
    await other.end();
    await waiting.destroy();
  });
});

it('a list of hosts that all refuse is a failed login, even if server_login_retry is 0', async () => {
  const down = await SlowServer.start(0);
  const hosts = `host=127.0.0.1,127.0.0.2 port=${down.port} load_balance_hosts=disable max_protocol_version=3.0`;
  const settings = { ...TX, server_login_retry: 0 };
  await withPooler({ databases: { app: hosts }, settings }, async (pooler) => {
    down.release();
    const [first, second] = [await login(pooler, { database: 'app' }), await login(pooler, { database: 'app' })];
    assert.equal(await ask(first, 'SELECT'), 'answer');
    await down.stop();
    await first.sendMessage('Q', Buffer.from('SELECT\0'));
    await pooler.logWait(/closing because: connect failed.*closing because: connect failed/s);
    await second.sendMessage('Q', Buffer.from('SELECT\0'));
    assert.match(await thrownOut(second), /server login has been failing, cached error: connect failed/);
    await first.destroy();
  });
});

it('waiting clients get servers while a cancel request waits for a connection that cannot be opened', async () => {
  const settings = {
    default_pool_size: 1,
    server_check_delay: 0,
    server_check_query: 'SELECT 1',
    cancel_wait_timeout: 6,
  };
  await withSlowServer(0, settings, '', async (pooler, server) => {
    const [first, second] = await crowd(pooler, 2);
    assert.ok(first !== undefined && second !== undefined);
    await rowsBecome(pooler, 'CLIENTS', { state: 'waiting' }, 1);
    server.close();
    const canceling = cancelRequest({ port: pooler.port }, first.backendPid, first.backendKey);
    await pooler.logWait(/closing because: connect failed/);
    server.release();
    for (const client of [first, second]) assert.equal((await client.until('Z')).at(-1)?.type, 'Z');
    assert.equal(pooler.log.count(/cancel_wait_timeout/), 0, 'the second client has waited for the request');
    for (const client of [first, second]) await client.end();
    await canceling;
  });
});
