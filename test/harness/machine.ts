/*
 * What every test needs of the machine: a folder of its own, an unprivileged user, children that never outlive the test
 * process, and an end to waiting. Used by the rest of the harness and by tests that start programs themselves.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { chmodSync, copyFileSync, cpSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join, resolve } from 'node:path';
import { after, test } from 'node:test';
import { giveTo, type RunUser, runUser, spawnAs, userCan } from '../../src/demo/unprivileged';

/** The project's top folder, seen from dist-test/test/harness. */
export const PROJECT_DIR = resolve(__dirname, '..', '..', '..');

/** Most that one test may take, and one wait inside it, unless it says otherwise. */
export const TEST_MS_MAX = 120_000;
export const WAIT_MS_MAX = 20_000;

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

/** A test with an end to it. */
export function it(name: string, body: () => Promise<void> | void, timeoutMs: number = TEST_MS_MAX): void {
  test(name, { timeout: timeoutMs }, async () => {
    await body();
  });
}

/** The promise's outcome, or an error that says what was waited for. `what` may be a function, for texts that grow. */
export async function withTimeout<T>(
  promise: Promise<T>,
  what: string | (() => string),
  timeoutMs: number = WAIT_MS_MAX,
): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      reject(new Error(`waited ${timeoutMs} ms for ${typeof what === 'string' ? what : what()}`));
    }, timeoutMs);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Asks again and again until the answer is neither false, null nor undefined: for what has no event to wait for. */
export async function eventually<T>(
  what: string,
  ask: () => Promise<T> | T,
  timeoutMs: number = WAIT_MS_MAX,
): Promise<NonNullable<T>> {
  const endMs = Date.now() + timeoutMs;
  for (;;) {
    const answer = await ask();
    if (answer !== false && answer !== null && answer !== undefined) return answer as NonNullable<T>;
    if (Date.now() > endMs) throw new Error(`waited ${timeoutMs} ms for ${what}`);
    await new Promise((wake) => setTimeout(wake, 20));
  }
}

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

/** Sees to it that the child is gone when this process is. */
export function adopt(child: ChildProcess): ChildProcess {
  children.add(child);
  child.once('close', () => children.delete(child));
  return child;
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
  const child = adopt(
    spawn(program, args, {
      cwd: options.cwd ?? '/',
      env: options.env ?? process.env,
      stdio: [options.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
      ...(options.asSelf === true ? {} : spawnAs(user)),
    }),
  );
  options.started?.(child);
  const outcome: Outcome = { code: null, signal: null, stdout: '', stderr: '' };
  child.stdout?.on('data', (chunk: Buffer) => {
    outcome.stdout += chunk.toString('latin1');
  });
  child.stderr?.on('data', (chunk: Buffer) => {
    outcome.stderr += chunk.toString('latin1');
  });
  child.stdin?.end(options.input);
  const ended = new Promise<Outcome>((settle, reject) => {
    child.once('error', reject);
    child.once('close', (code, signal) => settle({ ...outcome, code, signal }));
  });
  const what = () => `${basename(program)} ${args.join(' ')}\n${outcome.stderr}`;
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

/** Whether a program of that name is on the PATH. */
export function onPath(program: string): boolean {
  return spawnSync('/bin/sh', ['-c', `command -v "$1"`, 'sh', program]).status === 0;
}
