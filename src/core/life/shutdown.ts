/*
 * The end of a shutdown that waits: when what it waits for is gone, or when shutdown_timeout has passed. Called by
 * maint.ts.
 */

import {
  forceShutdown,
  getShutdownMode,
  ShutdownMode,
  setShutdown,
  shutdownForcedAt,
  shutdownStart,
} from '../base/lifecycle';
import { nextOf } from '../base/list';
import { logInfo, logWarning } from '../base/log';
import { native } from '../base/native';
import { cf } from '../config/settings';
import { disconnectClient } from '../link/objects';
import { FORCED_TIME_MAX } from '../link/recovery';
import { cleanupUnixSockets } from '../net/pooler';
import type { ClientSocket, PgPool } from '../pool/bouncer';
import { poolClientCount, poolList, sumOfPools } from '../pool/pool';
import { socketCounts } from '../pool/states';
import { ADMIN_SHUTDOWN, TERMINATED } from './drain';

function exitNow(reason: string): void {
  logInfo(reason);
  setShutdown(ShutdownMode.IMMEDIATE);
  cleanupUnixSockets();
  native.loopBreak();
}

function cancelCount(pool: PgPool): number {
  return pool.waitingCancelReqList.count + pool.activeCancelReqList.count;
}

/** Clients of the console do not count: a tool that watches the pooler stays connected. */
function drainedClients(pool: PgPool): number {
  return poolClientCount(pool) + cancelCount(pool);
}

/** shutdown_timeout has passed: ends all clients, and cancels their queries. */
function endByForce(now: number): void {
  const left = sumOfPools(null, poolClientCount);
  logWarning(`shutdown_timeout reached, closing ${left} client connections`);
  forceShutdown(now);
  const end = (client: ClientSocket): void => {
    client.leaving = true;
    disconnectClient(client, true, TERMINATED, ADMIN_SHUTDOWN);
  };
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    if (pool.db.admin) continue;
    while (pool.waitingClientList.head !== null) end(pool.waitingClientList.head);
    while (pool.activeClientList.head !== null) end(pool.activeClientList.head);
  }
}

/** Exits if the shutdown has nothing to wait for any more. @param now usec */
export function shutdownMaint(now: number): void {
  const mode = getShutdownMode();
  if (mode === ShutdownMode.NONE || mode === ShutdownMode.IMMEDIATE) return;
  const forcedAt = shutdownForcedAt();
  if (forcedAt > 0) {
    const busy = sumOfPools(null, (pool) => pool.testedServerList.count + cancelCount(pool));
    if (busy === 0 || now - forcedAt >= FORCED_TIME_MAX) exitNow('shutdown_timeout, exiting');
  } else if (mode === ShutdownMode.WAIT_FOR_SERVERS && socketCounts.servers === 0) {
    exitNow('server connections dropped, exiting');
  } else if (mode === ShutdownMode.WAIT_FOR_CLIENTS && socketCounts.clients === 0) {
    exitNow('client connections dropped, exiting');
  } else if (mode === ShutdownMode.WAIT_FOR_TRANSACTIONS && sumOfPools(null, drainedClients) === 0) {
    exitNow('transactions ended, exiting');
  } else if (cf.shutdownTimeout > 0 && now - shutdownStart() >= cf.shutdownTimeout) {
    endByForce(now);
  }
}
