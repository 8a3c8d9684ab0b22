/*
 * The statistics period: advances the snapshots that averages are relative to, and writes the log line.
 */

import { nextOf } from '../base/list';
import { logStats } from '../base/log';
import { notify, notifyState } from '../base/systemd';
import { getCachedTime, USEC } from '../base/time';
import { newTimer, timerStart } from '../base/timer';
import { showsClientLogins } from '../config/compat';
import { cf } from '../config/settings';
import { poolList } from '../pool/pool';
import { calcAverage, newStats, type PgStats, Stat, statAdd, statsStamps } from '../pool/stats';

function statsLine(avg: PgStats): string {
  const logins = showsClientLogins() ? ` ${avg[Stat.CLIENT_LOGIN_COUNT]} client logins/s,` : '';
  return (
    `stats: ${avg[Stat.XACT_COUNT]} xacts/s, ${avg[Stat.QUERY_COUNT]} queries/s,` +
    ` ${avg[Stat.PS_CLIENT_PARSE_COUNT]} client parses/s, ${avg[Stat.PS_SERVER_PARSE_COUNT]} server parses/s,` +
    ` ${avg[Stat.PS_BIND_COUNT]} binds/s,${logins}` +
    ` in ${avg[Stat.CLIENT_BYTES]} B/s, out ${avg[Stat.SERVER_BYTES]} B/s,` +
    ` xact ${avg[Stat.XACT_TIME]} us, query ${avg[Stat.QUERY_TIME]} us, wait ${avg[Stat.WAIT_TIME]} us`
  );
}

function refreshStats(): void {
  statsStamps.old = statsStamps.now;
  statsStamps.now = getCachedTime();
  const wanted = cf.logStats || notifyState.socket !== null;
  const total = newStats();
  const before = newStats();
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    pool.olderStats.set(pool.newerStats);
    pool.newerStats.set(pool.stats);
    if (!wanted) continue;
    statAdd(total, pool.stats);
    statAdd(before, pool.olderStats);
  }
  if (!wanted) return;
  const line = statsLine(calcAverage(total, before));
  if (cf.logStats) logStats(line);
  // the micro sign in UTF-8, because systemctl status shows this line
  notify(`STATUS=${line.replaceAll(' us', ' \xc2\xb5s')}`);
}

const timer = newTimer(refreshStats);

/** Starts the periods of stats_period seconds; called again after the setting changed. */
export function statsSetup(): void {
  if (statsStamps.now === 0) {
    statsStamps.now = getCachedTime();
    statsStamps.old = statsStamps.now - USEC;
  }
  const period = Math.max(cf.statsPeriod, 1) * USEC;
  timerStart(timer, period, period);
}
