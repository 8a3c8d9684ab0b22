/*
 * CPU time and memory of a process and of its threads, from the kernel.
 */
import { readdirSync, readFileSync } from 'node:fs';

/** /proc counts user and system time in ticks of 10 ms, whatever the kernel's own clock does. */
const NS_PER_TICK = 10_000_000;
const NS_PER_USEC = 1000;

interface ThreadTime {
  name: string;
  /** from schedstat, which is exact to the nanosecond, or else in ticks */
  ns: number;
  userTicks: number;
  systemTicks: number;
}

/** The time of every thread so far, by thread id. */
type CpuSample = Map<number, ThreadTime>;

/** What a process used between two samples, in usec. Threads that have ended in between do not count. */
export interface CpuUse {
  total: number;
  /** split in proportion to the ticks, so only exact over seconds */
  user: number;
  system: number;
  /** the main thread: in tsbouncer the thread that decides */
  main: number;
  others: number;
  /** the other threads by name; threads of the same name are added up */
  threads: Record<string, number>;
}

/** The file's contents, or null if the thread has ended. */
function readOf(path: string): string | null {
  try {
    return readFileSync(path, 'latin1');
  } catch {
    return null;
  }
}

function threadTime(task: string): ThreadTime | null {
  const stat = readOf(`${task}/stat`);
  if (stat === null) return null;
  // the name in parentheses may contain spaces; fields 14 and 15 are 12 and 13 places behind it
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  const name = stat.slice(stat.indexOf('(') + 1, stat.lastIndexOf(')'));
  const [userTicks, systemTicks] = [Number(fields[11]), Number(fields[12])];
  const exact = readOf(`${task}/schedstat`)?.split(' ')[0];
  const ns = exact === undefined ? (userTicks + systemTicks) * NS_PER_TICK : Number(exact);
  return { name, ns, userTicks, systemTicks };
}

export function sampleCpu(pid: number): CpuSample {
  const sample: CpuSample = new Map();
  for (const tid of readdirSync(`/proc/${pid}/task`)) {
    const time = threadTime(`/proc/${pid}/task/${tid}`);
    if (time !== null) sample.set(Number(tid), time);
  }
  return sample;
}

export function cpuBetween(pid: number, before: CpuSample, after: CpuSample): CpuUse {
  const use: CpuUse = { total: 0, user: 0, system: 0, main: 0, others: 0, threads: {} };
  let userTicks = 0;
  let ticks = 0;
  for (const [tid, time] of after) {
    const old = before.get(tid);
    const usec = (time.ns - (old?.ns ?? 0)) / NS_PER_USEC;
    use.total += usec;
    if (tid === pid) {
      use.main += usec;
    } else {
      use.others += usec;
      use.threads[time.name] = (use.threads[time.name] ?? 0) + usec;
    }
    userTicks += time.userTicks - (old?.userTicks ?? 0);
    ticks += time.userTicks - (old?.userTicks ?? 0) + time.systemTicks - (old?.systemTicks ?? 0);
  }
  use.user = ticks === 0 ? 0 : (use.total * userTicks) / ticks;
  use.system = use.total - use.user;
  return use;
}

/** User and system time of a process so far, all threads, in usec. */
export function cpuUsec(pid: number): number {
  return cpuBetween(pid, new Map(), sampleCpu(pid)).total;
}

function statusKb(pid: number, field: string): number {
  const status = readFileSync(`/proc/${pid}/status`, 'latin1');
  return Number(new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(status)?.[1]);
}

/** Resident memory of a process, in kB. */
export function rssKb(pid: number): number {
  return statusKb(pid, 'VmRSS');
}

/** Its part that belongs to this process alone, in kB: not the pages of programs and libraries. */
export function ownKb(pid: number): number {
  return statusKb(pid, 'RssAnon');
}
