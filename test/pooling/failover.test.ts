/*
 * target_session_attrs and a failover: a real primary and its standby, which is promoted while clients work.
 */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { type AddressInfo, createServer } from 'node:net';
import type { Client } from 'pg';
import { type Bouncer, eventually, it, PgCluster } from '../harness';
import { ask, login, rowsBecome, withPooler } from '../harness/answers';
import { fails, watch } from '../harness/expect';
import { FakeServer, oneRow, type Visit, WELCOME } from '../harness/hostile/fake-server';
import { after, before } from '../harness/limits';
import { message } from '../harness/raw-client';

const HBA = ['local all all trust', 'host all all 127.0.0.1/32 trust', 'host replication all 127.0.0.1/32 trust'];

let primary: PgCluster;
let standby: PgCluster;

before(async () => {
  primary = await PgCluster.start({ hba: HBA, settings: { wal_level: 'replica' } });
  await primary.sql('CREATE TABLE done (id int)');
  standby = await primary.addStandby();
});
after(async () => {
  await standby.stop();
  await primary.stop();
});

/** A pooler whose databases name both servers, the standby first. */
function withBoth(
  databases: Record<string, string>,
  settings: Record<string, string | number>,
  body: (pooler: Bouncer) => Promise<void>,
): Promise<void> {
  const hosts = `host=127.0.0.1,127.0.0.1 port=${standby.port},${primary.port} dbname=postgres`;
  const lines = Object.entries(databases).map(([name, more]) => [name, `${hosts} ${more}`]);
  const common = { pool_mode: 'transaction', server_login_retry: 1, default_pool_size: 5 };
  return withPooler({ databases: Object.fromEntries(lines), settings: { ...common, ...settings } }, body);
}

async function portOf(client: Client): Promise<number> {
  return Number((await client.query("SELECT current_setting('port') AS port")).rows[0].port);
}

const FIT: [string, 'primary' | 'standby'][] = [
  ['read-write', 'primary'],
  ['primary', 'primary'],
  ['read-only', 'standby'],
  ['standby', 'standby'],
];

for (const [attrs, kind] of FIT) {
  for (const balance of ['disable', 'round-robin']) {
    it(`target_session_attrs=${attrs} finds the ${kind}: load_balance_hosts=${balance}`, async () => {
      const line = `target_session_attrs=${attrs} load_balance_hosts=${balance}`;
      await withBoth({ app: line }, {}, async (pooler) => {
        const clients = await Promise.all(Array.from({ length: 5 }, () => pooler.connect({ database: 'app' })));
        for (const client of clients) await client.query('BEGIN');
        const wanted = (kind === 'primary' ? primary : standby).port;
        for (const client of clients) assert.equal(await portOf(client), wanted);
        for (const client of clients) await client.end();
      });
    });
  }
}

it('target_session_attrs=any uses both servers in turn', async () => {
  await withBoth({ app: '' }, {}, async (pooler) => {
    const clients = await Promise.all(Array.from({ length: 4 }, () => pooler.connect({ database: 'app' })));
    const ports = new Set<number>();
    for (const client of clients) {
      await client.query('BEGIN');
      ports.add(await portOf(client));
    }
    assert.equal(ports.size, 2);
    for (const client of clients) await client.end();
  });
});

it('a host that does not answer for longer than server_login_retry is not tried again and again', async () => {
  const silent = createServer().listen(0, '127.0.0.1');
  await once(silent, 'listening');
  const { port } = silent.address() as AddressInfo;
  try {
    const line = `host=127.0.0.1,127.0.0.1 port=${port},${primary.port} dbname=postgres load_balance_hosts=disable`;
    const settings = { server_connect_timeout: 1.5, server_login_retry: 1 };
    await withPooler({ databases: { app: line }, settings }, async (pooler) => {
      assert.equal((await pooler.sql('SELECT 1 AS one', { database: 'app' })).rows[0].one, 1);
    });
  } finally {
    silent.close();
  }
});

it('a session that is read-only by default is no read-write server', async () => {
  await primary.sql('ALTER DATABASE postgres SET default_transaction_read_only = on');
  try {
    await withBoth({ app: 'target_session_attrs=read-write' }, { query_wait_timeout: 1 }, async (pooler) => {
      await fails(pooler.sql('SELECT 1', { database: 'app' }), 'query_wait_timeout');
      await pooler.logWait(/closing because: session is read-only/);
    });
  } finally {
    await primary.sql('ALTER DATABASE postgres RESET default_transaction_read_only', { database: 'template1' });
  }
});

it('an error that says the server is read-only replaces its connections, but not for every client that causes it', async () => {
  await withBoth({ app: 'target_session_attrs=read-write' }, {}, async (pooler) => {
    const client = await login(pooler, { database: 'app' });
    const pid = await ask(client, 'SELECT pg_backend_pid()');
    const write = 'BEGIN READ ONLY; INSERT INTO done VALUES (0)';
    await assert.rejects(ask(client, write), /read-only transaction/);
    await ask(client, 'ROLLBACK');
    const next = await ask(client, 'SELECT pg_backend_pid()');
    assert.notEqual(next, pid);
    await assert.rejects(ask(client, write), /read-only transaction/);
    await ask(client, 'ROLLBACK');
    assert.equal(await ask(client, 'SELECT pg_backend_pid()'), next);
    assert.equal(pooler.log.count(/server refuses to write/), 1);
    await client.end();
  });
});

/** One client that works until told to stop. */
class Worker {
  done = 0;
  /** errors outside transactions */
  readonly errors: string[] = [];
  private over = false;
  private until: Promise<void> | null = null;
  /** has no query on its way */
  isResting = false;
  /** longest time between two answers, ms */
  longest = 0;

  constructor(private readonly pooler: Bouncer) {}

  async run(): Promise<void> {
    const client = await this.pooler.connect({ database: 'app' });
    let last = Date.now();
    while (!this.over) {
      try {
        await client.query('INSERT INTO done VALUES (1)');
        this.done++;
        this.longest = Math.max(this.longest, Date.now() - last);
        last = Date.now();
        this.isResting = this.until !== null;
        await this.until;
        this.isResting = false;
        // most of the time no query is running
        await new Promise((resolve) => setTimeout(resolve, 5));
      } catch (err) {
        this.errors.push((err as Error).message);
        return;
      }
    }
    await client.end();
  }

  /** Sends no query until the promise settles. */
  rest(until: Promise<void>): void {
    this.until = until;
  }

  stop(): void {
    this.over = true;
  }
}

it('clients are held while the standby is promoted, and go on with the new primary', async () => {
  await withBoth({ app: 'target_session_attrs=read-write' }, {}, async (pooler) => {
    const workers = Array.from({ length: 20 }, () => new Worker(pooler));
    const working = Promise.all(workers.map((worker) => worker.run()));
    await eventually('work', async () => workers.every(({ done }) => done > 5));
    const resting = workers.slice(10);
    let goOn = () => {};
    const rest = new Promise<void>((settle) => {
      goOn = settle;
    });
    for (const worker of resting) worker.rest(rest);
    await eventually('rest', () => resting.every(({ isResting }) => isResting));
    await primary.halt('fast');
    // clients that come now wait as well
    const late = await pooler.connect({ database: 'app' });
    const answer = watch(late.query('SELECT 1 AS one'), 'the answer');
    const before = workers.map(({ done }) => done);
    await pooler.logWait(/closing because: session is read-only/);
    await rowsBecome(pooler, 'SERVERS', { port: primary.port }, 0);
    goOn();
    assert.equal(answer.settled, false);
    await standby.promote();
    assert.equal((await answer.done()).rows[0].one, 1);
    assert.equal(await portOf(late), standby.port);
    const alive = workers.filter(({ errors }) => errors.length === 0);
    await eventually('work on the new primary', async () =>
      alive.every((worker) => worker.done > (before[workers.indexOf(worker)] as number) + 5),
    );
    for (const worker of workers) worker.stop();
    await working;
    await late.end();
    const errors = workers.flatMap((worker) => worker.errors);
    // only a query that was running when its server ended may have failed
    for (const error of errors)
      assert.match(error, /^(terminating connection due to administrator command|server conn crashed\?)$/);
    for (const worker of resting) assert.deepEqual(worker.errors, []);
    const longest = Math.max(...alive.map((worker) => worker.longest));
    console.log(`failover: ${errors.length} of 20 clients got an error, the longest pause was ${longest} ms`);
  });
});

it('a client does not notice that its server ends right behind the answer', async () => {
  let visits = 0;
  const fatal = message('E', Buffer.from('SFATAL\0C57P01\0Mterminating connection due to administrator command\0\0'));
  const fake = await FakeServer.start(async ({ next, socket }) => {
    visits++;
    socket.write(WELCOME);
    await next();
    if (visits === 1) socket.end(Buffer.concat([oneRow('first'), fatal]));
    else socket.write(oneRow('second'));
  });
  try {
    const databases = { app: `host=127.0.0.1 port=${fake.port} max_protocol_version=3.0` };
    const settings = { pool_mode: 'transaction', server_tls_sslmode: 'disable' };
    await withPooler({ databases, settings }, async (pooler) => {
      const client = await login(pooler, { database: 'app' });
      assert.equal(await ask(client, 'SELECT'), 'first');
      assert.equal(await ask(client, 'SELECT'), 'second');
      assert.equal(visits, 2);
      await client.end();
    });
  } finally {
    await fake.stop();
  }
});

/** A ParameterStatus with the role of a server. */
const role = (inHotStandby: 'on' | 'off'): Buffer => message('S', Buffer.from(`in_hot_standby\0${inHotStandby}\0`));

for (const [attrs, before, now] of [
  ['standby', 'on', 'off'],
  ['primary', 'off', 'on'],
] as const) {
  it(`a server that reports another role is replaced: target_session_attrs=${attrs}`, async () => {
    const readOnly = message('S', Buffer.from('default_transaction_read_only\0off\0'));
    const welcome = Buffer.concat([WELCOME.subarray(0, 9), readOnly, role(before), WELCOME.subarray(9)]);
    const visits: Visit[] = [];
    const fake = await FakeServer.start(async (visit) => {
      const name = `visit ${visits.push(visit)}`;
      visit.socket.write(welcome);
      while ((await visit.next())?.type === 'Q') visit.socket.write(oneRow(name));
    });
    try {
      const databases = {
        app: `host=127.0.0.1 port=${fake.port} max_protocol_version=3.0 target_session_attrs=${attrs}`,
      };
      const settings = { pool_mode: 'transaction', server_tls_sslmode: 'disable' };
      await withPooler({ databases, settings }, async (pooler) => {
        const client = await login(pooler, { database: 'app' });
        assert.equal(await ask(client, 'SELECT'), 'visit 1');
        // the same role again is no news
        visits[0]?.socket.write(role(before));
        assert.equal(await ask(client, 'SELECT'), 'visit 1');
        visits[0]?.socket.write(role(now));
        const is = now === 'on' ? '' : 'not ';
        await pooler.logWait(new RegExp(`server is ${is}in hot standby mode now: replacing the server connections`));
        assert.equal(await ask(client, 'SELECT'), 'visit 2');
        await client.end();
      });
    } finally {
      await fake.stop();
    }
  });
}

it('after the promotion, no host fits target_session_attrs=standby', async () => {
  await withBoth({ app: 'target_session_attrs=standby' }, { query_wait_timeout: 1 }, async (pooler) => {
    await fails(pooler.sql('SELECT 1', { database: 'app' }), 'query_wait_timeout');
  });
});
