/*
 * A short delay in reusing servers after clients vanish. When a program is killed, its connections end one after
 * another, within a few milliseconds. The server left by the first of them would go to a waiting client of the same
 * program whose end has not arrived yet, and would then have to be closed. So servers left behind stay idle until no
 * more clients of the pool vanish. Only clients that vanish without Terminate start this, and only in a pool with
 * waiting clients.
 */

import { newTimer, timerStart } from '../base/timer';
import type { PgPool } from '../pool/bouncer';
import { touchPool } from '../pool/pool';

/** Interval between checks of the settling pools. usec */
const INTERVAL = 2000;
/** Number of checks after which a pool resumes, even if clients still vanish. */
const CHECKS_MAX = 5;

interface Settling {
  /** another client has vanished since the last check */
  again: boolean;
  checks: number;
}

const settlingPools = new Map<PgPool, Settling>();

const timer = newTimer(() => {
  for (const [pool, settling] of settlingPools) {
    settling.checks++;
    if (settling.again && settling.checks < CHECKS_MAX && !pool.dead) {
      settling.again = false;
      continue;
    }
    settlingPools.delete(pool);
    if (!pool.dead) touchPool(pool);
  }
  if (settlingPools.size > 0) timerStart(timer, INTERVAL, 0);
});

/** A client of this pool vanished and left a server behind. */
export function startSettling(pool: PgPool): void {
  if (pool.waitingClientList.count === 0) return;
  const settling = settlingPools.get(pool);
  if (settling !== undefined) {
    settling.again = true;
    return;
  }
  settlingPools.set(pool, { again: false, checks: 0 });
  if (settlingPools.size === 1) timerStart(timer, INTERVAL, 0);
}

/** True while idle servers of this pool are not assigned to waiting clients. */
export function isSettling(pool: PgPool): boolean {
  return settlingPools.size > 0 && settlingPools.has(pool);
}
