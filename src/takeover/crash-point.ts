/*
 * Lets tests kill or stop this process at a named step of a handover, as SIGKILL or SIGSTOP from outside would. Works
 * only when two environment variables are set, so that one set by mistake has no effect.
 */

import { native } from '../core/base/native';

const enabled = process.env.TSBOUNCER_TEST === '1';
const dieAt = enabled ? process.env.TSBOUNCER_TAKEOVER_DIE : undefined;
let stopAt = enabled ? process.env.TSBOUNCER_TAKEOVER_STOP : undefined;
/** Long enough for the kernel to stop every thread. */
const STOPPING_MS = 100;

/** Marks a named step. */
export function crashPoint(step: string): void {
  if (step === stopAt) {
    // only once: some steps are repeated
    stopAt = undefined;
    process.kill(process.pid, 'SIGSTOP');
    native.sleepMs(STOPPING_MS);
  }
  if (step !== dieAt) return;
  process.kill(process.pid, 'SIGKILL');
  // the signal may be delivered late; no later step may run before it
  for (;;);
}
