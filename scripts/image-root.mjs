// Makes the files of the container image, except Node and what the image below has: `node scripts/image-root.mjs FOLDER`.
// Called by packaging/container/Dockerfile and scripts/image-test.sh, after `npm run build` and scripts/prebuild.mjs.
import { chmodSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { installTree } from './install-tree.mjs';

/**
 * Folders for config, log, pidfile and Unix socket, writable for the one user of a container, whatever its number. With a
 * read-only root file system they are volumes, or unused.
 */
const WRITABLE = [
  'etc/pgbouncer',
  'var/log/pgbouncer',
  'run/pgbouncer',
  'opt/bitnami/pgbouncer/logs',
  'opt/bitnami/pgbouncer/tmp',
];

const root = process.argv[2];
if (root === undefined) {
  console.error('usage: node scripts/image-root.mjs FOLDER');
  process.exit(1);
}

installTree(root);
mkdirSync(join(root, 'usr/bin'), { recursive: true });
mkdirSync(join(root, 'usr/sbin'), { recursive: true });
for (const link of ['usr/bin/tsbouncer', 'usr/bin/pgbouncer', 'usr/sbin/pgbouncer']) {
  symlinkSync('../lib/tsbouncer/dist/main.js', join(root, link));
}
symlinkSync('../lib/tsbouncer/dist/entrypoint.js', join(root, 'usr/bin/tsbouncer-entrypoint'));
mkdirSync(join(root, 'usr/share/doc/tsbouncer'), { recursive: true });
writeFileSync(join(root, 'usr/share/doc/tsbouncer/copyright'), readFileSync(new URL('../LICENSE', import.meta.url)));
// inis for bitnami's image name its paths; that image copies its volume to them
for (const folder of ['bitnami/pgbouncer/conf', 'opt/bitnami/pgbouncer/bin']) {
  mkdirSync(join(root, folder), { recursive: true });
}
symlinkSync('/bitnami/pgbouncer/conf', join(root, 'opt/bitnami/pgbouncer/conf'));
symlinkSync('/usr/bin/pgbouncer', join(root, 'opt/bitnami/pgbouncer/bin/pgbouncer'));
for (const folder of WRITABLE) {
  const path = join(root, folder);
  mkdirSync(path, { recursive: true });
  chmodSync(path, 0o1777);
}
