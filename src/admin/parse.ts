/*
 * The grammar of the console: parses a query into a command or a SET.
 *
 *     query  = word [word] [;]                           a command and its argument
 *            | SET word (= | TO) (word | string) [;]
 *     word   = [0-9A-Za-z_]+ | "any ""thing"" else"
 *     string = 'any ''thing'' else'
 *
 * PgBouncer uses three regular expressions; this scanner accepts exactly what they match, in linear time for every
 * query. A query contains one command.
 */
import { equalNoCase } from '../core/base/strutil';

/** Sizes of PgBouncer's buffers: a text with its quotes must be shorter. */
const CMD_MAX = 16;
const ARG_MAX = 64;
const VALUE_MAX = 256;

export enum QueryKind {
  /** name = the command, arg = its argument or '' */
  COMMAND = 0,
  /** name = the setting, arg = the value */
  SET = 1,
  /** the query matches the grammar, but a text is too long or a setting's name is empty */
  BAD_ARGUMENTS = 2,
  /** not a command */
  SYNTAX_ERROR = 3,
}

export interface ParsedQuery {
  kind: QueryKind;
  /** as written, without quotes; letter case is preserved */
  name: string;
  arg: string;
  /** the command is RECONNECT CLIENTS */
  clients?: ReconnectClients;
}

/** The arguments of RECONNECT CLIENTS. */
export interface ReconnectClients {
  /** the word CLIENTS as written: it may be the name of a database */
  word: string;
  /** null = all databases */
  db: string | null;
  /** null = not given */
  seconds: number | null;
}

const DOUBLE_QUOTE = 0x22;
const SINGLE_QUOTE = 0x27;
const SEMICOLON = 0x3b;
const EQUALS = 0x3d;
const UNDERSCORE = 0x5f;

const badArguments: ParsedQuery = { kind: QueryKind.BAD_ARGUMENTS, name: '', arg: '' };
const syntaxError: ParsedQuery = { kind: QueryKind.SYNTAX_ERROR, name: '', arg: '' };

function isBlank(code: number): boolean {
  return code === 0x20 || code === 0x09 || code === 0x0a || code === 0x0d;
}

function isWordChar(code: number): boolean {
  return (
    (code >= 0x30 && code <= 0x39) ||
    (code >= 0x41 && code <= 0x5a) ||
    (code >= 0x61 && code <= 0x7a) ||
    code === UNDERSCORE
  );
}

function skipBlanks(text: string, pos: number): number {
  while (pos < text.length && isBlank(text.charCodeAt(pos))) pos++;
  return pos;
}

/** End of the quoted text that starts at `pos`; a doubled quote belongs to the text. -1 = not closed. */
function quotedEnd(text: string, pos: number): number {
  const quote = text[pos] as string;
  let at = text.indexOf(quote, pos + 1);
  while (at >= 0 && text[at + 1] === quote) at = text.indexOf(quote, at + 2);
  return at < 0 ? -1 : at + 1;
}

/** End of the word at `pos`, quoted or not; -1 if there is none. */
function wordEnd(text: string, pos: number): number {
  if (text.charCodeAt(pos) === DOUBLE_QUOTE) return quotedEnd(text, pos);
  let end = pos;
  while (end < text.length && isWordChar(text.charCodeAt(end))) end++;
  return end === pos ? -1 : end;
}

/** True when only blanks and one semicolon follow. */
function isTail(text: string, pos: number): boolean {
  pos = skipBlanks(text, pos);
  if (text.charCodeAt(pos) === SEMICOLON) pos = skipBlanks(text, pos + 1);
  return pos === text.length;
}

/** A word or string without its quotes; null if it is too long. */
function copyArg(text: string, start: number, end: number, max: number): string | null {
  if (end - start >= max) return null;
  const quote = text.charCodeAt(start);
  if (quote === DOUBLE_QUOTE) return text.slice(start + 1, end - 1).replaceAll('""', '"');
  if (quote === SINGLE_QUOTE) return text.slice(start + 1, end - 1).replaceAll("''", "'");
  return text.slice(start, end);
}

function parseNormal(text: string): ParsedQuery | null {
  const start = skipBlanks(text, 0);
  const end = wordEnd(text, start);
  if (end < 0) return null;
  const argStart = skipBlanks(text, end);
  const argEnd = argStart > end ? wordEnd(text, argStart) : -1;
  if (!isTail(text, argEnd < 0 ? end : argEnd)) return null;

  const name = copyArg(text, start, end, CMD_MAX);
  const arg = argEnd < 0 ? '' : copyArg(text, argStart, argEnd, ARG_MAX);
  return name === null || arg === null ? badArguments : { kind: QueryKind.COMMAND, name, arg };
}

function isToAt(text: string, pos: number): boolean {
  return (text.charCodeAt(pos) | 0x20) === 0x74 && (text.charCodeAt(pos + 1) | 0x20) === 0x6f;
}

/** The value that ends a SET; null if the text at `pos` is not a value followed by a tail. */
function parseSetValue(text: string, keyStart: number, keyEnd: number, pos: number): ParsedQuery | null {
  const start = skipBlanks(text, pos);
  const end = text.charCodeAt(start) === SINGLE_QUOTE ? quotedEnd(text, start) : wordEnd(text, start);
  if (end < 0 || !isTail(text, end)) return null;
  const name = copyArg(text, keyStart, keyEnd, ARG_MAX);
  const arg = copyArg(text, start, end, VALUE_MAX);
  return name === null || name === '' || arg === null ? badArguments : { kind: QueryKind.SET, name, arg };
}

function parseSet(text: string): ParsedQuery | null {
  const set = skipBlanks(text, 0);
  if (!equalNoCase(text.slice(set, set + 3), 'set')) return null;
  const keyStart = skipBlanks(text, set + 3);
  if (keyStart === set + 3) return null;
  const keyEnd = wordEnd(text, keyStart);
  if (keyEnd < 0) return null;

  const after = skipBlanks(text, keyEnd);
  if (text.charCodeAt(after) === EQUALS) return parseSetValue(text, keyStart, keyEnd, after + 1);
  if (isToAt(text, after)) {
    const parsed = parseSetValue(text, keyStart, keyEnd, after + 2);
    if (parsed !== null) return parsed;
  }
  if (text.charCodeAt(keyStart) === DOUBLE_QUOTE) return null;

  // TO needs no blanks around it: it may be the end of the word, or inside it directly before the value; the longest
  // name is chosen
  if (keyEnd - 2 > keyStart && isToAt(text, keyEnd - 2)) {
    const parsed = parseSetValue(text, keyStart, keyEnd - 2, keyEnd);
    if (parsed !== null) return parsed;
  }
  for (let to = keyEnd - 3; to > keyStart; to--) {
    if (isToAt(text, to)) return parseSetValue(text, keyStart, to, to + 2);
  }
  return null;
}

/** Reads one query of the console. @param query byte string without its NUL */
export function parseQuery(query: string): ParsedQuery {
  return parseNormal(query) ?? parseSet(query) ?? syntaxError;
}

const RECONNECT_CLIENTS =
  /^[ \t\n\r]*reconnect[ \t\n\r]+(clients)(?:[ \t\n\r]+([0-9A-Za-z_]+|"(?:[^"]|"")*"))??(?:[ \t\n\r]+over[ \t\n\r]+([0-9]{1,6})(?:[ \t\n\r]*s)?)?[ \t\n\r]*(?:;[ \t\n\r]*)?$/i;

/** Reads RECONNECT CLIENTS [db] [OVER n [s]], which is not in PgBouncer's grammar. @returns null for other queries */
export function parseReconnectClients(query: string): ReconnectClients | null {
  if (query.length > VALUE_MAX) return null;
  const match = RECONNECT_CLIENTS.exec(query);
  if (match === null) return null;
  const [, word = '', db, seconds] = match;
  const name = db === undefined ? null : copyArg(db, 0, db.length, ARG_MAX);
  if (db !== undefined && name === null) return null;
  return { word, db: name, seconds: seconds === undefined ? null : Number(seconds) };
}

/** True for blanks, semicolons and comments only: drivers send such an empty query to test a connection. */
export function isEmptyQuery(query: string): boolean {
  return query.split('\n').every((line) => {
    const comment = line.indexOf('--');
    const text = comment < 0 ? line : line.slice(0, comment);
    return [...text].every((char) => ' \t\r\f;'.includes(char));
  });
}
