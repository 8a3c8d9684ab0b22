/*
 * Looks for bytes in the memory of another process: in all of it that a core dump would have, and more.
 */

import { closeSync, openSync, readFileSync, readSync } from 'node:fs';
import { user } from './machine';

const CHUNK = 4 << 20;

/** Why the memory of the poolers cannot be read; null if it can. */
export function noForeignMemory(): string | null {
  if (process.env.TSBOUNCER_PRELOAD !== undefined) return 'with a sanitizer, a process maps terabytes';
  const effective = /^CapEff:\s+([0-9a-f]+)$/m.exec(readFileSync('/proc/self/status', 'latin1'))?.[1] ?? '0';
  const SYS_PTRACE = 19n;
  const may = ((BigInt(`0x${effective}`) >> SYS_PTRACE) & 1n) === 1n;
  return may ? null : `reading the memory of processes of ${user?.name ?? 'this user'} needs CAP_SYS_PTRACE`;
}

/** The readable parts of the address space, by their limits. */
function readableParts(pid: number): [number, number][] {
  const parts: [number, number][] = [];
  for (const line of readFileSync(`/proc/${pid}/maps`, 'latin1').split('\n')) {
    const found = /^([0-9a-f]+)-([0-9a-f]+) r\S* \S+ \S+ \S+\s*(.*)$/.exec(line);
    if (found === null || /^\[v/.test(found[3] as string)) continue;
    parts.push([Number.parseInt(found[1] as string, 16), Number.parseInt(found[2] as string, 16)]);
  }
  return parts;
}

/** How often each of these byte strings is in the memory of the process. Those that overlap two reads count too. */
export function countInMemory(pid: number, wanted: Record<string, Buffer>): Record<string, number> {
  const counts = Object.fromEntries(Object.keys(wanted).map((name) => [name, 0]));
  const longest = Math.max(...Object.values(wanted).map((bytes) => bytes.length));
  const memory = openSync(`/proc/${pid}/mem`, 'r');
  const buffer = Buffer.alloc(CHUNK);
  try {
    for (const [from, to] of readableParts(pid)) {
      for (let at = from; at < to; at += CHUNK - longest) {
        const got = readSome(memory, buffer, Math.min(CHUNK, to - at), at);
        for (const [name, bytes] of Object.entries(wanted)) {
          for (let i = buffer.indexOf(bytes); i >= 0 && i + bytes.length <= got; i = buffer.indexOf(bytes, i + 1)) {
            // the end is read again
            if (i < CHUNK - longest) (counts[name] as number) += 1;
          }
        }
      }
    }
  } finally {
    closeSync(memory);
    buffer.fill(0);
  }
  return counts;
}

function readSome(memory: number, buffer: Buffer, length: number, at: number): number {
  try {
    const got = readSync(memory, buffer, 0, length, at);
    buffer.fill(0, got);
    return got;
  } catch {
    // a part of a file that is shorter than its mapping, or memory that has been unmapped
    buffer.fill(0);
    return 0;
  }
}
