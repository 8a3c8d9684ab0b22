/*
 * Compares two transcripts: pairs their steps, their result sets and their lines, and reports what only one side has.
 * Called by run.ts. The lists in differences.ts and expected-differences.ts decide which differences are intended.
 */
import type { Item, Table } from './decode';
import type { Record } from './side';

/** The difference in one step, without the lines that both sides have. */
export interface StepDiff {
  scenario: string;
  step: string;
  left: string[];
  right: string[];
}

/** Number of lines that differ. */
export function linesOf(diff: StepDiff): number {
  return diff.left.length + diff.right.length;
}

function cell(value: string | null): string {
  return value === null ? 'NULL' : value;
}

function columnLines(table: Table): string[] {
  return table.columns.map(({ name, type }) => `column ${name} ${type}`);
}

/** Rows as lines, with only the columns of both sides, so that an added column counts as one difference. */
function rowLines(table: Table, other: Table | null): string[] {
  const shared = new Set((other ?? table).columns.map(({ name }) => name));
  const shown = table.columns.map((column, at) => ({ name: column.name, at })).filter(({ name }) => shared.has(name));
  return table.rows.map((row) => `row ${shown.map(({ name, at }) => `${name}=${cell(row[at] ?? null)}`).join(' ')}`);
}

function asLines(items: readonly Item[], others: readonly Item[]): string[] {
  const tables = others.filter((item) => typeof item !== 'string');
  let nth = 0;
  return items.flatMap((item) => {
    if (typeof item === 'string') return item.split('\n');
    const other = tables[nth++] ?? null;
    return [...columnLines(item), ...rowLines(item, other)];
  });
}

/** Lines outside a longest common subsequence of both lists. */
function onlyIn(left: readonly string[], right: readonly string[]): { left: string[]; right: string[] } {
  const width = right.length + 1;
  const lengths = new Uint32Array((left.length + 1) * width);
  for (let i = left.length - 1; i >= 0; i--) {
    for (let j = right.length - 1; j >= 0; j--) {
      const here = i * width + j;
      const longest = Math.max(lengths[here + width] as number, lengths[here + 1] as number);
      lengths[here] = left[i] === right[j] ? (lengths[here + width + 1] as number) + 1 : longest;
    }
  }
  const only = { left: [] as string[], right: [] as string[] };
  let i = 0;
  let j = 0;
  while (i < left.length || j < right.length) {
    const here = i * width + j;
    if (i < left.length && j < right.length && left[i] === right[j]) {
      i++;
      j++;
    } else if (
      j >= right.length ||
      (i < left.length && (lengths[here + width] as number) >= (lengths[here + 1] as number))
    ) {
      only.left.push(left[i++] as string);
    } else {
      only.right.push(right[j++] as string);
    }
  }
  return only;
}

/** The difference in one step, or null. A step that failed on one side counts as a difference. */
export function diffStep(scenario: string, left: Record, right: Record): StepDiff | null {
  const lines = (own: Record, other: Record) => {
    if (own.fault !== null) return [`cannot be done: ${own.fault}`];
    return asLines(own.items, other.items);
  };
  const only = onlyIn(lines(left, right), lines(right, left));
  if (only.left.length + only.right.length === 0) return null;
  return { scenario, step: left.text, left: only.left, right: only.right };
}
