/*
 * The log of a running program: everything it has written to stderr, and a way to wait for a line.
 */

import type { ChildProcess } from 'node:child_process';
import { WAIT_MS_MAX, withTimeout } from './limits';
import { howEnded } from './machine';

interface Waiter {
  pattern: RegExp;
  from: number;
  settle: (match: RegExpExecArray) => void;
  reject: (err: Error) => void;
}

export class LogTail {
  /** all of it, as a byte string */
  text = '';
  private readonly waiters = new Set<Waiter>();
  /** how the program ended; '' while it runs */
  private end = '';

  constructor(child: ChildProcess) {
    child.stderr?.on('data', (chunk: Buffer) => {
      this.text += chunk.toString('latin1');
      for (const waiter of this.waiters) this.tryWaiter(waiter);
    });
    child.once('close', () => {
      this.end = howEnded(child);
      for (const waiter of this.waiters) this.tryWaiter(waiter);
    });
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

  private tryWaiter(waiter: Waiter): void {
    const match = waiter.pattern.exec(this.text.slice(waiter.from));
    if (match === null && this.end === '') return;
    this.waiters.delete(waiter);
    if (match !== null) waiter.settle(match);
    else waiter.reject(new Error(`it ${this.end} before it logged ${waiter.pattern}:\n${this.text.slice(-8192)}`));
  }
}
