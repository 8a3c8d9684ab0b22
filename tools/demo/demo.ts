/*
 * `npm run demo`: starts a PostgreSQL server in a data folder of its own and the pooler in front of it, in transaction
 * mode, with a user, a database and the console. Prints commands to try, shows live figures, and stops both on Ctrl-C.
 *
 *     --once      run one query through the pooler, print its result and end (for machines)
 *     --port N    the port of the pooler, if it is free (default 6432)
 */

import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import minimist from 'minimist';
import { Client } from 'pg';
import {
  embeddedPostgres,
  freePort,
  initDb,
  type PostgresServer,
  serverVersion,
  startPostgres,
  stopPostgres,
} from '../postgres';
import { giveTo, type RunUser, runUser } from '../unprivileged';
import { claimPlace, dataVersion, demoDir, releasePlace, writeNew } from './data-dir';
import { showLive } from './live';

const USER = 'demo';
const PASSWORD = 'demo';
const DATABASE = 'demo';
const POOLER_PORT = 6432;
const POSTGRES_PORT = 5433;
const HOST = '127.0.0.1';
const MAIN_JS = join(__dirname, '..', '..', 'dist', 'main.js');
const READY_TEXT = 'process up';

/** The pooler with its log. */
interface Pooler {
  child: ChildProcess;
  port: number;
  log: { text: string };
}

function say(text: string): void {
  process.stdout.write(`${text}\n`);
}

function connectTo(port: number, user: string, database: string): Client {
  return new Client({ host: HOST, port, user, password: PASSWORD, database, application_name: 'demo' });
}

async function withClient<T>(client: Client, work: (client: Client) => Promise<T>): Promise<T> {
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

/** Creates the user and the database on the first run. */
async function furnish(port: number): Promise<void> {
  await withClient(connectTo(port, 'postgres', 'postgres'), async (client) => {
    const roles = await client.query('SELECT 1 FROM pg_roles WHERE rolname = $1', [USER]);
    if (roles.rowCount === 0) await client.query(`CREATE ROLE ${USER} LOGIN PASSWORD '${PASSWORD}'`);
    const databases = await client.query('SELECT 1 FROM pg_database WHERE datname = $1', [DATABASE]);
    if (databases.rowCount === 0) await client.query(`CREATE DATABASE ${DATABASE} OWNER ${USER}`);
  });
}

async function startDatabase(dir: string, user: RunUser | null): Promise<PostgresServer> {
  const bin = embeddedPostgres(user, dir);
  const dataDir = join(dir, 'data');
  if (dataVersion(dataDir) !== serverVersion(bin)) {
    say('Creating a PostgreSQL data folder …');
    // under another name until it is complete, so that an interrupted run leaves no incomplete data folder
    const making = join(dir, 'data.new');
    for (const old of [making, dataDir]) rmSync(old, { recursive: true, force: true });
    initDb(bin, making, user);
    const hba = `local all all trust\nhost all postgres ${HOST}/32 trust\nhost all all ${HOST}/32 scram-sha-256\n`;
    writeFileSync(join(making, 'pg_hba.conf'), hba);
    renameSync(making, dataDir);
  }
  const settings = [`listen_addresses=${HOST}`, 'unix_socket_directories=', 'max_connections=100'];
  return startPostgres(bin, dataDir, await freePort(POSTGRES_PORT), settings, user);
}

function writeConfig(dir: string, port: number, postgresPort: number, user: RunUser | null): string {
  const ini = join(dir, 'tsbouncer.ini');
  const lines = [
    '[databases]',
    `${DATABASE} = host=${HOST} port=${postgresPort} dbname=${DATABASE}`,
    '',
    '[pgbouncer]',
    `listen_addr = ${HOST}`,
    `listen_port = ${port}`,
    'unix_socket_dir =',
    'auth_type = scram-sha-256',
    `auth_file = ${join(dir, 'userlist.txt')}`,
    `admin_users = ${USER}`,
    'pool_mode = transaction',
    'max_client_conn = 500',
    `logfile = ${join(dir, 'tsbouncer.log')}`,
    `pidfile = ${join(dir, 'tsbouncer.pid')}`,
  ];
  // started as root, the pooler reads its config and its addon first, and then switches to this user
  if (user !== null) lines.push(`user = ${user.name}`);
  writeNew(ini, `${lines.join('\n')}\n`);
  writeNew(join(dir, 'userlist.txt'), `"${USER}" "${PASSWORD}"\n`);
  giveTo(user, dir);
  return ini;
}

/** Starts the pooler in a session of its own: Ctrl-C reaches only the demo, which stops pooler and server in order. */
async function startPooler(dir: string, postgresPort: number, user: RunUser | null, wanted: number): Promise<Pooler> {
  const port = await freePort(wanted);
  const ini = writeConfig(dir, port, postgresPort, user);
  const child = spawn(process.execPath, [MAIN_JS, ini], { detached: true, stdio: ['ignore', 'ignore', 'pipe'] });
  const log = { text: '' };
  await new Promise<void>((resolve, reject) => {
    child.stderr?.on('data', (chunk: Buffer) => {
      log.text = (log.text + chunk.toString('latin1')).slice(-16_384);
      if (log.text.includes(READY_TEXT)) resolve();
    });
    child.once('close', () => reject(new Error(`the pooler did not start:\n${log.text}`)));
  });
  return { child, port, log };
}

function explain(port: number, postgresPort: number, dir: string): void {
  say(`
tsbouncer listens on ${HOST}:${port}, in transaction mode; PostgreSQL behind it on ${HOST}:${postgresPort}.

Try it:

  PGPASSWORD=${PASSWORD} psql -h ${HOST} -p ${port} -U ${USER} ${DATABASE}        # the database
  PGPASSWORD=${PASSWORD} psql -h ${HOST} -p ${port} -U ${USER} pgbouncer   # the console: SHOW HELP, SHOW POOLS

  node -e "
    const { Client } = require('pg');
    const c = new Client('postgres://${USER}:${PASSWORD}@${HOST}:${port}/${DATABASE}');
    c.connect().then(() => c.query('SELECT version()')).then((r) => { console.log(r.rows[0]); c.end(); });
  "

Config, log and data are in ${dir}. Ctrl-C stops both.
`);
}

/** Runs a query through the pooler and another on the console. */
async function runOnce(port: number): Promise<void> {
  const text = "SELECT current_user AS who, split_part(version(), ' on ', 1) AS server";
  const answer = await withClient(connectTo(port, USER, DATABASE), (client) => client.query(text));
  say(`${text}\n${JSON.stringify(answer.rows[0])}`);
  const version = await withClient(connectTo(port, USER, 'pgbouncer'), (client) => client.query('SHOW VERSION'));
  say(`SHOW VERSION\n${JSON.stringify(version.rows[0])}`);
}

/** Settles on a signal to stop. Installed before anything is started, so that Ctrl-C leaves nothing behind. */
function untilSignal(): Promise<null> {
  return new Promise((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => resolve(null));
  });
}

/** Settles with the reason if the pooler or PostgreSQL exits by itself. */
function untilTrouble(database: PostgresServer, pooler: Pooler): Promise<string> {
  return new Promise((resolve) => {
    pooler.child.once('close', () => resolve(`the pooler has exited unexpectedly:\n${pooler.log.text}`));
    void database.ended.then(() => resolve(`PostgreSQL has exited unexpectedly:\n${database.log.text.slice(-4096)}`));
  });
}

async function stay(
  database: PostgresServer,
  pooler: Pooler,
  dir: string,
  ending: Promise<string | null>,
): Promise<void> {
  explain(pooler.port, database.port, dir);
  if (process.stdout.isTTY) {
    const console = connectTo(pooler.port, USER, 'pgbouncer');
    console.on('error', () => {});
    await console.connect();
    await showLive(console, process.stdout, ending);
    await console.end().catch(() => {});
  }
  const why = await ending;
  if (why !== null) throw new Error(why);
}

async function stopPooler(pooler: Pooler): Promise<void> {
  if (pooler.child.exitCode !== null || pooler.child.signalCode !== null) return;
  const closed = once(pooler.child, 'close');
  pooler.child.kill('SIGQUIT');
  await closed;
}

async function main(): Promise<void> {
  const options = minimist(process.argv.slice(2), { boolean: ['once'], default: { port: POOLER_PORT } });
  if (!existsSync(MAIN_JS)) throw new Error('the pooler is not built yet: run npm run build');
  const signalled = untilSignal();
  const user = runUser();
  const dir = demoDir(user);
  await claimPlace(dir, 'main.js');
  let database: PostgresServer | null = null;
  let pooler: Pooler | null = null;
  try {
    database = await startDatabase(dir, user);
    await furnish(database.port);
    pooler = await startPooler(dir, database.port, user, Number(options.port));
    const ending = Promise.race([signalled, untilTrouble(database, pooler)]);
    if (options.once) await runOnce(pooler.port);
    else await stay(database, pooler, dir, ending);
  } finally {
    if (pooler !== null) await stopPooler(pooler);
    if (database !== null) await stopPostgres(database);
    releasePlace(dir);
  }
  say('The pooler and PostgreSQL have stopped; their data is kept for the next run.');
}

main().catch((err: Error) => {
  process.stderr.write(`demo: ${err.message}\n`);
  process.exitCode = 1;
});
