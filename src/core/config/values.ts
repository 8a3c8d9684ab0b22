/*
 * Conversion between values and their text in the config file and in SET, by the rules of the C library functions that
 * PgBouncer uses (strtol with base 0, strtoul, strtod, atoi, %g). Called by the settings table and by the loader; knows
 * no setting by name.
 */
import { asciiLower, skipSpace } from '../base/strutil';
import { USEC } from '../base/time';

/** One row of a map between names and numbers. */
export interface Lookup {
  readonly name: string;
  readonly value: number;
}

const INT_MIN = -2147483648;
const INT_MAX = 2147483647;
const UINT_MAX = 4294967295;

/**
 * An integer as strtol(text, 0) parses it: leading white space, sign, 0x for hexadecimal, a leading 0 for octal.
 * @returns the number, or null if the text is empty or has other characters after the number
 */
function parseInteger(text: string): number | null {
  const m = /^[ \t-\r]*([+-]?)(?:0[xX]([0-9a-fA-F]+)|(0[0-7]*)|([1-9][0-9]*))$/.exec(text);
  if (m === null) return null;
  const [, sign, hex, octal, decimal] = m;
  const magnitude =
    hex !== undefined
      ? Number.parseInt(hex, 16)
      : octal !== undefined
        ? Number.parseInt(octal, 8)
        : Number.parseInt(decimal as string, 10);
  // the addition turns -0 into 0
  return sign === '-' ? 0 - magnitude : magnitude;
}

/**
 * A C int. A number that does not fit is rejected; PgBouncer lets it wrap around.
 * @returns the number, or null if the text is not an int
 */
export function parseInt32(text: string): number | null {
  const n = parseInteger(text);
  return n === null || n < INT_MIN || n > INT_MAX ? null : n;
}

/**
 * A C unsigned int. Negative numbers wrap around as with strtoul() (-1 is the largest number).
 * @returns the number, or null if the text is not an unsigned int
 */
export function parseUint32(text: string): number | null {
  const n = parseInteger(text);
  if (n === null || n < INT_MIN || n > UINT_MAX) return null;
  return n < 0 ? n + UINT_MAX + 1 : n;
}

/**
 * Seconds, possibly with a fraction, as strtod() parses them (decimal, exponent, hexadecimal integers).
 * @returns usec, or null for text that is not a number, for negative numbers, infinities and NaN
 */
export function parseTimeUsec(text: string): number | null {
  const m = /^[ \t-\r]*([+-]?)(0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)$/.exec(text);
  if (m === null) return null;
  const magnitude = Number(m[2]);
  if (m[1] === '-' && magnitude !== 0) return null;
  const usec = Math.floor(magnitude * USEC);
  // a usec_t has 64 bits
  return usec < 2 ** 64 ? usec : null;
}

/** A number as printf("%g") prints it: six significant digits, ties to even, no trailing zeros. */
export function formatG(x: number): string {
  if (x === 0) return '0';
  const sign = x < 0 ? '-' : '';
  // 100 digits represent every possible time exactly, so that rounding by hand detects true ties
  const [mantissa, exponentText] = Math.abs(x).toExponential(99).split('e') as [string, string];
  let exponent = Number(exponentText);
  const exact = mantissa.replace('.', '');
  let digits = Number(exact.slice(0, 6));
  const rest = exact.slice(6);
  const half = `5${'0'.repeat(rest.length - 1)}`;
  if (rest > half || (rest === half && digits % 2 === 1)) digits++;
  if (digits === 1000000) {
    digits = 100000;
    exponent++;
  }
  const shown = String(digits);
  if (exponent < -4 || exponent >= 6) {
    const fraction = shown.slice(1).replace(/0+$/, '');
    const point = fraction === '' ? '' : '.';
    return `${sign}${shown[0]}${point}${fraction}e${exponent < 0 ? '-' : '+'}${String(Math.abs(exponent)).padStart(2, '0')}`;
  }
  if (exponent < 0) return `${sign}0.${'0'.repeat(-exponent - 1)}${shown.replace(/0+$/, '')}`;
  const fraction = shown.slice(exponent + 1).replace(/0+$/, '');
  return `${sign}${shown.slice(0, exponent + 1)}${fraction === '' ? '' : `.${fraction}`}`;
}

/** @param usec microseconds. @returns seconds as SHOW CONFIG prints a time */
export function formatTimeUsec(usec: number): string {
  return formatG(usec / USEC);
}

/** The value of a name, ignoring letter case; null for an unknown name. */
export function parseLookup(map: readonly Lookup[], text: string): number | null {
  const wanted = asciiLower(text);
  for (const row of map) {
    if (row.name === wanted) return row.value;
  }
  return null;
}

/** The name of a value, or 'INVALID', as in PgBouncer, for a value without a name. */
export function formatLookup(map: readonly Lookup[], value: number): string {
  for (const row of map) {
    if (row.value === value) return row.name;
  }
  return 'INVALID';
}

/** C's atoi(): the leading integer of a text, 0 if there is none; the rest is ignored. */
export function atoi(text: string): number {
  const m = /^[+-]?[0-9]+/.exec(text.slice(skipSpace(text, 0)));
  if (m === null) return 0;
  // a value beyond long saturates, then its lower half becomes the int
  return Number(BigInt.asIntN(32, clampLong(BigInt(m[0].replace('+', '')))));
}

function clampLong(n: bigint): bigint {
  const max = 2n ** 63n - 1n;
  if (n > max) return max;
  return n < -max - 1n ? -max - 1n : n;
}

/**
 * Whole seconds of a timeout in a connect string, in usec. Like PgBouncer, it multiplies in unsigned arithmetic, so a
 * negative number becomes a timeout that never expires.
 */
export function atoiSecondsUsec(text: string): number {
  const seconds = atoi(text);
  return seconds < 0 ? 2 ** 64 + seconds * USEC : seconds * USEC;
}
