/*
 * What `tsbouncer top` shows: the answers of the console as lines of text. Knows no terminal; called by top.ts.
 */

import { utf8Of } from '../core/base/strutil';
import type { Answer } from './pg-client';

/** A pool, as the console shows it. */
export interface PoolLine {
  database: string;
  user: string;
  active: number;
  waiting: number;
  serversActive: number;
  serversIdle: number;
  serversOther: number;
  size: number;
  /** of the first client in the queue, in ms */
  maxWait: number;
  saturation: number;
}

/** The counters of all databases, by the columns of SHOW STATS_TOTALS. */
type Totals = Record<string, number>;

export interface Sample {
  /** ms of a monotonic clock */
  at: number;
  pools: PoolLine[];
  totals: Totals;
}

/** What a pool can be sorted by; the greatest first. */
export const ORDERS: readonly { name: string; value: (pool: PoolLine) => number | string }[] = [
  { name: 'saturation', value: (pool) => pool.saturation },
  { name: 'cl_waiting', value: (pool) => pool.waiting },
  { name: 'maxwait', value: (pool) => pool.maxWait },
  { name: 'sv_active', value: (pool) => pool.serversActive },
  { name: 'cl_active', value: (pool) => pool.active },
  { name: 'name', value: (pool) => `${pool.database}\0${pool.user}` },
];

const OTHER = ['sv_active_cancel', 'sv_being_canceled', 'sv_used', 'sv_tested', 'sv_login'];
/** Characters that would move the cursor, or disturb the lines: controls, and marks of the direction of writing. */
const UNPRINTABLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Co}\p{M}\ufffd]/gu;

type Fields = Record<string, string>;

function fieldsOf({ names, rows }: Answer): Fields[] {
  return rows.map((row) => Object.fromEntries(names.map((name, at) => [name, row[at] ?? ''])));
}

/** A name without anything that a terminal would act on. */
function shownName(text: string): string {
  const code = (char: string) => `\\x${(char.codePointAt(0) ?? 0).toString(16).padStart(2, '0')}`;
  return text === '' ? '""' : text.replace(UNPRINTABLE, code).replace(/\p{Zs}/gu, '\\x20');
}

/** A text with bytes of a server, likewise. */
function shownText(text: string): string {
  return utf8Of(text).replace(UNPRINTABLE, ' ');
}

function sizes(answer: Answer, key: string): Map<string, number> {
  const found = new Map<string, number>();
  for (const { [key]: name = '', pool_size: size = '' } of fieldsOf(answer)) {
    if (/^\d+$/.test(size)) found.set(name, Number(size));
  }
  return found;
}

/** Puts the answers of SHOW POOLS, DATABASES, USERS and STATS_TOTALS together. @param at ms of a monotonic clock */
export function readSample(at: number, pools: Answer, databases: Answer, users: Answer, stats: Answer): Sample {
  const ofDatabase = sizes(databases, 'name');
  const ofUser = sizes(users, 'name');
  const totals: Totals = {};
  for (const row of fieldsOf(stats)) {
    for (const [column, value] of Object.entries(row)) {
      if (column !== 'database') totals[column] = (totals[column] ?? 0) + Number(value);
    }
  }
  const lines = fieldsOf(pools).map((row): PoolLine => {
    const { database = '', user = '' } = row;
    const number = (column: string) => Number(row[column] ?? 0);
    const [serversActive, waiting] = [number('sv_active'), number('cl_waiting')];
    const size = ofUser.get(user) ?? ofDatabase.get(database) ?? 0;
    const unlimited = waiting > 0 ? Number.POSITIVE_INFINITY : 0;
    return {
      database: utf8Of(database),
      user: utf8Of(user),
      active: number('cl_active'),
      waiting,
      serversActive,
      serversIdle: number('sv_idle'),
      serversOther: OTHER.reduce((sum, column) => sum + number(column), 0),
      size,
      maxWait: number('maxwait') * 1000 + Math.floor(number('maxwait_us') / 1000),
      saturation: size > 0 ? (serversActive + waiting) / size : unlimited,
    };
  });
  return { at, pools: lines, totals };
}

function compare(a: number | string, b: number | string): number {
  if (a === b) return 0;
  return a < b ? -1 : 1;
}

/** The pools in that order. @param order index in ORDERS */
export function sorted(pools: readonly PoolLine[], order: number): PoolLine[] {
  const { name, value } = ORDERS[order] as (typeof ORDERS)[number];
  const sign = name === 'name' ? 1 : -1;
  return [...pools].sort((a, b) => sign * compare(value(a), value(b)) || compare(b.maxWait, a.maxWait));
}

/* ---- text ---- */

function percent(part: number): string {
  return part === Number.POSITIVE_INFINITY ? 'full' : `${Math.round(part * 100)}%`;
}

function milliseconds(ms: number): string {
  if (!Number.isFinite(ms)) return '-';
  if (ms < 1000) return `${ms < 10 ? ms.toFixed(1).replace('.0', '') : Math.round(ms)} ms`;
  return `${(ms / 1000).toFixed(1)} s`;
}

const HEADINGS = ['database', 'user', 'satur', 'cl_act', 'cl_wait', 'sv_act', 'sv_idle', 'sv_oth', 'size', 'maxwait'];

function cellsOf(pool: PoolLine): string[] {
  return [
    shownName(pool.database),
    shownName(pool.user),
    percent(pool.saturation),
    ...[pool.active, pool.waiting, pool.serversActive, pool.serversIdle, pool.serversOther, pool.size].map(String),
    milliseconds(pool.maxWait),
  ];
}

/** Columns that a terminal needs for a character. */
function charWidth(char: string): number {
  const wide = /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]/u;
  return wide.test(char) || /\p{Extended_Pictographic}/u.test(char) ? 2 : 1;
}

/** The text in exactly that many columns. */
function fitted(text: string, width: number, right = false): string {
  let used = 0;
  let kept = '';
  for (const char of text) {
    if (used + charWidth(char) > width) {
      // a cut is marked
      const last = [...kept].at(-1) ?? '';
      kept = `${kept.slice(0, kept.length - last.length)}~`;
      used += 1 - charWidth(last === '' ? ' ' : last);
      break;
    }
    kept += char;
    used += charWidth(char);
  }
  const space = ' '.repeat(Math.max(0, width - used));
  return right ? space + kept : kept + space;
}

const NUMBER_WIDTHS = [6, 7, 8, 7, 8, 7, 5, 9];

function line(cells: readonly string[], nameWidth: number): string {
  const [database = '', user = '', ...numbers] = cells;
  const names = [fitted(database, nameWidth), fitted(user, nameWidth)].join(' ');
  return names + numbers.map((cell, at) => fitted(cell, NUMBER_WIDTHS[at] ?? 8, true)).join('');
}

/** The table for scripts: a heading and a line for each pool, columns separated by spaces, no spaces in names. */
export function plainTable(pools: readonly PoolLine[]): string {
  const names = ['database', 'user', 'saturation', 'cl_active', 'cl_waiting', 'sv_active', 'sv_idle', 'sv_other'];
  const rows = [
    [...names, 'pool_size', 'maxwait_ms'],
    ...pools.map((pool) => [...cellsOf(pool).slice(0, -1), String(pool.maxWait)]),
  ];
  const widths = rows[0]?.map((_, at) => Math.max(...rows.map((row) => [...(row[at] ?? '')].length))) ?? [];
  const text = (row: string[]) => row.map((cell, at) => fitted(cell, widths[at] ?? 0, at > 1)).join('  ');
  return `${rows.map((row) => text(row).trimEnd()).join('\n')}\n`;
}

function rates(now: Sample, before: Sample | null): string {
  if (before === null || now.at <= before.at) return 'rates: after the next second';
  const more = (column: string) => Math.max(0, (now.totals[column] ?? 0) - (before.totals[column] ?? 0));
  const seconds = (now.at - before.at) / 1000;
  const mean = (time: string, count: string) => milliseconds(more(count) > 0 ? more(time) / more(count) / 1000 : NaN);
  return [
    `${Math.round(more('query_count') / seconds)} queries/s  ${Math.round(more('xact_count') / seconds)} transactions/s`,
    `query ${mean('query_time', 'query_count')}  transaction ${mean('xact_time', 'xact_count')}`,
    `wait ${mean('wait_time', 'server_assignment_count')}`,
  ].join('  ');
}

interface View {
  columns: number;
  rows: number;
  /** index in ORDERS */
  order: number;
  /** first pool that is shown */
  from: number;
  clock: string;
  /** why there is no newer sample, as a byte string; '' = there is */
  trouble: string;
  colour: boolean;
}

/** Lines of a screen that are not pools. */
export const FRAME_LINES = 6;

/** A screen, exactly as many lines as it has rows. */
export function screen(now: Sample | null, before: Sample | null, view: View): string[] {
  const { columns, rows, order, from, clock, trouble, colour } = view;
  const style = (code: string, text: string) => (colour ? `\x1b[${code}m${text}\x1b[0m` : text);
  const plain = (text: string) => fitted(text, columns);
  const pools = sorted(now?.pools ?? [], order);
  const sum = (value: (pool: PoolLine) => number) => pools.reduce((total, pool) => total + value(pool), 0);
  const longest = Math.max(0, ...pools.map(({ maxWait }) => maxWait));
  const nameWidth = Math.max(8, Math.min(30, Math.floor((columns - NUMBER_WIDTHS.reduce((a, b) => a + b) - 1) / 2)));
  const room = Math.max(0, rows - FRAME_LINES);
  const shown = pools.slice(from, from + room);
  const title = `tsbouncer top  ${clock}  ${pools.length} pools, by ${ORDERS[order]?.name}`;
  const lines = [
    trouble === '' ? style('1', plain(title)) : style('1;31', plain(`${title}  ${shownText(trouble)}`)),
    plain(
      `clients ${sum((p) => p.active)} active, ${sum((p) => p.waiting)} waiting, maxwait ${milliseconds(longest)}  ` +
        `servers ${sum((p) => p.serversActive)} active, ${sum((p) => p.serversIdle)} idle, ${sum((p) => p.serversOther)} other`,
    ),
    plain(now === null ? '' : rates(now, before)),
    plain(''),
    style('7', plain(line(HEADINGS, nameWidth))),
    ...shown.map((pool) => {
      const text = plain(line(cellsOf(pool), nameWidth));
      if (pool.waiting > 0) return style('33', text);
      return pool.saturation === 0 ? style('2', text) : text;
    }),
  ];
  while (lines.length < rows - 1) lines.push(plain(''));
  const more = pools.length > room ? `  pools ${from + 1}-${from + shown.length} of ${pools.length}` : '';
  lines.push(style('2', plain(`q quit  s next order  arrows scroll, order${more}`)));
  return lines.slice(0, rows);
}
