/*
 * Changes of the config of a running pooler by RELOAD and by SIGHUP, with good and bad contents.
 */
import type { Scenario, Step } from '../side';
import {
  admin,
  appendIni,
  bye,
  change,
  closed,
  login,
  logSays,
  logSaysTimes,
  query,
  removeFile,
  signal,
  tryLogin,
  whenPool,
} from '../steps';

const TRANSACTION = { pool_mode: 'transaction' };

/** RELOAD with one bad line: the pooler must keep its config. */
function badLine(line: string): Scenario {
  return {
    name: `bad line ${JSON.stringify(line)}`,
    steps: [login('a'), appendIni(`\n${line}\n`), admin('RELOAD'), query('a', 'SELECT 1'), tryLogin({}), bye('a')],
  };
}

const askAll: Step[] = [admin('SHOW DATABASES'), admin('SHOW USERS')];

export const reload: Scenario[] = [
  {
    name: 'nothing changed',
    steps: [
      login('a'),
      query('a', 'SELECT 1'),
      admin('RELOAD'),
      query('a', 'SELECT 2'),
      signal('SIGHUP'),
      logSays(/got SIGHUP/),
      bye('a'),
    ],
  },
  {
    name: 'settings',
    settings: TRANSACTION,
    steps: [
      login('a'),
      change('smaller pool, other limits', {
        settings: { default_pool_size: 3, max_client_conn: 50, server_reset_query: 'DISCARD TEMP', query_timeout: 5 },
      }),
      admin('RELOAD'),
      admin('SHOW POOLS'),
      admin('SHOW DATABASES'),
      query('a', 'SELECT 1'),
      bye('a'),
    ],
  },
  {
    name: 'settings that cannot change',
    steps: [
      change('unix_socket_dir', { settings: { unix_socket_mode: '0700', pidfile: '{dir}/other.pid' } }),
      admin('RELOAD'),
      tryLogin({}),
    ],
  },
  {
    name: 'a database changes',
    settings: TRANSACTION,
    steps: [
      login('a'),
      query('a', 'SELECT current_database()'),
      change('postgres is second', { databases: { postgres: '{pg} dbname=second' } }),
      admin('RELOAD'),
      logSays(/closing because/),
      query('a', 'SELECT current_database()'),
      admin('SHOW DATABASES'),
      bye('a'),
    ],
    raceInLog: true,
  },
  {
    name: 'a database leaves',
    databases: { postgres: '{pg}', gone: '{pg} dbname=postgres' },
    settings: TRANSACTION,
    steps: [
      login('a', { database: 'gone' }),
      query('a', 'SELECT 1'),
      change('gone is gone', { databases: { postgres: '{pg}' } }),
      admin('RELOAD'),
      ...askAll,
      closed('a'),
      tryLogin({ database: 'gone' }),
      change('gone is back', { databases: { postgres: '{pg}', gone: '{pg} dbname=postgres' } }),
      admin('RELOAD'),
      tryLogin({ database: 'gone' }),
    ],
    raceInLog: true,
  },
  {
    name: 'a database comes',
    databases: { postgres: '{pg}' },
    steps: [
      tryLogin({ database: 'other' }),
      change('other', { databases: { postgres: '{pg}', other: '{pg} dbname=second pool_size=2' } }),
      signal('SIGHUP'),
      logSays(/got SIGHUP/),
      tryLogin({ database: 'other' }),
      ...askAll,
    ],
  },
  {
    name: 'the fallback database leaves',
    databases: { '*': '{pg}' },
    settings: TRANSACTION,
    steps: [
      tryLogin({ database: 'second' }),
      change('no fallback', { databases: { postgres: '{pg}' } }),
      admin('RELOAD'),
      tryLogin({ database: 'second' }),
      tryLogin({ database: 'template1' }),
      tryLogin({}),
    ],
    raceInLog: true,
  },
  {
    name: 'users',
    settings: { auth_type: 'plain' },
    userlist: { alice: 'old', bob: 'secret' },
    steps: [
      tryLogin({ user: 'alice', password: 'old' }),
      change('another password', { userlist: { alice: 'another' } }),
      admin('RELOAD'),
      tryLogin({ user: 'alice', password: 'old' }),
      tryLogin({ user: 'alice', password: 'another' }),
      ...askAll,
    ],
  },
  {
    name: 'users section',
    userlist: { alice: '' },
    users: { alice: 'pool_mode=statement' },
    steps: [
      admin('SHOW USERS'),
      change('other mode', { users: { alice: 'pool_mode=transaction max_user_connections=4' } }),
      admin('RELOAD'),
      admin('SHOW USERS'),
    ],
  },
  {
    name: 'auth_file is gone',
    steps: [tryLogin({}), removeFile('userlist.txt'), admin('RELOAD'), tryLogin({})],
  },
  {
    name: 'config file is gone',
    steps: [
      tryLogin({}),
      removeFile('pooler.ini'),
      admin('RELOAD'),
      tryLogin({}),
      signal('SIGHUP'),
      logSaysTimes(/got SIGHUP/, 1),
      tryLogin({}),
    ],
  },
  {
    name: 'auth_type changes',
    userlist: { alice: 'secret' },
    steps: [
      tryLogin({ user: 'alice', password: 'wrong' }),
      change('md5', { settings: { auth_type: 'md5' } }),
      admin('RELOAD'),
      tryLogin({ user: 'alice', password: 'wrong' }),
      tryLogin({ user: 'alice', password: 'secret' }),
    ],
  },
  {
    name: 'server_lifetime of 0 after RELOAD',
    settings: TRANSACTION,
    steps: [
      login('a'),
      query('a', 'SELECT 1'),
      change('short life', { settings: { server_idle_timeout: 1 } }),
      admin('RELOAD'),
      whenPool('sv_idle', 0),
      query('a', 'SELECT 2'),
      bye('a'),
    ],
    raceInLog: true,
  },
  ...[
    'no_such_setting = 1',
    'pool_mode = nonsense',
    'query_timeout = abc',
    'max_client_conn = many',
    'auth_type = nothing',
    'a line without an equals sign',
    '[unknown section]\nkey = value',
    '[databases]\nbroken = host',
    '[databases]\npgbouncer = host=127.0.0.1',
    '[databases]\nbad_key = host=127.0.0.1 nonsense=1',
    '[databases]\nbad_port = host=127.0.0.1 port=many',
    '[databases]\nbad_mode = host=127.0.0.1 pool_mode=nonsense',
    '[users]\nalice = pool_mode=nonsense',
    '[users]\nalice = nonsense=1',
    '%include /does/not/exist',
    "[databases]\nunclosed = host=127.0.0.1 password='open",
  ].map(badLine),
];
