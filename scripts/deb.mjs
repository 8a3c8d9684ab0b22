// Makes two packages for Debian and Ubuntu from the built tree (`npm run deb`). The package tsbouncer is the pooler, for
// each Node that has an addon in prebuilds/. The package tsbouncer-pgbouncer replaces the package pgbouncer: it gives
// tsbouncer that name, its unit and its files. What they install besides the program is in packaging/deb/. Needs
// dpkg-deb.
//
//     node scripts/deb.mjs [folder [version]]   the defaults are the project's folder and version
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { NODE_OF_ABI, prebuiltName } from './install-addon.mjs';
import { HOME, installTree, nodeVersions, prebuiltAddons } from './install-tree.mjs';

const top = fileURLToPath(new URL('..', import.meta.url));
const folder = resolve(process.argv[2] ?? top);
const version = process.argv[3] ?? JSON.parse(readFileSync(join(top, 'package.json'), 'utf8')).version;
const arch = { x64: 'amd64', arm64: 'arm64' }[process.arch];
const MAINTAINER = 'The tsbouncer authors <tsbouncer@users.noreply.github.com>';
const SCRIPTS = ['preinst', 'postinst', 'prerm', 'postrm'];

/** What PgBouncer's package was when its unit, paths and conffiles were read: what this one says it provides. */
const PGBOUNCER_VERSION = /PGBOUNCER_COMPAT_VERSION = '([\d.]+)'/.exec(
  readFileSync(join(top, 'src', 'core', 'base', 'version.ts'), 'latin1'),
)[1];

function fail(text) {
  console.error(text);
  process.exit(1);
}

const read = (path) => readFileSync(join(top, path));

/** The newest version of the C library that a program names. */
function libcVersion(addon) {
  const found = [...readFileSync(addon, 'latin1').matchAll(/GLIBC_(\d+)\.(\d+)/g)].map((match) => Number(match[2]));
  return `2.${Math.max(...found)}`;
}

/** What the addons need: versions of Node, and C libraries. */
function runtimeDependencies() {
  const addons = prebuiltAddons();
  const nodes = addons.map((path) => NODE_OF_ABI[/node-(\d+)/.exec(path)[1]]).filter((major) => major !== undefined);
  if (nodes.length === 0) fail(`no addon for a version of Node that is maintained: ${addons.join(', ')}`);
  const libc = addons
    .map((path) => libcVersion(join(top, path)))
    .sort((a, b) => a.localeCompare(b, 'en', { numeric: true }));
  return [
    ...nodeVersions(nodes),
    `libc6 (>= ${libc.at(-1)})`,
    'libgcc-s1',
    'libstdc++6',
    'systemd-standalone-sysusers | systemd-sysusers | systemd',
    'systemd-standalone-tmpfiles | systemd-tmpfiles | systemd',
  ];
}

/** A package that is being assembled in a folder. */
class Package {
  constructor(name, architecture) {
    this.name = name;
    this.architecture = architecture;
    this.root = mkdtempSync(join(tmpdir(), `${name}-deb-`));
    chmodSync(this.root, 0o755);
    for (const script of SCRIPTS.filter((kind) => existsSync(join(top, `packaging/deb/${name}.${kind}`)))) {
      this.write(`DEBIAN/${script}`, read(`packaging/deb/${name}.${script}`), 0o755);
    }
  }

  at(path) {
    mkdirSync(dirname(join(this.root, path)), { recursive: true });
    return join(this.root, path);
  }

  write(path, data, mode = 0o644) {
    writeFileSync(this.at(path), data);
    chmodSync(this.at(path), mode);
  }

  zip(path, data) {
    this.write(`${path}.gz`, gzipSync(data, { level: 9 }));
  }

  /** What each package has to say: licence, history, and the faults that lintian reports for a reason. */
  document(date, packages = []) {
    const doc = `usr/share/doc/${this.name}`;
    this.write(`${doc}/copyright`, copyright(packages));
    const entry = `${this.name} (${version}) unstable; urgency=medium\n\n  * See CHANGELOG.md.gz of the package tsbouncer.\n\n`;
    this.zip(`${doc}/changelog`, `${entry} -- ${MAINTAINER}  ${date}\n`);
    const overrides = `packaging/deb/${this.name}.lintian-overrides`;
    if (existsSync(join(top, overrides))) this.write(`usr/share/lintian/overrides/${this.name}`, read(overrides));
  }

  /** @param fields of the control file, after those that every package has */
  build(fields) {
    const files = [...walk(this.root)].filter((path) => !path.startsWith('DEBIAN/'));
    const size = files.reduce((sum, path) => sum + Math.ceil(statSync(join(this.root, path)).size / 1024), 0);
    const sums = spawnSync('md5sum', ['--', ...files], { cwd: this.root });
    this.write('DEBIAN/md5sums', sums.stdout);
    const first = { Package: this.name, Version: version, Architecture: this.architecture, Maintainer: MAINTAINER };
    const control = { ...first, 'Installed-Size': size, Section: 'database', Priority: 'optional', ...fields };
    const text = Object.entries(control).map(([key, value]) => `${key}: ${value}\n`);
    this.write('DEBIAN/control', text.join(''));
    const file = join(folder, `${this.name}_${version}_${this.architecture}.deb`);
    const built = spawnSync('dpkg-deb', ['--root-owner-group', '--build', this.root, file], {
      stdio: ['ignore', 'ignore', 'inherit'],
      env: { ...process.env, SOURCE_DATE_EPOCH: String(changed) },
    });
    rmSync(this.root, { recursive: true });
    if (built.status !== 0) fail('dpkg-deb failed');
    console.log(file);
  }
}

/** The regular files below a folder, as paths relative to `root`. */
function* walk(root, below = '') {
  const entries = readdirSync(join(root, below), { withFileTypes: true });
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const path = join(below, entry.name);
    if (entry.isDirectory()) yield* walk(root, path);
    else if (entry.isFile()) yield path;
  }
}

/** The licences of the program and of the packages of npm in it. */
function copyright(packages) {
  const others = packages
    .filter((name) => existsSync(join(top, 'node_modules', name, 'LICENSE')))
    .map((name) => `\n\nThe files in /${HOME}/node_modules/${name}:\n\n${read(`node_modules/${name}/LICENSE`)}`);
  return `${read('LICENSE')}${others.join('')}`;
}

/** The commit's time, so that the same tree makes the same packages; in seconds. */
function changeTime() {
  if (process.env.SOURCE_DATE_EPOCH !== undefined) return Number(process.env.SOURCE_DATE_EPOCH);
  const git = spawnSync('git', ['log', '-1', '--format=%ct'], { cwd: top, encoding: 'utf8' });
  return git.status === 0 ? Number(git.stdout) : Math.floor(statSync(join(top, 'package.json')).mtimeMs / 1000);
}

function manPages(pack, name) {
  for (const section of [1, 5]) {
    const path = `usr/share/man/man${section}/${name}.${section}`;
    if (name === 'tsbouncer') pack.zip(path, read(`dist/man/tsbouncer.${section}`));
    else symlinkSync(`tsbouncer.${section}.gz`, pack.at(`${path}.gz`));
  }
}

function makeTsbouncer(date) {
  const pack = new Package('tsbouncer', arch);
  const packages = installTree(pack.root);
  symlinkSync('../lib/tsbouncer/dist/main.js', pack.at('usr/bin/tsbouncer'));
  pack.write(`${HOME}/online-reboot`, read('packaging/deb/online-reboot'), 0o755);
  pack.write('usr/lib/sysusers.d/tsbouncer.conf', read('packaging/deb/sysusers.conf'));
  pack.write('usr/lib/tmpfiles.d/tsbouncer.conf', read('packaging/deb/tmpfiles.conf'));
  pack.write('etc/logrotate.d/tsbouncer', read('packaging/deb/logrotate'));
  const socket = read('etc/tsbouncer.socket').toString().replace('=/tmp/.s', '=/run/tsbouncer/.s');
  pack.write('usr/lib/systemd/system/tsbouncer.socket', socket);
  const service = read('etc/tsbouncer.service').toString().replace('/online-reboot.md', '/online-reboot.md.gz');
  pack.write('usr/lib/systemd/system/tsbouncer.service', service);
  const takeover = 'tsbouncer-takeover.service';
  pack.write(`usr/lib/systemd/system/${takeover}`, read(`packaging/deb/${takeover}`));
  // it never changes, so a new version asks no question about what the administrator has changed
  pack.write('etc/tsbouncer/tsbouncer.ini', read('packaging/deb/tsbouncer.ini'));
  const examples = 'usr/share/doc/tsbouncer/examples';
  pack.write(`${examples}/tsbouncer.ini`, read('etc/tsbouncer.ini'));
  for (const file of readdirSync(join(top, 'etc/grafana')))
    pack.write(`${examples}/grafana/${file}`, read(`etc/grafana/${file}`));
  // no user: the passwords of the sample file are public
  pack.write('etc/tsbouncer/userlist.txt', '');
  manPages(pack, 'tsbouncer');
  for (const page of readdirSync(join(top, 'docs'))) pack.zip(`usr/share/doc/tsbouncer/${page}`, read(`docs/${page}`));
  pack.zip('usr/share/doc/tsbouncer/CHANGELOG.md', read('CHANGELOG.md'));
  pack.document(date, packages);
  const conffiles = ['/etc/logrotate.d/tsbouncer', '/etc/tsbouncer/tsbouncer.ini', '/etc/tsbouncer/userlist.txt'];
  pack.write('DEBIAN/conffiles', `${conffiles.join('\n')}\n`);
  pack.build({
    Depends: runtimeDependencies().join(', '),
    Suggests: 'logrotate, tsbouncer-pgbouncer',
    Description: `connection pooler for PostgreSQL, compatible with PgBouncer
 It reads PgBouncer's config and has its console, signals and log lines. It
 takes over from a running PgBouncer without disconnecting clients, and a new
 version of it takes over from the old one.`,
  });
}

function makePgbouncer(date) {
  const pack = new Package('tsbouncer-pgbouncer', 'all');
  const doc = 'usr/share/doc/tsbouncer-pgbouncer';
  symlinkSync('../bin/tsbouncer', pack.at('usr/sbin/pgbouncer'));
  pack.write('usr/lib/systemd/system/pgbouncer.service', read('packaging/deb/pgbouncer.service'));
  const socket = read('etc/tsbouncer.socket').toString().replace('=/tmp/.s', '=/run/postgresql/.s');
  pack.write('usr/lib/systemd/system/pgbouncer.socket', socket);
  pack.write(`${doc}/examples/pgbouncer.ini`, read('packaging/deb/pgbouncer.ini'));
  manPages(pack, 'pgbouncer');
  pack.document(date);
  pack.build({
    'Pre-Depends': 'init-system-helpers (>= 1.54~)',
    Depends: `tsbouncer (= ${version}), postgresql-common (>= 26)`,
    Provides: `pgbouncer (= ${PGBOUNCER_VERSION})`,
    Conflicts: 'pgbouncer',
    Replaces: 'pgbouncer',
    Description: `tsbouncer in the place of the package pgbouncer
 It has the program /usr/sbin/pgbouncer and the service pgbouncer, which run
 tsbouncer with the files in /etc/pgbouncer.
 .
 For the installation without disconnecting clients see "Debian package" in
 /usr/share/doc/tsbouncer/install.md.gz: "systemctl start tsbouncer-takeover"
 comes first.`,
  });
}

if (arch === undefined || process.platform !== 'linux') fail('only for linux on x64 and arm64');
if (!existsSync(join(top, 'dist', 'main.js')) || !existsSync(join(top, prebuiltName()))) {
  fail('not built: run npm run build && node scripts/prebuild.mjs');
}
const changed = changeTime();
const date = new Date(changed * 1000).toUTCString().replace('GMT', '+0000');
makeTsbouncer(date);
makePgbouncer(date);
