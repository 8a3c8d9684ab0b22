/*
 * How many connections the limit of file descriptors allows. The poolers, the load generator and the servers that are
 * only simulated inherit the benchmark's limit.
 */
import { readFileSync } from 'node:fs';
import { remark, say } from './rows';

/** Descriptors of a process for everything but the connections that are counted: server connections, files, pipes. */
const SPARE = 300;

/** The hard limit of descriptors in the contents of `/proc/PID/limits`; Infinity without one. */
export function hardLimit(limits: string): number {
  const hard = /^Max open files\s+\S+\s+(\S+)/m.exec(limits)?.[1];
  return hard === undefined || hard === 'unlimited' ? Number.POSITIVE_INFINITY : Number(hard);
}

/** The most objects of `each` descriptors in a process with this limit, of those that are wanted. */
export function allowedBy(limit: number, wanted: number, each = 1): number {
  return Math.min(wanted, Math.max(Math.floor((limit - SPARE) / each), 1));
}

/** `wanted` objects of `each` descriptors in one process, or as many as its limit allows, with a remark. */
export function affordable(wanted: number, each = 1): number {
  const limit = hardLimit(readFileSync('/proc/self/limits', 'latin1'));
  const count = allowedBy(limit, wanted, each);
  if (count < wanted) {
    const text = `ulimit -Hn is ${limit}, but ${wanted} need ${wanted * each + SPARE} descriptors: only ${count} are measured`;
    say(text);
    remark(text);
  }
  return count;
}

/** Likewise for several rows: those that the limit makes equal become one. */
export function affordableCounts(wanted: readonly number[], each = 1): number[] {
  return [...new Set(wanted.map((count) => affordable(count, each)))];
}
