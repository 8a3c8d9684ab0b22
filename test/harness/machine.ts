/*
 * Services of the machine for tests: temporary folders, an unprivileged user, and child processes that do not outlive
 * the test process. Used by the rest of the harness and by tests that start programs.
 */

import { type ChildProcess, type SpawnOptions, spawn } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { giveTo, isRoot, type RunUser, runUser, spawnAs, userCan } from '../../tools/unprivileged';
import { after, WAIT_MS_MAX, withTimeout } from './limits';

export { eventually, it, TEST_MS_MAX, test, WAIT_MS_MAX, withTimeout } from './limits';

/** The project's top folder, seen from dist-test/test/harness. */
export const PROJECT_DIR = resolve(__dirname, '..', '..', '..');

/** The user that runs the servers; null if the tests run as an ordinary user. */
export const user: RunUser | null = runUser();

/** A sanitizer's library (scripts/sanitize.mjs) for this process and for poolers; PostgreSQL does not work with it. */
const preload = process.env.TSBOUNCER_PRELOAD;

// tests look at the descriptors of the poolers, which without this only root may
if (!isRoot()) process.env.TSBOUNCER_CORE_DUMPS ??= '1';

if (preload !== undefined) delete process.env.LD_PRELOAD;

const children = new Set<ChildProcess>();
const dirs = new Set<string>();

function endChildren(): void {
  for (const child of children) child.kill('SIGKILL');
}

// A child left over by a test would keep the test process running. Hooks run in the order of their registration: this
// hook must come after those of the importing test file, which still use their children.
process.nextTick(() => after(endChildren));
process.on('exit', () => {
  endChildren();
  for (const dir of dirs) rmSync(dir, { recursive: true, force: true });
});
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => process.exit(1));

/** A fresh folder with a short path (Unix sockets live in it), owned by the unprivileged user, removed at exit. */
export function tempDir(purpose: string): string {
  const dir = mkdtempSync(join(tmpdir(), `tsb-${purpose}-`));
  dirs.add(dir);
  chmodSync(dir, 0o755);
  giveTo(user, dir);
  return dir;
}

/** Removes a folder of tempDir() before the exit of the process. */
export function dropDir(dir: string): void {
  dirs.delete(dir);
  rmSync(dir, { recursive: true, force: true });
}

/** Errors of children that could not be started. */
const startFailures = new WeakMap<ChildProcess, Error>();

/**
 * Makes sure that the child does not outlive this process. A program that cannot be executed counts as a child that
 * ends at once; howEnded() has the reason.
 */
export function adopt<Child extends ChildProcess>(child: Child): Child {
  children.add(child);
  child.once('close', () => children.delete(child));
  child.on('error', (err) => {
    startFailures.set(child, err);
    // without a process, streams emit no end: emitted here for those who wait for output
    children.delete(child);
  });
  return child;
}

/** Describes how a child ended. */
export function howEnded(child: ChildProcess): string {
  const failure = startFailures.get(child);
  return failure === undefined ? `ended with ${child.exitCode ?? child.signalCode}` : `failed: ${failure.message}`;
}

/** Starts a program that does not outlive this process. */
export function startProgram(program: string, args: string[], options: SpawnOptions): ChildProcess {
  return adopt(spawn(program, args, options));
}

/** Outcome of a program that has exited. */
export interface Outcome {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

/** Options of run(). */
export interface RunOptions {
  cwd?: string;
  env?: NodeJS.ProcessEnv;
  /** run as the user of this process, even if that is root */
  asSelf?: boolean;
  input?: string;
  timeoutMs?: number;
  /** called with the process once it has started */
  started?: (child: ChildProcess) => void;
}

/** Runs a program to its end, as the unprivileged user. Texts are byte strings. */
export function run(program: string, args: string[], options: RunOptions = {}): Promise<Outcome> {
  const child = startProgram(program, args, {
    cwd: options.cwd ?? '/',
    env: options.env ?? process.env,
    stdio: [options.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
    ...(options.asSelf === true ? {} : spawnAs(user)),
  });
  options.started?.(child);
  const outcome: Outcome = { code: null, signal: null, stdout: '', stderr: '' };
  child.stdout?.on('data', (chunk: Buffer) => {
    outcome.stdout += chunk.toString('latin1');
  });
  child.stderr?.on('data', (chunk: Buffer) => {
    outcome.stderr += chunk.toString('latin1');
  });
  // the program may exit before it has read all input
  child.stdin?.on('error', () => {});
  child.stdin?.end(options.input);
  const ended = new Promise<Outcome>((settle, reject) => {
    child.once('error', reject);
    child.once('close', (code, signal) => settle({ ...outcome, code, signal }));
  });
  const what = () => `${basename(program)} ${args.join(' ')} to end\n${outcome.stderr}`;
  return withTimeout(ended, what, options.timeoutMs ?? WAIT_MS_MAX);
}

/** Paths of Node and of the built program, readable for the unprivileged user. */
export interface Installation {
  node: string;
  mainJs: string;
}

let installation: Installation | null = null;

/** The project itself, or a copy of the built program if the unprivileged user cannot reach the project. */
export function installed(): Installation {
  if (installation !== null) return installation;
  const mainJs = join(PROJECT_DIR, 'dist', 'main.js');
  if (!existsSync(mainJs)) throw new Error('the pooler is not built yet: run npm run build');
  installation = { node: process.execPath, mainJs };
  const addon = join(PROJECT_DIR, 'build', 'Release', 'tsbouncer.node');
  const treeReadable = userCan(user, 'r', mainJs) && userCan(user, 'r', addon);
  const nodeRunnable = userCan(user, 'x', process.execPath);
  if (treeReadable && nodeRunnable && preload === undefined) return installation;

  const copy = tempDir('tree');
  if (!treeReadable) {
    for (const part of [
      'dist',
      'package.json',
      join('build', 'Release'),
      join('node_modules', 'ldapts'),
      join('node_modules', 'minimist'),
    ]) {
      cpSync(join(PROJECT_DIR, part), join(copy, part), { recursive: true });
    }
    installation.mainJs = join(copy, 'dist', 'main.js');
  }
  if (!nodeRunnable) {
    mkdirSync(join(copy, 'bin'));
    installation.node = join(copy, 'bin', 'node');
    copyFileSync(process.execPath, installation.node);
    chmodSync(installation.node, 0o755);
  }
  if (preload !== undefined) {
    const wrapper = join(copy, 'preloaded');
    writeFileSync(wrapper, `#!/bin/sh\nLD_PRELOAD="${preload}" exec "${installation.node}" "$@"\n`);
    chmodSync(wrapper, 0o755);
    installation.node = wrapper;
  }
  return installation;
}

/** Whether both the servers' user and this user can run the program. */
export function executable(path: string): boolean {
  return existsSync(path) && statSync(path).isFile() && userCan(null, 'x', path) && userCan(user, 'x', path);
}

/** The path of a program of that name on the PATH that can be run, or null. */
export function findProgram(name: string): string | null {
  if (name.includes('/')) return executable(name) ? name : null;
  const folders = (process.env.PATH ?? '').split(':').filter((folder) => folder !== '');
  return folders.map((folder) => join(folder, name)).find(executable) ?? null;
}

/** Whether a program of that name is on the PATH and can be run. */
export function onPath(program: string): boolean {
  return findProgram(program) !== null;
}
