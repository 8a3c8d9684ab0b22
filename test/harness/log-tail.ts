/*
 * The log of a running program: everything it has written to stderr, and a way to wait for a line.
 */

import type { ChildProcess } from 'node:child_process';
import { readSync } from 'node:fs';
import { WAIT_MS_MAX, withTimeout } from './limits';
import { howEnded } from './machine';

interface Waiter {
  pattern: RegExp;
  from: number;
  settle: (match: RegExpExecArray) => void;
  reject: (err: Error) => void;
}

/** The file descriptor of a stream that Node reads; it has no public name. -1 = the stream is closed */
function descriptorOf(stream: unknown): number {
  return (stream as { _handle?: { fd?: number } | null } | null)?._handle?.fd ?? -1;
}

export class LogTail {
  private readonly waiters = new Set<Waiter>();
  /** how the program ended; '' while it runs */
  private end = '';

  /** @param heard what was read of the log before */
  constructor(
    private readonly child: ChildProcess,
    private heard = '',
  ) {
    child.stderr?.on('data', (chunk: Buffer) => this.take(chunk));
    child.once('close', () => {
      this.end = howEnded(child);
      for (const waiter of this.waiters) this.tryWaiter(waiter);
    });
  }

  /** All that the program has written up to now, as a byte string. */
  get text(): string {
    this.catchUp();
    return this.heard;
  }

  /** The current end of the log, from which wait() can start. */
  mark(): number {
    return this.text.length;
  }

  /** Resolves with the first match at or after `from`; throws if the program ends without a match. */
  wait(pattern: RegExp, from = 0, timeoutMs: number = WAIT_MS_MAX): Promise<RegExpExecArray> {
    let waiter: Waiter | null = null;
    const found = new Promise<RegExpExecArray>((settle, reject) => {
      waiter = { pattern, from, settle, reject };
      this.waiters.add(waiter);
      this.tryWaiter(waiter);
    });
    const what = () => `${pattern} in the log, which says:\n${this.text.slice(-8192)}`;
    return withTimeout(found, what, timeoutMs).finally(() => {
      if (waiter !== null) this.waiters.delete(waiter);
    });
  }

  /** Number of matches at or after `from`. */
  count(pattern: RegExp, from = 0): number {
    const flags = pattern.flags.includes('g') ? pattern.flags : `${pattern.flags}g`;
    return [...this.text.slice(from).matchAll(new RegExp(pattern.source, flags))].length;
  }

  private take(chunk: Buffer): void {
    this.heard += chunk.toString('latin1');
    for (const waiter of this.waiters) this.tryWaiter(waiter);
  }

  /**
   * Reads what waits in the pipe. Answers and log lines take different ways, so that an answer may arrive before lines that
   * were logged earlier; a count would miss those lines.
   */
  private catchUp(): void {
    const fd = descriptorOf(this.child.stderr);
    if (fd < 0) return;
    const chunk = Buffer.alloc(65536);
    for (;;) {
      let n = 0;
      try {
        n = readSync(fd, chunk);
      } catch (err) {
        if ((err as NodeJS.ErrnoException).code === 'EAGAIN') return;
        throw err;
      }
      // Node reads the end of the stream once more, and reports it
      if (n === 0) return;
      this.take(chunk.subarray(0, n));
    }
  }

  private tryWaiter(waiter: Waiter): void {
    const match = waiter.pattern.exec(this.heard.slice(waiter.from));
    if (match === null && this.end === '') return;
    this.waiters.delete(waiter);
    if (match !== null) waiter.settle(match);
    else waiter.reject(new Error(`it ${this.end} before it logged ${waiter.pattern}:\n${this.heard.slice(-8192)}`));
  }
}
