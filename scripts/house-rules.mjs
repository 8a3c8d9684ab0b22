// Project rules that the linter cannot check.
//
//     node scripts/house-rules.mjs size   no file over 500 lines
//     node scripts/house-rules.mjs loop   no asynchronous call that would never complete on the loop thread
//     node scripts/house-rules.mjs clock  no clock except that of base/time.ts
//     node scripts/house-rules.mjs ascii  no matching beyond ASCII, because texts are byte strings
//     node scripts/house-rules.mjs limits  no test, hook or child process of a test without a time limit
//     node scripts/house-rules.mjs results  no ignored result of an addon function
//     node scripts/house-rules.mjs exports  no export that no other file imports
//     node scripts/house-rules.mjs functions  no function in src, native and bench of more than 60 lines
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';

const LINES_MAX = 500;
const FUNCTION_LINES_MAX = 60;
const SIZED = ['src', 'native', 'tools', 'test', 'bench', 'compare', 'scripts'];
const SIZED_NAMES = /\.(ts|mjs|cjs|js|cc|h|cpp)$/;
const LOOP_THREAD = ['src/core', 'src/admin', 'src/takeover'];
const NEVER_RUNS =
  /\b(async|await|Promise|setTimeout|setInterval|setImmediate|queueMicrotask|WeakRef|FinalizationRegistry)\b|\bprocess\.(on|once|nextTick)\(/;

const TIMED = [...LOOP_THREAD, 'src/workers'];
/** The wall clock, or another monotonic clock whose readings cannot be compared with those of base/time.ts. */
const OTHER_CLOCKS = /\b(Date|performance|hrtime|wallOffset)\b|\bnative\.readClock\b/;
/** The clock itself, its declaration, the log's time stamps, and messages to systemd. */
const CLOCK_FILES = new Set(['time', 'native', 'timefmt', 'systemd'].map((name) => `src/core/base/${name}.ts`));

/** Byte strings hold one byte per character, but these treat A0 as a space and C0 as the capital of E0. */
const UNICODE_AWARE = /\\[sSwWbB]|\.(?:trim|trimStart|trimEnd|toLowerCase|toUpperCase|localeCompare)\b|\btoLocale/;
const ASCII_FILE = 'src/core/base/strutil.ts';
const UNLIMITED =
  /from 'node:test'|(?<![.\w])(?:spawnSync|execFile|execSync|execFileSync|fork)\(|\badopt\(\s*spawn\(|= spawn\(/;
const HARNESS_FILES = new Set(['test/harness/limits.ts', 'test/harness/machine.ts']);
const NATIVE_FILE = 'src/core/base/native.ts';

process.chdir(fileURLToPath(new URL('..', import.meta.url)));

/** Files with matching names under the folders that exist. */
function filesUnder(folders, names) {
  const present = folders.filter((folder) => existsSync(folder));
  const list = execFileSync('find', [...present, '-type', 'f'], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  return list.split('\n').filter((name) => names.test(name));
}

/** The text with comments and strings blanked out; line numbers do not change. */
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

/** All matches in the code of the files. */
function findAll(files, pattern, why) {
  return files.flatMap((name) =>
    codeOnly(readFileSync(name, 'utf8'))
      .split('\n')
      .flatMap((line, at) => {
        const match = pattern.exec(line);
        return match === null ? [] : [`${name}:${at + 1}: ${match[0]}: ${why}`];
      }),
  );
}

const checkLoop = () => findAll(filesUnder(LOOP_THREAD, /\.ts$/), NEVER_RUNS, 'never runs on the loop thread');

function checkClock() {
  const files = filesUnder(TIMED, /\.ts$/).filter((name) => !CLOCK_FILES.has(name));
  return findAll(files, OTHER_CLOCKS, 'times come from base/time.ts');
}

function checkAscii() {
  const files = filesUnder(LOOP_THREAD, /\.ts$/).filter((name) => name !== ASCII_FILE);
  return findAll(files, UNICODE_AWARE, `also matches bytes above 7F; ${ASCII_FILE} has what matches ASCII only`);
}

/** Tests must use the harness for tests, hooks and child processes: it gives each a time limit and ends leftovers. */
function checkLimits() {
  return filesUnder(['test'], /\.ts$/)
    .filter((name) => !HARNESS_FILES.has(name))
    .flatMap((name) =>
      readFileSync(name, 'utf8')
        .split('\n')
        .flatMap((line, at) => {
          const match = UNLIMITED.exec(line);
          return match === null ? [] : [`${name}:${at + 1}: ${match[0]}: has no limit; test/harness has what has one`];
        }),
    );
}

/** The functions of interface Native that return a value. */
function nativeResults() {
  const source = parseSource(NATIVE_FILE);
  const facade = source.statements.find((node) => ts.isInterfaceDeclaration(node) && node.name.text === 'Native');
  const methods = facade.members.filter(ts.isMethodSignature);
  return new Set(
    methods.filter((node) => node.type.kind !== ts.SyntaxKind.VoidKeyword).map((node) => node.name.getText(source)),
  );
}

const parseSource = (name) => ts.createSourceFile(name, readFileSync(name, 'utf8'), ts.ScriptTarget.Latest, true);

function checkResults() {
  const results = nativeResults();
  return filesUnder(['src'], /\.ts$/).flatMap((name) => {
    const source = parseSource(name);
    const faults = [];
    const visit = (node) => {
      const call = ts.isExpressionStatement(node) ? node.expression : undefined;
      if (call && ts.isCallExpression(call) && ts.isPropertyAccessExpression(call.expression)) {
        const { expression, name: method } = call.expression;
        if (expression.getText(source) === 'native' && results.has(method.text)) {
          const { line } = source.getLineAndCharacterOfPosition(node.getStart(source));
          faults.push(`${name}:${line + 1}: the result of native.${method.text}() is not looked at`);
        }
      }
      ts.forEachChild(node, visit);
    };
    visit(source);
    return faults;
  });
}

/** Imports are resolved as TypeScript does: `./x` is x.ts or x/index.ts. */
function resolveImport(from, specifier) {
  const path = join(dirname(from), specifier);
  return [`${path}.ts`, join(path, 'index.ts')].find((name) => existsSync(name));
}

/** A file's imports from other files, as `file#name`, or `file#*` for the whole module. */
function importsOf(name, source) {
  const found = [];
  const visit = (node) => {
    const specifier = ts.isImportDeclaration(node) || ts.isExportDeclaration(node) ? node.moduleSpecifier : undefined;
    const file = specifier?.text?.startsWith('.') ? resolveImport(name, specifier.text) : undefined;
    if (file !== undefined) {
      const names = ts.isImportDeclaration(node) ? node.importClause?.namedBindings : node.exportClause;
      if (names?.elements === undefined) found.push(`${file}#*`);
      else for (const element of names.elements) found.push(`${file}#${(element.propertyName ?? element.name).text}`);
    }
    // import('./x') and typeof import('./x') import the whole module
    if (
      (ts.isCallExpression(node) && node.expression.kind === ts.SyntaxKind.ImportKeyword) ||
      ts.isImportTypeNode(node)
    ) {
      const text = ts.isImportTypeNode(node) ? node.argument.literal?.text : node.arguments[0]?.text;
      const loaded = text?.startsWith('.') ? resolveImport(name, text) : undefined;
      if (loaded !== undefined) found.push(`${loaded}#*`);
    }
    ts.forEachChild(node, visit);
  };
  visit(source);
  return found;
}

function exportsOf(source) {
  return source.statements.flatMap((node) => {
    if (!node.modifiers?.some(({ kind }) => kind === ts.SyntaxKind.ExportKeyword)) return [];
    const named = ts.isVariableStatement(node) ? node.declarationList.declarations : [node];
    return named
      .flatMap(({ name }) => (ts.isObjectBindingPattern(name) ? name.elements.map((each) => each.name) : [name]))
      .map((name) => ({ name: name.getText(source), at: node.getStart(source) }));
  });
}

function checkExports() {
  const sources = filesUnder(SIZED, /\.ts$/).map((name) => ({ name, source: parseSource(name) }));
  const imported = new Set(sources.flatMap(({ name, source }) => importsOf(name, source)));
  return sources.flatMap(({ name, source }) =>
    imported.has(`${name}#*`)
      ? []
      : exportsOf(source)
          .filter((each) => !imported.has(`${name}#${each.name}`))
          .map(({ name: what, at }) => {
            const { line } = source.getLineAndCharacterOfPosition(at);
            return `${name}:${line + 1}: no other file imports ${what}`;
          }),
  );
}

/** C++ in the project's format: a definition begins in the first column and ends with a brace in that column. */
function longCppFunctions(name) {
  const lines = codeOnly(readFileSync(name, 'utf8')).split('\n');
  const faults = [];
  let start = -1;
  lines.forEach((line, at) => {
    if (/^[A-Za-z].*\)( const| override| noexcept)* \{$/.test(line) || (start < 0 && /^ {4,}.*\) \{$/.test(line)))
      start = at;
    else if (line === '}' && start >= 0) {
      if (at - start + 1 > FUNCTION_LINES_MAX)
        faults.push(`${name}:${start + 1}: ${at - start + 1} lines in one function`);
      start = -1;
    }
  });
  return faults;
}

function checkFunctions() {
  const faults = filesUnder(['native', 'bench'], /\.cc$/).flatMap(longCppFunctions);
  for (const name of filesUnder(['src', 'bench'], /\.ts$/)) {
    const source = parseSource(name);
    const lineOf = (at) => source.getLineAndCharacterOfPosition(at).line + 1;
    const visit = (node) => {
      if (ts.isFunctionLike(node) && node.body !== undefined) {
        const lines = lineOf(node.end) - lineOf(node.getStart(source)) + 1;
        if (lines > FUNCTION_LINES_MAX)
          faults.push(
            `${name}:${lineOf(node.getStart(source))}: ${lines} lines in ${node.name?.getText(source) ?? 'a function'}`,
          );
      }
      ts.forEachChild(node, visit);
    };
    visit(source);
  }
  return faults;
}

const checks = {
  exports: checkExports,
  functions: checkFunctions,
  size: checkSize,
  loop: checkLoop,
  clock: checkClock,
  ascii: checkAscii,
  results: checkResults,
  limits: checkLimits,
};
const check = checks[process.argv[2]];
if (check === undefined) {
  console.error(`usage: house-rules.mjs ${Object.keys(checks).join(' | ')}`);
  process.exit(2);
}
const faults = check();
for (const fault of faults) console.error(fault);
if (faults.length > 0) process.exit(1);
