/*
 * Runs pgbench and psql for the benchmark, and reads their figures.
 */

import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { adopt } from '../test/harness';
import { plainEnv, systemPostgres } from '../tools/postgres';

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
