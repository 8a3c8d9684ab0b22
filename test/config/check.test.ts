/*
 * --check, which reports all problems of a config at once without starting a pooler.
 */

import assert from 'node:assert/strict';
import { chmodSync, existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { giveTo } from '../../tools/unprivileged';
import { withPooler } from '../harness/answers';
import { CertFolder } from '../harness/certs';
import { after, before } from '../harness/limits';
import { dropDir, installed, it, type Outcome, run, tempDir, user } from '../harness/machine';

/** An expired certificate, from 2001. */
const EXPIRED = [
  '-----BEGIN CERTIFICATE-----',
  'MIIBADCBpgIBATAKBggqhkjOPQQDAjAMMQowCAYDVQQDDAF4MB4XDTAxMDEwMTAw',
  'MDAwMFoXDTAyMDEwMTAwMDAwMFowDDEKMAgGA1UEAwwBeDBZMBMGByqGSM49AgEG',
  'CCqGSM49AwEHA0IABElnmJ9nT2o6p9d1b89MPNCema5k2w5WYOni691gpNtsEroe',
  'zmIUNzzN82yiIx2eUR1JNAHDCMOt6cfz9oUR7WEwCgYIKoZIzj0EAwIDSQAwRgIh',
  'AOGkQE8ZoGTnouy4yGhaVHNey2fgT5q8z4EoO+J28JZ9AiEA+Ufv21PLg+/86Q4X',
  '6rur2rQinAPmPJfb77aZpCFTIu4=',
  '-----END CERTIFICATE-----',
];

let dir = '';
before(() => {
  dir = tempDir('check');
});
after(() => {
  dropDir(dir);
});

function file(name: string, ...lines: string[]): string {
  const path = join(dir, name);
  writeFileSync(path, lines.map((line) => `${line}\n`).join(''), 'latin1');
  giveTo(user, path);
  return path;
}

function tsbouncer(...args: string[]): Promise<Outcome> {
  const { node, mainJs } = installed();
  return run(node, [mainJs, ...args], { cwd: dir });
}

/** The problems of a config, one per line, without the folder in front. */
async function problems(ini: string): Promise<string[]> {
  const { code, stdout, stderr } = await tsbouncer('--check', ini);
  const lines = stdout.split('\n').slice(0, -1);
  const warnings = lines.filter((line) => / warning: /.test(line)).length;
  const found = lines.length - warnings;
  assert.equal(code, found === 0 ? 0 : 1, stderr);
  const count = found === 1 ? '1 problem' : `${found || 'no'} problems`;
  const warned = warnings === 0 ? '' : `, ${warnings} warning${warnings === 1 ? '' : 's'}`;
  assert.equal(stderr, `${ini}: ${count} found${warned}\n`);
  return lines.map((line) => line.replaceAll(`${dir}/`, ''));
}

const main = (...lines: string[]): string[] => ['[databases]', '* = host=127.0.0.1', '[pgbouncer]', ...lines];

it('--check of a good config prints nothing, exits with 0 and starts nothing', async () => {
  const users = file('users.txt', '"ann" "x"');
  const ini = file(
    'good.ini',
    ...main(`auth_file = ${users}`, 'listen_port = 7000', `pidfile = ${dir}/pid`, `unix_socket_dir = ${dir}`),
  );
  assert.deepEqual(await problems(ini), []);
  assert.equal(existsSync(join(dir, 'pid')), false);
  assert.equal((await tsbouncer('-q', '--check', ini)).stderr, '');
});

it('--check finds every error in every file', async () => {
  file('included.ini', 'max_client_conn = many', 'query_timeout = 5');
  file(
    'hba.conf',
    'host all all all md5',
    'host all all 1.2.3.4 md5',
    '',
    'local all all pam',
    'host all all 10.0.0.1/8 trust',
    'host all all all ldap ldapserver=x',
  );
  file('ident.conf', 'm a b', 'm a b c');
  const ini = file(
    'bad.ini',
    '[databases]',
    'one = host=x port=abc',
    'pgbouncer = host=x',
    'two = auth_dbname=three',
    '[nonsense]',
    'whatever = 1',
    '[pgbouncer]',
    'nosuch = 1',
    'this is no line',
    '%include included.ini',
    '%include missing.ini',
    '%include missing.d/*.ini',
    'pool_mode = seldom',
    `auth_type = hba`,
    `auth_hba_file = ${dir}/hba.conf`,
    `auth_ident_file = ${dir}/ident.conf`,
    `auth_file = ${dir}/nosuch.txt`,
    `logfile = ${dir}/nosuch/log`,
    `unix_socket_dir = ${dir}/nosuch`,
  );
  const found = await problems(ini);
  const expected = [
    'bad.ini: could not load file "missing.ini": No such file or directory',
    /^bad\.ini:2: /,
    /^bad\.ini:3: .*pgbouncer/,
    'bad.ini:4: authentication database "three" is not configured.',
    'bad.ini:5: unknown section: [nonsense]',
    'bad.ini:8: unknown parameter: pgbouncer/nosuch',
    'bad.ini:9: syntax error in configuration',
    'bad.ini:12: could not read folder "missing.d/*.ini": No such file or directory',
    'bad.ini:13: invalid value "seldom" for parameter pool_mode',
    'bad.ini:17: could not open auth_file nosuch.txt: No such file or directory',
    'bad.ini:18: cannot write to nosuch: No such file or directory',
    'bad.ini:19: cannot write to nosuch: No such file or directory',
    'hba.conf:2: failed to parse mask: md5',
    'hba.conf:4: unsupported method: buf=pam',
    'hba.conf:5: address does not match mask in hba.conf line #5: 10.0.0.1 / 255.0.0.0',
    /^hba\.conf:6: authentication method "ldap" requires argument/,
    'ident.conf:2: unsupported parameters',
    'included.ini:1: invalid value "many" for parameter max_client_conn',
  ];
  assert.equal(found.length, expected.length, found.join('\n'));
  for (const [at, text] of expected.entries()) {
    if (typeof text === 'string') assert.equal(found[at], text);
    else assert.match(found[at] as string, text);
  }
});

it('--check warns of HBA rules with cert that trust all authorities of the system', async () => {
  const hba = file('cert.conf', 'host all all all md5', 'hostssl all all all cert');
  const tls = ['client_tls_sslmode = prefer', `client_tls_key_file = ${dir}/key`, `client_tls_cert_file = ${dir}/crt`];
  const rules = ['auth_type = hba', `auth_hba_file = ${hba}`];
  const warned = async (...lines: string[]) =>
    (await problems(file('cert.ini', ...main(...lines)))).filter((line) => line.startsWith('cert.conf'));
  const text = 'cert without client_tls_ca_file accepts certificates of all authorities that this system trusts';
  assert.deepEqual(await warned(...rules, ...tls), [`cert.conf:2: warning: ${text}`]);
  assert.deepEqual(await warned(...rules, ...tls, `client_tls_ca_file = ${dir}/ca`), []);
  assert.deepEqual(await warned(...rules), []);
});

it('--check reports every broken line of auth_file', async () => {
  const long = `"${'n'.repeat(200)}" ""`;
  const users = file('broken.txt', '"ann" "x"', 'bob', '; a comment', long, '"admin"', '"dan" "x"', '"eve" "open', '');
  const ini = file('users.ini', ...main(`auth_file = ${users}`));
  assert.deepEqual(await problems(ini), [
    'broken.txt:2: broken auth file',
    'broken.txt:4: username too long in auth file',
    'broken.txt:5: broken auth file',
    'broken.txt:7: broken auth file',
  ]);
});

it('--check reports settings that admit no client or contradict each other', async () => {
  assert.deepEqual(await problems(file('a.ini', ...main('auth_type = md5'))), [
    'a.ini:4: neither auth_file nor auth_user is set: there are no users',
  ]);
  assert.deepEqual(await problems(file('b.ini', ...main('auth_type = ldap'))), ['b.ini:4: auth_ldap_options is null']);
  assert.deepEqual(await problems(file('c.ini', ...main('auth_type = ldap', 'auth_ldap_options = ldapprefix=x'))), [
    'c.ini:5: LDAP server not specified, and no ldapbasedn',
  ]);
  assert.deepEqual(
    await problems(file('d.ini', '[databases]', 'x = host=y', 'z = user=u', '[pgbouncer]', 'auth_type = any')),
    ['d.ini:2: auth_type=any requires forced user: x'],
  );
  assert.deepEqual(await problems(file('d.ini', '[databases]', '* = host=y', '[pgbouncer]', 'auth_type = any')), [
    'd.ini:2: auth_type=any requires forced user: *',
  ]);
  assert.deepEqual(
    await problems(file('d.ini', '[databases]', '* = auth_user=y', '[pgbouncer]', 'auth_type = md5')),
    [],
  );
  assert.deepEqual(await problems(file('e.ini', '[databases]')), [
    'e.ini: load_init_file: main section missing from config file',
  ]);
  assert.deepEqual(await problems(join(dir, 'nosuch.ini')), [
    'nosuch.ini: could not load file "nosuch.ini": No such file or directory',
    'nosuch.ini: load_init_file: main section missing from config file',
  ]);
});

it('--check verifies that certificates and keys exist, are readable, are valid now and match', async () => {
  const certs = new CertFolder();
  const ca = certs.authority('CA');
  const one = certs.issue(ca, 'one', { cn: 'x' });
  const two = certs.issue(ca, 'two', { cn: 'x' });
  const old = file('old.crt', ...EXPIRED);
  const junk = file('junk.crt', 'no certificate');
  const tls = (key: string, cert: string, ...more: string[]): string[] =>
    main(
      'auth_type = trust',
      `auth_file = ${file('u.txt', '"a" ""')}`,
      'client_tls_sslmode = require',
      `client_tls_key_file = ${key}`,
      `client_tls_cert_file = ${cert}`,
      ...more,
    );
  const about = (...lines: string[]) => problems(file('tls.ini', ...lines));
  assert.deepEqual(await about(...tls(one.key, one.cert)), []);
  assert.match(
    (await about(...tls(one.key, two.cert))).join(),
    /^tls\.ini:7: TLS setup failed: failed to load private key file .*: error:\w+:.*key values mismatch$/,
  );
  assert.match((await about(...tls(one.key, old))).join(), /tls\.ini:8: the certificate expired on Jan {2}1 /);
  assert.match(
    (await about(...tls(one.key, junk))).join(),
    /^tls\.ini:8: TLS setup failed: failed to load certificate /,
  );
  assert.match(
    (await about(...tls(one.key, `${dir}/nosuch`))).join(),
    /^tls\.ini:8: TLS setup failed: failed to load certificate file "nosuch": error:\w+:.*No such file or directory$/,
  );
  chmodSync(one.key, 0);
  const refused = /^tls\.ini:7: TLS setup failed: failed to load private key file .*Permission denied$/;
  assert.match((await about(...tls(one.key, one.cert))).join(), refused);

  const both = await about(
    ...tls(
      two.key,
      junk,
      `client_tls_ca_file = ${dir}/nosuch`,
      'server_tls_protocols = tlsv9',
      'client_tls_ciphers = all',
    ),
  );
  assert.equal(both.length, 4, both.join('\n'));
  assert.match(both[0] as string, /^tls\.ini:8: TLS setup failed: failed to load certificate file/);
  assert.match(both[1] as string, /^tls\.ini:9: TLS setup failed: failed to load CA: /);
  assert.equal(both[2], 'tls.ini:10: invalid server_tls_protocols: tlsv9');
  assert.match(both[3] as string, /^tls\.ini:11: warning: .* and \d+ other suites$/);

  const rest = ['auth_type = trust', 'auth_file = u.txt'];
  assert.deepEqual(await about(...main(...rest, 'client_tls_sslmode = prefer')), [
    'tls.ini:6: To allow TLS connections from clients, client_tls_key_file and client_tls_cert_file must be set.',
  ]);
  const server = await about(
    ...main(
      ...rest,
      'server_tls_sslmode = verify-full',
      `server_tls_ca_file = ${junk}`,
      `server_tls_key_file = ${two.key}`,
    ),
  );
  assert.equal(server[1], 'tls.ini:8: TLS connect error: private/public key mismatch');
  assert.match(server[0] ?? '', /^tls\.ini:7: TLS connect error: failed to load CA: /);
  assert.deepEqual(
    await about(...tls(two.key, two.cert, 'client_tls_ecdhcurve = nosuch', 'client_tls13_ciphers = NO')),
    ['tls.ini:9: invalid client_tls_ecdhecurve: nosuch'],
  );
  assert.deepEqual(await about(...tls(two.key, two.cert, 'client_tls13_ciphers = NO')), [
    'tls.ini:9: TLS setup failed: failed to set the TLSv1.3 cipher suites',
  ]);
  const noAuthority = tls(two.key, two.cert).map((line) => line.replace('= require', '= verify-full'));
  assert.deepEqual(await about(...noAuthority), ['tls.ini:6: client_tls_sslmode requires client_tls_ca_file']);
  assert.deepEqual(await about(...tls(two.key, two.cert), 'server_tls_ciphers = none:such'), [
    'tls.ini:9: invalid server_tls_ciphers: none:such',
  ]);
  assert.deepEqual(await about(...main('auth_type = cert', 'auth_file = u.txt')), [
    'tls.ini:4: auth_type=cert requires client_tls_sslmode=SSLMODE_VERIFY_FULL',
  ]);
});

it('--check warns about settings that allow connections which an online reboot closes', async () => {
  const certs = new CertFolder();
  const { key, cert } = certs.issue(certs.authority('CA'), 'one', { cn: 'x' });
  const client = ['client_tls_sslmode = allow', `client_tls_key_file = ${key}`, `client_tls_cert_file = ${cert}`];
  const about = (...lines: string[]) =>
    problems(
      file('w.ini', ...main('auth_type = trust', `auth_file = ${file('u.txt', '"a" ""')}`, ...client, ...lines)),
    );
  const reboot = 'warning: an online reboot closes connections with';
  const sound = 'ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-CHACHA20-POLY1305';
  for (const word of ['default', 'secure', 'normal', 'fast', sound])
    assert.deepEqual(await about(`client_tls_ciphers = ${word}`), []);
  assert.deepEqual(
    await about(
      `client_tls_ciphers = ${sound}:AES128-SHA:AES256-SHA256`,
      'client_tls_protocols = all',
      'server_tls_sslmode = require',
      'server_tls_protocols = tlsv1.1,tlsv1.2',
      'server_tls_ciphers = AES256-SHA',
    ),
    [
      `w.ini:9: ${reboot} AES128-SHA, AES256-SHA256`,
      `w.ini:10: ${reboot} TLS 1.0 and TLS 1.1`,
      `w.ini:12: ${reboot} TLS 1.1`,
      `w.ini:13: ${reboot} AES256-SHA`,
    ],
  );
  // TLS 1.3 has settings of its own, and a side without TLS has no connections
  assert.deepEqual(await about('client_tls_protocols = tlsv1.3', 'client_tls_ciphers = AES128-SHA'), []);
  assert.deepEqual(await about('server_tls_sslmode = disable', 'server_tls_protocols = all'), []);
});

it('--check reports the same TLS errors as a start', async () => {
  const certs = new CertFolder();
  const one = certs.issue(certs.authority('CA'), 'one', { cn: 'x' });
  const cases: Record<string, string>[] = [
    { client_tls_sslmode: 'require' },
    { client_tls_sslmode: 'require', client_tls_key_file: one.key, client_tls_cert_file: join(dir, 'nosuch.crt') },
    { client_tls_sslmode: 'require', client_tls_key_file: one.cert, client_tls_cert_file: one.cert },
    {
      client_tls_sslmode: 'verify-full',
      client_tls_key_file: one.key,
      client_tls_cert_file: one.cert,
      client_tls_ca_file: one.key,
    },
    {
      client_tls_sslmode: 'allow',
      client_tls_key_file: one.key,
      client_tls_cert_file: one.cert,
      client_tls_ciphers: 'no',
    },
    { server_tls_sslmode: 'prefer', server_tls_protocols: 'none' },
  ];
  for (const settings of cases) {
    await withPooler({ settings, wait: false }, async (pooler) => {
      assert.equal((await pooler.expectEnd()).code, 1);
      const { stdout } = await tsbouncer('--check', pooler.iniPath);
      const text = /:\d+: (.*)\n/.exec(stdout)?.[1] ?? stdout;
      assert.ok(pooler.log.text.includes(`ERROR ${text}\n`), `"${text}" is not in\n${pooler.log.text}`);
    });
  }
});

it('--check reports a resolv_conf that does not exist', async () => {
  const ini = file(
    'r.ini',
    ...main('auth_type = trust', `auth_file = ${file('u.txt', '"a" ""')}`, `resolv_conf = ${dir}/no`),
  );
  assert.deepEqual(await problems(ini), ['r.ini:6: could not open resolv_conf no: No such file or directory']);
});
