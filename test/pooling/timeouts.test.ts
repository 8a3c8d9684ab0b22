/*
 * Everything that only time brings about: each timeout strikes when it should, says so in the original's words, and
 * leaves alone what it does not concern. Times are as short as the pooler's three rounds a second allow.
 */

import assert from 'node:assert/strict';
import { connect, createServer, type Server, type Socket } from 'node:net';
import {
  ask,
  backendOf,
  errorIn,
  login,
  noticesIn,
  refusal,
  rowsBecome,
  show,
  start,
  thrownOut,
  valueIn,
  withPooler,
} from '../harness/answers';
import type { BouncerOptions } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { eventually, it, withTimeout } from '../harness/machine';
import {
  cancelRequest,
  cstring,
  errorFields,
  int16,
  int32,
  letters,
  type Message,
  message,
} from '../harness/raw-client';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
  await pg.createUser('ann', '', 'none');
});
after(() => pg.stop());

const TX = { pool_mode: 'transaction' };
const ANN = { ann: '' };

/** Before any default would strike, so that a setting that is not heeded shows. */
const SOON_MS = 4500;

const pause = (ms: number) => new Promise((wake) => setTimeout(wake, ms));

/** Stands between pooler and PostgreSQL, so that the way there can be cut. */
class Gate {
  private readonly sockets = new Set<Socket>();
  /** connections that came so far */
  count = 0;

  private constructor(
    private readonly server: Server,
    readonly port: number,
  ) {}

  /** @param onward port to pass everything to; null swallows what comes and never answers */
  static open(onward: number | null): Promise<Gate> {
    return new Promise((settle) => {
      const server = createServer((socket) => {
        gate.count++;
        gate.keep(socket);
        if (onward === null) return;
        const there = gate.keep(connect(onward, '127.0.0.1'));
        socket.pipe(there).pipe(socket);
        socket.on('close', () => there.destroy());
        there.on('close', () => socket.destroy());
      });
      let gate: Gate;
      server.listen(0, '127.0.0.1', () => {
        gate = new Gate(server, (server.address() as { port: number }).port);
        settle(gate);
      });
    });
  }

  /** New connections are refused from now on. */
  refuse(): void {
    this.server.close();
  }

  accept(): Promise<void> {
    return new Promise((settle) => this.server.listen(this.port, '127.0.0.1', settle));
  }

  cut(): void {
    for (const socket of this.sockets) socket.destroy();
  }

  close(): void {
    this.server.close();
    this.cut();
  }

  private keep(socket: Socket): Socket {
    this.sockets.add(socket);
    socket.on('error', () => {});
    socket.on('close', () => this.sockets.delete(socket));
    return socket;
  }
}

async function withGate(onward: number | null, body: (gate: Gate) => Promise<void>): Promise<void> {
  const gate = await Gate.open(onward);
  await body(gate).finally(() => gate.close());
}

describe('server_lifetime', () => {
  it('replaces servers that are older, of the database before the general one', async () => {
    const databases = { postgres: pg.connstr(), short: pg.connstr('postgres', 'server_lifetime=1') };
    await withPooler({ databases, settings: TX }, async (pooler) => {
      const client = await login(pooler, { database: 'short' });
      const other = await login(pooler);
      const [first, kept] = [await backendOf(client), await backendOf(other)];
      await pooler.logWait(/S-\w+: short[^\n]* closing because: server lifetime over \(age=1s\)/);
      assert.notEqual(await backendOf(client), first);
      assert.equal(await backendOf(other), kept);
      await pooler.admin('SET server_lifetime = 1');
      await pooler.logWait(/S-\w+: postgres[^\n]* closing because: server lifetime over/);
      assert.notEqual(await backendOf(other), kept);
    });
  });

  it('of 0 uses each server once, and lets a transaction end', async () => {
    await withPooler({ cluster: pg, settings: { ...TX, server_lifetime: 0 } }, async (pooler) => {
      const client = await login(pooler);
      await ask(client, 'BEGIN');
      const first = await backendOf(client);
      await pause(500);
      assert.equal(await backendOf(client), first);
      await ask(client, 'COMMIT');
      assert.notEqual(await backendOf(client), first);
    });
  });
});

describe('server_idle_timeout', () => {
  it('closes unused servers down to min_pool_size', async () => {
    const databases = { postgres: pg.connstr(), min: pg.connstr('postgres', 'min_pool_size=1') };
    await withPooler({ databases, settings: { ...TX, server_idle_timeout: 0.7 } }, async (pooler) => {
      for (const [database, left] of [
        ['postgres', 0],
        ['min', 1],
      ] as const) {
        const clients = [await login(pooler, { database }), await login(pooler, { database })];
        for (const client of clients) await ask(client, 'BEGIN');
        for (const client of clients) await ask(client, 'COMMIT');
        const from = pooler.log.mark();
        await pooler.logWait(/S-[^\n]* closing because: server idle timeout/, from);
        await rowsBecome(pooler, 'SERVERS', { database }, left);
        if (left > 0) await pause(1200);
        assert.equal((await show(pooler, 'SERVERS', { database })).length, left);
      }
    });
  });
});

describe('query_timeout', () => {
  it('ends a query that runs longer, of the user before the general one', async () => {
    const options: BouncerOptions = { cluster: pg, users: { ann: 'query_timeout=1' }, userlist: ANN, settings: TX };
    await withPooler(options, async (pooler) => {
      const ann = await login(pooler, { user: 'ann' });
      const other = await login(pooler);
      await start(other, 'SELECT pg_sleep(1.8)');
      assert.equal(errorIn(await ann.query('SELECT pg_sleep(9)'))?.M, 'query timeout');
      assert.equal(valueIn(await other.until('Z')), '');
      await pooler.logWait(/S-[^\n]* closing because: query timeout/);
      await pooler.admin("SET query_timeout = '0.4'");
      assert.equal(errorIn(await other.query('SELECT pg_sleep(9)'))?.M, 'query timeout');
    });
  });

  it('counts waiting, but not idling in a transaction', async () => {
    const settings = { ...TX, query_timeout: 0.7, default_pool_size: 1 };
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      const holder = await login(pooler);
      const late = await login(pooler);
      await ask(holder, 'BEGIN');
      assert.equal(errorIn(await late.query('SELECT 1'))?.M, 'query_timeout');
      assert.equal(await ask(holder, 'SELECT 2'), '2');
    });
  });
});

describe('query_wait_timeout', () => {
  const cases: [string, string, string, string, boolean][] = [
    ['in general', '0.4', '', '', true],
    ['of the database', '60', 'query_wait_timeout=1', '', true],
    ['of the user, before the database', '60', 'query_wait_timeout=60', 'query_wait_timeout=1', true],
    ['of the user, 0 = never', '0.4', 'query_wait_timeout=1', 'query_wait_timeout=0', false],
    ['of the database, 0 = never', '0.4', 'query_wait_timeout=0', '', false],
  ];
  for (const [what, general, database, user, strikes] of cases) {
    it(what, async () => {
      const options: BouncerOptions = {
        databases: { postgres: pg.connstr('postgres', database) },
        users: { ann: user },
        settings: { ...TX, default_pool_size: 1, query_wait_timeout: general },
        userlist: ANN,
      };
      await withPooler(options, async (pooler) => {
        const holder = await login(pooler, { user: 'ann' });
        await ask(holder, 'BEGIN');
        const late = await login(pooler, { user: 'ann' });
        await start(late, 'SELECT 3');
        if (strikes) {
          assert.equal(await thrownOut(late), 'query_wait_timeout');
          await pooler.logWait(/C-[^\n]* closing because: query_wait_timeout/);
          return;
        }
        await pause(1700);
        await ask(holder, 'COMMIT');
        assert.equal(valueIn(await late.until('Z')), '3');
      });
    });
  }
});

it('query_wait_notify tells a waiting client so, once', async () => {
  const settings = { ...TX, default_pool_size: 1, query_wait_notify: 1 };
  await withPooler({ cluster: pg, settings }, async (pooler) => {
    const holder = await login(pooler);
    await ask(holder, 'BEGIN');
    const late = await login(pooler);
    await start(late, 'SELECT 4');
    const notice = await late.until('N', SOON_MS);
    assert.deepEqual(noticesIn(notice), ['No server connection available in postgres backend, client being queued']);
    await pause(700);
    await ask(holder, 'COMMIT');
    const answer = await late.until('Z');
    assert.deepEqual(noticesIn(answer), []);
    assert.equal(valueIn(answer), '4');

    await pooler.admin('SET query_wait_notify = 0');
    await ask(holder, 'BEGIN');
    await start(late, 'SELECT 5');
    await pause(2500);
    await ask(holder, 'COMMIT');
    assert.deepEqual(noticesIn(await late.until('Z')), []);
  });
});

describe('client_idle_timeout', () => {
  it('throws out idle clients, of the user before the general one; not those in a transaction', async () => {
    const users = { ann: 'client_idle_timeout=1' };
    await withPooler({ cluster: pg, users, userlist: ANN, settings: TX }, async (pooler) => {
      const ann = await login(pooler, { user: 'ann' });
      const busy = await login(pooler, { user: 'ann' });
      const other = await login(pooler);
      await ask(ann, 'SELECT 1');
      await ask(busy, 'BEGIN');
      assert.equal(await thrownOut(ann), 'client_idle_timeout');
      assert.equal(await ask(busy, 'SELECT 1'), '1');
      assert.equal(await ask(other, 'SELECT 1'), '1');
      await pooler.admin("SET client_idle_timeout = '0.4'");
      assert.equal(await thrownOut(other), 'client_idle_timeout');
      await pooler.logWait(/C-[^\n]* closing because: client_idle_timeout/);
    });
  });
});

describe('idle_transaction_timeout', () => {
  it('ends transactions that idle, of the user before the general one; not those that work', async () => {
    const users = { ann: 'idle_transaction_timeout=1' };
    await withPooler({ cluster: pg, users, userlist: ANN, settings: TX }, async (pooler) => {
      const ann = await login(pooler, { user: 'ann' });
      const busy = await login(pooler, { user: 'ann' });
      const other = await login(pooler);
      const clients = [ann, busy, other];
      for (const client of clients) await ask(client, 'BEGIN');
      await start(busy, 'SELECT pg_sleep(1.8)');
      assert.equal(await thrownOut(ann), 'idle transaction timeout');
      assert.equal(valueIn(await busy.until('Z')), '');
      assert.equal(await ask(other, 'SELECT 1'), '1');
      await pooler.admin("SET idle_transaction_timeout = '0.4'");
      assert.equal(await thrownOut(other), 'idle transaction timeout');
      await pooler.logWait(/S-[^\n]* closing because: idle transaction timeout/);
    });
  });
});

describe('idle_transaction_timeout, of a pipeline', () => {
  const execute = [
    message('P', cstring(''), cstring('SELECT 1'), int16(0)),
    message('B', cstring(''), cstring(''), int16(0), int16(0), int16(0)),
    message('E', cstring(''), int32(0)),
  ];
  const wrong = message('P', cstring(''), cstring('SELECT nonsense'), int16(0));
  const flush = message('H');
  const cases: [string, Buffer[], string][] = [
    ['that is answered and has no Sync', [...execute, flush], '12DCE'],
    ['that has neither Sync nor Flush', execute, '12DCE'],
    ['that failed and has no Sync', [wrong, flush], 'EE'],
  ];
  for (const [what, packets, answer] of cases) {
    it(`ends one ${what}`, async () => {
      const settings = { ...TX, idle_transaction_timeout: 0.6 };
      await withPooler({ cluster: pg, settings }, async (pooler) => {
        const client = await login(pooler);
        await client.send(...packets);
        const messages = await client.until('');
        assert.equal(letters(messages), answer);
        assert.equal(errorFields(messages.at(-1) as Message).M, 'idle transaction timeout');
      });
    });
  }

  it('does not end one that the server still works on', async () => {
    await withPooler({ cluster: pg, settings: { ...TX, idle_transaction_timeout: 0.6 } }, async (pooler) => {
      const client = await login(pooler);
      const [, bind, run] = execute as [Buffer, Buffer, Buffer];
      await client.send(message('P', cstring(''), cstring('SELECT pg_sleep(2)'), int16(0)), bind, run);
      assert.equal(letters(await client.until('C')), '12DC');
      await client.sendMessage('S');
      assert.equal(letters(await client.until('Z')), 'Z');
    });
  });
});

describe('transaction_timeout', () => {
  it('ends transactions that take longer, busy or not, of the user before the general one', async () => {
    const users = { ann: 'transaction_timeout=1' };
    await withPooler({ cluster: pg, users, userlist: ANN, settings: TX }, async (pooler) => {
      const idle = await login(pooler, { user: 'ann' });
      const busy = await login(pooler, { user: 'ann' });
      const other = await login(pooler);
      for (const client of [idle, busy, other]) await ask(client, 'BEGIN');
      await start(busy, 'SELECT pg_sleep(9)');
      assert.equal(await thrownOut(idle), 'transaction timeout');
      assert.equal(await thrownOut(busy), 'transaction timeout');
      assert.equal(await ask(other, 'SELECT 1'), '1');
      await pooler.admin("SET transaction_timeout = '0.4'");
      assert.equal(await thrownOut(other), 'transaction timeout');
      await pooler.logWait(/S-[^\n]* closing because: transaction timeout/);
    });
  });
});

describe('client_login_timeout', () => {
  it('throws out whoever does not log in, not who has', async () => {
    await withPooler(
      { cluster: pg, settings: { ...TX, client_login_timeout: 0.5, tcp_defer_accept: 0 } },
      async (pooler) => {
        const client = await login(pooler);
        assert.equal(await thrownOut(await pooler.raw()), 'client_login_timeout');
        assert.equal(await ask(client, 'SELECT 1'), '1');
      },
    );
  });

  it('also when the pooler waits for the server', async () => {
    await withGate(null, async (gate) => {
      const databases = { postgres: `host=127.0.0.1 port=${gate.port}` };
      await withPooler(
        { databases, settings: { ...TX, client_login_timeout: 0.5, tcp_defer_accept: 0 } },
        async (pooler) => {
          assert.equal(await refusal(pooler), 'client_login_timeout (server down)');
        },
      );
    });
  });

  it('of 0 waits for ever', async () => {
    await withPooler({ cluster: pg, settings: { ...TX, client_login_timeout: 0 } }, async (pooler) => {
      const client = await pooler.raw();
      await pause(1000);
      assert.equal((await client.login()).at(-1)?.type, 'Z');
    });
  });
});

describe('server_connect_timeout', () => {
  it('gives up a server that does not answer', async () => {
    await withGate(null, async (gate) => {
      const databases = { postgres: `host=127.0.0.1 port=${gate.port}` };
      const settings = { ...TX, server_connect_timeout: 0.4, server_login_retry: 0.1 };
      await withPooler({ databases, settings }, async (pooler) => {
        const client = await pooler.raw();
        await client.startup({ user: 'postgres', database: 'postgres' });
        await pooler.logWait(/S-[^\n]* closing because: connect timeout \(age=0s\)/, 0, SOON_MS);
        await eventually('the next try', () => gate.count >= 2);
      });
    });
  });
});

describe('server_login_retry', () => {
  it('is the pause between tries, and who waits is served when one succeeds', async () => {
    await withGate(pg.port, async (gate) => {
      const databases = { postgres: `host=127.0.0.1 port=${gate.port}` };
      await withPooler({ databases, settings: { ...TX, server_login_retry: 1.2 } }, async (pooler) => {
        const failed = /S-[^\n]* closing because: connect failed/;
        gate.refuse();
        const client = await pooler.raw();
        const answer = client.login();
        await pooler.logWait(failed);
        const [from, sinceMs] = [pooler.log.mark(), Date.now()];
        await pooler.logWait(failed, from, SOON_MS);
        const tookMs = Date.now() - sinceMs;
        assert.ok(tookMs >= 1100, `tried again after ${tookMs} ms`);
        await gate.accept();
        assert.equal((await answer).at(-1)?.type, 'Z');
        assert.equal(await ask(client, 'SELECT 6'), '6');
      });
    });
  });

  it('meanwhile clients that come with a query are refused at once', async () => {
    await withGate(pg.port, async (gate) => {
      const databases = { postgres: `host=127.0.0.1 port=${gate.port}` };
      await withPooler({ databases, settings: { ...TX, server_login_retry: 60 } }, async (pooler) => {
        const clients = [await login(pooler), await login(pooler)] as const;
        gate.refuse();
        gate.cut();
        await rowsBecome(pooler, 'SERVERS', {}, 0);
        await start(clients[0], 'SELECT 1');
        await pooler.logWait(/closing because: connect failed/);
        const cached = 'server login has been failing, cached error: connect failed (server_login_retry)';
        assert.equal(errorIn(await clients[1].query('SELECT 1'))?.M, cached);
      });
    });
  });
});

it('cancel_wait_timeout gives up a cancel request that finds no connection', async () => {
  await withGate(pg.port, async (gate) => {
    const databases = { postgres: `host=127.0.0.1 port=${gate.port}` };
    const settings = { ...TX, server_login_retry: 60, cancel_wait_timeout: 0.5 };
    await withPooler({ databases, settings }, async (pooler) => {
      const client = await login(pooler);
      const other = await login(pooler);
      await start(client, 'SELECT pg_sleep(2)');
      await rowsBecome(pooler, 'SERVERS', { state: 'active' }, 1);
      gate.refuse();
      await start(other, 'SELECT 1');
      await pooler.logWait(/closing because: connect failed/);
      const answered = cancelRequest({ port: pooler.port }, client.backendPid, client.backendKey);
      await pooler.logWait(/closing because: cancel_wait_timeout/, 0, SOON_MS);
      await answered;
      assert.equal(valueIn(await client.until('Z')), '', 'the query was not cancelled');
    });
  });
});

describe('idle databases and pools', () => {
  it('autodb_idle_timeout forgets databases of the * line that nobody uses', async () => {
    const databases = { '*': pg.connstr('postgres'), fixed: pg.connstr('postgres') };
    const settings = { ...TX, autodb_idle_timeout: 0.8, server_idle_timeout: 0.4 };
    await withPooler({ databases, settings }, async (pooler) => {
      const client = await login(pooler, { database: 'auto' });
      await (await login(pooler, { database: 'fixed' })).end();
      await pooler.logWait(/S-[^\n]* closing because: server idle timeout/);
      await pause(1300);
      assert.equal((await show(pooler, 'DATABASES', { name: 'auto' })).length, 1, 'a client is there');
      await client.end();
      await pooler.logWait(/dropping database 'auto' as it does not exist anymore or inactive auto-database/);
      const names = (await show(pooler, 'DATABASES')).map((row) => row.name);
      assert.deepEqual(names, ['fixed', 'pgbouncer']);
      assert.equal(await ask(await login(pooler, { database: 'auto' }), 'SELECT 1'), '1');
    });
  });

  it('pool_idle_timeout forgets pools without connections, except those that are kept filled', async () => {
    const databases = {
      postgres: pg.connstr(),
      kept: pg.connstr('postgres', 'user=ann min_pool_size=1 dbname=nowhere'),
    };
    const settings = { ...TX, pool_idle_timeout: 0.8, server_idle_timeout: 0.4, server_login_retry: 60 };
    await withPooler({ databases, settings }, async (pooler) => {
      const client = await login(pooler);
      await pause(1600);
      assert.equal((await show(pooler, 'POOLS', { database: 'postgres' })).length, 1);
      await client.end();
      await pooler.logWait(
        /cleaning up idle pool for user postgres on db postgres because: pool idle timeout \(age= \ds\)/,
      );
      assert.equal((await show(pooler, 'POOLS', { database: 'postgres' })).length, 0);
      assert.equal((await show(pooler, 'POOLS', { database: 'kept' })).length, 1);
    });
  });
});

describe('suspend_timeout', () => {
  it('ends those who do not come to rest, and the others live on', async () => {
    await withPooler(
      { cluster: pg, settings: { ...TX, suspend_timeout: 0.7, tcp_defer_accept: 0 } },
      async (pooler) => {
        const other = await login(pooler);
        const slow = await login(pooler);
        const busy = await login(pooler);
        const console = await pooler.console();
        const stranger = await pooler.raw();
        await start(busy, 'SELECT pg_sleep(1.5)');
        slow.pause();
        await start(slow, "SELECT repeat('x', 1000) FROM generate_series(1, 50000)");
        await rowsBecome(pooler, 'SERVERS', { state: 'active' }, 2);
        // a suspend that comes before the result finds nothing to wait for
        await eventually('rows that the slow client does not take', async () =>
          (await show(pooler, 'SOCKETS', { type: 'S' })).some((row) => Number(row.send_avail) > 0),
        );
        await withTimeout(console.query('SUSPEND'), 'SUSPEND', SOON_MS);
        await pooler.logWait(
          /C-[^\n]* closing because: suspend_timeout[\s\S]*C-[^\n]* closing because: suspend_timeout/,
          0,
          SOON_MS,
        );
        assert.equal(await thrownOut(stranger), 'suspend_timeout');
        await console.query('RESUME');
        await slow.destroy();
        assert.equal(await ask(other, 'SELECT 7'), '7');
        assert.equal(valueIn(await busy.until('Z')), '');
        // where the slow one's bytes pile up decides whether its server is named too
        assert.equal(pooler.log.count(/C-[^\n]* closing because: suspend_timeout/), 2);
      },
    );
  });
});
