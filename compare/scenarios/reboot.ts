/*
 * The online reboot: a second process of the same program takes over with -R. Compares the results of clients, both
 * logs, and reboots that fail.
 */

import type { Scenario, Step } from '../side';
import {
  admin,
  adminAsk,
  appendIni,
  ask,
  bye,
  change,
  login,
  loginUnix,
  query,
  reboot,
  rebootThatFails,
  receive,
  tryLogin,
  whenPool,
} from '../steps';
import { loginTls } from '../tls-steps';

const TRANSACTION = { pool_mode: 'transaction', suspend_timeout: 5 };
const TLS = {
  client_tls_sslmode: 'allow',
  client_tls_key_file: '{certs}/site.key',
  client_tls_cert_file: '{certs}/site.crt',
};

const goodbyes: Step[] = [tryLogin({}), bye('a')];

export const reboots: Scenario[] = [
  { name: 'no old process', settings: TRANSACTION, steps: [reboot(), tryLogin({}), admin('SHOW VERSION')] },
  {
    name: 'idle clients',
    settings: TRANSACTION,
    steps: [
      login('a'),
      query('a', 'SELECT 1'),
      loginUnix('u'),
      reboot(),
      query('a', 'SELECT 2'),
      query('u', 'SELECT 3'),
      admin('SHOW POOLS'),
      bye('u'),
      ...goodbyes,
    ],
  },
  {
    name: 'in a transaction',
    settings: TRANSACTION,
    steps: [
      login('a'),
      query('a', 'BEGIN'),
      reboot(),
      query('a', 'SELECT 1'),
      query('a', 'COMMIT'),
      admin('SHOW SERVERS'),
      ...goodbyes,
    ],
  },
  {
    name: 'in session mode',
    settings: { pool_mode: 'session', suspend_timeout: 5 },
    steps: [
      login('a'),
      query('a', 'CREATE TEMP TABLE mine AS SELECT 1 AS n'),
      reboot(),
      query('a', 'SELECT n FROM mine'),
      ...goodbyes,
    ],
  },
  {
    name: 'in the middle of a query',
    settings: TRANSACTION,
    steps: [
      login('a'),
      // longer than a reboot on a busy machine
      ask('a', 'SELECT pg_sleep(5), 2 AS two'),
      whenPool('sv_active', 1),
      reboot(),
      receive('a'),
      query('a', 'SELECT 3'),
      ...goodbyes,
    ],
  },
  {
    name: 'changed variables',
    settings: TRANSACTION,
    steps: [
      login('a', { params: { client_encoding: 'LATIN1', datestyle: 'German', timezone: 'CET' } }),
      query('a', 'SHOW datestyle'),
      reboot(),
      query('a', 'SHOW datestyle'),
      query('a', 'SHOW timezone'),
      query('a', 'SHOW client_encoding'),
      ...goodbyes,
    ],
  },
  {
    name: 'twice',
    settings: TRANSACTION,
    steps: [
      login('a'),
      query('a', 'SELECT 1'),
      reboot(),
      query('a', 'SELECT 2'),
      reboot(),
      query('a', 'SELECT 3'),
      ...goodbyes,
    ],
  },
  {
    name: 'another config',
    settings: TRANSACTION,
    steps: [
      login('a'),
      query('a', 'SELECT 1'),
      change('a smaller pool', { settings: { default_pool_size: 3, max_client_conn: 50 } }),
      reboot(),
      query('a', 'SELECT 2'),
      admin('SHOW DATABASES'),
      ...goodbyes,
    ],
  },
  {
    name: 'TLS connections',
    settings: { ...TRANSACTION, ...TLS },
    steps: [
      login('a'),
      query('a', 'SELECT 1'),
      loginTls('t'),
      query('t', 'SELECT 1'),
      reboot(),
      query('a', 'SELECT 2'),
      ...goodbyes,
    ],
  },
  {
    name: 'everything paused',
    settings: TRANSACTION,
    steps: [
      login('a'),
      query('a', 'SELECT 1'),
      adminAsk('PAUSE'),
      receive('console'),
      reboot(),
      admin('SHOW STATE'),
      admin('RESUME'),
      query('a', 'SELECT 2'),
      ...goodbyes,
    ],
  },
  {
    name: 'a pidfile and a logfile',
    settings: { ...TRANSACTION, pidfile: '{dir}/pid', logfile: '{dir}/log' },
    steps: [login('a'), query('a', 'SELECT 1'), reboot(), query('a', 'SELECT 2'), ...goodbyes],
  },
  {
    name: 'a config that cannot be',
    settings: TRANSACTION,
    steps: [
      login('a'),
      query('a', 'SELECT 1'),
      appendIni('\nnonsense = 1\n'),
      rebootThatFails(),
      query('a', 'SELECT 2'),
      ...goodbyes,
    ],
  },
  {
    name: 'no Unix socket to find the old one by',
    settings: { ...TRANSACTION, unix_socket_dir: '' },
    steps: [login('a'), query('a', 'SELECT 1'), rebootThatFails(), query('a', 'SELECT 2'), ...goodbyes],
  },
].map((scenario): Scenario => ({ ...scenario, raceInLog: true }));
