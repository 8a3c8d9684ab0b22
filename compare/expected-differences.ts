/*
 * Holds the differences that were found against the list of those that are meant. An entry takes away the lines that it
 * describes; what is left over is unexpected. Entries remember that they were needed, so that the list stays honest.
 */

import { linesOf, type StepDiff } from './diff';

/** A difference that is meant. Without `left`, `right` and `either` all that differs in those steps is meant. */
export interface MeantDifference {
  /** why tsbouncer does not do what that version of the original does */
  reason: string;
  /** lines that only the original has; with `right`: as many lines of each side are taken, in pairs */
  left?: RegExp;
  /** lines that only tsbouncer has */
  right?: RegExp;
  /** lines that either side has alone, as many as there are */
  either?: RegExp;
  /** only in scenarios whose name matches */
  scenario?: RegExp;
  /** only in steps whose text matches */
  step?: RegExp;
  /** first version of the original that behaves as tsbouncer does; without it the difference is for good */
  until?: string;
  /** first version of the original that differs */
  since?: string;
}

/** An entry and how often it was needed. */
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

/** The entries that concern an original of that version. */
export function claimsFor(list: readonly MeantDifference[], version: string): Claim[] {
  return list
    .filter(({ until }) => until === undefined || versionBelow(version, until))
    .filter(({ since }) => since === undefined || !versionBelow(version, since))
    .map((entry) => ({ entry, count: 0 }));
}

/** Whether one of the scenarios that ran could have needed the entry. */
export function concerns({ entry }: Claim, ran: readonly string[]): boolean {
  const { scenario } = entry;
  return scenario === undefined || ran.some((name) => scenario.test(name));
}

/** Takes at most `most` of the lines that match. Returns what is left. */
function without(lines: readonly string[], pattern: RegExp, most: number): string[] {
  let left = most;
  return lines.filter((line) => left === 0 || !pattern.test(line) || left-- === 0);
}

function matching(lines: readonly string[], pattern: RegExp): number {
  return lines.filter((line) => pattern.test(line)).length;
}

/** The entry's lines taken out of the diff, in pairs when it has a pattern for each side. */
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

/** What of the difference nobody meant, or null when all of it was. Counts up the claims that were needed. */
export function unexpectedPart(diff: StepDiff, claims: readonly Claim[]): StepDiff | null {
  const left = claims.reduce(takeAway, diff);
  return linesOf(left) === 0 ? null : left;
}
