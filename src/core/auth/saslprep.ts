/*
 * SASLprep (RFC 4013): how a password is brought into one form before SCRAM hashes it. PostgreSQL's servers and clients
 * check the characters as typed, before normalization, and take the raw bytes when the password is not acceptable; a
 * pooler that did otherwise would derive other keys than they do. That order is why this is not a library's.
 */

import { isUtf8 } from 'node:buffer';
import { L_CAT, MAPPED_TO_NOTHING, NON_ASCII_SPACE, PROHIBITED, RAND_AL_CAT, UNASSIGNED } from './saslprep-tables';

function inTable(table: Uint32Array, code: number): boolean {
  let low = 0;
  let high = table.length / 2 - 1;
  while (low <= high) {
    const mid = (low + high) >> 1;
    if (code < (table[mid * 2] as number)) high = mid - 1;
    else if (code > (table[mid * 2 + 1] as number)) low = mid + 1;
    else return true;
  }
  return false;
}

/** RFC 3454, section 6: with right-to-left characters, no left-to-right ones, and both ends right-to-left. */
function bidiAllowed(codes: readonly number[]): boolean {
  const isRtl = (code: number): boolean => inTable(RAND_AL_CAT, code);
  if (!codes.some(isRtl)) return true;
  if (codes.some((code) => inTable(L_CAT, code))) return false;
  return isRtl(codes[0] as number) && isRtl(codes[codes.length - 1] as number);
}

/**
 * Prepares a password.
 * @param password byte string; meant to be UTF-8
 * @returns byte string: the prepared password, or the password as it is when it is plain ASCII, not valid UTF-8, or has
 *   characters that SASLprep refuses
 */
export function saslprep(password: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: ASCII, with its control characters, is what is asked for
  if (/^[\x00-\x7f]*$/.test(password)) return password;

  const bytes = Buffer.from(password, 'latin1');
  if (!isUtf8(bytes)) return password;

  const codes: number[] = [];
  for (const char of bytes.toString('utf8')) {
    const code = char.codePointAt(0) as number;
    // U+200B is in both tables; a space wins
    if (inTable(NON_ASCII_SPACE, code)) codes.push(0x20);
    else if (!inTable(MAPPED_TO_NOTHING, code)) codes.push(code);
  }
  if (codes.length === 0) return password;
  if (codes.some((code) => inTable(PROHIBITED, code) || inTable(UNASSIGNED, code))) return password;
  if (!bidiAllowed(codes)) return password;

  let mapped = '';
  for (const code of codes) mapped += String.fromCodePoint(code);
  return Buffer.from(mapped.normalize('NFKC'), 'utf8').toString('latin1');
}
