/*
 * The command line and the config file at the start: usage texts, errors, exit codes, output to stderr.
 */
import type { Scenario, Step } from '../side';
import { command } from '../steps';

/** A valid config whose port is in use. */
const GOOD =
  '[databases]\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {pgport}\nunix_socket_dir =\nauth_type = trust\n';

/** Configs with which the program fails to start, before it listens. */
const badConfigs: [string, string][] = [
  ['empty file', ''],
  ['only comments', '; nothing\n# here\n'],
  ['no section', 'listen_port = 1\n'],
  ['unknown section', '[nonsense]\nkey = value\n'],
  ['unknown setting', '[pgbouncer]\nno_such_setting = 1\n'],
  ['no equals sign', '[pgbouncer]\nlisten_port\n'],
  ['unclosed section', '[pgbouncer\nlisten_port = 1\n'],
  ['bad number', '[pgbouncer]\nlisten_port = many\n'],
  ['bad time', '[pgbouncer]\nquery_timeout = soon\n'],
  ['bad pool_mode', '[pgbouncer]\npool_mode = nonsense\n'],
  ['bad auth_type', '[pgbouncer]\nauth_type = nonsense\n'],
  ['bad database', '[databases]\npostgres = host\n'],
  ['bad database key', '[databases]\npostgres = nonsense=1\n'],
  ['bad database port', '[databases]\npostgres = port=many\n'],
  ['bad database pool_mode', '[databases]\npostgres = pool_mode=nonsense\n'],
  ['reserved database', '[databases]\npgbouncer = host=127.0.0.1\n'],
  ['unclosed quote', "[databases]\npostgres = password='open\n"],
  ['bad user key', '[users]\nalice = nonsense=1\n'],
  ['bad user pool_mode', '[users]\nalice = pool_mode=nonsense\n'],
  ['missing include', '%include /does/not/exist.ini\n'],
  ['include without a name', '%include\n'],
  ['unknown directive', '%nonsense\n'],
  ['include of itself', '%include {dir}/case.ini\n'],
  ['missing auth_file', `${GOOD}auth_file = /does/not/exist\n`],
  ['port that is taken', GOOD],
  ['bad listen_addr', `${GOOD}listen_addr = not-a-host.invalid\n`],
  ['no listening at all', '[databases]\n[pgbouncer]\nunix_socket_dir =\n'],
  ['missing unix_socket_dir', `${GOOD}listen_addr =\nunix_socket_dir = /does/not/exist\n`],
  ['long unix_socket_dir', `${GOOD}listen_addr =\nunix_socket_dir = /${'long/'.repeat(30)}\n`],
  ['missing logfile folder', `${GOOD}logfile = /does/not/exist/log\n`],
  ['missing pidfile folder', `${GOOD}listen_addr =\npidfile = /does/not/exist/pid\n`],
  ['unknown user', `${GOOD}user = no_such_user_here\n`],
];

const configs: Step[] = badConfigs.map(([text, ini]) => command(['{ini}'], ini, { text }));

export const cli: Scenario[] = [
  {
    name: 'usage',
    pooler: false,
    steps: [
      command(['--help']),
      command(['-h']),
      command(['--version']),
      command(['-V']),
      command([]),
      command(['-x']),
      command(['--nonsense']),
      command(['--ver']),
      command(['-u']),
      command(['--user']),
      command(['--quiet=yes', 'a.ini']),
      command(['one.ini', 'two.ini']),
      command(['-dvvx', 'a.ini']),
      command(['/does/not/exist.ini']),
      command(['-q', '/does/not/exist.ini']),
      command(['-v', '/does/not/exist.ini']),
      command(['-d', '/does/not/exist.ini']),
      command(['/']),
    ],
  },
  { name: 'config files', pooler: false, steps: configs },
  {
    name: 'who runs it',
    pooler: false,
    steps: [
      command(['{ini}'], GOOD, { asSelf: true, text: 'as the user of the comparison (root is refused)' }),
      command(['-u', 'no_such_user_here', '{ini}'], GOOD, { asSelf: true, text: 'as an unknown user' }),
    ],
  },
  {
    name: 'daemon',
    pooler: false,
    steps: [
      command(['-d', '{ini}'], GOOD, { text: '-d without a pidfile' }),
      command(['-d', '{ini}'], `${GOOD}pidfile = {dir}/pid\n`, { text: '-d without a logfile' }),
      command(['-d', '{ini}'], `${GOOD}pidfile = {dir}/pid\nlogfile = {dir}/log\n`, {
        text: '-d on a port that is taken',
      }),
    ],
  },
];
