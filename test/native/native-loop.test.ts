/*
 * What a backend of the native loop promises, tested below JavaScript. A program from test/native/ is compiled here. It
 * runs the same tests over the epoll backend and over a test backend that works by completions, each test in a process
 * of its own.
 */

import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, runSync, test } from '../harness/limits';
import { findProgram } from '../harness/machine';

const COMPILE_MS_MAX = 300_000;
const SOURCES = [
  'stream.cc',
  'handles.cc',
  'handshakes.cc',
  'hands.cc',
  'lanes.cc',
  'outbox.cc',
  'ready.cc',
  'backend_epoll.cc',
  'backend_uring.cc',
  'uring.cc',
  'uring_cancel.cc',
  'uring_submit.cc',
].map((name) => `loop/${name}`);
/** Sanitizers make silent mistakes fail. A compiler may lack their libraries. */
const SANITIZERS = ['-fsanitize=address,undefined', '-fno-sanitize-recover=undefined'];

function packageRoot(): string {
  let dir = __dirname;
  while (!existsSync(join(dir, 'binding.gyp'))) dir = dirname(dir);
  return dir;
}

const root = packageRoot();
const dir = mkdtempSync(join(tmpdir(), 'tsb-native-loop-'));
after(() => rmSync(dir, { recursive: true }));
// a sanitizer that this process was started with is not for the compiler
const { LD_PRELOAD: _, ...env } = process.env;
const program = join(dir, 'table');

/** The folder of Node's headers, which have OpenSSL's too, as the addon was built with it. */
function nodeHeaders(): string {
  const config = readFileSync(join(root, 'build', 'config.gypi'), 'latin1');
  const found = /"nodedir": "([^"]+)"/.exec(config);
  assert.ok(found, 'build/config.gypi names no nodedir');
  return join(found[1] as string, 'include', 'node');
}

/** Compiles the program. Returns the compiler's words when it failed. */
function compile(compiler: string, flags: string[]): string {
  const folder = join(root, 'test', 'native');
  const tests = readdirSync(folder).filter((name) => name.endsWith('.cc'));
  const files = [...SOURCES.map((name) => join(root, 'native', name)), ...tests.map((name) => join(folder, name))];
  const includes = [join(root, 'native'), folder, nodeHeaders()].map((path) => `-I${path}`);
  const args = ['-std=gnu++17', '-O1', '-g', '-fno-exceptions', ...flags, ...includes, ...files, '-o', program];
  const { status, stderr } = runSync(compiler, args, { env, timeout: COMPILE_MS_MAX });
  return status === 0 ? '' : stderr || 'the compiler did not end';
}

const compiler = findProgram(process.env.CXX ?? 'g++') ?? findProgram('c++');
if (compiler === null) {
  test('promises of the backends', { skip: 'there is no C++ compiler on this machine' }, () => {});
} else {
  const failed = compile(compiler, SANITIZERS) && compile(compiler, []);
  assert.equal(failed, '');
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
