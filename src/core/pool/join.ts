/*
 * Two pools of a database become one: RELOAD has changed its forced user to a user who has clients there already.
 */

import { moveServerCount } from './admission';
import type { PgCredentials, PgDatabase } from './bouncer';
import { countedServers, findPool } from './pool';
import { moveSockets } from './states';

/**
 * A database has got another forced user: if that has a pool there, its connections join those of the former user. The
 * pool of the former user, with all of them, can then become that of the new one. Two listening connections are not
 * joined: both pools stay.
 */
export function joinPools(db: PgDatabase, before: PgCredentials, user: PgCredentials): void {
  const [{ globalUser: former }, { globalUser: latter }] = [before, user];
  if (former === null || latter === null || former === latter) return;
  const [from, to] = [findPool(db, latter), findPool(db, former)];
  if (from === null || to === null || to.user !== before) return;
  if (from.listening !== null && to.listening !== null) return;
  moveServerCount(latter, former, countedServers(from));
  moveSockets(from, to);
  to.listening ??= from.listening;
  from.listening = null;
}
