/*
 * Timeouts of logins, server connections, cancel requests, idle databases and pools, and SUSPEND.
 */

import assert from 'node:assert/strict';
import {
  ask,
  errorIn,
  login,
  refusal,
  rowsBecome,
  show,
  start,
  thrownOut,
  valueIn,
  withPooler,
} from '../harness/answers';
import type { Bouncer } from '../harness/bouncer';
import { clusterWithUsers } from '../harness/fixtures';
import { describe } from '../harness/limits';
import { eventually, it, withTimeout } from '../harness/machine';
import { cancelRequest, type RawClient } from '../harness/raw-client';
import { pause, SOON_MS, TX, withGate } from '../harness/timeout-gate';
import { startUntilTold } from '../harness/until-told';

const pg = clusterWithUsers('ann');

describe('client_login_timeout', () => {
  it('client_login_timeout disconnects only clients that have not logged in', async () => {
    await withPooler({ cluster: pg(), settings: { ...TX, tcp_defer_accept: 0 } }, async (pooler) => {
      const client = await login(pooler);
      await pooler.admin("SET client_login_timeout = '0.5'");
      assert.equal(await thrownOut(await pooler.raw()), 'client_login_timeout');
      assert.equal(await ask(client, 'SELECT 1'), '1');
    });
  });

  it('client_login_timeout also applies while the login waits for a server', async () => {
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

  /** A client holds the only server that could run auth_query. */
  async function withHolder(loginTimeout: number, body: (pooler: Bouncer, holder: RawClient) => Promise<void>) {
    const settings = { auth_type: 'scram-sha-256', auth_user: 'postgres', default_pool_size: 1 };
    const waits = { query_wait_timeout: 0 };
    const userlist = { postgres: 'secret' };
    await withPooler({ cluster: pg(), settings: { ...TX, ...settings, ...waits }, userlist }, async (pooler) => {
      const holder = await login(pooler, { password: 'secret' });
      await ask(holder, 'BEGIN');
      await pooler.admin(`SET client_login_timeout = '${loginTimeout}'`);
      await body(pooler, holder);
      await holder.end();
    });
  }

  it('client_login_timeout also applies while the login waits for a server that runs auth_query', () =>
    withHolder(0.5, async (pooler) => {
      assert.equal(await refusal(pooler, { user: 'ann' }), 'client_login_timeout');
    }));

  it('client_login_timeout=0 never disconnects a login that waits for a server', () =>
    withHolder(0, async (pooler, holder) => {
      // ann has no password
      const answer = refusal(pooler, { user: 'ann' });
      await pause(1000);
      await ask(holder, 'COMMIT');
      assert.match(await answer, /authentication failed/);
    }));

  it('client_login_timeout=0 never disconnects', async () => {
    await withPooler({ cluster: pg(), settings: { ...TX, client_login_timeout: 0 } }, async (pooler) => {
      const client = await pooler.raw();
      await pause(1000);
      assert.equal((await client.login()).at(-1)?.type, 'Z');
    });
  });
});

describe('server_connect_timeout', () => {
  it('server_connect_timeout closes a server that does not answer', async () => {
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

/** When the lines that match were logged, in ms. */
function timesOf(pooler: Bouncer, pattern: RegExp): number[] {
  const lines = pooler.log.text.split('\n').filter((line) => pattern.test(line));
  return lines.map((line) => Date.parse(`${line.slice(0, 23).replace(' ', 'T')}Z`));
}

describe('server_login_retry', () => {
  it('server_login_retry delays the next attempt, whose success serves waiting clients', async () => {
    await withGate(pg().port, async (gate) => {
      const databases = { postgres: `host=127.0.0.1 port=${gate.port}` };
      await withPooler({ databases, settings: { ...TX, server_login_retry: 1.2 } }, async (pooler) => {
        const failed = /S-[^\n]* closing because: connect failed/;
        gate.refuse();
        const client = await pooler.raw();
        const answer = client.login();
        await pooler.logWait(failed);
        await eventually('another try', () => pooler.log.count(failed) >= 2);
        const [first = 0, second = 0] = timesOf(pooler, failed);
        assert.ok(second - first >= 1100, `tried again after ${second - first} ms`);
        await gate.accept();
        assert.equal((await answer).at(-1)?.type, 'Z');
        assert.equal(await ask(client, 'SELECT 6'), '6');
      });
    });
  });

  it('new queries are refused at once during server_login_retry', async () => {
    await withGate(pg().port, async (gate) => {
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

it('cancel_wait_timeout drops a cancel request that gets no server connection', async () => {
  await withGate(pg().port, async (gate) => {
    const databases = { postgres: `host=127.0.0.1 port=${gate.port}` };
    const settings = { ...TX, server_login_retry: 60, cancel_wait_timeout: 0.5 };
    await withPooler({ databases, settings }, async (pooler) => {
      const client = await login(pooler);
      const other = await login(pooler);
      const end = await startUntilTold(pg(), client);
      gate.refuse();
      await start(other, 'SELECT 1');
      await pooler.logWait(/closing because: connect failed/);
      const answered = cancelRequest({ port: pooler.port }, client.backendPid, client.backendKey);
      await pooler.logWait(/closing because: cancel_wait_timeout/, 0, SOON_MS);
      await answered;
      await end();
      assert.equal(valueIn(await client.until('Z')), '', 'the query was not canceled');
    });
  });
});

describe('idle databases and pools', () => {
  it('autodb_idle_timeout removes unused auto-databases', async () => {
    const databases = { '*': pg().connstr('postgres'), fixed: pg().connstr('postgres') };
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

  it('an auto-database that is disabled stays so, however long it is unused', async () => {
    const settings = { ...TX, autodb_idle_timeout: 0.8 };
    await withPooler({ databases: { '*': pg().connstr('postgres') }, settings }, async (pooler) => {
      await pooler.admin('DISABLE closed');
      await pooler.admin('RECONNECT unused');
      await pooler.logWait(/dropping database 'unused'/);
      assert.equal(await refusal(pooler, { database: 'closed' }), 'database "closed" is disabled');
      await pooler.admin('ENABLE closed');
      assert.equal(await ask(await login(pooler, { database: 'closed' }), 'SELECT 1'), '1');
    });
  });

  it('pool_idle_timeout removes pools without connections, except pools with min_pool_size', async () => {
    const databases = {
      postgres: pg().connstr(),
      kept: pg().connstr('postgres', 'user=ann min_pool_size=1 dbname=nowhere'),
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
  it('suspend_timeout disconnects only connections whose buffers are not empty', async () => {
    await withPooler(
      { cluster: pg(), settings: { ...TX, suspend_timeout: 0.7, tcp_defer_accept: 0 } },
      async (pooler) => {
        const other = await login(pooler);
        const slow = await login(pooler);
        const busy = await login(pooler);
        const console = await pooler.console();
        const stranger = await pooler.raw();
        const end = await startUntilTold(pg(), busy);
        slow.pause();
        await start(slow, "SELECT repeat('x', 1000) FROM generate_series(1, 50000)");
        await rowsBecome(pooler, 'SERVERS', { state: 'active' }, 2);
        // SUSPEND before the result arrives would have nothing to wait for
        await eventually('rows that the slow client does not read', async () =>
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
        await end();
        assert.equal(valueIn(await busy.until('Z')), '');
        // the log may also name the slow client's server, depending on where the bytes accumulate
        assert.equal(pooler.log.count(/C-[^\n]* closing because: suspend_timeout/), 2);
      },
    );
  });
});
