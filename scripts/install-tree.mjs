// The installed program without npm: what the Debian package and the container image have in /usr/lib/tsbouncer.
import { chmodSync, cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { prebuiltName } from './install-addon.mjs';

const top = fileURLToPath(new URL('..', import.meta.url));

/** Where the program lies, relative to the root. */
export const HOME = 'usr/lib/tsbouncer';

/** The files in dist that are started. */
const PROGRAMS = ['main.js', 'entrypoint.js'];

/** What a package of npm has besides its program. */
const UNUSED = /\/node_modules\/[^/]+\/(?:src|types|test|example|\..*)$|\.(?:[cm]?ts|map|md)$/;

/** The packages that the installed program needs, and those that these need. */
function needed(names, found = new Set()) {
  for (const name of names) {
    if (name === 'node-addon-api' || found.has(name)) continue;
    found.add(name);
    const own = JSON.parse(readFileSync(join(top, 'node_modules', name, 'package.json'), 'utf8'));
    needed(Object.keys(own.dependencies ?? {}), found);
  }
  return found;
}

/** The addons for this kind of machine, as paths in the package; at least that for the Node that runs this script. */
export function prebuiltAddons() {
  const folder = dirname(prebuiltName());
  return readdirSync(join(top, folder))
    .filter((name) => /^node-\d+\.node$/.test(name))
    .map((name) => join(folder, name));
}

/**
 * The versions of Debian's package nodejs that have an addon, as parts of Depends. Addons are made for even versions only,
 * so each gap has a part of its own: the version is below it or above it.
 * @param majors versions of Node
 */
export function nodeVersions(majors) {
  const [first, ...others] = majors.toSorted((a, b) => a - b);
  const parts = [`nodejs (>= ${first})`];
  let end = first + 1;
  for (const major of others) {
    if (major > end) parts.push(`nodejs (<< ${end}) | nodejs (>= ${major})`);
    end = major + 1;
  }
  return [...parts, `nodejs (<< ${end})`];
}

/**
 * Copies the built program, its packages of npm and its addons to ROOT/usr/lib/tsbouncer, where every user may read them.
 * @returns the names of the packages
 */
export function installTree(root) {
  const home = join(root, HOME);
  mkdirSync(home, { recursive: true });
  const copy = (from, to, filter) => {
    mkdirSync(dirname(join(home, to)), { recursive: true });
    cpSync(join(top, from), join(home, to), { recursive: true, filter });
  };
  copy('dist', 'dist', (path) => !/\/dist\/(man|demo)$/.test(path));
  for (const addon of prebuiltAddons()) copy(addon, addon);
  const { name, version, license, dependencies } = JSON.parse(readFileSync(join(top, 'package.json'), 'utf8'));
  writeFileSync(join(home, 'package.json'), `${JSON.stringify({ name, version, license }, null, 2)}\n`);
  const packages = [...needed(Object.keys(dependencies))];
  for (const needs of packages) {
    copy(`node_modules/${needs}`, `node_modules/${needs}`, (path) => !UNUSED.test(path));
  }
  for (const name of PROGRAMS) startBy('/usr/bin/node', join(home, 'dist', name));
  makeReadable(home);
  return packages;
}

/**
 * The Node of the package or image, whatever PATH has: another may lack an addon. An image without a shell has no
 * /usr/bin/env either.
 */
function startBy(program, path) {
  writeFileSync(path, readFileSync(path, 'utf8').replace(/^#!.*\n/, `#!${program}\n`));
}

const isProgram = (path) => PROGRAMS.some((name) => path.endsWith(`/dist/${name}`));

/** What the umask and the packages of npm made of permissions, undone; only PROGRAMS may be started. */
function makeReadable(folder) {
  chmodSync(folder, 0o755);
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) makeReadable(path);
    else chmodSync(path, isProgram(path) ? 0o755 : 0o644);
  }
}
