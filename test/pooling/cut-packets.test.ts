/*
 * Connections that end while a packet is being forwarded. The other side must not get anything else: an error would be
 * read as the rest of a row, and Terminate as the rest of a query.
 */

import assert from 'node:assert/strict';
import { type Bouncer, eventually, it } from '../harness';
import { login, withPooler } from '../harness/answers';
import { FakeServer, READY, type Visit, WELCOME } from '../harness/hostile/fake-server';
import { describe } from '../harness/limits';
import { cstring, int16, int32, message, type RawClient } from '../harness/raw-client';

const COLUMNS = message(
  'T',
  int16(1),
  cstring('name'),
  int32(0),
  int16(0),
  int32(25),
  int16(0xffff),
  int32(-1),
  int16(0),
);
const ROW = message('D', int16(1), int32(90), Buffer.alloc(90, 'r'));
/** an answer whose last row is not complete: errors of the pooler are longer than what is missing */
const PART_OF_ANSWER = Buffer.concat([COLUMNS, ROW, ROW.subarray(0, -20)]);
/** long enough to be forwarded in parts */
const QUERY = message('Q', cstring(`DELETE FROM accounts WHERE name = '${'a'.repeat(1_000_000)}'`));
/** Terminate is longer than what is missing */
const PART_OF_QUERY = QUERY.subarray(0, -2);

type Settings = Record<string, number | string>;

interface Scene {
  pooler: Bouncer;
  client: RawClient;
  server: Visit;
  /** what the server has received since its login */
  received: () => Buffer;
}

/** Runs `body` with one client, and a server that logs in and says nothing more by itself. */
async function scene(settings: Settings, body: (scene: Scene) => Promise<void>): Promise<void> {
  const visits: Visit[] = [];
  let received: Buffer = Buffer.alloc(0);
  const fake = await FakeServer.start(async (visit) => {
    visits.push(visit);
    visit.socket.on('data', (bytes: Buffer) => {
      received = Buffer.concat([received, bytes]);
    });
    visit.socket.write(WELCOME);
    await new Promise((settle) => visit.socket.once('close', settle));
  });
  const databases = { app: `host=127.0.0.1 port=${fake.port} max_protocol_version=3.0 min_pool_size=1` };
  const fixed = { pool_mode: 'transaction', server_tls_sslmode: 'disable', server_check_delay: 600 };
  try {
    await withPooler({ databases, settings: { ...fixed, ...settings } }, async (pooler) => {
      const client = await login(pooler, { database: 'app' });
      await eventually('a server', () => visits.length > 0);
      await body({ pooler, client, server: visits[0] as Visit, received: () => received });
    });
  } finally {
    await fake.stop();
  }
}

describe('a client that has received a part of a row gets nothing else', () => {
  const ends: [string, Settings, (scene: Scene) => Promise<unknown> | unknown, RegExp][] = [
    ['when query_timeout is over', { query_timeout: 1 }, () => {}, /pooler error: query timeout/],
    ['when its database is killed', {}, ({ pooler }) => pooler.admin('KILL app'), /pooler error: database removed/],
    [
      'when its server crashes',
      {},
      ({ server }) => server.socket.resetAndDestroy(),
      /pooler error: server conn crashed\?/,
    ],
    ['when its server ends', {}, ({ server }) => server.socket.end(), /pooler error: server conn crashed\?/],
  ];
  for (const [when, settings, end, logged] of ends) {
    it(when, () =>
      scene(settings, async (stage) => {
        await stage.client.send(QUERY);
        await eventually('the query', () => stage.received().length === QUERY.length);
        stage.server.socket.write(PART_OF_ANSWER);
        const answer = await stage.client.bytes(PART_OF_ANSWER.length);
        assert.deepEqual(answer, PART_OF_ANSWER);
        await end(stage);
        assert.equal((await stage.client.rest()).toString('latin1'), '');
        await stage.pooler.logWait(logged);
      }),
    );
  }

  it('gets the error if its last row is complete', () =>
    scene({ query_timeout: 1 }, async ({ client, server, received }) => {
      await client.send(QUERY);
      await eventually('the query', () => received().length === QUERY.length);
      server.socket.write(Buffer.concat([COLUMNS, ROW]));
      const answer = await client.until('E');
      assert.equal(answer.map((msg) => msg.type).join(''), 'TDE');
    }));

  it('gets the rest of the row and then the error, if the reason for the error follows the row', () =>
    scene({}, async ({ client, server, received }) => {
      await client.send(QUERY);
      await eventually('the query', () => received().length === QUERY.length);
      server.socket.write(PART_OF_ANSWER);
      await client.bytes(PART_OF_ANSWER.length);
      server.socket.write(Buffer.concat([ROW.subarray(-20), ROW, message('!')]));
      assert.deepEqual(await client.bytes(20), ROW.subarray(-20));
      assert.equal((await client.until('E')).at(-1)?.type, 'E');
    }));

  it('an unknown packet in the form of a startup packet is not forwarded', () =>
    scene({}, async ({ pooler, client, server, received }) => {
      await client.send(message('Q', cstring('SELECT 1')));
      await eventually('the query', () => received().length > 0);
      server.socket.write(Buffer.concat([int32(12), int32(80877102), int32(7)]));
      assert.equal((await client.until('E')).length, 1);
      await pooler.logWait(/unknown pkt: '!'/);
    }));
});

describe('a server that has received a part of a query gets nothing else', () => {
  const ends: [string, Settings, (scene: Scene) => Promise<unknown> | unknown][] = [
    ['when the client leaves', {}, ({ client }) => client.socket.end()],
    ['when the client crashes', {}, ({ client }) => client.socket.resetAndDestroy()],
    ['when query_timeout is over', { query_timeout: 1 }, () => {}],
    ['when the database is killed', {}, ({ pooler }) => pooler.admin('KILL app')],
  ];
  for (const [when, settings, end] of ends) {
    it(when, () =>
      scene(settings, async (stage) => {
        await stage.client.send(PART_OF_QUERY);
        await eventually('the part', () => stage.received().length >= PART_OF_QUERY.length);
        const ended = new Promise((settle) => stage.server.socket.once('close', settle));
        await end(stage);
        await ended;
        assert.deepEqual(stage.received(), PART_OF_QUERY);
      }),
    );
  }

  it('when the client has changed the session in the same request', () =>
    scene({ dirty_session: 'refuse' }, async ({ client, server, received }) => {
      const requests = Buffer.concat([message('Q', cstring('SET work_mem = 1000')), PART_OF_QUERY]);
      await client.send(requests);
      await eventually('the part', () => received().length >= requests.length);
      const ended = new Promise((settle) => server.socket.once('close', settle));
      server.socket.write(Buffer.concat([message('C', cstring('SET')), READY]));
      await ended;
      assert.deepEqual(received(), requests);
    }));

  it('gets the rest of the query, if Terminate follows it at once', () =>
    scene({}, async ({ client, server, received }) => {
      await client.send(PART_OF_QUERY);
      await eventually('the part', () => received().length >= PART_OF_QUERY.length);
      const ended = new Promise((settle) => server.socket.once('close', settle));
      await client.send(Buffer.concat([QUERY.subarray(-2), message('X')]));
      await ended;
      assert.deepEqual(received(), Buffer.concat([QUERY, message('X')]));
    }));

  it('a query with Terminate right behind it is executed, as by PostgreSQL', () =>
    scene({}, async ({ client, server, received }) => {
      const query = message('Q', cstring('DELETE FROM accounts'));
      const ended = new Promise((settle) => server.socket.once('close', settle));
      await client.send(Buffer.concat([query, message('X')]));
      await ended;
      assert.deepEqual(received(), Buffer.concat([query, message('X')]));
    }));

  it('a server whose query is complete gets Terminate', () =>
    scene({}, async ({ client, server, received }) => {
      await client.send(QUERY);
      await eventually('the query', () => received().length >= QUERY.length);
      const ended = new Promise((settle) => server.socket.once('close', settle));
      client.socket.end();
      await ended;
      assert.deepEqual(received(), Buffer.concat([QUERY, message('X')]));
    }));
});
