/*
 * The last minutes of all pools together and of the busiest pools, one sample a second, in memory of a fixed size. Used by
 * status.ts.
 */

import type { MetricsLayout } from '../core/base/worker-messages';
import type { KnownPool } from './metrics-state';
import { addCounted, histogramWidth } from './percentiles';

/** Samples of a ring: five minutes. */
export const SAMPLES_MAX = 300;
/** Pools that have a ring of their own. */
const RINGS_MAX = 200;
/** The histograms of a busy pool are remembered every so many samples, and so many times. */
const SNAPSHOT_EVERY = 15;
const SNAPSHOTS_MAX = 4;

/** Numbers of a sample that are a difference to the sample before. */
const COUNTERS = [
  'query_count',
  'query_time',
  'xact_count',
  'xact_time',
  'server_assignment_count',
  'wait_time',
  'client_bytes',
  'server_bytes',
  'client_login_count',
];
/** Numbers of a sample that are added over all pools. */
const GAUGES = [
  'cl_active',
  'cl_waiting',
  'sv_active',
  'sv_active_cancel',
  'sv_being_canceled',
  'sv_idle',
  'sv_used',
  'sv_tested',
  'sv_login',
];
/** The columns of a sample of all pools: seconds of the monotonic clock, seconds since the sample before, and numbers. */
export const TOTAL_COLUMNS = ['time', 'seconds', 'maxwait', ...COUNTERS, ...GAUGES];
/** The columns of a sample of one pool. */
const RING_COLUMNS = ['seconds', 'sv_active', 'cl_waiting', ...COUNTERS.slice(0, 6)];
/** Position of the first counter in both kinds of samples. */
const COUNTERS_AT = 3;

const USEC = 1e6;
/** Decimals of a time in seconds: milliseconds. */
const MS = 1e3;

/** A ring of samples with the same number of columns. */
class Ring {
  private readonly numbers: Float64Array;
  /** samples that were ever added */
  count = 0;

  constructor(readonly width: number) {
    this.numbers = new Float64Array(width * SAMPLES_MAX);
  }

  /** The memory of a new sample, which replaces the oldest if the ring is full. */
  add(): Float64Array {
    return this.slot(this.count++).fill(0);
  }

  /** One of the last SAMPLES_MAX samples. @param at 0 = the first that was ever added */
  slot(at: number): Float64Array {
    const from = (at % SAMPLES_MAX) * this.width;
    return this.numbers.subarray(from, from + this.width);
  }

  /** Position of the oldest sample that is kept. */
  get first(): number {
    return Math.max(0, this.count - SAMPLES_MAX);
  }

  /** The sums of the last samples. */
  sum(samples: number): Float64Array {
    const sum = new Float64Array(this.width);
    for (let at = Math.max(this.first, this.count - samples); at < this.count; at++) {
      const sample = this.slot(at);
      for (let i = 0; i < this.width; i++) sum[i] = (sum[i] as number) + (sample[i] as number);
    }
    return sum;
  }
}

/** Means and rates of a pool over the last samples; times in usec. */
export interface PoolRates {
  /** servers linked to a client, and clients that wait for a server */
  active: number;
  waiting: number;
  queries: number;
  transactions: number;
  queryTime: number;
  transactionTime: number;
  waitTime: number;
}

/** What is kept of a pool: its last report, and a ring while it is among the busiest. */
interface Track {
  numbers: Float64Array | null;
  timings: Float64Array | null;
  ring: Ring | null;
  /** its histograms at earlier times, the oldest first */
  snapshots: (Float64Array | null)[];
  /** number of the sample at which it was last among the busiest */
  busyAt: number;
}

/** Servers that are in use and clients that wait for one, for each server that the pool may have. */
export function saturation(active: number, waiting: number, size: number): number {
  const demand = active + waiting;
  if (size > 0) return demand / size;
  return waiting > 0 ? Number.POSITIVE_INFINITY : 0;
}

export class History {
  readonly totals = new Ring(TOTAL_COLUMNS.length);
  /** what the histograms of all pools counted in each second */
  readonly timings: Ring;
  private readonly tracks = new Map<number, Track>();
  private rings = 0;
  private lastTime = 0;
  private readonly counters: readonly number[];
  private readonly gauges: readonly number[];
  private readonly active: number;
  private readonly waiting: number;
  private readonly size: number;
  private readonly maxWait: number;

  constructor(layout: MetricsLayout) {
    const at = (name: string) => layout.pool.indexOf(name);
    this.timings = new Ring(layout.timings.length * histogramWidth(layout));
    this.counters = COUNTERS.map(at);
    this.gauges = GAUGES.map(at);
    this.active = at('sv_active');
    this.waiting = at('cl_waiting');
    this.size = at('pool_size');
    this.maxWait = at('maxwait');
  }

  /** Adds a sample. @param time monotonic, in usec */
  add(pools: ReadonlyMap<number, KnownPool>, time: number): void {
    const first = this.totals.count === 0;
    // without a later time there is nothing to measure against
    if (!first && time <= this.lastTime) return;
    const seconds = first ? 0 : (time - this.lastTime) / USEC;
    this.lastTime = time;
    this.forget(pools);
    const total = this.totals.add();
    const times = this.timings.add();
    total[0] = Math.round((time / USEC) * MS) / MS;
    total[1] = Math.round(seconds * MS) / MS;
    const busy: [number, Track][] = [];
    for (const [id, pool] of pools) {
      const track = this.trackOf(id);
      const score = this.addPool(total, pool, track, seconds, first);
      this.addTimings(times, pool, track, first);
      if (score > 0) busy.push([score, track]);
    }
    this.giveRings(busy);
  }

  /** Clients with or waiting for a server, the most in each of `parts` equal parts of the last five minutes. */
  demand(id: number, parts: number): number[] {
    const ring = this.tracks.get(id)?.ring;
    const length = SAMPLES_MAX / parts;
    const most = new Array<number>(parts).fill(0);
    for (let back = 0; ring && back < SAMPLES_MAX && back < ring.count; back++) {
      const part = parts - 1 - Math.floor(back / length);
      const [, active = 0, waiting = 0] = ring.slot(ring.count - 1 - back);
      most[part] = Math.max(most[part] as number, active + waiting);
    }
    return most;
  }

  /** Rates and mean times over the last samples; null for a pool that is not among the busiest. */
  rates(id: number, samples: number): PoolRates | null {
    const ring = this.tracks.get(id)?.ring ?? null;
    if (ring === null || ring.count === 0) return null;
    const [seconds, active, waiting, queries, queryTime, transactions, transactionTime, waits, waitTime] =
      ring.sum(samples);
    const count = Math.min(ring.count, samples);
    const per = (value = 0, of = 0) => (of > 0 ? value / of : 0);
    return {
      active: per(active, count),
      waiting: per(waiting, count),
      queries: per(queries, seconds),
      transactions: per(transactions, seconds),
      queryTime: per(queryTime, queries),
      transactionTime: per(transactionTime, transactions),
      waitTime: per(waitTime, waits),
    };
  }

  /** What the histograms of a busy pool counted in the last minute; null for other pools. */
  lastMinute(id: number): Float64Array | null {
    const track = this.tracks.get(id);
    if (track === undefined || track.timings === null || track.snapshots.length === 0) return null;
    const counted = new Float64Array(track.timings.length);
    addCounted(counted, track.timings, track.snapshots[0] ?? null);
    return counted;
  }

  private trackOf(id: number): Track {
    let track = this.tracks.get(id);
    if (track === undefined) {
      track = { numbers: null, timings: null, ring: null, snapshots: [], busyAt: 0 };
      this.tracks.set(id, track);
    }
    return track;
  }

  /** Forgets pools that were removed. */
  private forget(pools: ReadonlyMap<number, KnownPool>): void {
    for (const [id, { ring }] of this.tracks) {
      if (pools.has(id)) continue;
      if (ring !== null) this.rings--;
      this.tracks.delete(id);
    }
  }

  /** Adds a pool to the sample of all pools, and to its ring. @returns how busy it is, 0 = not at all */
  private addPool(total: Float64Array, pool: KnownPool, track: Track, seconds: number, first: boolean): number {
    const { numbers } = pool;
    const { counters, gauges } = this;
    const last = track.numbers;
    track.numbers = numbers;
    const active = numbers[this.active] ?? 0;
    const waiting = numbers[this.waiting] ?? 0;
    const sample = track.ring?.add() ?? null;
    if (sample !== null) {
      sample[0] = seconds;
      sample[1] = active;
      sample[2] = waiting;
    }
    let queries = 0;
    // the same array: nothing has changed
    for (let i = 0; i < counters.length && !first && numbers !== last; i++) {
      const column = counters[i] as number;
      const more = Math.max(0, (numbers[column] ?? 0) - (last?.[column] ?? 0));
      const at = COUNTERS_AT + i;
      total[at] = (total[at] as number) + more;
      if (sample !== null && at < RING_COLUMNS.length) sample[at] = more;
      if (i === 0) queries = more;
    }
    for (let i = 0; i < gauges.length; i++) {
      const at = COUNTERS_AT + counters.length + i;
      total[at] = (total[at] as number) + (numbers[gauges[i] as number] ?? 0);
    }
    total[2] = Math.max(total[2] as number, numbers[this.maxWait] ?? 0);
    if (active + waiting === 0 && queries === 0) return 0;
    const demand = saturation(active, waiting, numbers[this.size] ?? 0);
    return 1 + waiting * USEC + Math.min(demand, MS) * MS + Math.min(queries, MS) / MS;
  }

  private addTimings(times: Float64Array, { timings }: KnownPool, track: Track, first: boolean): void {
    if (timings !== null && timings !== track.timings && !first) addCounted(times, timings, track.timings);
    track.timings = timings;
    if (track.ring === null || this.totals.count % SNAPSHOT_EVERY !== 0) return;
    track.snapshots.push(timings);
    if (track.snapshots.length > SNAPSHOTS_MAX) track.snapshots.shift();
  }

  /** Gives the busiest pools a ring. It is taken from pools that have not been busy for the longest time. */
  private giveRings(busy: [number, Track][]): void {
    busy.sort(([a], [b]) => b - a);
    const wanting: Track[] = [];
    for (const [, track] of busy.slice(0, RINGS_MAX)) {
      track.busyAt = this.totals.count;
      if (track.ring === null) wanting.push(track);
    }
    const excess = this.rings + wanting.length - RINGS_MAX;
    if (excess > 0) {
      const quiet = [...this.tracks.values()].filter(({ ring, busyAt }) => ring !== null && busyAt < this.totals.count);
      quiet.sort((a, b) => a.busyAt - b.busyAt);
      for (const track of quiet.slice(0, excess)) {
        track.ring = null;
        track.snapshots = [];
        this.rings--;
      }
    }
    for (const track of wanting) {
      track.ring = new Ring(RING_COLUMNS.length);
      track.snapshots = [track.timings];
      this.rings++;
    }
  }
}
