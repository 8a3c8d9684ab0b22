/*
 * Threads beside the loop: one that answers no more can be ended, and is gone then.
 */

import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { native } from '../../src/core/base/native';
import { startThread } from '../../src/core/base/thread';
import { eventually, it } from '../harness/machine';

native.loopInit('libuv', 65536);

const threads = () => readdirSync('/proc/self/task').length;

it('a thread that is ended goes away, whatever it was doing', async () => {
  const before = threads();
  const thread = startThread('names.js', { resolvConf: Buffer.from('/etc/resolv.conf') });
  await eventually('the thread to run', () => threads() > before);
  thread.end();
  await eventually('the thread to be gone', () => threads() <= before);
});

it('a thread whose program is not there is an error at once', () => {
  assert.throws(() => startThread('none.js'), { code: 'ENOENT' });
});
