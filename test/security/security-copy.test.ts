/*
 * The fix of PgBouncer 1.22.1 (2024): after a failed COPY, requests were left behind, and the answers of one client
 * went to another. In PgBouncer a client that does not wait for the answers of a COPY can still cause wrong counts. The
 * server is then reused while it still works for the last client. Here a server is released only when every request is
 * answered and every packet is complete.
 */

import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { type Bouncer, it, PgCluster } from '../harness';
import { withAttackedPooler } from '../harness/attacked-pooler';
import { after, before } from '../harness/limits';
import { bind, EXECUTE, FLUSH, parse, SYNC } from '../harness/prepared-packets';
import {
  cstring,
  int16,
  int32,
  letters,
  type Message,
  message,
  type RawClient,
  rowValues,
} from '../harness/raw-client';

let cluster: PgCluster;

before(async () => {
  cluster = await PgCluster.start();
  await cluster.sql('CREATE TABLE copied (n int)');
});

after(() => cluster?.stop());

const row = (answer: Message[]) => {
  const found = answer.find((msg) => msg.type === 'D');
  return found === undefined ? null : rowValues(found);
};

const sql = (text: string) => message('Q', cstring(text));
const data = (rows: string) => message('d', Buffer.from(rows));
const END = message('c');
const COPY = [
  message('P', cstring(''), cstring('COPY copied FROM STDIN'), int16(0)),
  message('B', cstring(''), cstring(''), int16(0), int16(0), int16(0)),
  message('E', cstring(''), int32(0)),
];
/** An answer that is still outstanding when a pooler with wrong counts considers the server idle. */
const POISON = sql("SELECT 'poison', pg_sleep(0.15)");
/** The beginning of a packet whose rest never arrives. */
const BEGUN = Buffer.from('\0\0\x04\0begun', 'latin1');

/** The messages of the attacker: the first `begins` messages, and the others once COPY has begun. */
const POISONED: Record<string, { bytes: Buffer[]; begins: number; stays?: boolean }> = {
  'a COPY': { bytes: [sql('COPY copied FROM STDIN'), data('1\n'), END, POISON], begins: 1 },
  'a COPY that fails': { bytes: [sql('COPY copied FROM STDIN'), data('x\n'), END, POISON], begins: 1 },
  'a COPY that fails, with a Sync inside': {
    bytes: [sql('COPY copied FROM STDIN'), data('x\n'), SYNC, POISON],
    begins: 1,
    stays: true,
  },
  'an extended COPY': { bytes: [...COPY, data('1\n'), END, SYNC, POISON], begins: 3 },
  'an extended COPY with a Sync in front': { bytes: [...COPY, SYNC, data('1\n'), END, SYNC, POISON], begins: 4 },
  'an extended COPY that fails': { bytes: [...COPY, data('x\n'), END, SYNC, POISON], begins: 3 },
  'an extended COPY that fails, with a Sync inside': {
    bytes: [...COPY, data('x\n'), SYNC, END, SYNC, POISON],
    begins: 3,
  },
  'two extended COPYs, of which one fails': {
    bytes: [...COPY, SYNC, data('x\n'), SYNC, ...COPY, data('1\n'), END, SYNC, POISON],
    begins: 4,
  },
  'half a Flush': { bytes: [sql('SELECT 1'), Buffer.from('H'), BEGUN], begins: 0, stays: true },
  'half a row behind a COPY that fails': {
    bytes: [sql('COPY copied FROM STDIN'), data('x\n'), Buffer.from('d'), BEGUN],
    begins: 1,
    stays: true,
  },
};

/** Runs the attack and checks the answers to the next client of the server. */
async function poison(bouncer: Bouncer, name: string, way: 'stays' | 'leaves' | 'waits'): Promise<void> {
  const { bytes, begins } = POISONED[name] as { bytes: Buffer[]; begins: number };
  const attacker = await bouncer.raw();
  await attacker.login();
  const victim = await bouncer.raw();
  await victim.login();
  if (way === 'waits') {
    await attacker.send(...bytes.slice(0, begins), message('H'));
    await attacker.until('G');
    await attacker.send(...bytes.slice(begins));
  } else {
    await attacker.send(...bytes);
  }
  const asked = victim.query("SELECT 'mine'");
  if (way === 'leaves') {
    await attacker.until('Z');
    attacker.socket.destroy();
  }
  assert.deepEqual(row(await asked), ['mine'], `${name}, ${way}`);
  assert.deepEqual(row(await victim.query("SELECT 'mine too'")), ['mine too'], `${name}, ${way}`);
  await attacker.destroy();
  await victim.end();
}

it('1.22.1: no client can leave an answer or a partial packet for the next client of a server', async () => {
  await withAttackedPooler(
    cluster,
    { settings: { pool_mode: 'transaction', default_pool_size: 1 } },
    async (bouncer) => {
      for (const [name, { begins, stays }] of Object.entries(POISONED)) {
        await poison(bouncer, name, 'leaves');
        // the server stays with the attacker until the attacker disconnects
        if (stays === true) continue;
        await poison(bouncer, name, 'stays');
        if (begins > 0) await poison(bouncer, name, 'waits');
      }
    },
  );
});

/** Runs `body` with two clients of a pooler that has one server. */
async function withTwoClients(
  settings: Record<string, number | string>,
  body: (client: RawClient, next: RawClient, bouncer: Bouncer) => Promise<void>,
): Promise<void> {
  const all = { pool_mode: 'transaction', default_pool_size: 1, ...settings };
  await withAttackedPooler(cluster, { settings: all }, async (bouncer) => {
    const [client, next] = [await bouncer.raw(), await bouncer.raw()];
    for (const each of [client, next]) await each.login();
    await body(client, next, bouncer);
    for (const each of [client, next]) await each.destroy();
  });
}

async function failCopy(client: RawClient, ...behind: Buffer[]): Promise<void> {
  await client.send(sql('COPY copied FROM STDIN'));
  await client.until('G');
  await client.send(Buffer.concat([data('x\n'), ...behind]));
  assert.equal(letters(await client.until('Z')), 'EZ');
}

it('1.22.1: a failed COPY releases the server, whether its client ends it or not', () =>
  withTwoClients({}, async (client, next) => {
    for (const rest of [[], [data('2\n'), END], [END], [message('f', cstring('never mind'))], [sql('SELECT 1')]]) {
      await failCopy(client);
      await client.send(...rest);
      assert.deepEqual(row(await next.query("SELECT 'mine'")), ['mine']);
      if (rest[0]?.[0] === 0x51) await client.until('Z');
    }
  }));

/** A packet of a COPY that has failed, in two parts. */
const LATE = data('a row that is not wanted'.repeat(10));
const LATE_FRONT = LATE.subarray(0, 20);
const LATE_REST = LATE.subarray(20);

for (const [how, end] of [
  ['Terminate', message('X')],
  ['a broken header', Buffer.from([1, 0, 0, 0, 4])],
] as const)
  it(`the rest of a packet reaches the server, if ${how} follows it at once`, () =>
    withTwoClients({}, async (client, next) => {
      await failCopy(client, LATE_FRONT);
      await client.send(Buffer.concat([LATE_REST, end]));
      assert.deepEqual(row(await next.query("SELECT 'mine'")), ['mine']);
    }));

it('idle_transaction_timeout ends a client that stops in the middle of a packet of a failed COPY', () =>
  withTwoClients({ idle_transaction_timeout: 1 }, async (client, next, bouncer) => {
    await failCopy(client, LATE_FRONT);
    assert.deepEqual(row(await next.query("SELECT 'mine'")), ['mine']);
    await bouncer.logWait(/closing because: idle transaction timeout/);
  }));

it('a packet of COPY outside of a COPY does not keep a pipeline from being answered', () =>
  withTwoClients({}, async (client) => {
    const named = (text: string) => message('P', cstring('twice'), cstring(text), int16(0));
    for (const stray of [END, data('x\n'), message('f', cstring('never mind'))]) {
      await client.send(named('SELECT 1'), stray, named('SELECT 2'), SYNC);
      assert.equal(letters(await client.until('Z')), '1EZ');
      await client.send(message('C', Buffer.from('S'), cstring('twice')), SYNC);
      await client.until('Z');
    }
  }));

const EMPTY_QUERY = [parse('', ''), bind(''), EXECUTE, FLUSH];
/** Answered long after the ReadyForQuery that precedes it. */
const LATE_ANSWER = [bind('slow'), EXECUTE, SYNC];

/*
 * statement_timeout counts from a Parse on. If it has expired when PostgreSQL reads a packet of COPY outside of a COPY, it
 * sends an error and ReadyForQuery, and then executes what follows.
 */
for (const [name, begin] of Object.entries({
  'a Parse': [parse('', 'SELECT 1'), FLUSH],
  'a Parse that is not answered yet': [parse('', 'SELECT 1')],
  'an Execute of an empty query': EMPTY_QUERY,
  'an Execute of an empty query that is not answered yet': EMPTY_QUERY.slice(0, -1),
  'an Execute that is suspended': [parse('', 'VALUES (1), (2)'), bind(''), message('E', cstring(''), int32(1))],
  'a COPY': [...COPY, data('1\n'), END, parse('', 'SELECT 1')],
}))
  for (const mode of ['transaction', 'session'])
    it(`a packet of COPY after ${name} and statement_timeout leaves no answer behind (${mode} mode)`, () =>
      withTwoClients({ pool_mode: mode }, async (client, next) => {
        await client.query('SET statement_timeout = 100');
        await client.send(parse('slow', "SELECT 'poison' FROM pg_sleep(0.08)"), SYNC);
        await client.until('Z');
        await client.send(...begin);
        await sleep(200);
        await client.send(data('x'), ...LATE_ANSWER);
        const asked = next.query("SELECT 'mine'");
        await client.until('Z');
        if (mode === 'session') await client.destroy();
        assert.deepEqual(row(await asked), ['mine']);
        assert.deepEqual(row(await next.query("SELECT 'mine too'")), ['mine too']);
      }));
