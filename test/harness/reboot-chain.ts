/*
 * A chain of pooler processes that share an ini, a port, a Unix socket and a pidfile. Each process, tsbouncer or
 * PgBouncer, takes over from the process before it.
 */

import type { ChildProcess } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ConnectionOptions } from 'node:tls';
import { Client, type ClientConfig, type QueryResult } from 'pg';
import { freePort } from '../../tools/postgres';
import { giveTo, spawnAs } from '../../tools/unprivileged';
import {
  dropDir,
  eventually,
  iniText,
  installed,
  type Outcome,
  originalBin,
  type PgCluster,
  type PoolerEnd,
  run,
  startProgram,
  tempDir,
  user,
  watchQueries,
  withTimeout,
} from '../harness';
import { LogTail } from './log-tail';
import { RawClient } from './raw-client';

/** Which program: this tree, PgBouncer, or the other version of tsbouncer that TSBOUNCER_OTHER names. */
export type Kind = 'ts' | 'c' | 'other';

/** Path of the main.js of another version, which must be readable for the unprivileged user; null = not given. */
export const otherVersion = process.env.TSBOUNCER_OTHER ?? null;

export interface ChainOptions {
  cluster: PgCluster;
  databases?: Record<string, string>;
  users?: Record<string, string>;
  /** [pgbouncer]; null removes a default setting of the chain */
  settings?: Record<string, string | number | null>;
  userlist?: Record<string, string>;
  /** raw() uses TLS over TCP */
  tls?: ConnectionOptions;
}

/** One process of the chain. */
export class PoolerProcess {
  readonly log: LogTail;
  readonly ended: Promise<PoolerEnd>;
  end: PoolerEnd | null = null;

  constructor(
    readonly kind: Kind,
    readonly child: ChildProcess,
  ) {
    this.log = new LogTail(child);
    this.ended = new Promise((settle) => {
      child.once('close', (code, signal) => {
        this.end = { code, signal };
        settle(this.end);
      });
    });
  }

  get pid(): number {
    return this.child.pid as number;
  }

  async waitUp(): Promise<this> {
    const over = this.ended.then((end) => {
      throw new Error(`the pooler ended with ${end.code ?? end.signal}:\n${this.log.text}`);
    });
    await Promise.race([this.log.wait(/process up: /), over]);
    return this;
  }

  /** Waits until a signal has stopped the process. */
  async waitStopped(): Promise<void> {
    const status = `/proc/${this.pid}/status`;
    await eventually('a process to stop', () => /^State:\s+T/m.test(readFileSync(status, 'utf8')));
  }

  waitEnd(): Promise<PoolerEnd> {
    return withTimeout(this.ended, () => `the pooler to end:\n${this.log.text.slice(-4096)}`);
  }

  async kill(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    if (this.end === null) this.child.kill(signal);
    await this.waitEnd();
  }
}

export class RebootChain {
  readonly dir = tempDir('line');
  readonly generations: PoolerProcess[] = [];
  /** number of relays that tests have created, for their names */
  relays = 0;

  private constructor(
    readonly port: number,
    readonly options: ChainOptions,
  ) {
    this.write();
  }

  static async make(options: ChainOptions): Promise<RebootChain> {
    return new RebootChain(Number(options.settings?.listen_port ?? (await freePort())), options);
  }

  get ini(): string {
    return join(this.dir, 'pooler.ini');
  }

  get pidfile(): string {
    return join(this.dir, 'pooler.pid');
  }

  get socketPath(): string {
    return join(this.dir, `.s.PGSQL.${this.port}`);
  }

  /** The current process. */
  get now(): PoolerProcess {
    return this.generations.at(-1) as PoolerProcess;
  }

  /** Writes ini and auth_file, with `changes` to the initial options. */
  write(changes: Partial<ChainOptions> = {}): void {
    const { cluster } = this.options;
    const settings = {
      listen_addr: '127.0.0.1',
      listen_port: this.port,
      unix_socket_dir: this.dir,
      auth_type: 'trust',
      auth_file: join(this.dir, 'userlist.txt'),
      admin_users: 'admin',
      pidfile: this.pidfile,
      suspend_timeout: 5,
      ...this.options.settings,
      ...changes.settings,
    };
    const users = { postgres: '', admin: 'admin', ...this.options.userlist, ...changes.userlist };
    const databases = changes.databases ?? this.options.databases ?? { '*': `host=127.0.0.1 port=${cluster.port}` };
    const sections: Record<string, Record<string, string | number | null>> = { databases };
    const userSection = changes.users ?? this.options.users;
    if (userSection !== undefined) sections.users = userSection;
    sections.pgbouncer = settings;
    writeFileSync(this.ini, iniText(sections), 'latin1');
    const lines = Object.entries(users).map(([name, secret]) => `"${name}" "${secret}"\n`);
    writeFileSync(join(this.dir, 'userlist.txt'), lines.join(''));
    giveTo(user, this.dir);
  }

  private command(kind: Kind): [string, ...string[]] {
    const { node, mainJs } = installed();
    if (kind === 'c') return [originalBin() ?? 'pgbouncer'];
    return [node, kind === 'other' ? (otherVersion ?? mainJs) : mainJs];
  }

  /** Starts a process with those arguments before the ini, without waiting. */
  spawn(kind: Kind, args: string[] = [], env: NodeJS.ProcessEnv = {}): PoolerProcess {
    const [program, ...first] = this.command(kind);
    const child = startProgram(program, [...first, ...args, this.ini], {
      cwd: this.dir,
      env: { ...process.env, ...env },
      stdio: ['ignore', 'ignore', 'pipe'],
      ...spawnAs(user),
    });
    return new PoolerProcess(kind, child);
  }

  /** Starts the first process of the chain. */
  async start(kind: Kind, env: NodeJS.ProcessEnv = {}): Promise<PoolerProcess> {
    const first = await this.spawn(kind, [], env).waitUp();
    this.generations.push(first);
    return first;
  }

  /**
   * Starts a new process, which must take over, while the old process must exit with 0.
   * @param suspended called when the old process has received SUSPEND, which happens only in the classic exchange
   */
  async reboot(
    kind: Kind,
    env: NodeJS.ProcessEnv = {},
    suspended: (() => Promise<void>) | null = null,
  ): Promise<PoolerProcess> {
    const old = this.now;
    const next = this.spawn(kind, ['-R'], env);
    if (suspended !== null) {
      await old.log.wait(/SUSPEND command issued/);
      await suspended();
    }
    await next.waitUp();
    this.generations.push(next);
    const end = await old.waitEnd();
    if (end.code !== 0) throw new Error(`the old process ended with ${end.code ?? end.signal}:\n${old.log.text}`);
    return next;
  }

  /**
   * Starts a new process, which must fail while the current process keeps running.
   * @returns the new process after its exit
   */
  async failReboot(kind: Kind = 'ts', env: NodeJS.ProcessEnv = {}): Promise<PoolerProcess> {
    const next = this.spawn(kind, ['-R'], env);
    const end = await next.waitEnd();
    if (end.code === 0) throw new Error(`the new process did not fail:\n${next.log.text}`);
    if (this.now.end !== null) throw new Error(`the old process died too:\n${this.now.log.text}`);
    return next;
  }

  /** Runs tsbouncer until it exits, for -d. */
  run(...args: string[]): Promise<Outcome> {
    const [program, ...first] = this.command('ts');
    return run(program, [...first, ...args, this.ini], { cwd: this.dir });
  }

  async raw(unix = false): Promise<RawClient> {
    const { tls } = this.options;
    const client = await RawClient.connect(unix ? { path: this.socketPath } : { port: this.port });
    return unix || tls === undefined ? client : client.secure(tls);
  }

  async connect(config: ClientConfig = {}): Promise<Client> {
    const client = new Client({
      host: '127.0.0.1',
      port: this.port,
      user: 'postgres',
      database: 'postgres',
      ...config,
    });
    client.on('error', () => {});
    await withTimeout(client.connect(), 'a connection through the pooler');
    return watchQueries(client);
  }

  async sql(text: string, config: ClientConfig = {}): Promise<QueryResult> {
    const client = await this.connect(config);
    try {
      return await withTimeout(client.query(text), `the answer to ${text}`);
    } finally {
      await client.end();
    }
  }

  async show(what: string): Promise<Record<string, string | number | null>[]> {
    return (await this.sql(`SHOW ${what}`, { user: 'admin', password: 'admin', database: 'pgbouncer' })).rows;
  }

  pidInFile(): number {
    return existsSync(this.pidfile) ? Number(readFileSync(this.pidfile, 'latin1')) : 0;
  }

  /** Stops all processes. */
  async stop(): Promise<void> {
    for (const generation of this.generations) await generation.kill('SIGKILL').catch(() => {});
    dropDir(this.dir);
  }
}

/** Runs `body` with a chain. */
export async function withRebootChain(
  options: ChainOptions,
  body: (chain: RebootChain) => Promise<void>,
): Promise<void> {
  const chain = await RebootChain.make(options);
  try {
    await body(chain);
  } catch (err) {
    const logs = chain.generations.map((one) => `--- ${one.kind} ${one.pid}\n${one.log.text.slice(-6000)}`);
    throw new Error(`${(err as Error).stack}\n${logs.join('\n')}`);
  } finally {
    await chain.stop();
  }
}
