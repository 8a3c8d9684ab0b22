/*
 * The words of an HBA or ident line: bare words, "quoted" ones, commas, a comment to the end. Byte strings.
 */
import { isSpace } from '../base/strutil';

/** Numbered as the original numbers them: they appear in a log line. */
export const enum Tok {
  STRING = 0,
  IDENT = 1,
  COMMA = 2,
  /** an open quote: nothing after it can be read */
  FAIL = 3,
  EOL = 4,
}

const COMMA = 0x2c;
const HASH = 0x23;
const QUOTE = 0x22;

/** A position in a line, and the token that starts there. */
export class Tokens {
  readonly line: string;
  /** behind the current token */
  pos = 0;
  kind: Tok = Tok.COMMA;
  /** text of the last bare or quoted word */
  text = '';

  /** Stands on the first token. A NUL ends the line, as it does for C. */
  constructor(line: string) {
    const nul = line.indexOf('\0');
    this.line = nul < 0 ? line : line.slice(0, nul);
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

/** Position of the quote that closes a word opened before `from`, or -1; two in a row are one within the word. */
function closingQuote(line: string, from: number): number {
  let end = line.indexOf('"', from);
  while (end >= 0 && line[end + 1] === '"') end = line.indexOf('"', end + 2);
  return end;
}

/** Moves on. At the end, and after a quote that never closes, there it stays. */
export function nextToken(tokens: Tokens): void {
  if (tokens.kind === Tok.EOL) return;
  const line = tokens.line;
  let pos = tokens.pos;
  while (pos < line.length && isSpace(line.charCodeAt(pos))) pos++;
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
    // the first character is part of the word, whatever it is
    const end = endOfIdent(line, pos + 1);
    tokens.kind = Tok.IDENT;
    tokens.text = line.slice(pos, end);
    tokens.pos = end;
  }
}

/** Takes a token of that kind if it is the current one. */
export function eat(tokens: Tokens, kind: Tok): boolean {
  if (tokens.kind !== kind) return false;
  nextToken(tokens);
  return true;
}

/** True when the current token is this bare word. */
export function atWord(tokens: Tokens, word: string): boolean {
  return tokens.kind === Tok.IDENT && tokens.text === word;
}

/** Takes this bare word if it is the current token. */
export function eatWord(tokens: Tokens, word: string): boolean {
  if (!atWord(tokens, word)) return false;
  nextToken(tokens);
  return true;
}

/** True when the current token is a word of either sort: tokens.text is it. */
export function atName(tokens: Tokens): boolean {
  return tokens.kind === Tok.IDENT || tokens.kind === Tok.STRING;
}
