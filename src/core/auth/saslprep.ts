/*
 * SASLprep (RFC 4013): the normalization of a password before SCRAM hashes it. PostgreSQL's servers and clients check
 * the characters before normalization, and use the raw bytes if the password is not acceptable. A pooler that used
 * another order would derive other keys. That is why no library is used.
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

/**
 * RFC 3454, section 6: a text with right-to-left characters has no left-to-right characters, and begins and ends with a
 * right-to-left character.
 */
function bidiAllowed(codes: readonly number[]): boolean {
  const isRtl = (code: number): boolean => inTable(RAND_AL_CAT, code);
  if (!codes.some(isRtl)) return true;
  if (codes.some((code) => inTable(L_CAT, code))) return false;
  return isRtl(codes[0] as number) && isRtl(codes[codes.length - 1] as number);
}

/**
 * Prepares a password.
 * @param password byte string, normally UTF-8
 * @returns byte string: the prepared password. The password is returned unchanged if it is plain ASCII, not valid
 *   UTF-8, or has characters that SASLprep prohibits
 */
export function saslprep(password: string): string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: ASCII includes the control characters
  if (/^[\x00-\x7f]*$/.test(password)) return password;

  const bytes = Buffer.from(password, 'latin1');
  if (!isUtf8(bytes)) return password;

  const codes: number[] = [];
  for (const char of bytes.toString('utf8')) {
    const code = char.codePointAt(0) as number;
    // U+200B is in both tables; the space takes precedence
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
