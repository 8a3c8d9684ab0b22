// Converts Markdown to roff with the macros of man(7), for scripts/man.mjs. Supports the Markdown that docs/ uses, and
// throws on anything else, so that nothing is lost silently.
import { lexer } from 'marked';

/** Escapes text for roff. @param code writes dashes as minus signs, so that copied commands can be pasted */
function escapeText(text, code) {
  let out = text.replaceAll('\\', '\\e');
  if (code) out = out.replaceAll('-', '\\-').replaceAll("'", '\\(aq').replaceAll('`', '\\(ga');
  else out = out.replaceAll("'", '\\(cq');
  out = out.replaceAll('^', '\\(ha').replaceAll('~', '\\(ti');
  return out.replace(
    /[^\n\x20-\x7e]/gu,
    (char) => `\\[u${char.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}]`,
  );
}

/** Replaces the HTML entities that marked leaves in its texts. */
function unescapeHtml(text) {
  return text
    .replaceAll('&lt;', '<')
    .replaceAll('&gt;', '>')
    .replaceAll('&quot;', '"')
    .replaceAll('&#39;', "'")
    .replaceAll('&amp;', '&');
}

function refuse(token) {
  throw new Error(`${token.type} is not known here: ${JSON.stringify(token.raw ?? '').slice(0, 80)}`);
}

/** A link's text, with its address unless it is relative: readers of a man page cannot follow a relative link. */
function linkText(token) {
  const text = inlines(token.tokens);
  return /^[a-z]+:/.test(token.href) && token.href !== token.text ? `${text} <${escapeText(token.href, true)}>` : text;
}

function inline(token) {
  switch (token.type) {
    case 'text':
      return token.tokens === undefined ? escapeText(unescapeHtml(token.text), false) : inlines(token.tokens);
    case 'escape':
      return escapeText(token.text, false);
    case 'codespan':
      return `\\fB${escapeText(unescapeHtml(token.text), true)}\\fR`;
    case 'strong':
      return `\\fB${inlines(token.tokens)}\\fR`;
    case 'em':
      return `\\fI${inlines(token.tokens)}\\fR`;
    case 'link':
      return linkText(token);
    default:
      return refuse(token);
  }
}

function inlines(tokens) {
  return tokens.map(inline).join('');
}

/** Lines of running text: no line is empty or begins like a roff request. */
function textLines(tokens) {
  return inlines(tokens)
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '')
    .map((line) => (/^[.']/.test(line) ? `\\&${line}` : line));
}

function codeLines(text) {
  return text.split('\n').map((line) => {
    const escaped = escapeText(line, true);
    return escaped.startsWith('.') ? `\\&${escaped}` : escaped;
  });
}

/** An entry: a tag with its text below. */
function tagged(tag, lines) {
  return ['.TP', tag, ...(lines.length > 0 ? lines : ['\\&'])];
}

/** A cell's text without Markdown marks. */
function plain(cell) {
  return unescapeHtml(cell.text).replaceAll('`', '');
}

/**
 * Turns each row of a table into an entry, because tables rarely fit the width of a terminal. The first cell is the tag
 * and the last cell the text. The cells between follow the text in brackets, with the titles of their columns.
 */
function table(token) {
  const titles = token.header.map(plain);
  return token.rows.flatMap((row) => {
    const between = row
      .slice(1, -1)
      .map((cell, i) => `${escapeText(titles[i + 1], false)}: ${inlines(cell.tokens)}`)
      .join('; ');
    const lines = textLines(row.at(-1).tokens);
    const tag = row[0].tokens.every(({ type }) => type === 'text')
      ? `\\fB${escapeText(plain(row[0]), true)}\\fR`
      : inlines(row[0].tokens);
    return tagged(tag, between === '' ? lines : [...lines, '.br', `(${between})`]);
  });
}

function list(token) {
  return token.items.flatMap((item, i) => {
    const mark = token.ordered ? `${Number(token.start) + i}.` : '\\(bu';
    const [first, ...rest] = item.tokens;
    if (first.type !== 'text' && first.type !== 'paragraph') refuse(first);
    const lines = [`.IP ${mark} 4`, ...textLines(first.tokens)];
    return rest.length === 0 ? lines : [...lines, '.RS 4', ...blocks(rest), '.RE'];
  });
}

/** @param top the depth of the headings that begin a section */
function heading(token, top) {
  const text = inlines(token.tokens).replaceAll('\\fB', '').replaceAll('\\fR', '');
  if (token.depth === top) return [`.SH ${text.toUpperCase()}`];
  if (token.depth === top + 1) return [`.SS ${text}`];
  return refuse(token);
}

function block(token, afterHeading, top) {
  // a heading already adds space below it
  const gap = afterHeading ? [] : ['.PP'];
  switch (token.type) {
    case 'space':
    case 'html':
      return [];
    case 'heading':
      return heading(token, top);
    case 'text':
    case 'paragraph':
      return [...gap, ...textLines(token.tokens)];
    case 'code':
      return ['.IP', '.EX', ...codeLines(token.text), '.EE'];
    case 'table':
      return table(token);
    case 'list':
      return list(token);
    default:
      return refuse(token);
  }
}

function blocks(tokens, top) {
  const lines = [];
  for (const token of tokens) {
    const last = lines.findLast((line) => line.startsWith('.'));
    const afterHeading = lines.length === 0 || (lines.at(-1) === last && /^\.(SH|SS) /.test(last));
    lines.push(...block(token, afterHeading, top));
  }
  return lines;
}

/**
 * Converts a page of docs/ to the body of a man page, or to a section of it. In a body, the title is left out and the
 * text before the first section becomes the description. In a section, the title becomes the heading.
 * @param {string} markdown
 * @param {boolean} asSection
 * @returns {string} lines of roff
 */
export function roffOf(markdown, asSection = false) {
  if (asSection) return `${blocks(lexer(markdown), 1).join('\n')}\n`;
  const tokens = lexer(markdown).filter((token) => !(token.type === 'heading' && token.depth === 1));
  const first = tokens.find((token) => token.type !== 'space');
  const lines = blocks(tokens, 2);
  if (first?.type !== 'heading') lines.unshift('.SH DESCRIPTION');
  return `${lines.join('\n')}\n`;
}
