/*
 * Runs scenarios on both sides and prints what differs. Called by main.ts.
 */

import { diffStep, linesOf, type StepDiff } from './diff';
import { type Claim, unexpectedPart, versionBelow } from './expected-differences';
import { type Program, type Record, type Scenario, Side } from './side';
import type { TestBed } from './test-bed';

/** The result of all scenarios. */
export interface Tally {
  /** names of the scenarios that were run */
  ran: string[];
  /** names of the scenarios that were not run, by reason */
  leftOut: Map<string, string[]>;
  steps: number;
  /** number of lines with intended differences */
  meant: number;
  unexpected: StepDiff[];
}

/** Number of scenarios run at the same time; most of them wait for timeouts. */
const AT_ONCE = 6;

async function transcript(side: Side, scenario: Scenario, index: { step: number }): Promise<Record[]> {
  const records: Record[] = [];
  for (const step of scenario.steps) {
    index.step++;
    records.push(await side.runStep(step));
  }
  records.push(...(await side.finish(scenario)));
  return records;
}

async function runSide(side: Side, scenario: Scenario): Promise<Record[]> {
  const index = { step: 0 };
  try {
    await side.start(scenario);
    return await transcript(side, scenario, index);
  } catch (err) {
    return [{ text: 'the scenario', items: [], fault: (err as Error).message }];
  } finally {
    await side.clear();
  }
}

/** Runs both sides of a scenario; steps that fail on both sides are faults of the scenario and count as unexpected. */
async function compareScenario(
  scenario: Scenario,
  programs: Program[],
  testBed: TestBed,
): Promise<[StepDiff[], number]> {
  const sides = programs.map((program) => new Side(program, testBed));
  const [left, right] = (await Promise.all(sides.map((side) => runSide(side, scenario)))) as [Record[], Record[]];
  const diffs: StepDiff[] = [];
  for (let at = 0; at < Math.max(left.length, right.length); at++) {
    const missing: Record = { text: 'the scenario', items: [], fault: 'not reached' };
    const [one, two] = [left[at] ?? missing, right[at] ?? missing];
    const diff = diffStep(scenario.name, one, two);
    if (diff !== null) {
      diffs.push(diff);
    } else if (one.fault !== null) {
      const line = `cannot be done on either side: ${one.fault}`;
      diffs.push({ scenario: scenario.name, step: one.text, left: [line], right: [line] });
    }
  }
  return [diffs, left.length];
}

function printDiff(diff: StepDiff, left: string, right: string): void {
  console.log(`\n${diff.scenario}\n  ${diff.step}`);
  const width = Math.max(left.length, right.length);
  for (const line of diff.left) console.log(`    ${left.padEnd(width)} - ${line}`);
  for (const line of diff.right) console.log(`    ${right.padEnd(width)} + ${line}`);
}

/** Runs of a scenario before a difference counts: a race differs sometimes, a fault always. */
const RUNS_MAX = 3;

/** The differences of the first run without an unexpected difference, or else of the last run. */
async function settle(scenario: Scenario, programs: Program[], testBed: TestBed, claims: readonly Claim[]) {
  for (let run = 1; ; run++) {
    const [diffs, steps] = await compareScenario(scenario, programs, testBed);
    const parts = diffs.map((diff) => ({ diff, rest: unexpectedPart(diff, claims) }));
    if (run === RUNS_MAX || parts.every(({ rest }) => rest === null)) return { parts, steps };
    console.log(`once more, since it differed: ${scenario.name}`);
  }
}

/** Why this PgBouncer or this machine cannot run the scenario, or null. */
function reasonToLeaveOut({ since, needs }: Scenario, testBed: TestBed): string | null {
  if (since !== undefined && versionBelow(testBed.originalVersion, since)) return `as PgBouncer ${since} brought it`;
  return needs === undefined ? null : testBed.lacks(needs);
}

/**
 * Runs all scenarios, a few at a time, and prints unexpected differences when they are found.
 * @param verbose also prints each scenario's name and the intended differences
 */
export async function runAll(
  scenarios: readonly Scenario[],
  programs: [Program, Program],
  testBed: TestBed,
  claims: readonly Claim[],
  verbose: boolean,
): Promise<Tally> {
  const tally: Tally = { ran: [], leftOut: new Map(), steps: 0, meant: 0, unexpected: [] };
  const queue: Scenario[] = [];
  for (const scenario of scenarios) {
    const why = reasonToLeaveOut(scenario, testBed);
    if (why === null) queue.push(scenario);
    else tally.leftOut.set(why, [...(tally.leftOut.get(why) ?? []), scenario.name]);
  }
  const worker = async () => {
    for (let scenario = queue.shift(); scenario !== undefined; scenario = queue.shift()) {
      const startMs = Date.now();
      const { parts, steps } = await settle(scenario, programs, testBed, claims);
      tally.ran.push(scenario.name);
      tally.steps += steps;
      for (const { diff, rest } of parts) {
        tally.meant += linesOf(diff) - (rest === null ? 0 : linesOf(rest));
        if (rest !== null) tally.unexpected.push(rest);
        const shown = verbose ? diff : rest;
        if (shown !== null) printDiff(shown, programs[0].label, programs[1].label);
      }
      if (verbose) console.log(`done: ${scenario.name} (${Date.now() - startMs} ms)`);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  return tally;
}
