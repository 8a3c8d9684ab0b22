/*
 * The config without a running pooler: settings, values, ini syntax, includes, connect strings. Tests expect the
 * behaviour of PgBouncer 1.25 unless their names say otherwise. The meaning of lines: config-records.test.ts.
 */

import assert from 'node:assert/strict';
import { join } from 'node:path';
import { AuthType, PoolMode, SslMode } from '../../src/core/config/choices';
import { parseConnstr } from '../../src/core/config/connstr';
import { loadConfigFile } from '../../src/core/config/loader';
import {
  cf,
  configForEach,
  findSetting,
  getConfigParam,
  SetResult,
  setConfigLoaded,
  setConfigParam,
  settingHooks,
} from '../../src/core/config/settings';
import { SettingType, settingsTable } from '../../src/core/config/settings-table';
import {
  atoi,
  atoiSecondsUsec,
  formatG,
  formatTimeUsec,
  parseInt32,
  parseTimeUsec,
  parseUint32,
} from '../../src/core/config/values';
import { dir, load, loadBad, logged, resetSettingsAround, SHOW_CONFIG } from '../harness/config-fixtures';
import { describe, it } from '../harness/limits';

resetSettingsAround();

describe('settings', () => {
  it('settings start at their defaults, in the order of SHOW CONFIG', () => {
    const shown: string[] = [];
    configForEach((name, value, _def, changeable) => {
      shown.push(`${name}|${value ?? '-'}|${changeable ? 'yes' : 'no'}`);
    });
    assert.deepEqual(shown, SHOW_CONFIG.trim().split('\n'));
  });

  it('settings show the default as the table spells it', () => {
    const defaults = new Map<string, string | null>();
    configForEach((name, _value, def) => defaults.set(name, def));
    assert.equal(defaults.get('unix_socket_mode'), '0777');
    assert.equal(defaults.get('verbose'), null);
    assert.equal(defaults.get('listen_addr'), '');
  });

  it('each setting has its own field, and each field has a setting', () => {
    const fields = settingsTable.map((setting) => setting.field).sort();
    assert.deepEqual(fields, Object.keys(cf).sort());
  });

  it('fields of settings are named after the ini file in camel case', () => {
    for (const { name, field } of settingsTable) {
      const camel = name.replace(/_(.)/g, (_all, letter: string) => letter.toUpperCase());
      assert.equal(field, name === 'conffile' ? 'configFile' : camel);
    }
  });

  it('settings store times in usec and names as numbers', () => {
    assert.equal(cf.serverLifetime, 3600_000_000);
    assert.equal(cf.queryWaitNotify, 5);
    assert.equal(cf.authType, AuthType.MD5);
    assert.equal(cf.poolMode, PoolMode.SESSION);
    assert.equal(cf.serverTlsSslmode, SslMode.PREFER);
    assert.equal(cf.unixSocketMode, 0o777);
  });

  it('every setting accepts and shows a value of its type', () => {
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
        case SettingType.HOST_PORT:
          for (const text of ['pooler.default.svc.cluster.local', 'a_b-c.d.:6432', '10.0.0.1', '']) {
            assert.equal(setConfigParam(name, text), SetResult.OK, name);
            assert.equal(getConfigParam(name), text);
          }
          for (const bad of ['a b', 'a:', ':1', 'a:0', 'a:65536', 'a:1:2', '-a', 'a-', '::1', 'a,b', '/tmp', '*']) {
            assert.equal(setConfigParam(name, bad), SetResult.INVALID, `${name} = ${bad}`);
            assert.equal(cf[field], '');
          }
          break;
        case SettingType.NETWORKS:
          for (const text of ['10.1.2.3/8, ::1,unix', '192.0.2.1', '2001:db8::/32', '']) {
            assert.equal(setConfigParam(name, text), SetResult.OK, name);
            assert.equal(getConfigParam(name), text);
          }
          for (const bad of ['x', '10.0.0.0/33', '10.0.0/8', '::/129', '10.0.0.0/', '10.0.0.0/8,,::1', 'unix/8']) {
            assert.equal(setConfigParam(name, bad), SetResult.INVALID, `${name} = ${bad}`);
            assert.equal(cf[field], '');
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
          for (const bad of ['', '65', 'peer', 'reject', 'inherit', ' md5']) {
            assert.equal(setConfigParam(name, bad), SetResult.INVALID, `${name} = ${bad}`);
          }
          break;
      }
    }
  });

  it('a setting prints a value without a name as INVALID', () => {
    cf.authType = AuthType.PEER;
    assert.equal(getConfigParam('auth_type'), 'INVALID');
  });

  it('settings check the limits of int and unsigned int', () => {
    assert.equal(setConfigParam('max_client_conn', '2147483647'), SetResult.OK);
    assert.equal(setConfigParam('max_client_conn', '2147483648'), SetResult.INVALID);
    assert.equal(setConfigParam('max_client_conn', '-2147483648'), SetResult.OK);
    assert.equal(getConfigParam('max_client_conn'), '-2147483648');
    assert.equal(setConfigParam('max_packet_size', '4294967295'), SetResult.OK);
    assert.equal(setConfigParam('max_packet_size', '4294967296'), SetResult.INVALID);
    assert.equal(setConfigParam('max_packet_size', '-1'), SetResult.OK);
    assert.equal(cf.maxPacketSize, 4294967295);
  });

  it('settings refuse an invalid peer_id and pkt_buf', () => {
    assert.equal(setConfigParam('peer_id', '16383'), SetResult.OK);
    assert.equal(setConfigParam('peer_id', '16384'), SetResult.INVALID);
    assert.equal(setConfigParam('peer_id', '-1'), SetResult.INVALID);
    assert.equal(setConfigParam('pkt_buf', '0'), SetResult.INVALID);
    assert.equal(setConfigParam('pkt_buf', '1'), SetResult.OK);
  });

  it('setConfigParam() refuses an unknown name and logs it', () => {
    const messages = logged(() => assert.equal(setConfigParam('Pool_Mode', 'session'), SetResult.UNKNOWN));
    assert.deepEqual(messages, ['ERROR unknown parameter: pgbouncer/Pool_Mode']);
    assert.equal(getConfigParam('service_name'), null);
    assert.equal(findSetting('nosuch'), null);
  });

  it('setConfigParam() refuses the admin database as auth_dbname and logs it', () => {
    const messages = logged(() => assert.equal(setConfigParam('auth_dbname', 'pgbouncer'), SetResult.INVALID));
    assert.deepEqual(messages, ['ERROR cannot use the reserved "pgbouncer" database as an auth_dbname']);
    assert.equal(cf.authDbname, null);
  });

  it('settings that are not reloadable keep their values in a running process', () => {
    setConfigLoaded(true);
    assert.equal(setConfigParam('listen_port', '7000'), SetResult.READ_ONLY);
    assert.equal(setConfigParam('listen_port', 'junk'), SetResult.READ_ONLY);
    assert.equal(cf.listenPort, 6432);
    assert.equal(setConfigParam('max_client_conn', '7'), SetResult.OK);
    assert.equal(cf.maxClientConn, 7);
  });

  it('settings call the listener only for a change', () => {
    const heard: string[] = [];
    settingHooks.onSettingChanged = (name) => heard.push(name);
    setConfigParam('verbose', '2');
    setConfigParam('verbose', '2');
    setConfigParam('verbose', 'x');
    // only on or off matters here
    setConfigParam('tcp_defer_accept', '45');
    setConfigParam('tcp_defer_accept', '0');
    setConfigParam('tcp_defer_accept', '1');
    const deferChanges = process.platform === 'linux' ? 2 : 3;
    assert.deepEqual(heard, ['verbose', ...new Array<string>(deferChanges).fill('tcp_defer_accept')]);
  });
});

describe('values', () => {
  it('integer settings are read as by strtol with base 0', () => {
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

  it('time settings are read as by strtod', () => {
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

  it('time settings are printed with %g', () => {
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

  it('numbers in connect strings are read as by atoi', () => {
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
  it('ini files may contain free blanks and comments', () => {
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

  it('ini files keep quotes and backslashes in values', () => {
    const parsed = load(`[pgbouncer]\nauth_query = SELECT '\\' "x"\n`);
    assert.equal(parsed.settings[0]?.value, `SELECT '\\' "x"`);
  });

  it('ini files may contain any bytes in values', () => {
    const parsed = load('[pgbouncer]\nadmin_users = \xff\xc3\xa9\xa0\n');
    assert.equal(parsed.settings[0]?.value, '\xff\xc3\xa9\xa0');
  });

  it('ini files end at a NUL byte', () => {
    assert.equal(load('[pgbouncer]\nverbose = 1\n\0 broken').settings.length, 1);
  });

  it('ini files accept quoted keys, also in double quotes as documented', () => {
    const parsed = load(`[databases]\na.b-c_1 =\n'my db' =\n"it's ""mine""" =\n[pgbouncer]\n`);
    assert.deepEqual(
      parsed.databases.map((db) => db.name),
      ['a.b-c_1', 'my db', 'it\'s "mine"'],
    );
  });

  it('ini files may continue on the line of a section header', () => {
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
    it(`the error about ${what} names the line`, () => {
      assert.deepEqual(loadBad(text), [`ERROR syntax error in configuration (FILE:${line}), stopping loading`]);
    });
  }

  it('the error about a bad value names the line, even before blank lines', () => {
    assert.deepEqual(loadBad('[pgbouncer]\nverbose = 1\nlisten_port = x\n\n\n; end\n'), [
      'ERROR invalid value "x" for parameter listen_port in configuration (FILE:3)',
    ]);
  });

  it('errors about an unknown setting and an unknown section name the line', () => {
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

  it('ini files need a section, and the main section', () => {
    assert.deepEqual(loadBad('verbose = 1\n'), [
      'ERROR load_init_file: value without section: verbose',
      'ERROR invalid value "1" for parameter verbose in configuration (FILE:1)',
    ]);
    assert.deepEqual(loadBad('[databases]\na =\n'), ['ERROR load_init_file: main section missing from config file']);
    assert.deepEqual(loadBad(''), ['ERROR load_init_file: main section missing from config file']);
  });

  it('an ini file must exist', () => {
    const path = join(dir, 'nosuch.ini');
    const messages = logged(() => assert.equal(loadConfigFile(path), null));
    assert.equal(messages.length, 1);
    assert.match(messages[0] as string, /^ERROR could not load file ".*\/nosuch\.ini": no such file or directory$/i);
  });

  it('an ini file must be a regular file', () => {
    const messages = logged(() => assert.equal(loadConfigFile(dir), null));
    assert.match(messages[0] as string, /^ERROR could not load file ".*": .*directory$/i);
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
    // one byte after a closing quote is treated as a space
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
    it(`parseConnstr() splits ${JSON.stringify(text)}`, () => assert.deepEqual(parseConnstr(text), pairs));
  }
  for (const text of ['a', 'a b=1', '=1', 'a=', 'a= ', "a=''", "a='x", "a='x''", 'a=1 b', "a='", '\ta']) {
    it(`parseConnstr() refuses ${JSON.stringify(text)}`, () => assert.equal(parseConnstr(text), null));
  }
});
