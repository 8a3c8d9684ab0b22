/*
 * Programs of C++ tests (test/native/), compiled with the sources of the addon that they test.
 */

import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { runSync } from './limits';
import { findProgram, PROJECT_DIR } from './machine';

const COMPILE_MS_MAX = 300_000;
/** Sanitizers make silent mistakes fail. A compiler may lack their libraries. */
const SANITIZERS = ['-fsanitize=address,undefined', '-fno-sanitize-recover=undefined'];

// a sanitizer that this process was started with is not for the compiler
const { LD_PRELOAD: _, ...environment } = process.env;
/** The environment of the compiler and of the programs. */
export const programEnv: NodeJS.ProcessEnv = environment;

/** null: there is none on this machine. */
export const compiler = findProgram(process.env.CXX ?? 'g++') ?? findProgram('c++');

/** The folder of Node's headers, which have OpenSSL's too, as the addon was built with it. */
function nodeHeaders(): string {
  const config = readFileSync(join(PROJECT_DIR, 'build', 'config.gypi'), 'latin1');
  const found = /"nodedir": "([^"]+)"/.exec(config);
  assert.ok(found, 'build/config.gypi names no nodedir');
  return join(found[1] as string, 'include', 'node');
}

interface NativeProgram {
  /** of the addon, under native/ */
  sources: string[];
  /** all its sources are compiled, under test/native/ */
  folder: string;
  /** further ones of the compiler */
  flags: string[];
  output: string;
}

/** Compiles a program, with sanitizers if the compiler has them. @returns whether it has */
export function compileNative(compilerPath: string, { sources, folder, flags, output }: NativeProgram): boolean {
  const native = join(PROJECT_DIR, 'native');
  const tests = join(PROJECT_DIR, 'test', 'native');
  const own = join(tests, folder);
  const names = readdirSync(own).filter((name) => name.endsWith('.cc'));
  const files = [...sources.map((name) => join(native, name)), ...names.map((name) => join(own, name))];
  const includes = [native, tests, nodeHeaders()].map((path) => `-I${path}`);
  let failure = '';
  for (const sanitizers of [SANITIZERS, []]) {
    const options = ['-std=gnu++17', '-O1', '-g', '-fno-exceptions', ...sanitizers, ...flags, ...includes];
    const { status, stderr } = runSync(compilerPath, [...options, ...files, '-o', output], {
      env: programEnv,
      timeout: COMPILE_MS_MAX,
    });
    if (status === 0) return sanitizers.length > 0;
    failure = stderr || 'the compiler did not end';
  }
  assert.fail(failure);
}
