/*
 * What the modules of the pooler see instead of the real machine: files in memory, random numbers from the seed, a
 * process object for the simulated process, and a Date that follows the simulated clock.
 */
import * as crypto from 'node:crypto';
import * as os from 'node:os';
import type { Surroundings } from './modules';
import { UID } from './posix';
import { ProcessEnd, type SimProcess } from './process';

const MS_IN_US = 1000;
const STDERR = 2;

function notFound(path: string): Error {
  return Object.assign(new Error(`ENOENT: no such file or directory: ${path}`), { code: 'ENOENT', errno: -2 });
}

/** The functions of node:fs that the loop thread uses. */
function filesOf(process: SimProcess, onLog: (line: string) => void): object {
  const { files, processes } = process.machine;
  const textOf = (path: unknown): string => {
    const name = String(path);
    const pid = /^\/proc\/(\d+)\/status$/.exec(name);
    if (pid !== null && processes.some((one) => one.alive && one.pid === Number(pid[1])))
      return 'State:\tS (sleeping)\n';
    const text = files.get(name);
    if (text === undefined) throw notFound(name);
    return text;
  };
  const identity = (path: unknown) => {
    const text = textOf(path);
    const hash = crypto.createHash('sha1').update(text).digest();
    const number = BigInt(hash.readUInt32LE(0));
    return { ino: 1n, dev: 1n, size: BigInt(text.length), mtimeNs: number, ctimeNs: number, mtimeMs: Number(number) };
  };
  return {
    constants: { R_OK: 4, W_OK: 2 },
    existsSync: () => true,
    readFileSync: (path: unknown, encoding?: BufferEncoding) => {
      const bytes = Buffer.from(textOf(path), 'latin1');
      return encoding === undefined ? bytes : bytes.toString(encoding);
    },
    statSync: identity,
    lstatSync: identity,
    accessSync: textOf,
    chmodSync: () => {},
    unlinkSync: (path: unknown) => {
      textOf(path);
      files.delete(String(path));
      process.machine.unlink(String(path));
    },
    writeSync: (fd: number, bytes: Buffer, from: number, length: number) => {
      if (fd !== STDERR) throw notFound(`descriptor ${fd}`);
      onLog(bytes.toString('latin1', from, from + length).trimEnd());
      return length;
    },
  };
}

/** Random numbers from the seed; the hash functions are the real ones. */
function cryptoOf(process: SimProcess): object {
  return { ...crypto, randomBytes: (length: number) => process.machine.random.bytes(length) };
}

function processOf(process: SimProcess): object {
  return {
    pid: process.pid,
    env: { TZ: 'UTC' },
    argv: ['node', 'main.js'],
    platform: 'linux',
    versions: { openssl: '3', node: '20' },
    version: 'v20',
    getuid: () => UID,
    geteuid: () => UID,
    hrtime: { bigint: () => BigInt(Math.floor(process.machine.clock.now)) * 1000n },
    exit: (code: number) => {
      if (process.alive) process.machine.trace.add(process.name, `exits with ${code}`);
      process.end(code);
      throw new ProcessEnd(`${process.name} ended with ${code}`);
    },
    kill: (pid: number) => {
      if (process.machine.processes.some((one) => one.alive && one.pid === pid)) return true;
      throw Object.assign(new Error('kill ESRCH'), { code: 'ESRCH' });
    },
  };
}

/** The wall clock for the time stamps of the log; all other code uses the addon's clock. */
function dateOf(process: SimProcess): unknown {
  const { clock } = process.machine;
  return class extends Date {
    static override now(): number {
      return Math.floor(clock.wall / MS_IN_US);
    }
  };
}

/** @param onLog called with each line of the log */
export function surroundingsOf(process: SimProcess, onLog: (line: string) => void): Surroundings {
  const nothing = new Proxy({}, { get: () => () => undefined });
  return {
    native: process.native,
    builtins: {
      'node:fs': filesOf(process, onLog),
      'node:crypto': cryptoOf(process),
      'node:os': { ...os, hostname: () => 'simulation' },
      'node:worker_threads': nothing,
      'node:v8': nothing,
    },
    process: processOf(process),
    Date: dateOf(process),
  };
}
