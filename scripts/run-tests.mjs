// Runs the compiled tests, four files at a time on two cores, because they often wait: all test files, or only the named ones.
//
//     node scripts/run-tests.mjs [cli daemon …]
//
// Lists the skipped tests and the reasons at the end. With TEST_SKIPS=refuse a skipped test is a failure.
//
// Calls Node's test runner as a function, because its command line options differ between the supported releases.
import { chmodSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { run } from 'node:test';
import { spec } from 'node:test/reporters';
import { fileURLToPath } from 'node:url';

const FILE_MS_MAX = 10 * 60_000;
const FILES_AT_ONCE = 4;
const NO_REASON = 'no reason is given';
/** Files that take longest: they start first, so that no core is idle at the end. */
const LONG = [
  'takeover-classic',
  'takeover-failure',
  'takeover-stopped',
  'takeover-pgbench',
  'tls-records',
  'timeouts',
  'simulation',
  'login-order',
  'native-loop',
  'bench',
  'security',
  'takeover-tls',
  'variables',
  'takeover-matrix',
  'soak',
];

const dir = fileURLToPath(new URL('../dist-test/test/', import.meta.url));
const wanted = process.argv.slice(2).map((name) => `${name.replace(/(\.test)?(\.[tj]s)?$/, '')}.test.js`);
/** path below `dir` by file name; file names are unique across folders */
const present = new Map(
  readdirSync(dir, { recursive: true, encoding: 'utf8' })
    .filter((path) => path.endsWith('.test.js'))
    .map((path) => [basename(path), path]),
);
const long = LONG.map((name) => `${name}.test.js`);
const unknown = [...wanted, ...long].filter((name) => !present.has(name));
if (unknown.length > 0 || present.size === 0) {
  console.error(`no such test: ${unknown.join(', ') || dir}`);
  process.exit(1);
}

const names = wanted.length > 0 ? wanted : [...present.keys()].sort();
const inOrder = [...long.filter((name) => names.includes(name)), ...names.filter((name) => !long.includes(name))];
const files = inOrder.map((name) => join(dir, present.get(name)));
// where the files share data folders: test/harness/cluster.ts
const templates = mkdtempSync(join(tmpdir(), 'tsb-templates-'));
chmodSync(templates, 0o755);
process.on('exit', () => rmSync(templates, { recursive: true, force: true }));
for (const signal of ['SIGHUP', 'SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1));
process.env.TEST_DATA_TEMPLATES = templates;
const concurrency = Math.min(FILES_AT_ONCE, availableParallelism() + 2);
const results = run({ files, concurrency, timeout: FILE_MS_MAX });
results.on('test:fail', () => {
  process.exitCode = 1;
});
/** names of the skipped tests by reason */
const skipped = new Map();
results.on('test:pass', ({ name, skip }) => {
  if (skip === undefined || skip === false) return;
  const reason = typeof skip === 'string' && skip !== '' ? skip : NO_REASON;
  skipped.set(reason, [...(skipped.get(reason) ?? []), name]);
});
results.on('end', () => {
  process.on('exit', () => {
    for (const [reason, names] of skipped) {
      console.log(`\nskipped because ${reason}:`);
      for (const name of names) console.log(`  - ${name}`);
    }
    if (skipped.has(NO_REASON)) {
      console.error('\nFAILED: a skipped test must give a reason');
      process.exitCode = 1;
    }
    if (skipped.size > 0 && process.env.TEST_SKIPS === 'refuse') {
      console.error('\nFAILED: tests were skipped although TEST_SKIPS=refuse is set');
      process.exitCode = 1;
    }
  });
});
results.compose(new spec()).pipe(process.stdout);
