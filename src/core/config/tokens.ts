/*
 * The tokens of an HBA or ident line: bare words, "quoted" words, commas, a comment to the end. Byte strings.
 */
import { cstr, isSpace, skipSpace } from '../base/strutil';

/** Numbered as in PgBouncer: the numbers appear in a log line. */
export const enum Tok {
  STRING = 0,
  IDENT = 1,
  COMMA = 2,
  /** an unbalanced quote: nothing after it can be parsed */
  FAIL = 3,
  EOL = 4,
}

const COMMA = 0x2c;
const HASH = 0x23;
const QUOTE = 0x22;

/** A position in a line, and the token that starts there. */
export class Tokens {
  readonly line: string;
  /** position after the current token */
  pos = 0;
  kind: Tok = Tok.COMMA;
  /** text of the last bare or quoted word */
  text = '';

  /** Starts at the first token. A NUL ends the line, as in C. */
  constructor(line: string) {
    this.line = cstr(line);
    nextToken(this);
  }
}

function endOfIdent(line: string, from: number): number {
  let end = from;
  while (end < line.length) {
    const c = line.charCodeAt(end);
    if (c === COMMA || c === HASH || c === QUOTE || isSpace(c)) break;
    end++;
  }
  return end;
}

/** Position of the quote that closes what was opened before `from`, or -1. Two quotes in a row stand for one quote. */
export function closingQuote(line: string, from: number): number {
  let end = line.indexOf('"', from);
  while (end >= 0 && line[end + 1] === '"') end = line.indexOf('"', end + 2);
  return end;
}

/** Moves to the next token. At the end of the line, and after an unbalanced quote, the position stays. */
export function nextToken(tokens: Tokens): void {
  if (tokens.kind === Tok.EOL) return;
  const line = tokens.line;
  const pos = skipSpace(line, tokens.pos);
  const c = pos < line.length ? line.charCodeAt(pos) : HASH;
  tokens.pos = pos;
  if (c === HASH) {
    tokens.kind = Tok.EOL;
    tokens.pos = line.length;
  } else if (c === COMMA) {
    tokens.kind = Tok.COMMA;
    tokens.pos = pos + 1;
  } else if (c === QUOTE) {
    const end = closingQuote(line, pos + 1);
    tokens.kind = end < 0 ? Tok.FAIL : Tok.STRING;
    if (end < 0) return;
    tokens.text = line.slice(pos + 1, end).replaceAll('""', '"');
    tokens.pos = end + 1;
  } else {
    // the first character always belongs to the word
    const end = endOfIdent(line, pos + 1);
    tokens.kind = Tok.IDENT;
    tokens.text = line.slice(pos, end);
    tokens.pos = end;
  }
}

/** Consumes the current token if it is of that kind. */
export function eat(tokens: Tokens, kind: Tok): boolean {
  if (tokens.kind !== kind) return false;
  nextToken(tokens);
  return true;
}

/** True if the current token is this bare word. */
export function atWord(tokens: Tokens, word: string): boolean {
  return tokens.kind === Tok.IDENT && tokens.text === word;
}

/** Consumes the current token if it is this bare word. */
export function eatWord(tokens: Tokens, word: string): boolean {
  if (!atWord(tokens, word)) return false;
  nextToken(tokens);
  return true;
}

/** True if the current token is a bare or quoted word, found in tokens.text. */
export function atName(tokens: Tokens): boolean {
  return tokens.kind === Tok.IDENT || tokens.kind === Tok.STRING;
}
