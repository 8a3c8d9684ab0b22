/*
 * A process of a simulation: its descriptors, its clock, its end. The code of the pooler runs in it. Every call of that
 * code to the addon passes through this class, so a process can be killed at each of them.
 */

import type { Native } from '../../src/core/base/native';
import type { Random } from '../harness/hostile/random';
import type { Clock } from './clock';
import { SimLoop } from './loop';
import { EBADF, type End, type Listener, type Network } from './network';
import { dropCargo, posixCalls } from './posix';
import type { Trace } from './trace';

/** The object behind a descriptor; several descriptors, in several processes, may refer to the same object. */
export interface Description {
  end: End | null;
  listener: Listener | null;
  refs: number;
}

/** Thrown where a process ends: none of its code may run after that. */
export class ProcessEnd extends Error {}

const FIRST_FD = 10;
/** usec */
const STOP_MAX = 15_000_000;

/** As samePackets() of the addon. */
function walkSame(bytes: Buffer, offset: number, end: number, most: number): number {
  let at = offset;
  while (end - at >= 5 && bytes[at] === bytes[offset]) {
    const length = bytes.readUInt32BE(at + 1);
    if (length < 4 || length >= most || length >= end - at) break;
    at += length + 1;
  }
  return at;
}

/** What processes share. */
export interface Machine {
  readonly clock: Clock;
  readonly network: Network;
  readonly trace: Trace;
  readonly random: Random;
  readonly files: Map<string, string>;
  /** addresses by host name */
  readonly names: Map<string, string[]>;
  readonly processes: SimProcess[];
  /** Removes a file: a Unix socket of that name cannot be found any more. */
  unlink(path: string): void;
  /** Called when a turn of a process has ended. */
  turnEnded(process: SimProcess): void;
  /** for how long a process is stopped now, usec; mostly 0 */
  delay(): number;
  /** whether PAM accepts a password */
  accepts(user: string, password: string): boolean;
  /** Lets time pass until `done` returns true. @returns false if it does not until `deadline` */
  sleep(process: SimProcess, deadline: number, done: () => boolean): boolean;
}

/** Drops a reference; the last one closes. */
export function release(description: Description): void {
  if (--description.refs > 0) return;
  const { end, listener } = description;
  if (end !== null) {
    end.close();
    dropCargo(end);
  }
  listener?.close();
}

export class SimProcess {
  readonly loop: SimLoop;
  readonly native: Native;
  private readonly fds = new Map<number, Description>();
  /** null while it runs */
  exitCode: number | null = null;
  /** calls to the addon until the process is killed; -1 = it is not killed */
  callsToLive = -1;
  /** calls to the addon until the process is stopped for a while; -1 = it is not stopped */
  callsToStop = -1;
  /** until when the process is stopped, usec */
  stoppedUntil = 0;
  /** its code is on the stack, so that no turn of it can begin */
  running = false;
  /** resumedLength of the process's core */
  private readonly resumed: Int32Array;
  /** the process has booted and only runs its loop */
  booted = false;
  turns = 0;

  constructor(
    readonly machine: Machine,
    readonly pid: number,
    readonly name: string,
  ) {
    this.loop = new SimLoop(this);
    this.resumed = new Int32Array(this.loop.ring, this.loop.ring.byteLength - 24, 1);
    const samePackets = (offset: number, end: number, most: number) => walkSame(this.loop.bytes, offset, end, most);
    const loop = this.loop.calls();
    const park: Native['park'] = (handle, offset, length) => {
      (loop.keep as Native['keep'])(handle, offset, length);
      (loop.recvStop as Native['recvStop'])(handle);
    };
    const resume: Native['resume'] = (handle) => {
      this.resumed[0] = (loop.keptLength as Native['keptLength'])(handle);
      const offset = (loop.takeKept as Native['resume'])(handle);
      (loop.recvStart as Native['recvStart'])(handle);
      return offset;
    };
    const recvFirst: Native['recvFirst'] = (handle) => {
      (loop.keepFirst as (handle: number) => void)(handle);
      return resume(handle);
    };
    const calls = { ...loop, ...posixCalls(this), samePackets, park, resume, recvFirst };
    this.native = this.guarded(calls);
  }

  /** Counts a call; no call works in a process that has ended. */
  private guarded(calls: Record<string, unknown>): Native {
    const guarded: Record<string, unknown> = {};
    for (const [name, call] of Object.entries(calls)) {
      if (typeof call !== 'function') {
        guarded[name] = call;
        continue;
      }
      guarded[name] = (...args: unknown[]) => {
        this.enter(name);
        return call(...args);
      };
    }
    return new Proxy(guarded, {
      get: (target, name) => {
        if (name in target) return target[name as string];
        throw new Error(`native.${String(name)} is not simulated`);
      },
    }) as unknown as Native;
  }

  get alive(): boolean {
    return this.exitCode === null;
  }

  private enter(name: string): void {
    if (!this.alive) throw new ProcessEnd(`${this.name} has ended`);
    if (this.callsToStop > 0 && --this.callsToStop === 0) this.stop();
    if (this.callsToLive < 0 || --this.callsToLive > 0) return;
    this.machine.trace.add(this.name, `is killed in ${name}()`);
    this.end(-9);
    throw new ProcessEnd(`${this.name} was killed`);
  }

  /** Stops, as after SIGSTOP, while the other processes continue. */
  private stop(): void {
    const { clock, random, trace } = this.machine;
    const usec = random.below(STOP_MAX);
    trace.add(this.name, `is stopped for ${Math.round(usec / 1000)} ms`);
    this.machine.sleep(this, clock.now + usec, () => false);
  }

  /** Ends the process and closes its descriptors. */
  end(code: number): void {
    if (!this.alive) return;
    this.exitCode = code;
    for (const fd of [...this.fds.keys()]) this.closeFd(fd);
  }

  addFd(description: Description): number {
    let fd = FIRST_FD;
    while (this.fds.has(fd)) fd++;
    this.fds.set(fd, description);
    return fd;
  }

  describe(fd: number): Description | null {
    return this.fds.get(fd) ?? null;
  }

  closeFd(fd: number): number {
    const description = this.fds.get(fd);
    if (description === undefined) return -EBADF;
    this.fds.delete(fd);
    release(description);
    return 0;
  }

  get fdCount(): number {
    return this.fds.size;
  }
}
