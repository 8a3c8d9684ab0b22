/*
 * The classic exchange with clients in the middle of a packet, an answer, the queue or their login: which clients it
 * keeps because the old process waits for them, and which it closes at suspend_timeout. From and to PgBouncer, and from
 * PgBouncer to PgBouncer for comparison.
 */

import assert from 'node:assert/strict';
import { eventually, itUnless, noOriginal, PgCluster } from '../harness';
import type { Actor, ActorContext } from '../harness/actor';
import { castOf, meanwhile, play } from '../harness/actors';
import { ask } from '../harness/answers';
import { after, before } from '../harness/limits';
import { cstring, letters } from '../harness/raw-client';
import { type Kind, withRebootChain } from '../harness/reboot-chain';
import { castFor, type Mode, optionsOf } from '../harness/reboot-fixtures';
import { closedCast, keptCast } from '../harness/suspended-actors';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(async () => {
  await pg.stop();
});

/** Runs one classic handover with the given actors and the ordinary actors. */
async function classic(
  mode: Mode,
  from: Kind,
  to: Kind,
  make: (context: ActorContext) => Actor[],
  timeout: number,
): Promise<void> {
  const options = optionsOf(pg, mode, { suspend_timeout: timeout });
  await withRebootChain(options, async (chain) => {
    await chain.start(from);
    const cast = castFor(chain, mode, (context) => [...castOf(context, false), ...make(context)]);
    await play(cast, async () => {
      await chain.reboot(to, {}, () => meanwhile(cast));
    });
  });
}

const itC = itUnless(noOriginal);
const ways: [string, Kind, Kind][] = [
  ['PgBouncer to PgBouncer, for comparison', 'c', 'c'],
  ['PgBouncer to tsbouncer', 'c', 'ts'],
  ['tsbouncer to PgBouncer', 'ts', 'c'],
];
for (const [name, from, to] of ways) {
  for (const mode of ['session', 'transaction'] as const) {
    itC(`the classic exchange keeps clients that complete their packets in time: ${name}, pool_mode ${mode}`, () =>
      classic(mode, from, to, keptCast, 15),
    );
    itC(`suspend_timeout closes only the clients that make no progress: ${name}, pool_mode ${mode}`, () =>
      classic(mode, from, to, closedCast, 4),
    );
  }
}

for (const mode of ['session', 'transaction'] as const) {
  itC(`a query that runs during a takeover from PgBouncer is no idle transaction, pool_mode ${mode}`, () =>
    withRebootChain({ cluster: pg, settings: { pool_mode: mode, idle_transaction_timeout: 1 } }, async (chain) => {
      await chain.start('c');
      const [busy, idle] = [await chain.raw(), await chain.raw()];
      for (const client of [busy, idle]) {
        await client.login();
        assert.equal(await ask(client, 'SELECT 1'), '1');
      }
      await busy.sendMessage('Q', cstring('SELECT pg_sleep(4), 5'));
      const running = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
      await eventually('the query to run', async () => (await pg.sql(running)).rowCount === 1);
      await chain.reboot('ts');
      assert.equal(letters(await busy.until('ZE')), 'TDCZ');
      for (const client of [busy, idle]) assert.equal(await ask(client, 'SELECT 1'), '1');
      for (const client of [busy, idle]) await client.end();
    }),
  );
}

itC('after a takeover from PgBouncer, a session that is not in a transaction has no transaction_timeout', () =>
  withRebootChain({ cluster: pg, settings: { pool_mode: 'session' } }, async (chain) => {
    await chain.start('c');
    const client = await chain.raw();
    await client.login();
    assert.equal(await ask(client, 'SELECT 1'), '1');
    chain.write({ settings: { transaction_timeout: 1 } });
    await chain.reboot('ts');
    await pg.sql('SELECT pg_sleep(2.5)');
    assert.equal(await ask(client, 'SELECT 1'), '1');
    await client.end();
  }),
);
