/*
 * The config floor: settings, ini syntax, connect strings, the loader, auth_file, and the files in etc/. What is
 * expected here is what PgBouncer 1.25 does, except where a test's name says otherwise.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, beforeEach, describe, it } from 'node:test';
import { logState, resetLogging } from '../src/core/base/log';
import { loadAuthFile, requiresAuthFile, usersFileChanged } from '../src/core/config/authfile';
import { parseConnstr } from '../src/core/config/connstr';
import { applySettings, loadConfigFile, type ParsedConfig, parseDatabase } from '../src/core/config/loader';
import {
  AuthType,
  cf,
  configForEach,
  findSetting,
  getConfigParam,
  LoadBalanceHosts,
  PoolMode,
  SetResult,
  SettingType,
  SslMode,
  setConfigLoaded,
  setConfigParam,
  settingHooks,
  settingsTable,
} from '../src/core/config/settings';
import { unbuiltSettingNames, warnUnbuiltSettings } from '../src/core/config/unbuilt';
import {
  atoi,
  atoiSecondsUsec,
  formatG,
  formatTimeUsec,
  parseInt32,
  parseTimeUsec,
  parseUint32,
} from '../src/core/config/values';

const dir = mkdtempSync(join(tmpdir(), 'tsbouncer-config-'));
const logPath = join(dir, 'log');

/** Runs something and returns the messages it logged at WARNING and above, each as 'LEVEL text'. */
function logged(action: () => void): string[] {
  writeFileSync(logPath, '');
  logState.quiet = true;
  logState.logfile = logPath;
  resetLogging();
  try {
    action();
  } finally {
    logState.quiet = false;
    logState.logfile = null;
    resetLogging();
  }
  const lines = readFileSync(logPath, 'latin1').split('\n');
  return lines.filter((line) => line !== '').map((line) => line.replace(/^.*?\] /, ''));
}

let fileCount = 0;

function write(text: string, name = `f${++fileCount}.ini`): string {
  const path = join(dir, name);
  writeFileSync(path, Buffer.from(text, 'latin1'));
  return path;
}

function load(text: string): ParsedConfig {
  let parsed: ParsedConfig | null = null;
  const path = write(text);
  const messages = logged(() => {
    parsed = loadConfigFile(path);
  });
  assert.notEqual(parsed, null, messages.join('\n'));
  return parsed as unknown as ParsedConfig;
}

/** Loads a bad file and returns its messages, with the file's path as FILE. */
function loadBad(text: string): string[] {
  const path = write(text);
  const messages = logged(() => assert.equal(loadConfigFile(path), null));
  return messages.map((message) => message.replaceAll(path, 'FILE'));
}

function toDefaults(): void {
  setConfigLoaded(false);
  settingHooks.onSettingChanged = null;
  const fields = cf as Record<string, unknown>;
  for (const setting of settingsTable) {
    if (setting.def !== null) setConfigParam(setting.name, setting.def);
    else fields[setting.field] = setting.type === SettingType.INT ? 0 : null;
  }
}

beforeEach(toDefaults);
afterEach(toDefaults);
after(() => rmSync(dir, { recursive: true, force: true }));

/** name, value as shown, default as shown, changeable: SHOW CONFIG of a process that was told nothing. */
const SHOW_CONFIG = `
admin_users||yes
application_name_add_host|0|yes
auth_dbname|-|yes
auth_file|-|yes
auth_hba_file||yes
auth_ident_file|-|yes
auth_ldap_options|-|yes
auth_query|SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL ELSE rolpassword END FROM pg_authid WHERE rolname=$1 AND rolcanlogin|yes
auth_type|md5|yes
auth_user|-|yes
autodb_idle_timeout|3600|yes
cancel_wait_timeout|10|yes
client_idle_timeout|0|yes
client_login_timeout|60|yes
client_tls13_ciphers|-|yes
client_tls_ca_file||yes
client_tls_cert_file||yes
client_tls_ciphers|default|yes
client_tls_dheparams|auto|yes
client_tls_ecdhcurve|auto|yes
client_tls_key_file||yes
client_tls_protocols|secure|yes
client_tls_sslmode|disable|yes
conffile|-|yes
default_pool_size|20|yes
disable_pqexec|0|no
dns_max_ttl|15|yes
dns_nxdomain_ttl|15|yes
dns_zone_check_period|0|yes
idle_transaction_timeout|0|yes
ignore_startup_parameters||yes
job_name|pgbouncer|no
listen_addr||no
listen_backlog|128|no
listen_port|6432|no
log_connections|1|yes
log_disconnections|1|yes
log_pooler_errors|1|yes
log_stats|1|yes
logfile||yes
login_notify_message||yes
max_client_conn|100|yes
max_db_client_connections|0|yes
max_db_connections|0|yes
max_packet_size|2147483647|yes
max_prepared_statements|200|yes
max_user_client_connections|0|yes
max_user_connections|0|yes
min_pool_size|0|yes
peer_id|0|yes
pidfile||no
pkt_buf|4096|no
pool_mode|session|yes
pool_idle_timeout|0|yes
query_timeout|0|yes
query_wait_notify|5|yes
query_wait_timeout|120|yes
reserve_pool_size|0|yes
reserve_pool_timeout|5|yes
resolv_conf||no
sbuf_loopcnt|5|yes
scram_iterations|4096|yes
server_check_delay|30|yes
server_check_query|<empty>|yes
server_connect_timeout|15|yes
server_fast_close|0|yes
server_idle_timeout|600|yes
server_lifetime|3600|yes
server_login_retry|15|yes
server_reset_query|DISCARD ALL|yes
server_reset_query_always|0|yes
server_round_robin|0|yes
server_tls13_ciphers|-|yes
server_tls_ca_file||yes
server_tls_cert_file||yes
server_tls_ciphers|default|yes
server_tls_key_file||yes
server_tls_protocols|secure|yes
server_tls_sslmode|prefer|yes
so_reuseport|0|no
stats_period|60|yes
stats_users||yes
suspend_timeout|10|yes
syslog|0|yes
syslog_facility|daemon|yes
syslog_ident|pgbouncer|yes
tcp_defer_accept|${process.platform === 'linux' ? 1 : 0}|yes
tcp_keepalive|1|yes
tcp_keepcnt|0|yes
tcp_keepidle|0|yes
tcp_keepintvl|0|yes
tcp_socket_buffer|0|yes
tcp_user_timeout|0|yes
track_extra_parameters|IntervalStyle|no
transaction_timeout|0|yes
unix_socket_dir|/tmp|no
unix_socket_group||no
unix_socket_mode|511|no
user|-|no
verbose|0|yes
`;

describe('settings', () => {
  it('stand at their defaults, in the order of SHOW CONFIG', () => {
    const shown: string[] = [];
    configForEach((name, value, _def, changeable) => {
      shown.push(`${name}|${value ?? '-'}|${changeable ? 'yes' : 'no'}`);
    });
    assert.deepEqual(shown, SHOW_CONFIG.trim().split('\n'));
  });

  it('show the default as the table spells it', () => {
    const defaults = new Map<string, string | null>();
    configForEach((name, _value, def) => defaults.set(name, def));
    assert.equal(defaults.get('unix_socket_mode'), '0777');
    assert.equal(defaults.get('verbose'), null);
    assert.equal(defaults.get('listen_addr'), '');
  });

  it('each have a field of their own, and each field a setting', () => {
    const fields = settingsTable.map((setting) => setting.field).sort();
    assert.deepEqual(fields, Object.keys(cf).sort());
  });

  it('are named after the ini file in camel case', () => {
    for (const { name, field } of settingsTable) {
      const camel = name.replace(/_(.)/g, (_all, letter: string) => letter.toUpperCase());
      assert.equal(field, name === 'conffile' ? 'configFile' : camel);
    }
  });

  it('hold times in usec and names as numbers', () => {
    assert.equal(cf.serverLifetime, 3600_000_000);
    assert.equal(cf.queryWaitNotify, 5);
    assert.equal(cf.authType, AuthType.MD5);
    assert.equal(cf.poolMode, PoolMode.SESSION);
    assert.equal(cf.serverTlsSslmode, SslMode.PREFER);
    assert.equal(cf.unixSocketMode, 0o777);
  });

  it('take and show a value of their type, every one', () => {
    for (const { name, field, type, map } of settingsTable) {
      switch (type) {
        case SettingType.STR:
        case SettingType.AUTHDB:
          for (const text of ['x', '', 'caf\xc3\xa9 =;# \'"']) {
            assert.equal(setConfigParam(name, text), SetResult.OK, name);
            assert.equal(cf[field], text);
            assert.equal(getConfigParam(name), text);
          }
          break;
        case SettingType.INT:
        case SettingType.UINT:
        case SettingType.DEFER:
          for (const [text, value] of [
            ['17', 17],
            ['0x1F', 31],
            ['017', 15],
          ] as const) {
            assert.equal(setConfigParam(name, text), SetResult.OK, name);
            assert.equal(cf[field], value);
            assert.equal(getConfigParam(name), String(value));
          }
          for (const bad of ['', ' ', 'x', '1x', '1 ', '1.5', '08', '0x', '99999999999']) {
            assert.equal(setConfigParam(name, bad), SetResult.INVALID, `${name} = ${bad}`);
            assert.equal(cf[field], 15);
          }
          break;
        case SettingType.TIME:
          assert.equal(setConfigParam(name, '2.5'), SetResult.OK, name);
          assert.equal(cf[field], 2_500_000);
          assert.equal(getConfigParam(name), '2.5');
          for (const bad of ['', '-1', 'x', '1s', '1 ', 'inf', 'nan', '1e400']) {
            assert.equal(setConfigParam(name, bad), SetResult.INVALID, `${name} = ${bad}`);
            assert.equal(cf[field], 2_500_000);
          }
          break;
        case SettingType.LOOKUP:
          for (const row of map ?? []) {
            assert.equal(setConfigParam(name, row.name.toUpperCase()), SetResult.OK, name);
            assert.equal(cf[field], row.value);
            assert.equal(getConfigParam(name), row.name);
          }
          for (const bad of ['', '0', 'peer', 'reject', 'inherit', ' md5']) {
            assert.equal(setConfigParam(name, bad), SetResult.INVALID, `${name} = ${bad}`);
          }
          break;
      }
    }
  });

  it('print a value without a name as INVALID', () => {
    cf.authType = AuthType.PEER;
    assert.equal(getConfigParam('auth_type'), 'INVALID');
  });

  it('know the end of an int and of an unsigned int', () => {
    assert.equal(setConfigParam('max_client_conn', '2147483647'), SetResult.OK);
    assert.equal(setConfigParam('max_client_conn', '2147483648'), SetResult.INVALID);
    assert.equal(setConfigParam('max_client_conn', '-2147483648'), SetResult.OK);
    assert.equal(getConfigParam('max_client_conn'), '-2147483648');
    assert.equal(setConfigParam('max_packet_size', '4294967295'), SetResult.OK);
    assert.equal(setConfigParam('max_packet_size', '4294967296'), SetResult.INVALID);
    assert.equal(setConfigParam('max_packet_size', '-1'), SetResult.OK);
    assert.equal(cf.maxPacketSize, 4294967295);
  });

  it('refuse a peer_id and a pkt_buf that cannot work', () => {
    assert.equal(setConfigParam('peer_id', '16383'), SetResult.OK);
    assert.equal(setConfigParam('peer_id', '16384'), SetResult.INVALID);
    assert.equal(setConfigParam('peer_id', '-1'), SetResult.INVALID);
    assert.equal(setConfigParam('pkt_buf', '0'), SetResult.INVALID);
    assert.equal(setConfigParam('pkt_buf', '1'), SetResult.OK);
  });

  it('refuse an unknown name and say so', () => {
    const messages = logged(() => assert.equal(setConfigParam('Pool_Mode', 'session'), SetResult.UNKNOWN));
    assert.deepEqual(messages, ['ERROR unknown parameter: pgbouncer/Pool_Mode']);
    assert.equal(getConfigParam('service_name'), null);
    assert.equal(findSetting('nosuch'), null);
  });

  it('refuse the console as auth_dbname and say so', () => {
    const messages = logged(() => assert.equal(setConfigParam('auth_dbname', 'pgbouncer'), SetResult.INVALID));
    assert.deepEqual(messages, ['ERROR cannot use the reserved "pgbouncer" database as an auth_dbname']);
    assert.equal(cf.authDbname, null);
  });

  it('stay fixed in a running process where they must, whatever the value', () => {
    setConfigLoaded(true);
    assert.equal(setConfigParam('listen_port', '7000'), SetResult.READ_ONLY);
    assert.equal(setConfigParam('listen_port', 'junk'), SetResult.READ_ONLY);
    assert.equal(cf.listenPort, 6432);
    assert.equal(setConfigParam('max_client_conn', '7'), SetResult.OK);
    assert.equal(cf.maxClientConn, 7);
  });

  it('tell the listener of a change, and only of a change', () => {
    const heard: string[] = [];
    settingHooks.onSettingChanged = (name) => heard.push(name);
    setConfigParam('verbose', '2');
    setConfigParam('verbose', '2');
    setConfigParam('verbose', 'x');
    // only on or off counts here
    setConfigParam('tcp_defer_accept', '45');
    setConfigParam('tcp_defer_accept', '0');
    setConfigParam('tcp_defer_accept', '1');
    const deferChanges = process.platform === 'linux' ? 2 : 3;
    assert.deepEqual(heard, ['verbose', ...new Array<string>(deferChanges).fill('tcp_defer_accept')]);
  });
});

describe('values', () => {
  it('read integers as strtol with base 0', () => {
    const cases: [string, number | null][] = [
      ['0', 0],
      ['-0', 0],
      ['+5', 5],
      [' \t7', 7],
      ['-0x10', -16],
      ['0X1f', 31],
      ['0777', 511],
      ['09', null],
      ['0x', null],
      ['--1', null],
      ['- 1', null],
      ['1e3', null],
      ['1\0', null],
    ];
    for (const [text, value] of cases) assert.equal(parseInt32(text), value, JSON.stringify(text));
    assert.equal(parseUint32('-2147483648'), 2147483648);
    assert.equal(parseUint32('-2147483649'), null);
  });

  it('read times as strtod', () => {
    const cases: [string, number | null][] = [
      ['0', 0],
      ['-0', 0],
      ['+1', 1e6],
      [' 1', 1e6],
      ['1.', 1e6],
      ['.5', 500_000],
      ['1e2', 1e8],
      ['1E-3', 1000],
      ['0x10', 16e6],
      ['0.0000001', 0],
      ['0.1234567', 123456],
      ['1e300', null],
      ['.', null],
      ['1e', null],
      ['1,5', null],
      ['-0.1', null],
      ['infinity', null],
    ];
    for (const [text, value] of cases) assert.equal(parseTimeUsec(text), value, JSON.stringify(text));
  });

  it('print times as %g', () => {
    const cases: [number, string][] = [
      [0, '0'],
      [1, '1e-06'],
      [99, '9.9e-05'],
      [100, '0.0001'],
      [1500, '0.0015'],
      [500_000, '0.5'],
      [3600e6, '3600'],
      [100_000e6, '100000'],
      [999_999e6, '999999'],
      [999_999.5e6, '1e+06'],
      [1e12, '1e+06'],
      [1234567e6, '1.23457e+06'],
      [12345.25e6, '12345.2'],
      [12345.75e6, '12345.8'],
      [12345.35e6, '12345.4'],
      [1.1e6, '1.1'],
      [0.1e6, '0.1'],
    ];
    for (const [usec, text] of cases) assert.equal(formatTimeUsec(usec), text);
    assert.equal(formatG(-2.5), '-2.5');
    assert.equal(formatG(1.8446744073709552e19), '1.84467e+19');
    assert.equal(formatG(0.00012345678), '0.000123457');
  });

  it('read numbers in connect strings as atoi', () => {
    const cases: [string, number][] = [
      ['5', 5],
      [' -5x', -5],
      ['+7', 7],
      ['x', 0],
      ['', 0],
      ['0x10', 0],
      ['010', 10],
      ['4294967297', 1],
      ['99999999999999999999', -1],
    ];
    for (const [text, value] of cases) assert.equal(atoi(text), value, JSON.stringify(text));
    assert.equal(atoiSecondsUsec('3'), 3e6);
    assert.equal(atoiSecondsUsec('1.9'), 1e6);
    assert.ok(atoiSecondsUsec('-1') > 1e19, 'a negative time never comes');
  });
});

describe('ini files', () => {
  it('may be laid out freely', () => {
    const parsed = load(
      '\n  ; comment\n# comment\n\t[pgbouncer]\nlisten_addr=a , b ;c #d  \r\n\n  pool_mode\t = \ttransaction\nadmin_users =\n' +
        'stats_users = last',
    );
    assert.deepEqual(
      parsed.settings.map((line) => [line.name, line.value, line.line]),
      [
        ['listen_addr', 'a , b ;c #d', 5],
        ['pool_mode', 'transaction', 7],
        ['admin_users', '', 8],
        ['stats_users', 'last', 9],
      ],
    );
  });

  it('keep quotes and backslashes in values', () => {
    const parsed = load(`[pgbouncer]\nauth_query = SELECT '\\' "x"\n`);
    assert.equal(parsed.settings[0]?.value, `SELECT '\\' "x"`);
  });

  it('pass bytes through', () => {
    const parsed = load('[pgbouncer]\nadmin_users = \xff\xc3\xa9\xa0\n');
    assert.equal(parsed.settings[0]?.value, '\xff\xc3\xa9\xa0');
  });

  it('end at a NUL byte', () => {
    assert.equal(load('[pgbouncer]\nverbose = 1\n\0 broken').settings.length, 1);
  });

  it('take other keys in quotes, also in double quotes as documented', () => {
    const parsed = load(`[databases]\na.b-c_1 =\n'my db' =\n"it's ""mine""" =\n[pgbouncer]\n`);
    assert.deepEqual(
      parsed.databases.map((db) => db.name),
      ['a.b-c_1', 'my db', 'it\'s "mine"'],
    );
  });

  it('may go on after a section in the same line', () => {
    assert.equal(load('[pgbouncer] verbose = 1').settings[0]?.value, '1');
  });

  const syntaxErrors: [string, string, number][] = [
    ['a key without =', '[pgbouncer]\n\nverbose\n', 3],
    ['a strange key', '[pgbouncer]\nver$bose = 1\n', 2],
    ['an open section', '[pgbouncer\nverbose = 1]\n', 1],
    ['an open quote', "[databases]\n'db = x\n'\n", 2],
    ['an open double quote', '[databases]\n"db = x\n"\n', 2],
    ['an empty quoted key', "[databases]\n'' = x\n", 2],
    ['%include without a name', '[pgbouncer]\n%include\n', 2],
    ['junk after a section', '[pgbouncer] junk\n', 1],
  ];
  for (const [what, text, line] of syntaxErrors) {
    it(`name the line of ${what}`, () => {
      assert.deepEqual(loadBad(text), [`ERROR syntax error in configuration (FILE:${line}), stopping loading`]);
    });
  }

  it('name the line of a bad value, also with blank lines after it', () => {
    assert.deepEqual(loadBad('[pgbouncer]\nverbose = 1\nlisten_port = x\n\n\n; end\n'), [
      'ERROR invalid value "x" for parameter listen_port in configuration (FILE:3)',
    ]);
  });

  it('name the line of an unknown setting and of an unknown section', () => {
    assert.deepEqual(loadBad('[pgbouncer]\nnosuch = 1\n'), [
      'ERROR unknown parameter: pgbouncer/nosuch',
      'ERROR invalid value "1" for parameter nosuch in configuration (FILE:2)',
    ]);
    assert.deepEqual(loadBad('[pgbouncer]\n= 1\n')[0], 'ERROR unknown parameter: pgbouncer/');
    assert.deepEqual(loadBad('[pgbouncer]\n\n[nosuch]\n'), [
      'ERROR fill_defaults fail',
      'ERROR invalid section "nosuch" in configuration (FILE:3)',
    ]);
  });

  it('need a section, and the main one', () => {
    assert.deepEqual(loadBad('verbose = 1\n'), [
      'ERROR load_init_file: value without section: verbose',
      'ERROR invalid value "1" for parameter verbose in configuration (FILE:1)',
    ]);
    assert.deepEqual(loadBad('[databases]\na =\n'), ['ERROR load_init_file: main section missing from config file']);
    assert.deepEqual(loadBad(''), ['ERROR load_init_file: main section missing from config file']);
  });

  it('must exist', () => {
    const path = join(dir, 'nosuch.ini');
    const messages = logged(() => assert.equal(loadConfigFile(path), null));
    assert.equal(messages.length, 1);
    assert.match(messages[0] as string, /^ERROR could not load file ".*\/nosuch\.ini": no such file or directory$/i);
  });

  it('must be files', () => {
    const messages = logged(() => assert.equal(loadConfigFile(dir), null));
    assert.match(messages[0] as string, /^ERROR could not load file ".*": .*directory$/i);
  });
});

describe('%include', () => {
  it('reads a file in place, section and all', () => {
    const inner = write('verbose = 3\n[databases]\ninner =\n', 'inner one.ini');
    const parsed = load(`[pgbouncer]\nverbose = 1\n%include \t${inner} \t\nouter =\n`);
    assert.deepEqual(
      parsed.settings.map((line) => [line.name, line.value, line.file, line.line]),
      [['verbose', '3', inner, 1]],
    );
    assert.deepEqual(
      parsed.databases.map((db) => db.name),
      ['inner', 'outer'],
    );
  });

  it('names every file on the way to an error', () => {
    const inner = write('\nlisten_port = x\n', 'bad.ini');
    assert.deepEqual(loadBad(`[pgbouncer]\n\n%include ${inner}\n`), [
      `ERROR invalid value "x" for parameter listen_port in configuration (${inner}:2)`,
      'ERROR error processing include file in configuration (FILE:3), stopping loading',
    ]);
  });

  it('of a missing file is an error', () => {
    const messages = loadBad('[pgbouncer]\n%include /nonexistent/x.ini\n');
    assert.match(messages[0] as string, /^ERROR could not load file "\/nonexistent\/x\.ini": no such file/i);
    assert.equal(messages[1], 'ERROR error processing include file in configuration (FILE:2), stopping loading');
  });

  it('goes ten deep and no deeper', () => {
    const chain = (depth: number): string => {
      let path = write('verbose = 5\n');
      for (let i = 1; i < depth; i++) path = write(`%include ${path}\n`);
      return `[pgbouncer]\n%include ${path}\n`;
    };
    assert.equal(load(chain(10)).settings[0]?.value, '5');
    const messages = loadBad(chain(11));
    assert.match(messages[0] as string, /^ERROR include nesting level too deep \(.*:1\), stopping loading$/);
    assert.equal(messages.length, 11);
    const self = join(dir, 'self.ini');
    write(`[pgbouncer]\n%include ${self}\n`, 'self.ini');
    assert.equal(logged(() => assert.equal(loadConfigFile(self), null)).length, 11);
  });
});

describe('connect strings', () => {
  const good: [string, [string, string][]][] = [
    ['', []],
    ['   ', []],
    ['a=1', [['a', '1']]],
    [
      '  a = 1  b=2 ',
      [
        ['a', '1'],
        ['b', '2'],
      ],
    ],
    [`a='x y'`, [['a', 'x y']]],
    [
      `a='it''s' b=''''`,
      [
        ['a', "it's"],
        ['b', "'"],
      ],
    ],
    [`a=x'y`, [['a', "x'y"]]],
    ['a=b=c', [['a', 'b=c']]],
    ['a=x\ty', [['a', 'x\ty']]],
    [
      `a='1' b='2'`,
      [
        ['a', '1'],
        ['b', '2'],
      ],
    ],
    // one byte after a closing quote is taken for a space
    [
      `a='1'xb=2`,
      [
        ['a', '1'],
        ['b', '2'],
      ],
    ],
    [
      'a=1 a=2',
      [
        ['a', '1'],
        ['a', '2'],
      ],
    ],
    ['a=\xc3\xa9', [['a', '\xc3\xa9']]],
  ];
  for (const [text, pairs] of good) {
    it(`splits ${JSON.stringify(text)}`, () => assert.deepEqual(parseConnstr(text), pairs));
  }
  for (const text of ['a', 'a b=1', '=1', 'a=', 'a= ', "a=''", "a='x", "a='x''", 'a=1 b', "a='", '\ta']) {
    it(`refuses ${JSON.stringify(text)}`, () => assert.equal(parseConnstr(text), null));
  }
});

describe('[databases]', () => {
  it('have the defaults of the original', () => {
    assert.deepEqual(load('[databases]\nplain =\n[pgbouncer]\n').databases, [
      {
        name: 'plain',
        host: null,
        port: 5432,
        dbname: 'plain',
        poolSize: -1,
        minPoolSize: -1,
        resPoolSize: -1,
        poolMode: PoolMode.INHERIT,
        maxDbConnections: -1,
        maxDbClientConnections: -1,
        serverLifetime: 0,
        connectQuery: null,
        authUser: null,
        authQuery: null,
        authDbname: null,
        user: null,
        password: null,
        loadBalanceHosts: LoadBalanceHosts.ROUND_ROBIN,
        queryWaitTimeout: 0,
        queryWaitTimeoutSet: false,
        startupParams: [['database', 'plain']],
        connstr: '',
      },
    ]);
  });

  it('take every parameter', () => {
    const connstr =
      "application_name=app timezone='Europe/Berlin' datestyle=ISO client_encoding=LATIN1 dbname=real host=h1,h2 " +
      "port=5433 user=u password='p''w d' auth_user=au auth_dbname=ad auth_query='SELECT 1' pool_size=1 min_pool_size=2 " +
      'reserve_pool_size=3 query_wait_timeout=4 max_db_connections=5 max_db_client_connections=6 server_lifetime=7 ' +
      "load_balance_hosts=DISABLE pool_mode=statement connect_query='SET a = 1'";
    const parsed = load(`[databases]\ndb = ${connstr}\n[pgbouncer]\n`);
    assert.deepEqual(parsed.databases[0], {
      name: 'db',
      host: 'h1,h2',
      port: 5433,
      dbname: 'real',
      poolSize: 1,
      minPoolSize: 2,
      resPoolSize: 3,
      poolMode: PoolMode.STMT,
      maxDbConnections: 5,
      maxDbClientConnections: 6,
      serverLifetime: 7e6,
      connectQuery: 'SET a = 1',
      authUser: 'au',
      authQuery: 'SELECT 1',
      authDbname: 'ad',
      user: 'u',
      password: "p'w d",
      loadBalanceHosts: LoadBalanceHosts.DISABLE,
      queryWaitTimeout: 4e6,
      queryWaitTimeoutSet: true,
      startupParams: [
        ['database', 'real'],
        ['client_encoding', 'LATIN1'],
        ['datestyle', 'ISO'],
        ['timezone', 'Europe/Berlin'],
        ['application_name', 'app'],
      ],
      connstr,
    });
    assert.equal(parsed.anyDatabaseLevelClientTimeoutSet, true);
    assert.equal(parseDatabase('x', 'reserve_pool=9')?.resPoolSize, 9);
  });

  it('tell a query_wait_timeout of 0 from none', () => {
    const [db] = load('[databases]\ndb = query_wait_timeout=0\n[pgbouncer]\n').databases;
    assert.deepEqual([db?.queryWaitTimeout, db?.queryWaitTimeoutSet], [0, true]);
  });

  it('keep the later of two lines', () => {
    const parsed = load('[databases]\na = port=1\nb =\na = port=2\n[pgbouncer]\n');
    assert.deepEqual(
      parsed.databases.map((db) => [db.name, db.port]),
      [
        ['b', 5432],
        ['a', 2],
      ],
    );
  });

  it('know "*" as the line for all others', () => {
    const parsed = load('[databases]\n* = host=h pool_size=3\n[pgbouncer]\n');
    assert.deepEqual(parsed.databases, []);
    const made = parseDatabase('asked', parsed.autodb?.connstr as string);
    assert.deepEqual([made?.host, made?.dbname, made?.poolSize], ['h', 'asked', 3]);
    assert.equal(load('[pgbouncer]\n').autodb, null);
  });

  const long = 'x'.repeat(64);
  const bad: [string, string, string[]][] = [
    ['pgbouncer', '', ['ERROR database name "pgbouncer" is reserved']],
    ['db', 'host', ['ERROR syntax error in connection string']],
    ['db', "password=''", ['ERROR syntax error in connection string']],
    ['db', 'hots=h', ['ERROR unrecognized connection parameter: hots']],
    ['db', 'port=0', ['ERROR invalid port: 0']],
    ['db', 'port=x', ['ERROR invalid port: x']],
    ['db', 'port=65536', ['ERROR invalid port: 65536']],
    ['db', 'port=-1', ['ERROR invalid port: -1']],
    ['db', 'pool_mode=inherit', ['ERROR invalid pool mode: inherit']],
    ['db', 'load_balance_hosts=random', ['ERROR invalid load_balance_hosts: random']],
    ['db', `user=${long}${long}`, ['ERROR user name too long in connection string']],
    [long, '', [`WARNING too long db name: ${long}`, 'ERROR cannot create database, no memory?']],
    // the original finds this out when a client comes
    ['*', 'hots=h', ['ERROR unrecognized connection parameter: hots']],
  ];
  for (const [name, connstr, messages] of bad) {
    it(`refuse ${name.slice(0, 12)} = ${connstr.slice(0, 32)}`, () => {
      assert.deepEqual(loadBad(`[databases]\nok =\n${name} = ${connstr}\n[pgbouncer]\n`), [
        ...messages,
        `ERROR invalid value "${connstr}" for parameter ${name} in configuration (FILE:3)`,
      ]);
    });
  }

  it('may have names of 63 bytes', () => {
    const name = 'x'.repeat(63);
    assert.equal(load(`[databases]\n${name} =\n[pgbouncer]\n`).databases[0]?.name, name);
  });
});

describe('[users]', () => {
  it('have the defaults of the original and take every parameter', () => {
    const parsed = load(
      '[users]\na =\nb = pool_mode=Transaction pool_size=1 reserve_pool_size=2 max_user_connections=3 ' +
        'max_user_client_connections=4 transaction_timeout=5 idle_transaction_timeout=6 query_timeout=7 ' +
        'query_wait_timeout=8 client_idle_timeout=9\n[pgbouncer]\n',
    );
    assert.deepEqual(parsed.users, [
      {
        name: 'a',
        poolMode: PoolMode.INHERIT,
        poolSize: -1,
        resPoolSize: -1,
        maxUserConnections: -1,
        maxUserClientConnections: -1,
        transactionTimeout: 0,
        idleTransactionTimeout: 0,
        queryTimeout: 0,
        queryWaitTimeout: 0,
        queryWaitTimeoutSet: false,
        clientIdleTimeout: 0,
      },
      {
        name: 'b',
        poolMode: PoolMode.TX,
        poolSize: 1,
        resPoolSize: 2,
        maxUserConnections: 3,
        maxUserClientConnections: 4,
        transactionTimeout: 5e6,
        idleTransactionTimeout: 6e6,
        queryTimeout: 7e6,
        queryWaitTimeout: 8e6,
        queryWaitTimeoutSet: true,
        clientIdleTimeout: 9e6,
      },
    ]);
    assert.deepEqual([parsed.anyUserLevelTimeoutSet, parsed.anyUserLevelClientTimeoutSet], [true, true]);
  });

  it('say whether the janitor has anything to look for', () => {
    const flags = (line: string): boolean[] => {
      const parsed = load(`[users]\nu = ${line}\n[pgbouncer]\n`);
      return [parsed.anyUserLevelTimeoutSet, parsed.anyUserLevelClientTimeoutSet];
    };
    assert.deepEqual(flags('pool_size=3'), [false, false]);
    assert.deepEqual(flags('query_timeout=3'), [true, false]);
    assert.deepEqual(flags('query_wait_timeout=0'), [true, false]);
    assert.deepEqual(flags('client_idle_timeout=3'), [false, true]);
  });

  const bad: [string, string][] = [
    ['pool_mode', 'ERROR syntax error in user settings'],
    ['pool_mode=x', 'ERROR invalid pool mode: x'],
    ['min_pool_size=1', 'ERROR unrecognized user parameter: min_pool_size'],
  ];
  for (const [connstr, message] of bad) {
    it(`refuse ${connstr}`, () => {
      assert.deepEqual(loadBad(`[users]\nu = ${connstr}\n[pgbouncer]\n`), [
        message,
        `ERROR invalid value "${connstr}" for parameter u in configuration (FILE:2)`,
      ]);
    });
  }

  it('refuse a name that does not fit', () => {
    const name = 'x'.repeat(128);
    assert.equal(loadBad(`[users]\n${name} =\n`)[0], `ERROR user name too long in configuration: ${name}`);
  });
});

describe('[peers]', () => {
  it('need an id and a host', () => {
    const parsed = load('[peers]\n1 = host=/tmp/one\n65535 = host=h port=7 pool_size=9\n01 = host=two\n[pgbouncer]\n');
    assert.deepEqual(parsed.peers, [
      { id: 65535, host: 'h', port: 7, poolSize: 9 },
      { id: 1, host: 'two', port: 6432, poolSize: -1 },
    ]);
  });

  const idError = 'ERROR ids of peers must be a number larger than 0 and at most 65536';
  const bad: [string, string, string][] = [
    ['0', 'host=h', idError],
    ['65536', 'host=h', idError],
    ['-1', 'host=h', idError],
    ['1.5', 'host=h', idError],
    ['one', 'host=h', idError],
    ['7', '', 'ERROR host was not provided for peer 7'],
    ['7', 'port=1', 'ERROR host was not provided for peer 7'],
    ['7', 'host=h port=x', 'ERROR invalid port: x'],
    ['7', 'host=h user=u', 'ERROR unrecognized connection parameter: user'],
    ['7', 'host', 'ERROR syntax error in connection string'],
  ];
  for (const [id, connstr, message] of bad) {
    it(`refuse ${id} = ${connstr}`, () => {
      assert.deepEqual(loadBad(`[pgbouncer]\n[peers]\n${id} = ${connstr}\n`), [
        message,
        `ERROR invalid value "${connstr}" for parameter ${id} in configuration (FILE:3)`,
      ]);
    });
  }
});

describe('loading and reloading', () => {
  it('applies nothing before applySettings', () => {
    const parsed = load('[pgbouncer]\nmax_client_conn = 7\n');
    assert.equal(cf.maxClientConn, 100);
    applySettings(parsed, true);
    assert.equal(cf.maxClientConn, 7);
  });

  it('changes nothing when the last line is bad', () => {
    applySettings(load('[pgbouncer]\nmax_client_conn = 7\n'), true);
    loadBad('[pgbouncer]\nmax_client_conn = 8\n[databases]\nnew =\n[pgbouncer]\npool_mode = x\n');
    assert.equal(cf.maxClientConn, 7);
  });

  it('goes back to the default without the line, even after SET', () => {
    applySettings(load('[pgbouncer]\nmax_client_conn = 7\npool_mode = transaction\n'), true);
    setConfigParam('default_pool_size', '99');
    applySettings(load('[pgbouncer]\npool_mode = transaction\n'), false);
    assert.deepEqual([cf.maxClientConn, cf.defaultPoolSize, cf.poolMode], [100, 20, PoolMode.TX]);
  });

  it('keeps the value of a setting without a default', () => {
    cf.configFile = 'x.ini';
    cf.verbose = 2;
    applySettings(load('[pgbouncer]\nauth_file = users.txt\nauth_user = lookup\n'), true);
    assert.deepEqual([cf.configFile, cf.verbose], ['x.ini', 2]);
    applySettings(load('[pgbouncer]\nverbose = 1\n'), false);
    assert.deepEqual([cf.authFile, cf.authUser, cf.verbose], ['users.txt', 'lookup', 1]);
  });

  it('sets what is fixed only the first time', () => {
    const fixed = settingsTable.filter((setting) => setting.noReload);
    assert.deepEqual(
      fixed.map((setting) => setting.name),
      SHOW_CONFIG.trim()
        .split('\n')
        .filter((line) => line.endsWith('|no'))
        .map((line) => line.split('|')[0]),
    );
    const lines = (value: number): string => fixed.map((setting) => `${setting.name} = ${value}\n`).join('');
    applySettings(load(`[pgbouncer]\n${lines(10)}`), true);
    for (const setting of fixed) assert.equal(getConfigParam(setting.name), '10', setting.name);
    // on a reload such lines are not even looked at
    applySettings(load(`[pgbouncer]\n${lines(11)}`), false);
    applySettings(load('[pgbouncer]\nlisten_port = junk\n'), false);
    for (const setting of fixed) assert.equal(getConfigParam(setting.name), '10', setting.name);
  });

  it('refuses bad values of fixed settings the first time', () => {
    assert.deepEqual(loadBad('[pgbouncer]\nlisten_port = junk\n'), [
      'ERROR invalid value "junk" for parameter listen_port in configuration (FILE:2)',
    ]);
  });

  it('starts from the defaults again in a second [pgbouncer]', () => {
    const parsed = load('[pgbouncer]\nmax_client_conn = 7\nauth_user = a\n[databases]\n[pgbouncer]\nlog_stats = 0\n');
    applySettings(parsed, true);
    assert.deepEqual([cf.maxClientConn, cf.logStats, cf.authUser], [100, 0, 'a']);
  });

  it('keeps the later of two lines', () => {
    applySettings(load('[pgbouncer]\nmax_client_conn = 7\nmax_client_conn = 8\n'), true);
    assert.equal(cf.maxClientConn, 8);
  });

  it('tells the listener when all is set', () => {
    const heard: string[] = [];
    settingHooks.onSettingChanged = (name) => heard.push(`${name} ${cf.logfile} ${cf.syslog}`);
    applySettings(load('[pgbouncer]\nlogfile = x\nsyslog = 1\nmax_client_conn = 100\n'), true);
    assert.deepEqual(heard, ['logfile x 1', 'syslog x 1']);
  });

  it('refuses the console as auth_dbname', () => {
    assert.deepEqual(loadBad('[pgbouncer]\nauth_dbname = pgbouncer\n'), [
      'ERROR cannot use the reserved "pgbouncer" database as an auth_dbname',
      'ERROR invalid value "pgbouncer" for parameter auth_dbname in configuration (FILE:2)',
    ]);
  });
});

describe('auth_file', () => {
  const read = (text: string, firstLoad = true): [users: [string, string][] | null, messages: string[]] => {
    const path = write(text);
    let users: ReturnType<typeof loadAuthFile> = null;
    const messages = logged(() => {
      users = loadAuthFile(path, firstLoad);
    });
    const list = users as ReturnType<typeof loadAuthFile>;
    return [list === null ? null : list.map((user) => [user.name, user.passwd]), messages];
  };

  const good: [string, string, [string, string][]][] = [
    ['nothing', '', []],
    ['blank lines and comments', '\n  \n; "x" "y"\n \t"a" "b"\r\n', [['a', 'b']]],
    ['doubled quotes', '"a""b" """"\n', [['a"b', '"']]],
    [
      'an empty password',
      '"a" ""\n"b" "x"\n',
      [
        ['a', ''],
        ['b', 'x'],
      ],
    ],
    ['an empty name', '"" "x"\n', [['', 'x']]],
    [
      'further fields',
      '"a" "b" "c" d\n"e" "f"',
      [
        ['a', 'b'],
        ['e', 'f'],
      ],
    ],
    ['no space between', '"a"x"b"\n', [['a', 'b']]],
    ['bytes', '"\xc3\xa9" "\xff"\n', [['\xc3\xa9', '\xff']]],
    ['a password on the next line', '"a"\n"b"\n', [['a', 'b']]],
    [
      'a name twice',
      '"a" "1"\n"a" "2"\n',
      [
        ['a', '1'],
        ['a', '2'],
      ],
    ],
    ['a text that ends at a NUL', '"a" "1"\n\0x', [['a', '1']]],
    ['names of 127 bytes', `"${'n'.repeat(127)}" "p"`, [['n'.repeat(127), 'p']]],
    ['passwords of 65530 bytes', `"a" "${'p'.repeat(65530)}"`, [['a', 'p'.repeat(65530)]]],
  ];
  for (const [what, text, users] of good) {
    it(`takes ${what}`, () => assert.deepEqual(read(text), [users, []]));
  }

  const broken = 'ERROR broken auth file';
  const bad: [string, string, string][] = [
    ['a bare word', 'b "x"\n', broken],
    ['# as a comment', '# x\n', broken],
    ['an open name', '"b', broken],
    ['no password', '"b"\n', broken],
    ['an open password', '"b" "x\n', broken],
    ['an open password that ends in doubled quotes', '"b" "x""', broken],
    ['a name of 128 bytes', `"${'n'.repeat(128)}" "p"\n`, 'ERROR username too long in auth file'],
    ['a password of 65531 bytes', `"b" "${'p'.repeat(65531)}"\n`, 'ERROR password too long in auth file'],
  ];
  for (const [what, text, message] of bad) {
    it(`ends at ${what}; nothing of it counts on a reload`, () => {
      assert.deepEqual(read(`"a" "1"\n${text}`), [[['a', '1']], [message]]);
      assert.deepEqual(read(`"a" "1"\n${text}`, false), [null, [message]]);
    });
  }

  it('must exist', () => {
    const path = join(dir, 'nosuch.txt');
    const messages = logged(() => assert.equal(loadAuthFile(path, true), null));
    assert.match(messages[0] as string, /^ERROR could not open auth_file .*\/nosuch\.txt: no such file or directory$/i);
  });

  it('is read again only when it changed', () => {
    const path = write('"a" "1"\n', 'users.txt');
    const other = write('"a" "1"\n', 'users2.txt');
    assert.equal(usersFileChanged(null), false);
    assert.equal(usersFileChanged(path), true);
    assert.equal(usersFileChanged(path), false);
    writeFileSync(path, '"a" "22"\n');
    assert.equal(usersFileChanged(path), true, 'size');
    assert.equal(usersFileChanged(path), false);
    utimesSync(path, 1, 1);
    assert.equal(usersFileChanged(path), true, 'time');
    assert.equal(usersFileChanged(path), false);
    assert.equal(usersFileChanged(other), true, 'another file');
    assert.equal(usersFileChanged(path), true);
    rmSync(path);
    assert.equal(usersFileChanged(path), true, 'gone');
    assert.equal(usersFileChanged(path), false, 'still gone');
    write('"a" "1"\n', 'users.txt');
    assert.equal(usersFileChanged(path), true, 'back');
    assert.equal(usersFileChanged(null), false);
    assert.equal(usersFileChanged(path), true, 'set again');
  });

  it('is wanted by all but any and pam', () => {
    assert.equal(requiresAuthFile(AuthType.ANY), false);
    assert.equal(requiresAuthFile(AuthType.PAM), false);
    for (const type of [AuthType.TRUST, AuthType.PLAIN, AuthType.MD5, AuthType.HBA, AuthType.SCRAM_SHA_256]) {
      assert.equal(requiresAuthFile(type), true);
    }
  });
});

describe('settings that are not built yet', () => {
  const warnings = (peers = 0): string[] => logged(() => warnUnbuiltSettings(peers));

  it('are silent at their defaults', () => {
    assert.deepEqual(warnings(), []);
    cf.authIdentFile = '';
    assert.deepEqual(warnings(), []);
  });

  it('each say so when changed', () => {
    for (const name of unbuiltSettingNames) {
      const setting = findSetting(name);
      assert.ok(setting, name);
      const type = setting.type;
      const value = name === 'auth_type' ? 'hba' : type === SettingType.LOOKUP ? 'require' : '7';
      assert.equal(setConfigParam(name, value), SetResult.OK);
      const messages = warnings();
      assert.equal(messages.length, 1, name);
      assert.ok(messages[0]?.startsWith(`WARNING setting has no effect yet: ${name} = ${value} (`), messages[0]);
      toDefaults();
    }
  });

  it('are silent about what does work', () => {
    for (const [name, value] of [
      ['auth_type', 'scram-sha-256'],
      ['auth_type', 'any'],
      ['auth_query', 'SELECT 1'],
      ['auth_user', 'u'],
      ['server_tls_sslmode', 'disable'],
      ['max_prepared_statements', '0'],
    ] as const) {
      setConfigParam(name, value);
      assert.deepEqual(warnings(), [], name);
    }
  });

  it('include peers', () => {
    assert.deepEqual(warnings(2), ['WARNING section has no effect yet: [peers] (peering is not built yet)']);
  });
});

describe('the files in etc', () => {
  const iniPath = join(process.cwd(), 'etc', 'tsbouncer.ini');

  it('tsbouncer.ini loads as it is', () => {
    let parsed: ParsedConfig | null = null;
    assert.deepEqual(
      logged(() => {
        parsed = loadConfigFile(iniPath);
      }),
      [],
    );
    applySettings(parsed as unknown as ParsedConfig, true);
    assert.deepEqual([cf.listenAddr, cf.listenPort, cf.authFile], ['127.0.0.1', 6432, 'etc/userlist.txt']);
    assert.deepEqual(
      logged(() => warnUnbuiltSettings()),
      [],
    );
  });

  it('tsbouncer.ini shows every setting at its default', () => {
    const commented = new Map<string, string>();
    const main = readFileSync(iniPath, 'latin1').split('\n[pgbouncer]\n')[1] as string;
    for (const m of main.matchAll(/^;([a-z0-9_]+) =(?: (.*))?$/gm)) {
      assert.ok(!commented.has(m[1] as string), `${m[1]} twice`);
      commented.set(m[1] as string, m[2] ?? '');
    }
    assert.deepEqual([...commented.keys()].sort(), settingsTable.map((setting) => setting.name).sort());
    for (const { name, def } of settingsTable) {
      if (name === 'tcp_defer_accept') continue;
      assert.equal(commented.get(name), name === 'verbose' ? '0' : (def ?? ''), name);
    }
  });

  it('tsbouncer.ini has examples that load when the comments are taken away', () => {
    const examples = readFileSync(iniPath, 'latin1').split('\n[pgbouncer]\n')[0] as string;
    const text = examples.replace(/^;(?=[a-z0-9*]+ =)/gm, '');
    const parsed = load(`${text}\n[pgbouncer]\n`);
    assert.ok(parsed.databases.length >= 5);
    assert.equal(parsed.users.length, 1);
    assert.equal(parsed.peers.length, 2);
    assert.notEqual(parsed.autodb, null);
    assert.equal(parsed.databases.find((db) => db.name === 'reports')?.password, "it's secret");
  });

  it('userlist.txt has users', () => {
    const users = loadAuthFile(join(process.cwd(), 'etc', 'userlist.txt'), true);
    assert.deepEqual(
      users?.map((user) => user.name),
      ['app', 'report', 'admin'],
    );
  });

  it('docs/config.md describes every setting with its default and reload rule', () => {
    const text = readFileSync(join(process.cwd(), 'docs', 'config.md'), 'latin1');
    for (const { name, def, noReload } of settingsTable) {
      const m = new RegExp(`^\\| \`${name}\` \\| (.*?) \\| (yes|no) \\|`, 'm').exec(text);
      assert.ok(m, name);
      assert.equal(m[2], noReload ? 'no' : 'yes', name);
      if (name === 'auth_query' || name === 'tcp_defer_accept') continue;
      assert.equal((m[1] as string).replaceAll('`', ''), def === null ? '-' : def === '' ? 'empty' : def, name);
    }
  });
});
