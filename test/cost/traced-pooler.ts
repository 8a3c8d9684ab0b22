/*
 * A pooler whose system calls are counted, for cost.test.ts: compiles count-calls.cc, and starts poolers below it.
 */
import type { ChildProcess } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface, type Interface } from 'node:readline';
import { giveTo, spawnAs } from '../../tools/unprivileged';
import {
  findProgram,
  freePort,
  iniText,
  installed,
  LogTail,
  PROJECT_DIR,
  runSync,
  startProgram,
  tempDir,
  user,
  withTimeout,
} from '../harness';
import type { Gate } from './lock-step';

const COMPILE_MS_MAX = 120_000;

/** Calls by name. */
export type Calls = Record<string, number>;

/** Calls of the main thread, which decides, and of all other threads. */
export interface CallCounts {
  main: Calls;
  others: Calls;
}

/** The compiled counter, or why calls cannot be counted here; and why io_uring does not work, or null. */
interface Counter {
  program: string;
  missing: string | null;
  noUring: string | null;
}

/** Compiles the counter and tries it. */
export function makeCounter(): Counter {
  const counter: Counter = { program: '', missing: null, noUring: null };
  const compiler = findProgram(process.env.CXX ?? 'g++') ?? findProgram('c++');
  if (compiler === null) return { ...counter, missing: 'there is no C++ compiler on this machine' };
  // a sanitizer that this process was started with is not for the compiler
  const { LD_PRELOAD: _, ...env } = process.env;
  counter.program = join(tempDir('cost'), 'count-calls');
  const source = join(PROJECT_DIR, 'test', 'cost', 'count-calls.cc');
  const args = ['-std=c++17', '-O1', source, '-o', counter.program];
  const { status, stderr } = runSync(compiler, args, { env, timeout: COMPILE_MS_MAX });
  if (status !== 0) throw new Error(`count-calls.cc does not compile:\n${stderr}`);
  const probe = runSync(counter.program, ['--probe'], { env, ...spawnAs(user) });
  const [ptrace = 'the probe failed', uring = ''] = probe.stdout.split('\n');
  if (ptrace !== 'ok') counter.missing = `system calls cannot be counted: ${ptrace || probe.stderr}`;
  if (uring !== 'ok') counter.noUring = `this kernel refuses ${uring}`;
  return counter;
}

/** A pooler with one database, `postgres`, on a server at that port. */
export class TracedPooler implements Gate {
  private readonly waiting: ((line: string) => void)[] = [];

  private constructor(
    readonly port: number,
    readonly log: LogTail,
    private readonly child: ChildProcess,
    lines: Interface,
  ) {
    lines.on('line', (line) => this.waiting.shift()?.(line));
  }

  static async start(counter: string, serverPort: number, settings: Record<string, string | number>) {
    const dir = tempDir('pooler');
    const port = await freePort();
    const ini = join(dir, 'pooler.ini');
    const pgbouncer = {
      listen_addr: '127.0.0.1',
      listen_port: port,
      unix_socket_dir: '',
      auth_type: 'trust',
      auth_file: join(dir, 'userlist.txt'),
      pool_mode: 'transaction',
      server_tls_sslmode: 'disable',
      log_connections: 0,
      log_disconnections: 0,
      log_stats: 0,
      ...settings,
    };
    writeFileSync(ini, iniText({ databases: { postgres: `host=127.0.0.1 port=${serverPort}` }, pgbouncer }));
    writeFileSync(join(dir, 'userlist.txt'), '"postgres" ""\n');
    giveTo(user, dir);
    const { node, mainJs } = installed();
    const child = startProgram(counter, [node, mainJs, ini], {
      cwd: dir,
      // without the checks of the pooler's own records
      env: { ...process.env, TSBOUNCER_CHECK: '0' },
      stdio: ['pipe', 'pipe', 'pipe'],
      ...spawnAs(user),
    });
    const log = new LogTail(child);
    const lines = createInterface({ input: child.stdout as NodeJS.ReadableStream });
    const pooler = new TracedPooler(port, log, child, lines);
    await log.wait(/process up: /);
    return pooler;
  }

  private ask(command: string): Promise<string> {
    const answer = new Promise<string>((settle) => this.waiting.push(settle));
    this.child.stdin?.write(command);
    return withTimeout(answer, () => `the counter's answer to ${command}:\n${this.log.text.slice(-4096)}`);
  }

  /** All calls since the start of the process. */
  async counts(): Promise<CallCounts> {
    return JSON.parse(await this.ask('c')) as CallCounts;
  }

  /** Stops all threads; returns once none runs. */
  async freeze(): Promise<void> {
    await this.ask('f');
  }

  async thaw(): Promise<void> {
    await this.ask('t');
  }

  /** The counter's end is the pooler's end. */
  async stop(): Promise<void> {
    const ended = new Promise((settle) => this.child.once('close', settle));
    this.child.kill('SIGKILL');
    await withTimeout(ended, 'the traced pooler to end');
  }
}
