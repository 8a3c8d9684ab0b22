/*
 * The counters of a pool, in a typed array, so that counting allocates nothing; and their averages over the last stats
 * period.
 */
import { getCachedTime, USEC } from '../base/time';

/** The index of each counter. */
export const enum Stat {
  SERVER_ASSIGNMENT_COUNT = 0,
  XACT_COUNT,
  QUERY_COUNT,
  /** bytes from clients */
  CLIENT_BYTES,
  /** bytes from servers */
  SERVER_BYTES,
  /** usec */
  XACT_TIME,
  /** usec */
  QUERY_TIME,
  /** usec that clients waited for a server */
  WAIT_TIME,
  PS_CLIENT_PARSE_COUNT,
  PS_SERVER_PARSE_COUNT,
  PS_BIND_COUNT,
  CLIENT_LOGIN_COUNT,
  SIZE,
}

/**
 * The name of each counter, by its index. SHOW TOTALS adds the prefixes `total_` and `avg_`; a handover identifies
 * counters by these names, so a name never changes its meaning.
 */
export const statNames: readonly string[] = [
  'server_assignment_count',
  'xact_count',
  'query_count',
  'client_bytes',
  'server_bytes',
  'xact_time',
  'query_time',
  'wait_time',
  'ps_client_parse_count',
  'ps_server_parse_count',
  'ps_bind_count',
  'client_login_count',
];

export type PgStats = Float64Array;

export function newStats(): PgStats {
  return new Float64Array(Stat.SIZE);
}

/** Adds `n` to a counter. */
export function count(stats: PgStats, stat: Stat, n: number): void {
  stats[stat] = (stats[stat] as number) + n;
}

export function statAdd(total: PgStats, stat: PgStats): void {
  for (let i = 0; i < Stat.SIZE; i++) total[i] = (total[i] as number) + (stat[i] as number);
}

/** usec: the beginnings of the last period (averages are relative to its older_stats) and of the current period */
export const statsStamps = { old: 0, now: 0 };

/** Per-second rates of the counts, per-event means of the times. @returns a new set */
export function calcAverage(cur: PgStats, old: PgStats): PgStats {
  const avg = newStats();
  const duration = getCachedTime() - statsStamps.old;
  if (duration <= 0) return avg;
  for (let i = 0; i < Stat.SIZE; i++) {
    avg[i] = Math.floor((USEC * ((cur[i] as number) - (old[i] as number))) / duration);
  }
  meanTime(avg, cur, old, Stat.QUERY_TIME, Stat.QUERY_COUNT);
  meanTime(avg, cur, old, Stat.XACT_TIME, Stat.XACT_COUNT);
  meanTime(avg, cur, old, Stat.WAIT_TIME, Stat.SERVER_ASSIGNMENT_COUNT);
  return avg;
}

function meanTime(avg: PgStats, cur: PgStats, old: PgStats, time: Stat, count: Stat): void {
  const events = (cur[count] as number) - (old[count] as number);
  avg[time] = events > 0 ? Math.floor(((cur[time] as number) - (old[time] as number)) / events) : 0;
}
