/*
 * The load generator: compiles bench/load/ on demand, runs it, and reads its report.
 */
import { spawn } from 'node:child_process';
import { existsSync, readdirSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { adopt, findProgram, howEnded, PROJECT_DIR, runSync, tempDir } from '../test/harness';
import { type CpuUse, cpuBetween, sampleCpu } from './cpu';
import { remark } from './rows';
import { options, WARM_UP_SECONDS } from './settings';

const COMPILE_MS_MAX = 120_000;
/** How much longer than its period a run may take, for logins and for slow answers. */
const GRACE_MS = 400_000;
const CLIENTS_PER_WARM_UP_SECOND = 5000;
/** A run without a transaction is repeated with twice the time, up to this factor. */
const LONGER_MAX = 8;

/** One run; what is missing has the generator's default. */
export interface LoadRun {
  port: number;
  clients: number;
  seconds: number;
  mode?: 'run' | 'once' | 'idle' | 'reconnect';
  protocol?: 'simple' | 'extended' | 'prepared';
  tls?: boolean;
  /** mode reconnect: this many transactions instead of a period */
  count?: number;
  /** mode reconnect: log in and leave without a query */
  noQuery?: boolean;
  /** each connection begins with a header of the PROXY protocol */
  proxy?: boolean;
  query?: string;
  user?: string;
  password?: string;
}

/** The generator's report. */
interface LoadResult {
  transactions: number;
  seconds: number;
  perSecond: number;
  latencyUs: { mean: number; p50: number; p90: number; p99: number; p999: number; max: number };
  /** until all clients had logged in */
  connectSeconds: number;
  /** mode once: until all clients had their answer */
  onceSeconds: number;
  cpuUsPerTransaction: number;
  /** share of the period in which the generator's busiest thread worked */
  busiestThread: number;
  /** the generator itself may have limited the throughput */
  limit: boolean;
}

/** A run under way. */
interface Load {
  /** settles when all clients have logged in */
  connected: Promise<void>;
  /** settles when the measured period begins */
  begun: Promise<void>;
  /** settles when it ends */
  ended: Promise<void>;
  result: Promise<LoadResult>;
  /** ends the period, or in mode idle the connections */
  stop(): void;
}

let program: string | null = null;
let hasTls = false;

/** OpenSSL of the system, or its library with the headers of Node, or none. */
function opensslChoices(): string[][] {
  const headers = join(dirname(dirname(process.execPath)), 'include', 'node');
  const node = existsSync(join(headers, 'openssl')) ? [[`-I${headers}`, '-l:libssl.so.3', '-l:libcrypto.so.3']] : [];
  return [['-lssl', '-lcrypto'], ...node, ['-DLOAD_NO_OPENSSL']];
}

function compile(): string {
  const compiler = findProgram(process.env.CXX ?? 'g++') ?? findProgram('c++');
  if (compiler === null) throw new Error('the load generator needs a C++ compiler');
  const folder = join(PROJECT_DIR, 'bench', 'load');
  const sources = readdirSync(folder).filter((name) => name.endsWith('.cc'));
  const output = join(tempDir('load'), 'load');
  let errors = '';
  for (const openssl of opensslChoices()) {
    const args = ['-std=c++17', '-O2', ...sources.map((name) => join(folder, name)), '-o', output, '-pthread'];
    const { status, stderr } = runSync(compiler, [...args, ...openssl], { timeout: COMPILE_MS_MAX });
    if (status === 0) return output;
    errors = stderr;
  }
  throw new Error(`the load generator does not compile:\n${errors}`);
}

function generator(): string {
  if (program === null) {
    program = compile();
    hasTls = runSync(program, ['--has-tls']).stdout.trim() === 'yes';
  }
  return program;
}

/** Whether the generator speaks TLS and SCRAM; a remark says so if it does not. */
export function generatorHasTls(): boolean {
  generator();
  if (!hasTls) remark('no OpenSSL library was found for the load generator: no figures with its TLS and SCRAM clients');
  return hasTls;
}

function argumentsOf(run: LoadRun): string[] {
  const args = ['--port', String(run.port), '--clients', String(run.clients), '--seconds', String(run.seconds)];
  args.push('--threads', String(options.threads), '--mode', run.mode ?? 'run');
  args.push('--warm-up', String(warmUpSeconds(run.clients)));
  if (run.protocol !== undefined) args.push('--protocol', run.protocol);
  if (run.user !== undefined) args.push('--user', run.user);
  if (run.query !== undefined) args.push('--query', run.query);
  if (run.count !== undefined) args.push('--count', String(run.count));
  if (run.tls === true) args.push('--tls');
  if (run.proxy === true) args.push('--proxy');
  if (run.noQuery === true) args.push('--no-query');
  return args;
}

/** s of load before the measured period: longer for many clients, whose first requests all come at once. */
function warmUpSeconds(clients: number): number {
  return WARM_UP_SECONDS + clients / CLIENTS_PER_WARM_UP_SECOND;
}

/** Starts a run. A failure rejects all promises with the generator's message. */
export function startLoad(run: LoadRun): Load {
  const env = { ...process.env, PGPASSWORD: run.password ?? '' };
  const child = adopt(spawn(generator(), argumentsOf(run), { env, stdio: ['ignore', 'pipe', 'pipe'] }));
  const timer = setTimeout(() => child.kill('SIGKILL'), run.seconds * 1000 + GRACE_MS);
  let errors = '';
  child.stderr?.on('data', (chunk: Buffer) => {
    errors += chunk.toString('latin1');
  });
  const lines = createInterface({ input: child.stdout });
  const ended = new Promise<never>((_, reject) => {
    child.once('close', () => {
      clearTimeout(timer);
      reject(new Error(errors.trim() || `load: ${howEnded(child)}`));
    });
  });
  const reported = <T>(name: string): Promise<T> => {
    const line = new Promise<T>((settle) => {
      lines.on('line', (text) => {
        const report = JSON.parse(text) as { event: string };
        if (report.event === name) settle(report as T);
      });
    });
    const either = Promise.race([line, ended]);
    // not every caller waits for every event
    either.catch(() => {});
    return either;
  };
  return {
    connected: reported('connected'),
    begun: reported('begin'),
    ended: reported('end'),
    result: reported<LoadResult>('result'),
    stop: () => child.kill('SIGTERM'),
  };
}

async function measureOnce(pid: number, run: LoadRun): Promise<LoadResult & { cpu: CpuUse }> {
  const load = startLoad(run);
  await load.begun;
  const before = sampleCpu(pid);
  let after = before;
  const ended = load.ended.then(() => {
    after = sampleCpu(pid);
  });
  const result = await load.result;
  await ended;
  return { ...result, cpu: cpuBetween(pid, before, after) };
}

/**
 * Runs the generator, and measures what the process used in the measured period. Repeats a run in which no client got
 * an answer, on a busy machine, with more time.
 */
export async function measureLoad(pid: number, run: LoadRun): Promise<LoadResult & { cpu: CpuUse }> {
  const what = `${run.clients} clients${run.tls === true ? ' with TLS' : ''}`;
  for (let factor = 1; factor <= LONGER_MAX; factor *= 2) {
    const result = await measureOnce(pid, { ...run, seconds: run.seconds * factor });
    if (result.limit) remark(`the load generator was the limit with ${what}: more --threads may help`);
    if (result.transactions > 0) return result;
  }
  throw new Error(`none of ${what} got an answer in ${run.seconds * LONGER_MAX} s`);
}

/** Runs the generator to its end. */
export function runLoad(run: LoadRun): Promise<LoadResult> {
  return startLoad(run).result;
}
