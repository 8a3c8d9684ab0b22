/*
 * Small functions for byte strings (one char = one byte), with the semantics of the C functions that PgBouncer uses:
 * only ASCII has case and white space, whatever the locale.
 */
import { timingSafeEqual } from 'node:crypto';

/** C's isspace() in the "C" locale, for a char code. */
export function isSpace(code: number): boolean {
  return code === 0x20 || (code >= 0x09 && code <= 0x0d);
}

/** The position after the white space at `from`. */
export function skipSpace(text: string, from: number): number {
  let pos = from;
  while (pos < text.length && isSpace(text.charCodeAt(pos))) pos++;
  return pos;
}

/** Likewise where only a space separates: a tab is part of a word. */
export function skipBlanks(text: string, from: number): number {
  let pos = from;
  while (text[pos] === ' ') pos++;
  return pos;
}

function isSeparatorAt(list: string, pos: number): boolean {
  if (pos < 0 || pos >= list.length) return true;
  const code = list.charCodeAt(pos);
  return code === 0x2c /* , */ || isSpace(code);
}

/** True if `word` is in a list of words separated by commas or white space. Case-sensitive. */
export function strlistContains(list: string, word: string): boolean {
  const len = word.length;
  // a list such as 'a,,b' does not contain the empty word
  if (len === 0) return false;
  let from = 0;
  for (;;) {
    const at = list.indexOf(word, from);
    if (at < 0) return false;
    if (isSeparatorAt(list, at - 1) && isSeparatorAt(list, at + len)) return true;
    from = at + len + 1;
  }
}

/** Removes ASCII white space at both ends. */
export function trimSpace(text: string): string {
  const start = skipSpace(text, 0);
  let end = text.length;
  while (end > start && isSpace(text.charCodeAt(end - 1))) end--;
  return text.slice(start, end);
}

/**
 * Splits a comma-separated list and trims each word, like libusual's parse_word_list(). 'a,,b' has an empty word in the
 * middle, a comma at the very end adds none, '' has no words (but ' ' has an empty word).
 */
export function parseWordList(text: string): string[] {
  const words: string[] = [];
  let pos = 0;
  while (pos < text.length) {
    let comma = text.indexOf(',', pos);
    if (comma < 0) comma = text.length;
    words.push(trimSpace(text.slice(pos, comma)));
    pos = comma + 1;
  }
  return words;
}

/** An SQL string literal: 'it''s', or E'back\\slash' if there are backslashes; null becomes NULL. */
export function pgQuoteLiteral(text: string | null): string {
  if (text === null) return 'NULL';
  const quoted = text.replace(/'/g, "''");
  if (!quoted.includes('\\')) return `'${quoted}'`;
  return `E'${quoted.replace(/\\/g, '\\\\')}'`;
}

/** The text up to its first NUL, as a C function would read it. */
export function cstr(text: string): string {
  const nul = text.indexOf('\0');
  return nul < 0 ? text : text.slice(0, nul);
}

/** Where detach() copies short texts. */
const scratch = Buffer.allocUnsafeSlow(1024);

/** A copy of the text in its own memory. V8 implements a substring as a reference, which keeps the whole text alive. */
export function detach(text: string): string {
  if (text.length > scratch.length) return Buffer.from(text, 'latin1').toString('latin1');
  return scratch.toString('latin1', 0, scratch.write(text, 'latin1'));
}

/** Up to this length, copying bytes in a loop is faster than making the view that set() needs. */
const LOOP_COPY_MAX = 256;

/** Likewise, of the bytes in [start, end). Buffer.from() would make a view of a block of 8 kB, and keep that alive. */
export function detachBytes(bytes: Uint8Array, start = 0, end = bytes.length): Buffer {
  const copy = Buffer.allocUnsafeSlow(end - start);
  if (end - start > LOOP_COPY_MAX) copy.set(bytes.subarray(start, end));
  else for (let i = start; i < end; i++) copy[i - start] = bytes[i] as number;
  return copy;
}

function isUpper(code: number): boolean {
  return code >= 0x41 && code <= 0x5a;
}

/** The characters of a byte string that holds UTF-8. What is not UTF-8, as a client may send it, becomes U+FFFD. */
export function utf8Of(text: string): string {
  return Buffer.from(text, 'latin1').toString('utf8');
}

/** Converts ASCII letters to lower case; other bytes are unchanged, so UTF-8 stays intact. */
export function asciiLower(text: string): string {
  let at = 0;
  while (at < text.length && !isUpper(text.charCodeAt(at))) at++;
  if (at === text.length) return text;
  return text.replace(/[A-Z]+/g, (run) => run.toLowerCase());
}

/** True if the texts are equal apart from the case of ASCII letters, as C's strcasecmp() decides it. */
export function equalNoCase(a: string, b: string): boolean {
  return a.length === b.length && asciiLower(a) === asciiLower(b);
}

/** Byte order, as in strcmp(). */
export function compareNames(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

/** True if a byte string has bytes whose meaning depends on its encoding. */
export function hasNonAscii(text: string): boolean {
  return /[\x80-\xff]/.test(text);
}

/** Compares two secrets in a time that does not depend on where they differ. Their lengths are not secret. */
export function secretEqual(a: string | Uint8Array, b: string | Uint8Array): boolean {
  const left = typeof a === 'string' ? Buffer.from(a, 'latin1') : a;
  const right = typeof b === 'string' ? Buffer.from(b, 'latin1') : b;
  return left.length === right.length && timingSafeEqual(left, right);
}
