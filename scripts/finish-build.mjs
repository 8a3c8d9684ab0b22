// Completes the build after tsc. Makes the programs of `bin` executable, and copies the files of the live page. Links the
// native addon to where the tests' compiled copy of src/ looks for it, two folders above src/core.
import {
  chmodSync,
  cpSync,
  existsSync,
  lstatSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';

const top = join(import.meta.dirname ?? new URL('.', import.meta.url).pathname, '..');
for (const program of [
  join('dist', 'main.js'),
  join('dist', 'entrypoint.js'),
  join('dist-tools', 'demo', 'start.js'),
]) {
  if (existsSync(join(top, program))) chmodSync(join(top, program), 0o755);
}

/**
 * Takes the line `exports.a = exports.b = void 0;` out of compiled modules. Only an export that is assigned once is a
 * constant to V8, and the hot path calls many.
 */
function assignExportsOnce(folder) {
  for (const name of readdirSync(folder, { recursive: true })) {
    if (!name.endsWith('.js')) continue;
    const file = join(folder, name);
    const text = readFileSync(file, 'utf8');
    const once = text.replace(/^exports\..* = void 0;\n/m, '');
    if (once !== text) writeFileSync(file, once);
  }
}

for (const folder of [join('dist', 'core'), join('dist-test', 'src', 'core')])
  if (existsSync(join(top, folder))) assignExportsOnce(join(top, folder));

for (const workers of [join('dist', 'workers'), join('dist-test', 'src', 'workers')]) {
  if (!existsSync(join(top, workers))) continue;
  const folder = join(top, workers, 'page');
  rmSync(folder, { recursive: true, force: true });
  cpSync(join(top, 'src', 'workers', 'page'), folder, { recursive: true });
}

const link = join(top, 'dist-test', 'build');
if (existsSync(join(top, 'dist-test')) && lstatSync(link, { throwIfNoEntry: false }) === undefined) {
  symlinkSync(join('..', 'build'), link);
}
