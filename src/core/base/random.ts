/*
 * Random bytes for keys and nonces.
 */

import { randomBytes } from 'node:crypto';
import { detachBytes } from './strutil';

/** Bytes are fetched in bulk, so that one system call serves many logins. */
const POOL_BYTES = 4096;
let pool = Buffer.alloc(0);
let used = 0;

/** @returns where the bytes begin in the pool */
function take(count: number): number {
  if (used + count > pool.length) {
    pool = randomBytes(POOL_BYTES);
    used = 0;
  }
  used += count;
  return used - count;
}

/** @param count at most 4096 @returns bytes that no other caller gets, in memory of their own */
export function takeRandom(count: number): Buffer {
  const from = take(count);
  return detachBytes(pool, from, used);
}

/** Like takeRandom(), but in base64. */
export function takeRandomText(count: number): string {
  const from = take(count);
  return pool.toString('base64', from, used);
}
