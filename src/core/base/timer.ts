/*
 * The few timers of the loop thread: the janitor, the statistics period, the pause after a failed accept, DNS zones,
 * metrics, drains and handovers. A sorted array is enough for them. The timeouts of sockets need no timers: the janitor
 * finds them by walking ordered lists.
 */
import { readClock } from './time';

interface Timer {
  /** usec when it fires next; 0 = not armed */
  when: number;
  /** usec between firings, 0 = once */
  period: number;
  fire: () => void;
}

const armed: Timer[] = [];

export function newTimer(fire: () => void): Timer {
  return { when: 0, period: 0, fire };
}

function insert(timer: Timer): void {
  let i = armed.length;
  while (i > 0 && (armed[i - 1] as Timer).when > timer.when) i--;
  armed.splice(i, 0, timer);
}

/** Fires `timer` in `delay` usec and, if `period` > 0, every `period` usec after that. An armed timer is re-armed. */
export function timerStart(timer: Timer, delay: number, period: number): void {
  timerStop(timer);
  timer.when = readClock() + delay;
  timer.period = period;
  insert(timer);
}

export function timerStop(timer: Timer): void {
  if (timer.when === 0) return;
  timer.when = 0;
  const i = armed.indexOf(timer);
  if (i >= 0) armed.splice(i, 1);
}

/** Milliseconds until the next timer fires, rounded up; -1 when none is armed. */
export function timerWaitMs(now: number): number {
  const first = armed[0];
  if (first === undefined) return -1;
  return first.when <= now ? 0 : Math.ceil((first.when - now) / 1000);
}

/** Fires the timers that are due. A periodic timer that is late fires once, not once per missed period. */
export function runTimers(now: number): void {
  for (;;) {
    const timer = armed[0];
    if (timer === undefined || timer.when > now) return;
    armed.shift();
    if (timer.period > 0) {
      timer.when = Math.max(timer.when + timer.period, now + 1);
      insert(timer);
    } else {
      timer.when = 0;
    }
    timer.fire();
  }
}
