/*
 * A takeover while clients are in the middle of all kinds of work: no client loses a byte. Between tsbouncer processes
 * with the state that the full handover carries, to and from PgBouncer with the state that the rows of SHOW FDS carry.
 */

import assert from 'node:assert/strict';
import { eventually, it, itUnless, noOriginal, PgCluster } from '../harness';
import { castOf, play } from '../harness/actors';
import { after, before } from '../harness/limits';
import { type Kind, otherVersion, type RebootChain, withRebootChain } from '../harness/reboot-chain';
import { castFor, type Mode, optionsOf } from '../harness/reboot-fixtures';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(async () => {
  await pg.stop();
});

/** Number of server processes started so far, according to PostgreSQL's log. */
function backendStarts(server: PgCluster): number {
  return server.log.count(/connection authorized: user=postgres database=\w+ *\n/);
}

interface Way {
  from: Kind;
  via: Kind[];
}

async function matrix(mode: Mode, way: Way): Promise<void> {
  const full = [way.from, ...way.via].every((kind) => kind !== 'c');
  const options = optionsOf(pg, mode, full ? { track_extra_parameters: 'IntervalStyle' } : {});
  await withRebootChain(options, async (chain: RebootChain) => {
    await chain.start(way.from);
    const cast = castFor(chain, mode, (context) => castOf(context, full));
    await play(cast, async () => {
      await eventually('every query to have its server', async () => {
        const pools = (await chain.show('POOLS')).filter((row) => row.database === 'postgres');
        return pools.every((row) => Number(row.sv_login) === 0 && Number(row.cl_waiting) === 0);
      });
      const before = backendStarts(pg);
      for (const kind of way.via) await chain.reboot(kind);
      assert.equal(backendStarts(pg), before, 'a reboot opened server connections');
    });
    if (!full) return;
    const warnings = chain.generations.flatMap((one) =>
      one.log.text.split('\n').filter((line) => / (WARNING|ERROR|FATAL) /.test(line)),
    );
    assert.deepEqual(warnings, []);
  });
}

for (const mode of ['session', 'transaction'] as const) {
  it(`two takeovers between tsbouncer processes lose no byte, pool_mode ${mode}`, () =>
    matrix(mode, { from: 'ts', via: ['ts', 'ts'] }));
}

// with TSBOUNCER_OTHER=/path/to/main.js: an upgrade from another version, and the way back
if (otherVersion !== null) {
  for (const mode of ['session', 'transaction'] as const) {
    it(`an upgrade from another version and the way back lose no byte, pool_mode ${mode}`, () =>
      matrix(mode, { from: 'other', via: ['ts', 'other', 'ts'] }));
  }
}

const itC = itUnless(noOriginal);
for (const mode of ['session', 'transaction'] as const) {
  itC(`a takeover from PgBouncer to tsbouncer loses no byte, pool_mode ${mode}`, () =>
    matrix(mode, { from: 'c', via: ['ts'] }),
  );
  itC(`a takeover from tsbouncer to PgBouncer loses no byte, pool_mode ${mode}`, () =>
    matrix(mode, { from: 'ts', via: ['c'] }),
  );
  itC(`takeovers from PgBouncer to tsbouncer, to tsbouncer and back lose no byte, pool_mode ${mode}`, () =>
    matrix(mode, { from: 'c', via: ['ts', 'ts', 'c'] }),
  );
}
