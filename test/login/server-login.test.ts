/*
 * Server connections that fail or cannot be kept: which events count as failed logins, servers that cannot fork, reset
 * and check queries that fail, and servers that end the session.
 */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { type Bouncer, eventually, it, PgCluster } from '../harness';
import { ask, backendOf, errorIn, login, rowsBecome, start, withPooler } from '../harness/answers';
import { after, before, describe } from '../harness/limits';
import {
  cstring,
  errorFields,
  int32,
  letters,
  type Message,
  message,
  type RawClient,
  SSL_REQUEST,
} from '../harness/raw-client';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

/** Runs `body` with a server that handles each connection with `serve`. */
async function withServer(
  serve: (socket: Socket) => void,
  body: (server: { port: number; connections: number }) => Promise<void>,
): Promise<void> {
  const sockets = new Set<Socket>();
  const state = { port: 0, connections: 0 };
  const server: Server = createServer((socket) => {
    state.connections++;
    sockets.add(socket);
    socket.on('error', () => {});
    serve(socket);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  state.port = (server.address() as { port: number }).port;
  try {
    await body(state);
  } finally {
    for (const socket of sockets) socket.destroy();
    server.close();
  }
}

/** Forwards all bytes to PostgreSQL. */
function passOn(socket: Socket): void {
  const server = connect(pg.port, '127.0.0.1');
  server.on('error', () => {});
  socket.on('close', () => server.destroy());
  socket.pipe(server).pipe(socket);
}

/**
 * A pooler with two clients whose server works once and then handles connections with `serve`.
 * @param body gets a function that sends queries of both clients: the second client's error has the cause of the first
 */
async function withBrokenServer(
  serve: (socket: Socket) => void,
  settings: Record<string, string>,
  body: (pooler: Bouncer, cached: () => Promise<string>) => Promise<void>,
): Promise<void> {
  let works = true;
  const serveOnce = (socket: Socket) => {
    if (works) passOn(socket);
    else serve(socket);
    works = false;
  };
  await withServer(serveOnce, async ({ port }) => {
    const databases = { app: `host=127.0.0.1 port=${port} dbname=postgres` };
    const common = { pool_mode: 'transaction', server_login_retry: 600 };
    await withPooler({ databases, settings: { ...common, ...settings } }, async (pooler) => {
      const clients = [await login(pooler, { database: 'app' }), await login(pooler, { database: 'app' })] as const;
      await pooler.admin('RECONNECT');
      await rowsBecome(pooler, 'SERVERS', { database: 'app' }, 0);
      await body(pooler, async () => {
        const from = pooler.log.text.length;
        await start(clients[0], 'SELECT 1');
        await pooler.logWait(/S-[^\n]* closing because/, from);
        const error = errorIn(await clients[1].query('SELECT 1'))?.M ?? '';
        // a long reason may leave no room for the name of the setting
        return /cached error: (.*) \(serve/.exec(error)?.[1] ?? error;
      });
    });
  });
}

/** A client whose login waits for a server. */
async function waiting(pooler: Bouncer): Promise<RawClient> {
  const client = await pooler.raw();
  await client.startup({ user: 'postgres', database: 'app' });
  return client;
}

describe('a server connection that is logging in', () => {
  /** The first login to the server hangs, later logins work; after a failure there is no retry for ten minutes. */
  async function withSlowLogin(
    body: (pooler: Bouncer, line: (extra: string) => Record<string, string>) => Promise<void>,
  ): Promise<void> {
    let first = true;
    const serve = (socket: Socket) => {
      if (!first) passOn(socket);
      first = false;
    };
    await withServer(serve, async ({ port }) => {
      const line = (extra: string) => ({ app: `host=127.0.0.1 port=${port} dbname=postgres ${extra}` });
      const settings = { pool_mode: 'transaction', server_login_retry: 600 };
      await withPooler({ databases: line(''), settings }, (pooler) => body(pooler, line));
    });
  }

  /** Checks that the waiting client is served after the commands. */
  function itIsNoFailure(what: string, commands: (pooler: Bouncer) => Promise<void>): void {
    it(`${what} closes a server that logs in without counting a failed login, and waiting clients are served at once`, async () => {
      await withSlowLogin(async (pooler) => {
        const client = await waiting(pooler);
        await pooler.logWait(/new connection to server/);
        await commands(pooler);
        assert.equal(letters(await client.until('Z')).at(-1), 'Z');
        assert.equal(await ask(client, 'SELECT 1'), '1');
        assert.equal(pooler.log.count(/server login has been failing/), 0);
      });
    });
  }

  itIsNoFailure('PAUSE and RESUME', async (pooler) => {
    await pooler.admin('PAUSE');
    await pooler.logWait(/S-[^\n]* closing because: pause mode/);
    await pooler.admin('RESUME');
  });

  itIsNoFailure('PAUSE and RESUME of its database', async (pooler) => {
    await pooler.admin('PAUSE app');
    await pooler.logWait(/S-[^\n]* closing because: pause mode/);
    await pooler.admin('RESUME app');
  });

  itIsNoFailure('RECONNECT', async (pooler) => {
    await pooler.admin('RECONNECT');
    await pooler.logWait(/S-[^\n]* closing because: connect string changed/);
  });

  it('RELOAD closes a server that logs in without counting a failed login, and waiting clients are served at once', async () => {
    await withSlowLogin(async (pooler, line) => {
      const client = await waiting(pooler);
      await pooler.logWait(/new connection to server/);
      pooler.rewrite({ databases: line("connect_query='SELECT 1'") });
      await pooler.admin('RELOAD');
      await pooler.logWait(/S-[^\n]* closing because: connect string changed/);
      assert.equal(letters(await client.until('Z')).at(-1), 'Z');
    });
  });

  it('clients that connect during PAUSE get no error about a server login that PAUSE has closed', async () => {
    await withSlowLogin(async (pooler) => {
      await waiting(pooler);
      await pooler.logWait(/new connection to server/);
      await pooler.admin('PAUSE');
      const late = await waiting(pooler);
      await rowsBecome(pooler, 'POOLS', { database: 'app', cl_waiting: 2 }, 1);
      await pooler.admin('RESUME');
      assert.equal(letters(await late.until('Z')).at(-1), 'Z');
    });
  });

  it('KILL closes a server that logs in without counting a failed login, and the next client is served at once', async () => {
    await withSlowLogin(async (pooler) => {
      const client = await waiting(pooler);
      await pooler.logWait(/new connection to server/);
      await pooler.admin('KILL app');
      assert.equal(errorIn(await client.until('E'))?.S, 'FATAL');
      await pooler.admin('RESUME app');
      assert.equal(await ask(await login(pooler, { database: 'app' }), 'SELECT 1'), '1');
    });
  });

  it('SUSPEND closes a server that logs in without counting a failed login, and the next client is served at once', async () => {
    let first = true;
    const serve = (socket: Socket) => {
      if (!first) passOn(socket);
      first = false;
    };
    await withServer(serve, async ({ port }) => {
      const databases = { app: `host=127.0.0.1 port=${port} dbname=postgres user=postgres min_pool_size=1` };
      await withPooler({ databases, settings: { server_login_retry: 600 } }, async (pooler) => {
        await pooler.logWait(/new connection to server/);
        const console = await pooler.console();
        await console.query('SUSPEND');
        await pooler.logWait(/S-[^\n]* closing because: close unsafe file descriptors on suspend/);
        await console.query('RESUME');
        assert.equal(await ask(await login(pooler, { database: 'app' }), 'SELECT 1'), '1');
        await console.end();
      });
    });
  });

  it('the packets of a login to a server may arrive one byte at a time', async () => {
    const slowly = (socket: Socket) => {
      const server = connect(pg.port, '127.0.0.1');
      server.on('error', () => {});
      socket.on('close', () => server.destroy());
      socket.pipe(server);
      socket.setNoDelay(true);
      server.on('data', async (bytes) => {
        server.pause();
        for (const byte of bytes) {
          socket.write(Buffer.of(byte));
          await new Promise(setImmediate);
        }
        server.resume();
      });
    };
    await withServer(slowly, async ({ port }) => {
      const databases = { app: `host=127.0.0.1 port=${port} dbname=postgres user=by_scram password=right` };
      await pg.createUser('by_scram', 'right', 'scram');
      await withPooler({ databases }, async (pooler) => {
        assert.equal(await ask(await login(pooler, { database: 'app' }), 'SELECT current_user'), 'by_scram');
      });
    });
  });

  it('a server connection that breaks during the login counts as a failed login', async () => {
    await withBrokenServer(
      (socket) => socket.once('data', () => socket.destroy()),
      {},
      async (pooler, cached) => {
        assert.equal(await cached(), 'server conn crashed?');
        assert.equal(pooler.log.count(/closing because: server conn crashed/), 1);
      },
    );
  });
});

describe('a server that cannot start a process for a connection', () => {
  const text = 'could not fork new process for connection: Resource temporarily unavailable';
  const serve = (socket: Socket) => socket.end(Buffer.from(`E${text}\n\0`));

  for (const sslmode of ['disable', 'prefer']) {
    it(`the error of a server that cannot fork is logged and sent to clients (server_tls_sslmode = ${sslmode})`, async () => {
      await withBrokenServer(serve, { server_tls_sslmode: sslmode }, async (pooler, cached) => {
        assert.equal(await cached(), text);
        await pooler.logWait(new RegExp(`WARNING server login failed: ${text}\n`));
        await pooler.logWait(new RegExp(`S-[^\n]* closing because: ${text} \\(age`));
      });
    });
  }

  it('the error of a server that cannot fork is logged but not sent to clients if TLS is required', async () => {
    await withServer(serve, async ({ port }) => {
      const settings = { server_tls_sslmode: 'require' };
      await withPooler({ databases: { app: `host=127.0.0.1 port=${port}` }, settings }, async (pooler) => {
        await waiting(pooler);
        await pooler.logWait(new RegExp(`WARNING server login failed: ${text}\n`));
        await pooler.logWait(/S-[^\n]* closing because: bad sslreq answer/);
      });
    });
  });

  it('the error of a server cannot add lines to the log', async () => {
    const lying = (socket: Socket) => socket.end(Buffer.from('Elie\n2026-01-01 LOG all is well\0'));
    await withServer(lying, async ({ port }) => {
      await withPooler({ databases: { app: `host=127.0.0.1 port=${port}` } }, async (pooler) => {
        await waiting(pooler);
        await pooler.logWait(/WARNING server login failed: lie 2026-01-01 LOG all is well\n/);
      });
    });
  });
});

describe('a query of the pooler between two clients', () => {
  /** One client after another on a pool of one. @returns whether both had the same server */
  async function sameServer(pooler: Bouncer): Promise<boolean> {
    const first = await login(pooler);
    const pid = await backendOf(first);
    await first.end();
    const second = await login(pooler);
    const same = (await backendOf(second)) === pid;
    await second.end();
    return same;
  }

  const session = { pool_mode: 'session', default_pool_size: 1 };
  const cases: [string, Record<string, string | number>, RegExp, RegExp][] = [
    [
      'server_reset_query that fails',
      { ...session, server_reset_query: 'SELECT nonsense' },
      /WARNING S-[^\n]* server_reset_query failed: ERROR: column "nonsense" does not exist/,
      /S-[^\n]* closing because: reset query failed/,
    ],
    [
      'server_reset_query that fails half way',
      { ...session, server_reset_query: 'RESET ALL; SELECT nonsense' },
      /WARNING S-[^\n]* server_reset_query failed: ERROR: column "nonsense" does not exist/,
      /S-[^\n]* closing because: reset query failed/,
    ],
    [
      'server_reset_query that begins a transaction',
      { ...session, server_reset_query: 'BEGIN' },
      /closing because/,
      /S-[^\n]* closing because: reset query left a transaction open/,
    ],
    [
      'server_check_query that fails',
      { pool_mode: 'transaction', default_pool_size: 1, server_check_query: 'SELECT nonsense', server_check_delay: 0 },
      /WARNING S-[^\n]* server_check_query failed: ERROR: column "nonsense" does not exist/,
      /S-[^\n]* closing because: test query failed/,
    ],
  ];
  for (const [what, settings, why, closed] of cases) {
    it(`${what} closes the server and logs why, and no client gets the server`, async () => {
      await withPooler({ cluster: pg, settings }, async (pooler) => {
        assert.equal(await sameServer(pooler), false);
        await pooler.logWait(closed);
        await pooler.logWait(why);
      });
    });
  }

  it('a reset or check query that succeeds keeps the server', async () => {
    const settings = { ...session, server_reset_query: 'DISCARD ALL' };
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      assert.equal(await sameServer(pooler), true);
    });
  });

  it('a waiting client gets another server after a failed reset or check query', async () => {
    const settings = { ...session, server_reset_query: 'SELECT nonsense' };
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      const first = await login(pooler);
      await ask(first, 'SELECT 1');
      const second = await login(pooler);
      await start(second, 'SELECT 2');
      await rowsBecome(pooler, 'POOLS', { database: 'postgres', cl_waiting: 1 }, 1);
      await first.end();
      assert.equal(letters(await second.until('Z')), 'TDCZ');
    });
  });
});

describe('a server that ends the session with FATAL', () => {
  const fatal = message(
    'E',
    cstring('SFATAL'),
    cstring('VFATAL'),
    cstring('C57P01'),
    cstring('Mshutdown'),
    cstring(''),
  );
  const warning = message('N', cstring('SWARNING'), cstring('VWARNING'), cstring('Mbeware'), cstring(''));
  const welcome = Buffer.concat([message('R', int32(0)), message('Z', Buffer.from('I'))]);

  /** Accepts every login, answers every query with `answer`, and never closes a connection. */
  const serve = (answer: Buffer) => (socket: Socket) => {
    let startup = true;
    socket.on('data', (bytes) => {
      if (startup && bytes.readInt32BE(4) === SSL_REQUEST) {
        socket.write('N');
      } else {
        socket.write(startup ? welcome : answer);
        startup = false;
      }
    });
  };

  for (const mode of ['session', 'transaction']) {
    it(`a FATAL error of the server reaches its client together with the end of the connection: ${mode} pooling`, async () => {
      await withServer(serve(Buffer.concat([warning, fatal])), async ({ port }) => {
        const databases = { app: `host=127.0.0.1 port=${port}` };
        await withPooler({ databases, settings: { pool_mode: mode } }, async (pooler) => {
          const client = await login(pooler, { database: 'app' });
          await start(client, 'SELECT 1');
          const answer = await client.until('');
          assert.equal(letters(answer), 'NEE');
          assert.equal(errorFields(answer[1] as Message).M, 'shutdown');
          assert.deepEqual(
            [errorIn(answer.slice(2))?.C, errorIn(answer.slice(2))?.M],
            ['08P01', 'server conn crashed?'],
          );
          await rowsBecome(pooler, 'SERVERS', { database: 'app' }, 0);
        });
      });
    });
  }

  it('an idle server that sends FATAL is closed before another client can get it', async () => {
    let idle: Socket | null = null;
    const onWelcome = (socket: Socket) => {
      idle = socket;
      serve(Buffer.concat([message('C', cstring('SELECT 1')), message('Z', Buffer.from('I'))]))(socket);
    };
    await withServer(onWelcome, async ({ port }) => {
      const databases = { app: `host=127.0.0.1 port=${port}` };
      await withPooler({ databases, settings: { pool_mode: 'transaction' } }, async (pooler) => {
        const client = await login(pooler, { database: 'app' });
        await start(client, 'SELECT 1');
        await client.until('Z');
        idle?.write(fatal);
        await eventually('the server to be closed', async () => (await pooler.admin('SHOW SERVERS')).length === 0);
        await start(client, 'SELECT 1');
        assert.equal(letters(await client.until('Z')), 'CZ');
      });
    });
  });
});

it('parameters of a server count towards their limit even if they have neither name nor value', async () => {
  const empty = message('S', cstring(''), cstring(''));
  const serve = (socket: Socket) => {
    socket.once('data', () => socket.write(Buffer.concat([message('R', int32(0)), ...Array(40_000).fill(empty)])));
  };
  await withServer(serve, async ({ port }) => {
    const settings = { server_tls_sslmode: 'disable' };
    await withPooler({ databases: { own: `host=127.0.0.1 port=${port}` }, settings }, async (pooler) => {
      const client = await pooler.raw();
      await client.startup({ user: 'postgres', database: 'own' });
      await pooler.logWait(/closing because: too many parameters from server/);
      await client.destroy();
    });
  });
});
