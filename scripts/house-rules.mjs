// The rules of the house that no linter knows.
//
//     node scripts/house-rules.mjs size   no file over 800 lines
//     node scripts/house-rules.mjs loop   nothing that the loop thread would never run
//     node scripts/house-rules.mjs clock  no clock but that of base/time.ts
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

const LINES_MAX = 800;
const SIZED = ['src', 'native', 'test', 'bench', 'compare', 'scripts'];
const SIZED_NAMES = /\.(ts|mjs|cjs|js|cc|h|cpp)$/;
const LOOP_THREAD = ['src/core', 'src/admin', 'src/takeover'];
const NEVER_RUNS =
  /\b(async|await|Promise|setTimeout|setInterval|setImmediate|queueMicrotask|WeakRef|FinalizationRegistry)\b|\bprocess\.(on|once|nextTick)\(/;

const TIMED = [...LOOP_THREAD, 'src/workers'];
/** The wall clock, or a second reading of the monotonic one that is not comparable with the first. */
const OTHER_CLOCKS = /\b(Date|performance|hrtime|wallOffset)\b|\bnative\.readClock\b/;
/** The clock itself, its declaration, the log's time stamps, and what systemd is told. */
const CLOCK_FILES = new Set(['time', 'native', 'timefmt', 'notify'].map((name) => `src/core/base/${name}.ts`));

process.chdir(fileURLToPath(new URL('..', import.meta.url)));

/** Files under those of the folders that there are, with such names. */
function filesUnder(folders, names) {
  const present = folders.filter((folder) => existsSync(folder));
  const list = execFileSync('find', [...present, '-type', 'f'], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  return list.split('\n').filter((name) => names.test(name));
}

/** The text with comments and strings blanked out, line by line the same. */
function codeOnly(text) {
  const token = /\/\*[\s\S]*?\*\/|\/\/[^\n]*|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"/g;
  return text.replace(token, (match) => match.replace(/[^\n]/g, ' '));
}

function checkSize() {
  return filesUnder(SIZED, SIZED_NAMES)
    .map((name) => ({ name, lines: readFileSync(name, 'utf8').split('\n').length - 1 }))
    .filter(({ lines }) => lines > LINES_MAX)
    .map(({ name, lines }) => `${name}: ${lines} lines, more than ${LINES_MAX}`);
}

function checkLoop() {
  return filesUnder(LOOP_THREAD, /\.ts$/).flatMap((name) =>
    codeOnly(readFileSync(name, 'utf8'))
      .split('\n')
      .flatMap((line, at) => {
        const match = NEVER_RUNS.exec(line);
        return match === null ? [] : [`${name}:${at + 1}: ${match[0]} never runs on the loop thread`];
      }),
  );
}

function checkClock() {
  return filesUnder(TIMED, /\.ts$/)
    .filter((name) => !CLOCK_FILES.has(name))
    .flatMap((name) =>
      codeOnly(readFileSync(name, 'utf8'))
        .split('\n')
        .flatMap((line, at) => {
          const match = OTHER_CLOCKS.exec(line);
          return match === null ? [] : [`${name}:${at + 1}: ${match[0]}: times come from base/time.ts`];
        }),
    );
}

const checks = { size: checkSize, loop: checkLoop, clock: checkClock };
const check = checks[process.argv[2]];
if (check === undefined) {
  console.error(`usage: house-rules.mjs ${Object.keys(checks).join(' | ')}`);
  process.exit(2);
}
const faults = check();
for (const fault of faults) console.error(fault);
if (faults.length > 0) process.exit(1);
