/*
 * `npm run compare`: runs the same scripted sessions against PgBouncer and against tsbouncer. docs/compare.md describes
 * the output. This file reads the command line, creates the test bed, and reports at the end whether all differences
 * are intended.
 *
 *     npm run compare [-- [-v] [family or part of a scenario's name …]]
 */

import { spawnSync } from 'node:child_process';
import { installed, originalBin } from '../test/harness';
import { meantDifferences } from './differences';
import { claimsFor, concerns } from './expected-differences';
import { runAll, type Tally } from './run';
import { families } from './scenarios';
import type { Program, Scenario } from './side';
import { TestBed } from './test-bed';

/** The exit code if the comparison could not start or could not go on; 1 means differences. */
const NOT_COMPARED = 2;

function programs(bin: string): [Program, Program] {
  const { node, mainJs } = installed();
  return [
    { label: 'original', original: true, program: 'pgbouncer', command: [bin] },
    { label: 'tsbouncer', original: false, program: 'tsbouncer', command: [node, mainJs] },
  ];
}

function versionOf(bin: string): string {
  const output = spawnSync(bin, ['-V'], { encoding: 'utf8' }).stdout;
  const version = /PgBouncer (\d+(?:\.\d+)*)/.exec(output)?.[1];
  if (version === undefined) throw new Error(`${bin} -V does not name its version: ${output}`);
  return version;
}

/** The selected scenarios: whole families, or scenarios whose names contain one of the words. */
function chosen(words: string[]): Scenario[] {
  const all = Object.entries(families).flatMap(([family, scenarios]) =>
    scenarios.map((scenario) => ({ ...scenario, name: `${family}: ${scenario.name}` })),
  );
  return words.length === 0 ? all : all.filter(({ name }) => words.some((word) => name.includes(word)));
}

function summary(tally: Tally, label: string, listed: number, seconds: number): string {
  const left = [...tally.leftOut.values()].flat().length;
  const skipped = left === 0 ? '' : `, ${left} scenarios left out`;
  const entries = `${tally.meant} lines differ as meant (${listed} entries of the list)`;
  const counts = `${tally.ran.length} scenarios, ${tally.steps} steps`;
  return `${counts}: ${entries}, ${tally.unexpected.length} steps unexpectedly${skipped}; against ${label}, ${seconds} s`;
}

async function main(): Promise<number> {
  const args = process.argv.slice(2);
  const verbose = args.includes('-v');
  const words = args.filter((arg) => arg !== '-v');
  const bin = originalBin();
  if (bin === null) {
    console.error('PgBouncer is not installed: apt-get install pgbouncer, or set PGBOUNCER_BIN');
    return NOT_COMPARED;
  }
  const scenarios = chosen(words);
  if (scenarios.length === 0) {
    console.error(`no scenario has that in its name; the families are ${Object.keys(families).join(', ')}`);
    return NOT_COMPARED;
  }
  const startMs = Date.now();
  const originalVersion = versionOf(bin);
  const testBed = await TestBed.set(bin, originalVersion);
  try {
    const claims = claimsFor(meantDifferences, originalVersion);
    const tally = await runAll(scenarios, programs(bin), testBed, claims, verbose);
    for (const [why, names] of tally.leftOut) {
      const list = verbose ? `:\n  ${names.join('\n  ')}` : '';
      console.log(`left out, ${why}: ${names.length} scenarios${list}`);
    }
    // an entry without a difference could hide a later fault
    const stale = words.length > 0 ? [] : claims.filter((claim) => claim.count === 0 && concerns(claim, tally.ran));
    for (const { entry } of stale) console.log(`\nlisted, but no such difference was found: ${entry.reason}`);
    if (tally.ran.length === 0) {
      console.error('none of these scenarios can run here: nothing was compared');
      return NOT_COMPARED;
    }
    const seconds = Math.round((Date.now() - startMs) / 1000);
    const used = claims.filter(({ count }) => count > 0).length;
    console.log(`\n${summary(tally, `PgBouncer ${originalVersion}`, used, seconds)}`);
    return tally.unexpected.length + stale.length > 0 ? 1 : 0;
  } finally {
    await testBed.clear();
  }
}

main().then(
  (code) => process.exit(code),
  (err) => {
    console.error(err);
    process.exit(NOT_COMPARED);
  },
);
