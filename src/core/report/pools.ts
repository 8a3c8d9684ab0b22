/*
 * Rows of pools: the numbers of their connections by state, and how long their clients wait.
 */

import { nextOf } from '../base/list';
import { getCachedTime } from '../base/time';
import { poolModeMap } from '../config/choices';
import { formatLookup } from '../config/values';
import { poolPoolMode } from '../pool/admission';
import type { PgPool } from '../pool/bouncer';
import { peerPoolList, poolList } from '../pool/pool';
import { loadBalanceName } from './databases';

/** The fields of the pool of a peer, which has no other connections than those of cancel requests. */
interface CancelCounts {
  readonly clActiveCancelReq: number;
  readonly clWaitingCancelReq: number;
  readonly svActiveCancel: number;
  readonly svLogin: number;
}

interface PeerPoolRow extends CancelCounts {
  readonly peerId: number;
}

interface PoolRow extends CancelCounts {
  readonly database: string;
  readonly user: string | null;
  readonly clActive: number;
  readonly clWaiting: number;
  readonly svActive: number;
  readonly svBeingCanceled: number;
  readonly svIdle: number;
  readonly svUsed: number;
  readonly svTested: number;
  /** how long the first client in the queue has waited, usec */
  readonly maxWait: number;
  readonly poolMode: string;
  /** null if the database has a single host */
  readonly loadBalanceHosts: string | null;
}

function cancelCounts(pool: PgPool): CancelCounts {
  return {
    clActiveCancelReq: pool.activeCancelReqList.count,
    clWaitingCancelReq: pool.waitingCancelReqList.count,
    svActiveCancel: pool.activeCancelServerList.count,
    svLogin: pool.newServerList.count,
  };
}

/**
 * How long the first client in the queue has waited, usec. In PgBouncer, that is 0 for a client that is logging in.
 * @param now usec
 */
export function maxWait(pool: PgPool, now: number): number {
  const waiter = pool.waitingClientList.head;
  if (waiter === null) return 0;
  const since = waiter.queryStart > 0 ? waiter.queryStart : waiter.waitStart;
  return since > 0 ? now - since : 0;
}

function poolRow(pool: PgPool, now: number): PoolRow {
  return {
    ...cancelCounts(pool),
    database: pool.db.name,
    user: pool.user?.name ?? null,
    clActive: pool.activeClientList.count,
    clWaiting: pool.waitingClientList.count,
    svActive: pool.activeServerList.count,
    svBeingCanceled: pool.beingCanceledServerList.count,
    svIdle: pool.idleServerList.count,
    svUsed: pool.usedServerList.count,
    svTested: pool.testedServerList.count,
    maxWait: maxWait(pool, now),
    poolMode: formatLookup(poolModeMap, poolPoolMode(pool)),
    loadBalanceHosts: loadBalanceName(pool.db),
  };
}

export function* poolRows(): Generator<PoolRow> {
  const now = getCachedTime();
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) yield poolRow(pool, now);
}

export function* peerPoolRows(): Generator<PeerPoolRow> {
  for (let pool = peerPoolList.head; pool !== null; pool = nextOf(pool)) {
    yield { ...cancelCounts(pool), peerId: pool.db.peerId };
  }
}
