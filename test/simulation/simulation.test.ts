/*
 * Runs the simulation of test/simulation for a limited time, and tests that it is deterministic and finds faults: each
 * of test/simulation/mutations.ts is put back alone.
 *
 *     SIMULATION_SEED=7 npm test -- simulation      begins with another seed
 */

import assert from 'node:assert/strict';
import { seedFrom } from '../harness/hostile/random';
import { describe, it } from '../harness/limits';
import { checkMutation } from './modules';
import { mutations } from './mutations';
import { shareMutations } from './mutations-share';
import { targetMutations } from './mutations-target';
import { simulate } from './run';

const TURNS = 3000;
const MS_MAX = 12_000;
/** Each fault must be found within so many seeds. */
const MUTATION_SEEDS = 300;
const first = process.env.SIMULATION_SEED ? seedFrom('SIMULATION_SEED') : 1;

describe('the simulation', () => {
  it('finds no fault with consecutive seeds', () => {
    const end = performance.now() + MS_MAX;
    for (let seed = first; performance.now() < end; seed++) {
      const { failure, tail } = simulate({ seed, turns: TURNS });
      assert.equal(failure, null, `npm run simulate -- ${seed} ${TURNS}\n${tail.join('\n')}`);
    }
  });

  it('gives the same events for the same seed', () => {
    for (const seed of [first, first + 1, first + 2]) {
      const [once, again] = [simulate({ seed, turns: TURNS }), simulate({ seed, turns: TURNS })];
      assert.equal(once.hash, again.hash);
      assert.equal(once.events, again.events);
    }
  });
});

describe('the simulation with a fault that is put back', () => {
  it('refuses a fault whose text does not occur exactly once', () => {
    const edit = { file: 'core/base/timer', find: 'no such text', replace: '' };
    assert.throws(() => checkMutation({ name: 'nowhere', wanted: {}, edits: [edit] }), /0 times/);
    assert.throws(
      () => checkMutation({ name: 'twice', wanted: {}, edits: [{ ...edit, find: 'timer.when' }] }),
      / times/,
    );
  });

  it('refuses a fault that leaves text which cannot be compiled', () => {
    const edit = { file: 'core/base/timer', find: '"use strict"', replace: '}' };
    assert.throws(() => checkMutation({ name: 'broken', wanted: {}, edits: [edit] }), SyntaxError);
  });

  for (const mutation of [...mutations, ...shareMutations, ...targetMutations]) {
    it(`finds the fault: ${mutation.name}`, () => {
      checkMutation(mutation);
      const from = mutation.seed ?? 1;
      for (let seed = from; seed < from + MUTATION_SEEDS; seed++) {
        const { failure } = simulate({ seed, turns: TURNS, mutation, wanted: mutation.wanted });
        if (failure === null) continue;
        console.log(`# seed ${seed}: ${failure}`);
        return;
      }
      assert.fail(`not within ${MUTATION_SEEDS} seeds`);
    });
  }
});
