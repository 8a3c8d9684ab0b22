/*
 * The constants in the text of a query. PostgreSQL reads them when it parses the query, not when it executes it, and by
 * the variables of the session: '01.02.2024' by DateStyle, a time without a zone by TimeZone. So clients with other
 * values of these cannot share a prepared statement. Neither can clients for which the same names mean other tables:
 * the types of a statement's parameters and columns are those of its first Parse.
 */

import { asciiLower, hasNonAscii } from '../base/strutil';
import type { ClientSocket } from './bouncer';
import { Var } from './varcache';

/** A constant, or a character that is not ASCII. A parameter ($1) is neither. */
const ANY = /'|\$[^0-9]|[\x80-\xff]/;
/** Where quotes need not come in pairs: escapes, comments, dollar quotes. */
const UNPAIRED = /\\|--|\/\*|\$[^0-9]/;
/** A quoted name, or a constant. */
const QUOTED = /"[^"]*"|'([^']*)'/g;
/** A word that names a time of the clock, up to its end. */
const CLOCK_WORD = '(?<![a-z])(?:now|today|tomorrow|yesterday)(?![a-z]';
/** What may be a date, a time or an interval. */
const DATE = new RegExp(`\\d|${CLOCK_WORD})`, 'i');
/** A date that depends on the clock; now() is a function. */
const CLOCK = new RegExp(`${CLOCK_WORD}|[ \\t\\n\\v\\f\\r]*\\()`, 'i');

/** True if a constant of the text matches, or perhaps does. */
function hasConstant(text: string, pattern: RegExp): boolean {
  if (UNPAIRED.test(text)) return pattern.test(text);
  for (const [, constant] of text.matchAll(QUOTED)) if (constant !== undefined && pattern.test(constant)) return true;
  return false;
}

/** The text of a query. @param queryAndParameters as in Parse */
function textOf(queryAndParameters: Buffer): string {
  return queryAndParameters.toString('latin1', 0, queryAndParameters.indexOf(0));
}

/**
 * How the session of a client reads a query. Where it is the same, so is the prepared statement. It has no NUL. A later
 * SET of search_path does not count: PostgreSQL then analyses the statement again.
 * @param queryAndParameters as in Parse
 * @returns '' if the variables do not matter, as for most queries: they have parameters instead of dates
 */
export function readingOf(queryAndParameters: Buffer, client: Pick<ClientSocket, 'vars' | 'startupVars'>): string {
  const { vars, startupVars } = client;
  const path = startupVars?.[Var.SEARCH_PATH] ?? null;
  const names = path === null ? '' : `\npath ${path}`;
  const text = textOf(queryAndParameters);
  if (!ANY.test(text)) return names;
  let reading = hasConstant(text, DATE) ? vars.dateKey() + names : names;
  if (hasNonAscii(text)) reading += `\nencoding ${asciiLower(vars.get(Var.CLIENT_ENCODING) ?? '')}`;
  if (text.includes('\\') && vars.get(Var.STD_STRINGS) === 'off') reading += '\nescapes';
  return reading;
}

/** True if a constant has the time of the Parse, like 'today': an earlier Parse of the same query is another one. */
export function readsClock(queryAndParameters: Buffer): boolean {
  return hasConstant(textOf(queryAndParameters), CLOCK);
}
