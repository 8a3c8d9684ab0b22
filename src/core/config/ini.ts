/*
 * The ini syntax of libusual's cfparser: sections, `key = value`, comment lines, %include. The parser knows no section
 * and no setting: the loader passes a handler for them. Texts are byte strings.
 *
 * Two differences from PgBouncer are deliberate. An error names the line of its key; PgBouncer names the next line with
 * text if blank lines follow. A key may also be in double quotes, with "" for a quote, as PgBouncer's documentation
 * says; its code accepts single quotes only.
 */

import { readdirSync, readFileSync, statSync } from 'node:fs';
import { posix } from 'node:path';
import { logDebug, logError, strerror, wantDebug } from '../base/log';
import { compareNames, cstr, isSpace } from '../base/strutil';

/** Limit of nesting for %include. */
const MAX_INCLUDE = 10;

export interface IniHandler {
  /** true: a line that cannot be parsed is logged and skipped, instead of ending the reading */
  readonly continueOnError?: boolean;
  /** A `[name]` line. @returns false to stop loading, after logging the reason */
  section(name: string, file: string, line: number): boolean;
  /** A `key = value` line. @returns false to stop loading, after logging the reason */
  value(key: string, value: string, file: string, line: number): boolean;
}

/** The bytes of a file up to the first NUL, where the text also ends for PgBouncer. Throws as fs does. */
export function readByteString(path: string): string {
  return cstr(readFileSync(Buffer.from(path, 'latin1')).toString('latin1'));
}

/** The position in a file being read. */
interface Cursor {
  readonly file: string;
  readonly text: string;
  pos: number;
  /** line number of `pos`; only skipSpace() passes line ends and updates it */
  line: number;
  readonly depth: number;
}

/**
 * Reads a file and all files that it includes (paths relative to the working directory, as in PgBouncer).
 * @returns false if loading stopped, after logging the reason with file and line
 */
export function parseIniFile(file: string, handler: IniHandler): boolean {
  return parseFile(file, handler, 0);
}

function parseFile(file: string, handler: IniHandler, depth: number): boolean {
  let text: string;
  try {
    text = readByteString(file);
  } catch (err) {
    logError(`could not load file "${file}": ${strerror(err)}`);
    return false;
  }
  const at: Cursor = { file, text, pos: 0, line: 1, depth };
  for (;;) {
    skipSpace(at);
    if (at.pos >= text.length) return true;
    if (/^%include[ \t]/.test(text.slice(at.pos, at.pos + 9))) {
      if (!parseInclude(at, handler) && !passOver(at, handler)) return false;
      continue;
    }
    const c = text[at.pos];
    if (c === '#' || c === ';') at.pos = lineEnd(at);
    else if (c === '[') {
      if (!parseSection(at, handler) && !passOver(at, handler)) return false;
    } else if (!parseKeyValue(at, handler) && !passOver(at, handler)) return false;
  }
}

/** Skips the rest of a malformed line, for a handler with continueOnError set. */
function passOver(at: Cursor, handler: IniHandler): boolean {
  at.pos = lineEnd(at);
  return handler.continueOnError === true;
}

function skipSpace(at: Cursor): void {
  for (; at.pos < at.text.length; at.pos++) {
    const c = at.text.charCodeAt(at.pos);
    if (c === 10) at.line++;
    else if (!isSpace(c)) return;
  }
}

function skipBlank(at: Cursor): void {
  while (at.text[at.pos] === ' ' || at.text[at.pos] === '\t') at.pos++;
}

/** Position of the line feed that ends the current line, or of the end of the text. */
function lineEnd(at: Cursor): number {
  const end = at.text.indexOf('\n', at.pos);
  return end < 0 ? at.text.length : end;
}

/** The rest of the line, trimmed; moves `pos` to its end. */
function takeRest(at: Cursor): string {
  skipBlank(at);
  const end = lineEnd(at);
  const rest = at.text.slice(at.pos, end).replace(/[ \t-\r]+$/, '');
  at.pos = end;
  return rest;
}

function parseInclude(at: Cursor, handler: IniHandler): boolean {
  if (at.depth >= MAX_INCLUDE) {
    logError(`include nesting level too deep (${at.file}:${at.line}), stopping loading`);
    return false;
  }
  at.pos += '%include'.length;
  const name = takeRest(at);
  let files: string[];
  try {
    files = includedFiles(name);
  } catch (err) {
    logError(`could not read folder "${name}": ${strerror(err)} (${at.file}:${at.line}), stopping loading`);
    return false;
  }
  for (const file of files) {
    logDebug(`processing include: ${file}`);
    if (!parseFile(file, handler, at.depth + 1)) {
      logError(`error processing include file in configuration (${at.file}:${at.line}), stopping loading`);
      return false;
    }
    logDebug(`returned to processing file ${at.file}`);
  }
  return true;
}

function isKind(path: string, kind: 'isFile' | 'isDirectory'): boolean {
  return statSync(Buffer.from(path, 'latin1'), { throwIfNoEntry: false })?.[kind]() === true;
}

/**
 * The files that an include names: one file, the *.ini files of a folder, or those that match a pattern whose last part
 * has a `*`. Hidden files are not included. They come in byte order. Throws as fs does if the folder cannot be read.
 */
function includedFiles(name: string): string[] {
  const pattern = posix.basename(name);
  const isPattern = pattern.includes('*');
  if (!isPattern && !isKind(name, 'isDirectory')) return [name];
  const folder = isPattern ? posix.dirname(name) : name;
  const parts = (isPattern ? pattern : '*.ini').split('*').map((part) => part.replace(/[^A-Za-z0-9]/g, '\\$&'));
  const wanted = new RegExp(`^(?!\\.)${parts.join('.*')}$`, 's');
  return readdirSync(Buffer.from(folder, 'latin1'), 'buffer')
    .map((entry) => entry.toString('latin1'))
    .filter((entry) => wanted.test(entry))
    .sort(compareNames)
    .map((entry) => posix.join(folder, entry))
    .filter((path) => isKind(path, 'isFile'));
}

function parseSection(at: Cursor, handler: IniHandler): boolean {
  const end = lineEnd(at);
  const close = at.text.indexOf(']', at.pos);
  if (close < 0 || close > end) return syntaxError(at);
  const name = at.text.slice(at.pos + 1, close);
  at.pos = close + 1;
  logDebug(`parse_ini_file: [${name}]`);
  if (!handler.section(name, at.file, at.line)) {
    logError(`invalid section "${name}" in configuration (${at.file}:${at.line})`);
    return false;
  }
  return true;
}

function parseKeyValue(at: Cursor, handler: IniHandler): boolean {
  const key = takeKey(at);
  if (key === null) return syntaxError(at);
  skipBlank(at);
  if (at.text[at.pos] !== '=') return syntaxError(at);
  at.pos++;
  const value = takeRest(at);
  const debug = wantDebug();
  if (debug) logDebug(`parse_ini_file: '${key}' = '${value}'`);
  const ok = handler.value(key, value, at.file, at.line);
  if (debug) logDebug(`parse_ini_file: '${key}' = '${value}' ok:${ok ? 1 : 0}`);
  if (!ok) logError(`invalid value "${value}" for parameter ${key} in configuration (${at.file}:${at.line})`);
  return ok;
}

/** A bare or quoted key; null = unbalanced quotes. A bare key may be empty: the handler rejects it as unknown. */
function takeKey(at: Cursor): string | null {
  const line = at.text.slice(at.pos, lineEnd(at));
  const m = /^(?:'([^']+)'|"((?:[^"]|"")+)"|([A-Za-z0-9_.*-]*))/.exec(line) as RegExpExecArray;
  if (m[3] === '' && (line[0] === "'" || line[0] === '"')) return null;
  at.pos += m[0].length;
  return m[1] ?? m[2]?.replaceAll('""', '"') ?? (m[3] as string);
}

function syntaxError(at: Cursor): false {
  logError(`syntax error in configuration (${at.file}:${at.line}), stopping loading`);
  return false;
}
