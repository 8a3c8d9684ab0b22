/*
 * Connect strings: the `key=value key='quoted value'` lists after the names in [databases], [users] and [peers].
 */

import { logNoise, wantNoise } from '../base/log';
import { skipBlanks } from '../base/strutil';

/**
 * Splits a connect string as PgBouncer's cstr_get_pair() does: pairs separated by spaces, spaces around '=' allowed,
 * values with spaces in single quotes, '' for a quote within them. A repeated key is returned each time, in order.
 * @returns the pairs, or null for a syntax error, which includes an empty value
 */
export function parseConnstr(text: string): [key: string, value: string][] | null {
  const pairs: [string, string][] = [];
  let p = skipBlanks(text, 0);
  while (p < text.length) {
    const keyStart = p;
    while (p < text.length && text[p] !== '=' && text[p] !== ' ') p++;
    const key = text.slice(keyStart, p);
    p = skipBlanks(text, p);
    if (key === '' || text[p] !== '=') return null;
    p = skipBlanks(text, p + 1);

    let value: string;
    if (text[p] === "'") {
      const close = closingQuote(text, p + 1);
      if (close < 0) return null;
      value = text.slice(p + 1, close).replaceAll("''", "'");
      p = close + 1;
    } else {
      const valueStart = p;
      while (p < text.length && text[p] !== ' ') p++;
      value = text.slice(valueStart, p);
    }
    if (value === '') return null;
    if (wantNoise()) logNoise(`cstr_get_pair: "${key}"="${value}"`);
    pairs.push([key, value]);
    // the byte after a closing quote counts as the separator, whatever it is
    p = skipBlanks(text, p + 1);
  }
  return pairs;
}

/** Position of the quote that ends a quoted value starting at `from`, or -1. */
function closingQuote(text: string, from: number): number {
  for (let p = from; p < text.length; p++) {
    if (text[p] !== "'") continue;
    if (text[p + 1] !== "'") return p;
    p++;
  }
  return -1;
}
