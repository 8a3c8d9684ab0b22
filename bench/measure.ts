/*
 * The benchmark's measurements: CPU time and memory of a process from the kernel, and the output of pgbench and psql.
 */

import { spawn } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { adopt } from '../test/harness';
import { plainEnv, systemPostgres } from '../tools/postgres';

/** The kernel counts in ticks of 10 ms, whatever its own clock does. */
const USEC_PER_TICK = 10_000;

/** User and system time of a process so far, all threads, in usec. */
export function cpuUsec(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'latin1');
  // the name in parentheses may contain spaces; fields 14 and 15 are 12 and 13 places behind it
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) * USEC_PER_TICK;
}

/** Resident memory of a process, in kB. */
export function rssKb(pid: number): number {
  return Number(/^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, 'latin1'))?.[1]);
}

export function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  if (sorted.length % 2 === 1) return sorted[middle] as number;
  return ((sorted[middle - 1] as number) + (sorted[middle] as number)) / 2;
}

/** A program that comes with PostgreSQL: from the server's own folder, else from the PATH. */
function clientProgram(name: string): string {
  const bin = systemPostgres();
  return bin !== null && existsSync(join(bin, name)) ? join(bin, name) : name;
}

/** Runs a program until it exits. @returns its output and its duration in ms; throws on failure */
function runToEnd(program: string, args: string[], env: NodeJS.ProcessEnv = {}): Promise<{ text: string; ms: number }> {
  const start = process.hrtime.bigint();
  const child = adopt(
    spawn(clientProgram(program), args, { env: { ...plainEnv(), ...env }, stdio: ['ignore', 'pipe', 'pipe'] }),
  );
  let text = '';
  let errors = '';
  child.stdout?.on('data', (chunk: Buffer) => {
    text += chunk.toString('latin1');
  });
  child.stderr?.on('data', (chunk: Buffer) => {
    errors += chunk.toString('latin1');
  });
  return new Promise((settle, reject) => {
    child.once('error', (err) => reject(new Error(`${program} does not run: ${err.message}`)));
    child.once('close', (code) => {
      const ms = Number(process.hrtime.bigint() - start) / 1e6;
      if (code === 0) settle({ text, ms });
      else reject(new Error(`${program} ${args.join(' ')} failed:\n${text}${errors}`));
    });
  });
}

export interface PgbenchRun {
  port: number;
  /** path of the script */
  script: string;
  clients: number;
  seconds: number;
  protocol: 'simple' | 'extended' | 'prepared';
  /** a new connection for every transaction */
  connect?: boolean;
  /** of the connection to the pooler; by default whatever the pooler offers */
  sslmode?: 'require';
}

interface PgbenchResult {
  transactions: number;
  perSecond: number;
}

/**
 * One run of pgbench, all clients in one thread, as user and on database `postgres`. Its clock runs while the clients
 * connect: on a busy machine a short run may be over before the first transaction.
 */
export async function pgbench(run: PgbenchRun): Promise<PgbenchResult> {
  const args = [
    ...['-n', '-h', '127.0.0.1', '-p', String(run.port), '-U', 'postgres', '-f', run.script],
    ...['-c', String(run.clients), '-j', '1', '-T', String(run.seconds), '-M', run.protocol],
    ...(run.connect === true ? ['-C'] : []),
    'postgres',
  ];
  const { text } = await runToEnd('pgbench', args, run.sslmode === undefined ? {} : { PGSSLMODE: run.sslmode });
  const transactions = Number(/transactions actually processed: (\d+)/.exec(text)?.[1]);
  const perSecond = Number(/tps = ([\d.]+)/.exec(text)?.[1]);
  if (!(transactions >= 0)) throw new Error(`pgbench did not count its transactions:\n${text}`);
  return { transactions, perSecond };
}

/**
 * COPY TO STDOUT of that many megabytes in rows of about a kilobyte, discarded by psql.
 * @returns ms from start to end
 */
export async function copyOut(port: number, megabytes: number): Promise<number> {
  const rows = megabytes * 1024;
  const copy = `COPY (SELECT repeat('x', 1016), generate_series(1000000, ${999_999 + rows})) TO STDOUT`;
  const where = ['-X', '-q', '-h', '127.0.0.1', '-p', String(port), '-U', 'postgres', '-d', 'postgres'];
  const { ms } = await runToEnd('psql', [...where, '-o', '/dev/null', '-c', copy]);
  return ms;
}
