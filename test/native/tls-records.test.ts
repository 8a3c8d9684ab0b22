/*
 * The record layer of TLS (native/tls/record.h): known answers of the RFCs and of NIST, records in both directions with
 * OpenSSL, and hostile ones. The tests are C++, in test/native/tls/. TSB_SEED changes their random numbers.
 *
 * They are a library that Node loads: the OpenSSL that the addon uses is the one inside Node.
 */

import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, runSync, test } from '../harness/limits';
import { compileNative, compiler, programEnv } from '../harness/native-program';

const SOURCES = ['record.cc', 'message.cc', 'keys.cc'].map((name) => `tls/${name}`);

const dir = mkdtempSync(join(tmpdir(), 'tsb-tls-records-'));
after(() => rmSync(dir, { recursive: true }));
const library = join(dir, 'records.node');
const LOAD = `process.dlopen({ exports: {} }, ${JSON.stringify(library)})`;

if (compiler === null) {
  test('the record layer of TLS', { skip: 'there is no C++ compiler on this machine' }, () => {});
} else {
  const flags = ['-shared', '-fPIC'];
  const sanitized = compileNative(compiler, { sources: SOURCES, folder: 'tls', flags, output: library });
  const env: NodeJS.ProcessEnv = { ...programEnv };
  if (sanitized) {
    // the sanitizer must be the first library loaded; Node frees little at exit
    env.LD_PRELOAD = runSync(compiler, ['-print-file-name=libasan.so'], { env: programEnv }).stdout.trim();
    env.ASAN_OPTIONS = 'detect_leaks=0';
  }
  const run = (name: string) =>
    runSync(process.execPath, ['-e', LOAD], { env: name === '' ? env : { ...env, TSB_NATIVE_TEST: name } });
  const names = run('').stdout.split('\n').filter(Boolean);
  assert.ok(names.length > 0);
  for (const name of names) {
    test(name, () => {
      const { status, stderr, error } = run(name);
      assert.equal(status, 0, stderr || String(error));
    });
  }
}
