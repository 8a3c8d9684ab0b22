/*
 * The benchmark's figures as a table of plain text.
 */
import { median } from './measure';

/** One figure, with its rounds for each pooler. */
export interface Row {
  name: string;
  unit: string;
  /** the goal of the ratio, or of the figure where stated */
  goal: string;
  digits: number;
  tsbouncer: number[];
  original: number[];
}

function cell(values: number[], { unit, digits }: Row): string {
  if (values.length === 0) return '-';
  return `${median(values).toFixed(digits)} ${unit}`.trimEnd();
}

/** Prints medians, and the ratio of tsbouncer to PgBouncer. */
export function printTable(rows: Row[], withOriginal: boolean): void {
  const head = ['figure', 'tsbouncer', 'original', 'ratio', 'goal'];
  const lines = rows.map((row) => {
    const ratio = median(row.tsbouncer) / median(row.original);
    const known = withOriginal && row.unit !== '' && Number.isFinite(ratio);
    return [row.name, cell(row.tsbouncer, row), cell(row.original, row), known ? ratio.toFixed(2) : '-', row.goal];
  });
  const widths = head.map((title, at) => Math.max(title.length, ...lines.map((line) => (line[at] as string).length)));
  const format = (line: string[]) => {
    const [name = '', ...figures] = line;
    const goal = figures.pop() ?? '';
    const right = figures.map((text, at) => text.padStart(widths[at + 1] as number));
    return [name.padEnd(widths[0] as number), ...right, goal].join('  ').trimEnd();
  };
  console.log([format(head), format(widths.map((width) => '-'.repeat(width))), ...lines.map(format)].join('\n'));
}
