/*
 * Loading a config as a whole: reloads, auth_file, settings without effect, the files in etc.
 */

import assert from 'node:assert/strict';
import { readFileSync, rmSync, utimesSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { loadAuthFile, requiresAuthFile, usersFileChanged } from '../../src/core/config/authfile';
import { AuthType, PoolMode } from '../../src/core/config/choices';
import { ineffectiveSettingNames, warnIneffectiveSettings } from '../../src/core/config/ineffective';
import { applySettings, loadConfigFile, type ParsedConfig } from '../../src/core/config/loader';
import {
  cf,
  findSetting,
  getConfigParam,
  SetResult,
  setConfigParam,
  settingHooks,
} from '../../src/core/config/settings';
import { type Setting, SettingType, settingsTable } from '../../src/core/config/settings-table';
import {
  dir,
  load,
  loadBad,
  logged,
  resetSettingsAround,
  SHOW_CONFIG,
  toDefaults,
  write,
} from '../harness/config-fixtures';
import { describe, it } from '../harness/limits';

resetSettingsAround();

describe('loading and reloading', () => {
  it('loading a config applies nothing before applySettings()', () => {
    const parsed = load('[pgbouncer]\nmax_client_conn = 7\n');
    assert.equal(cf.maxClientConn, 100);
    applySettings(parsed, true);
    assert.equal(cf.maxClientConn, 7);
  });

  it('loading a config changes nothing if the last line is bad', () => {
    applySettings(load('[pgbouncer]\nmax_client_conn = 7\n'), true);
    loadBad('[pgbouncer]\nmax_client_conn = 8\n[databases]\nnew =\n[pgbouncer]\npool_mode = x\n');
    assert.equal(cf.maxClientConn, 7);
  });

  it('reloading a config without a line restores the default, even after SET', () => {
    applySettings(load('[pgbouncer]\nmax_client_conn = 7\npool_mode = transaction\n'), true);
    setConfigParam('default_pool_size', '99');
    applySettings(load('[pgbouncer]\npool_mode = transaction\n'), false);
    assert.deepEqual([cf.maxClientConn, cf.defaultPoolSize, cf.poolMode], [100, 20, PoolMode.TX]);
  });

  it('reloading a config keeps the value of a setting without a default', () => {
    cf.configFile = 'x.ini';
    cf.verbose = 2;
    applySettings(load('[pgbouncer]\nauth_file = users.txt\nauth_user = lookup\n'), true);
    assert.deepEqual([cf.configFile, cf.verbose], ['x.ini', 2]);
    applySettings(load('[pgbouncer]\nverbose = 1\n'), false);
    assert.deepEqual([cf.authFile, cf.authUser, cf.verbose], ['users.txt', 'lookup', 1]);
  });

  it('loading a config sets settings that are not reloadable only the first time', () => {
    const fixed = settingsTable.filter((setting) => setting.noReload);
    assert.deepEqual(
      fixed.map((setting) => setting.name),
      SHOW_CONFIG.trim()
        .split('\n')
        .filter((line) => line.endsWith('|no'))
        .map((line) => line.split('|')[0]),
    );
    const textOf = ({ map }: Setting, n: number) => (map === null ? String(n) : map[n % map.length]?.name);
    const lines = (n: number): string => fixed.map((setting) => `${setting.name} = ${textOf(setting, n)}\n`).join('');
    applySettings(load(`[pgbouncer]\n${lines(10)}`), true);
    for (const setting of fixed) assert.equal(getConfigParam(setting.name), textOf(setting, 10), setting.name);
    // a reload does not even parse such lines
    applySettings(load(`[pgbouncer]\n${lines(11)}`), false);
    applySettings(load('[pgbouncer]\nlisten_port = junk\n'), false);
    for (const setting of fixed) assert.equal(getConfigParam(setting.name), textOf(setting, 10), setting.name);
  });

  it('the first load refuses bad values of settings that are not reloadable', () => {
    assert.deepEqual(loadBad('[pgbouncer]\nlisten_port = junk\n'), [
      'ERROR invalid value "junk" for parameter listen_port in configuration (FILE:2)',
    ]);
  });

  it('a second [pgbouncer] section starts from the defaults again', () => {
    const parsed = load('[pgbouncer]\nmax_client_conn = 7\nauth_user = a\n[databases]\n[pgbouncer]\nlog_stats = 0\n');
    applySettings(parsed, true);
    assert.deepEqual([cf.maxClientConn, cf.logStats, cf.authUser], [100, 0, 'a']);
  });

  it('the later of two lines for a setting is used', () => {
    applySettings(load('[pgbouncer]\nmax_client_conn = 7\nmax_client_conn = 8\n'), true);
    assert.equal(cf.maxClientConn, 8);
  });

  it('applySettings() calls the listener after all settings are set', () => {
    const heard: string[] = [];
    settingHooks.onSettingChanged = (name) => heard.push(`${name} ${cf.logfile} ${cf.syslog}`);
    applySettings(load('[pgbouncer]\nlogfile = x\nsyslog = 1\nmax_client_conn = 100\n'), true);
    assert.deepEqual(heard, ['logfile x 1', 'syslog x 1']);
  });

  it('loading a config refuses the admin database as auth_dbname', () => {
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
    it(`auth_file accepts ${what}`, () => assert.deepEqual(read(text), [users, []]));
  }

  const broken = 'ERROR broken auth file';
  const bad: [string, string, string][] = [
    ['a bare word', 'b "x"\n', broken],
    ['# as a comment', '# x\n', broken],
    ['an open name', '"b', broken],
    ['no password', '"b"\n', broken],
    ['no password before another user', '"b"\n"c" "x"\n', broken],
    ['an open password', '"b" "x\n', broken],
    ['an open password that ends in doubled quotes', '"b" "x""', broken],
    ['a name of 128 bytes', `"${'n'.repeat(128)}" "p"\n`, 'ERROR username too long in auth file'],
    ['a password of 65531 bytes', `"b" "${'p'.repeat(65531)}"\n`, 'ERROR password too long in auth file'],
  ];
  for (const [what, text, message] of bad) {
    it(`auth_file is read up to ${what}; a reload then ignores the file`, () => {
      assert.deepEqual(read(`"a" "1"\n${text}`), [[['a', '1']], [message]]);
      assert.deepEqual(read(`"a" "1"\n${text}`, false), [null, [message]]);
    });
  }

  it('auth_file must exist', () => {
    const path = join(dir, 'nosuch.txt');
    const messages = logged(() => assert.equal(loadAuthFile(path, true), null));
    assert.match(messages[0] as string, /^ERROR could not open auth_file .*\/nosuch\.txt: no such file or directory$/i);
  });

  it('auth_file is read again only if it has changed', () => {
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

  it('auth_file is required by every auth_type except any and pam', () => {
    assert.equal(requiresAuthFile(AuthType.ANY), false);
    assert.equal(requiresAuthFile(AuthType.PAM), false);
    for (const type of [AuthType.TRUST, AuthType.PLAIN, AuthType.MD5, AuthType.HBA, AuthType.SCRAM_SHA_256]) {
      assert.equal(requiresAuthFile(type), true);
    }
  });
});

describe('settings without effect', () => {
  const warnings = (): string[] => logged(() => warnIneffectiveSettings());

  it('settings without effect log nothing at their defaults', () => {
    assert.deepEqual(warnings(), []);
    cf.authIdentFile = '';
    assert.deepEqual(warnings(), []);
  });

  it('each setting without effect logs a warning if changed', () => {
    for (const name of ineffectiveSettingNames) {
      const setting = findSetting(name);
      assert.ok(setting, name);
      const type = setting.type;
      const value = type === SettingType.LOOKUP ? 'require' : '7';
      assert.equal(setConfigParam(name, value), SetResult.OK);
      const messages = warnings();
      assert.equal(messages.length, 1, name);
      assert.ok(messages[0]?.startsWith(`WARNING setting has no effect: ${name} = ${value} (`), messages[0]);
      toDefaults();
    }
  });

  it('settings with an effect log no warning', () => {
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
});

describe('the files in etc', () => {
  const iniPath = join(process.cwd(), 'etc', 'tsbouncer.ini');

  it('etc/tsbouncer.ini loads unchanged', () => {
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
      logged(() => warnIneffectiveSettings()),
      [],
    );
  });

  it('etc/tsbouncer.ini shows every setting with its default', () => {
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

  it('the examples in etc/tsbouncer.ini load when uncommented', () => {
    const examples = readFileSync(iniPath, 'latin1').split('\n[pgbouncer]\n')[0] as string;
    const text = examples.replace(/^;(?=[a-z0-9*]+ =)/gm, '');
    const parsed = load(`${text}\n[pgbouncer]\n`);
    assert.ok(parsed.databases.length >= 5);
    assert.equal(parsed.users.length, 1);
    assert.equal(parsed.peers.length, 2);
    assert.notEqual(parsed.autodb, null);
    assert.equal(parsed.databases.find((db) => db.name === 'reports')?.password, "it's secret");
  });

  it('etc/userlist.txt contains users', () => {
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
