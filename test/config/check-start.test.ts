/*
 * --check of what a start opens and looks up: it reports what would make the start fail, and nothing else.
 */

import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { freePort } from '../../tools/postgres';
import { giveTo } from '../../tools/unprivileged';
import { after, before } from '../harness/limits';
import { dropDir, installed, it, type Outcome, run, tempDir, user } from '../harness/machine';

let dir = '';
let port = 0;
before(async () => {
  dir = tempDir('check-start');
  port = await freePort();
});
after(() => {
  chmodSync(join(dir, 'closed'), 0o755);
  dropDir(dir);
});

function file(name: string, text: string): string {
  const path = join(dir, name);
  writeFileSync(path, text);
  giveTo(user, path);
  return path;
}

/** A config file with these settings and those that it needs. */
function config(...settings: string[]): string {
  const users = `auth_file = ${file('users', '"u" ""\n')}`;
  const general = ['auth_type = trust', users, 'listen_addr = 127.0.0.1', `listen_port = ${port}`, 'unix_socket_dir ='];
  return file('p.ini', `${['[databases]', 'x = host=127.0.0.1', '[pgbouncer]', ...general, ...settings].join('\n')}\n`);
}

function tsbouncer(...args: string[]): Promise<Outcome> {
  const { node, mainJs } = installed();
  return run(node, [mainJs, ...args], { cwd: dir });
}

/** What --check says of the settings, without the position. */
async function checked(...settings: string[]): Promise<string[]> {
  const { stdout } = await tsbouncer('--check', config(...settings));
  const lines = stdout.split('\n').slice(0, -1);
  return lines.map((line) => line.replace(/^\S+p\.ini:\d+: /, '').replaceAll(`${dir}/`, ''));
}

it('--check reports what would make a start fail', async () => {
  const long = `${dir}/${'n'.repeat(100)}`;
  mkdirSync(long);
  giveTo(user, long);
  const unwritable = file('unwritable.log', '');
  chmodSync(unwritable, 0o400);
  const cases: [settings: string[], problem: RegExp][] = [
    [[`logfile = ${unwritable}`], /^Cannot open logfile: 'unwritable\.log': Permission denied$/],
    [[`logfile = ${dir}`], /^Cannot open logfile: '.*': it is a directory$/],
    [[`pidfile = ${file('pid', 'no number\n')}`], /^pidfile 'pid' exists, and has no process id$/],
    [['listen_addr = 127.0.0.1, no-such-host.invalid'], /^could not look up 'no-such-host\.invalid': /],
    [[`unix_socket_dir = ${long}`], /^n+\/\.s\.PGSQL\.\d+ is longer than 107 bytes$/],
    [
      [`unix_socket_dir = ${dir}`, 'unix_socket_group = root'],
      /user of the pooler may not give a socket to group 'root'$/,
    ],
    [[`unix_socket_dir = ${dir}`, 'unix_socket_group = no-such-group'], /^could not find group 'no-such-group'$/],
    [['listen_addr ='], /^warning: listen_addr and unix_socket_dir are empty/],
  ];
  for (const [settings, problem] of cases) {
    const found = (await checked(...settings)).filter((line) => !line.startsWith('warning: auth_type=trust'));
    assert.equal(found.length, 1, `${settings}: ${found}`);
    assert.match(found[0] as string, problem);
    const { code, stderr } = await tsbouncer(config(...settings));
    assert.equal(code, 1, `${settings}: ${stderr}`);
    assert.match(stderr, /FATAL/);
  }
});

it('--check accepts an unknown group if there is no Unix socket in the file system, as a start does', async () => {
  for (const where of ['', '@check-start']) {
    const found = await checked(`unix_socket_dir = ${where}`, 'unix_socket_group = no-such-group');
    assert.deepEqual(found, []);
  }
});

it('--check accepts a log file that exists in a folder that the user may not write to', async () => {
  const folder = join(dir, 'closed');
  mkdirSync(folder);
  giveTo(user, folder);
  const log = file('closed/log', '');
  chmodSync(folder, 0o555);
  assert.deepEqual(await checked(`logfile = ${log}`), []);
  assert.deepEqual(await checked('logfile = /dev/null'), []);
  assert.deepEqual(await checked(`logfile = ${folder}/new`), ['cannot write to closed: Permission denied']);
});

it('--check reports files without which the metrics port is not opened', async () => {
  const empty = file('empty', '\n');
  const metrics = ['metrics_port = 65000', 'metrics_addr = 127.0.0.1'];
  const cases: [settings: string[], problem: RegExp][] = [
    [['metrics_token_file = /nowhere/token'], /^could not open metrics_token_file \/nowhere\/token: No such file/],
    [[`metrics_token_file = ${empty}`], /^empty has no token$/],
    [[`metrics_tls_cert_file = ${empty}`], /^TLS needs metrics_tls_cert_file and metrics_tls_key_file$/],
    [
      [`metrics_tls_cert_file = ${empty}`, `metrics_tls_key_file = ${empty}`],
      /^certificate and key cannot be used: .*no start line/,
    ],
  ];
  for (const [settings, problem] of cases) {
    const found = await checked(...metrics, ...settings);
    assert.equal(found.length, 1, `${settings}: ${found}`);
    assert.match(found[0] as string, problem);
    assert.deepEqual(await checked(...settings), [], 'without metrics_port the files are not read');
  }
});
