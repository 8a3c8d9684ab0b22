/*
 * Kept bytes that are asked for when the turn has no more room for them in the arena.
 */

import assert from 'node:assert/strict';
import { constants } from 'node:os';
import { arena, Ev, native } from '../../src/core/base/native';
import { startTestLoop } from '../harness/backend';
import { test } from '../harness/limits';
import { closeAll, pair, put, RECV_MAX, turn, until } from '../harness/loop-driver';

const E = constants.errno;
startTestLoop(RECV_MAX);

test('without room in the arena, resume has the bytes delivered in the next turn', () => {
  const pairs = Array.from({ length: 3 }, pair);
  arena.fill('k', 0, 1 << 20);
  for (const [, b] of pairs) native.park(b, 0, 1 << 20);
  // earlier tests have used room in the same turn
  turn(0);
  const offsets = pairs.map(([, b]) => native.resume(b));
  assert.ok((offsets[0] as number) > 0 && (offsets[1] as number) > 0);
  assert.equal(offsets[2], -E.ENOBUFS);
  assert.equal(until(Ev.RECV, pairs[2]?.[1] as number).result, 1 << 20);
  for (const [a, b] of pairs) closeAll(a, b);
});

test('without room in the arena, resume of a connection that is reading has the bytes delivered too', () => {
  const pairs = Array.from({ length: 2 }, pair);
  const [a, b] = pair();
  native.recvStart(b);
  put(a, 'abc');
  const first = until(Ev.RECV, b);
  arena.fill('k', 0, 1 << 20);
  for (const [, full] of pairs) native.park(full, 0, 1 << 20);
  turn(0);
  native.keep(b, first.offset, first.result);
  for (const [, full] of pairs) assert.ok(native.resume(full) > 0);
  assert.equal(native.resume(b), -E.ENOBUFS);
  assert.equal(until(Ev.RECV, b).result, 3);
  for (const [c, d] of pairs) closeAll(c, d);
  closeAll(a, b);
});
