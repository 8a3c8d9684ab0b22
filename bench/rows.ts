/*
 * The figures of one run of the benchmark: rows with the rounds of each contender, and what each row aims at.
 */
import { options } from './settings';

/** The contenders that ratios are made of. */
export const OURS = 'tsbouncer';
export const THEIRS = 'PgBouncer';
/** tsbouncer without and with a setting (--settings). */
export const OFF = 'off';
export const ON = 'on';

/** A bound: for the ratio of a contender to PgBouncer, or for the contender's figure itself. */
export interface Aim {
  of: 'ratio' | 'figure';
  bound: number;
  contender: string;
}

/** One figure, with its rounds. */
export interface Row {
  name: string;
  unit: string;
  digits: number;
  better: 'less' | 'more';
  aims: Aim[];
  /** printed only with --details */
  detail: boolean;
  /** the contender whose figure ratios divide by */
  base: string;
  /** by the name of the contender */
  rounds: Record<string, number[]>;
}

/** Further properties of a row. */
interface RowOptions {
  better?: 'less' | 'more';
  aims?: Aim[];
  detail?: boolean;
  base?: string;
}

export const rows: Row[] = [];
/** Remarks below the table. */
export const remarks: string[] = [];

/** Adds a row at the end of the table. */
export function addRow(name: string, unit: string, digits: number, more: RowOptions = {}): Row {
  const { better = 'less', aims = [], detail = false, base = THEIRS } = more;
  const row: Row = { name, unit, digits, better, aims, detail, base, rounds: {} };
  rows.push(row);
  return row;
}

/** Adds one round of a contender. */
export function note(row: Row | null, contender: { name: string }, value: number): void {
  if (row === null) return;
  const list = row.rounds[contender.name] ?? [];
  list.push(value);
  row.rounds[contender.name] = list;
}

/** An aim for tsbouncer's ratio to PgBouncer. @param epoll the aim with loop_backend=epoll, if it differs */
export function ratioAim(bound: number, epoll?: number): Aim[] {
  const aims: Aim[] = [{ of: 'ratio', bound, contender: OURS }];
  if (epoll !== undefined) aims.push({ of: 'ratio', bound: epoll, contender: `${OURS} loop_backend=epoll` });
  return aims;
}

/** An aim for tsbouncer's own figure. */
export function figureAim(bound: number): Aim[] {
  return [{ of: 'figure', bound, contender: OURS }];
}

/** us per transaction of the thread that decides, when other threads move the bytes. */
const MAIN_AIM = { plain: 3.5, tls: 4 };
/** The main thread of a pooler whose other threads move the bytes uses at most this share of all CPU. */
const MAIN_SHARE = 0.6;

/** Gives the row of the main thread its aim, for each tsbouncer whose other threads do most of the work. */
export function addMainAims(main: Row, total: Row, tls: boolean): void {
  for (const [contender, rounds] of Object.entries(main.rounds)) {
    if (!contender.startsWith(OURS) || median(rounds) > MAIN_SHARE * median(total.rounds[contender])) continue;
    main.aims.push({ of: 'figure', bound: tls ? MAIN_AIM.tls : MAIN_AIM.plain, contender });
    main.detail = false;
  }
}

export function remark(text: string): void {
  if (!remarks.includes(text)) remarks.push(text);
}

/** Whether --only selects a figure of this name. */
export function wanted(name: string): boolean {
  return options.only.length === 0 || options.only.some((word) => name.toLowerCase().includes(word));
}

/** Reports progress on stderr. */
export function say(text: string): void {
  process.stderr.write(`${text}\n`);
}

/** Runs the contenders in turns (A B C, then C B A), so that other load on the machine affects all. */
export async function inTurns<T>(contenders: readonly T[], one: (contender: T) => Promise<void>): Promise<void> {
  for (let round = 0; round < options.rounds; round++) {
    const order = round % 2 === 0 ? contenders : [...contenders].reverse();
    for (const contender of order) await one(contender);
  }
}

export function median(values: readonly number[] = []): number {
  if (values.length === 0) return Number.NaN;
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  if (sorted.length % 2 === 1) return sorted[middle] as number;
  return ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
}

/** The contender's figure divided by that of the row's base, round by round: those of a round are measured in turns. */
export function roundRatios({ rounds, base }: Row, contender: string): number[] {
  const own = rounds[contender] ?? [];
  const others = rounds[base] ?? [];
  return own.slice(0, others.length).map((value, at) => value / (others[at] as number));
}

/** The contender's median divided by the base's; NaN if one of them is missing. */
export function ratioOf(row: Row, contender: string): number {
  const ratio = median(row.rounds[contender]) / median(row.rounds[row.base]);
  return Number.isFinite(ratio) ? ratio : Number.NaN;
}

/** Whether the aim is met; null if the figure is missing. */
export function isMet(row: Row, aim: Aim): boolean | null {
  const value = aim.of === 'ratio' ? ratioOf(row, aim.contender) : median(row.rounds[aim.contender]);
  if (Number.isNaN(value)) return null;
  return row.better === 'less' ? value <= aim.bound : value >= aim.bound;
}

/** The aim as printed, such as `<= 0.95` or `>= 30 ms`. */
export function aimText(row: Row, aim: Aim): string {
  const sign = row.better === 'less' ? '<=' : '>=';
  return `${sign} ${aim.bound}${aim.of === 'figure' && row.unit !== '' ? ` ${row.unit}` : ''}`;
}
