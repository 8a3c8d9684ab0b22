/*
 * The benchmark's figures as tables of plain text.
 */
import { type Aim, aimText, isMet, median, OFF, ON, OURS, type Row, ratioOf, roundRatios, THEIRS } from './rows';

/** The median, and the smallest and the largest of several rounds. */
function cell(values: number[] | undefined, { unit, digits }: Row): string {
  if (values === undefined || values.length === 0) return '-';
  const text = `${median(values).toFixed(digits)} ${unit}`.trimEnd();
  if (values.length === 1) return text;
  return `${text} (${Math.min(...values).toFixed(digits)}..${Math.max(...values).toFixed(digits)})`;
}

function ratioCell(row: Row, contender: string): string {
  const ratio = ratioOf(row, contender);
  return Number.isNaN(ratio) || row.unit === '' ? '-' : ratio.toFixed(2);
}

function metCell(row: Row, aim: Aim | undefined): string {
  const met = aim === undefined ? null : isMet(row, aim);
  return met === null ? '' : met ? 'met' : 'missed';
}

/** @param left number of columns that are aligned to the left: the first, and the last ones */
function print(head: string[], lines: string[][], lastLeft: number): void {
  const widths = head.map((title, at) => Math.max(title.length, ...lines.map((line) => (line[at] as string).length)));
  const left = (at: number) => at === 0 || at >= head.length - lastLeft;
  const format = (line: string[]) =>
    line
      .map((text, at) => (left(at) ? text.padEnd(widths[at] as number) : text.padStart(widths[at] as number)))
      .join('  ')
      .trimEnd();
  console.log([format(head), format(widths.map((width) => '-'.repeat(width))), ...lines.map(format)].join('\n'));
}

function aimOf(row: Row, contender: string): Aim | undefined {
  return row.aims.find((aim) => aim.contender === contender);
}

/**
 * Prints the medians of all contenders, tsbouncer's ratio to PgBouncer, and whether the aim is met. Then the ratios of
 * the other contenders, if there are any.
 */
export function printTable(rows: readonly Row[], contenders: readonly string[]): void {
  const lines = rows.map((row) => {
    const aim = aimOf(row, OURS);
    const aims = [aim === undefined ? '' : aimText(row, aim), metCell(row, aim)];
    return [row.name, ...contenders.map((name) => cell(row.rounds[name], row)), ratioCell(row, OURS), ...aims];
  });
  print(['figure', ...contenders, 'ratio', 'aim', ''], lines, 2);

  const others = contenders.filter((name) => name !== OURS && name !== THEIRS);
  if (others.length === 0 || !contenders.includes(THEIRS)) return;
  const ratios = rows
    .filter((row) => others.some((name) => ratioCell(row, name) !== '-' || aimOf(row, name) !== undefined))
    .map((row) => {
      const cells = others.map((name) => {
        const aim = aimOf(row, name);
        const text = ratioCell(row, name);
        return aim === undefined ? text : `${text} (${aimText(row, aim)} ${metCell(row, aim)})`;
      });
      return [row.name, ratioCell(row, OURS), ...cells];
    });
  console.log(`\nDivided by ${THEIRS}:\n`);
  print(['figure', OURS, ...others], ratios, 0);
}

/** Prints what each setting costs: both figures, and the ratio of each round. */
export function printCosts(rows: readonly Row[]): void {
  const lines = rows.map((row) => {
    const ratios = { ...row, unit: '', digits: 2 };
    return [row.name, cell(row.rounds[OFF], row), cell(row.rounds[ON], row), cell(roundRatios(row, ON), ratios)];
  });
  print(['setting: measured with', OFF, ON, `${ON}/${OFF}`], lines, 0);
}
