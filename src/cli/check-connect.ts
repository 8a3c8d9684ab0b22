/*
 * --check --connect: logs in to each configured database as the pooler would, to each host of a list, and compares what
 * the servers allow with what the pools may open. No password is printed.
 */

import { PasswordType, passwordType } from '../core/auth/secret';
import type { AuthFileUser } from '../core/config/authfile';
import { SslMode } from '../core/config/choices';
import type { ParsedConfig } from '../core/config/loader';
import { type DatabaseConfig, hostNames } from '../core/config/records';
import { cf } from '../core/config/settings';
import { allDatabases, general, mostConnections, type Warning } from './check-limits';
import { passwordOf } from './check-password';
import type { ConnInfo, Target } from './connect-info';
import { type Session, withSession } from './pg-client';

/** Longest wait for one server, whatever server_connect_timeout allows. */
const SERVER_MS_MAX = 10_000;
/** Then no further server is tried. */
const TOTAL_MS_MAX = 60_000;
const AT_ONCE = 8;
const USEC_PER_MS = 1000;
/** The database for the `*` line, whose own databases are not known. */
const ANY_DATABASE = 'postgres';

const LIMITS_QUERY = `SELECT pg_catalog.current_setting('server_version'),
  pg_catalog.current_setting('max_connections'),
  pg_catalog.current_setting('superuser_reserved_connections')::int
    + coalesce(pg_catalog.current_setting('reserved_connections', true), '0')::int,
  pg_catalog.pg_is_in_recovery()`;

/** A problem, or a warning. */
interface Finding extends Warning {
  isWarning: boolean;
}

interface ConnectReport {
  findings: Finding[];
  /** what was found where nothing is wrong: one line for each server of each database */
  notes: string[];
}

interface Login {
  user: string;
  /** null = not known */
  password: string | null;
}

/** One database on one of its hosts. */
interface Task {
  db: DatabaseConfig;
  target: Target;
  login: Login | null;
}

interface ServerLimits {
  maxConnections: number;
  reserved: number;
  key: string;
}

class Connecting {
  readonly report: ConnectReport = { findings: [], notes: [] };
  /** by host and port */
  private readonly limits = new Map<string, ServerLimits>();
  private readonly passwords: Map<string, string>;
  private readonly endsAt = performance.now() + TOTAL_MS_MAX;

  constructor(
    private readonly parsed: ParsedConfig,
    private readonly users: AuthFileUser[],
  ) {
    this.passwords = new Map(users.map(({ name, passwd }) => [name, passwd]));
  }

  async run(): Promise<ConnectReport> {
    const tasks = allDatabases(this.parsed).flatMap((db) => this.tasksOf(db));
    const worker = async (): Promise<void> => {
      for (let task = tasks.shift(); task !== undefined; task = tasks.shift()) await this.tryTask(task);
    };
    await Promise.all(Array.from({ length: AT_ONCE }, worker));
    this.compareLimits();
    return this.report;
  }

  private find(key: string, text: string, isWarning = false): void {
    this.report.findings.push({ key, text, isWarning });
  }

  /** A user's password in auth_file, if a server accepts it: a SCRAM secret lacks the client's key. */
  private loginOf(user: string, given: string | null = null): Login {
    const password = given ?? this.passwords.get(user) ?? '';
    const usable = password !== '' && passwordType(password) !== PasswordType.SCRAM_SHA_256;
    return { user, password: usable ? password : null };
  }

  /** Who logs in to a database: the forced user, auth_user, or the first user whose password is known. */
  private findLogin(db: DatabaseConfig): Login | null {
    if (db.user !== null) return this.loginOf(db.user, passwordOf(db));
    const authUser = db.authUser ?? cf.authUser ?? '';
    if (authUser !== '') return this.loginOf(authUser);
    const logins = this.users.map(({ name }) => this.loginOf(name));
    return logins.find(({ password }) => password !== null) ?? logins[0] ?? null;
  }

  private tasksOf(db: DatabaseConfig): Task[] {
    const login = this.findLogin(db);
    return hostNames(db.host).map((name, at) => {
      const port = db.ports?.[at] ?? db.port;
      const host = name ?? cf.unixSocketDir;
      const isSocket = name === null || host.startsWith('/') || host.startsWith('@');
      const socketPath = isSocket ? `${host.replace(/^@/, '\0')}/.s.PGSQL.${port}` : null;
      const password = login?.password ?? null;
      return { db, login, target: { host, address: host, port, socketPath, password, storedSecret: true } };
    });
  }

  private async tryTask(task: Task): Promise<void> {
    const { db, login } = task;
    const key = `databases/${db.name}`;
    if (performance.now() > this.endsAt) {
      this.find(key, `${placeOf(task)} was not tried: the time for all servers is over`);
      return;
    }
    if (login === null) {
      this.find(key, `${placeOf(task)} was not tried: there is no user to log in as`, true);
      return;
    }
    try {
      await withSession(connInfo(task, login.user, databaseName(db)), limitMs(), (session) => this.ask(task, session));
    } catch (err) {
      const { message } = err as Error;
      // the pooler gets the keys from the clients' logins, or auth_query finds the password
      const unknown = message.endsWith('no password supplied');
      if (unknown) this.find(key, `${placeOf(task)} answers, but the password of "${login.user}" is not known`, true);
      else this.find(key, message);
    }
  }

  private async ask(task: Task, session: Session): Promise<void> {
    const { db, target } = task;
    if (db.connectQuery !== null && db.connectQuery !== '') {
      await session.ask(db.connectQuery).catch((err: Error) => {
        this.find(`databases/${db.name}`, `connect_query failed: ${err.message}`);
      });
    }
    const { rows } = await session.ask(LIMITS_QUERY);
    const [version, max, reserved, standby] = rows[0] ?? [];
    const role = standby === 't' ? ', standby' : '';
    const allowed = `max_connections ${max}, ${reserved} of them reserved`;
    this.report.notes.push(`${db.name}: ${placeOf(task)}: PostgreSQL ${version}${role}, ${allowed}`);
    const server = `${target.host}:${target.port}`;
    this.limits.set(server, {
      maxConnections: Number(max),
      reserved: Number(reserved),
      key: `databases/${db.name}`,
    });
    await this.tryAuthQuery(db, session);
  }

  /** Whether auth_query for this database runs on itself. The `*` line stands for an auth_dbname that has no line. */
  private runsAuthQuery(db: DatabaseConfig): boolean {
    const where = db.authDbname ?? cf.authDbname ?? db.name;
    if (where === db.name) return true;
    return db === this.parsed.autodb && !this.parsed.databases.some(({ name }) => name === where);
  }

  /** Runs auth_query for auth_user itself, on the database that it runs on. */
  private async tryAuthQuery(db: DatabaseConfig, session: Session): Promise<void> {
    const authUser = db.authUser ?? cf.authUser ?? '';
    if (authUser === '' || !this.runsAuthQuery(db) || (db.user !== null && db.user !== authUser)) return;
    const key = db.authQuery === null ? general('auth_query') : `databases/${db.name}`;
    try {
      const { names } = await session.ask(db.authQuery ?? cf.authQuery, authUser);
      if (names.length === 2) this.report.notes.push(`${db.name}: auth_query works`);
      else this.find(key, `auth_query for ${db.name}: it returns ${names.length} columns instead of 2`);
    } catch (err) {
      this.find(key, `auth_query for ${db.name}: ${(err as Error).message}`);
    }
  }

  /** For each server, what all pools together may open. With a host list, all of them may go to one host. */
  private compareLimits(): void {
    for (const [server, { maxConnections, reserved, key }] of this.limits) {
      let sum = 0;
      for (const db of allDatabases(this.parsed)) {
        const here = this.tasksOf(db).some(({ target }) => `${target.host}:${target.port}` === server);
        if (here) sum += mostConnections(db, this.users.length);
      }
      if (sum <= maxConnections - reserved) continue;
      const allowed = `max_connections is ${maxConnections}, of which ${reserved} are reserved`;
      this.find(key, `the pools may open ${sum} connections to ${server}, whose ${allowed}`, true);
    }
  }
}

function placeOf({ target }: Task): string {
  return target.socketPath === null ? `${target.host}:${target.port}` : target.socketPath.replace('\0', '@');
}

function databaseName(db: DatabaseConfig): string {
  return db.dbname === '*' ? (db.authDbname ?? cf.authDbname ?? ANY_DATABASE) : db.dbname;
}

function limitMs(): number {
  const configured = cf.serverConnectTimeout / USEC_PER_MS;
  return configured > 0 ? Math.min(configured, SERVER_MS_MAX) : SERVER_MS_MAX;
}

const SSL_MODES = ['disable', 'allow', 'prefer', 'require', 'verify-ca', 'verify-full'] as const;

function connInfo({ db, target }: Task, user: string, database: string): ConnInfo {
  const mode = db.tls?.sslmode ?? cf.serverTlsSslmode;
  const caFile = db.tls?.caFile ?? cf.serverTlsCaFile;
  return {
    targets: [target],
    user,
    // the pooler asks for TLS first in this mode too
    sslmode: mode === SslMode.ALLOW ? 'prefer' : SSL_MODES[mode],
    sslrootcert: mode >= SslMode.VERIFY_CA ? caFile || 'system' : '',
    sslcert: db.tls?.certFile ?? cf.serverTlsCertFile,
    sslkey: db.tls?.keyFile ?? cf.serverTlsKeyFile,
    connectTimeoutMs: limitMs(),
    startup: { ...Object.fromEntries(db.startupParams), user, database },
  };
}

/** Tries every server of every database. @param users of auth_file */
export function connectAll(parsed: ParsedConfig, users: AuthFileUser[]): Promise<ConnectReport> {
  return new Connecting(parsed, users).run();
}
