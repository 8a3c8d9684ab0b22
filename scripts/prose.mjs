// Checks the project's English: words that hide who is meant, and sentences that are too long to read in one go.
//
//     node scripts/prose.mjs                 the pages for people, and the comments of the folders in COMMENT_FOLDERS
//     node scripts/prose.mjs PATH...         these pages (.md), and the comments of these source files and folders
//     node scripts/prose.mjs --self-check    runs the examples at the end of this file instead
//
// In pages, code blocks are left out, inline code counts as one word, and each cell of a table is read by itself.
import { existsSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const PAGES = ['README.md', 'docs', 'CHANGELOG.md', 'CONTRIBUTING.md'];
/** Folders whose comments are checked too. */
const COMMENT_FOLDERS = [
  'src',
  'native',
  'tools',
  'scripts',
  'test/bench',
  'test/browser',
  'test/config',
  'test/console',
  'test/cost',
  'test/docs',
  'test/fuzz',
  'test/harness',
  'test/login',
  'test/native',
  'test/packaging',
  'test/pooling',
  'test/process',
  'test/security',
  'test/simulation',
  'test/soak',
  'test/takeover',
  'test/tls',
  'test/unit',
  'bench',
  'compare',
];
const SOURCE_NAMES = /\.(ts|mjs|cjs|js|cc|h|cpp)$/;

const SENTENCE_WORDS_MAX = 35;
const VAGUE = /\b(?:whoever|somebody|nobody|everybody|anybody|ones? +that)\b/gi;
/** A full stop after these does not end a sentence. */
const ABBREVIATIONS = /\b(?:e\.g|i\.e|etc|vs|cf|no|approx)\.$/i;
/** Stands for inline code: a word, and nothing that could end a sentence. */
const CODE_WORD = 'code';

process.chdir(fileURLToPath(new URL('..', import.meta.url)));

/** Text without Markdown marks. Line breaks stay, so that an offset still determines the line. */
function plainText(markdown) {
  const breaks = (text) => text.replace(/[^\n]/g, '');
  return markdown
    .replace(/(`+)[\s\S]*?[^`]\1(?!`)/g, (code) => CODE_WORD + breaks(code))
    .replace(/!?\[([^\]]*)\]\(([^)]*)\)/g, (_, text, target) => text + breaks(target))
    .replace(/<!--[\s\S]*?-->/g, breaks)
    .replace(/\*\*|__/g, '')
    .replace(/\bhttps?:\/\/\S+/g, 'address');
}

/** The sentences of a text with their offsets. */
function sentences(text) {
  const found = [];
  let start = 0;
  for (const end of text.matchAll(/[.!?][)"'\u201d\u2019]*(?=\s+["'(\u201c]?[\p{Lu}\d]|\s+code\b|\s*$)/gu)) {
    const at = end.index + end[0].length;
    if (ABBREVIATIONS.test(text.slice(start, end.index + 1))) continue;
    found.push({ start, text: text.slice(start, at) });
    start = at;
  }
  if (text.slice(start).trim() !== '') found.push({ start, text: text.slice(start) });
  return found;
}

/** The faults in a block of running text. @param line the number of its first line, from 1 */
function checkBlock({ line, text }) {
  const plain = plainText(text);
  const lineAt = (at) => line + plain.slice(0, at).split('\n').length - 1;
  const words = [...plain.replace(/\s/g, ' ').matchAll(VAGUE)].map((match) => ({
    line: lineAt(match.index),
    fault: `"${match[0]}": name who or what is meant`,
  }));
  const long = sentences(plain).flatMap(({ start, text: sentence }) => {
    const list = sentence.split(/\s+/).filter((word) => /[\p{L}\p{N}]/u.test(word));
    if (list.length <= SENTENCE_WORDS_MAX) return [];
    const first = start + sentence.search(/\S/);
    return [
      { line: lineAt(first), fault: `a sentence of ${list.length} words: "${list.slice(0, 6).join(' ')} \u2026"` },
    ];
  });
  return [...words, ...long];
}

function cells(row) {
  return row
    .replace(/^\s*\||\|\s*$/g, '')
    .split(/(?<!\\)\|/)
    .map((cell) => cell.trim());
}

/**
 * Splits a page, or the text of a comment, into blocks of running text: paragraphs, headings, list items, table cells.
 * @param {string[]} lines
 * @param {number} firstLine the number of the first line
 */
function blocksOf(lines, firstLine) {
  const blocks = [];
  let open = null;
  let fence = '';
  let inList = false;
  const begin = (line, text) => {
    open = { line, text };
    blocks.push(open);
  };
  for (const [at, raw] of lines.entries()) {
    const line = firstLine + at;
    const text = raw.replace(/^\s*>\s?/, '');
    const mark = /^\s*(```+|~~~+)/.exec(text)?.[1];
    const marker = /^\s*(?:[-*+]|\d+\.|#+)\s+|^\s*(?=@\w)/.exec(text)?.[0];
    if (fence !== '' || mark !== undefined) {
      if (fence === '') fence = mark;
      else if (mark?.startsWith(fence)) fence = '';
      open = null;
    } else if (text.trim() === '') {
      open = null;
    } else if (/^\s*\|/.test(text)) {
      open = null;
      if (!/^[\s|:-]+$/.test(text)) blocks.push(...cells(text).map((cell) => ({ line, text: cell })));
    } else if (marker !== undefined) {
      begin(line, text.slice(marker.length));
      inList = /[-*+.]\s/.test(marker);
    } else if (open !== null) {
      open.text += `\n${text}`;
    } else if (inList || !/^(?: {4}|\t)/.test(text)) {
      // outside lists, lines indented this far are code
      begin(line, text);
      inList &&= /^\s/.test(text);
    }
    if (/^#+\s/.test(text)) open = null;
  }
  return blocks;
}

const checkPage = (text) => blocksOf(text.split('\n'), 1).flatMap(checkBlock);

/** Matches comments, and also strings and regular expressions, in which `//` does not begin a comment. */
const TOKEN =
  /(?<comment>\/\*[\s\S]*?\*\/|(?:\/\/[^\n]*(?:\n[^\S\n]*(?=\/\/))?)+)|'(?:\\.|[^'\\\n])*'|"(?:\\.|[^"\\\n])*"|`(?:\\.|[^`\\])*`|(?<=[=(,:;!&|?[{}>]\s*|return )\/(?![*/])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\n[])+\//g;

/** The lines of a comment without comment marks. */
function commentLines(comment) {
  if (comment.startsWith('//')) return comment.split('\n').map((line) => line.replace(/^\s*\/\/[/!]? ?/, ''));
  return comment
    .slice(2, -2)
    .split('\n')
    .map((line) => line.replace(/^\s*\*+ ?/, '').trimEnd());
}

function checkSource(text) {
  return [...text.matchAll(TOKEN)].flatMap(({ index, groups }) => {
    if (groups.comment === undefined) return [];
    const line = text.slice(0, index).split('\n').length;
    return blocksOf(commentLines(groups.comment), line).flatMap(checkBlock);
  });
}

/** The files under a path whose names match. */
function filesUnder(path, names) {
  if (!existsSync(path)) throw new Error(`no such file or folder: ${path}`);
  if (!statSync(path).isDirectory()) return names.test(path) ? [path] : [];
  const inside = readdirSync(path).filter((name) => name !== 'node_modules' && !name.startsWith('.'));
  return inside.sort().flatMap((name) => filesUnder(join(path, name), names));
}

function checkFiles(pages, sources) {
  const inFile = (check) => (name) =>
    check(readFileSync(name, 'utf8')).map(({ line, fault }) => `${name}:${line}: ${fault}`);
  return [
    ...pages.flatMap((path) => filesUnder(path, /\.md$/)).flatMap(inFile(checkPage)),
    ...sources.flatMap((path) => filesUnder(path, SOURCE_NAMES)).flatMap(inFile(checkSource)),
  ];
}

const words = (count) => Array.from({ length: count }, (_, i) => `w${i}`).join(' ');

/** Texts with the lines on which a fault must be found. */
const EXAMPLES = [
  { name: 'a plain sentence', page: 'The pooler assigns a server connection to each client.', lines: [] },
  { name: 'a vague word', page: 'It is closed.\nWhoever connects sees it.', lines: [2] },
  {
    name: 'each vague word',
    page: 'Somebody, nobody, everybody, anybody, one that, ones that.',
    lines: Array(6).fill(1),
  },
  { name: 'words over the end of a line', page: 'There is one\nthat waits.', lines: [1] },
  { name: 'part of another word', page: 'None that waits; everybodys.', lines: [] },
  { name: 'inline code', page: 'The user `nobody` owns it.', lines: [] },
  { name: "a link's target", page: '[The user](nobody.md) owns it.', lines: [] },
  { name: "a link's text", page: '[Nobody](user.md) owns it.', lines: [1] },
  { name: 'a code block', page: '```sh\nsu nobody\n```\n\n    su nobody\n', lines: [] },
  { name: 'text after a code block', page: '```sh\nsu nobody\n```\nNobody.', lines: [4] },
  { name: 'a heading', page: 'Text.\n\n## For everybody\n', lines: [3] },
  { name: 'the longest sentence', page: `${words(35)}.`, lines: [] },
  { name: 'a sentence too long', page: `Short.\nW${words(36)}.`, lines: [2] },
  { name: 'two sentences', page: `${words(35)}. W${words(35)}.`, lines: [] },
  { name: 'a full stop that ends none', page: `${words(20)}, e.g. W${words(20)}.`, lines: [1] },
  { name: 'inline code is one word', page: `${words(34)} \`${words(20)}\`.`, lines: [] },
  { name: 'a sentence that begins with code', page: `${words(30)}. \`RELOAD\` ${words(30)}.`, lines: [] },
  { name: "a link's text counts", page: `${words(30)} [${words(6)}](x.md).`, lines: [1] },
  { name: 'entries of a list', page: `- ${words(20)}\n- ${words(20)}\n  ${words(10)}\n`, lines: [] },
  { name: 'an entry too long', page: `- ${words(20)}\n- ${words(20)}\n  ${words(20)}\n`, lines: [2] },
  { name: 'a further paragraph of an entry', page: `- Text.\n\n    ${words(36)}\n`, lines: [3] },
  { name: 'cells', page: `| ${words(20)} | ${words(20)} |\n| --- | --- |\n| ${words(9)} | ${words(9)} |\n`, lines: [] },
  { name: 'a cell too long', page: `| a | b |\n| --- | --- |\n| a \\| ${words(9)} | ${words(36)} |\n`, lines: [3] },
  { name: 'a line comment', source: 'f();\n// It is\n// nobody.\ng();\n', lines: [3] },
  {
    name: 'a block comment',
    source: `/**\n * Text.\n *\n * ${words(36)}.\n * @param x somebody\n */\n`,
    lines: [4, 5],
  },
  {
    name: 'code, strings and patterns',
    source: "const nobody = '// nobody' + \"/* nobody */\" + `// nobody`;\nf(/'\\/\\//, nobody);\n",
    lines: [],
  },
  { name: 'a comment after a string', source: "f('x'); // nobody\n", lines: [1] },
  { name: 'an example in a comment', source: '// Run it:\n//\n//     su nobody\n//\n// Done.\n', lines: [] },
  { name: 'comments apart', source: `f(); // ${words(20)}\ng(); // ${words(20)}\n`, lines: [] },
];

function selfCheck() {
  return EXAMPLES.flatMap(({ name, page, source, lines }) => {
    const found = (page === undefined ? checkSource(source) : checkPage(page)).map(({ line }) => line);
    return String(found) === String(lines) ? [] : [`${name}: faults on lines [${found}] instead of [${lines}]`];
  });
}

const args = process.argv.slice(2);
let faults;
if (args[0] === '--self-check') faults = selfCheck();
else if (args.length > 0) faults = checkFiles(args, args);
else faults = checkFiles(PAGES, COMMENT_FOLDERS);
for (const fault of faults) console.error(fault);
if (faults.length > 0) {
  console.error(`${faults.length} findings`);
  process.exit(1);
}
