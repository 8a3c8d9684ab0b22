/*
 * Compares the differences found with the list of intended differences. An entry removes the lines that it describes;
 * the remaining lines are unexpected. Entries count their uses, so that unused entries can be reported.
 */

import { linesOf, type StepDiff } from './diff';

/** An intended difference. Without `left`, `right` and `either`, every difference in those steps is intended. */
export interface MeantDifference {
  /** why tsbouncer differs from that version of PgBouncer */
  reason: string;
  /** lines that only PgBouncer has; with `right`, lines of both sides are removed in pairs */
  left?: RegExp;
  /** lines that only tsbouncer has */
  right?: RegExp;
  /** lines that only one side has, in any number */
  either?: RegExp;
  /** only in scenarios whose name matches */
  scenario?: RegExp;
  /** only in steps whose text matches */
  step?: RegExp;
  /** first version of PgBouncer that behaves like tsbouncer; without it the difference is permanent */
  until?: string;
  /** first version of PgBouncer that differs */
  since?: string;
}

/** An entry with the number of its uses. */
export interface Claim {
  entry: MeantDifference;
  count: number;
}

/** Compares versions such as `1.18.0` number by number. */
export function versionBelow(version: string, bound: string): boolean {
  const left = version.split('.').map(Number);
  const right = bound.split('.').map(Number);
  for (let at = 0; at < right.length; at++) {
    const less = (left[at] ?? 0) - (right[at] as number);
    if (less !== 0) return less < 0;
  }
  return false;
}

/** The entries that apply to that version of PgBouncer. */
export function claimsFor(list: readonly MeantDifference[], version: string): Claim[] {
  return list
    .filter(({ until }) => until === undefined || versionBelow(version, until))
    .filter(({ since }) => since === undefined || !versionBelow(version, since))
    .map((entry) => ({ entry, count: 0 }));
}

/** Whether the entry applies to a scenario that was run. */
export function concerns({ entry }: Claim, ran: readonly string[]): boolean {
  const { scenario } = entry;
  return scenario === undefined || ran.some((name) => scenario.test(name));
}

/** Removes at most `most` matching lines. @returns the remaining lines */
function without(lines: readonly string[], pattern: RegExp, most: number): string[] {
  let left = most;
  return lines.filter((line) => left === 0 || !pattern.test(line) || left-- === 0);
}

function matching(lines: readonly string[], pattern: RegExp): number {
  return lines.filter((line) => pattern.test(line)).length;
}

/** The diff without the entry's lines, removed in pairs if the entry has a pattern for each side. */
function rest(diff: StepDiff, { left, right, either }: MeantDifference): StepDiff {
  const none = left === undefined && right === undefined && either === undefined;
  if (none) return { ...diff, left: [], right: [] };
  const paired = left !== undefined && right !== undefined;
  const pairs = paired ? Math.min(matching(diff.left, left), matching(diff.right, right)) : Number.POSITIVE_INFINITY;
  const take = (lines: string[], own: RegExp | undefined) => {
    const others = own === undefined ? lines : without(lines, own, pairs);
    return either === undefined ? others : without(others, either, Number.POSITIVE_INFINITY);
  };
  return { ...diff, left: take(diff.left, left), right: take(diff.right, right) };
}

function takeAway(diff: StepDiff, claim: Claim): StepDiff {
  const { scenario, step } = claim.entry;
  if (scenario?.test(diff.scenario) === false || step?.test(diff.step) === false) return diff;
  const left = rest(diff, claim.entry);
  claim.count += linesOf(diff) - linesOf(left);
  return left;
}

/** The unexpected part of the difference, or null if all of it is intended. Counts the uses of entries. */
export function unexpectedPart(diff: StepDiff, claims: readonly Claim[]): StepDiff | null {
  const left = claims.reduce(takeAway, diff);
  return linesOf(left) === 0 ? null : left;
}
