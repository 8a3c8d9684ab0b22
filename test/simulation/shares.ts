/*
 * The invariant of fair shares (fair_share_timeout). A pool without a connection, or below its share_minimum, must not
 * wait for ever. It does if another pool of its database has more than its share, and keeps giving connections to its
 * own clients. Only for pools that release their connections after each transaction.
 */

import { ListenMode, PoolMode } from '../../src/core/config/choices';
import { type PgDatabase, type PgPool, Replication, type ServerSocket } from '../../src/core/pool/bouncer';
import type { Heads } from './core';

/** So many connections may be given to the clients of pools that have more: other pools may be served first. */
const PASSED_OVER_MAX = 10;

const minimumOf = (pool: PgPool): number => pool.user?.globalUser?.config.shareMinimum ?? 0;

export class Shares {
  /** by pool: how often others got a connection while it waited */
  private readonly passedOver = new WeakMap<PgPool, number>();
  /** the client that each server had at the end of the last turn */
  private readonly clients = new WeakMap<ServerSocket, number>();

  /** @returns the description of a pool that waits for too long, or null */
  broken(heads: Heads): string | null {
    const { cf } = heads.settings;
    const applies = cf.poolMode !== PoolMode.SESSION && cf.listenMode !== ListenMode.PIN;
    const { autodatabaseIdleList, databaseList } = heads.database;
    for (const list of [databaseList, autodatabaseIdleList]) {
      for (let db = list.head; db !== null; db = db.next as PgDatabase | null) {
        const given = applies ? this.given(heads, db) : 0;
        for (const pool of db.pools) {
          const count = applies && this.deserves(heads, pool) ? (this.passedOver.get(pool) ?? 0) + given : 0;
          this.passedOver.set(pool, count);
          if (count > PASSED_OVER_MAX)
            return `${db.name}/${pool.user?.name} waits with ${heads.pool.poolServerCount(pool)} connections, and others got ${count}`;
        }
      }
    }
    return null;
  }

  /** How many connections the pools with more than their share have given to their own clients since the last turn. */
  private given(heads: Heads, db: PgDatabase): number {
    let given = 0;
    for (const pool of db.pools) {
      const left = heads.pool.poolServerCount(pool) - 1;
      const isOver = left >= 1 && left >= minimumOf(pool);
      heads.states.forEachServer(pool, (server) => {
        const client = server.link?.id ?? 0;
        const isNew = client !== 0 && this.clients.get(server) !== client && this.clients.has(server);
        if (isNew && isOver) given++;
        this.clients.set(server, client);
      });
    }
    return given;
  }

  /** True if a pool has waited long enough for a connection that it could open at once. */
  private deserves(heads: Heads, pool: PgPool): boolean {
    const { getPauseMode, getShutdownMode, isTakingOver, ownsListeners } = heads.lifecycle;
    const { cf } = heads.settings;
    if (cf.fairShareTimeout === 0 || heads.admission.databaseMaxConnections(pool.db) <= 0) return false;
    if (getPauseMode() !== 0 || getShutdownMode() !== 0 || isTakingOver() || !ownsListeners()) return false;
    const { db, lastConnectFailed, waitingClientList, newServerList, waitingCancelReqList } = pool;
    if (db.admin || db.paused || lastConnectFailed || newServerList.count > 0 || waitingCancelReqList.count > 0)
      return false;
    const count = heads.pool.poolServerCount(pool);
    if (count > 0 && count >= minimumOf(pool)) return false;
    const size = heads.admission.poolPoolSize(pool);
    if (size > 0 && count >= size) return false;
    const waiter = waitingClientList.head;
    if (waiter === null || waiter.replication !== Replication.NONE) return false;
    return heads.time.getCachedTime() - waiter.waitStart >= cf.fairShareTimeout;
  }
}
