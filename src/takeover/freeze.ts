/*
 * Freezing and resuming sockets. The old process freezes its sockets before it describes them. Their later owner (the
 * new process, or the old process after a failed handover) resumes them. Buffers are not drained: buffered input stays
 * in the loop, and unsent output is set aside and queued again.
 */

import { nextOf } from '../core/base/list';
import { native } from '../core/base/native';
import { onDrain } from '../core/life/mainloop';
import { sbufContinue, socketsByHandle } from '../core/net/sbuf';
import type { AnySocket } from '../core/pool/bouncer';
import { poolList, touchPool } from '../core/pool/pool';
import { isDead } from '../core/pool/socket';
import { handoverName } from '../core/pool/states';
import { FORMAT_TLS } from './format';
import { allSockets, refusalOf } from './sockets';

/** Idle clients resumed between two event loop turns. */
const IDLE_SLICE = 100;

export interface FrozenSockets {
  sockets: AnySocket[];
  /** unsent output, which must go out before anything else; on a TLS connection it is encrypted */
  unsent: Map<AnySocket, Uint8Array>;
  /** sockets that cannot be handed over, and why; empty in the new process */
  staying: Map<AnySocket, string>;
  /** clients that have sent nothing since they were described ahead; empty in the old process */
  idle: Set<AnySocket>;
}

/**
 * Stops all sockets except `except` in both directions; their `reading` and `blocked` fields keep the state to resume.
 * @param except the connection of the new process
 * @param format that of the handover
 */
export function freezeSockets(except: AnySocket, format: number): FrozenSockets {
  const unsent = new Map<AnySocket, Uint8Array>();
  const staying = new Map<AnySocket, string>();
  const handles = native.recvStopAll(except.handle);
  const sockets = allSockets(except);
  // this process may end before it learns that it does not own these connections any more
  const refused = new Set(format < FORMAT_TLS ? [] : native.tlsFreezeAll(except.handle));
  for (const sk of sockets) {
    // a server whose login is not finished: the new process opens another
    if (handoverName(sk.state) === null) continue;
    const refusal = refusalOf(sk, format, refused);
    if (refusal === null) continue;
    staying.set(sk, refusal);
    // the connection that it is linked with stays, too
    if (sk.tls && !refused.has(sk.handle)) native.tlsFreeze(sk.handle, 0);
  }
  for (const handle of handles) {
    const sk = socketsByHandle[handle];
    if (sk && handoverName(sk.state) !== null && !staying.has(sk)) unsent.set(sk, native.takeUnsent(handle));
  }
  return { sockets, unsent, staying, idle: new Set() };
}

/** Queues unsent output again; the kernel may accept all of it at once. */
function sendAgain(sk: AnySocket, unsent: Uint8Array): void {
  if (isDead(sk)) return;
  const res = native.sendRecords(sk.handle, unsent);
  if (res < 0) onDrain(sk, res);
}

/** Resumes reading if the socket was reading, and wakes a source whose destination has no unsent output left. */
function resume(sk: AnySocket): void {
  if (isDead(sk) || sk.handle < 0) return;
  if (sk.blocked) {
    const destination = sk.link ?? sk;
    if (destination.handle >= 0 && native.unsent(destination.handle) === 0) onDrain(destination, 0);
  } else if (sk.reading) {
    sbufContinue(sk);
  }
}

/** Resumes reading from sockets that have been stopped before a freeze. */
export function readAgain(sockets: readonly AnySocket[]): void {
  for (const sk of sockets) resume(sk);
}

/** First step of resuming: unsent output goes out before anything else. */
export function requeueUnsent(frozen: FrozenSockets): void {
  native.tlsThawAll();
  for (const [sk, unsent] of frozen.unsent) sendAgain(sk, unsent);
}

/**
 * Second step of resuming: reads from all sockets again; the pools are processed at the end of this turn. Idle clients
 * come last, because the system calls for thousands of them take time.
 * @param betweenSlices called before every IDLE_SLICE idle clients, so that busy clients are served meanwhile
 */
export function resumeFrozen({ sockets, idle }: FrozenSockets, betweenSlices: () => void): void {
  for (const sk of sockets) if (!idle.has(sk)) resume(sk);
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) touchPool(pool);
  let resumed = 0;
  for (const sk of idle) {
    if (resumed++ % IDLE_SLICE === 0) betweenSlices();
    resume(sk);
  }
}
