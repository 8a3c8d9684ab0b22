/*
 * listen_mode = share: one listening server connection for all clients of a pool.
 */

import assert from 'node:assert/strict';
import { type Bouncer, it, PgCluster } from '../harness';
import {
  ask,
  backendsBecome,
  errorIn,
  login,
  noticesIn,
  rowsBecome,
  show,
  start,
  thrownOut,
  withPooler,
} from '../harness/answers';
import { fails } from '../harness/expect';
import { after, before } from '../harness/limits';
import { eventually } from '../harness/machine';
import { bind, EXECUTE, parse, SYNC } from '../harness/prepared-packets';
import { cstring, letters, type Message, message, type RawClient } from '../harness/raw-client';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

const SHARE = { pool_mode: 'transaction', default_pool_size: 2, listen_mode: 'share' };

function withShare(settings: Record<string, string | number>, body: (pooler: Bouncer) => Promise<void>): Promise<void> {
  return withPooler({ cluster: pg, settings: { ...SHARE, ...settings } }, body);
}

function query(text: string): Buffer {
  return message('Q', cstring(text));
}

/** Channel and payload of a notification. */
function read({ body }: Message): string {
  return body.toString('latin1', 4, body.length - 1).replace('\0', ' ');
}

/** Channel and payload of the next notification of an idle client. */
async function heard(client: RawClient): Promise<string> {
  return read((await client.until('A')).at(-1) as Message);
}

/** Number of listening connections of the pooler. */
async function listening(pooler: Bouncer): Promise<number> {
  return (await show(pooler, 'SERVERS', { state: 'listen' })).length;
}

/** Notifies outside the pooler, and checks that each client gets that and nothing before. */
async function reaches(clients: RawClient[], channel: string, payload = 'x'): Promise<void> {
  await pg.sql(`NOTIFY "${channel.replaceAll('"', '""')}", '${payload}'`);
  for (const client of clients) assert.equal(await heard(client), `${channel} ${payload}`);
}

it('one connection serves all clients of a pool, and those that unlisten get nothing', async () => {
  await withShare({}, async (pooler) => {
    const clients = await Promise.all(Array.from({ length: 30 }, () => login(pooler)));
    await Promise.all(clients.map((client) => client.query('LISTEN news')));
    assert.equal(await listening(pooler), 1);
    await reaches(clients, 'news', 'first');
    const [one, two, ...others] = clients as [RawClient, RawClient, ...RawClient[]];
    assert.equal(letters(await one.query('UNLISTEN news')), 'CZ');
    await two.end();
    await reaches(others, 'news', 'second');
    await one.query('LISTEN other');
    await reaches([one], 'other');
    // no client has its own server
    assert.equal((await show(pooler, 'CLIENTS', { database: 'postgres' })).filter(({ link }) => link !== '').length, 0);
    for (const client of [one, ...others]) await client.end();
    await rowsBecome(pooler, 'SERVERS', { state: 'listen' }, 0);
    // the connection is used again, and does not listen any more
    const next = await login(pooler);
    assert.equal(await ask(next, 'SELECT count(*)::text FROM pg_listening_channels()'), '0');
  });
});

it('names are those of PostgreSQL', async () => {
  const long = 'x'.repeat(70);
  const names: [string, string][] = [
    ['News', 'news'],
    ['"News"', 'News'],
    ['"a""b c"', 'a"b c'],
    ['/* a /* b */ */ n1 -- c', 'n1'],
    [long, long.slice(0, 63)],
    [`"${long}"`, long.slice(0, 63)],
    ['"\xc3\xa4"', '\xc3\xa4'],
  ];
  await withShare({}, async (pooler) => {
    for (const [sql, channel] of names) {
      const client = await login(pooler);
      await client.query(`LISTEN ${sql}`);
      const text = Buffer.from(channel, 'latin1').toString();
      await pg.sql(`SELECT pg_notify('${text}', 'x')`);
      assert.equal(await heard(client), `${channel} x`);
      await client.end();
    }
  });
});

it('LISTEN and UNLISTEN take effect at COMMIT, not at ROLLBACK', async () => {
  await withShare({}, async (pooler) => {
    const client = await login(pooler);
    for (const sql of [
      'BEGIN; LISTEN rolled; ROLLBACK',
      'LISTEN failed; SELECT 1/0',
      "SELECT 'LISTEN a'; LISTEN kept; SELECT $$;LISTEN b;$$",
      'BEGIN; UNLISTEN kept; ROLLBACK',
      'BEGIN; LISTEN kept2; COMMIT; BEGIN; LISTEN rolled; ROLLBACK; LISTEN kept3',
    ])
      await client.query(sql);
    for (const sql of ['BEGIN', 'SAVEPOINT a', 'LISTEN kept4', 'ROLLBACK TO a', 'LISTEN kept5', 'COMMIT'])
      await client.query(sql);
    for (const sql of ['BEGIN', 'LISTEN failed', 'SELECT 1/0', 'COMMIT']) await client.query(sql);
    await pg.sql('NOTIFY rolled; NOTIFY failed');
    for (const channel of ['kept', 'kept2', 'kept3', 'kept5']) await reaches([client], channel);
    for (const sql of ['BEGIN', 'UNLISTEN *', 'COMMIT']) await client.query(sql);
    await pg.sql('NOTIFY kept; NOTIFY kept5');
    await client.query('LISTEN last');
    await reaches([client], 'last');
    await client.query('DISCARD ALL');
    await rowsBecome(pooler, 'SERVERS', { state: 'listen' }, 0);
  });
});

it('the extended protocol, and packets sent without waiting for answers', async () => {
  await withShare({}, async (pooler) => {
    const driver = await pooler.connect();
    const seen: string[] = [];
    driver.on('notification', ({ channel, payload }) => seen.push(`${channel} ${payload}`));
    await driver.query({ text: 'LISTEN one', values: [] });
    await driver.query({ name: 'two', text: 'LISTEN two', values: [] });
    await pg.sql("NOTIFY one, 'a'; NOTIFY two, 'b'");
    await eventually('two notifications', async () => seen.length === 2);
    assert.deepEqual(seen, ['one a', 'two b']);
    await driver.query({ text: 'UNLISTEN *', values: [] });
    await rowsBecome(pooler, 'SERVERS', { state: 'listen' }, 0);
    await driver.end();

    const raw = await login(pooler);
    // what follows LISTEN is executed when it is in force: the row and the notification are never both missed
    await raw.send(
      parse('', 'LISTEN three'),
      bind(''),
      EXECUTE,
      SYNC,
      query("SELECT pg_notify('three', 'c')"),
      query('LISTEN four; SELECT 1'),
      query("NOTIFY four, 'd'"),
      parse('', 'BEGIN'),
      bind(''),
      EXECUTE,
      SYNC,
      query('LISTEN five'),
      query('COMMIT'),
      query("NOTIFY five, 'e'"),
    );
    const got: string[] = [];
    for (let ready = 0; ready < 8 || got.length < 3; ) {
      const msg = (await raw.next()) as Message;
      assert.notEqual(msg.type, 'E', JSON.stringify(errorIn([msg])));
      if (msg.type === 'Z') ready++;
      if (msg.type === 'A') got.push(read(msg));
    }
    assert.deepEqual(got, ['three c', 'four d', 'five e']);
  });
});

it('notifications wait until the transaction of a client has ended, in order; its own reach it too', async () => {
  await withShare({}, async (pooler) => {
    const client = await login(pooler);
    await client.query('LISTEN news');
    await client.query('BEGIN');
    for (let i = 0; i < 5; i++) await pg.sql(`NOTIFY news, '${i}'`);
    // the listening connection has got them when another client of the pool has
    const other = await login(pooler);
    await other.query('LISTEN news');
    await reaches([other], 'news', '5');
    assert.equal(letters(await client.query("NOTIFY news, 'own'")), 'CZ');
    assert.equal(letters(await client.query('SELECT 1')), 'TDCZ');
    await client.query('COMMIT');
    for (const payload of ['0', '1', '2', '3', '4', '5', 'own']) assert.equal(await heard(client), `news ${payload}`);
    // UNLISTEN in the transaction in which they wait
    await client.query('LISTEN more');
    await client.query('BEGIN');
    await pg.sql("NOTIFY news, 'unheard'; NOTIFY more, 'heard'");
    for (const payload of ['own', 'unheard']) assert.equal(await heard(other), `news ${payload}`);
    await client.query('UNLISTEN news');
    await client.query('COMMIT');
    assert.equal(await heard(client), 'more heard');
    // a NOTIFY in the transaction of the LISTEN
    await client.query('BEGIN');
    await client.query('LISTEN self');
    await client.query("NOTIFY self, 'same'");
    const answer = await client.query('COMMIT');
    assert.deepEqual(answer.filter(({ type }) => type === 'A').map(read), ['self same']);
    await reaches([client], 'self', 'once');
    const message = await pg.sql("SELECT pg_backend_pid() AS pid, pg_notify('self', 'pid')");
    const heardPid = (await client.until('A')).at(-1)?.body.readInt32BE(0);
    assert.equal(heardPid, message.rows[0].pid);
  });
});

it('listen_loss = disconnect: clients that rely on the lost connection are told by the end of theirs', async () => {
  await withShare({}, async (pooler) => {
    const [idle, busy, plain] = [await login(pooler), await login(pooler), await login(pooler)];
    await idle.query('LISTEN news');
    await busy.query('LISTEN news');
    await busy.query('BEGIN');
    await pg.killBackends("query LIKE '%LISTEN%'");
    const reason = 'notifications may have been lost: the listening server connection has ended';
    assert.equal(await thrownOut(idle), reason);
    // not in the middle of a transaction
    assert.equal(await ask(busy, 'SELECT 1'), '1');
    await busy.query('COMMIT');
    const error = errorIn(await busy.until('E'));
    assert.deepEqual([error?.M, error?.C, error?.S], [reason, '08006', 'FATAL']);
    await plain.query('LISTEN news');
    await reaches([plain], 'news');
  });
});

it('listen_loss = notice: another connection listens, and the clients get a warning', async () => {
  await withShare({ listen_loss: 'notice', server_login_retry: 1 }, async (pooler) => {
    const clients = [await login(pooler), await login(pooler)];
    for (const client of clients) await client.query('LISTEN news; LISTEN "Other"');
    for (let i = 0; i < 3; i++) {
      // not the idle servers, which have run UNLISTEN: the next of them may listen before it is killed, too
      await pg.killBackends(`query LIKE 'LISTEN "%'`);
      for (const client of clients) {
        assert.deepEqual(noticesIn(await client.until('N')), [
          'notifications may have been lost: the listening server connection has ended',
        ]);
      }
      await reaches(clients, 'news', String(i));
      await reaches(clients, 'Other', String(i));
    }
  });
});

it('a client that does not read is disconnected, others get everything', async () => {
  await withShare({ listen_queue_size: 20_000 }, async (pooler) => {
    const [reader, slow, busy] = [await login(pooler), await login(pooler), await login(pooler)];
    for (const client of [reader, slow, busy]) await client.query('LISTEN news');
    slow.pause();
    await busy.query('BEGIN');
    let count = 0;
    const payload = 'x'.repeat(7000);
    for (let left = 3; left > 1; count += 100) {
      await pg.sql(`SELECT pg_notify('news', '${payload}' || i) FROM generate_series(1, 100) i`);
      for (let i = 1; i <= 100; i++) assert.equal(await heard(reader), `news ${payload}${i}`);
      left = (await show(pooler, 'CLIENTS', { database: 'postgres' })).length;
    }
    assert.ok(count > 0);
    await pooler.logWait(/listen_queue_size exceeded: the client does not read its notifications/);
    const error = errorIn(await busy.until('E'));
    assert.deepEqual(
      [error?.C, error?.M],
      ['53400', 'listen_queue_size exceeded: the client does not read its notifications'],
    );
    await reaches([reader], 'news', 'last');
  });
});

it('what cannot be followed, or is too much, ends the client', async () => {
  await withShare({ dirty_session: 'refuse' }, async (pooler) => {
    const unknown = 'the channel of LISTEN is not known (listen_mode = share)';
    for (const sql of [
      `LISTEN news; SELECT '${'x'.repeat(70_000)}'`,
      'LISTEN U&"n"',
      `LISTEN "${'x'.repeat(62)}\u00e4"`,
      'SELECT $$;LISTEN a;$$; LISTEN U&"n"',
    ])
      await fails((await pooler.connect()).query(sql), unknown, '0A000');
    const listener = await pooler.connect();
    await listener.query('LISTEN "\u00e4"');
    const latin = await login(pooler, { params: { client_encoding: 'LATIN1' } });
    await latin.query('LISTEN plain');
    const other = 'client_encoding differs from that of the listening server connection';
    assert.equal(errorIn(await latin.query('LISTEN "\xe4"'))?.M, other);
    const latin2 = await login(pooler, { params: { client_encoding: 'LATIN1' } });
    await latin2.query('LISTEN plain');
    await reaches([latin2], 'plain', 'ascii');
    await pg.sql("NOTIFY plain, '\u00e4'");
    assert.equal(errorIn(await latin2.until('E'))?.M, other);
    await listener.query('UNLISTEN *');
    const many = await pooler.connect();
    await many.query(Array.from({ length: 1000 }, (_, i) => `LISTEN c${i}`).join(';'));
    await many.query('LISTEN c1');
    await fails(many.query('LISTEN c1000'), 'a client may listen on 1000 channels (listen_mode = share)', '54000');
    await rowsBecome(pooler, 'SERVERS', { state: 'listen' }, 0);
    await backendsBecome(pg, "query LIKE '%LISTEN%' AND query NOT LIKE '%UNLISTEN%'", 0);
  });
});

it('a channel that is not ASCII is in the encoding of its clients, whatever the server had before', async () => {
  await withShare({ server_round_robin: 1 }, async (pooler) => {
    const latin = await login(pooler, { params: { client_encoding: 'LATIN1' } });
    const listener = await login(pooler);
    await latin.query('BEGIN');
    await listener.query('BEGIN');
    // its server is the first of the idle ones
    await latin.query('COMMIT');
    const channel = Buffer.from('\u00e4').toString('latin1');
    await listener.query(`LISTEN "${channel}"`);
    await listener.query('COMMIT');
    await pg.sql(`NOTIFY "\u00e4", 'x'`);
    assert.equal(await heard(listener), `${channel} x`);
  });
});

it('limits: the listening connection is beside pool_size, and within max_db_connections', async () => {
  await withShare({ default_pool_size: 1, max_db_connections: 2 }, async (pooler) => {
    const [one, two, three] = [await login(pooler), await login(pooler), await login(pooler)];
    await one.query('BEGIN; SELECT 1; LISTEN news; COMMIT');
    await two.query('BEGIN');
    assert.equal(await listening(pooler), 1);
    await reaches([one], 'news');
    // no server is left for it before the transaction ends
    await start(three, 'LISTEN news');
    await rowsBecome(pooler, 'CLIENTS', { database: 'postgres', state: 'waiting' }, 1);
    await two.query('COMMIT');
    await three.until('Z');
    await reaches([one, three], 'news');
  });
  await withShare({ max_db_connections: 1, query_wait_timeout: 1 }, async (pooler) => {
    const [one, two] = [await login(pooler), await login(pooler)];
    await one.query('LISTEN news');
    await start(two, 'SELECT 1');
    assert.equal(await thrownOut(two), 'query_wait_timeout');
    await reaches([one], 'news');
  });
});
