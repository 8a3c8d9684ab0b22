/*
 * A real PostgreSQL server for one test file: the machine's (PG_BIN, or the newest under /usr/lib/postgresql), or else
 * that of the npm package. Runs as an unprivileged user, on a free port of 127.0.0.1 and a Unix socket, without fsync.
 */

import {
  appendFileSync,
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { Client, type ClientConfig, type QueryResult } from 'pg';
import {
  embeddedPostgres,
  freePort,
  initDb,
  type PostgresServer,
  startPostgres,
  stopPostgres,
  systemPostgres,
} from '../../tools/postgres';
import { giveTo, spawnAs } from '../../tools/unprivileged';
import { runSync } from './limits';
import { LogTail } from './log-tail';
import { adopt, dropDir, TEST_MS_MAX, tempDir, user, WAIT_MS_MAX, withTimeout } from './machine';

const HOST = '127.0.0.1';
const HBA_TRUST = ['local all all trust', 'host all all 127.0.0.1/32 trust', 'host all all ::1/128 trust'];
const RELOADED = /received SIGHUP, reloading configuration files/;

/** How createUser() stores a password; 'none' = the user has none. */
export type Secret = 'scram' | 'md5' | 'none';

export interface ClusterOptions {
  /** settings in addition to the harness's */
  settings?: Record<string, string | number>;
  /** lines of pg_hba.conf; default: trust for all users */
  hba?: string[];
  /** the server of the npm package, whatever the machine has: the newest version */
  newest?: boolean;
}

export class PgCluster {
  readonly host = HOST;
  /** superuser, trusted on the Unix socket whatever setHba() says */
  readonly superuser = 'postgres';
  log: LogTail;

  private constructor(
    readonly dir: string,
    readonly bin: string,
    readonly port: number,
    private server: PostgresServer,
    private readonly settings: string[],
  ) {
    this.log = new LogTail(server.child, server.log.text);
  }

  /** Creates and starts a server. It is stopped by stop(), or at the end of the process. */
  static async start(options: ClusterOptions = {}): Promise<PgCluster> {
    const dir = tempDir('pg');
    const own = options.newest === true ? null : systemPostgres();
    const bin = own ?? embeddedPostgres(user, tempDir('pgbin'));
    createData(bin, join(dir, 'data'), own === null ? 'package' : 'machine');
    writeHba(dir, options.hba ?? HBA_TRUST);
    const base = {
      listen_addresses: `${HOST}`,
      unix_socket_directories: dir,
      fsync: 'off',
      full_page_writes: 'off',
      synchronous_commit: 'off',
      max_connections: 200,
      shared_buffers: '32MB',
      log_connections: 'on',
      log_disconnections: 'on',
      ...options.settings,
    };
    const settings = Object.entries(base).map(([name, value]) => `${name}=${value}`);
    const port = await freePort();
    const server = await startPostgres(bin, join(dir, 'data'), port, settings, user);
    adopt(server.child);
    return new PgCluster(dir, bin, port, server, settings);
  }

  /** Directory of the Unix socket `.s.PGSQL.<port>`. */
  get socketDir(): string {
    return this.dir;
  }

  get pid(): number {
    return this.server.child.pid as number;
  }

  /** A connect string for [databases]; `extra` as in `user=x pool_size=3`. */
  connstr(dbname = 'postgres', extra = ''): string {
    return `host=${this.host} port=${this.port} dbname=${dbname} ${extra}`.trim();
  }

  /** One query on a connection of its own, by default as superuser over the Unix socket. */
  async sql(text: string, config: ClientConfig = {}): Promise<QueryResult> {
    const client = new Client({
      host: this.socketDir,
      port: this.port,
      user: this.superuser,
      database: 'postgres',
      ...config,
    });
    client.on('error', () => {});
    await withTimeout(client.connect(), 'a connection to PostgreSQL');
    try {
      return await withTimeout(client.query(text), `PostgreSQL's answer to ${text}`, TEST_MS_MAX);
    } finally {
      await client.end();
    }
  }

  /** Creates a login role whose password is stored in that form. */
  async createUser(name: string, password: string, secret: Secret = 'scram', attributes = ''): Promise<void> {
    const encryption = secret === 'md5' ? 'md5' : 'scram-sha-256';
    const withPassword = secret === 'none' ? '' : `PASSWORD '${password.replaceAll("'", "''")}'`;
    await this.sql(
      `SET password_encryption = '${encryption}'; CREATE ROLE "${name}" LOGIN ${attributes} ${withPassword}`,
    );
  }

  /** How the role's password is stored: `md5…`, `SCRAM-SHA-256$…` or null. */
  async storedSecret(name: string): Promise<string | null> {
    const result = await this.sql(`SELECT rolpassword FROM pg_authid WHERE rolname = '${name}'`);
    return result.rows[0]?.rolpassword ?? null;
  }

  /** Requires this method for all TCP connections; the superuser's Unix socket connections stay trusted. */
  async setAuth(method: 'trust' | 'password' | 'md5' | 'scram-sha-256' | 'reject'): Promise<void> {
    await this.setHba(['local all postgres trust', `host all all ${HOST}/32 ${method}`, `local all all ${method}`]);
  }

  /** Replaces pg_hba.conf and reloads it. */
  async setHba(lines: string[]): Promise<void> {
    writeHba(this.dir, lines);
    await this.reload();
  }

  /** Sends SIGHUP; later connections use the new files. */
  async reload(): Promise<void> {
    const from = this.log.mark();
    this.server.child.kill('SIGHUP');
    await this.log.wait(RELOADED, from);
  }

  /** Terminates the matching sessions, as a broken server would. @returns how many */
  async killBackends(where = 'true'): Promise<number> {
    const mine = "pid <> pg_backend_pid() AND backend_type = 'client backend'";
    const result = await this.sql(
      `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE ${mine} AND (${where})`,
    );
    return result.rowCount ?? 0;
  }

  /**
   * Starts a streaming standby from a copy of this server's data. This server is stopped for the copy. Its hba must
   * allow replication.
   */
  async addStandby(): Promise<PgCluster> {
    await this.halt();
    const dir = tempDir('pg');
    cpSync(join(this.dir, 'data'), join(dir, 'data'), { recursive: true });
    await this.resume();
    const source = `host=${HOST} port=${this.port} user=${this.superuser}`;
    writeFileSync(join(dir, 'data', 'standby.signal'), '');
    appendFileSync(join(dir, 'data', 'postgresql.auto.conf'), `primary_conninfo = '${source}'\n`);
    chmodSync(join(dir, 'data'), 0o700);
    giveTo(user, dir);
    const port = await freePort();
    const settings = this.settings.map((line) =>
      line.startsWith('unix_socket_directories=') ? `unix_socket_directories=${dir}` : line,
    );
    const server = await startPostgres(this.bin, join(dir, 'data'), port, settings, user);
    adopt(server.child);
    return new PgCluster(dir, this.bin, port, server, settings);
  }

  /** Makes a standby the primary. */
  async promote(): Promise<void> {
    await this.sql('SELECT pg_promote()');
  }

  /** Stops the server and keeps its data. */
  async halt(mode: 'fast' | 'immediate' = 'fast'): Promise<void> {
    await withTimeout(stopPostgres(this.server, mode), 'PostgreSQL to stop', 2 * WAIT_MS_MAX);
  }

  /** Starts it again on the same port. */
  async resume(): Promise<void> {
    this.server = await startPostgres(this.bin, join(this.dir, 'data'), this.port, this.settings, user);
    adopt(this.server.child);
    this.log = new LogTail(this.server.child, this.log.text + this.server.log.text);
  }

  async stop(): Promise<void> {
    if (this.server.child.exitCode === null && this.server.child.signalCode === null) await this.halt('immediate');
    dropDir(this.dir);
  }
}

/** Copies a data folder as its user. @param to a folder that does not exist yet */
function copyData(from: string, to: string): void {
  mkdirSync(to, { mode: 0o700 });
  giveTo(user, to);
  const { status, stderr } = runSync('cp', ['-R', `${from}/.`, to], { cwd: '/', ...spawnAs(user) });
  if (status !== 0) throw new Error(`could not copy ${from}: ${stderr}`);
}

/**
 * Creates a data folder. All test files of a run use the same server programs, so that all but the first ones get a copy
 * of a new folder: TEST_DATA_TEMPLATES, from scripts/run-tests.mjs, is where they share it.
 * @param programs whose the server programs are
 */
function createData(bin: string, dataDir: string, programs: 'machine' | 'package'): void {
  const shared = process.env.TEST_DATA_TEMPLATES;
  const template = shared === undefined ? null : join(shared, programs);
  if (template !== null && existsSync(template)) {
    copyData(template, dataDir);
    return;
  }
  initDb(bin, dataDir, user);
  if (shared === undefined || template === null) return;
  const making = mkdtempSync(join(shared, 'making-'));
  chmodSync(making, 0o755);
  copyData(dataDir, join(making, 'data'));
  try {
    renameSync(join(making, 'data'), template);
  } catch (err) {
    // another test file was faster
    if (!existsSync(template)) throw err;
  }
  rmSync(making, { recursive: true });
}

function writeHba(dir: string, lines: string[]): void {
  writeFileSync(join(dir, 'data', 'pg_hba.conf'), `${lines.join('\n')}\n`);
}
