/*
 * When a program is killed, its connections end one after another, within some milliseconds. A server that the first of
 * them leaves behind would go to a waiting client of the same program whose end has not arrived yet, and would have to be
 * closed when it does. So the pool rests for a moment: servers left behind stay idle until no more clients vanish.
 * Only clients that vanish without Terminate cause this, and only in a pool where clients wait.
 */

import { newTimer, timerStart } from '../base/timer';
import type { PgPool } from '../pool/bouncer';
import { touchPool } from '../pool/pool';

/** usec between looks at the pools that rest */
const REST = 2000;
/** Looks after which a pool is served again, whether clients still vanish or not. */
const LOOKS_MAX = 5;

interface Rest {
  /** another client has vanished since the last look */
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

/** A client of this pool vanished, and leaves a server behind. */
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

/** True while idle servers of this pool are not given to waiting clients. */
export function isSettling(pool: PgPool): boolean {
  return resting.size > 0 && resting.has(pool);
}
