/*
 * Finds the file of the addon for native.ts: that of a checkout, which is compiled, or that of a package.
 */
import { closeSync, existsSync, openSync, readSync } from 'node:fs';
import { dirname, join } from 'node:path';

/** The name of the dynamic linker is near the beginning of a program. */
const HEADER_LENGTH = 4096;

/**
 * Whether the running Node uses musl instead of glibc. The program itself says so: a machine can have both libraries.
 * scripts/install-addon.mjs has the same rule.
 */
function isMusl(): boolean {
  const header = Buffer.alloc(HEADER_LENGTH);
  try {
    const fd = openSync('/proc/self/exe', 'r');
    readSync(fd, header);
    closeSync(fd);
  } catch {
    // without /proc, in a chroot
  }
  return header.includes('/ld-musl-');
}

/** Where a package has the addon for this machine and this Node; scripts/install-addon.mjs has the same rule. */
function prebuiltName(): string {
  const libc = isMusl() ? '-musl' : '';
  return join('prebuilds', `${process.platform}-${process.arch}${libc}`, `node-${process.versions.modules}.node`);
}

/**
 * The compiled addon, or else the package's own. Walks up to the package's root: this file is compiled into more than one
 * folder.
 * @throws if there is none for this machine and this Node
 */
export function findAddon(): string {
  const names = [join('build', 'Release', 'tsbouncer.node'), prebuiltName()];
  for (let dir = __dirname; ; dir = dirname(dir)) {
    const found = names.find((name) => existsSync(join(dir, name)));
    if (found !== undefined) return join(dir, found);
    if (dirname(dir) === dir) break;
  }
  const machine = `${process.platform}-${process.arch}`;
  throw new Error(`no addon for Node ${process.version} on ${machine}: npm rebuild tsbouncer compiles it`);
}
