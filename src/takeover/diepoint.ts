/*
 * For the kill tests: ends this process without any clean-up at a named step of a handover, as SIGKILL from outside
 * would, only at a known moment. Asked for by two variables of the environment, so that none of them does it by mistake.
 */

const wanted = process.env.TSBOUNCER_TEST === '1' ? process.env.TSBOUNCER_TAKEOVER_DIE : undefined;

/** The named step is reached. */
export function diePoint(step: string): void {
  if (step !== wanted) return;
  process.kill(process.pid, 'SIGKILL');
  // the signal is on its way; nothing that follows may happen
  for (;;);
}
