// `npm run deb`: makes tsbouncer_VERSION_ARCH.deb from the built tree, for Debian and Ubuntu with systemd and the Node that
// runs this script. Needs dpkg-deb.
//
//     node scripts/deb.mjs [folder]   the default is the project's folder
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { prebuiltName } from './install-addon.mjs';

const top = fileURLToPath(new URL('..', import.meta.url));
const folder = resolve(process.argv[2] ?? top);
const { version, dependencies } = JSON.parse(readFileSync(join(top, 'package.json'), 'utf8'));
const arch = { x64: 'amd64', arm64: 'arm64' }[process.arch];
const ABI = Number(process.versions.node.split('.')[0]);
const HOME = 'usr/lib/tsbouncer';

const CONFFILES = ['/etc/tsbouncer/tsbouncer.ini', '/etc/tsbouncer/userlist.txt'];

/** Makes the user that the unit names, and keeps passwords to it. The service is not started: it has no database yet. */
const POSTINST = `#!/bin/sh
set -e
if [ "$1" = configure ]; then
  getent passwd postgres >/dev/null || adduser --system --quiet --home /var/lib/postgresql --no-create-home \\
    --shell /bin/sh --group --gecos "PostgreSQL administrator" postgres
  chown root:postgres ${CONFFILES.join(' ')}
  chmod 640 ${CONFFILES.join(' ')}
  [ ! -d /run/systemd/system ] || systemctl daemon-reload
fi
`;

/** An upgrade leaves the old process running: "systemctl reload", with the unit's online reboot, replaces it. */
const PRERM = `#!/bin/sh
set -e
if [ "$1" = remove ] && [ -d /run/systemd/system ]; then
  systemctl --no-reload disable --now tsbouncer.service tsbouncer.socket
fi
`;

const POSTRM = `#!/bin/sh
set -e
[ ! -d /run/systemd/system ] || systemctl daemon-reload
`;

function fail(text) {
  console.error(text);
  process.exit(1);
}

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

/** The newest version of the C library that the addon names. */
function libcVersion(addon) {
  const found = [...readFileSync(addon, 'latin1').matchAll(/GLIBC_(\d+)\.(\d+)/g)].map((match) => Number(match[2]));
  return `2.${Math.max(...found)}`;
}

const addon = join(top, prebuiltName());
if (arch === undefined || process.platform !== 'linux') fail('only for linux on x64 and arm64');
if (!existsSync(join(top, 'dist', 'main.js')) || !existsSync(addon)) {
  fail('not built: run npm run build && node scripts/prebuild.mjs');
}

const root = mkdtempSync(join(tmpdir(), 'tsbouncer-deb-'));
chmodSync(root, 0o755);
const at = (path) => {
  mkdirSync(dirname(join(root, path)), { recursive: true });
  return join(root, path);
};
const write = (path, text, mode = 0o644) => writeFileSync(at(path), text, { mode });
const read = (path) => readFileSync(join(top, path));

cpSync(join(top, 'dist'), at(`${HOME}/dist`), { recursive: true, filter: (path) => !/\/dist\/(man|demo)$/.test(path) });
cpSync(addon, at(join(HOME, prebuiltName())));
write(`${HOME}/package.json`, read('package.json'));
for (const name of needed(Object.keys(dependencies))) {
  cpSync(join(top, 'node_modules', name), at(`${HOME}/node_modules/${name}`), { recursive: true });
}
symlinkSync('../lib/tsbouncer/dist/main.js', at('usr/bin/tsbouncer'));
for (const section of [1, 5]) {
  write(`usr/share/man/man${section}/tsbouncer.${section}.gz`, gzipSync(read(`dist/man/tsbouncer.${section}`)));
}
for (const unit of ['service', 'socket'])
  write(`usr/lib/systemd/system/tsbouncer.${unit}`, read(`etc/tsbouncer.${unit}`));
for (const page of readdirSync(join(top, 'docs'))) write(`usr/share/doc/tsbouncer/${page}`, read(`docs/${page}`));
write('usr/share/doc/tsbouncer/copyright', read('LICENSE'));
write('usr/share/doc/tsbouncer/changelog.gz', gzipSync(read('CHANGELOG.md')));
const ini = read('etc/tsbouncer.ini').toString('latin1');
write(
  'etc/tsbouncer/tsbouncer.ini',
  Buffer.from(ini.replace(/^auth_file = .*/m, `auth_file = ${CONFFILES[1]}`), 'latin1'),
);
// no user: the passwords of the sample file are public
write('etc/tsbouncer/userlist.txt', '');

write(
  'DEBIAN/control',
  `Package: tsbouncer
Version: ${version}
Architecture: ${arch}
Maintainer: The tsbouncer authors <tsbouncer@localhost>
Section: database
Priority: optional
Depends: nodejs (>= ${ABI}), nodejs (<< ${ABI + 1}), libc6 (>= ${libcVersion(addon)}), adduser
Recommends: openssl
Description: connection pooler for PostgreSQL, compatible with PgBouncer
 It reads PgBouncer's config and has its console, signals and log lines. It
 takes over from a running PgBouncer without disconnecting clients.
`,
);
write('DEBIAN/conffiles', `${CONFFILES.join('\n')}\n`);
write('DEBIAN/postinst', POSTINST, 0o755);
write('DEBIAN/prerm', PRERM, 0o755);
write('DEBIAN/postrm', POSTRM, 0o755);

const file = join(folder, `tsbouncer_${version}_${arch}.deb`);
const built = spawnSync('dpkg-deb', ['--root-owner-group', '--build', root, file], {
  stdio: ['ignore', 'ignore', 'inherit'],
});
rmSync(root, { recursive: true });
if (built.status !== 0) fail('dpkg-deb failed');
console.log(file);
