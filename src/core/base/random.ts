/*
 * Random bytes for keys and nonces.
 */

import { randomBytes } from 'node:crypto';

/** Bytes are fetched in bulk, so that one system call serves many logins. */
const POOL_BYTES = 4096;
let pool = Buffer.alloc(0);
let used = 0;

/** @param count at most 4096 @returns bytes that no other caller gets */
export function takeRandom(count: number): Buffer {
  if (used + count > pool.length) {
    pool = randomBytes(POOL_BYTES);
    used = 0;
  }
  const bytes = pool.subarray(used, used + count);
  used += count;
  return bytes;
}
