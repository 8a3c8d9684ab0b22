/*
 * What clients have prepared, and what of that is under way, goes on in the new process.
 */

import assert from 'node:assert/strict';
import { it, itUnless, noOriginal, PgCluster } from '../harness';
import { ask, errorIn } from '../harness/answers';
import { after, before } from '../harness/limits';
import { bind, EXECUTE, FLUSH, parse, prepare, SYNC, use } from '../harness/prepared-packets';
import { cstring, letters, type Message, message, type RawClient, rowValues } from '../harness/raw-client';
import { type RebootChain, withRebootChain } from '../harness/reboot-chain';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

const TRANSACTION = { pool_mode: 'transaction', default_pool_size: 1 };

/** Runs `body` with a pooler of one server connection, and one client. */
function withClient(
  body: (client: RawClient, chain: RebootChain) => Promise<void>,
  more: Record<string, number> = {},
): Promise<void> {
  return withRebootChain({ cluster: pg, settings: { ...TRANSACTION, ...more } }, async (chain) => {
    await chain.start('ts');
    const client = await chain.raw();
    await client.login();
    await body(client, chain);
  });
}

function textIn(answer: Message[]): string {
  const row = answer.find((msg) => msg.type === 'D');
  return row === undefined ? (errorIn(answer)?.M ?? letters(answer)) : (rowValues(row)[0] ?? 'null');
}

function tagIn(answer: Message[]): string {
  const complete = answer.find((msg) => msg.type === 'C');
  return complete === undefined
    ? (errorIn(answer)?.M ?? letters(answer))
    : complete.body.toString('latin1', 0, complete.body.length - 1);
}

/** Too long to be kept by the pooler. */
const LONG_QUERY = `SELECT length('${'x'.repeat(100_000)}')`;

it('a long unnamed statement whose Bind follows after the reboot is used', () =>
  withClient(async (client, chain) => {
    // in a pipeline
    await client.send(parse('', LONG_QUERY), FLUSH);
    assert.equal(letters(await client.until('1E')), '1');
    await chain.reboot('ts');
    await client.send(bind(''), EXECUTE, SYNC);
    assert.equal(textIn(await client.until('Z')), '100000');
    // in a transaction
    await client.query('BEGIN');
    await client.send(parse('', LONG_QUERY), SYNC);
    assert.equal(letters(await client.until('Z')), '1Z');
    await chain.reboot('ts');
    await client.send(bind(''), EXECUTE, SYNC);
    assert.equal(textIn(await client.until('Z')), '100000');
    await client.query('COMMIT');
  }));

it('an unnamed DEALLOCATE that is executed after the reboot frees the name', () =>
  withClient(async (client, chain) => {
    assert.equal(await prepare(client, 'one', 'SELECT 1'), '1Z');
    await client.send(parse('', 'DEALLOCATE one'), SYNC);
    assert.equal(letters(await client.until('Z')), '1Z');
    await chain.reboot('ts');
    await client.send(bind(''), EXECUTE, SYNC);
    assert.equal(tagIn(await client.until('Z')), 'DEALLOCATE');
    assert.equal(await prepare(client, 'one', 'SELECT 2'), '1Z');
    assert.equal(await use(client, 'one'), '2');
  }));

it('a reboot with many different statements takes no longer than one with few', () =>
  withClient(
    async (client, chain) => {
      const COUNT = 40_000;
      for (let from = 0; from < COUNT; from += 1000) {
        const packets = Array.from({ length: 1000 }, (_, i) => parse(`s${from + i}`, `SELECT ${from + i}`));
        await client.send(...packets, SYNC);
        await client.until('Z');
      }
      await chain.reboot('ts');
      assert.equal(await use(client, `s${COUNT - 1}`), String(COUNT - 1));
    },
    { suspend_timeout: 2 },
  ));

it('a long pipeline under way does not keep the new process waiting', () =>
  withClient(async (client, chain) => {
    await client.sendMessage('Q', cstring('SELECT pg_sleep(3)'));
    await client.send(parse('one', 'SELECT 1'));
    const executes = Buffer.concat(Array.from({ length: 1000 }, () => message('E', cstring('none'), Buffer.alloc(4))));
    for (let i = 0; i < 100; i++) await client.send(executes);
    await client.send(SYNC);
    await chain.reboot('ts');
    for (let i = 0; i < 2; i++) await client.until('Z');
    assert.equal(await use(client, 'one'), '1');
  }));

itUnless(noOriginal)('statements are prepared on servers that have those of PgBouncer', () =>
  withRebootChain({ cluster: pg, settings: TRANSACTION }, async (chain) => {
    await chain.start('c');
    const client = await chain.raw();
    await client.login();
    // as versions from 1.21 on name them
    for (const n of [1, 2]) await ask(client, `PREPARE "PGBOUNCER_${n}" AS SELECT ${n}`);
    const backend = await ask(client, 'SELECT pg_backend_pid()');
    await chain.reboot('ts');
    for (const n of [11, 12]) {
      assert.equal(await prepare(client, `after${n}`, `SELECT ${n}`), '1Z');
      assert.equal(await use(client, `after${n}`), String(n));
    }
    assert.equal(await ask(client, 'SELECT pg_backend_pid()'), backend);
  }),
);
