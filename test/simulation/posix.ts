/*
 * The functions of the addon that are not part of the loop: sockets, addresses, clocks, descriptor passing. All are
 * simulated, and time passes for the other processes during a blocking call.
 */
import { constants } from 'node:os';
import { getSystemErrorMap } from 'node:util';
import { Ev, Family, type SockAddr } from '../../src/core/base/native';
import { EAGAIN, EBADF, type End } from './network';
import { type Description, release, type SimProcess } from './process';

const { EADDRINUSE } = constants.errno;
const NAME_NOT_FOUND = -2;
/** The user id of all processes in a simulation. */
export const UID = 1000;
const DESCRIPTORS_MAX = 10_000;
/** Shortest and longest duration of a call, usec. */
const LOOKUP_TIME = [100, 20_000] as const;
const PAM_TIME = [1000, 500_000] as const;

function failure(syscall: string, errno: number): Error {
  return Object.assign(new Error(syscall), { syscall, errno });
}

function unixAddr(path: string): SockAddr {
  return { family: Family.UNIX, host: path, port: 0 };
}

class Posix {
  private lastRequest = 0;
  private readonly answers = new Map<number, SockAddr[]>();

  constructor(private readonly process: SimProcess) {}

  private get machine() {
    return this.process.machine;
  }

  private endOf(fd: number): End | null {
    return this.process.describe(fd)?.end ?? null;
  }

  private clockReading(): number {
    const { clock } = this.machine;
    // reading it takes time too, and sometimes the process is not running meanwhile
    clock.now += clock.random.below(clock.random.one(20) ? 400 : 2);
    return clock.now;
  }

  private newSocket(): number {
    if (this.process.fdCount >= this.process.loop.fdsMax) return -constants.errno.EMFILE;
    return this.process.addFd({ end: null, listener: null, refs: 1 });
  }

  private connect(family: Family, host: string, port: number, fd: number): number {
    const description = this.process.describe(fd);
    if (description === null) return -EBADF;
    description.end = this.machine.network.connect({ family, host, port }, '10.1.0.1');
    description.end.pid = this.process.pid;
    return this.process.loop.startConnect(fd);
  }

  private listen(addr: SockAddr): number {
    const listener = this.machine.network.listen(addr);
    if (listener === null) throw failure('bind', EADDRINUSE);
    if (addr.family === Family.UNIX) this.machine.files.set(addr.host, '');
    return this.process.addFd({ end: null, listener, refs: 1 });
  }

  private nameOf(fd: number, side: 'local' | 'remote'): SockAddr {
    const description = this.process.describe(fd);
    const addr = description?.end?.[side] ?? description?.listener?.addr;
    if (addr === undefined) throw failure('getsockname', EBADF);
    return addr;
  }

  private peerCred(fd: number): [number, number, number] | null {
    const end = this.endOf(fd);
    return end === null ? null : [UID, UID, end.peer?.pid ?? 0];
  }

  private pollFd(fd: number, forWrite: number, timeoutMs: number): number {
    const end = this.endOf(fd);
    if (end === null) return -EBADF;
    const { clock, processes } = this.machine;
    const deadline = timeoutMs < 0 ? Number.POSITIVE_INFINITY : clock.now + timeoutMs * 1000;
    if (forWrite === 0) {
      const has = () => end.length > 0 || end.eof || end.error !== 0;
      return this.machine.sleep(this.process, deadline, has) ? 1 : 0;
    }
    // the reader is below this process on the stack; in reality it would read all the time
    if (end.room === 0 && processes.some((other) => other !== this.process && other.alive && other.running)) {
      end.liftLimit();
    }
    return this.machine.sleep(this.process, deadline, () => end.room > 0 || end.error !== 0) ? 1 : 0;
  }

  private sleepMs(ms: number): void {
    this.machine.sleep(this.process, this.machine.clock.now + ms * 1000, () => false);
  }

  private sendFds(fd: number, bytes: Uint8Array, fds: number[]): number {
    const end = this.endOf(fd);
    if (end === null) return -EBADF;
    const at = end.written;
    const n = end.write(bytes);
    // bytes for a closed end are lost, and so are the descriptors with them
    if (n <= 0 || fds.length === 0 || end.peer?.closed !== false) return n;
    const items: Description[] = [];
    for (const each of fds) {
      const description = this.process.describe(each);
      if (description === null) return -EBADF;
      description.refs++;
      items.push(description);
    }
    end.peer.cargo.push({ at, items });
    return n;
  }

  private recvFds(fd: number, into: Uint8Array): { result: number; fds: number[] } {
    const end = this.endOf(fd);
    const nothing = (result: number) => ({ result, fds: [] });
    if (end === null) return nothing(-EBADF);
    const fds: number[] = [];
    let most = into.length;
    if (end.length > 0) {
      const first = end.cargo[0];
      if (first?.at === end.taken) {
        for (const item of first.items) fds.push(this.process.addFd(item as Description));
        end.cargo.shift();
      }
      const next = end.cargo[0];
      if (next !== undefined) most = Math.min(most, next.at - end.taken);
    }
    const bytes = end.read(most);
    if (bytes !== null) {
      into.set(bytes);
      return { result: bytes.length, fds };
    }
    if (end.error !== 0) return nothing(-end.error);
    return nothing(end.eof ? 0 : -EAGAIN);
  }

  private resolve(name: string): number {
    const id = ++this.lastRequest;
    const { clock, names } = this.machine;
    clock.after(clock.random.between(...LOOKUP_TIME), () => {
      const addresses = names.get(name) ?? [];
      this.answers.set(
        id,
        addresses.map((host) => ({ family: Family.INET, host, port: 0 })),
      );
      this.process.loop.post(Ev.RESOLVED, id, addresses.length || NAME_NOT_FOUND);
    });
    return id;
  }

  private resolveResult(id: number): SockAddr[] {
    const addresses = this.answers.get(id) ?? [];
    this.answers.delete(id);
    return addresses;
  }

  private pam(id: number, user: string, password: string): number {
    const { clock } = this.machine;
    const allowed = this.machine.accepts(user, password);
    clock.after(clock.random.between(...PAM_TIME), () => {
      this.process.loop.post(Ev.AUTHENTICATED, id, allowed ? 1 : 0);
    });
    return 0;
  }

  /** Calls that return facts about the machine. */
  private facts(): Record<string, unknown> {
    return {
      rlimitNofile: () => [DESCRIPTORS_MAX, DESCRIPTORS_MAX],
      releaseMemory: () => {},
      cpuAffinity: () => [0],
      setCpuAffinity: () => 0,
      strerror: (errno: number) => getSystemErrorMap().get(-Math.abs(errno))?.[1] ?? `error ${errno}`,
      gaiStrerror: (code: number) => `name error ${code}`,
      getpwnam: () => ({ uid: UID, gid: UID }),
      getpwuid: () => 'owner',
      getgrnam: () => UID,
      chown: () => 0,
      openlog: () => {},
      syslog: () => {},
      closelog: () => {},
      sendDatagram: () => 0,
      pamOpen: () => '',
      pamSubmit: (id: number, user: string, password: string) => this.pam(id, user, password),
      pamMessages: () => [],
    };
  }

  calls(): Record<string, unknown> {
    return {
      ...this.facts(),
      socket: () => this.newSocket(),
      connect: (family: Family, host: string, port: number, fd: number) => this.connect(family, host, port, fd),
      getaddrinfoPassive: (host: string | null, port: number): SockAddr[] => [
        { family: Family.INET, host: host ?? '0.0.0.0', port },
      ],
      listenTcp: (addr: SockAddr) => this.listen(addr),
      listenUnix: (path: string) => this.listen(unixAddr(path)),
      listenBacklog: () => 0,
      setUpSocket: () => {},
      tuneTcp: () => {},
      deferAccept: () => 0,
      sockName: (fd: number) => this.nameOf(fd, 'local'),
      peerName: (fd: number) => this.nameOf(fd, 'remote'),
      peerCred: (fd: number) => this.peerCred(fd),
      unixProbe: (path: string) => this.machine.network.find(unixAddr(path)) !== null,
      closeFd: (fd: number) => void this.process.closeFd(fd),
      readClock: () => this.clockReading(),
      wallOffset: () => this.machine.clock.wallOffset,
      pollFd: (fd: number, forWrite: number, timeoutMs: number) => this.pollFd(fd, forWrite, timeoutMs),
      unreadBytes: (fd: number) => this.endOf(fd)?.unread ?? -EBADF,
      refuseMore: (fd: number) => {
        const end = this.endOf(fd);
        if (end !== null) end.refusing = true;
      },
      sleepMs: (ms: number) => this.sleepMs(ms),
      sendFds: (fd: number, bytes: Uint8Array, fds: number[]) => this.sendFds(fd, bytes, fds),
      recvFds: (fd: number, into: Uint8Array) => this.recvFds(fd, into),
      resolve: (name: string) => this.resolve(name),
      resolveResult: (id: number) => this.resolveResult(id),
      resolveCancel: (id: number) => void this.answers.delete(id),
    };
  }
}

/** This half of the interface `Native`. */
export function posixCalls(process: SimProcess): Record<string, unknown> {
  return new Posix(process).calls();
}

/** Closes the descriptors that were in transit to a closed end. */
export function dropCargo(end: End): void {
  for (const { items } of end.cargo.splice(0)) for (const item of items) release(item as Description);
}
