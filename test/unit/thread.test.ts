/*
 * Worker threads: a thread that no longer answers can be ended.
 */

import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { startThread } from '../../src/core/base/thread';
import { startTestLoop } from '../harness/backend';
import { eventually, it } from '../harness/machine';

startTestLoop(65536);

const threads = () => readdirSync('/proc/self/task').length;

it('a thread can be ended whatever it is doing', async () => {
  const before = threads();
  const thread = startThread('names.js', { resolvConf: Buffer.from('/etc/resolv.conf') });
  await eventually('the thread to run', () => threads() > before);
  thread.end();
  await eventually('the thread to be gone', () => threads() <= before);
});

it('a thread with a missing program is an error at once', () => {
  assert.throws(() => startThread('none.js'), { code: 'ENOENT' });
});
