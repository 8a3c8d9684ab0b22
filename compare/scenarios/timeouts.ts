/*
 * Timeouts that are reached: of queries, of waiting, of idle clients and servers, of logins on both sides. Each
 * scenario waits for the effect of the timeout, never for a time.
 */

import { cstring, message } from '../../test/harness/raw-client';
import type { Scenario } from '../side';
import {
  admin,
  ask,
  bye,
  cancel,
  closed,
  connect,
  login,
  logSays,
  logSaysTimes,
  query,
  receive,
  send,
  tryLogin,
  whenPool,
} from '../steps';

const TRANSACTION = { pool_mode: 'transaction' };

export const timeouts: Scenario[] = [
  {
    name: 'query_timeout',
    settings: { ...TRANSACTION, query_timeout: 1 },
    steps: [login('a'), query('a', 'SELECT 1'), ask('a', 'SELECT pg_sleep(10)'), closed('a')],
    raceInLog: true,
  },
  {
    name: 'query_wait_timeout',
    settings: { ...TRANSACTION, default_pool_size: 1, query_wait_timeout: 1 },
    steps: [
      login('a'),
      query('a', 'BEGIN'),
      login('b'),
      ask('b', 'SELECT 1'),
      closed('b'),
      query('a', 'COMMIT'),
      bye('a'),
    ],
    raceInLog: true,
  },
  {
    name: 'query_wait_timeout of a login',
    databases: { postgres: '{mute}' },
    settings: { query_wait_timeout: 1 },
    steps: [tryLogin({})],
    raceInLog: true,
  },
  {
    name: 'client_idle_timeout',
    since: '1.24',
    settings: { ...TRANSACTION, client_idle_timeout: 1 },
    steps: [login('a'), query('a', 'SELECT 1'), closed('a')],
    raceInLog: true,
  },
  {
    name: 'idle_transaction_timeout',
    settings: { ...TRANSACTION, idle_transaction_timeout: 1 },
    steps: [login('a'), query('a', 'BEGIN'), closed('a')],
    raceInLog: true,
  },
  {
    name: 'client_login_timeout',
    settings: { client_login_timeout: 1, auth_type: 'plain' },
    userlist: { alice: 'secret' },
    steps: [
      connect('a'),
      closed('a'),
      connect('b'),
      send('b', 'half a startup', Buffer.from([0, 0, 0, 40, 0, 3])),
      closed('b'),
    ],
  },
  {
    name: 'server_idle_timeout',
    settings: { ...TRANSACTION, server_idle_timeout: 1 },
    steps: [
      login('a'),
      query('a', 'SELECT 1'),
      logSays(/server idle timeout/),
      whenPool('sv_idle', 0),
      query('a', 'SELECT 2'),
      bye('a'),
    ],
    raceInLog: true,
  },
  {
    name: 'server_lifetime',
    settings: { ...TRANSACTION, server_lifetime: 1 },
    steps: [
      login('a'),
      query('a', 'SELECT 1'),
      logSays(/server lifetime over/),
      whenPool('sv_idle', 0),
      query('a', 'SELECT 2'),
      bye('a'),
    ],
    raceInLog: true,
  },
  {
    name: 'server_connect_timeout',
    databases: { postgres: '{mute}' },
    settings: { server_connect_timeout: 1, server_login_retry: 1, query_wait_timeout: 4 },
    steps: [tryLogin({})],
    repeatsInLog: true,
  },
  {
    name: 'server_login_retry',
    databases: { postgres: '{dead}' },
    settings: { server_login_retry: 1, query_wait_timeout: 3 },
    steps: [connect('a'), tryLogin({}), logSaysTimes(/connect failed/, 2), tryLogin({})],
    repeatsInLog: true,
  },
  {
    name: 'cancel_wait_timeout',
    since: '1.19',
    settings: { ...TRANSACTION, cancel_wait_timeout: 1 },
    steps: [login('a'), query('a', 'SELECT 1'), cancel('a'), bye('a')],
    raceInLog: true,
  },
  {
    name: 'autodb_idle_timeout',
    databases: { '*': '{pg}' },
    settings: { ...TRANSACTION, autodb_idle_timeout: 1, server_idle_timeout: 1 },
    steps: [tryLogin({ database: 'second' }), logSays(/server idle timeout/), admin('SHOW DATABASES')],
    raceInLog: true,
  },
  {
    name: 'stats_period',
    settings: { stats_period: 1 },
    steps: [logSaysTimes(/stats: /, 1)],
    repeatsInLog: true,
  },
  {
    name: 'log_stats off',
    settings: { stats_period: 1, log_stats: 0 },
    steps: [login('a'), query('a', 'SELECT pg_sleep(1.5)'), bye('a')],
  },
  {
    name: 'suspend_timeout',
    settings: { ...TRANSACTION, suspend_timeout: 1 },
    steps: [
      login('a'),
      ask('a', 'SELECT pg_sleep(4)'),
      whenPool('sv_active', 1),
      admin('SUSPEND'),
      admin('SHOW STATE'),
      admin('RESUME'),
      receive('a'),
      bye('a'),
    ],
    raceInLog: true,
  },
  {
    name: 'transaction_timeout',
    since: '1.25',
    settings: { ...TRANSACTION, transaction_timeout: 1 },
    steps: [login('a'), query('a', 'BEGIN'), closed('a')],
    raceInLog: true,
  },
  {
    name: 'query_wait_notify',
    since: '1.25',
    settings: { ...TRANSACTION, default_pool_size: 1, query_wait_notify: 1 },
    steps: [
      login('a'),
      query('a', 'BEGIN'),
      login('b'),
      ask('b', 'SELECT 1'),
      receive('b', 'N'),
      query('a', 'COMMIT'),
      receive('b'),
      bye('a', 'b'),
    ],
    raceInLog: true,
  },
  {
    name: 'timeouts of a user',
    since: '1.24',
    users: { alice: 'query_timeout=1', bob: 'idle_transaction_timeout=1 client_idle_timeout=30' },
    userlist: { alice: '', bob: '' },
    settings: TRANSACTION,
    steps: [
      login('a', { user: 'alice' }),
      ask('a', 'SELECT pg_sleep(10)'),
      closed('a'),
      login('b', { user: 'bob' }),
      send('b', 'BEGIN', message('Q', cstring('BEGIN'))),
      closed('b'),
    ],
    raceInLog: true,
  },
];
