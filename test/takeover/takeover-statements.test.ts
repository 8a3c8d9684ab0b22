/*
 * What clients have prepared, and what of that is under way, goes on in the new process.
 */

import assert from 'node:assert/strict';
import { it, PgCluster } from '../harness';
import { after, before } from '../harness/limits';
import { parse, SYNC, use } from '../harness/prepared-packets';
import { cstring, message, type RawClient } from '../harness/raw-client';
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
