/*
 * Drives the native loop from a test: runs single turns and collects their events.
 */

import assert from 'node:assert/strict';
import { arena, Ev, native, Rec, ring } from '../../src/core/base/native';

export const RECV_MAX = 65536;

interface Happened {
  kind: number;
  handle: number;
  result: number;
  offset: number;
  text: string;
}

export function turn(timeoutMs: number): Happened[] {
  const list: Happened[] = [];
  const count = native.wait(timeoutMs);
  for (let i = 0; i < count; i++) {
    const at = i * Rec.SIZE;
    const [kind, handle, result, offset] = [Rec.KIND, Rec.HANDLE, Rec.RESULT, Rec.OFFSET].map(
      (field) => ring[at + field] as number,
    ) as [number, number, number, number];
    const text = kind === Ev.RECV && result > 0 ? arena.toString('latin1', offset, offset + result) : '';
    list.push({ kind, handle, result, offset, text });
  }
  return list;
}

/** Runs turns until an event of this kind for this handle occurs; fails after 5 s. Other events are dropped. */
export function until(kind: Ev, handle: number): Happened {
  const end = Date.now() + 5000;
  while (Date.now() < end) {
    const hit = turn(100).find((h) => h.kind === kind && h.handle === handle);
    if (hit) return hit;
  }
  assert.fail(`no record ${kind} for handle ${handle}`);
}

/** Receives on a handle until `length` bytes have arrived. */
export function receive(handle: number, length: number): string {
  let text = '';
  while (text.length < length) text += until(Ev.RECV, handle).text;
  return text;
}

export const put = (handle: number, text: string): number =>
  native.sendBytes(handle, Buffer.from(text, 'latin1'), 0, text.length);

/** Two connected handles, both reading. */
export function pair(): [number, number] {
  const [a = -1, b = -1] = native.socketPair().map((fd) => native.open(fd));
  assert.ok(a > 0 && b > 0);
  native.recvStart(a);
  native.recvStart(b);
  return [a, b];
}

export function closeAll(...handles: number[]): void {
  for (const handle of handles) assert.equal(native.close(handle), 0);
}
