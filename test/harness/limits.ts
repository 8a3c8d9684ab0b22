/*
 * Time limits for every wait. Tests and hooks come from here instead of node:test (`npm run limits` checks this), so
 * that each has a limit and, when the limit is reached, reports what it was waiting for.
 */
import { type SpawnSyncOptions, spawnSync } from 'node:child_process';
import {
  after as nodeAfter,
  afterEach as nodeAfterEach,
  before as nodeBefore,
  beforeEach as nodeBeforeEach,
  test as nodeTest,
} from 'node:test';
import type { Client } from 'pg';

export { describe } from 'node:test';

/** Default limits of a test, and of a wait inside a test. */
export const TEST_MS_MAX = 120_000;
export const WAIT_MS_MAX = 20_000;
/** Limit of a hook, which may start several servers. */
const HOOK_MS_MAX = 120_000;
/** How much later the timeout of node:test is, whose message does not name the wait. */
const GRACE_MS = 5_000;

type Text = string | (() => string);
type Body = () => unknown;

/** The current waits. */
const waits = new Set<{ what: Text }>();

function textOf(what: Text): string {
  return typeof what === 'string' ? what : what();
}

/** Registers a wait without a limit of its own, so that the failure of the test's limit names it. */
export function waitingFor<T>(what: Text, promise: Promise<T>): Promise<T> {
  const wait = { what };
  waits.add(wait);
  const over = () => {
    waits.delete(wait);
  };
  promise.then(over, over);
  return promise;
}

/** Registers the queries of a driver's connection as waits. */
export function watchQueries(client: Client): Client {
  const query = client.query.bind(client) as (...args: unknown[]) => unknown;
  client.query = ((...args: unknown[]) => {
    const answer = query(...args);
    const [asked] = args as [string | { text?: string }];
    const text = typeof asked === 'string' ? asked : asked?.text;
    if (answer instanceof Promise) waitingFor(`the answer to ${text}`, answer).catch(() => {});
    return answer;
  }) as Client['query'];
  return client;
}

/** The promise's outcome, or an error that names the wait. `what` may be a function, for texts that change. */
export async function withTimeout<T>(promise: Promise<T>, what: Text, timeoutMs: number = WAIT_MS_MAX): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${timeoutMs} ms for ${textOf(what)}`)), timeoutMs);
  });
  const wait = { what };
  waits.add(wait);
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
    waits.delete(wait);
  }
}

/** Polls until the answer is neither false, null nor undefined, where there is no event to wait for. */
export async function eventually<T>(
  what: string,
  ask: () => Promise<T> | T,
  timeoutMs: number = WAIT_MS_MAX,
): Promise<NonNullable<T>> {
  const endMs = Date.now() + timeoutMs;
  const wait = { what };
  waits.add(wait);
  try {
    for (;;) {
      const answer = await ask();
      if (answer !== false && answer !== null && answer !== undefined) return answer as NonNullable<T>;
      if (Date.now() > endMs) throw new Error(`waited ${timeoutMs} ms for ${what}`);
      await new Promise((wake) => setTimeout(wake, 20));
    }
  } finally {
    waits.delete(wait);
  }
}

async function limited(body: Body, limitMs: number): Promise<void> {
  // a wait left open by an earlier test does not belong to this test
  const before = new Set(waits);
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => {
      const open = [...waits].filter((wait) => !before.has(wait)).map(({ what }) => `\n  - ${textOf(what)}`);
      reject(new Error(`not done after ${limitMs} ms, still waiting for:${open.join('') || ' no registered wait'}`));
    }, limitMs);
  });
  try {
    await Promise.race([body(), late]);
  } finally {
    clearTimeout(timer);
  }
}

/** Options of test(). */
interface TestOptions {
  /** why the test is skipped; false: not skipped */
  skip?: string | false;
  timeoutMs?: number;
}

/** A test with a time limit. */
export function test(name: string, body: Body): void;
export function test(name: string, options: TestOptions, body: Body): void;
export function test(name: string, ...rest: [Body] | [TestOptions, Body]): void {
  const [options, body] = rest.length === 1 ? [{}, rest[0]] : rest;
  const { skip = false, timeoutMs = TEST_MS_MAX } = options;
  nodeTest(name, { skip, timeout: timeoutMs + GRACE_MS }, () => limited(body, timeoutMs));
}

/** A test with at most a time limit of its own as option. */
export function it(name: string, body: Body, timeoutMs: number = TEST_MS_MAX): void {
  test(name, { timeoutMs }, body);
}

function limitHook(hook: typeof nodeBefore): (body: Body) => void {
  return (body) => hook(() => limited(body, HOOK_MS_MAX), { timeout: HOOK_MS_MAX + GRACE_MS });
}

export const before = limitHook(nodeBefore);
export const after = limitHook(nodeAfter);
export const beforeEach = limitHook(nodeBeforeEach);
export const afterEach = limitHook(nodeAfterEach);

/** Outcome of a program; if status is null, it did not exit by itself, and `error` has the reason. */
interface SyncOutcome {
  status: number | null;
  stdout: string;
  stderr: string;
  error: Error | undefined;
}

/** Runs a program synchronously, with a time limit. Texts are byte strings. */
export function runSync(program: string, args: string[] = [], options: SpawnSyncOptions = {}): SyncOutcome {
  const limits = { timeout: WAIT_MS_MAX, killSignal: 'SIGKILL' as const };
  const { status, stdout, stderr, error } = spawnSync(program, args, { ...limits, ...options, encoding: 'latin1' });
  return { status, stdout: stdout ?? '', stderr: stderr ?? '', error };
}
