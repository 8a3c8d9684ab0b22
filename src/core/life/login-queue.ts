/*
 * Clients that are logged in do not wait behind logins. In each turn the events of logins come last, and may take a
 * limited time. What is left over comes first in the next turn, so that logins go on under any load, in their order.
 */

import { isFrozen } from '../base/lifecycle';
import { readClock } from '../base/time';
import { keepInput } from '../net/sbuf';
import type { ClientSocket } from '../pool/bouncer';
import { isDead } from '../pool/socket';

/** Time for logins in a turn, in usec: beside other events, and without them. At least one is handled. */
const BUSY_TURN = 100;
const CALM_TURN = 500;

/** What has arrived for a login. */
interface LoginEvent {
  client: ClientSocket;
  /** number of bytes; 0 or -errno: the connection has ended */
  result: number;
  /** where they are in the arena; -1 = an earlier turn's, which the loop keeps */
  offset: number;
}

/** Handles an event; with an offset of -1, the bytes are those that the loop keeps. */
type Handler = (client: ClientSocket, result: number, offset: number) => void;

/** in the order of arrival */
let events: LoginEvent[] = [];

/** Puts an event of this turn off, until those of the other clients are handled. */
export function putOffLogin(client: ClientSocket, result: number, offset: number): void {
  // what was kept comes again, in front of the new bytes
  if (result > 0) client.hasKept = false;
  events.push({ client, result, offset });
}

/** True if there are events to be handled. During a freeze they wait. */
export function loginsAreDue(): boolean {
  return events.length > 0 && !isFrozen();
}

/** False if the client is gone, stopped (SUSPEND), or its kept bytes have been delivered together with later ones. */
function isDue({ client, result, offset }: LoginEvent): boolean {
  if (isDead(client)) return false;
  return result <= 0 || offset >= 0 || (client.hasKept && client.reading && !client.blocked);
}

/**
 * Handles events of logins for the time that they have in a turn. If `handle` throws, the event counts as handled, and
 * the caller calls again.
 * @param began usec; the clock when this turn began to handle them
 * @param busy the turn has other events too
 */
export function handleLogins(handle: Handler, began: number, busy: boolean): void {
  const end = began + (busy ? BUSY_TURN : CALM_TURN);
  let done = 0;
  try {
    while (done < events.length) {
      const event = events[done++] as LoginEvent;
      if (isDue(event)) handle(event.client, event.result, event.offset);
      if (readClock() >= end) break;
    }
  } finally {
    events = events.slice(done);
  }
}

/** Keeps what is left for the next turn: its bytes are in the arena only until the next wait. */
export function keepLeftLogins(): void {
  for (const event of events) {
    const { client, result, offset } = event;
    if (offset >= 0 && result > 0 && !isDead(client)) keepInput(client, offset, offset + result);
    event.offset = -1;
  }
}
