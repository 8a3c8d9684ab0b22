/*
 * A new process takes over while clients are in the middle of everything: nobody loses a byte. tsbouncer to tsbouncer with
 * all that the full handover carries; to and from the C original with what its rows carry.
 */

import assert from 'node:assert/strict';
import { eventually, it, itUnless, noOriginal, PgCluster } from '../harness';
import { castOf, play } from '../harness/actors';
import { type Kind, type RebootChain, withPlace } from '../harness/reboot-chain';
import { castFor, type Mode, optionsOf } from '../harness/reboot-fixtures';

let pg: PgCluster | null = null;

async function cluster(): Promise<PgCluster> {
  pg ??= await PgCluster.start();
  return pg;
}

/** Starts of server processes so far, as PostgreSQL's own log counts them. */
function backendStarts(server: PgCluster): number {
  return server.log.count(/connection authorized: user=postgres database=\w+ *\n/);
}

interface Way {
  from: Kind;
  via: Kind[];
}

async function matrix(mode: Mode, way: Way): Promise<void> {
  const server = await cluster();
  const full = [way.from, ...way.via].every((kind) => kind === 'ts');
  const options = optionsOf(server, mode, full ? { track_extra_parameters: 'IntervalStyle' } : {});
  await withPlace(options, async (place: RebootChain) => {
    await place.start(way.from);
    const cast = castFor(place, mode, (stage) => castOf(stage, full));
    await play(cast, async () => {
      await eventually('every query to have its server', async () => {
        const pools = (await place.show('POOLS')).filter((row) => row.database === 'postgres');
        return pools.every((row) => Number(row.sv_login) === 0 && Number(row.cl_waiting) === 0);
      });
      const before = backendStarts(server);
      for (const kind of way.via) await place.reboot(kind);
      assert.equal(backendStarts(server), before, 'a reboot opened server connections');
    });
    if (!full) return;
    const warnings = place.generations.flatMap((one) =>
      one.log.text.split('\n').filter((line) => / (WARNING|ERROR|FATAL) /.test(line)),
    );
    assert.deepEqual(warnings, []);
  });
}

for (const mode of ['session', 'transaction'] as const) {
  it(`tsbouncer to tsbouncer, twice, pool_mode ${mode}`, () => matrix(mode, { from: 'ts', via: ['ts', 'ts'] }));
}

const itC = itUnless(noOriginal);
for (const mode of ['session', 'transaction'] as const) {
  itC(`the C original to tsbouncer, pool_mode ${mode}`, () => matrix(mode, { from: 'c', via: ['ts'] }));
  itC(`tsbouncer to the C original, pool_mode ${mode}`, () => matrix(mode, { from: 'ts', via: ['c'] }));
  itC(`the C original to tsbouncer to tsbouncer to the C original, pool_mode ${mode}`, () =>
    matrix(mode, { from: 'c', via: ['ts', 'ts', 'c'] }),
  );
}

it('the test server stops', async () => {
  await pg?.stop();
});
