/*
 * The clients whose transaction has just ended, while a drain is in progress (life/drain.ts): each of them may be
 * disconnected before it begins another.
 */

import type { ClientSocket } from './bouncer';

/** `wanted`: a drain is in progress; `clients`: those of this turn */
export const ended: { wanted: boolean; clients: ClientSocket[] } = { wanted: false, clients: [] };
