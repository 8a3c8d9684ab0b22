/*
 * server_recovery_timeout: a server whose client leaves in the middle of its work is canceled, rolled back and used
 * again, instead of being closed.
 */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import type { Client } from 'pg';
import { type Bouncer, it, PgCluster } from '../harness';
import { backendsBecome, login, refusal, withPooler } from '../harness/answers';
import { backendPid } from '../harness/expect';
import { after, before, eventually } from '../harness/limits';
import { bind, EXECUTE, FLUSH, parse, SYNC } from '../harness/prepared-packets';
import { CANCEL_REQUEST, message, type RawClient } from '../harness/raw-client';
import { withRebootChain } from '../harness/reboot-chain';
import { startUntilTold } from '../harness/until-told';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
  await pg.sql('CREATE TABLE kept (id int)');
});
after(() => pg.stop());

const ONE_SERVER = { pool_mode: 'transaction', default_pool_size: 1, server_recovery_timeout: 5 };

/** A pooler with one server. @param body gets the pid of the server's process */
function withOneServer(
  settings: Record<string, string | number>,
  body: (pooler: Bouncer, pid: number) => Promise<void>,
): Promise<void> {
  return withPooler({ cluster: pg, settings: { ...ONE_SERVER, ...settings } }, async (pooler) => {
    const client = await pooler.connect();
    const pid = await backendPid(client);
    await client.end();
    await body(pooler, pid);
  });
}

/** The process that serves the next client, which must find no transaction of another client. */
async function nextPid(pooler: Bouncer): Promise<number> {
  const client = await pooler.connect();
  try {
    const { rows } = await client.query(
      'SELECT pg_backend_pid() AS pid, pg_current_xact_id_if_assigned() AS xact, count(*)::int AS rows FROM kept',
    );
    assert.deepEqual([rows[0].xact, rows[0].rows], [null, 0]);
    return rows[0].pid;
  } finally {
    await client.end();
  }
}

function serverIs(pid: number, where: string): Promise<void> {
  return backendsBecome(pg, `pid = ${pid} AND state = 'active' AND ${where}`, 1);
}

function serverSleeps(pid: number): Promise<void> {
  return serverIs(pid, "wait_event = 'PgSleep'");
}

/** What clients are in the middle of when they leave. */
const WORK: Record<string, (client: RawClient, pid: number) => Promise<void>> = {
  'a transaction': async (client) => {
    await client.query('BEGIN');
    await client.query('INSERT INTO kept VALUES (1)');
  },
  'a failed transaction': async (client) => {
    await client.query('BEGIN');
    await client.query('SELECT 1/0');
  },
  'a query': async (client, pid) => {
    await client.sendMessage('Q', Buffer.from('SELECT pg_sleep(100)\0'));
    await serverSleeps(pid);
  },
  'a query in a transaction': async (client, pid) => {
    await client.query('BEGIN');
    await client.query('INSERT INTO kept VALUES (1)');
    await client.sendMessage('Q', Buffer.from('SELECT pg_sleep(100)\0'));
    await serverSleeps(pid);
  },
  'a pipeline without Sync': async (client) => {
    await client.send(parse('', 'INSERT INTO kept VALUES (1)'), bind(''), EXECUTE, FLUSH);
    await client.until('C');
  },
  'a pipeline that fails later': async (client, pid) => {
    await client.send(parse('a', 'SELECT pg_sleep(100)'), bind('a'), EXECUTE, parse('b', 'wrong'), SYNC);
    await serverSleeps(pid);
  },
  'a large answer': async (client, pid) => {
    client.pause();
    await client.send(message('Q', Buffer.from("SELECT repeat('x', 1000) FROM generate_series(1, 1000000)\0")));
    await serverIs(pid, "wait_event = 'ClientWrite'");
  },
};

for (const [what, work] of Object.entries(WORK)) {
  for (const mode of ['transaction', 'session']) {
    it(`a server is used again after its client vanished in the middle of ${what}: ${mode} pooling`, async () => {
      await withOneServer({ pool_mode: mode }, async (pooler, pid) => {
        const client = await login(pooler);
        await work(client, pid);
        await client.destroy(true);
        assert.equal(await nextPid(pooler), pid);
        assert.equal(pooler.log.count(/closing because: (client disconnect|server_recovery)/), 0);
      });
    });
  }
}

it('a client may also say goodbye in the middle of a transaction', async () => {
  await withOneServer({}, async (pooler, pid) => {
    const client = await pooler.connect();
    await client.query('BEGIN; INSERT INTO kept VALUES (1)');
    await client.end();
    assert.equal(await nextPid(pooler), pid);
  });
});

it('KILL_CLIENT keeps the server', async () => {
  await withOneServer({}, async (pooler, pid) => {
    const client = await pooler.connect();
    await client.query('BEGIN; INSERT INTO kept VALUES (1)');
    const [row] = (await pooler.admin('SHOW CLIENTS')).filter(({ database }) => database === 'postgres');
    await pooler.admin(`KILL_CLIENT ${row?.id}`);
    assert.equal(await nextPid(pooler), pid);
  });
});

it('a cancel request for a client that left does not reach the next client', async () => {
  await withOneServer({}, async (pooler, pid) => {
    for (let i = 0; i < 30; i++) {
      const client = await login(pooler);
      await client.query('BEGIN');
      await client.sendMessage('Q', Buffer.from('SELECT pg_sleep(100)\0'));
      const next: Client = await pooler.connect();
      // the queue has it when the server becomes free
      const answer = next.query('SELECT pg_backend_pid() AS pid, pg_sleep(0.01)');
      await client.destroy(true);
      assert.equal((await answer).rows[0].pid, pid);
      await next.end();
    }
  });
});

it('session pooling resets a recovered server', async () => {
  await withOneServer({ pool_mode: 'session' }, async (pooler, pid) => {
    const client = await login(pooler);
    await client.query("SET work_mem = '77MB'");
    await client.query('BEGIN');
    await client.destroy(true);
    const next = await pooler.connect();
    assert.equal(await backendPid(next), pid);
    assert.notEqual((await next.query('SHOW work_mem')).rows[0].work_mem, '77MB');
    await next.end();
  });
});

it('a server inside COPY FROM STDIN is closed', async () => {
  await withOneServer({}, async (pooler, pid) => {
    const client = await login(pooler);
    await client.sendMessage('Q', Buffer.from('COPY kept FROM STDIN\0'));
    await client.until('G');
    await client.sendMessage('d', Buffer.from('1\n'));
    await client.destroy(true);
    assert.notEqual(await nextPid(pooler), pid);
    // at once, as it waits for data that no client will send
    assert.equal(pooler.log.count(/closing because: server_recovery_timeout/), 0);
  });
});

it('a server in the middle of a packet of its client is closed', async () => {
  await withOneServer({}, async (pooler, pid) => {
    const client = await login(pooler);
    await client.query('BEGIN');
    await client.send(Buffer.concat([Buffer.from('Q'), Buffer.from([0, 1, 0, 0]), Buffer.alloc(40_000, ' ')]));
    await pooler.logWait(/closing because/).catch(() => null);
    await client.destroy(true);
    assert.notEqual(await nextPid(pooler), pid);
  });
});

const STUBBORN = `DO $$ BEGIN LOOP BEGIN PERFORM pg_sleep(100); EXCEPTION WHEN query_canceled THEN NULL; END; END LOOP; END $$`;

it('a server that does not end its query within server_recovery_timeout is closed', async () => {
  await withOneServer({ server_recovery_timeout: 1 }, async (pooler, pid) => {
    const client = await login(pooler);
    await client.sendMessage('Q', Buffer.from(`${STUBBORN}\0`));
    await serverSleeps(pid);
    await client.destroy(true);
    assert.notEqual(await nextPid(pooler), pid);
    await pooler.logWait(/closing because: server_recovery_timeout/);
    await pg.killBackends(`pid = ${pid}`);
  });
});

it('without server_recovery_timeout the server is closed, and RELOAD turns it on', async () => {
  await withOneServer({ server_recovery_timeout: 0 }, async (pooler, pid) => {
    const client = await login(pooler);
    await client.query('BEGIN');
    await client.destroy(true);
    const second = await nextPid(pooler);
    assert.notEqual(second, pid);
    await pooler.logWait(/closing because: client disconnect while server was not ready/);
    pooler.rewrite({ settings: { ...ONE_SERVER } });
    await pooler.admin('RELOAD');
    const again = await login(pooler);
    await again.query('BEGIN');
    await again.destroy(true);
    assert.equal(await nextPid(pooler), second);
  });
});

/** Runs `body` with a way to the server that accepts cancel requests, but neither forwards them nor ends. */
async function withHeldCancels(body: (port: number) => Promise<void>): Promise<void> {
  const ends: Socket[] = [];
  const relay = createServer((from) => {
    ends.push(from.on('error', () => {}));
    from.once('data', (first: Buffer) => {
      if (first.readInt32BE(4) === CANCEL_REQUEST) return;
      const to = connect(pg.port, '127.0.0.1').on('error', () => from.destroy());
      ends.push(to);
      to.write(first);
      from.pipe(to).pipe(from);
    });
  }).listen(0, '127.0.0.1');
  await once(relay, 'listening');
  try {
    await body((relay.address() as AddressInfo).port);
  } finally {
    for (const end of ends) end.destroy();
    relay.close();
  }
}

for (const [how, ends] of [
  ['that ends by itself', true],
  ['that goes on', false],
] as const)
  it(`a cancel request that the server does not end makes no server unusable: a query ${how}`, () =>
    withHeldCancels(async (port) => {
      const databases = { postgres: `host=127.0.0.1 port=${port}` };
      const settings = { ...ONE_SERVER, server_recovery_timeout: 1.5, cancel_wait_timeout: 1 };
      await withPooler({ databases, settings }, async (pooler) => {
        const client = await login(pooler);
        const end = await startUntilTold(pg, client);
        await client.destroy(true);
        await pooler.logWait(/client unexpected eof/);
        if (ends) await end();
        await pooler.logWait(/closing because: cancel_wait_timeout/);
        assert.equal((await pooler.sql('SELECT 1 AS one')).rows[0].one, 1);
        const [pool] = (await pooler.admin('SHOW POOLS')).filter(({ database }) => database === 'postgres');
        assert.deepEqual([pool?.sv_being_canceled, pool?.sv_active_cancel], [0, 0]);
        await pg.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
      });
    }));

it('a cancel request of the pooler does not count for max_client_conn', () =>
  withHeldCancels(async (port) => {
    const databases = { postgres: `host=127.0.0.1 port=${port}` };
    const limits = { max_client_conn: 2, server_recovery_timeout: 100, cancel_wait_timeout: 100 };
    await withPooler({ databases, settings: { ...ONE_SERVER, ...limits, verbose: 1 } }, async (pooler) => {
      const client = await login(pooler);
      await client.sendMessage('Q', Buffer.from('SELECT pg_sleep(100)\0'));
      await backendsBecome(pg, `state = 'active' AND wait_event = 'PgSleep'`, 1);
      await client.destroy(true);
      await pooler.logWait(/started sending cancel request/);
      for (let i = 0; i < 2; i++) await login(pooler);
      assert.match(await refusal(pooler), /max_client_conn/);
      await pg.killBackends("wait_event = 'PgSleep'");
    });
  }));

it('PAUSE waits for a server that is being recovered', async () => {
  await withOneServer({}, async (pooler, pid) => {
    const client = await login(pooler);
    await client.sendMessage('Q', Buffer.from('SELECT pg_sleep(100)\0'));
    await serverSleeps(pid);
    await client.destroy(true);
    await pooler.admin('PAUSE');
    const left = async () => (await pooler.admin('SHOW SERVERS')).filter(({ database }) => database === 'postgres');
    // PAUSE does not wait for the connection of a cancel request, which PostgreSQL closes when it has signaled
    assert.deepEqual(
      (await left()).filter(({ state }) => state !== 'active_cancel'),
      [],
    );
    await eventually('the cancel request to end', async () => (await left()).length === 0);
    await pooler.admin('RESUME');
    await nextPid(pooler);
  });
});

it('an online reboot leaves a server that is being recovered to the old process', async () => {
  const settings = { ...ONE_SERVER, server_recovery_timeout: 100 };
  await withRebootChain({ cluster: pg, settings }, async (chain) => {
    const old = await chain.start('ts');
    const client = await chain.raw();
    await client.login();
    await client.sendMessage('Q', Buffer.from(`${STUBBORN}\0`));
    await backendsBecome(pg, "query LIKE 'DO %' AND wait_event = 'PgSleep'", 1);
    await client.destroy(true);
    await old.log.wait(/client unexpected eof/);
    await chain.reboot('ts');
    assert.match(old.log.text, /\d connections cannot be handed over: 1 its client has left/);
    const rows = await chain.show('SERVERS');
    assert.deepEqual(
      rows.filter(({ database }) => database === 'postgres'),
      [],
    );
    assert.equal((await chain.sql('SELECT 1 AS one')).rows[0].one, 1);
    await pg.killBackends("query LIKE 'DO %'");
  });
});
