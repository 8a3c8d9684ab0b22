// Builds the addon with AddressSanitizer and UndefinedBehaviorSanitizer in a copy of the tree, and runs all tests
// there, or only the named ones. With --thread: with ThreadSanitizer, and with poolers that use two io_threads; that takes
// about 45 minutes, and leaves out the tests that it cannot run. Fails if a test fails, or if a process of a test leaves a
// sanitizer report.
//
//     node scripts/sanitize.mjs [--thread] [native tls-native …]
//
// Needs g++ with its sanitizer libraries (Debian's g++ has them).
import { spawn, spawnSync } from 'node:child_process';
import {
  chmodSync,
  cpSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, dirname, isAbsolute, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const args = process.argv.slice(2);
const threads = args[0] === '--thread';
if (threads) args.shift();
const SANITIZERS = threads ? '-fsanitize=thread' : '-fsanitize=address,undefined';
const LIBRARY = threads ? 'libtsan.so' : 'libasan.so';
// the compiled tests are copied, because the compiler finds in dist-test/ what has not changed since
const NOT_COPIED = new Set(['.git', '.demo', 'build', 'dist', 'dist-tools', 'node_modules']);

/** Tests that ThreadSanitizer makes fail, and why. They run if they are named. */
const UNSUITED = {
  'they start poolers without its library': ['bench', 'chart', 'image-files', 'operators', 'package', 'process-name'],
  'they measure memory, of which it needs a multiple': ['hostile', 'security-fixes-since-1.19', 'soak'],
  'a process with threads cannot fork with it': ['password-command'],
  'they need more time than a test has': ['clock', 'takeover-classic', 'takeover-failure'],
};

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const copy = mkdtempSync(join(tmpdir(), 'tsb-sanitize-'));
process.on('exit', () => rmSync(copy, { recursive: true, force: true }));
/** the child process of the current step */
let child = null;
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) {
  process.on(signal, () => {
    child?.kill();
    process.exit(1);
  });
}

/** Resolves to the exit code. */
function step(program, args, env = {}) {
  return new Promise((settle) => {
    child = spawn(program, args, { cwd: copy, stdio: 'inherit', env: { ...process.env, ...env } });
    child.on('error', (err) => {
      console.error(String(err));
      settle(1);
    });
    child.on('close', (code) => settle(code ?? 1));
  });
}

// the sanitizer must be the first library loaded, because node itself is built without it
const found = spawnSync('g++', [`-print-file-name=${LIBRARY}`], { encoding: 'latin1' }).stdout?.trim() ?? '';
if (!isAbsolute(found)) {
  console.error(`g++ has no ${LIBRARY}`);
  process.exit(1);
}

for (const name of readdirSync(root)) {
  if (!NOT_COPIED.has(name)) cpSync(join(root, name), join(copy, name), { recursive: true, verbatimSymlinks: true });
}
symlinkSync(join(root, 'node_modules'), join(copy, 'node_modules'));
chmodSync(copy, 0o755);
const reports = join(copy, 'reports');
mkdirSync(reports);
chmodSync(reports, 0o777);

// programs started by the poolers inherit the library, but PostgreSQL's programs do not work with it
const bin = join(copy, 'bin');
mkdirSync(bin);
const psql = spawnSync('/bin/sh', ['-c', 'command -v psql'], { encoding: 'latin1' }).stdout.trim();
writeFileSync(join(bin, 'psql'), `#!/bin/sh\nunset LD_PRELOAD\nexec "${psql}" "$@"\n`, { mode: 0o755 });

// what Node itself does is not known to ThreadSanitizer: it sees neither its atomics nor its own locks
const suppressions = join(copy, 'suppressions');
writeFileSync(suppressions, `race:${realpathSync(process.execPath)}\n`);

const flags = `${SANITIZERS} -fno-sanitize-recover=all -fno-omit-frame-pointer -O1 -g`;
const built =
  (await step('npm', ['run', 'build:native'], { CXXFLAGS: flags, LDFLAGS: SANITIZERS })) ||
  (await step('npm', ['run', 'build:ts'])) ||
  (await step('npm', ['run', 'man'])) ||
  (await step('npm', ['run', 'build:test']));
if (built !== 0) process.exit(built);

/** The names of all tests but those. */
function suitedTests() {
  const unsuited = Object.values(UNSUITED).flat();
  const names = readdirSync(join(copy, 'dist-test', 'test'), { recursive: true })
    .filter((path) => path.endsWith('.test.js'))
    .map((path) => basename(path, '.test.js'));
  const unknown = unsuited.filter((name) => !names.includes(name));
  if (unknown.length > 0) {
    console.error(`no such test: ${unknown.join(', ')}`);
    process.exit(1);
  }
  return names.filter((name) => !unsuited.includes(name));
}

const wanted = threads && args.length === 0 ? suitedTests() : args;
const status = await step(process.execPath, ['scripts/run-tests.mjs', ...wanted], {
  PATH: `${bin}:${process.env.PATH}`,
  LD_PRELOAD: found,
  // Node frees little at exit, so leak reports are useless; V8 has its own SIGSEGV handler; tests measure memory
  ASAN_OPTIONS: `detect_leaks=0:allow_user_segv_handler=1:quarantine_size_mb=4:log_path=${reports}/asan`,
  // reports on stderr and ends the process, so that the test fails
  UBSAN_OPTIONS: 'print_stacktrace=1',
  // V8, which is not built with it, calls what it must not call in a signal handler. A process ends without waiting for
  // Node's worker threads.
  TSAN_OPTIONS: `report_signal_unsafe=0:report_thread_leaks=0:suppressions=${suppressions}:log_path=${reports}/tsan`,
  ...(threads ? { TEST_IO_THREADS: '2' } : {}),
  TSBOUNCER_PRELOAD: found,
});
if (wanted !== args) {
  for (const [reason, names] of Object.entries(UNSUITED)) console.log(`not run, ${reason}: ${names.join(', ')}`);
}
const files = readdirSync(reports);
for (const name of files) console.error(`\n${name}:\n${readFileSync(join(reports, name), 'latin1')}`);
console.log(`sanitizers: ${files.length} reports`);
process.exit(files.length > 0 ? 1 : status);
