/*
 * Timeouts of servers, queries and clients: each timeout ends the right connections at the right time with PgBouncer's
 * text, and no others. Times are as short as the three maintenance rounds per second allow.
 */

import assert from 'node:assert/strict';
import {
  ask,
  backendOf,
  errorIn,
  login,
  noticesIn,
  rowsBecome,
  show,
  start,
  thrownOut,
  valueIn,
  withPooler,
} from '../harness/answers';
import type { BouncerOptions } from '../harness/bouncer';
import { clusterWithUsers } from '../harness/fixtures';
import { FakeServer, oneRow, WELCOME } from '../harness/hostile/fake-server';
import { describe } from '../harness/limits';
import { it } from '../harness/machine';
import { cstring, errorFields, int16, int32, letters, type Message, message } from '../harness/raw-client';
import { pause, SOON_MS, TX } from '../harness/timeout-gate';

const pg = clusterWithUsers('ann');

const ANN = { ann: '' };

describe('server_lifetime', () => {
  it('server_lifetime, per database or global, replaces older servers', async () => {
    const databases = { postgres: pg().connstr(), short: pg().connstr('postgres', 'server_lifetime=1') };
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

  it('server_lifetime=0 uses each server once, to the end of its transaction', async () => {
    await withPooler({ cluster: pg(), settings: { ...TX, server_lifetime: 0 } }, async (pooler) => {
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
  it('server_idle_timeout closes unused servers down to min_pool_size', async () => {
    const databases = { postgres: pg().connstr(), min: pg().connstr('postgres', 'min_pool_size=1') };
    await withPooler({ databases, settings: TX }, async (pooler) => {
      for (const [database, left] of [
        ['postgres', 0],
        ['min', 1],
      ] as const) {
        const clients = [await login(pooler, { database }), await login(pooler, { database })];
        for (const client of clients) await ask(client, 'BEGIN');
        await pooler.admin('SET server_idle_timeout = 60');
        for (const client of clients) await ask(client, 'COMMIT');
        await pause(1000);
        assert.equal((await show(pooler, 'SERVERS', { database })).length, 2);
        const from = pooler.log.mark();
        await pooler.admin("SET server_idle_timeout = '0.7'");
        await pooler.logWait(/S-[^\n]* closing because: server idle timeout/, from);
        await rowsBecome(pooler, 'SERVERS', { database }, left);
        if (left > 0) await pause(1200);
        assert.equal((await show(pooler, 'SERVERS', { database })).length, left);
      }
    });
  });
});

describe('query_timeout', () => {
  it('query_timeout, per user or global, ends longer queries', async () => {
    const options: BouncerOptions = { cluster: pg(), users: { ann: 'query_timeout=1' }, userlist: ANN, settings: TX };
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

  it('query_timeout includes the time in the queue but not idle time in a transaction', async () => {
    const settings = { ...TX, query_timeout: 0.7, default_pool_size: 1 };
    await withPooler({ cluster: pg(), settings }, async (pooler) => {
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
    ['as a global setting', '0.4', '', '', true],
    ['of the database', '60', 'query_wait_timeout=1', '', true],
    ['of the user, with precedence over the database,', '60', 'query_wait_timeout=60', 'query_wait_timeout=1', true],
    ['0 of the user', '0.4', 'query_wait_timeout=1', 'query_wait_timeout=0', false],
    ['0 of the database', '0.4', 'query_wait_timeout=0', '', false],
  ];
  for (const [what, general, database, user, strikes] of cases) {
    it(`query_wait_timeout ${what} ${strikes ? 'disconnects' : 'does not disconnect'} a waiting client`, async () => {
      const options: BouncerOptions = {
        databases: { postgres: pg().connstr('postgres', database) },
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

it('query_wait_notify sends a waiting client one notice', async () => {
  const settings = { ...TX, default_pool_size: 1, query_wait_notify: 1 };
  await withPooler({ cluster: pg(), settings }, async (pooler) => {
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
  it('client_idle_timeout, per user or global, disconnects idle clients that are not in a transaction', async () => {
    const users = { ann: 'client_idle_timeout=1' };
    await withPooler({ cluster: pg(), users, userlist: ANN, settings: TX }, async (pooler) => {
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
  it('idle_transaction_timeout, per user or global, ends idle transactions only', async () => {
    const users = { ann: 'idle_transaction_timeout=1' };
    await withPooler({ cluster: pg(), users, userlist: ANN, settings: TX }, async (pooler) => {
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

describe('what a server says between two transactions', () => {
  const said: Record<string, Buffer> = {
    'a parameter': message('S', cstring('is_superuser'), cstring('off')),
    'a notice': message('N', cstring('SWARNING'), cstring('C01000'), cstring('Mlater'), Buffer.alloc(1)),
  };
  for (const [what, bytes] of Object.entries(said)) {
    for (const pool_mode of ['session', 'transaction']) {
      it(`${what} is no idle transaction and keeps the server usable: ${pool_mode} mode`, async () => {
        let visits = 0;
        const fake = await FakeServer.start(async ({ next, socket }) => {
          visits++;
          socket.write(WELCOME);
          await next();
          socket.write(oneRow('first'));
          await pause(100);
          socket.write(bytes);
          await next();
          socket.write(oneRow('second'));
        });
        try {
          const databases = { app: `host=127.0.0.1 port=${fake.port} max_protocol_version=3.0` };
          const settings = { pool_mode, server_tls_sslmode: 'disable', idle_transaction_timeout: 0.4 };
          await withPooler({ databases, settings }, async (pooler) => {
            const client = await login(pooler, { database: 'app' });
            assert.equal(await ask(client, 'SELECT'), 'first');
            await pause(1500);
            assert.equal(await ask(client, 'SELECT'), 'second');
            assert.equal(visits, 1);
            await client.end();
          });
        } finally {
          await fake.stop();
        }
      });
    }
  }
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
    it(`idle_transaction_timeout ends a pipeline ${what}`, async () => {
      const settings = { ...TX, idle_transaction_timeout: 0.6 };
      await withPooler({ cluster: pg(), settings }, async (pooler) => {
        const client = await login(pooler);
        await client.send(...packets);
        const messages = await client.until('');
        assert.equal(letters(messages), answer);
        assert.equal(errorFields(messages.at(-1) as Message).M, 'idle transaction timeout');
      });
    });
  }

  it('idle_transaction_timeout does not end a pipeline that the server still processes', async () => {
    await withPooler({ cluster: pg(), settings: { ...TX, idle_transaction_timeout: 0.6 } }, async (pooler) => {
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
  it('transaction_timeout, per user or global, ends longer transactions, busy or idle', async () => {
    const users = { ann: 'transaction_timeout=1' };
    await withPooler({ cluster: pg(), users, userlist: ANN, settings: TX }, async (pooler) => {
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
