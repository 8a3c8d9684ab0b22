/*
 * The entrypoint of the container image: what it makes of the variables of other images, read back by the pooler's own
 * readers, and which command line it starts.
 */

import assert from 'node:assert/strict';
import { chmodSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { bitnamiConfig } from '../../src/cli/image/bitnami';
import { authFileText, type ImageConfig, iniText } from '../../src/cli/image/config-text';
import { edoburuConfig } from '../../src/cli/image/edoburu';
import { prepareImage } from '../../src/cli/image/image';
import type { Environment } from '../../src/cli/image/variables';
import { zalandoConfig } from '../../src/cli/image/zalando';
import { loadAuthFile } from '../../src/core/config/authfile';
import { parseConnstr } from '../../src/core/config/connstr';
import { parseIniFile } from '../../src/core/config/ini';
import { dir, load, write } from '../harness/config-fixtures';
import { describe, it } from '../harness/limits';

interface ReadBack {
  databases: Record<string, Record<string, string>>;
  settings: Record<string, string>;
  users: Record<string, string>;
}

/** What the pooler reads of the files; loading them as a config must succeed too. */
function readBack(config: ImageConfig): ReadBack {
  const found: ReadBack = { databases: {}, settings: {}, users: {} };
  const text = iniText(config);
  let section = '';
  const ok = parseIniFile(write(text), {
    section(name) {
      section = name;
      return true;
    },
    value(key, value) {
      if (section !== 'databases') {
        assert.ok(!(key in found.settings), `${key} is set twice`);
        found.settings[key] = value;
        return true;
      }
      assert.ok(!(key in found.databases), `database ${key} is there twice`);
      found.databases[key] = Object.fromEntries(parseConnstr(value) ?? assert.fail(value));
      return true;
    },
  });
  assert.ok(ok);
  load(text);
  for (const { name, passwd } of loadAuthFile(write(authFileText(config), 'users'), false) ?? assert.fail('broken')) {
    found.users[name] = passwd;
  }
  return found;
}

/** A file with a secret. */
function secret(text: string): string {
  return write(text, 'secret');
}

/** Values that must stay one value wherever they are written. */
const HOSTILE = [
  `it's "quoted"`,
  `x' user=other password='y`,
  `"other" "password"`,
  ';comment',
  '#comment',
  '%include /etc/passwd',
  '[users]',
  'a = b',
  `'''`,
  `""`,
  '\\',
  '\t tabs \v',
  '$1 $HOME `id`',
  'é€',
];
const LINES = ['a\nadmin_users = eve', 'a\r\n[users]', '\n', 'a\0b', '\r'];

const latin1 = (text: string) => Buffer.from(text).toString('latin1');

describe('the variables of edoburu/pgbouncer', () => {
  it('DB_HOST and its kin, with the defaults of that image', () => {
    const env = { DB_HOST: 'pg', DB_USER: 'app', DB_PASSWORD: 'secret' };
    const { databases, settings, users } = readBack(edoburuConfig(env));
    assert.deepEqual(databases, { '*': { host: 'pg', port: '5432', auth_user: 'app' } });
    assert.deepEqual(settings, {
      listen_addr: '0.0.0.0',
      listen_port: '5432',
      unix_socket_dir: '',
      auth_type: 'md5',
      ignore_startup_parameters: 'extra_float_digits',
      admin_users: 'postgres',
    });
    // md5('secretapp')
    assert.deepEqual(users, { app: 'md56a422f785c9e20873908ce25d1736ae2' });
  });

  it('each setting in capitals, and no shell variable', () => {
    const env = { DB_HOST: 'pg', POOL_MODE: 'transaction', LISTEN_PORT: '6432', MAX_CLIENT_CONN: '9', USER: 'root' };
    const { settings } = readBack(edoburuConfig({ ...env, ADMIN_USERS: '', AUTH_TYPE: 'scram-sha-256' }));
    assert.equal(settings.pool_mode, 'transaction');
    assert.equal(settings.listen_port, '6432');
    assert.equal(settings.max_client_conn, '9');
    assert.equal(settings.admin_users, 'postgres');
    assert.equal(settings.user, undefined);
  });

  it('passwords are written as they are for plain and scram-sha-256', () => {
    for (const AUTH_TYPE of ['plain', 'scram-sha-256']) {
      const env = { DB_HOST: 'pg', DB_USER: 'app', DB_PASSWORD: 'secret', AUTH_TYPE };
      assert.deepEqual(readBack(edoburuConfig(env)).users, { app: 'secret' });
    }
  });

  it('URLs with all their parts', () => {
    const rows: [url: string, name: string, params: Record<string, string>, password: string | undefined][] = [
      ['postgres://app:pw@pg/shop', 'shop', { host: 'pg', port: '5432', auth_user: 'app' }, 'pw'],
      ['postgresql://app:p@w:d@pg:6000/shop', 'shop', { host: 'pg', port: '6000', auth_user: 'app' }, 'p@w:d'],
      ['postgres://app:p%40w%2F%3F@pg/', '*', { host: 'pg', port: '5432', auth_user: 'app' }, 'p@w/?'],
      ['postgres://app:100%@pg', '*', { host: 'pg', port: '5432', auth_user: 'app' }, '100%'],
      ['postgres://[::1]:5433/shop', 'shop', { host: '::1', port: '5433', auth_user: 'postgres' }, undefined],
      ['postgres://app@pg/my%20shop', 'my shop', { host: 'pg', port: '5432', auth_user: 'app' }, undefined],
      ['app:pw@pg/shop', 'shop', { host: 'pg', port: '5432', auth_user: 'app' }, 'pw'],
    ];
    for (const [DATABASE_URL, name, params, password] of rows) {
      const { databases, users } = readBack(edoburuConfig({ DATABASE_URL, AUTH_TYPE: 'plain' }));
      assert.deepEqual(databases, { [name]: params }, DATABASE_URL);
      assert.equal(users.app, password, DATABASE_URL);
    }
  });

  it('several URLs, and parameters in them', () => {
    const config = edoburuConfig({
      DATABASE_URLS: 'postgres://a:x@one/1?sslmode=require,postgres://b:y@two/2?schema=s',
    });
    const { databases, settings, users } = readBack(config);
    assert.deepEqual(Object.keys(databases), ['1', '2']);
    assert.deepEqual(Object.keys(users), ['a', 'b']);
    assert.equal(settings.server_tls_sslmode, 'require');
    assert.deepEqual(config.notices, ['DATABASE_URLS: the parameter schema has no effect']);
  });

  it('hostile values stay values', () => {
    for (const value of HOSTILE) {
      const env = { DB_HOST: 'pg', DB_USER: value, DB_PASSWORD: value, DB_NAME: value, AUTH_TYPE: 'plain' };
      const { databases, settings, users } = readBack(edoburuConfig({ ...env, ADMIN_USERS: value }));
      assert.deepEqual(databases, { [latin1(value)]: { host: 'pg', port: '5432', auth_user: latin1(value) } });
      assert.deepEqual(users, { [latin1(value)]: latin1(value) });
      assert.equal(settings.admin_users, latin1(value).replace(/^[ \t]+|[ \t-\r]+$/g, ''));
      assert.deepEqual(Object.keys(settings).length, 6);
    }
  });

  it('line breaks and NUL are refused, also when a URL hides them', () => {
    for (const text of LINES) {
      for (const name of [
        'DB_HOST',
        'DB_USER',
        'DB_PASSWORD',
        'DB_NAME',
        'ADMIN_USERS',
        'AUTH_QUERY',
        'DATABASE_URL',
      ]) {
        assert.throws(() => edoburuConfig({ DB_HOST: 'pg', [name]: text }), /: a line break or NUL is not allowed$/);
      }
      const DATABASE_URL = `postgres://app:${encodeURIComponent(text)}@pg/shop`;
      assert.throws(
        () => edoburuConfig({ DATABASE_URL }),
        /^ImageError: DATABASE_URL: a line break or NUL|not allowed$/,
      );
    }
  });

  it('names and passwords that the auth_file cannot hold are refused', () => {
    const env = { DB_HOST: 'pg', DB_USER: 'u'.repeat(128), DB_PASSWORD: 'x', AUTH_TYPE: 'plain' };
    assert.throws(() => authFileText(edoburuConfig(env)), /name of a user: longer than 127 bytes/);
    const long = { ...env, DB_USER: 'u', DB_PASSWORD: '"'.repeat(40_000) };
    assert.throws(() => authFileText(edoburuConfig(long)), /password of user u: longer than 65530 bytes/);
  });
});

describe('secrets in files', () => {
  it('NAME_FILE has precedence, without the line break at its end', () => {
    const env = { DB_HOST: 'pg', DB_USER: 'app', DB_PASSWORD: 'no', DB_PASSWORD_FILE: secret('p w\r\n\n') };
    assert.deepEqual(readBack(edoburuConfig({ ...env, AUTH_TYPE: 'plain' })).users, { app: 'p w' });
  });

  it('bytes that are not UTF-8 come from files only', () => {
    const file = secret('');
    writeFileSync(file, Buffer.from([0xe4, 0xff]));
    const env = { DB_HOST: 'pg', DB_USER: 'app', AUTH_TYPE: 'plain' };
    assert.deepEqual(readBack(edoburuConfig({ ...env, DB_PASSWORD_FILE: file })).users, { app: '\xe4\xff' });
    assert.throws(() => edoburuConfig({ ...env, DB_PASSWORD: 'a\ufffd' }), /DB_PASSWORD: not valid UTF-8/);
  });

  it('a missing file and a line break inside are errors', () => {
    const env = { DB_HOST: 'pg', DB_USER: 'app' };
    assert.throws(() => edoburuConfig({ ...env, DB_PASSWORD_FILE: '/nowhere' }), /DB_PASSWORD_FILE: could not read/);
    assert.throws(() => edoburuConfig({ ...env, DB_PASSWORD_FILE: secret('a\nb') }), /DB_PASSWORD: a line break/);
  });
});

describe('the variables of bitnami/pgbouncer', () => {
  const BASE: Environment = { POSTGRESQL_HOST: 'pg', POSTGRESQL_PASSWORD: 'secret' };

  it('have the defaults of that image', () => {
    const { databases, settings, users } = readBack(bitnamiConfig(BASE));
    assert.deepEqual(databases, { postgres: { host: 'pg', port: '5432', dbname: 'postgres' } });
    assert.deepEqual(users, { postgres: 'secret' });
    assert.deepEqual(settings, {
      auth_type: 'scram-sha-256',
      ignore_startup_parameters: 'extra_float_digits',
      client_tls_sslmode: 'disable',
      server_tls_sslmode: 'disable',
      listen_port: '6432',
      listen_addr: '0.0.0.0',
      unix_socket_dir: '/tmp/',
      unix_socket_mode: '0777',
      admin_users: 'postgres',
    });
    assert.deepEqual(bitnamiConfig(BASE).waitFor, { host: 'pg', port: 5432, tries: 10, pauseSeconds: 10 });
  });

  it('describe databases, users and settings', () => {
    const { databases, settings, users } = readBack(
      bitnamiConfig({
        ...BASE,
        POSTGRESQL_USERNAME: 'app',
        PGBOUNCER_DATABASE: '*',
        PGBOUNCER_SET_DATABASE_USER: 'yes',
        PGBOUNCER_SET_DATABASE_PASSWORD: 'true',
        PGBOUNCER_AUTH_USER: 'lookup',
        PGBOUNCER_DSN_0: 'shop=host=other dbname=shop2',
        PGBOUNCER_DSN_1_FILE: secret('logs = host=third\n'),
        PGBOUNCER_DSN_3: 'unreached=host=x',
        PGBOUNCER_USERLIST: '"ann" "x"\n"bob" "y"',
        PGBOUNCER_POOL_MODE: 'transaction',
        PGBOUNCER_LISTEN_ADDRESS: '127.0.0.1',
        PGBOUNCER_SERVER_CHECK_QUERY: "select ':'",
      }),
    );
    assert.deepEqual(databases, {
      '*': { host: 'pg', port: '5432', user: 'app', password: 'secret', auth_user: 'lookup' },
      shop: { host: 'other', dbname: 'shop2' },
      logs: { host: 'third' },
    });
    assert.deepEqual(users, { app: 'secret', ann: 'x', bob: 'y' });
    assert.equal(settings.pool_mode, 'transaction');
    assert.equal(settings.listen_addr, '127.0.0.1');
    assert.equal(settings.server_check_query, "select ':'");
    assert.equal(settings.auth_user, undefined);
  });

  it('a connect query may have doubled its quotes', () => {
    for (const PGBOUNCER_CONNECT_QUERY of ["SET x = ''y''", "SET x = 'y'"]) {
      const { databases } = readBack(bitnamiConfig({ ...BASE, PGBOUNCER_CONNECT_QUERY }));
      assert.equal(databases.postgres?.connect_query, "SET x = 'y'");
    }
  });

  it('hostile values stay values, and line breaks are refused', () => {
    const set = { PGBOUNCER_SET_DATABASE_USER: '1', PGBOUNCER_SET_DATABASE_PASSWORD: '1', PGBOUNCER_DATABASE: 'db' };
    for (const value of HOSTILE) {
      const env = {
        ...BASE,
        ...set,
        POSTGRESQL_USERNAME: value,
        POSTGRESQL_PASSWORD: value,
        POSTGRESQL_DATABASE: value,
      };
      const { databases, users } = readBack(bitnamiConfig(env));
      const text = latin1(value);
      assert.deepEqual(databases, { db: { host: 'pg', port: '5432', user: text, password: text, dbname: text } });
      assert.deepEqual(users, { [text]: text });
    }
    for (const text of LINES) {
      for (const name of ['POSTGRESQL_PASSWORD', 'PGBOUNCER_DATABASE', 'PGBOUNCER_DSN_0', 'PGBOUNCER_AUTH_QUERY']) {
        assert.throws(() => bitnamiConfig({ ...BASE, [name]: `a=b${text}c` }), /a line break or NUL is not allowed/);
      }
    }
  });

  it('what Kubernetes sets for a service of that name is no port', () => {
    const env = { ...BASE, PGBOUNCER_PORT: 'tcp://10.0.0.1:6432', POSTGRESQL_PORT: 'tcp://10.0.0.2:5432' };
    assert.equal(readBack(bitnamiConfig(env)).settings.listen_port, '6432');
    assert.throws(() => bitnamiConfig({ ...BASE, PGBOUNCER_PORT: '70000' }), /PGBOUNCER_PORT: invalid port number/);
    assert.throws(() => bitnamiConfig({ ...BASE, PGBOUNCER_INIT_MAX_RETRIES: 'x' }), /not a number/);
  });

  it('a password is needed, except with trust', () => {
    assert.throws(() => bitnamiConfig({ POSTGRESQL_HOST: 'pg' }), /POSTGRESQL_PASSWORD must be set/);
    bitnamiConfig({ POSTGRESQL_HOST: 'pg', PGBOUNCER_AUTH_TYPE: 'trust' });
  });
});

describe("the variables of Zalando's operator", () => {
  const env: Environment = {
    PGHOST: 'acid',
    PGPORT: '5432',
    PGUSER: 'pooler',
    PGSCHEMA: 'pooler',
    PGPASSWORD: 'x',
    CONNECTION_POOLER_MODE: 'transaction',
    CONNECTION_POOLER_PORT: '5432',
    CONNECTION_POOLER_MAX_DB_CONN: '30',
  };
  it('describe the config of that image', () => {
    const { databases, settings, users } = readBack(zalandoConfig(env));
    const params = { host: 'acid', port: '5432', auth_user: 'pooler' };
    assert.deepEqual(databases, { '*': params, postgres: params });
    assert.equal(settings.auth_query, 'SELECT * FROM pooler.user_lookup($1)');
    assert.equal(settings.max_db_connections, '30');
    assert.equal(settings.client_tls_sslmode, 'disable');
    assert.deepEqual(users, { pooler: 'x' });
    const keys = { CONNECTION_POOLER_CLIENT_TLS_CRT: '/tls/crt', CONNECTION_POOLER_CLIENT_TLS_KEY: '/tls/key' };
    assert.equal(readBack(zalandoConfig({ ...env, ...keys })).settings.client_tls_sslmode, 'require');
  });
  it('the schema cannot be more than a name', () => {
    assert.throws(() => zalandoConfig({ ...env, PGSCHEMA: 'a.b(); --' }), /PGSCHEMA: not a name/);
  });
});

describe('what Kubernetes sets for the Services of a namespace', () => {
  const services: Environment = {
    ...{ CONNECTION_POOLER_PORT: 'tcp://10.0.0.1:5432', METRICS_PORT: 'tcp://10.0.0.2:9127' },
    ...{ DB_PORT: 'udp://10.0.0.3:53', LISTEN_PORT: 'sctp://10.0.0.4:1' },
  };
  it('is no setting', () => {
    const { databases, settings } = readBack(edoburuConfig({ DB_HOST: 'pg', DB_USER: 'app', ...services }));
    assert.equal(databases['*']?.port, '5432');
    assert.equal(settings.listen_port, '5432');
    assert.equal(settings.metrics_port, undefined);
  });
  it('is no variable of another image', () => {
    const ini = join(dir, 'services', 'pgbouncer.ini');
    mkdirSync(join(dir, 'services'));
    const env = { DB_HOST: 'pg', DB_USER: 'app', ...services };
    assert.deepEqual(prepareImage([ini], env, () => {}).args, [ini]);
    assert.throws(() => prepareImage([join(dir, 'nosuch.ini')], services, () => {}), /there is no .*: mount one/);
  });
});

describe('the command line of the image', () => {
  const env = { DB_HOST: 'pg', DB_USER: 'app', DB_PASSWORD: 'x' };
  /** As the user of this test. */
  const prepare = (args: string[], variables: Environment) => prepareImage(args, variables, () => {});
  let count = 0;
  const folder = () => {
    const path = join(dir, `etc${++count}`);
    mkdirSync(path);
    return path;
  };

  it('a config is written where the command line wants it, for its user only', () => {
    const ini = join(folder(), 'pgbouncer.ini');
    const { program, args, notices } = prepare(['/usr/bin/pgbouncer', '-v', '-u', 'postgres', ini, '-q'], env);
    assert.equal(program, 'pgbouncer');
    assert.deepEqual(args, ['-v', '-u', 'postgres', ini, '-q']);
    assert.deepEqual(notices, [`wrote ${ini} from the variables of edoburu/pgbouncer`]);
    assert.equal(statSync(ini).mode & 0o777, 0o600);
    assert.match(readFileSync(ini, 'latin1'), new RegExp(`^auth_file = ${join(ini, '..', 'userlist.txt')}$`, 'm'));
  });

  it('is written again at the next start', () => {
    const ini = join(folder(), 'pgbouncer.ini');
    prepare([ini], env);
    prepare([ini], { ...env, DB_HOST: 'other' });
    assert.match(readFileSync(ini, 'latin1'), /host=other/);
  });

  it('a config and an auth_file of the user stay as they are', () => {
    const ini = join(folder(), 'pgbouncer.ini');
    const users = join(ini, '..', 'userlist.txt');
    writeFileSync(users, '"other" "x"\n');
    const { notices } = prepare([ini], env);
    assert.equal(readFileSync(users, 'latin1'), '"other" "x"\n');
    assert.equal(notices[0], `user app is not in ${users}`);
    writeFileSync(ini, '[databases]\n');
    assert.deepEqual(prepare([ini], env).notices, [`using ${ini}`]);
    assert.equal(readFileSync(ini, 'latin1'), '[databases]\n');
  });

  it('where the folder is not writable, a folder in /tmp is used, unless another user has made it', () => {
    const missing = join(dir, 'nowhere', 'pgbouncer.ini');
    const own = `/tmp/tsbouncer-${process.getuid?.()}`;
    const existed = existsSync(own);
    const { args } = prepare([missing], env);
    assert.deepEqual(args, [join(own, 'pgbouncer.ini')]);
    chmodSync(own, 0o777);
    assert.throws(() => prepare([missing], env), /belongs to another user/);
    chmodSync(own, 0o700);
    if (!existed) rmSync(own, { recursive: true });
  });

  it('says what is missing or ambiguous', () => {
    const ini = join(folder(), 'pgbouncer.ini');
    assert.throws(() => prepare([ini], {}), /there is no .*pgbouncer\.ini: mount one, or set DATABASE_URL/);
    const both = { ...env, POSTGRESQL_HOST: 'pg' };
    assert.throws(() => prepare([ini], both), /DB_HOST \(edoburu.*\), POSTGRESQL_HOST \(bitnami/);
    assert.throws(() => prepare(['sh', '-c', 'true'], env), /this image starts only pgbouncer/);
  });

  it('needs no config to answer or to write an auth_file', () => {
    for (const args of [['-V'], ['--help'], ['mkauth', 'a', 'b']]) {
      assert.deepEqual(prepare(args, {}).args, args);
      assert.deepEqual(prepare(['tsbouncer', ...args], {}).program, 'tsbouncer');
    }
  });

  it('a container user who is not root cannot become the user of the config', () => {
    const ini = join(folder(), 'pgbouncer.ini');
    const { args } = prepareImage([ini], env, (list) => list.push('-u', ''));
    assert.deepEqual(args, [ini, '-u', '']);
  });
});
