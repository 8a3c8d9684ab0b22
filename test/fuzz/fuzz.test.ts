/*
 * Fuzz tests of parsers and packet walkers. Each result is compared with parsing the printed result again, with another
 * implementation, or with the same bytes in other pieces. This short run is the same each time; `npm run fuzz` runs
 * longer with random seeds. See test/fuzz/engine.ts.
 */

import { it } from '../harness/machine';
import { fuzz } from './engine';
import { imageTargets } from './image';
import { recordTargets } from './records';
import { secretTargets } from './secrets';
import { textTargets } from './texts';
import { tlsTargets } from './tls';
import { walkerTargets } from './walkers';

const targets = [...textTargets, ...imageTargets, ...secretTargets, ...walkerTargets, ...recordTargets, ...tlsTargets];
const wanted = process.env.FUZZ_TARGETS?.split(',') ?? targets.map((target) => target.name);
const chosen = targets.filter((target) => wanted.includes(target.name));
const DAY_MS = 24 * 3600 * 1000;

for (const target of chosen) {
  it(
    `the fuzz target ${target.name} holds its properties for any input`,
    () => {
      const start = performance.now();
      const cases = fuzz(target, chosen.length);
      console.log(`${target.name}: ${cases} cases in ${Math.round(performance.now() - start)} ms`);
    },
    DAY_MS,
  );
}
