/*
 * --check beyond the config's own words: warnings about the machine and about settings that cancel each other out, logins to
 * the databases, and what a RELOAD would change.
 */

import assert from 'node:assert/strict';
import { chmodSync, chownSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { findWarnings } from '../../src/cli/check-machine';
import { native } from '../../src/core/base/native';
import { applySettings, loadConfigFile } from '../../src/core/config/loader';
import { setConfigLoaded } from '../../src/core/config/settings';
import { giveTo, isRoot } from '../../tools/unprivileged';
import { Bouncer, freePort, PgCluster } from '../harness';
import { login, withPooler } from '../harness/answers';
import { CertFolder } from '../harness/certs';
import { FalseDirectory } from '../harness/directory';
import { after, before } from '../harness/limits';
import { dropDir, installed, it, type Outcome, run, tempDir, user } from '../harness/machine';
import { itUnless } from '../harness/needs';

const USERS = 2;

let dir = '';
let cluster: PgCluster;
before(async () => {
  dir = tempDir('machine');
  writeFileSync(join(dir, 'users.txt'), '"ann" "secret-of-ann"\n"bob" ""\n');
  giveTo(user, dir);
  cluster = await PgCluster.start();
});
after(() => dropDir(dir));

function check(ini: string, ...options: string[]): Promise<Outcome> {
  const { node, mainJs } = installed();
  return run(node, [mainJs, '--check', ...options, ini], { cwd: dir });
}

/** The warnings about these settings, found in this process. */
function warnings(settings: string[], databases = ['app = host=127.0.0.1'], sections: string[] = []): string[] {
  const path = join(dir, 'w.ini');
  const lines = ['[databases]', ...databases, ...sections, '[pgbouncer]', `unix_socket_dir = ${dir}`, ...settings];
  writeFileSync(path, lines.map((line) => `${line}\n`).join(''));
  const parsed = loadConfigFile(path);
  assert.ok(parsed !== null);
  applySettings(parsed, true);
  setConfigLoaded(false);
  return findWarnings(parsed, USERS).map(({ text }) => text);
}

it('--check prints warnings with their place, and they are no problems', async () => {
  const path = join(dir, 'place.ini');
  writeFileSync(path, `[databases]\n[pgbouncer]\nauth_file = ${dir}/users.txt\nquery_wait_timeout = 0\n`);
  const { code, stdout, stderr } = await check(path);
  assert.equal(stdout, `${path}:4: warning: query_wait_timeout 0 lets clients wait for ever\n`);
  assert.equal(stderr, `${path}: no problems found, 1 warning\n`);
  assert.equal(code, 0);
});

it('--check warns of limits and pool sizes that contradict each other', () => {
  assert.deepEqual(warnings(['max_client_conn = 5']), ['max_client_conn 5 is less than 20, the sum of the pool sizes']);
  assert.deepEqual(warnings(['max_client_conn = 1000000000']), [
    `clients and servers can need 1000000050 file descriptors (max_client_conn 1000000000, pools 40, peers 0), but the limit is ${native.rlimitNofile()[0]}`,
  ]);
  assert.deepEqual(warnings(['min_pool_size = 30', 'max_db_connections = 10', 'max_user_connections = 9']), [
    'min_pool_size 30 is more than default_pool_size 20',
    'max_db_connections 10 is less than default_pool_size 20, so no pool reaches its size',
    'max_user_connections 9 is less than default_pool_size 20, so no pool reaches its size',
  ]);
  assert.deepEqual(warnings([], ['app = pool_size=4 min_pool_size=6 max_db_connections=3']), [
    'min_pool_size 6 is more than pool_size 4',
    'max_db_connections 3 is less than pool_size 4, so no pool reaches its size',
  ]);
  assert.deepEqual(warnings(['reserve_pool_size = 5', 'reserve_pool_timeout = 0']), [
    'reserve_pool_size has no effect, because reserve_pool_timeout is 0',
  ]);
  assert.deepEqual(warnings(['reserve_pool_size = 5', 'query_wait_timeout = 4']), [
    'reserve_pool_size has no effect, because query_wait_timeout ends before reserve_pool_timeout',
  ]);
  assert.deepEqual(warnings(['max_client_conn_per_host = 200']), [
    'max_client_conn_per_host 200 has no effect, because max_client_conn is 100',
  ]);
});

it('--check knows that a pool size of 0 is no limit', () => {
  assert.deepEqual(warnings(['default_pool_size = 0', 'min_pool_size = 3']), []);
  assert.deepEqual(warnings(['default_pool_size = 0', 'max_db_connections = 9']), []);
  const [most = ''] = warnings(['default_pool_size = 0', 'max_client_conn = 1000000000']);
  assert.match(most, / file descriptors \(max_client_conn 1000000000, pools 1000000000, peers 0\)/);
});

it('--check warns of timeouts and modes that have no effect', () => {
  assert.deepEqual(
    warnings(['query_wait_timeout = 0', 'server_lifetime = 60', 'transaction_timeout = 5', 'query_timeout = 6']),
    [
      'query_wait_timeout 0 lets clients wait for ever',
      'server_idle_timeout has no effect, because server_lifetime is shorter',
      'query_timeout has no effect, because transaction_timeout is shorter',
    ],
  );
  const reset = ['server_reset_query = RESET ALL', 'pool_mode = transaction'];
  assert.deepEqual(warnings(reset), [
    'server_reset_query has no effect without session pooling, unless server_reset_query_always is 1',
  ]);
  assert.deepEqual(warnings([...reset, 'server_reset_query_always = 1']), []);
  assert.deepEqual(warnings(reset, ['app = pool_mode=session']), []);
  const peers = ['[peers]', '1 = host=127.0.0.1'];
  assert.deepEqual(warnings(['so_reuseport = 1']), [
    'so_reuseport without peer_id and [peers] lets cancel requests reach the wrong process',
  ]);
  assert.deepEqual(warnings(['so_reuseport = 1', 'peer_id = 1'], [], peers), []);
  assert.deepEqual(warnings(['peer_id = 1']), ['peer_id has no effect without [peers]']);
  assert.deepEqual(warnings([], [], peers), ['[peers] has no effect without peer_id']);
});

it('--check warns of logins without a password and of passwords that cross the network unencrypted', async () => {
  const open = ['listen_addr = 127.0.0.1, 192.0.2.1', `listen_port = ${await freePort()}`];
  assert.deepEqual(warnings([...open, 'auth_type = trust']), [
    'auth_type=trust asks for no password on listen_addr 192.0.2.1',
  ]);
  assert.deepEqual(warnings([...open, 'auth_type = plain']), [
    'auth_type=plain lets passwords cross the network unencrypted, unless client_tls_sslmode is require',
  ]);
  assert.deepEqual(warnings([...open, 'auth_type = md5']), []);
  const here = ['listen_addr = localhost,::1,127.0.0.7', `listen_port = ${await freePort()}`];
  assert.deepEqual(warnings([...here, 'auth_type = trust']), []);
});

itUnless(process.platform === 'linux' ? null : 'only Linux lists its listening sockets')(
  '--check warns of a port that another process has, but not of the port of the pooler itself',
  async () => {
    const other: Server = createServer();
    const port = await new Promise<number>((settle) => {
      other.listen(0, '127.0.0.1', () => settle((other.address() as { port: number }).port));
    });
    const listen = (address: string) => [`listen_addr = ${address}`, `listen_port = ${port}`];
    const busy = (address: string) => [`port ${port} of ${address} is in use by another process`];
    assert.deepEqual(warnings(listen('127.0.0.1')), busy('127.0.0.1'));
    assert.deepEqual(warnings(listen('*')), busy('*'));
    assert.deepEqual(warnings(listen('127.0.0.2')), []);
    assert.deepEqual(warnings(['metrics_port = 6432', 'listen_port = 6432']), [
      'metrics_port is the same as listen_port',
    ]);
    other.close();
    const pooler = await Bouncer.start({ cluster });
    assert.deepEqual((await check(pooler.iniPath)).stdout, '');
    await pooler.stop();
  },
);

itUnless(isRoot() ? null : 'only root can check as another user')(
  '--check reads keys as the user that the setting names',
  async () => {
    const certs = new CertFolder();
    const { key, cert } = certs.issue(certs.authority('CA'), 'own', { cn: 'x' });
    chmodSync(key, 0o600);
    chownSync(key, 0, 0);
    const path = join(dir, 'key.ini');
    const tls = ['client_tls_sslmode = require', `client_tls_key_file = ${key}`, `client_tls_cert_file = ${cert}`];
    const lines = ['[databases]', '[pgbouncer]', `auth_file = ${dir}/users.txt`, 'user = nobody', ...tls];
    writeFileSync(path, `${lines.join('\n')}\n`);
    const { code, stdout } = await check(path);
    assert.equal(code, 1);
    assert.match(stdout, /key\.ini:6: TLS setup failed: failed to load private key file .*Permission denied/);
  },
);

/** The first port that every user may open. */
const FIRST_PORT = Number(readFileSync('/proc/sys/net/ipv4/ip_unprivileged_port_start', 'latin1'));

itUnless(FIRST_PORT > 1 ? null : 'every user may open every port')(
  '--check warns of a port that needs a capability',
  async () => {
    const path = join(dir, 'port.ini');
    const lines = (port: number) => ['listen_addr = 127.0.0.1', `listen_port = ${port}`, `unix_socket_dir = ${dir}`];
    const checked = async (port: number) => {
      writeFileSync(path, `[databases]\n[pgbouncer]\nauth_file = ${dir}/users.txt\n${lines(port).join('\n')}\n`);
      return (await check(path)).stdout;
    };
    const low = FIRST_PORT - 1;
    const text = `listen_port ${low} is below ${FIRST_PORT} and needs the capability CAP_NET_BIND_SERVICE`;
    assert.equal(await checked(low), `${path}:5: warning: ${text}\n`);
    assert.equal(await checked(await freePort()), '');
  },
);

it('--check --connect logs in to each host, compares limits, and prints no password', async () => {
  await cluster.createUser('ann', 'secret-of-ann');
  await cluster.setAuth('scram-sha-256');
  const here = `host=127.0.0.1 port=${cluster.port}`;
  const databases = {
    good: `${here} dbname=postgres user=ann`,
    wrong: `${here} dbname=postgres user=ann password=not-the-secret`,
    nowhere: `${here} dbname=nowhere user=ann`,
    pair: `host=127.0.0.1,127.0.0.2 port=${cluster.port} dbname=postgres user=ann pool_size=500`,
  };
  const pooler = await Bouncer.start({
    databases,
    userlist: { ann: 'secret-of-ann' },
    settings: { max_client_conn: 600 },
  });
  const { code, stdout, stderr } = await check(pooler.iniPath, '--connect');
  assert.equal(code, 1);
  const said = `${stdout}${stderr}`;
  assert.match(stdout, /:3: connection to server at "127\.0\.0\.1", .*password authentication failed for user "ann"/);
  assert.match(stdout, /:4: .*FATAL: {2}database "nowhere" does not exist/);
  assert.match(stdout, /:5: connection to server at "127\.0\.0\.2", port \d+ failed: Connection refused/);
  assert.match(
    stdout,
    /: warning: the pools may open 560 connections to 127\.0\.0\.1:\d+, whose max_connections is \d+, of which 3 are reserved/,
  );
  assert.match(stderr, /^good: 127\.0\.0\.1:\d+: PostgreSQL \d+.*, max_connections \d+, 3 of them reserved$/m);
  assert.ok(!said.includes('secret-of-ann') && !said.includes('not-the-secret'), said);
  await pooler.stop();
});

it('--check --connect runs auth_query', async () => {
  await cluster.setAuth('trust');
  const databases = { app: `host=127.0.0.1 port=${cluster.port} dbname=postgres` };
  const settings = { auth_user: 'postgres' };
  const pooler = await Bouncer.start({ databases, settings });
  const good = await check(pooler.iniPath, '--connect');
  assert.match(good.stderr, /^app: auth_query works$/m);
  assert.equal(good.code, 0, good.stdout);
  // the database in which it runs has no line of its own
  const line = { '*': databases.app.replace(/ dbname=.*/, '') };
  pooler.rewrite({ databases: line, settings: { auth_dbname: 'postgres' } });
  assert.match((await check(pooler.iniPath, '--connect')).stderr, /^\*: auth_query works$/m);
  pooler.rewrite({ settings: { auth_query: 'SELECT $1::text' } });
  assert.match(
    (await check(pooler.iniPath, '--connect')).stdout,
    /auth_query for app: it returns 1 columns instead of 2/,
  );
  pooler.rewrite({ settings: { auth_query: 'SELECT $1, passwd FROM nosuch' } });
  assert.match((await check(pooler.iniPath, '--connect')).stdout, /auth_query for app: ERROR: {2}relation "nosuch"/);
  await pooler.stop();
});

it('--check --connect gives up on a server that does not answer', async () => {
  const silent: Server = createServer();
  const port = await new Promise<number>((settle) => {
    silent.listen(0, '127.0.0.1', () => settle((silent.address() as { port: number }).port));
  });
  const databases = { app: `host=127.0.0.1 port=${port} user=ann` };
  const pooler = await Bouncer.start({ databases, settings: { server_connect_timeout: 1 } });
  const { code, stdout } = await check(pooler.iniPath, '--connect');
  assert.equal(code, 1);
  assert.match(stdout, /failed: timeout expired/);
  await pooler.stop();
  silent.close();
});

it('--check knows that a limit of 0 in a line stands for the general setting', async () => {
  const at = `host=127.0.0.1 port=${cluster.port}`;
  const limits = { max_db_connections: 9, max_db_client_connections: 8, max_user_connections: 30 };
  const pooler = await Bouncer.start({
    databases: { app: `${at} max_db_connections=0 max_db_client_connections=0` },
    users: { ann: 'max_user_connections=0 max_user_client_connections=0' },
    settings: { ...limits, max_user_client_connections: 7, default_pool_size: 6, max_client_conn: 15 },
  });
  const { stdout } = await check(pooler.iniPath, '--diff');
  await pooler.stop();
  assert.doesNotMatch(stdout, /^(database|user) /m);
});

it('--check --diff tells what a RELOAD would change', async () => {
  const at = `host=127.0.0.1 port=${cluster.port}`;
  const databases = { app: `${at} dbname=postgres`, old: `${at} dbname=postgres` };
  const pooler = await Bouncer.start({ databases, users: { ann: 'pool_size=3' } });
  assert.deepEqual((await check(pooler.iniPath, '--diff')).stdout, '');
  pooler.rewrite({
    databases: { app: `${at} dbname=other pool_size=3`, young: at },
    users: { ann: 'pool_mode=statement' },
    userlist: { cid: 'secret-of-cid' },
    settings: { max_client_conn: 300, listen_backlog: 5, server_lifetime: 60, server_idle_timeout: 30 },
  });
  const { code, stdout } = await check(pooler.iniPath, '--diff');
  assert.equal(code, 0);
  assert.deepEqual(stdout.split('\n').slice(0, -1), [
    'setting listen_backlog: 4096 -> 5 (needs a restart or an online reboot)',
    'setting max_client_conn: 100 -> 300',
    'setting server_idle_timeout: 600 -> 30',
    'setting server_lifetime: 3600 -> 60',
    'database app: database postgres -> other, pool_size 20 -> 3, server_lifetime 3600 -> 60',
    'database young: added',
    'database old: removed',
    'user cid: added',
    'user ann: pool_size 3 -> (empty), pool_mode (empty) -> statement',
  ]);
  // without the socket, the console asks for a password
  pooler.rewrite({ settings: { unix_socket_dir: '', auth_type: 'md5' } });
  const byPassword = await check(pooler.iniPath, '--diff');
  assert.equal(byPassword.code, 0, byPassword.stdout);
  assert.match(byPassword.stdout, /^setting auth_type: trust -> md5$/m);
  await pooler.admin('RELOAD');
  await pooler.stop();

  const alone = await check(join(dir, 'w.ini'), '--diff');
  assert.equal(alone.code, 1);
  assert.match(alone.stdout, /w\.ini: the running pooler could not be asked: .*No such file or directory/);
});

it('--check --diff is silent about users that LDAP brings', async () => {
  // accepts every password
  const directory = await FalseDirectory.start((socket) => {
    socket.once('data', () => socket.write(Buffer.from('300c02010261070a010004000400', 'hex')));
  });
  const options = `ldapserver=127.0.0.1 ldapport=${directory.port} ldapprefix="uid="`;
  const settings = { auth_type: 'ldap', auth_ldap_options: options };
  await cluster.createUser('lucy', '', 'none');
  await withPooler({ cluster, settings }, async (pooler) => {
    await login(pooler, { user: 'lucy', password: 'right' });
    assert.doesNotMatch((await check(pooler.iniPath, '--diff')).stdout, /^user /m);
  });
  await directory.stop();
});

it('--check --diff knows what an online reboot cannot change', async () => {
  await withPooler({ cluster }, async (pooler) => {
    pooler.rewrite({ settings: { so_reuseport: 1, unix_socket_mode: '0700' } });
    const { stdout } = await check(pooler.iniPath, '--diff');
    assert.match(stdout, /^setting so_reuseport: 0 -> 1 \(needs a restart\)$/m);
    assert.match(stdout, /^setting unix_socket_mode: 511 -> 448 \(needs a restart or an online reboot\)$/m);
  });
});
