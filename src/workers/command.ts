/*
 * Runs commands that print a password, on a thread of its own. Started by src/core/link/password-command.ts at the first
 * such command. The thread receives one message per run, answers each with one message, and wakes the loop. It uses no
 * other part of the pooler.
 */
import { spawn } from 'node:child_process';
import { writeSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import type { CommandAnswer, CommandRequest, WorkerData } from '../core/base/worker-messages';

/** Most bytes of stderr that are kept, and lines of it that are reported. */
const STDERR_MAX = 4096;
const LINES_MAX = 10;
const MS_PER_SECOND = 1000;

/** What a command wrote: bytes up to a limit. */
class Output {
  private readonly parts: Buffer[] = [];
  private size = 0;

  constructor(private readonly max: number) {}

  /** @returns false if it is more than the limit now; what is too much is dropped */
  add(chunk: Buffer): boolean {
    const left = this.max - this.size;
    this.parts.push(chunk.subarray(0, Math.max(left, 0)));
    this.size += chunk.length;
    return this.size <= this.max;
  }

  text(): string {
    return Buffer.concat(this.parts).toString('latin1');
  }
}

/** The lines of stderr for the log, without the password. */
function linesOf(stderr: string, stdout: string): string[] {
  const secret = stdout.replace(/[\r\n]+$/, '');
  const text = secret === '' ? stderr : stderr.replaceAll(secret, '***');
  const lines = text.split(/[\r\n]+/).filter((line) => line !== '');
  return lines.slice(0, LINES_MAX);
}

function ended(code: number | null, signal: string | null): string {
  if (signal !== null) return `was ended by ${signal}`;
  return code === 0 ? '' : `has failed with exit status ${code}`;
}

/** Runs one command to its end, or to its time limit. Its whole process group is ended then. */
function run({ id, words, limitMs, outputMax }: CommandRequest): Promise<CommandAnswer> {
  const [program = '', ...args] = words;
  return new Promise((settle) => {
    const stdout = new Output(outputMax);
    const stderr = new Output(STDERR_MAX);
    const child = spawn(program, args, { cwd: '/', detached: true, stdio: ['ignore', 'pipe', 'pipe'] });
    const finish = (error: string) => {
      clearTimeout(timer);
      const text = stdout.text();
      settle({ id, error, stdout: error === '' ? text : '', lines: linesOf(stderr.text(), text) });
    };
    const stop = (error: string) => {
      // the pipes may be open in a process that has left the group
      child.stdout.destroy();
      child.stderr.destroy();
      try {
        if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
      } catch {
        // it has ended meanwhile
      }
      finish(error);
    };
    const timer = setTimeout(() => stop(`has not ended after ${limitMs / MS_PER_SECOND} s`), limitMs);
    child.stdout.on('data', (chunk: Buffer) => {
      if (!stdout.add(chunk)) stop('has printed more than a password');
    });
    child.stderr.on('data', (chunk: Buffer) => stderr.add(chunk));
    child.once('error', (err: NodeJS.ErrnoException) => finish(`could not be started: ${err.code ?? err.message}`));
    child.once('close', (code, signal) => finish(ended(code, signal)));
  });
}

function serve({ port, wakeFd }: WorkerData): void {
  const one = Buffer.alloc(8);
  one.writeBigUInt64LE(1n);
  const tell = (answer: CommandAnswer) => {
    port.postMessage(answer);
    writeSync(wakeFd, one);
  };
  port.on('message', (request: CommandRequest) => {
    run(request).then(tell, (err) => tell({ id: request.id, error: String(err), stdout: '', lines: [] }));
  });
  // an unhandled error of one run must not end the thread for other runs
  process.on('uncaughtException', () => {});
}

if (parentPort !== null) serve(workerData as WorkerData);
