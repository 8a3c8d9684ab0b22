// Lists the texts that are tsbouncer's own: log lines, reasons for a disconnect and answers of the console that contain
// a word not found in the texts of PgBouncer's source. The others have PgBouncer's words, and must not change.
//
//     PGBOUNCER_SRC=DIR node scripts/texts.mjs    DIR is a source tree of PgBouncer, including its submodule lib
//
// Of each call, the string literals and the fixed parts of templates count; {} stands for an inserted value.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import ts from 'typescript';

/** Functions that take a text for the log, a client or the console. */
const CALLS =
  /^(s?log(Noise|Debug|Info|Stats|Warning|Error)|die|fatal(Errno)?|disconnect(Client|Server)|sendPoolerError|close(Client|Server)List|killPool(Logins|s)|admin(Error|Fail|Ready))$/;
const C_FOLDERS = ['src', 'lib/usual'];
/** Strings, and function names: some of PgBouncer's log lines begin with __func__. */
const C_TEXT = /"(?:[^"\\\n]|\\.)*"|\b[a-z]\w*_\w+(?=\()/g;
const WORD = /[a-z]+(?:'[a-z]+)?/gi;

process.chdir(fileURLToPath(new URL('..', import.meta.url)));

/** The files in a folder and its subfolders whose names match. */
function filesUnder(folder, names) {
  return readdirSync(folder, { recursive: true })
    .filter((name) => names.test(name))
    .map((name) => join(folder, name))
    .sort();
}

/** All words in strings and function names of PgBouncer's C source, in lower case. */
function wordsOfPgBouncer(folder) {
  const words = new Set();
  for (const name of C_FOLDERS.flatMap((part) => filesUnder(join(folder, part), /\.[ch]$/))) {
    for (const [text] of readFileSync(name, 'latin1').matchAll(C_TEXT))
      for (const [word] of text.replace(/\\./g, ' ').matchAll(WORD)) words.add(word.toLowerCase());
  }
  return words;
}

/** The texts that an expression may have as its value. */
function textsOf(node) {
  if (ts.isStringLiteral(node) || ts.isNoSubstitutionTemplateLiteral(node)) return [node.text];
  if (ts.isTemplateExpression(node))
    return [node.head.text + node.templateSpans.map(({ literal }) => `{}${literal.text}`).join('')];
  if (ts.isParenthesizedExpression(node)) return textsOf(node.expression);
  if (ts.isConditionalExpression(node)) return [...textsOf(node.whenTrue), ...textsOf(node.whenFalse)];
  if (ts.isBinaryExpression(node)) {
    const [left, right] = [textsOf(node.left), textsOf(node.right)];
    if (node.operatorToken.kind === ts.SyntaxKind.QuestionQuestionToken) return [...left, ...right];
    if (node.operatorToken.kind !== ts.SyntaxKind.PlusToken) return [];
    return (left.length > 0 ? left : ['{}']).flatMap((a) => (right.length > 0 ? right : ['{}']).map((b) => a + b));
  }
  return [];
}

/** Every text at one of the calls in a file, with its line. */
function textsIn(name) {
  const source = ts.createSourceFile(name, readFileSync(name, 'utf8'), ts.ScriptTarget.Latest, true);
  const found = [];
  const visit = (node) => {
    if (ts.isCallExpression(node) && ts.isIdentifier(node.expression) && CALLS.test(node.expression.text)) {
      for (const argument of node.arguments) {
        const line = source.getLineAndCharacterOfPosition(argument.getStart(source)).line + 1;
        found.push(...textsOf(argument).map((text) => ({ line, text })));
      }
    }
    ts.forEachChild(node, visit);
  };
  visit(source);
  return found;
}

const folder = process.env.PGBOUNCER_SRC;
if (folder === undefined || folder === '') {
  console.log('PGBOUNCER_SRC is not set: it must name a source tree of PgBouncer to compare the texts with');
  process.exit(0);
}
for (const part of C_FOLDERS) {
  if (existsSync(join(folder, part))) continue;
  console.error(`not a source tree of PgBouncer with its submodule: ${join(folder, part)} does not exist`);
  process.exit(2);
}
const known = wordsOfPgBouncer(folder);
let total = 0;
let own = 0;
for (const name of filesUnder('src', /\.ts$/)) {
  for (const { line, text } of textsIn(name)) {
    total++;
    const words = [...text.matchAll(WORD)].map(([word]) => word).filter((word) => !known.has(word.toLowerCase()));
    if (words.length === 0) continue;
    own++;
    console.log(`${name}:${line}: "${text}" (${words.join(', ')})`);
  }
}
console.log(`${own} of ${total} texts have words that PgBouncer does not have`);
