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

/** usec between checks of the settling pools */
const REST = 2000;
/** Number of checks after which a pool resumes, even if clients still vanish. */
const LOOKS_MAX = 5;

interface Rest {
  /** another client has vanished since the last check */
  again: boolean;
  looks: number;
}

const resting = new Map<PgPool, Rest>();

const timer = newTimer(() => {
  for (const [pool, rest] of resting) {
    rest.looks++;
    if (rest.again && rest.looks < LOOKS_MAX && !pool.dead) {
      rest.again = false;
      continue;
    }
    resting.delete(pool);
    if (!pool.dead) touchPool(pool);
  }
  if (resting.size > 0) timerStart(timer, REST, 0);
});

/** A client of this pool vanished and left a server behind. */
export function startSettling(pool: PgPool): void {
  if (pool.waitingClientList.count === 0) return;
  const rest = resting.get(pool);
  if (rest !== undefined) {
    rest.again = true;
    return;
  }
  resting.set(pool, { again: false, looks: 0 });
  if (resting.size === 1) timerStart(timer, REST, 0);
}

/** True while idle servers of this pool are not assigned to waiting clients. */
export function isSettling(pool: PgPool): boolean {
  return resting.size > 0 && resting.has(pool);
}
