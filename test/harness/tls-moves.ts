/*
 * Moves a TLS connection of the native loop as a handover does: what another process would get becomes a new handle. The
 * peer stays as it is.
 */

import assert from 'node:assert/strict';
import { native } from '../../src/core/base/native';
import { stash } from './tls-driver';

/** What a handover carries for one connection. */
interface Moved {
  fd: number;
  session: Buffer;
  kept: Buffer;
  unsent: Buffer;
}

/** The old process's part, without its end. @param except handles that keep receiving */
export function describe(handle: number, except: readonly number[]): Moved {
  for (const one of native.recvStopAll(handle === except[0] ? -1 : (except[0] ?? -1))) assert.ok(one > 0);
  native.recvStop(handle);
  const unsent = Buffer.from(native.takeUnsent(handle));
  assert.equal(native.tlsRefusal(handle), null);
  const session = native.tlsExport(handle);
  const kept = native.keptLength(handle) > 0 ? native.copyKept(handle) : Buffer.alloc(0);
  assert.ok(session !== null && kept !== null);
  native.tlsFreeze(handle, 1);
  return { fd: native.fdOf(handle), session: Buffer.from(session), kept: Buffer.from(kept), unsent };
}

/** The new process's part. @returns the new handle, which receives */
export function takeOver({ fd, session, kept, unsent }: Moved): number {
  const handle = native.open(fd);
  assert.ok(handle > 0);
  assert.equal(native.tlsContinue(handle, session), 0);
  session.fill(0);
  native.tlsFreeze(handle, 0);
  assert.equal(native.keepBytes(handle, kept), 0);
  assert.ok(native.sendRecords(handle, unsent) >= 0);
  native.recvStart(handle);
  return handle;
}

/** Both parts. @returns the handle in the place of `handle` */
export function move(handle: number, peer: number): number {
  const moved = describe(handle, [peer]);
  // records that the test has not looked at yet would name the old handle
  const early = stash.filter((event) => event.handle === handle);
  assert.equal(native.detach(handle), moved.fd);
  const next = takeOver(moved);
  for (const event of early) event.handle = next;
  return next;
}
