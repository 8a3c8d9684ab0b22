// Puts the built addon where an installed package looks for it: prebuilds/<platform>-<arch>[-musl]/node-<ABI>.node. Runs
// before `npm pack`. A release has one file for each platform and each version of Node (.github/workflows/release.yml).
import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { prebuiltName } from './install-addon.mjs';

const top = fileURLToPath(new URL('..', import.meta.url));
const built = join(top, 'build', 'Release', 'tsbouncer.node');
if (!existsSync(built)) {
  console.error('the addon is not built: run npm run build');
  process.exit(1);
}
const to = join(top, prebuiltName());
mkdirSync(join(to, '..'), { recursive: true });
copyFileSync(built, to);
// without symbols it is half as large; it works with them too
spawnSync('strip', ['--strip-unneeded', to]);
