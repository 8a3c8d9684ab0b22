// Completes the build after tsc: makes the programs of `bin` executable, and links the native addon to where the tests'
// compiled copy of src/ looks for it, two folders above src/core.
import { chmodSync, existsSync, lstatSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';

const top = join(import.meta.dirname ?? new URL('.', import.meta.url).pathname, '..');
for (const program of [
  join('dist', 'main.js'),
  join('dist', 'entrypoint.js'),
  join('dist-tools', 'demo', 'start.js'),
]) {
  if (existsSync(join(top, program))) chmodSync(join(top, program), 0o755);
}

const link = join(top, 'dist-test', 'build');
if (existsSync(join(top, 'dist-test')) && lstatSync(link, { throwIfNoEntry: false }) === undefined) {
  symlinkSync(join('..', 'build'), link);
}
