/*
 * What a transaction may cost at most, in counts that do not depend on the speed of the machine. These are the system
 * calls of the deciding thread and of the other threads, and bytes of the JavaScript heap.
 *
 * The workload runs in lock step: one client, or many clients whose queries and answers reach the pooler at once. The
 * pooler also works three times a second without any traffic. The bounds grow with the time that a run takes, so that a
 * slow machine does not exceed them. Context switches have no bound, because the scheduler decides about most of them,
 * and counting calls adds more.
 */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { findSetting } from '../../src/core/config/settings';
import { Bouncer, installed, itUnless } from '../harness';
import { type Gate, LockStepClients, LockStepServer } from './lock-step';
import { type CallCounts, type Calls, makeCounter, TracedPooler } from './traced-pooler';

/** Before the counting: JavaScript is compiled, servers are connected. */
const WARM_UP_ROUNDS = 300;
const ROUNDS = 2000;
const CLIENTS = 32;
const ROUNDS_OF_MANY = 100;

/** Calls that each second allows in addition, for what runs three times a second. */
const CALLS_PER_SECOND = 30;
/** Receives, sends and waits that each run allows in addition. */
const CALLS_PER_RUN = 50;
/** Other calls that each run allows: V8 compiles and collects garbage. One for each transaction would be far more. */
const OTHER_CALLS_PER_RUN = 800;

/** At most so many calls of the deciding thread for each transaction. */
interface Bounds {
  receive: number;
  send: number;
  /** waits for events; with io_uring they submit too */
  wait: number;
  /** waits for each round of many clients, whose requests arrive at once, as do the answers */
  waitsOfRound: number;
}

/** A turn for the request, and a turn for the answer. Each freeze of the process interrupts a wait. */
const BOUNDS: Record<'epoll' | 'uring', Bounds> = {
  epoll: { receive: 2, send: 2, wait: 2, waitsOfRound: 4 },
  uring: { receive: 0, send: 0, wait: 2, waitsOfRound: 6 },
};

const CLASSES: Record<'receive' | 'send' | 'wait', string[]> = {
  receive: ['recvfrom', 'recvmsg', 'read', 'readv'],
  send: ['sendto', 'sendmsg', 'write', 'writev'],
  wait: ['epoll_wait', 'epoll_pwait', 'poll', 'io_uring_enter'],
};

/** Bytes of the JavaScript heap for each transaction; at the time of writing 190, most of them for the two turns. */
const HEAP_BYTES_MAX = 256;
/** The least of several periods counts, because V8 may compile late on a busy machine. */
const HEAP_PERIODS = 3;
const HEAP_ROUNDS = 15_000;
const HEAP_WARM_UP_ROUNDS = 5000;
const MB = 1024 * 1024;

/** Bytes for each login that V8 still keeps when its client has left; at the time of writing 70, and once 760. */
const LEFT_BYTES_MAX = 256;
const LOGINS_AT_ONCE = 10;
const LOGIN_ROUNDS = 500;
const LOGIN_WARM_UP_ROUNDS = 100;

function sum(calls: Calls, names: readonly string[]): number {
  return names.reduce((total, name) => total + (calls[name] ?? 0), 0);
}

function difference(before: Calls, after: Calls): Calls {
  const differences = Object.entries(after).map(([name, count]) => [name, count - (before[name] ?? 0)] as const);
  return Object.fromEntries(differences.filter(([, count]) => count !== 0));
}

interface Run {
  calls: CallCounts;
  /** calls that the bounds allow in addition */
  spare: number;
}

async function countCalls(pooler: TracedPooler, clients: LockStepClients, rounds: number, gate: Gate | null) {
  for (let n = 0; n < Math.min(rounds, WARM_UP_ROUNDS); n++) await clients.round(gate);
  const start = performance.now();
  const before = await pooler.counts();
  for (let n = 0; n < rounds; n++) await clients.round(gate);
  const after = await pooler.counts();
  const seconds = (performance.now() - start) / 1000;
  const calls = { main: difference(before.main, after.main), others: difference(before.others, after.others) };
  return { calls, spare: CALLS_PER_RUN + CALLS_PER_SECOND * seconds } satisfies Run;
}

function expectAtMost(what: string, count: number, bound: number, { calls }: Run): void {
  assert.ok(count <= bound, `${what}: ${count}, more than ${Math.round(bound)}, among ${JSON.stringify(calls)}`);
}

/** Checks one run. @param waits bound of all waits of the run */
function check(run: Run, bounds: Bounds, transactions: number, waits: number): void {
  const { calls, spare } = run;
  expectAtMost('receives', sum(calls.main, CLASSES.receive), bounds.receive * transactions + spare, run);
  expectAtMost('sends', sum(calls.main, CLASSES.send), bounds.send * transactions + spare, run);
  expectAtMost('waits', sum(calls.main, CLASSES.wait), waits + spare, run);
  const known = Object.values(CLASSES).flat();
  const rest = sum(calls.main, Object.keys(calls.main)) - sum(calls.main, known);
  expectAtMost('other calls of the deciding thread', rest, spare + OTHER_CALLS_PER_RUN, run);
}

async function withWorkload(
  count: number,
  settings: Record<string, string | number>,
  work: (pooler: TracedPooler, clients: LockStepClients) => Promise<void>,
): Promise<void> {
  const server = await LockStepServer.start();
  const pooler = await TracedPooler.start(counter.program, server.port, { default_pool_size: CLIENTS, ...settings });
  try {
    const clients = await LockStepClients.login(server, pooler.port, count);
    await work(pooler, clients);
    await clients.end();
  } finally {
    await pooler.stop();
    server.stop();
  }
}

const sanitized = process.env.TSBOUNCER_PRELOAD === undefined ? null : 'a sanitizer makes system calls itself';
const counter = makeCounter();
const hasBackends = findSetting('loop_backend') !== null;

for (const backend of ['epoll', 'uring'] as const) {
  // before there is a choice, the only backend is epoll
  if (!hasBackends && backend === 'uring') continue;
  const settings: Record<string, string | number> = hasBackends ? { loop_backend: backend } : {};
  // the deciding thread does everything itself
  if (findSetting('io_threads') !== null) settings.io_threads = 0;
  const test = itUnless(sanitized ?? counter.missing ?? (backend === 'uring' ? counter.noUring : null));
  const bounds = BOUNDS[backend];

  test(`${backend}: a transaction of one client costs no more system calls than its bounds allow`, async () => {
    await withWorkload(1, settings, async (pooler, clients) => {
      const run = await countCalls(pooler, clients, ROUNDS, null);
      check(run, bounds, ROUNDS, bounds.wait * ROUNDS);
      // not below for many clients: freezing interrupts the waits of these threads
      const { others } = run.calls;
      const allowed = run.spare + OTHER_CALLS_PER_RUN;
      expectAtMost('calls of other threads', sum(others, Object.keys(others)), allowed, run);
    });
  });

  test(`${backend}: ${CLIENTS} transactions at once share their waits`, async () => {
    await withWorkload(CLIENTS, settings, async (pooler, clients) => {
      const run = await countCalls(pooler, clients, ROUNDS_OF_MANY, pooler);
      check(run, bounds, CLIENTS * ROUNDS_OF_MANY, bounds.waitsOfRound * ROUNDS_OF_MANY);
    });
  });
}

interface Collection {
  /** where it is in the log */
  index: number;
  /** it has looked at young objects only */
  young: boolean;
  /* size of the heap in bytes */
  before: number;
  after: number;
}

/** The collections that V8 has logged. */
function collectionsIn(log: string): Collection[] {
  const lines = [...log.matchAll(/: (Scavenge|Mark-)[^\n]*? ([\d.]+) \([\d.]+\) -> ([\d.]+) \(/g)];
  assert.ok(lines.length > 0, 'V8 has logged no collection in a form that this test knows');
  return lines.map(({ index, 1: kind, 2: before, 3: after }) => ({
    index,
    young: kind === 'Scavenge',
    before: Number(before) * MB,
    after: Number(after) * MB,
  }));
}

/** Sums `bytes` of the collections from `mark` on, each with the one before it. */
function sumFrom(log: string, mark: number, bytes: (last: Collection, next: Collection) => number): number {
  const all = collectionsIn(log);
  return all.slice(1).reduce((total, next, i) => {
    return next.index >= mark ? total + bytes(all[i] as Collection, next) : total;
  }, 0);
}

/** Runs the work with a pooler in whose log are the collections of V8. */
async function withLoggedHeap(work: (pooler: Bouncer, server: LockStepServer) => Promise<void>): Promise<void> {
  const server = await LockStepServer.start();
  const { node, mainJs } = installed();
  const pooler = await Bouncer.start({
    databases: { postgres: `host=127.0.0.1 port=${server.port}` },
    settings: { pool_mode: 'transaction', server_tls_sslmode: 'disable', log_stats: 0, log_connections: 0 },
    // V8's log of collections is on standard output
    command: ['/bin/sh', '-c', 'exec "$@" >&2', 'sh', node, '--trace-gc', '--max-semi-space-size=1', mainJs],
    env: { TSBOUNCER_CHECK: '0' },
  });
  await work(pooler, server);
  await pooler.stop();
  server.stop();
}

itUnless(sanitized)(`a transaction allocates at most ${HEAP_BYTES_MAX} bytes of the JavaScript heap`, () =>
  withLoggedHeap(async (pooler, server) => {
    const clients = await LockStepClients.login(server, pooler.port, 1);
    for (let n = 0; n < HEAP_WARM_UP_ROUNDS; n++) await clients.round();
    const periods: number[] = [];
    for (let period = 0; period < HEAP_PERIODS; period++) {
      const mark = pooler.log.mark();
      for (let n = 0; n < HEAP_ROUNDS; n++) await clients.round();
      periods.push(sumFrom(pooler.log.text, mark, (last, next) => next.before - last.after) / HEAP_ROUNDS);
    }
    await clients.end();
    assert.ok(Math.min(...periods) <= HEAP_BYTES_MAX, `bytes for each transaction, by period: ${periods.join(', ')}`);
  }),
);

itUnless(sanitized)(`a client that has left leaves at most ${LEFT_BYTES_MAX} bytes to a full collection`, () =>
  withLoggedHeap(async (pooler, server) => {
    const logins = async (rounds: number): Promise<void> => {
      for (let n = 0; n < rounds; n++) await (await LockStepClients.login(server, pooler.port, LOGINS_AT_ONCE)).end();
    };
    await logins(LOGIN_WARM_UP_ROUNDS);
    const mark = pooler.log.mark();
    await logins(LOGIN_ROUNDS);
    const left = sumFrom(pooler.log.text, mark, (last, next) => (next.young ? next.after - last.after : 0));
    const perLogin = left / (LOGIN_ROUNDS * LOGINS_AT_ONCE);
    assert.ok(perLogin <= LEFT_BYTES_MAX, `${perLogin} bytes for each login`);
  }),
);

// only then does V8 treat it as a constant
itUnless(null)('the build assigns every export of a compiled module once', () => {
  const folder = join(__dirname, '..', '..', 'src', 'core');
  const files = readdirSync(folder, { recursive: true }).map(String);
  const modules = files.filter((file) => file.endsWith('.js'));
  const twice = modules.filter((file) => /^exports\..* = void 0;/m.test(readFileSync(join(folder, file), 'latin1')));
  assert.deepEqual([modules.length > 0, twice], [true, []]);
});
