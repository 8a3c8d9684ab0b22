// Puts the built addon where an installed package looks for it: prebuilds/<platform>-<arch>[-musl]/node-<ABI>.node. Runs
// before `npm pack`. A release has one file for each platform and each version of Node (.github/workflows/release.yml).
//
//     node scripts/prebuild.mjs [--libc 2.31] [--arch arm64]
//
// --arch compiles it for another kind of machine with glibc, by Debian's cross compiler. Debian has no C++ compiler for
// musl, so those addons are compiled on Alpine. --libc is the newest version of glibc that the addon may need. Without
// --libc it may need that of the machine that compiles it.
import { spawnSync } from 'node:child_process';
import { copyFileSync, cpSync, existsSync, mkdirSync, mkdtempSync, renameSync, rmSync, symlinkSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { headersArgument, prebuiltName } from './install-addon.mjs';

const top = fileURLToPath(new URL('..', import.meta.url));

/** By the name of the architecture in Node: in the header of a program, and in the names of the cross compiler. */
const MACHINES = {
  x64: { elf: 'X86-64', triplet: 'x86_64-linux-gnu' },
  arm64: { elf: 'AArch64', triplet: 'aarch64-linux-gnu' },
};

/** The libraries that an addon may need, on any system. Node itself needs them too. */
const LIBRARIES = /^(?:lib(?:stdc\+\+|m|gcc_s|c|pthread|dl)\.so\.\d+|libc\.musl-\w+\.so\.1|ld-linux.*)$/;

function fail(text) {
  console.error(text);
  process.exit(1);
}

function readelf(option, file) {
  const { status, stdout, error } = spawnSync('readelf', ['--wide', option, file], { encoding: 'utf8' });
  if (error || status !== 0) fail(`readelf cannot read ${file}: ${error ?? `exit status ${status}`}`);
  return stdout;
}

const isNewer = (a, b) => a.localeCompare(b, 'en', { numeric: true }) > 0;

/** Compares what the addon says of itself with what its place promises. */
function check(file, arch, glibcMax) {
  const machine = /Machine:\s+(.*)/.exec(readelf('--file-header', file))?.[1] ?? '';
  if (!machine.includes(MACHINES[arch].elf)) fail(`${file} is for ${machine}, not for ${arch}`);
  const needed = [...readelf('--dynamic', file).matchAll(/\(NEEDED\).*\[(.*)\]/g)].map((match) => match[1]);
  const foreign = needed.filter((name) => !LIBRARIES.test(name));
  if (foreign.length > 0) fail(`${file} needs ${foreign.join(', ')}`);
  const found = [...readelf('--version-info', file).matchAll(/\bGLIBC_([\d.]+)/g)].map((match) => match[1]);
  const glibc = found.reduce((newest, version) => (isNewer(version, newest) ? version : newest), '0');
  if (glibcMax !== undefined && isNewer(glibc, glibcMax))
    fail(`${file} needs glibc ${glibc}, and ${glibcMax} is the newest allowed`);
  return `${machine}, needs ${needed.join(' ')}${glibc === '0' ? '' : `, glibc ${glibc}`}`;
}

/** Compiles the addon for another kind of machine, in a folder of its own. */
function crossCompile(arch) {
  const { triplet } = MACHINES[arch];
  const folder = mkdtempSync(join(tmpdir(), 'tsbouncer-cross-'));
  cpSync(join(top, 'native'), join(folder, 'native'), { recursive: true });
  copyFileSync(join(top, 'binding.gyp'), join(folder, 'binding.gyp'));
  symlinkSync(join(top, 'node_modules'), join(folder, 'node_modules'));
  const tools = { CC: `${triplet}-gcc`, CXX: `${triplet}-g++`, LINK: `${triplet}-g++`, AR: `${triplet}-ar` };
  if (spawnSync(tools.CXX, ['--version']).error) fail(`${tools.CXX} is needed: apt install g++-${triplet}`);
  const gyp = createRequire(import.meta.url).resolve('node-gyp/bin/node-gyp.js');
  const path = `${dirname(process.execPath)}:${process.env.PATH ?? ''}`;
  const { status } = spawnSync(process.execPath, [gyp, 'rebuild', `--arch=${arch}`, ...headersArgument()], {
    cwd: folder,
    stdio: ['ignore', 'ignore', 'inherit'],
    env: { JOBS: 'max', ...process.env, ...tools, PATH: path, npm_config_loglevel: 'error' },
  });
  if (status !== 0) fail(`could not compile the addon for ${arch}`);
  return folder;
}

const { values } = parseArgs({ options: { arch: { type: 'string' }, libc: { type: 'string' } } });
const arch = values.arch ?? process.arch;
if (MACHINES[arch] === undefined) fail(`only for ${Object.keys(MACHINES).join(' and ')}`);
const isCross = arch !== process.arch;
const folder = isCross ? crossCompile(arch) : top;
const built = join(folder, 'build', 'Release', 'tsbouncer.node');
if (!existsSync(built)) fail('the addon is not built: run npm run build');
const name = isCross ? prebuiltName(`linux-${arch}`) : prebuiltName();
const to = join(top, name);
const report = check(built, arch, values.libc);
mkdirSync(dirname(to), { recursive: true });
// another program may be reading the earlier one, and `npm pack` takes every file that it finds in prebuilds/
const scratch = join(top, 'build');
mkdirSync(scratch, { recursive: true });
const part = join(scratch, `${basename(to)}.${process.pid}`);
copyFileSync(built, part);
if (isCross) rmSync(folder, { recursive: true });
// without symbols it is half as large; it works with them too
spawnSync(isCross ? `${MACHINES[arch].triplet}-strip` : 'strip', ['--strip-unneeded', part]);
renameSync(part, to);
console.log(`${name}: ${report}`);
