/*
 * Limits that are reached: clients and servers, per database and per user, pools with and without a reserve, and the
 * console's output then.
 */
import type { Scenario, Step } from '../side';
import { admin, ask, bye, login, query, receive, tryLogin, whenPool } from '../steps';

const USERLIST = { alice: '', bob: '' };

/** Two clients on one server: the second client waits until the first is done. */
const oneServer: Step[] = [
  login('a'),
  login('b'),
  query('a', 'BEGIN'),
  ask('b', 'SELECT 2'),
  whenPool('cl_waiting', 1),
  admin('SHOW POOLS'),
  query('a', 'COMMIT'),
  receive('b'),
  bye('a', 'b'),
];

/** A second user needs the only server within the limit: the first user's idle server is evicted. */
const eviction: Step[] = [
  login('a', { user: 'alice' }),
  query('a', 'SELECT current_user'),
  login('b', { user: 'bob' }),
  query('b', 'SELECT current_user'),
  query('a', 'SELECT current_user'),
  admin('SHOW POOLS'),
  bye('a', 'b'),
];

export const limits: Scenario[] = [
  {
    name: 'max_client_conn',
    settings: { max_client_conn: 2 },
    steps: [login('a'), login('b'), tryLogin({}), admin('SHOW LISTS'), bye('a'), login('c'), bye('b', 'c')],
  },
  { name: 'pool_size', settings: { pool_mode: 'transaction', default_pool_size: 1 }, steps: oneServer },
  {
    name: 'pool_size of the database',
    databases: { postgres: '{pg} pool_size=1 pool_mode=transaction' },
    steps: [...oneServer, admin('SHOW DATABASES')],
  },
  {
    name: 'max_db_connections',
    settings: { pool_mode: 'transaction', max_db_connections: 1 },
    userlist: USERLIST,
    steps: eviction,
    raceInLog: true,
  },
  {
    name: 'max_db_connections of the database',
    databases: { postgres: '{pg} max_db_connections=1' },
    settings: { pool_mode: 'transaction' },
    userlist: USERLIST,
    steps: [...eviction, admin('SHOW DATABASES')],
    raceInLog: true,
  },
  {
    name: 'max_user_connections',
    settings: { pool_mode: 'transaction', max_user_connections: 1 },
    userlist: USERLIST,
    steps: [
      login('a', { user: 'alice' }),
      query('a', 'SELECT 1'),
      login('b', { user: 'alice', database: 'second' }),
      query('b', 'SELECT current_database()'),
      admin('SHOW POOLS'),
      admin('SHOW USERS'),
      bye('a', 'b'),
    ],
    raceInLog: true,
  },
  {
    name: 'settings of a user',
    users: { alice: 'pool_mode=transaction max_user_connections=1' },
    userlist: USERLIST,
    steps: [
      login('a', { user: 'alice' }),
      login('b', { user: 'alice' }),
      query('a', 'SELECT 1'),
      query('b', 'SELECT 2'),
      admin('SHOW POOLS'),
      admin('SHOW USERS'),
      bye('a', 'b'),
    ],
  },
  {
    name: 'min_pool_size',
    databases: { postgres: '{pg} min_pool_size=2 user=alice' },
    steps: [login('a'), query('a', 'SELECT 1'), whenPool('sv_idle', 1), admin('SHOW POOLS'), bye('a')],
    raceInLog: true,
  },
  {
    name: 'reserve pool',
    settings: { pool_mode: 'transaction', default_pool_size: 1, reserve_pool_size: 1, reserve_pool_timeout: 1 },
    steps: [
      login('a'),
      login('b'),
      query('a', 'BEGIN'),
      query('b', 'BEGIN'),
      admin('SHOW POOLS'),
      query('a', 'COMMIT'),
      query('b', 'COMMIT'),
      bye('a', 'b'),
    ],
    raceInLog: true,
  },
  {
    name: 'round robin',
    settings: { pool_mode: 'transaction', server_round_robin: 1 },
    steps: [login('a'), query('a', 'SELECT 1'), query('a', 'SELECT 2'), admin('SHOW POOLS'), bye('a')],
  },
  {
    name: 'waiting clients are served in order',
    settings: { pool_mode: 'transaction', default_pool_size: 1 },
    steps: [
      login('a'),
      login('b'),
      login('c'),
      query('a', 'BEGIN'),
      query('a', 'CREATE TEMP TABLE seen (who text)'),
      query('a', "INSERT INTO seen VALUES ('a')"),
      ask('b', "INSERT INTO seen VALUES ('b')"),
      whenPool('cl_waiting', 1),
      ask('c', "INSERT INTO seen VALUES ('c')"),
      whenPool('cl_waiting', 2),
      query('a', 'COMMIT'),
      receive('b'),
      receive('c'),
      query('a', 'SELECT who FROM seen'),
      bye('a', 'b', 'c'),
    ],
  },
  {
    name: 'max_db_client_connections',
    since: '1.24',
    settings: { max_db_client_connections: 1 },
    steps: [login('a'), tryLogin({}), tryLogin({ database: 'second' }), admin('SHOW DATABASES'), bye('a')],
  },
  {
    name: 'max_user_client_connections',
    since: '1.24',
    settings: { max_user_client_connections: 1 },
    userlist: USERLIST,
    steps: [
      login('a', { user: 'alice' }),
      tryLogin({ user: 'alice' }),
      tryLogin({ user: 'bob' }),
      admin('SHOW USERS'),
      bye('a'),
    ],
  },
  {
    name: 'client limits of one user and one database',
    since: '1.24',
    databases: { postgres: '{pg} max_db_client_connections=2', '*': '{pg}' },
    users: { alice: 'max_user_client_connections=1 reserve_pool_size=1 pool_size=3' },
    userlist: USERLIST,
    steps: [
      login('a', { user: 'alice' }),
      tryLogin({ user: 'alice' }),
      login('b', { user: 'bob' }),
      tryLogin({ user: 'bob' }),
      admin('SHOW USERS'),
      bye('a', 'b'),
    ],
  },
];
