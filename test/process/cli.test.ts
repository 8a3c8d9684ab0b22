/*
 * The command line: accepted options, refused options with their texts, and exit codes. If PgBouncer is installed, its
 * answers are compared too.
 */

import assert from 'node:assert/strict';
import { chmodSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { type Answer, type Options, parseOptions, usageText, versionText } from '../../src/cli/options';
import { PGBOUNCER_COMPAT_VERSION, TSBOUNCER_VERSION } from '../../src/core/base/version';
import { freePort } from '../../tools/postgres';
import { giveTo, type RunUser } from '../../tools/unprivileged';
import {
  iniText,
  installed,
  it,
  itUnless,
  noOriginal,
  notRoot,
  originalBin,
  type RunOptions,
  run,
  tempDir,
  user,
} from '../harness';

function options(...args: string[]): Options {
  const parsed = parseOptions(args);
  assert.ok(!('exitCode' in parsed), `refused: ${JSON.stringify(parsed)}`);
  return parsed;
}

function answer(...args: string[]): Answer {
  const parsed = parseOptions(args);
  assert.ok('exitCode' in parsed, `accepted: ${JSON.stringify(parsed)}`);
  return parsed;
}

function tsbouncer(args: string[], options: RunOptions = {}) {
  const { node, mainJs } = installed();
  return run(node, [mainJs, ...args], options);
}

const REFUSED: [string[], string][] = [
  [[], 'no configuration file specified'],
  [['-d'], 'no configuration file specified'],
  [['a.ini', 'b.ini'], 'no configuration file specified'],
  [['--'], 'no configuration file specified'],
  [['-x', 'a.ini'], "invalid option -- 'x'"],
  [['-dx', 'a.ini'], "invalid option -- 'x'"],
  [['a.ini', '-q-'], "invalid option -- '-'"],
  [['-u'], "option requires an argument -- 'u'"],
  [['a.ini', '-vu'], "option requires an argument -- 'u'"],
  [['--user'], "option '--user' requires an argument"],
  [['--us'], "option '--user' requires an argument"],
  [['--foo', 'a.ini'], "unrecognized option '--foo'"],
  [['--foo=1', 'a.ini'], "unrecognized option '--foo=1'"],
  [['--quietly', 'a.ini'], "unrecognized option '--quietly'"],
  [['--reboot=now', 'a.ini'], "option '--reboot' doesn't allow an argument"],
  [['--re=now', 'a.ini'], "option '--reboot' doesn't allow an argument"],
  [['--ver', 'a.ini'], "option '--ver' is ambiguous; possibilities: '--verbose' '--version'"],
  [['--v=1', 'a.ini'], "option '--v=1' is ambiguous; possibilities: '--verbose' '--version'"],
];

it('a command line with only a file name sets no option', () => {
  const expected = {
    configFile: 'a.ini',
    daemon: false,
    quiet: false,
    check: false,
    connect: false,
    diff: false,
    reboot: false,
    verbose: 0,
    user: null,
  };
  assert.deepEqual(options('a.ini'), expected);
  assert.deepEqual(options('--', '-a.ini'), { ...expected, configFile: '-a.ini' });
  assert.deepEqual(options('-'), { ...expected, configFile: '-' });
});

it('short options work alone, in clusters, and after the file name', () => {
  const parsed = options('-vvv', 'a.ini', '-dR', '-q', '-v');
  const expected = {
    configFile: 'a.ini',
    daemon: true,
    quiet: true,
    check: false,
    connect: false,
    diff: false,
    reboot: true,
    verbose: 4,
    user: null,
  };
  assert.deepEqual(parsed, expected);
});

it('long options and their unique abbreviations work', () => {
  const parsed = options('--verbose', '--daemon', '--quiet', '--reboot', '--verb', '--user=joe', 'a.ini');
  const expected = {
    configFile: 'a.ini',
    daemon: true,
    quiet: true,
    check: false,
    connect: false,
    diff: false,
    reboot: true,
    verbose: 2,
    user: 'joe',
  };
  assert.deepEqual(parsed, expected);
  assert.equal(options('--da', 'a.ini').daemon, true);
  assert.equal(options('--u', 'joe', 'a.ini').user, 'joe');
});

it('-u takes the rest of its cluster or the next argument, even if that begins with a dash', () => {
  assert.equal(options('-ujoe', 'a.ini').user, 'joe');
  assert.equal(options('-u', 'joe', 'a.ini').user, 'joe');
  assert.equal(options('-qu', '-d', 'a.ini').user, '-d');
  assert.equal(options('-u', '--', 'a.ini').user, '--');
  assert.equal(options('-u007', 'a.ini').user, '007');
  assert.equal(options('--user=', 'a.ini').user, '');
  assert.equal(options('-uann', '-ubob', 'a.ini').user, 'bob');
  assert.equal(options('--user=a=b', 'a.ini').user, 'a=b');
});

it('non-ASCII arguments become byte strings', () => {
  assert.equal(options('-u', 'jürgen', 'ä.ini').user, 'j\u00c3\u00bcrgen');
  assert.equal(options('ä.ini').configFile, '\u00c3\u00a4.ini');
});

it('a file name that looks like a number stays text', () => {
  assert.equal(options('007').configFile, '007');
  assert.equal(options('1e3').configFile, '1e3');
});

it('bad options are refused with the texts of the C library and exit code 1', () => {
  for (const [args, message] of REFUSED) {
    const stderr = `tsbouncer: ${message}\nTry "tsbouncer --help" for more information.\n`;
    assert.deepEqual(answer(...args), { exitCode: 1, stdout: '', stderr }, args.join(' '));
  }
});

it('--connect and --diff belong to --check, and have no abbreviations', () => {
  assert.match(answer('--diff', 'x.ini').stderr, /^tsbouncer: --connect and --diff need --check\n/);
  assert.equal(options('--check', '--diff', 'x.ini').diff, true);
  assert.equal(options('--check', '--connect', 'x.ini').connect, true);
  assert.equal(options('--d', 'x.ini').daemon, true);
});

itUnless(noOriginal)('PgBouncer refuses the same command lines with the same texts', async () => {
  const bin = originalBin() as string;
  for (const [args] of REFUSED) {
    const theirs = await run(bin, args, { env: { ...process.env, LC_ALL: 'C' } });
    const ours = answer(...args);
    assert.equal(ours.stderr, theirs.stderr.replaceAll(bin, 'tsbouncer'), args.join(' '));
    assert.equal(ours.exitCode, theirs.code, args.join(' '));
  }
});

it('--help and --version ignore the arguments after them', () => {
  assert.deepEqual(answer('-h'), { exitCode: 0, stdout: usageText(), stderr: '' });
  assert.deepEqual(answer('--help', '--nonsense'), answer('-h'));
  assert.deepEqual(answer('-V', '-x'), { exitCode: 0, stdout: versionText(), stderr: '' });
  assert.deepEqual(answer('-dV'), answer('--version'));
  assert.equal(answer('-x', '-V').exitCode, 1);
});

itUnless(noOriginal)('--help lists the options as PgBouncer does', async () => {
  const bin = originalBin() as string;
  const theirs = (await run(bin, ['--help'])).stdout.replaceAll(bin, 'tsbouncer');
  const upToOptions = (text: string) => text.slice(0, text.indexOf('\n\n', text.indexOf('Options:')));
  assert.equal(upToOptions(usageText()), upToOptions(theirs));
});

it('--version names every component', () => {
  const lines = versionText().split('\n');
  assert.equal(lines[0], `PgBouncer ${PGBOUNCER_COMPAT_VERSION}`);
  assert.equal(lines[1], `tsbouncer ${TSBOUNCER_VERSION}`);
  assert.match(lines[2] as string, /^loop: libuv \d+\.\d+\.\d+$/);
  assert.match(lines[3] as string, /^tls: OpenSSL \d+\.\d+\.\d+/);
  assert.match(lines[4] as string, /^node v\d+\.\d+\.\d+$/);
});

it('tsbouncer prints help and version to stdout and errors to stderr', async () => {
  const help = await tsbouncer(['--help']);
  assert.deepEqual([help.code, help.stdout, help.stderr], [0, usageText(), '']);
  const version = await tsbouncer(['-V']);
  assert.deepEqual([version.code, version.stdout, version.stderr], [0, versionText(), '']);
  const refused = await tsbouncer(['--nonsense']);
  assert.deepEqual([refused.code, refused.stdout], [1, '']);
  assert.match(refused.stderr, /^tsbouncer: unrecognized option '--nonsense'\nTry /);
});

it('a missing config file is a startup error', async () => {
  const outcome = await tsbouncer(['/nonexistent/a.ini']);
  assert.equal(outcome.code, 1);
  assert.match(outcome.stderr, /ERROR could not load file "\/nonexistent\/a\.ini": No such file or directory\n/);
  assert.match(outcome.stderr, /FATAL cannot load config file\n$/);
});

async function someIni(settings: Record<string, string | number> = {}): Promise<string> {
  const dir = tempDir('cli');
  const path = join(dir, 'a.ini');
  const base = { listen_addr: '127.0.0.1', listen_port: await freePort(), unix_socket_dir: dir, auth_type: 'any' };
  writeFileSync(path, iniText({ databases: { db: 'host=127.0.0.1' }, pgbouncer: { ...base, ...settings } }));
  giveTo(user, dir);
  return path;
}

it('-q also suppresses the startup error', async () => {
  const outcome = await tsbouncer(['-q', '/nonexistent/a.ini']);
  assert.deepEqual([outcome.code, outcome.stderr], [1, '']);
});

it('-u with an unknown user is a startup error', async () => {
  const outcome = await tsbouncer(['-u', 'no-such-user', await someIni()]);
  assert.equal(outcome.code, 1);
  assert.match(outcome.stderr, /FATAL could not find user 'no-such-user' to switch to\n/);
});

it('-u fails without the right to switch users', async () => {
  const outcome = await tsbouncer(['-u', 'root', await someIni()]);
  assert.equal(outcome.code, 1);
  assert.match(outcome.stderr, /FATAL failed to assume identity of user 'root': Operation not permitted\n/);
});

itUnless(notRoot)('the pooler refuses to run as root', async () => {
  const outcome = await tsbouncer([await someIni()], { asSelf: true });
  assert.equal(outcome.code, 1);
  assert.match(outcome.stderr, /FATAL PgBouncer should not run as root\n/);
});

itUnless(notRoot)('root may start the pooler as another user, and -u overrides the setting `user`', async () => {
  const { name } = user as RunUser;
  const outcome = await tsbouncer(['-u', 'no-such-user', await someIni({ user: name })], { asSelf: true });
  assert.match(outcome.stderr, /FATAL could not find user 'no-such-user' to switch to\n/);
});

itUnless(notRoot)('an unreadable config file is a startup error', async () => {
  const path = await someIni();
  giveTo({ name: 'root', uid: 0, gid: 0 }, path);
  chmodSync(path, 0o600);
  const outcome = await tsbouncer([path]);
  assert.equal(outcome.code, 1);
  assert.match(outcome.stderr, /could not load file ".*a\.ini": Permission denied\n/);
});
