/*
 * Standing still and going on: what the old process does before it describes its sockets, and what whoever owns them
 * afterwards (the new process, or the old one when the new one failed) does first. Nothing is drained: bytes that were
 * received stay kept in the loop, and bytes that were not sent yet are put aside and queued again.
 */

import { nextOf } from '../core/base/list';
import { native } from '../core/base/native';
import { onDrain } from '../core/life/mainloop';
import { sbufContinue, socketsByHandle } from '../core/net/sbuf';
import { type AnySocket, SocketState } from '../core/pool/bouncer';
import { poolList, touchPool } from '../core/pool/pool';
import { isDead } from '../core/pool/socket';
import { allSockets, isTransferable } from './sockets';

/** Idle clients that go on between two turns of the loop. */
const IDLE_SLICE = 250;

/** Sockets that stand still. */
export interface FrozenSockets {
  sockets: AnySocket[];
  /** bytes that a peer has to get before anything else */
  unsent: Map<AnySocket, Uint8Array>;
}

/**
 * Stops every socket but one in both directions. What each was about (reading, blocked) stays noted in it.
 * @param except the connection of the new process
 */
export function freezeSockets(except: AnySocket): FrozenSockets {
  const unsent = new Map<AnySocket, Uint8Array>();
  for (const handle of native.recvStopAll(except.handle)) {
    const sk = socketsByHandle[handle];
    // what is queued of one that stays is encrypted already, and nobody else will ever write to it
    if (sk && isTransferable(sk)) unsent.set(sk, native.takeUnsent(handle));
  }
  return { sockets: allSockets(except), unsent };
}

/** Queues what was not sent yet; the kernel may take all of it at once. */
function sendAgain(sk: AnySocket, unsent: Uint8Array): void {
  if (isDead(sk)) return;
  const res = native.sendBytes(sk.handle, unsent, 0, unsent.length);
  if (res < 0) onDrain(sk, res);
}

/** Reads again where that was on, and wakes sources whose destination has nothing left to send. */
function readAgain(sk: AnySocket): void {
  if (isDead(sk) || sk.handle < 0) return;
  if (sk.blocked) {
    const destination = sk.link ?? sk;
    if (destination.handle >= 0 && native.unsent(destination.handle) === 0) onDrain(destination, 0);
  } else if (sk.reading) {
    sbufContinue(sk);
  }
}

/** Somebody waits for it, or it for somebody. */
function isBusy(sk: AnySocket): boolean {
  return sk.link !== null || sk.hasKept || sk.blocked || sk.state !== SocketState.CL_ACTIVE;
}

/** The first step of going on: what peers have to get before anything else. */
export function requeueUnsent(still: FrozenSockets): void {
  for (const [sk, unsent] of still.unsent) sendAgain(sk, unsent);
}

/**
 * The second: lets everything go on; the pools are looked at when this turn ends. Busy sockets come first: the idle clients, of which there
 * may be thousands, take their time with the kernel.
 * @param betweenSlices is called now and then, so that the busy ones are served meanwhile
 */
export function resumeFrozen(sockets: readonly AnySocket[], betweenSlices: () => void): void {
  const idle: AnySocket[] = [];
  for (const sk of sockets) {
    if (isBusy(sk)) readAgain(sk);
    else idle.push(sk);
  }
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) touchPool(pool);
  for (let i = 0; i < idle.length; i++) {
    readAgain(idle[i] as AnySocket);
    if ((i + 1) % IDLE_SLICE === 0) {
      betweenSlices();
    }
  }
}
