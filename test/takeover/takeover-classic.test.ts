/*
 * The classic exchange and those who are in the middle of a packet, of an answer, of the queue or of their login: whom it
 * keeps because the old process waits for them, and whom it closes at suspend_timeout. From and to the C original, and
 * between two of them for comparison.
 */

import { it, itUnless, noOriginal, PgCluster } from '../harness';
import type { Actor, Stage } from '../harness/actor';
import { castOf, meanwhile, play } from '../harness/actors';
import { type Kind, withPlace } from '../harness/reboot-chain';
import { castFor, type Mode, optionsOf } from '../harness/reboot-fixtures';
import { closedCast, keptCast } from '../harness/suspended-actors';

let pg: PgCluster | null = null;

async function cluster(): Promise<PgCluster> {
  pg ??= await PgCluster.start();
  return pg;
}

/** One classic handover with those actors, and with the ordinary ones beside them. */
async function classic(
  mode: Mode,
  from: Kind,
  to: Kind,
  make: (stage: Stage) => Actor[],
  timeout: number,
): Promise<void> {
  const options = optionsOf(await cluster(), mode, { suspend_timeout: timeout });
  await withPlace(options, async (place) => {
    await place.start(from);
    const cast = castFor(place, mode, (stage) => [...castOf(stage, false), ...make(stage)]);
    await play(cast, async () => {
      await place.reboot(to, {}, () => meanwhile(cast));
    });
  });
}

const itC = itUnless(noOriginal);
const ways: [string, Kind, Kind][] = [
  ['the C original to itself, for comparison', 'c', 'c'],
  ['the C original to tsbouncer', 'c', 'ts'],
  ['tsbouncer to the C original', 'ts', 'c'],
];
for (const [name, from, to] of ways) {
  for (const mode of ['session', 'transaction'] as const) {
    itC(`who is in the middle of a packet and moves on is kept: ${name}, pool_mode ${mode}`, () =>
      classic(mode, from, to, keptCast, 15),
    );
    itC(`who does not is closed at suspend_timeout, and nobody else: ${name}, pool_mode ${mode}`, () =>
      classic(mode, from, to, closedCast, 4),
    );
  }
}

it('the test server stops', async () => {
  await pg?.stop();
});
