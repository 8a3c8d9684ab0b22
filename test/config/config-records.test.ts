/*
 * The config without a running pooler: databases, users and peers. Tests expect the behaviour of PgBouncer 1.25 unless
 * their names say otherwise. Syntax and settings: config.test.ts. Loading as a whole: config-loading.test.ts.
 */

import assert from 'node:assert/strict';
import { chmodSync } from 'node:fs';
import {
  DirtySession,
  ListenMode,
  LoadBalanceHosts,
  PoolMode,
  SslMode,
  TargetSession,
} from '../../src/core/config/choices';
import { loadConfigFile } from '../../src/core/config/loader';
import { commandWords } from '../../src/core/config/password-source';
import { parseDatabase } from '../../src/core/config/records';
import { load, loadBad, logged, resetSettingsAround, write } from '../harness/config-fixtures';
import { describe, it } from '../harness/limits';

resetSettingsAround();

describe('[databases]', () => {
  it("databases have PgBouncer's defaults", () => {
    assert.deepEqual(load('[databases]\nplain =\n[pgbouncer]\n').databases, [
      {
        name: 'plain',
        host: null,
        port: 5432,
        ports: null,
        targetSession: TargetSession.ANY,
        dbname: 'plain',
        poolSize: -1,
        minPoolSize: -1,
        resPoolSize: -1,
        poolMode: PoolMode.INHERIT,
        dirtySession: DirtySession.INHERIT,
        listenMode: ListenMode.INHERIT,
        maxDbConnections: -1,
        maxDbClientConnections: -1,
        serverLifetime: 0,
        serverLoginConcurrency: -1,
        maxProtocol32: true,
        connectQuery: null,
        authUser: null,
        authQuery: null,
        authDbname: null,
        authQueryCacheTime: -1,
        user: null,
        password: null,
        passwordFile: null,
        passwordEnv: null,
        passwordCommand: null,
        passwordMark: '',
        loadBalanceHosts: LoadBalanceHosts.ROUND_ROBIN,
        tls: null,
        queryWaitTimeout: 0,
        queryWaitTimeoutSet: false,
        startupParams: [['database', 'plain']],
        connstr: '',
      },
    ]);
  });

  it('a list of ports has one for each host', () => {
    assert.match(
      loadBad('[databases]\ndb = host=a,b port=1,2,3\n[pgbouncer]\n').join(),
      /could not match 3 port numbers to 2 hosts/,
    );
    assert.match(loadBad('[databases]\ndb = host=a,b port=1,x\n[pgbouncer]\n').join(), /invalid port: 1,x/);
    assert.match(
      loadBad('[databases]\ndb = host=a target_session_attrs=prefer-standby\n[pgbouncer]\n').join(),
      /invalid target_session_attrs: prefer-standby/,
    );
  });

  it('a password comes from one place, and its file has one line', () => {
    const bad = (connstr: string) => loadBad(`[databases]\ndb = ${connstr}\n[pgbouncer]\n`)[0];
    const good = (connstr: string) => load(`[databases]\ndb = ${connstr}\n[pgbouncer]\n`).databases[0]?.password;
    const file = (text: string) => {
      const path = write(text);
      chmodSync(path, 0o600);
      return path;
    };
    assert.equal(good(`password_file=${file('se cret')}`), 'se cret');
    assert.equal(good(`password_file=${file(' a\n')}`), ' a');
    assert.equal(good(`password_file=${file('a\r\n')}`), 'a');
    for (const [text, error] of [
      ['', 'is empty'],
      ['\n', 'is empty'],
      ['a\nb\n', 'has more than one line'],
      ['a\0', 'has more than one line'],
      ['x'.repeat(65531), 'has too long a password'],
      ['x'.repeat(100_000), 'has too long a password'],
    ] as const) {
      const path = file(text);
      assert.equal(bad(`password_file=${path}`), `ERROR password_file ${path} ${error}`);
    }
    assert.equal(bad('password_file=/dev/zero'), 'ERROR password_file /dev/zero is not a file');
    assert.equal(
      bad('password_file=/nonexistent/x'),
      'ERROR could not open password_file /nonexistent/x: No such file or directory',
    );
    process.env.TSBOUNCER_TEST_PASSWORD = 'p\u00e4ss';
    assert.equal(good('password_env=TSBOUNCER_TEST_PASSWORD'), 'p\xc3\xa4ss');
    delete process.env.TSBOUNCER_TEST_PASSWORD;
    assert.equal(
      bad('password_env=TSBOUNCER_TEST_PASSWORD'),
      'ERROR password_env: there is no variable TSBOUNCER_TEST_PASSWORD in the environment',
    );
    const several = 'ERROR only one of password, password_file, password_env and password_command is possible';
    assert.equal(bad('password=x password_env=HOME'), several);
    assert.equal(bad('password_file=x password_env=HOME'), several);
    assert.equal(bad('password_command=/bin/x password_env=HOME'), several);
    const none = 'ERROR password_command must begin with the absolute path of a program';
    for (const command of ['x', 'x /y', '""']) assert.equal(bad(`password_command='${command}'`), none);
    for (const command of ['/x "', '/x a"b"', '/x "a"b'])
      assert.equal(
        bad(`password_command='${command}'`),
        'ERROR password_command: double quotes enclose whole words',
        command,
      );
    assert.deepEqual(commandWords(' /x  a "b  ""c" "" '), ['/x', 'a', 'b  "c', '']);
    const open = write('x');
    chmodSync(open, 0o644);
    const text = `[databases]\ndb = password_file=${open}\n[pgbouncer]\n`;
    const path = write(text);
    const warning = `WARNING password_file ${open} can be read by all users`;
    assert.deepEqual(
      logged(() => loadConfigFile(path)),
      [warning],
    );
  });

  it('databases accept every parameter', () => {
    const connstr =
      "application_name=app timezone='Europe/Berlin' datestyle=ISO client_encoding=LATIN1 dbname=real host=h1,h2 " +
      "port=5433,5434 target_session_attrs=standby user=u password='p''w d' auth_user=au auth_dbname=ad auth_query='SELECT 1' auth_query_cache_time=1.5 pool_size=1 min_pool_size=2 " +
      'reserve_pool_size=3 query_wait_timeout=4 max_db_connections=5 max_db_client_connections=6 server_lifetime=7 server_login_concurrency=8 max_protocol_version=3.0 ' +
      "load_balance_hosts=DISABLE server_tls_sslmode=verify-ca server_tls_key_file=k server_tls_cert_file=c pool_mode=statement dirty_session=reset listen_mode=pin connect_query='SET a = 1'";
    const parsed = load(`[databases]\ndb = ${connstr}\n[pgbouncer]\n`);
    assert.deepEqual(parsed.databases[0], {
      name: 'db',
      host: 'h1,h2',
      port: 5433,
      ports: [5433, 5434],
      targetSession: TargetSession.STANDBY,
      dbname: 'real',
      poolSize: 1,
      minPoolSize: 2,
      resPoolSize: 3,
      poolMode: PoolMode.STMT,
      dirtySession: DirtySession.RESET,
      listenMode: ListenMode.PIN,
      maxDbConnections: 5,
      maxDbClientConnections: 6,
      serverLifetime: 7e6,
      serverLoginConcurrency: 8,
      maxProtocol32: false,
      connectQuery: 'SET a = 1',
      authUser: 'au',
      authQuery: 'SELECT 1',
      authDbname: 'ad',
      authQueryCacheTime: 1.5e6,
      user: 'u',
      password: "p'w d",
      passwordFile: null,
      passwordEnv: null,
      passwordCommand: null,
      passwordMark: '',
      loadBalanceHosts: LoadBalanceHosts.DISABLE,
      tls: { sslmode: SslMode.VERIFY_CA, keyFile: 'k', certFile: 'c', caFile: null },
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
    assert.equal(parseDatabase('x', 'reserve_pool=9')?.resPoolSize, 9);
  });

  it('databases distinguish a query_wait_timeout of 0 from an unset one', () => {
    const [db] = load('[databases]\ndb = query_wait_timeout=0\n[pgbouncer]\n').databases;
    assert.deepEqual([db?.queryWaitTimeout, db?.queryWaitTimeoutSet], [0, true]);
  });

  it('the later of two lines for a database is used', () => {
    const parsed = load('[databases]\na = port=1\nb =\na = port=2\n[pgbouncer]\n');
    assert.deepEqual(
      parsed.databases.map((db) => [db.name, db.port]),
      [
        ['b', 5432],
        ['a', 2],
      ],
    );
  });

  it('[databases] accepts "*" as the line for all other databases', () => {
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
    // PgBouncer detects this only when a client connects
    ['*', 'hots=h', ['ERROR unrecognized connection parameter: hots']],
  ];
  for (const [name, connstr, messages] of bad) {
    it(`[databases] refuses ${name.slice(0, 12)} = ${connstr.slice(0, 32)}`, () => {
      assert.deepEqual(loadBad(`[databases]\nok =\n${name} = ${connstr}\n[pgbouncer]\n`), [
        ...messages,
        `ERROR invalid value "${connstr}" for parameter ${name} in configuration (FILE:3)`,
      ]);
    });
  }

  it('databases may have names of 63 bytes', () => {
    const name = 'x'.repeat(63);
    assert.equal(load(`[databases]\n${name} =\n[pgbouncer]\n`).databases[0]?.name, name);
  });
});

describe('[users]', () => {
  it("users have PgBouncer's defaults and accept every parameter", () => {
    const parsed = load(
      '[users]\na =\nb = pool_mode=Transaction dirty_session=log listen_mode=refuse pool_size=1 reserve_pool_size=2 max_user_connections=3 ' +
        'max_user_client_connections=4 transaction_timeout=5 idle_transaction_timeout=6 query_timeout=7 ' +
        'query_wait_timeout=8 client_idle_timeout=9 share_weight=10 share_minimum=11\n[pgbouncer]\n',
    );
    assert.deepEqual(parsed.users, [
      {
        name: 'a',
        poolMode: PoolMode.INHERIT,
        dirtySession: DirtySession.INHERIT,
        listenMode: ListenMode.INHERIT,
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
        shareWeight: 1,
        shareMinimum: 0,
      },
      {
        name: 'b',
        poolMode: PoolMode.TX,
        dirtySession: DirtySession.LOG,
        listenMode: ListenMode.REFUSE,
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
        shareWeight: 10,
        shareMinimum: 11,
      },
    ]);
  });

  it('users need a share_weight of at least 1 and no negative share_minimum', () => {
    for (const wrong of ['share_weight=0', 'share_minimum=-1']) {
      assert.deepEqual(loadBad(`[users]\nu = ${wrong}\n[pgbouncer]\n`)[0], `ERROR invalid ${wrong.replace('=', ': ')}`);
    }
  });

  const bad: [string, string][] = [
    ['pool_mode', 'ERROR syntax error in user settings'],
    ['pool_mode=x', 'ERROR invalid pool mode: x'],
    ['dirty_session=x', 'ERROR invalid dirty_session: x'],
    ['listen_mode=shared', 'ERROR invalid listen_mode: shared'],
    ['min_pool_size=1', 'ERROR unrecognized user parameter: min_pool_size'],
  ];
  for (const [connstr, message] of bad) {
    it(`[users] refuses ${connstr}`, () => {
      assert.deepEqual(loadBad(`[users]\nu = ${connstr}\n[pgbouncer]\n`), [
        message,
        `ERROR invalid value "${connstr}" for parameter u in configuration (FILE:2)`,
      ]);
    });
  }

  it('[users] refuses a name that is too long', () => {
    const name = 'x'.repeat(128);
    assert.equal(loadBad(`[users]\n${name} =\n`)[0], `ERROR user name too long in configuration: ${name}`);
  });
});

describe('[peers]', () => {
  it('peers need an id and a host', () => {
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
    it(`[peers] refuses ${id} = ${connstr}`, () => {
      assert.deepEqual(loadBad(`[pgbouncer]\n[peers]\n${id} = ${connstr}\n`), [
        message,
        `ERROR invalid value "${connstr}" for parameter ${id} in configuration (FILE:3)`,
      ]);
    });
  }
});
