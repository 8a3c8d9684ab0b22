/*
 * The CPU time that the process's control groups allow: containers on large machines are limited by it, not by the set
 * of CPUs. Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max), and cgroup-v1 (cpu.cfs_quota_us).
 */

import { readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { trimSpace } from './strutil';

const GROUPS = 'sys/fs/cgroup';

function read(path: string): string {
  try {
    return trimSpace(readFileSync(path, 'latin1'));
  } catch {
    // another version of control groups, or none
    return '';
  }
}

/** @returns quota / period, or Infinity without a limit */
function quotient(quota: string, period: string): number {
  const cpus = Number.parseInt(quota, 10) / Number.parseInt(period, 10);
  return cpus > 0 ? cpus : Number.POSITIVE_INFINITY;
}

function limitOf(folder: string): number {
  const [quota, period] = read(join(folder, 'cpu.max')).split(' ');
  if (quota !== undefined && period !== undefined) return quotient(quota, period);
  return quotient(read(join(folder, 'cpu.cfs_quota_us')), read(join(folder, 'cpu.cfs_period_us')));
}

/**
 * @param root where /proc and /sys are
 * @returns CPUs, perhaps with a fraction; Infinity without a limit
 */
export function cpuQuota(root = '/'): number {
  let least = Number.POSITIVE_INFINITY;
  for (const line of read(join(root, 'proc/self/cgroup')).split('\n')) {
    const [, controllers, path] = /^\d+:([^:]*):(\/.*)$/.exec(line) ?? [];
    if (controllers === undefined || path === undefined) continue;
    const version1 = controllers.split(',').includes('cpu');
    if (controllers !== '' && !version1) continue;
    const top = join(root, GROUPS, version1 ? 'cpu' : '');
    // a group has the limits of all groups around it; in a container the path may not exist
    for (let at = join('/', path); ; at = dirname(at)) {
      least = Math.min(least, limitOf(join(top, at)));
      if (at === '/') break;
    }
  }
  return least;
}
