/*
 * For the tests of failing handovers: at a named step this process ends without any clean-up, as SIGKILL from outside would end it,
 * or stops, as SIGSTOP would stop it, only at a known moment. Asked for by two variables of the environment, so that none of
 * them does it by mistake.
 */

import { native } from '../core/base/native';

const enabled = process.env.TSBOUNCER_TEST === '1';
const dieAt = enabled ? process.env.TSBOUNCER_TAKEOVER_DIE : undefined;
let stopAt = enabled ? process.env.TSBOUNCER_TAKEOVER_STOP : undefined;
/** Long enough for the kernel to stop every thread. */
const STOPPING_MS = 100;

/** The named step is reached. */
export function crashPoint(step: string): void {
  if (step === stopAt) {
    // once: some steps come again and again
    stopAt = undefined;
    process.kill(process.pid, 'SIGSTOP');
    native.sleepMs(STOPPING_MS);
  }
  if (step !== dieAt) return;
  process.kill(process.pid, 'SIGKILL');
  // the signal is on its way; nothing that follows may happen
  for (;;);
}
