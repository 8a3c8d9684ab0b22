/*
 * The last online reboots, for the live page: this process notes its own takeover, and gets the earlier ones from the
 * process before it.
 */

import { readClock, wallTime } from './time';
import { TSBOUNCER_VERSION } from './version';

/** How many are kept. */
const REBOOTS_MAX = 10;
/** Longest text that another process may hand over. */
const TEXT_MAX = 200;

export interface Reboot {
  /** wall time, ms since 1970 */
  at: number;
  /** process ids */
  from: number;
  to: number;
  /** version of the new process */
  version: string;
  /** what was taken over */
  outcome: string;
}

let reboots: Reboot[] = [];

/** The last reboots, oldest first. */
export function lastReboots(): readonly Reboot[] {
  return reboots;
}

/** Notes that this process has taken over. @param from process id of the old process; 0 = unknown */
export function noteReboot(from: number, outcome: string): void {
  const at = Math.floor((wallTime(readClock()) as unknown as number) / 1000);
  reboots = [...reboots, { at, from, to: process.pid, version: TSBOUNCER_VERSION, outcome }].slice(-REBOOTS_MAX);
}

function isReboot(value: unknown): value is Reboot {
  const { at, from, to, version, outcome } = (value ?? {}) as Record<string, unknown>;
  const numbers = [at, from, to].every((number) => Number.isSafeInteger(number));
  return numbers && [version, outcome].every((text) => typeof text === 'string' && text.length <= TEXT_MAX);
}

/** Takes over what the old process knows. @param received as it was received */
export function restoreReboots(received: unknown): void {
  if (Array.isArray(received)) reboots = received.filter(isReboot).slice(-REBOOTS_MAX);
}
