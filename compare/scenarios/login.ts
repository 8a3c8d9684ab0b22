/*
 * Logins that succeed and fail: every authentication method, startup packets of every kind, logins to the console, and
 * a client's error when the server refuses the pooler.
 */

import { ADMIN_PASSWORD, ADMIN_USER, STATS_PASSWORD, STATS_USER } from '../../test/harness';
import {
  CANCEL_REQUEST,
  cstring,
  GSSENC_REQUEST,
  int32,
  type Login,
  message,
  PROTOCOL_30,
  PROTOCOL_32,
  SSL_REQUEST,
  startupPacket,
} from '../../test/harness/raw-client';
import type { Scenario, Step } from '../side';
import {
  admin,
  bye,
  closed,
  connect,
  login as logIn,
  loginUnix,
  query,
  rawStartup,
  requests,
  send,
  startup,
  startWith,
  tryLogin,
} from '../steps';

/** md5 of `secretc_md5` */
const MD5_SECRET = 'md5126585674720565f9c7cb9b3e667af43';
/** of the password `secret`, with a fixed salt */
const SCRAM_SECRET =
  'SCRAM-SHA-256$4096:MDEyMzQ1Njc4OWFiY2RlZg==$bpSY5Ze9NUH+I35LC3gVq+DpBfK46iXBxvhAKqVu9pE=:VpYlBuxyzeCI1KnctrefdljpB1mk3Gp7sBI/t11+NkQ=';

const USERLIST = { c_plain: 'secret', c_md5: MD5_SECRET, c_scram: SCRAM_SECRET, c_empty: '' };

const users: Login[] = ['c_plain', 'c_md5', 'c_scram', 'c_empty', 'nobody'].map((user) => ({ user }));
const allLogins: Step[] = users.flatMap(({ user }) =>
  ['secret', 'wrong', ''].map((password) => tryLogin({ user, password })),
);

/** Every kind of secret with a right, a wrong and no password, for one auth_type. */
function passwords(authType: string): Scenario {
  return {
    name: `passwords, auth_type=${authType}`,
    settings: { auth_type: authType },
    userlist: USERLIST,
    steps: allLogins,
  };
}

const startParameters: [string, Record<string, string>][] = [
  ['no user', { database: 'postgres' }],
  ['empty user', { user: '', database: 'postgres' }],
  ['no database', { user: 'postgres' }],
  ['empty database', { user: 'postgres', database: '' }],
  ['tracked parameters', { user: 'postgres', client_encoding: 'LATIN1', datestyle: 'German', timezone: 'CET' }],
  ['application_name', { user: 'postgres', application_name: 'app "1"' }],
  ['empty application_name', { user: 'postgres', application_name: '' }],
  ['ignored parameter', { user: 'postgres', extra_float_digits: '3' }],
  ['unknown parameter', { user: 'postgres', work_mem: '1MB' }],
  ['options -c', { user: 'postgres', options: '-c datestyle=German' }],
  ['options -c of an ignored parameter', { user: 'postgres', options: '-c extra_float_digits=2' }],
  ['options -c of an unknown parameter', { user: 'postgres', options: '-c work_mem=1MB' }],
  ['options --name', { user: 'postgres', options: '--timezone=CET' }],
  ['options of another kind', { user: 'postgres', options: '-d 5' }],
  ['long user', { user: 'u'.repeat(130), database: 'postgres' }],
  ['long database', { user: 'postgres', database: 'd'.repeat(70) }],
  ['bad encoding', { user: 'postgres', client_encoding: 'KLINGON' }],
];

const bytes = (...list: number[]) => Buffer.from(list);
const good = startupPacket(PROTOCOL_30, { user: 'postgres', database: 'postgres' });

export const login: Scenario[] = [
  ...['trust', 'any', 'plain', 'md5', 'scram-sha-256'].map(passwords),
  {
    name: 'auth_type=any with a forced user',
    settings: { auth_type: 'any' },
    databases: { forced: '{pg} dbname=postgres user=alice', free: '{pg} dbname=postgres' },
    steps: [
      logIn('a', { user: 'whoever', database: 'forced' }),
      query('a', 'SELECT current_user'),
      bye('a'),
      tryLogin({ user: 'whoever', database: 'free' }),
      tryLogin({ user: ADMIN_USER, database: 'pgbouncer' }),
      tryLogin({ user: STATS_USER, database: 'pgbouncer' }),
      tryLogin({ user: 'whoever', database: 'pgbouncer' }),
    ],
  },
  {
    name: 'startup parameters',
    settings: { ignore_startup_parameters: 'extra_float_digits' },
    steps: startParameters.map(([text, params]) => startWith(text, PROTOCOL_30, params)),
  },
  {
    name: 'protocol versions',
    steps: [
      startWith('protocol 3.2', PROTOCOL_32, { user: 'postgres' }),
      startWith('protocol 3.9', 0x0003_0009, { user: 'postgres' }),
      startWith('protocol extension', PROTOCOL_30, { user: 'postgres', '_pq_.wanted': 'yes' }),
      startWith('protocol 2.0', 0x0002_0000, { user: 'postgres' }),
      startWith('protocol 4.0', 0x0004_0000, { user: 'postgres' }),
    ],
  },
  {
    name: 'malformed startup packets',
    settings: { client_login_timeout: 2 },
    steps: [
      rawStartup('length 0', bytes(0, 0, 0, 0, 0, 3, 0, 0)),
      rawStartup('length 7', bytes(0, 0, 0, 7, 0, 3, 0, 0)),
      rawStartup('nothing but a length', bytes(0, 0, 0, 8, 0, 3, 0, 0)),
      rawStartup('huge length', bytes(0x7f, 0xff, 0xff, 0xff, 0, 3, 0, 0)),
      rawStartup('negative length', bytes(0xff, 0xff, 0xff, 0xff, 0, 3, 0, 0)),
      rawStartup('no last terminator', startupPacket(PROTOCOL_30, Buffer.from('user\0postgres\0'))),
      rawStartup('key without value', startupPacket(PROTOCOL_30, Buffer.from('user\0\0'))),
      rawStartup('bytes behind the terminator', startupPacket(PROTOCOL_30, Buffer.from('user\0postgres\0\0xx'))),
      rawStartup('a query first', message('Q', cstring('SELECT 1'))),
      rawStartup('a password first', message('p', cstring('secret'))),
      rawStartup('HTTP', Buffer.from('GET / HTTP/1.0\r\n\r\n')),
      rawStartup('unknown request code', startupPacket(80877109, Buffer.alloc(0))),
    ],
  },
  {
    name: 'encryption requests',
    steps: [
      requests('a', SSL_REQUEST),
      startup('a'),
      bye('a'),
      requests('b', GSSENC_REQUEST),
      startup('b'),
      bye('b'),
      requests('c', GSSENC_REQUEST, SSL_REQUEST),
      startup('c'),
      bye('c'),
      requests('d', SSL_REQUEST, SSL_REQUEST),
      startup('d'),
    ],
  },
  {
    name: 'cancel requests before any login',
    steps: [
      rawStartup('unknown key', startupPacket(CANCEL_REQUEST, Buffer.concat([int32(1), int32(2)]))),
      rawStartup('no key', startupPacket(CANCEL_REQUEST, int32(1))),
      rawStartup('long key', startupPacket(CANCEL_REQUEST, Buffer.alloc(40))),
    ],
  },
  {
    name: 'packets in the middle of a login',
    settings: { auth_type: 'plain' },
    userlist: USERLIST,
    steps: [
      connect('a'),
      send('a', 'startup and a query', startupPacket(PROTOCOL_30, { user: 'c_plain', database: 'postgres' })),
      send('a', 'a query instead of a password', message('Q', cstring('SELECT 1'))),
      closed('a'),
      connect('b'),
      send('b', 'two startups', good, good),
      closed('b'),
      connect('c'),
      send('c', 'startup and goodbye', good, message('X')),
      closed('c'),
      connect('d'),
      send('d', 'startup and an unknown packet', good, message('!')),
      closed('d'),
    ],
  },
  {
    name: 'bad SCRAM messages',
    // older versions crash
    since: '1.25',
    settings: { auth_type: 'scram-sha-256', client_login_timeout: 2 },
    userlist: USERLIST,
    steps: [
      '',
      'SCRAM-SHA-1\0\0\0\0\x08n,,n=,r=',
      'SCRAM-SHA-256\0\0\0\0\x05hello',
      'SCRAM-SHA-256\0\xff\xff\xff\xff',
    ].flatMap((text) => [
      connect('a'),
      send('a', 'startup', startupPacket(PROTOCOL_30, { user: 'c_plain', database: 'postgres' })),
      send('a', `SASL ${JSON.stringify(text)}`, message('p', Buffer.from(text, 'latin1'))),
      closed('a'),
    ]),
  },
  {
    name: 'databases',
    databases: {
      known: '{pg} dbname=postgres',
      renamed: '{pg} dbname=missing',
      closed: '{pg} dbname=postgres',
      dead: '{dead} dbname=postgres',
    },
    settings: { server_login_retry: 1, query_wait_timeout: 3 },
    steps: [
      tryLogin({ database: 'known' }),
      tryLogin({ database: 'unknown' }),
      tryLogin({ database: 'renamed' }),
      tryLogin({ database: 'dead' }),
      admin('DISABLE closed'),
      tryLogin({ database: 'closed' }),
    ],
    repeatsInLog: true,
  },
  {
    name: 'any database',
    settings: { server_login_retry: 1, query_wait_timeout: 3 },
    steps: [tryLogin({ database: 'second' }), tryLogin({ database: 'nowhere' })],
    repeatsInLog: true,
  },
  {
    name: 'the console',
    settings: { auth_type: 'plain' },
    userlist: { alice: 'secret' },
    steps: [
      logIn('a', { user: ADMIN_USER, password: ADMIN_PASSWORD, database: 'pgbouncer' }),
      bye('a'),
      tryLogin({ user: STATS_USER, password: STATS_PASSWORD, database: 'pgbouncer' }),
      tryLogin({ user: ADMIN_USER, password: 'wrong', database: 'pgbouncer' }),
      tryLogin({ user: 'alice', password: 'secret', database: 'pgbouncer' }),
      tryLogin({ user: 'pgbouncer', password: '', database: 'pgbouncer' }),
      loginUnix('b', { user: ADMIN_USER, password: ADMIN_PASSWORD, database: 'pgbouncer' }),
      loginUnix('c', { user: 'pgbouncer', password: '', database: 'pgbouncer' }),
    ],
  },
  {
    name: 'quiet log',
    settings: { log_connections: 0, log_disconnections: 0, log_pooler_errors: 0 },
    steps: [tryLogin({}), tryLogin({ user: 'nobody' }), tryLogin({ params: { work_mem: '1MB' } })],
  },
  ...(['s_plain', 's_md5', 's_scram'] as const).map(
    (user): Scenario => ({
      name: `server password of ${user}`,
      databases: {
        inline: `{pg} dbname=postgres user=${user} password=secret`,
        wrong: `{pg} dbname=postgres user=${user} password=wrong`,
        none: `{pg} dbname=postgres user=${user}`,
        own: '{pg} dbname=postgres',
      },
      userlist: { [user]: 'secret' },
      settings: { server_login_retry: 1, query_wait_timeout: 3 },
      steps: [
        tryLogin({ database: 'inline' }),
        tryLogin({ database: 'own', user }),
        tryLogin({ database: 'none' }),
        tryLogin({ database: 'wrong' }),
      ],
      repeatsInLog: true,
    }),
  ),
  {
    name: 'SCRAM keys passed through',
    settings: { auth_type: 'scram-sha-256' },
    databases: { own: '{pg} dbname=postgres' },
    userlist: { s_scram: 'secret', s_md5: 'secret' },
    steps: [
      tryLogin({ database: 'own', user: 's_scram', password: 'secret' }),
      tryLogin({ database: 'own', user: 's_md5', password: 'secret' }),
    ],
  },
  {
    name: 'server that rejects',
    databases: { rejected: '{pg} dbname=postgres user=s_reject password=secret' },
    settings: { server_login_retry: 1, query_wait_timeout: 3 },
    steps: [tryLogin({ database: 'rejected' })],
    repeatsInLog: true,
  },
  {
    name: 'auth_query',
    settings: {
      auth_type: 'plain',
      auth_user: 'alice',
      auth_query: 'SELECT name, secret FROM secrets WHERE name = $1',
    },
    userlist: { alice: 'secret' },
    steps: [
      tryLogin({ user: 'bob', password: 'from-query' }),
      tryLogin({ user: 'bob', password: 'wrong' }),
      tryLogin({ user: 'nobody', password: 'from-query' }),
      tryLogin({ user: 'alice', password: 'secret' }),
    ],
    raceInLog: true,
  },
  {
    name: 'auth_query that fails',
    settings: { auth_type: 'plain', auth_user: 'alice', auth_query: 'SELECT broken FROM nothing WHERE name = $1' },
    steps: [tryLogin({ user: 'bob', password: 'from-query' })],
    raceInLog: true,
  },
];
