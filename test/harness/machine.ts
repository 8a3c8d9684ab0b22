/*
 * What every test needs of the machine: a folder of its own, an unprivileged user, children that never outlive the test
 * process, and an end to waiting. Used by the rest of the harness and by tests that start programs themselves.
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
import { giveTo, type RunUser, runUser, spawnAs, userCan } from '../../tools/unprivileged';
import { after, WAIT_MS_MAX, withTimeout } from './limits';

export { eventually, it, TEST_MS_MAX, test, WAIT_MS_MAX, withTimeout } from './limits';

/** The project's top folder, seen from dist-test/test/harness. */
export const PROJECT_DIR = resolve(__dirname, '..', '..', '..');

/** As whom servers run: null when the tests themselves run as an ordinary user. */
export const user: RunUser | null = runUser();

/** A sanitizer's library (scripts/sanitize.mjs): for this process and for poolers, not for PostgreSQL, which it stops dead. */
const preload = process.env.TSBOUNCER_PRELOAD;
if (preload !== undefined) delete process.env.LD_PRELOAD;

const children = new Set<ChildProcess>();
const dirs = new Set<string>();

function endChildren(): void {
  for (const child of children) child.kill('SIGKILL');
}

// A child that a test forgot would keep the test process waiting for ever. Hooks run in the order of their registration:
// this one comes after those of the test file that imports us, which still talk to their children.
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

/** Removes a folder of tempDir() before the exit does. */
export function dropDir(dir: string): void {
  dirs.delete(dir);
  rmSync(dir, { recursive: true, force: true });
}

/** Why a child could not be started. */
const startFailures = new WeakMap<ChildProcess, Error>();

/**
 * Sees to it that the child is gone when this process is. A program that cannot be executed is a child that ends at once:
 * howEnded() says why.
 */
export function adopt<Child extends ChildProcess>(child: Child): Child {
  children.add(child);
  child.once('close', () => children.delete(child));
  child.on('error', (err) => {
    startFailures.set(child, err);
    // without a process there is no event for who waits for its output
    children.delete(child);
  });
  return child;
}

/** How a child ended, in words. */
export function howEnded(child: ChildProcess): string {
  const failure = startFailures.get(child);
  return failure === undefined ? `ended with ${child.exitCode ?? child.signalCode}` : `failed: ${failure.message}`;
}

/** Starts a program that lives no longer than this process. */
export function startProgram(program: string, args: string[], options: SpawnOptions): ChildProcess {
  return adopt(spawn(program, args, options));
}

/** How a program that ran to its end ended. */
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
  /** run as this test process does, even when that is root */
  asSelf?: boolean;
  input?: string;
  timeoutMs?: number;
  /** told of the process once it is there */
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
  // a program that ends before it has read all that
  child.stdin?.on('error', () => {});
  child.stdin?.end(options.input);
  const ended = new Promise<Outcome>((settle, reject) => {
    child.once('error', reject);
    child.once('close', (code, signal) => settle({ ...outcome, code, signal }));
  });
  const what = () => `${basename(program)} ${args.join(' ')} to end\n${outcome.stderr}`;
  return withTimeout(ended, what, options.timeoutMs ?? WAIT_MS_MAX);
}

/** Node and the built program, where the unprivileged user can read them. */
export interface Installation {
  node: string;
  mainJs: string;
}

let installation: Installation | null = null;

/** The project as it lies, or a copy of what runs when it lies where the unprivileged user cannot go. */
export function installed(): Installation {
  if (installation !== null) return installation;
  const mainJs = join(PROJECT_DIR, 'dist', 'main.js');
  if (!existsSync(mainJs)) throw new Error('nothing built yet: npm run build');
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

/** Whether that is the path of a program which the servers' user, and this one, can run. */
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
