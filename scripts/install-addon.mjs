// Runs when the package is installed: does nothing if it has an addon for this machine, and compiles one otherwise. Does
// nothing in a checkout either, where `npm run build` compiles it.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';

const top = fileURLToPath(new URL('..', import.meta.url));

/** The path of the addon for this machine and this Node, in the package. src/core/base/native.ts looks there. */
export function prebuiltName() {
  const machine = { x64: 'x86_64', arm64: 'aarch64' }[process.arch] ?? process.arch;
  const libc = existsSync(`/lib/ld-musl-${machine}.so.1`) ? '-musl' : '';
  return join('prebuilds', `${process.platform}-${process.arch}${libc}`, `node-${process.versions.modules}.node`);
}

function compile() {
  console.log(`tsbouncer: no addon for Node ${process.version} on this machine, compiling it`);
  const gyp = process.env.npm_config_node_gyp;
  const [program, ...first] = gyp === undefined ? ['node-gyp'] : [process.execPath, gyp];
  const { status } = spawnSync(program, [...first, 'rebuild'], { cwd: top, stdio: 'inherit' });
  if (status === 0) return;
  console.error('tsbouncer: could not compile the addon: python3, make and g++ are needed');
  process.exit(1);
}

if (import.meta.url === pathToFileURL(process.argv[1]).href) {
  const isCheckout = existsSync(join(top, 'tsconfig.json'));
  if (!isCheckout && !existsSync(join(top, prebuiltName()))) compile();
}
