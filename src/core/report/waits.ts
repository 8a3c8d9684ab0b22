/*
 * Who waits for whom: the pools with waiting clients, what these wait for, and which pools have the connections.
 */

import { getPauseMode, PauseMode } from '../base/lifecycle';
import { nextOf } from '../base/list';
import { compareNames } from '../base/strutil';
import { getCachedTime } from '../base/time';
import { isWithoutPassword } from '../link/password-command';
import { databaseMaxConnections, poolPoolSize, userMaxConnections } from '../pool/admission';
import type { PgPool } from '../pool/bouncer';
import { poolList, poolServerCount } from '../pool/pool';
import { maxWait } from './pools';

interface WaitRow {
  readonly database: string;
  readonly user: string;
  readonly clWaiting: number;
  /** usec */
  readonly maxWait: number;
  /** the setting that keeps the pool from opening a connection, or what happens instead */
  readonly waitsFor: string;
  /** the pools that have the connections, and how many */
  readonly heldBy: string;
}

/** Most pools that a row names. */
const HOLDERS_MAX = 5;

function holders(pools: readonly PgPool[], nameOf: (pool: PgPool) => string): string {
  const held = pools.map((pool): [string, number] => [nameOf(pool), poolServerCount(pool)]).filter(([, n]) => n > 0);
  held.sort((a, b) => b[1] - a[1] || compareNames(a[0], b[0]));
  const named = held.slice(0, HOLDERS_MAX).map(([name, count]) => `${name}=${count}`);
  if (held.length > HOLDERS_MAX) named.push(`${held.length - HOLDERS_MAX} more`);
  return named.join(', ');
}

const userOf = (pool: PgPool): string => pool.user?.name ?? '';

function reason(pool: PgPool): [waitsFor: string, heldBy: string] {
  const { db } = pool;
  const count = poolServerCount(pool);
  if (getPauseMode() !== PauseMode.NONE || db.paused) return ['pause', ''];
  if (pool.holding) return ['target_session_attrs', ''];
  if (pool.newServerList.count > 0) return ['server login', ''];
  if (pool.lastConnectFailed) return ['server_login_retry', ''];
  if (isWithoutPassword(pool)) return ['password_command', ''];
  const size = poolPoolSize(pool);
  if (size > 0 && count >= size) return ['pool_size', holders([pool], userOf)];
  const ofDb = databaseMaxConnections(db);
  if (ofDb > 0 && db.connectionCount >= ofDb) return ['max_db_connections', holders(db.pools, userOf)];
  const user = pool.user?.globalUser ?? null;
  const ofUser = user === null ? 0 : userMaxConnections(user);
  if (user !== null && ofUser > 0 && user.connectionCount >= ofUser)
    return ['max_user_connections', holders(user.pools, (one) => one.db.name)];
  return ['server', ''];
}

/** The pools that have waiting clients, in the order of SHOW POOLS. */
export function* waitRows(): Generator<WaitRow> {
  const now = getCachedTime();
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    const clWaiting = pool.waitingClientList.count;
    if (clWaiting === 0) continue;
    const [waitsFor, heldBy] = reason(pool);
    yield { database: pool.db.name, user: userOf(pool), clWaiting, maxWait: maxWait(pool, now), waitsFor, heldBy };
  }
}
