/* The CPU limit of control groups, from files as the kernel writes them. */

import assert from 'node:assert/strict';
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { cpuQuota } from '../../src/core/base/cpu-quota';
import { tempDir } from '../harness';
import { test } from '../harness/limits';

function rootWith(files: Record<string, string>): string {
  const root = tempDir('cpu-quota');
  for (const [path, text] of Object.entries(files)) {
    mkdirSync(dirname(join(root, path)), { recursive: true });
    writeFileSync(join(root, path), text);
  }
  return root;
}

test('the limit is the least of a control group and of those around it', () => {
  const own = { 'proc/self/cgroup': '0::/kube/pod/one\n' };
  assert.equal(cpuQuota(rootWith(own)), Number.POSITIVE_INFINITY);
  const groups = 'sys/fs/cgroup';
  const none = { ...own, [`${groups}/kube/pod/one/cpu.max`]: 'max 100000\n' };
  assert.equal(cpuQuota(rootWith(none)), Number.POSITIVE_INFINITY);
  const around = {
    ...none,
    [`${groups}/kube/pod/cpu.max`]: '250000 100000\n',
    [`${groups}/kube/cpu.max`]: '400000 100000\n',
  };
  assert.equal(cpuQuota(rootWith(around)), 2.5);
});

test('in a container the limit is at the top, whatever the name of the group', () => {
  const top = { 'proc/self/cgroup': '0::/../other/name\n', 'sys/fs/cgroup/cpu.max': '150000 100000\n' };
  assert.equal(cpuQuota(rootWith(top)), 1.5);
});

test('control groups of version 1 have the limit in two files', () => {
  const files = {
    'proc/self/cgroup': '5:memory:/x\n4:cpu,cpuacct:/docker/id\n0::/\n',
    'sys/fs/cgroup/cpu/docker/id/cpu.cfs_quota_us': '300000\n',
    'sys/fs/cgroup/cpu/docker/id/cpu.cfs_period_us': '100000\n',
    'sys/fs/cgroup/cpu/cpu.cfs_quota_us': '-1\n',
    'sys/fs/cgroup/cpu/cpu.cfs_period_us': '100000\n',
  };
  assert.equal(cpuQuota(rootWith(files)), 3);
});

test('without control groups there is no limit', () => {
  assert.equal(cpuQuota(rootWith({ 'proc/other': '' })), Number.POSITIVE_INFINITY);
});
