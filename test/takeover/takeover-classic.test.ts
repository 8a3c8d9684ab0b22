/*
 * The classic exchange with clients in the middle of a packet, an answer, the queue or their login: which clients it
 * keeps because the old process waits for them, and which it closes at suspend_timeout. From and to PgBouncer, and from
 * PgBouncer to PgBouncer for comparison.
 */

import { itUnless, noOriginal, PgCluster } from '../harness';
import type { Actor, ActorContext } from '../harness/actor';
import { castOf, meanwhile, play } from '../harness/actors';
import { after, before } from '../harness/limits';
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
