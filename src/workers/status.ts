/*
 * /status.json, from which the live page draws itself: what the last report says of all pools, the last minutes from
 * history.ts, and the last lines of the log. Numbers have the names of the console's columns; times are in usec, unless the
 * name says otherwise.
 */

import type { LogLine, MetricsReport } from '../core/base/worker-messages';
import { History, type PoolRates, SAMPLES_MAX, saturation, TOTAL_COLUMNS } from './history';
import type { KnownPool, MetricsState } from './metrics-state';
import { histogramWidth, percentiles } from './percentiles';

/** Pools in an answer. */
const POOLS_MAX = 200;
/** Databases in an answer that are paused or disabled. */
const DATABASES_MAX = 100;
/** Lines of the log that are kept. */
const LINES_MAX = 100;
/** Points of the small chart of a pool. */
const DEMAND_POINTS = 60;
/** Saturation and rates of a pool are means of so many samples, mean times of so many. */
const RATE_SAMPLES = 10;
const TIME_SAMPLES = 60;
const PERCENTILES = [0.5, 0.95, 0.99];
/** Longest text to search for. */
const FILTER_MAX = 100;

const POOL_GAUGES = [
  ...['cl_active', 'cl_waiting', 'cl_active_cancel_req', 'cl_waiting_cancel_req'],
  ...['sv_active', 'sv_active_cancel', 'sv_being_canceled', 'sv_idle', 'sv_used', 'sv_tested', 'sv_login'],
  ...['maxwait', 'pool_size'],
];

const NO_RATES: PoolRates = {
  active: 0,
  waiting: 0,
  queries: 0,
  transactions: 0,
  queryTime: 0,
  transactionTime: 0,
  waitTime: 0,
};

interface NumberedLine extends LogLine {
  id: number;
}

/** What a page has already, so that it gets only what is new. */
interface Question {
  /** number of the last sample that it has of this process */
  since: number;
  /** number of the last line */
  lines: number;
  /** shows pools whose database or user has this in its name; '' = all */
  filter: string;
}

function wholeNumber(text: string | null): number {
  return text !== null && /^\d{1,15}$/.test(text) ? Number(text) : 0;
}

/** @param search the part of the address behind the question mark */
export function readQuestion(search: string): Question {
  const given = new URLSearchParams(search);
  const same = wholeNumber(given.get('process')) === process.pid;
  return {
    since: same ? wholeNumber(given.get('since')) : 0,
    lines: same ? wholeNumber(given.get('lines')) : 0,
    filter: (given.get('filter') ?? '').slice(0, FILTER_MAX).toLowerCase(),
  };
}

/** A pool in an answer. */
interface Shown {
  id: number;
  pool: KnownPool;
  numbers: number[];
  saturation: number;
  rates: PoolRates;
}

export class Status {
  readonly history: History;
  private readonly lines: NumberedLine[] = [];
  private linesEver = 0;
  private linesLeftOut = 0;

  constructor(private readonly state: MetricsState) {
    this.history = new History(state.layout);
  }

  /** Takes up what a report has added to the state. */
  add({ more, live: { time, lines, linesLeftOut } }: MetricsReport): void {
    // a sample is made when the state is complete
    if (!more) this.history.add(this.state.pools, time);
    this.linesLeftOut += linesLeftOut;
    for (const line of lines) this.lines.push({ ...line, id: ++this.linesEver });
    this.lines.splice(0, this.lines.length - LINES_MAX);
  }

  /** The answer; null before the first report. @param assets changes with the files of the page */
  text({ since, lines, filter }: Question, assets: string): string | null {
    const { report } = this.state;
    if (report === null) return null;
    const { version, time, wall, up, reboots } = report.live;
    return JSON.stringify({
      assets,
      version,
      pid: process.pid,
      time: time / 1e6,
      wall,
      up,
      notReady: report.notReady,
      clients: report.lists.usedClients ?? 0,
      loginClients: report.lists.loginClients ?? 0,
      maxClientConn: report.maxClientConn,
      history: this.samplesSince(since),
      percentiles: this.percentiles(),
      pools: this.pools(filter),
      databases: stoppedDatabases(this.state),
      lines: this.lines.filter(({ id }) => id > lines),
      linesEver: this.linesEver,
      linesLeftOut: this.linesLeftOut,
      reboots,
    });
  }

  private samplesSince(since: number): object {
    const { totals } = this.history;
    const rows: number[][] = [];
    for (let at = Math.max(totals.first, since); at < totals.count; at++) rows.push([...totals.slot(at)]);
    return { columns: TOTAL_COLUMNS, keep: SAMPLES_MAX, count: totals.count, rows };
  }

  /** Percentiles of the last five minutes, for each histogram. */
  private percentiles(): Record<string, number[]> {
    const { layout } = this.state;
    const counted = this.history.timings.sum(SAMPLES_MAX);
    const width = histogramWidth(layout);
    const found = layout.timings.map((name, at) => [
      name,
      percentiles(counted, at * width, layout.timingBounds, PERCENTILES),
    ]);
    return Object.fromEntries(found);
  }

  /** The pools that are saturated most. */
  private pools(filter: string): object {
    const found: Shown[] = [];
    for (const [id, pool] of this.state.pools) {
      const { database, user } = pool;
      if (filter !== '' && ![database, user].some((name) => name.toLowerCase().includes(filter))) continue;
      found.push(this.shown(id, pool));
    }
    const wait = POOL_GAUGES.indexOf('maxwait');
    found.sort(
      (a, b) =>
        compare(b.saturation, a.saturation) ||
        compare(b.numbers[wait] as number, a.numbers[wait] as number) ||
        compare(b.rates.queries, a.rates.queries),
    );
    const rows = found.slice(0, POOLS_MAX).map(({ id, pool: { database, user }, numbers, rates }) => {
      return [database, user, ...numbers, ...this.means(id, rates), this.history.demand(id, DEMAND_POINTS)];
    });
    const means = ['mean_active', 'mean_waiting', 'queries', 'transactions'];
    const times = ['query_time', 'xact_time', 'wait_time', 'query_p95'];
    const columns = ['database', 'user', ...POOL_GAUGES, ...means, ...times, 'demand'];
    return { columns, count: this.state.pools.size, found: found.length, rows };
  }

  private shown(id: number, pool: KnownPool): Shown {
    const { layout } = this.state;
    const number = (name: string) => pool.numbers[layout.pool.indexOf(name)] ?? 0;
    const rates = this.history.rates(id, RATE_SAMPLES) ?? {
      ...NO_RATES,
      active: number('sv_active'),
      waiting: number('cl_waiting'),
    };
    const part = saturation(rates.active, rates.waiting, number('pool_size'));
    return { id, pool, numbers: POOL_GAUGES.map(number), saturation: part, rates };
  }

  /** Means of the last seconds, and times of the last minute. */
  private means(id: number, now: PoolRates): number[] {
    const { layout } = this.state;
    const minute = this.history.rates(id, TIME_SAMPLES) ?? NO_RATES;
    const counted = this.history.lastMinute(id);
    const from = layout.timings.indexOf('query') * histogramWidth(layout);
    const [p95 = 0] = counted === null ? [] : percentiles(counted, from, layout.timingBounds, [0.95]);
    return [
      ...[now.active, now.waiting, now.queries, now.transactions].map((value) => Math.round(value * 100) / 100),
      ...[minute.queryTime, minute.transactionTime, minute.waitTime, p95].map(Math.round),
    ];
  }
}

function compare(a: number, b: number): number {
  if (a === b) return 0;
  return a < b ? -1 : 1;
}

/** Databases that are paused or disabled. */
function stoppedDatabases({ databases, layout }: MetricsState): object[] {
  const [paused, disabled] = ['paused', 'disabled'].map((name) => layout.database.indexOf(name));
  const found: object[] = [];
  for (const { labels, numbers } of databases.values()) {
    const is = (column = -1) => numbers[column] === 1;
    if (!is(paused) && !is(disabled)) continue;
    found.push({ name: labels.name, paused: is(paused), disabled: is(disabled) });
    if (found.length === DATABASES_MAX) break;
  }
  return found;
}
