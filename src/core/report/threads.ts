/*
 * What each thread of the loop has done: the main thread, which decides what goes where, those that move bytes
 * (io_threads), and those for TLS handshakes.
 */

import { native, type ThreadUse } from '../base/native';
import { getCachedTime } from '../base/time';

interface ThreadRow {
  name: string;
  /** connections, listeners and watches */
  handles: number;
  turns: number;
  /** bytes */
  received: number;
  sent: number;
  cpuUsec: number;
  /** share of the time since the previous call, or since the first one in this process, in which it used a CPU */
  busyPercent: number;
}

/** CPU time of each thread, and the clock, at the previous call */
let before: { usec: number; cpuUsec: number[] } | null = null;

/** @returns the thread of the loop, and then the others */
export function threadUses(): (ThreadUse & { name: string })[] {
  const counts = new Map<string, number>();
  return native.loopThreads().map((use, i) => {
    const number = (counts.get(use.kind) ?? 0) + 1;
    counts.set(use.kind, number);
    return { ...use, name: i === 0 ? use.kind : `${use.kind}-${number}` };
  });
}

/** @returns as threadUses() */
export function threadRows(): ThreadRow[] {
  const usec = getCachedTime();
  const threads = threadUses();
  const rows = threads.map(({ name, handles, turns, received, sent, cpuUsec }, i) => {
    const used = cpuUsec - (before?.cpuUsec[i] ?? cpuUsec);
    const passed = usec - (before?.usec ?? usec);
    const busyPercent = passed > 0 ? Math.min(100, Math.round((100 * used) / passed)) : 0;
    return { name, handles, turns, received, sent, cpuUsec: Math.round(cpuUsec), busyPercent };
  });
  before = { usec, cpuUsec: threads.map((thread) => thread.cpuUsec) };
  return rows;
}
