// Runs the compiled tests, two files at a time: all of them, or those whose names are given.
//
//     node scripts/run-tests.mjs [cli daemon …]
//
// Node's own runner through its function, because its command line options differ between the releases we support.
import { readdirSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { run } from 'node:test';
import { spec } from 'node:test/reporters';
import { fileURLToPath } from 'node:url';

const FILE_MS_MAX = 15 * 60_000;
const FILES_AT_ONCE = 2;

const dir = fileURLToPath(new URL('../dist-test/test/', import.meta.url));
const wanted = process.argv.slice(2).map((name) => `${name.replace(/(\.test)?(\.[tj]s)?$/, '')}.test.js`);
const present = readdirSync(dir).filter((name) => name.endsWith('.test.js'));
const unknown = wanted.filter((name) => !present.includes(name));
if (unknown.length > 0 || present.length === 0) {
  console.error(`no such test: ${unknown.join(', ') || dir}`);
  process.exit(1);
}

const files = (wanted.length > 0 ? wanted : present).map((name) => join(dir, name));
const concurrency = Math.min(FILES_AT_ONCE, availableParallelism());
const results = run({ files, concurrency, timeout: FILE_MS_MAX });
results.on('test:fail', () => {
  process.exitCode = 1;
});
results.compose(new spec()).pipe(process.stdout);
