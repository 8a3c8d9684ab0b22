/*
 * Lines that are repeated: of lines that differ only in numbers, log_repeat_limit are written in a period; the others are
 * counted, and their number is logged at the end of the period. So a storm of failing clients does not fill the disk.
 */

import { Tally, tally } from './tallies';

/** Different lines of one period that are told apart; what exceeds this is written. A line may be any client's text. */
const LINES_MAX = 1000;

interface Repeated {
  /** the first line, as it was written */
  readonly message: string;
  count: number;
}

const lines = new Map<string, Repeated>();

/**
 * Counts a line.
 * @param level lines of different levels are different
 * @param limit the setting log_repeat_limit; 0 = none
 * @returns true if the line is not to be written
 */
export function isTooOften(level: number, message: string, limit: number): boolean {
  if (limit <= 0) return false;
  const key = `${level} ${message.replace(/[0-9]+/g, '0')}`;
  const known = lines.get(key);
  if (known !== undefined) {
    if (++known.count <= limit) return false;
    tally(Tally.LOG_LINES_SUPPRESSED);
    return true;
  }
  if (lines.size < LINES_MAX) lines.set(key, { message, count: 1 });
  return false;
}

/**
 * Ends a period.
 * @param limit as for isTooOften()
 * @returns a text for each line that was left out
 */
export function endOfRepeats(limit: number): string[] {
  const texts: string[] = [];
  for (const { message, count } of lines.values()) {
    if (count > limit) texts.push(`${count - limit} lines like this were left out: ${message}`);
  }
  lines.clear();
  return texts;
}
