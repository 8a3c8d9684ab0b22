/*
 * What a backend of the native loop promises, tested below JavaScript. A program from test/native/ is compiled here. It
 * runs the same tests over the epoll backend and over a test backend that works by completions, each test in a process
 * of its own.
 */

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, runSync, test } from '../harness/limits';
import { compileNative, compiler, programEnv as env } from '../harness/native-program';

const SOURCES = [
  'stream.cc',
  'handles.cc',
  'handover.cc',
  'handshakes.cc',
  'hands.cc',
  'kept.cc',
  'lanes.cc',
  'outbox.cc',
  'ready.cc',
  'backend_epoll.cc',
  'backend_uring.cc',
  'uring.cc',
  'uring_cancel.cc',
  'uring_submit.cc',
].map((name) => `loop/${name}`);

const dir = mkdtempSync(join(tmpdir(), 'tsb-native-loop-'));
after(() => rmSync(dir, { recursive: true }));
const program = join(dir, 'table');

if (compiler === null) {
  test('promises of the backends', { skip: 'there is no C++ compiler on this machine' }, () => {});
} else {
  compileNative(compiler, { sources: SOURCES, folder: '.', flags: [], output: program });
  const names = runSync(program, [], { env }).stdout.split('\n').filter(Boolean);
  assert.ok(names.length > 0);
  const refusal = runSync(program, ['--refusal'], { env }).stdout.trim();
  for (const name of names) {
    const skip = name.startsWith('io_uring') && refusal !== '' ? `this kernel refuses io_uring: ${refusal}` : false;
    test(name, { skip }, () => {
      const { status, stderr, error } = runSync(program, [name], { env });
      assert.equal(status, 0, stderr || String(error));
    });
  }
}
