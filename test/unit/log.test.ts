/* The log: line format, levels, outputs, and what happens when the process ends. Each case runs in its own process. */

import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, runSync, test } from '../harness/limits';

const core = join(__dirname, '..', '..', 'src', 'core', 'base');
const dir = mkdtempSync(join(tmpdir(), 'tsbouncer-log-'));
after(() => rmSync(dir, { recursive: true, force: true }));

function run(body: string, env: Record<string, string> = { TZ: 'UTC' }) {
  const script = `const log = require(${JSON.stringify(join(core, 'log.js'))});\n${body}`;
  return runSync(process.execPath, ['-e', script], { env: { ...process.env, ...env } });
}

function tails(text: string): string[] {
  return text.split('\n').map((line) => line.replace(/^.*? \[\d+\] /, ''));
}

test('a log line has date, milliseconds, zone, pid, level and message', () => {
  const { stderr } = run("log.logInfo('process up')");
  assert.match(stderr, /^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} UTC \[\d+\] LOG process up\n$/);
});

test('the log omits levels below the verbosity', () => {
  const all =
    "log.logError('e');log.logWarning('w');log.logInfo('i');log.logStats('s');log.logDebug('d');log.logNoise('n');";
  assert.deepEqual(tails(run(all).stderr), ['ERROR e', 'WARNING w', 'LOG i', 'LOG s', '']);
  assert.deepEqual(tails(run(`log.logState.verbose=1;${all}`).stderr).slice(4), ['DEBUG d', '']);
  assert.deepEqual(tails(run(`log.logState.verbose=2;${all}`).stderr).slice(4), ['DEBUG d', 'NOISE n', '']);
});

test('a log message with newlines is indented and ends without white space', () => {
  assert.deepEqual(tails(run("log.logInfo('a\\nb \\n\\n')").stderr), ['LOG a', '\tb', '']);
});

test('the log preserves bytes and truncates overlong messages', () => {
  const { stderr } = run("log.logInfo('\\xc3\\xa4' + 'x'.repeat(5000))");
  assert.equal(tails(stderr)[0], `LOG \xc3\xa4${'x'.repeat(2045)}`);
});

test('the log has a socket prefix on socket messages only', () => {
  const body =
    "log.logPrefix.fn = (s) => s.name + ': '; log.slogInfo({name:'C-1'}, 'x'); log.slogInfo(null, 'y'); log.logInfo('z')";
  assert.deepEqual(tails(run(body).stderr), ['LOG C-1: x', 'LOG y', 'LOG z', '']);
});

test('quiet silences stderr but not the log file; resetLogging() reopens the file', () => {
  const file = join(dir, 'a.log');
  const { stderr } = run(`const s = log.logState; s.quiet = true; s.logfile = ${JSON.stringify(file)};
    log.logInfo('one'); require('fs').renameSync(s.logfile, s.logfile + '.1'); log.logInfo('two');
    log.resetLogging(); log.logInfo('three');`);
  assert.equal(stderr, '');
  assert.deepEqual(tails(readFileSync(`${file}.1`, 'latin1')), ['LOG one', 'LOG two', '']);
  assert.deepEqual(tails(readFileSync(file, 'latin1')), ['LOG three', '']);
});

test('a log file that cannot be opened ends the process with the message of PgBouncer', () => {
  const { status, stderr } = run("log.logState.logfile = '/nonexistent/x.log'; log.logInfo('x')");
  assert.equal(status, 1);
  assert.match(
    stderr,
    /^[\d-]+ [\d:.]+ UTC \d+ FATAL Cannot open logfile: '\/nonexistent\/x.log': [Nn]o such file or directory\n$/,
  );
});

test('die and fatal log FATAL, run the exit hooks newest first, and exit with 1', () => {
  const hooks =
    "log.atExit(() => console.log('first')); log.atExit(() => { console.log('second'); throw new Error('x'); });";
  const died = run(`${hooks} log.die('no config')`);
  assert.equal(died.status, 1);
  assert.equal(died.stdout, 'second\nfirst\n');
  assert.deepEqual(tails(died.stderr), ['FATAL no config', 'ERROR exit hook failed: x', '']);
  const bug = run("function place() { log.fatal('impossible'); } place()");
  assert.equal(bug.status, 1);
  assert.match(bug.stderr, /FATAL @.*:\d+ in function place\(\): impossible\n$/);
});

test('a failed write to the log file is not an error', () => {
  const { status, stderr } = run("log.logState.logfile = '/dev/full'; log.logInfo('x'); log.logInfo('y')");
  assert.equal(status, 0);
  assert.deepEqual(tails(stderr), ['LOG x', 'LOG y', '']);
});

test('log times have the abbreviation of the local zone in summer and winter', () => {
  const format = (usec: string, TZ: string): string =>
    runSync(
      process.execPath,
      [
        '-e',
        `const f=require(${JSON.stringify(join(core, 'timefmt.js'))});console.log(f.formatTimeS(${usec}), f.formatTimeMs(${usec}))`,
      ],
      { env: { ...process.env, TZ } },
    ).stdout;
  assert.equal(format('1751371200123456', 'UTC'), '2025-07-01 12:00:00 UTC 2025-07-01 12:00:00.123 UTC\n');
  assert.equal(format('1751371200000000', 'Europe/Tallinn'), '2025-07-01 15:00:00 EEST 2025-07-01 15:00:00.000 EEST\n');
  assert.equal(format('1735732800000000', 'Europe/Tallinn'), '2025-01-01 14:00:00 EET 2025-01-01 14:00:00.000 EET\n');
  assert.equal(format('1735732800000000', 'Asia/Kolkata'), '2025-01-01 17:30:00 IST 2025-01-01 17:30:00.000 IST\n');
});
