/*
 * A pooler for one test: tsbouncer, or PgBouncer with the same ini. Writes the files to a folder of its own, starts the
 * pooler as an unprivileged user, waits until it is up, keeps its log, and checks at the end that it still runs.
 */

import type { ChildProcess } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { Client, type ClientConfig, type QueryResult } from 'pg';
import { freePort } from '../../tools/postgres';
import { giveTo, spawnAs } from '../../tools/unprivileged';
import { IO_THREADS, LOOP_BACKEND } from './backend';
import type { PgCluster } from './cluster';
import { WAIT_MS_MAX, watchQueries, withTimeout } from './limits';
import { LogTail } from './log-tail';
import { dropDir, executable, installed, startProgram, tempDir, user } from './machine';
import { RawClient } from './raw-client';

const HOST = '127.0.0.1';
const UP = /process up: /;

/** Users in every auth_file of the harness, with passwords, so that they can log in with any auth_type. */
export const ADMIN_USER = 'admin';
export const ADMIN_PASSWORD = 'admin-password';
export const STATS_USER = 'stats';
export const STATS_PASSWORD = 'stats-password';

/** One section of the ini; values as after the `=`. */
export type Section = Record<string, string | number>;

export interface BouncerOptions {
  /** the server of `*` and of the default [databases] */
  cluster?: PgCluster;
  /** [databases]; default: `postgres` and `*` on the cluster */
  databases?: Section;
  users?: Section;
  peers?: Section;
  /** [pgbouncer], in addition to the harness's settings; null removes a setting */
  settings?: Record<string, string | number | null>;
  /** auth_file: name -> secret as in the file; admin, stats and postgres are added */
  userlist?: Record<string, string>;
  /** further arguments, before the ini */
  args?: string[];
  /** run PgBouncer: PGBOUNCER_BIN or /usr/sbin/pgbouncer */
  original?: boolean;
  /** run this program instead: path and first arguments */
  command?: string[];
  env?: NodeJS.ProcessEnv;
  /** false: do not wait until it is up (it is meant to fail) */
  wait?: boolean;
}

/** How a pooler ended. */
export interface PoolerEnd {
  code: number | null;
  signal: NodeJS.Signals | null;
}

/** The path of PgBouncer on this machine, or null. */
export function originalBin(): string | null {
  const bin = process.env.PGBOUNCER_BIN ?? '/usr/sbin/pgbouncer';
  return executable(bin) ? bin : null;
}

/** The ini text of those sections. */
export function iniText(sections: Record<string, Record<string, string | number | null>>): string {
  const parts = Object.entries(sections).map(([name, entries]) => {
    const lines = Object.entries(entries).filter(([, value]) => value !== null);
    return [`[${name}]`, ...lines.map(([key, value]) => `${key} = ${value}`), ''].join('\n');
  });
  return `${parts.join('\n')}`;
}

function userlistText(users: Record<string, string>): string {
  const quote = (text: string) => `"${text.replaceAll('"', '""')}"`;
  return Object.entries(users)
    .map(([name, secret]) => `${quote(name)} ${quote(secret)}\n`)
    .join('');
}

export class Bouncer {
  readonly host = HOST;
  readonly log: LogTail;
  /** settles when the process has ended */
  readonly ended: Promise<PoolerEnd>;
  private over = false;
  private endExpected = false;

  private constructor(
    readonly dir: string,
    readonly port: number,
    readonly options: BouncerOptions,
    readonly child: ChildProcess,
  ) {
    this.log = new LogTail(child);
    this.ended = new Promise((settle) => {
      child.once('close', (code, signal) => {
        this.over = true;
        settle({ code, signal });
      });
    });
  }

  static async start(options: BouncerOptions = {}): Promise<Bouncer> {
    const dir = tempDir('pooler');
    const port = Number(options.settings?.listen_port ?? (await freePort()));
    writeFiles(dir, port, options);
    const bouncer = new Bouncer(dir, port, options, spawnPooler(dir, options, options.args ?? []));
    if (options.wait !== false) await bouncer.waitUp();
    return bouncer;
  }

  /**
   * Starts a second process on the same files, for -R, without waiting. The folder is removed when this process is
   * stopped.
   */
  beside(args: string[]): Bouncer {
    const options = { ...this.options, args };
    return new Bouncer(this.dir, this.port, options, spawnPooler(this.dir, options, args));
  }

  get pid(): number {
    return this.child.pid as number;
  }

  get iniPath(): string {
    return join(this.dir, 'pooler.ini');
  }

  /** Directory of its Unix socket. */
  get socketDir(): string {
    return this.dir;
  }

  /** Resolves when the pooler logs that it is up; throws with the log if the pooler exits instead. */
  async waitUp(): Promise<void> {
    await this.log.wait(UP);
  }

  /** Rewrites ini and auth_file with these changes to the initial options; the caller has to RELOAD. */
  rewrite(changes: BouncerOptions): void {
    const settings = { ...this.options.settings, ...changes.settings };
    const userlist = { ...this.options.userlist, ...changes.userlist };
    writeFiles(this.dir, this.port, { ...this.options, ...changes, settings, userlist });
  }

  /** Replaces the whole ini text; the caller has to RELOAD. */
  writeIni(text: string): void {
    writeFileSync(this.iniPath, text, 'latin1');
  }

  /** An open connection of the driver `pg`, by default as user `postgres` on database `postgres`. */
  async connect(config: ClientConfig = {}): Promise<Client> {
    const client = new Client({ host: HOST, port: this.port, user: 'postgres', database: 'postgres', ...config });
    // a closed connection must fail the waiting query, not the test process
    client.on('error', () => {});
    await withTimeout(client.connect(), 'a connection through the pooler');
    return watchQueries(client);
  }

  /** One query on a connection of its own. */
  async sql(text: string, config: ClientConfig = {}): Promise<QueryResult> {
    const client = await this.connect(config);
    try {
      return await withTimeout(client.query(text), `the answer to ${text}`);
    } finally {
      await client.end();
    }
  }

  /** A connection to the console that stays open. */
  console(config: ClientConfig = {}): Promise<Client> {
    return this.connect({ user: ADMIN_USER, password: ADMIN_PASSWORD, database: 'pgbouncer', ...config });
  }

  /** One console command on a connection of its own; returns its rows (of the last result, if several). */
  async admin(text: string, config: ClientConfig = {}): Promise<Record<string, string | number | null>[]> {
    const client = await this.console(config);
    try {
      const result = await withTimeout(client.query(text), `the console's answer to ${text}`);
      const last = Array.isArray(result) ? result.at(-1) : result;
      return last?.rows ?? [];
    } finally {
      await client.end().catch(() => {});
    }
  }

  /** Connects a raw client. */
  raw(): Promise<RawClient> {
    return RawClient.connect({ host: HOST, port: this.port });
  }

  /** Like LogTail.wait(). */
  logWait(pattern: RegExp, from = 0, timeoutMs: number = WAIT_MS_MAX): Promise<RegExpExecArray> {
    return this.log.wait(pattern, from, timeoutMs);
  }

  signal(signal: NodeJS.Signals): void {
    this.child.kill(signal);
  }

  /** Waits for an exit that the test has caused. */
  expectEnd(timeoutMs: number = WAIT_MS_MAX): Promise<PoolerEnd> {
    this.endExpected = true;
    return withTimeout(this.ended, () => `the pooler to end:\n${this.log.text.slice(-4096)}`, timeoutMs);
  }

  /** Stops the pooler. Throws if it has already exited unexpectedly. */
  async stop(): Promise<void> {
    const died = this.over && !this.endExpected;
    if (!this.over) {
      this.child.kill('SIGQUIT');
      await withTimeout(this.ended, 'the pooler to stop').catch(() => this.child.kill('SIGKILL'));
    }
    dropDir(this.dir);
    if (died && this.options.wait !== false) {
      const { code, signal } = await this.ended;
      throw new Error(`the pooler died (${signal ?? `exit code ${code}`}):\n${this.log.text.slice(-8192)}`);
    }
  }
}

function spawnPooler(dir: string, options: BouncerOptions, args: string[]): ChildProcess {
  const { node, mainJs } = installed();
  const bin = originalBin();
  if (options.original === true && bin === null) throw new Error('PgBouncer is not installed');
  const command = options.command ?? (options.original === true ? [bin as string] : [node, mainJs]);
  const [program, ...rest] = [...command, ...args, join(dir, 'pooler.ini')];
  return startProgram(program as string, rest, {
    cwd: dir,
    // checks its own records several times a second, and exits if an invariant is violated: see core/life/invariants.ts
    env: { TSBOUNCER_CHECK: '1', ...process.env, ...options.env },
    stdio: ['ignore', 'ignore', 'pipe'],
    ...spawnAs(user),
  });
}

/** Settings for the loop under test. PgBouncer has them as comments, because log lines name the lines of the file. */
function loopSettings(original: boolean): Record<string, string | number> {
  const settings = {
    ...(LOOP_BACKEND === 'auto' ? {} : { loop_backend: LOOP_BACKEND }),
    ...(IO_THREADS === 0 ? {} : { io_threads: IO_THREADS, io_threads_load: 0 }),
  };
  return original ? Object.fromEntries(Object.entries(settings).map(([key, value]) => [`; ${key}`, value])) : settings;
}

function writeFiles(dir: string, port: number, options: BouncerOptions): void {
  const cluster = options.cluster;
  const databases = options.databases ?? (cluster === undefined ? {} : { '*': `host=${HOST} port=${cluster.port}` });
  const settings = {
    listen_addr: HOST,
    listen_port: port,
    unix_socket_dir: dir,
    auth_type: 'trust',
    auth_file: join(dir, 'userlist.txt'),
    admin_users: ADMIN_USER,
    stats_users: STATS_USER,
    ...loopSettings(options.original === true),
    ...options.settings,
  };
  const sections: Record<string, Record<string, string | number | null>> = { databases };
  if (options.users !== undefined) sections.users = options.users;
  if (options.peers !== undefined) sections.peers = options.peers;
  sections.pgbouncer = settings;
  const userlist = { postgres: '', [ADMIN_USER]: ADMIN_PASSWORD, [STATS_USER]: STATS_PASSWORD, ...options.userlist };
  writeFileSync(join(dir, 'pooler.ini'), iniText(sections), 'latin1');
  writeFileSync(join(dir, 'userlist.txt'), userlistText(userlist), 'latin1');
  giveTo(user, dir);
}
