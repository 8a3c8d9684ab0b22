/*
 * The scenario of a seed: the config, the servers and their faults, the clients, the network, the commands of the
 * operator.
 */

import type { Random } from '../harness/hostile/random';
import type { Character } from './client';
import { MS, SECOND } from './clock';
import type { Manners } from './network';
import type { Moods } from './postgres';
import { OLD_KIND } from './tls';

export const CONFIG_FILE = '/sim/pooler.ini';
export const AUTH_FILE = '/sim/userlist.txt';
export const SOCKET_DIR = '/sim';
export const LISTEN_HOST = '10.1.0.1';
export const LISTEN_PORT = 6432;

const PASSWORDS: Record<string, string> = { ann: 'apple', bob: 'banana', carl: 'cherry', asker: 'question' };
/** Users that only auth_query finds. */
const HIDDEN: Record<string, string> = { dora: 'date', emil: 'elder' };
/** Users of servers by database, where the config determines them. */
const FORCED = { delta: 'bob' } as const;
const SERVERS = ['10.0.0.1', '10.0.0.2', '10.0.0.3', '10.0.0.4', '10.0.0.5'];
/** The last two are a cluster, for these databases. */
const CLUSTER = SERVERS.slice(-2);
/** Databases with target_session_attrs, and the role of their servers. */
export const WANTS_STANDBY = new Map([
  ['epsilon', false],
  ['zeta', true],
]);

/** The kinds of faults that occur. */
interface Faults {
  servers: boolean;
  clients: boolean;
  console: boolean;
  reboots: boolean;
  clock: boolean;
}

export interface Scenario {
  faults: Faults;
  poolMode: 'session' | 'transaction' | 'statement';
  settings: Record<string, string | number>;
  databases: Record<string, string>;
  users: Record<string, string>;
  passwords: Record<string, string>;
  hidden: Record<string, string>;
  servers: { host: string; auth: 'trust' | 'md5'; moods: Moods; tls: boolean }[];
  /** average time between two changes of roles in the cluster, usec; 0 = never */
  failoverEvery: number;
  network: Manners;
  /** most clients at a time */
  clients: number;
  /** all clients use this database; null = any */
  database: string | null;
  /** only these users come; empty = all */
  people: string[];
  /** average time between two new clients, usec */
  arrival: number;
  /** one client in so many stops sending during its login */
  silentOne: number;
  /** one client in so many sends LISTEN */
  listenOne: number;
}

const CALM: Moods = {
  refuseLogin: 0,
  hangAtLogin: 0,
  die: 0,
  restartEvery: 0,
  loseSessionEvery: 0,
  unreachableEvery: 0,
};

function moods(random: Random, faulty: boolean): Moods {
  if (!faulty) return CALM;
  const sometimes = (value: number) => (random.one(2) ? value : 0);
  return {
    refuseLogin: sometimes(random.between(3, 20)),
    hangAtLogin: sometimes(random.between(5, 30)),
    die: sometimes(random.between(50, 500)),
    restartEvery: sometimes(random.between(5, 60) * SECOND),
    loseSessionEvery: sometimes(random.between(1, 10) * SECOND),
    unreachableEvery: sometimes(random.between(5, 60) * SECOND),
  };
}

function settings(random: Random, poolMode: string): Record<string, string | number> {
  const maybe = <T>(usual: T, ...others: T[]): T => (random.one(2) ? usual : random.pick(others));
  return {
    listen_addr: LISTEN_HOST,
    listen_port: LISTEN_PORT,
    unix_socket_dir: SOCKET_DIR,
    auth_file: AUTH_FILE,
    auth_type: random.pick(['md5', 'plain', 'pam']),
    auth_user: 'asker',
    auth_query: 'AUTH user=$1',
    auth_query_cache_time: maybe(0, 2, 60),
    admin_users: 'admin',
    pool_mode: poolMode,
    default_pool_size: random.between(1, 4),
    min_pool_size: maybe(0, 1, 2),
    reserve_pool_size: maybe(0, 1),
    reserve_pool_timeout: 1,
    server_check_query: 'CHECK',
    server_check_delay: maybe(30, 0, 1),
    server_lifetime: maybe(3600, 2, 10),
    server_idle_timeout: maybe(600, 1, 5),
    server_login_retry: maybe(1, 3),
    server_connect_timeout: 2,
    server_round_robin: maybe(0, 1),
    server_reset_query_always: maybe(0, 1),
    listen_mode: maybe('ignore', 'refuse', 'pin', 'share', 'share'),
    listen_loss: maybe('disconnect', 'notice'),
    listen_queue_size: maybe(1_048_576, 3000),
    dirty_session: maybe('ignore', 'log', 'reset', 'reset'),
    server_fast_close: maybe(0, 1),
    server_recovery_timeout: maybe(0, 3),
    server_tls_sslmode: maybe('disable', 'prefer'),
    client_tls_sslmode: maybe('disable', 'allow'),
    client_tls_key_file: '/sim/key',
    client_tls_cert_file: '/sim/cert',
    max_prepared_statements: maybe(100, 2),
    pool_idle_timeout: maybe(0, 2),
    autodb_idle_timeout: maybe(3600, 2),
    max_db_connections: maybe(0, 3),
    fair_share_timeout: maybe(0, 0.2, 1),
    client_login_timeout: maybe(30, 3),
    max_client_conn: 1000,
    query_wait_timeout: maybe(30, 3),
    query_timeout: maybe(0, 2),
    transaction_timeout: maybe(0, 2),
    idle_transaction_timeout: maybe(0, 1),
    client_idle_timeout: maybe(0, 1),
    suspend_timeout: maybe(10, 1),
    shutdown_timeout: maybe(0, 2),
    sigterm_shutdown: maybe('wait_for_clients', 'wait_for_transactions'),
    drain_rate: maybe(1000, 10, 0),
    query_wait_notify: 1,
    verbose: 0,
  };
}

/** Choices that are given instead of derived from the seed. */
export interface Wanted {
  faults?: Partial<Faults>;
  settings?: Record<string, string | number>;
  silentOne?: number;
  listenOne?: number;
  failoverEvery?: number;
  clients?: number;
  /** all clients use this database */
  database?: string;
  /** only these users come */
  people?: string[];
}

export function makeScenario(random: Random, wanted: Wanted = {}): Scenario {
  const faults: Faults = {
    servers: random.one(2),
    clients: random.one(2),
    console: random.one(2),
    reboots: random.one(2),
    clock: random.one(2),
    ...wanted.faults,
  };
  const usualMode = random.pick(['session', 'transaction', 'transaction', 'statement'] as const);
  const poolMode = (wanted.settings?.pool_mode ?? usualMode) as Scenario['poolMode'];
  const balance = `load_balance_hosts=${random.pick(['disable', 'round-robin'])}`;
  const single = (host: string, more = '') => `host=${host} port=5432 ${more}`;
  return {
    faults,
    poolMode,
    settings: { ...settings(random, poolMode), ...wanted.settings },
    databases: {
      alpha: single('10.0.0.1'),
      beta: single('10.0.0.2', 'pool_size=2'),
      gamma: single('10.0.0.2,10.0.0.3'),
      delta: single('named.example', `user=${FORCED.delta} password=${PASSWORDS[FORCED.delta]}`),
      epsilon: single(CLUSTER.join(), `target_session_attrs=${random.pick(['read-write', 'primary'])} ${balance}`),
      zeta: single(CLUSTER.join(), `target_session_attrs=${random.pick(['standby', 'read-only'])} ${balance}`),
      '*': single('10.0.0.3'),
    },
    users: {
      ann: 'share_weight=3',
      bob: `share_minimum=${random.below(3)}`,
      carl: `share_weight=2 share_minimum=${random.below(2)}`,
    },
    passwords: PASSWORDS,
    hidden: HIDDEN,
    servers: SERVERS.map((host) => ({
      host,
      auth: random.pick(['trust', 'md5'] as const),
      moods: moods(random, faults.servers && !CLUSTER.includes(host)),
      tls: random.one(2),
    })),
    failoverEvery: wanted.failoverEvery ?? (faults.servers ? random.between(1, 15) * SECOND : 0),
    network: {
      delay: random
        .pick([
          [10, 200],
          [100, 3000],
          [0, 10],
        ] as const)
        .slice() as [number, number],
      capacity: random
        .pick([
          [16_384, 200_000],
          [1000, 8000],
        ] as const)
        .slice() as [number, number],
      pieces: random.pick([2, 10, 1000]),
    },
    clients: wanted.clients ?? random.between(1, random.pick([4, 30])),
    people: wanted.people ?? [],
    database: wanted.database ?? (random.one(6) ? 'alpha' : null),
    arrival: random.between(1, 200) * MS,
    silentOne: wanted.silentOne ?? random.pick([2, 15, 15]),
    listenOne: wanted.listenOne ?? random.pick([2, 6]),
  };
}

/** The text of the config file. */
export function configText({ databases, users, settings: own }: Scenario): string {
  const lines = (pairs: Record<string, string | number>) =>
    Object.entries(pairs)
      .map(([name, value]) => `${name} = ${value}\n`)
      .join('');
  return `[databases]\n${lines(databases)}[users]\n${lines(users)}[pgbouncer]\n${lines(own)}`;
}

export function userlistText({ passwords }: Scenario): string {
  return Object.entries(passwords)
    .map(([name, password]) => `"${name}" "${password}"\n`)
    .join('');
}

export const DATABASES = ['alpha', 'alpha', 'beta', 'gamma', 'delta', 'auto1', 'auto2', 'epsilon', 'zeta'];

/** The user with which the pooler logs in to servers for clients of a database. */
export function serverUser(database: string, user: string): string {
  return database in FORCED ? FORCED[database as keyof typeof FORCED] : user;
}

/** The random behaviour of a client. */
export function makeCharacter(random: Random, scenario: Scenario): Character {
  const { faults, poolMode, passwords, hidden, silentOne, listenOne, settings: own } = scenario;
  const users = { ...passwords, ...hidden };
  const anyone = random.pick(Object.keys(random.one(2) ? users : hidden));
  const user = scenario.people.length > 0 ? random.pick(scenario.people) : anyone;
  const database = random.pick(DATABASES);
  const rude = faults.clients;
  const wrong = rude && random.one(10);
  const replication = random.one(15);
  const silent = rude && random.one(silentOne) ? random.pick(['at once', 'at the password'] as const) : 'never';
  return {
    user,
    database: scenario.database ?? database,
    password: wrong ? 'nonsense' : (users[user] as string),
    refused: silent !== 'never' ? 'client_login_timeout' : wrong ? 'authentication failed' : '',
    sessionPooling: poolMode === 'session' && !replication,
    statementPooling: poolMode === 'statement',
    think: random.pick([MS, 20 * MS, 200 * MS]),
    requests: random.between(0, 30),
    slowOne: random.between(5, 40),
    slowTime: random.pick([20 * MS, 200 * MS, 2 * SECOND]),
    cancelOne: random.between(1, 4),
    deafOne: rude ? random.between(20, 100) : 0,
    leaveOne: rude ? random.between(10, 100) : 0,
    prepares: random.one(2),
    listens: random.one(listenOne),
    silent,
    replication,
    tls: own.client_tls_sslmode === 'allow' && !random.one(3) ? random.pick(['new', 'new', OLD_KIND] as const) : '',
  };
}
