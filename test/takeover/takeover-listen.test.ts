/*
 * listen_mode = share and online reboots: the listening connection and its clients go on in the new process.
 */

import assert from 'node:assert/strict';
import { it, PgCluster } from '../harness';
import { ask, thrownOut } from '../harness/answers';
import { recordsOf, waitingProcess } from '../harness/handover-records';
import { FakeServer, READY, type Visit, WELCOME } from '../harness/hostile/fake-server';
import { after, before } from '../harness/limits';
import { eventually } from '../harness/machine';
import { cstring, type Message, message, type RawClient } from '../harness/raw-client';
import { type RebootChain, withRebootChain } from '../harness/reboot-chain';

let pg: PgCluster;

let standby: PgCluster;

before(async () => {
  const hba = ['local all all trust', 'host all all 127.0.0.1/32 trust', 'host replication all 127.0.0.1/32 trust'];
  pg = await PgCluster.start({ hba, settings: { wal_level: 'replica' } });
  standby = await pg.addStandby();
});
after(async () => {
  await standby.stop();
  await pg.stop();
});

const SHARE = { pool_mode: 'transaction', default_pool_size: 3, listen_mode: 'share' };

function withChain(settings: Record<string, string | number>, body: (chain: RebootChain) => Promise<void>) {
  return withRebootChain({ cluster: pg, settings: { ...SHARE, ...settings } }, body);
}

async function loggedIn(chain: RebootChain): Promise<RawClient> {
  const client = await chain.raw();
  await client.login();
  return client;
}

function payloadOf({ body }: Message): string {
  return body.toString('latin1', body.indexOf(0, 4) + 1, body.length - 1);
}

/** The payloads of the next notifications. */
async function payloads(client: RawClient, count: number): Promise<string[]> {
  const found: string[] = [];
  while (found.length < count) found.push(payloadOf((await client.until('A')).at(-1) as Message));
  return found;
}

function numbers(from: number, to: number): string[] {
  return Array.from({ length: to - from }, (_, i) => String(from + i));
}

it('nothing is lost, doubled or out of order while reboots and notifications go on', async () => {
  await withChain({}, async (chain) => {
    await chain.start('ts');
    const clients = await Promise.all(Array.from({ length: 10 }, () => loggedIn(chain)));
    for (const client of clients) await client.query('LISTEN news');
    // its notifications wait for the end of its transaction
    const [busy, ...idle] = clients as [RawClient, ...RawClient[]];
    await busy.query('BEGIN');
    let sent = 0;
    let over = false;
    const notify = (async () => {
      while (!over) {
        await pg.sql(`SELECT pg_notify('news', i::text) FROM generate_series(${sent}, ${sent + 2}) i`);
        sent += 3;
      }
    })();
    for (let i = 0; i < 4; i++) {
      await chain.reboot('ts');
      const before = sent;
      await eventually('more notifications', async () => sent > before);
    }
    over = true;
    await notify;
    assert.ok(sent > 20, `only ${sent} notifications`);
    for (const client of idle) assert.deepEqual(await payloads(client, sent), numbers(0, sent));
    assert.equal(await ask(busy, 'SELECT 1'), '1');
    await busy.query('COMMIT');
    assert.deepEqual(await payloads(busy, sent), numbers(0, sent));
    // nothing more, and LISTEN and UNLISTEN go on
    await pg.sql("NOTIFY news, 'last'");
    for (const client of clients) assert.deepEqual(await payloads(client, 1), ['last']);
    await busy.query('UNLISTEN news');
    for (const client of idle) await client.end();
    await busy.query('LISTEN other');
    await pg.sql("NOTIFY news, 'not heard'; NOTIFY other, 'heard'");
    assert.deepEqual(await payloads(busy, 1), ['heard']);
  });
});

it('a transaction with LISTEN, a slow client, and a LISTEN that is not in force yet go on', async () => {
  await withChain({}, async (chain) => {
    await chain.start('ts');
    const [open, slow, waits] = [await loggedIn(chain), await loggedIn(chain), await loggedIn(chain)];
    await open.query('BEGIN');
    await open.query('LISTEN news');
    await slow.query('LISTEN news');
    slow.pause();
    await pg.sql(`SELECT pg_notify('news', lpad(i::text, 4000, '0')) FROM generate_series(0, 199) i`);
    // the listening connection does not answer while its backend is stopped
    const [{ pid }] = (await pg.sql("SELECT pid FROM pg_stat_activity WHERE query LIKE '%LISTEN%' AND state = 'idle'"))
      .rows;
    process.kill(pid, 'SIGSTOP');
    await waits.sendMessage('Q', Buffer.from('LISTEN other\0'));
    assert.equal((await waits.until('C')).at(-1)?.type, 'C');
    await chain.reboot('ts');
    process.kill(pid, 'SIGCONT');
    assert.equal((await waits.until('Z')).length, 1);
    await open.query('COMMIT');
    await pg.sql("NOTIFY news, 'last'; NOTIFY other, 'last'");
    for (const client of [open, waits]) assert.deepEqual(await payloads(client, 1), ['last']);
    slow.resume();
    const all = await payloads(slow, 201);
    assert.deepEqual(all.slice(0, 200).map(Number), numbers(0, 200).map(Number));
    assert.equal(all[200], 'last');
  });
});

it('a listening connection that a new process does not take is opened again', async () => {
  await withChain({}, async (chain) => {
    await chain.start('ts');
    const client = await loggedIn(chain);
    await client.query('LISTEN news');
    // the database has another connect string: its servers are closed
    chain.write({ databases: { '*': `host=127.0.0.1 port=${pg.port} connect_query=SELECT` } });
    await chain.reboot('ts');
    assert.match(await thrownOut(client), /notifications may have been lost/);
    const next = await loggedIn(chain);
    await next.query('LISTEN news');
    await pg.sql("NOTIFY news, 'heard'");
    assert.deepEqual(await payloads(next, 1), ['heard']);
  });
});

it('a process of an older version gets neither the connection nor its clients, and a failed reboot changes nothing', async () => {
  await withChain({}, async (chain) => {
    await chain.start('ts');
    const [listens, plain] = [await loggedIn(chain), await loggedIn(chain)];
    await plain.query('LISTEN news; UNLISTEN news');
    await listens.query('LISTEN news');
    const sockets = (records: string[]) => records.filter((record) => /"k":"(?:socket|ahead)"/.test(record));
    const older = await recordsOf(chain, 2);
    const all = [...sockets(older.ahead), ...sockets(older.frozen)];
    assert.equal(all.filter((record) => record.includes('"news"')).length, 0);
    assert.equal(all.filter((record) => record.includes('sv_listen')).length, 0);
    const newer = await recordsOf(chain, 3);
    assert.equal([...newer.ahead, ...newer.frozen].filter((record) => record.includes('"news"')).length, 2);
    await pg.sql("NOTIFY news, 'heard'");
    assert.deepEqual(await payloads(listens, 1), ['heard']);
  });
});

it('an older process that takes over ends the clients that listen, after their transactions, with the reason', async () => {
  await withChain({ suspend_timeout: 10 }, async (chain) => {
    await chain.start('ts');
    const [listens, plain] = [await loggedIn(chain), await loggedIn(chain)];
    await listens.query('LISTEN news');
    await listens.query('BEGIN');
    const { next, recordUntil } = await waitingProcess(chain, 2);
    assert.equal(await ask(plain, 'SELECT 1'), '1');
    assert.equal(await ask(listens, 'SELECT 1'), '1');
    await listens.query('COMMIT');
    await recordUntil('end');
    await next.until('Z');
    await next.sendMessage('Q', cstring('SHUTDOWN;'));
    const reason = 'connection cannot be handed over: new process without support for shared LISTEN';
    assert.equal(await thrownOut(listens), reason);
    assert.equal((await chain.now.waitEnd()).code, 0);
  });
});

it('SUSPEND also stops the clients that a failed reboot has held, until RESUME', async () => {
  await pg.sql('CREATE TABLE written (id int)');
  await withChain({ suspend_timeout: 10 }, async (chain) => {
    await chain.start('ts');
    const [held, busy] = [await loggedIn(chain), await loggedIn(chain)];
    for (const client of [held, busy]) await client.query('LISTEN news');
    await busy.query('BEGIN');
    const admin = await chain.raw();
    await admin.login({ user: 'admin', password: 'admin', database: 'pgbouncer' });
    const { next } = await waitingProcess(chain, 2);
    assert.equal((await admin.query('SUSPEND')).at(-1)?.type, 'Z');
    await next.destroy();
    await chain.now.log.wait(/handover failed, resuming work/);
    await held.sendMessage('Q', cstring('INSERT INTO written VALUES (1)'));
    // what is not to happen has no event
    await new Promise((wake) => setTimeout(wake, 500));
    assert.equal((await pg.sql('SELECT 1 FROM written')).rowCount, 0);
    await admin.query('RESUME');
    await held.until('Z');
    assert.equal((await pg.sql('SELECT 1 FROM written')).rowCount, 1);
    await busy.query('COMMIT');
  });
});

it('the encoding of the notifications stays that of the client that listened first', async () => {
  await withChain({}, async (chain) => {
    await chain.start('ts');
    const [first, other] = [await chain.raw(), await chain.raw()];
    await first.login({ params: { client_encoding: 'UTF8' } });
    await other.login({ params: { client_encoding: 'LATIN1' } });
    const channel = Buffer.from('"caf\u00e9"', 'utf8').toString('latin1');
    await first.sendMessage('Q', Buffer.from(`LISTEN ${channel}\0`, 'latin1'));
    await first.until('Z');
    await other.query('LISTEN plain');
    await chain.reboot('ts');
    await pg.sql("NOTIFY \"caf\u00e9\", 'heard'; NOTIFY plain, 'heard'");
    assert.deepEqual(await payloads(first, 1), ['heard']);
    assert.deepEqual(await payloads(other, 1), ['heard']);
  });
});

it('clients that are to be told of a loss are told by the new process', async () => {
  await withChain({ listen_loss: 'notice' }, async (chain) => {
    await chain.start('ts');
    const client = await loggedIn(chain);
    await client.query('LISTEN news');
    const backends = async (state: string): Promise<number> => {
      const query = `SELECT pid FROM pg_stat_activity WHERE query ${state} AND backend_type = 'client backend'
        AND pid <> pg_backend_pid() AND application_name <> 'test'`;
      return Number((await pg.sql(query)).rows[0].pid);
    };
    // the next listening connection does not answer while its backend is stopped
    assert.equal(await ask(client, "SELECT 'spare'"), 'spare');
    const [listener, spare] = [await backends("LIKE 'LISTEN%'"), await backends("LIKE '%spare%'")];
    process.kill(spare, 'SIGSTOP');
    const next = chain.spawn('ts', ['-R'], { TSBOUNCER_TEST: '1', TSBOUNCER_TAKEOVER_STOP: 'take-ahead' });
    await next.waitStopped();
    const { log } = chain.now;
    const listening = log.text.match(/listens for the clients/g)?.length ?? 0;
    await pg.sql(`SELECT pg_terminate_backend(${listener})`);
    await eventually(
      'the next connection',
      () => (log.text.match(/listens for the clients/g)?.length ?? 0) > listening,
    );
    next.child.kill('SIGCONT');
    await next.waitUp();
    chain.generations.push(next);
    process.kill(spare, 'SIGCONT');
    assert.equal((await client.until('N')).at(-1)?.type, 'N');
    await pg.sql("NOTIFY news, 'heard'");
    assert.deepEqual(await payloads(client, 1), ['heard']);
  });
});

it('after a reboot, a connection to a standby still does not become the listening connection', async () => {
  const app = `host=127.0.0.1,127.0.0.1 port=${standby.port},${pg.port} dbname=postgres user=postgres`;
  const settings = { ...SHARE, default_pool_size: 4, listen_loss: 'notice', server_round_robin: 1 };
  await withRebootChain({ cluster: pg, settings, databases: { app } }, async (chain) => {
    await chain.start('ts');
    const clients = [await chain.raw(), await chain.raw()];
    for (const client of clients) await client.login({ database: 'app' });
    const [listens, other] = clients as [RawClient, RawClient];
    // each has a server of its own, one of each host
    for (const client of clients) await client.query('BEGIN');
    const standbys: RawClient[] = [];
    for (const client of clients) if ((await ask(client, 'SELECT pg_is_in_recovery()')) === 't') standbys.push(client);
    assert.equal(standbys.length, 1);
    const [first, last] = standbys[0] === listens ? [other, listens] : [listens, other];
    await first.query('LISTEN news');
    await first.query('COMMIT');
    await last.query('COMMIT');
    await chain.now.log.wait(/listens for the clients of its pool/);
    await chain.reboot('ts');
    await pg.sql(
      "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%LISTEN \"news\"%' AND state = 'idle'",
    );
    assert.equal((await first.until('N')).at(-1)?.type, 'N');
    await pg.sql("NOTIFY news, 'heard'");
    assert.deepEqual(await payloads(first, 1), ['heard']);
    assert.equal(chain.now.log.count(/LISTEN failed|during recovery/), 0);
  });
});

/** A server that executes LISTEN and UNLISTEN, except the LISTEN of the pooler itself on the channel `bad`. */
async function serveListens({ socket, next }: Visit): Promise<void> {
  socket.write(WELCOME);
  for (let request = await next(); request?.type === 'Q'; request = await next()) {
    const commands = request.body.toString('latin1').match(/\b(?:UN)?LISTEN\b/g) ?? [];
    if (request.body.includes('LISTEN "bad"'))
      socket.write(message('E', cstring('SERROR'), cstring('Mno'), Buffer.alloc(1)));
    else for (const command of commands) socket.write(message('C', cstring(command)));
    socket.write(READY);
  }
}

it('after a reboot, a listening connection whose UNLISTEN failed is not used for anything else', async () => {
  const fake = await FakeServer.start(serveListens);
  const databases = { postgres: `host=127.0.0.1 port=${fake.port}` };
  try {
    await withRebootChain({ cluster: pg, settings: SHARE, databases }, async (chain) => {
      await chain.start('ts');
      const [stays, goes] = [await loggedIn(chain), await loggedIn(chain)];
      await stays.query('LISTEN news');
      await goes.query('LISTEN other');
      await goes.sendMessage('Q', cstring('UNLISTEN other; LISTEN bad'));
      assert.equal(await thrownOut(goes), 'LISTEN failed: no');
      await chain.reboot('ts');
      await stays.query('UNLISTEN news');
      await chain.now.log.wait(/S-\w+: postgres[^\n]* closing because: no client listens any more/);
    });
  } finally {
    await fake.stop();
  }
});

it('a client whose UNLISTEN is answered after the reboot no longer keeps its server', async () => {
  await withChain({ listen_mode: 'pin', default_pool_size: 1 }, async (chain) => {
    await chain.start('ts');
    const [client, other] = [await loggedIn(chain), await loggedIn(chain)];
    await client.query('LISTEN news');
    await client.sendMessage('Q', cstring('SELECT pg_sleep(4)'));
    await client.sendMessage('Q', cstring('UNLISTEN *'));
    await chain.reboot('ts');
    await client.until('Z');
    await client.until('Z');
    assert.equal(await ask(other, 'SELECT 1'), '1');
  });
});
