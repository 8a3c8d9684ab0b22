// Completes the build after tsc: makes main.js executable for `bin`, and links the native addon to where the tests'
// compiled copy of src/ looks for it, two folders above src/core.
import { chmodSync, existsSync, lstatSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';

const top = join(import.meta.dirname ?? new URL('.', import.meta.url).pathname, '..');
const mainJs = join(top, 'dist', 'main.js');
if (existsSync(mainJs)) chmodSync(mainJs, 0o755);

const link = join(top, 'dist-test', 'build');
if (existsSync(join(top, 'dist-test')) && lstatSync(link, { throwIfNoEntry: false }) === undefined) {
  symlinkSync(join('..', 'build'), link);
}
