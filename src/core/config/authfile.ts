/*
 * auth_file: the list of users with their passwords or secrets, one `"user" "password"` per line. Read at start and on
 * reload. The pool layer turns the entries into users.
 */

import { type BigIntStats, statSync } from 'node:fs';
import { logDebug, logError, strerror } from '../base/log';
import { skipSpace } from '../base/strutil';
import { MAX_PASSWORD, MAX_USERNAME } from '../wire/limits';
import { AuthType } from './choices';
import { readByteString } from './ini';
import { closingQuote } from './tokens';

export interface AuthFileUser {
  name: string;
  /** plain text, md5... or SCRAM-SHA-256$...; may be empty */
  passwd: string;
}

/** Whether logins with this auth_type look users up in auth_file. */
export function requiresAuthFile(authType: AuthType): boolean {
  return authType !== AuthType.PAM && authType >= AuthType.TRUST;
}

/** The state of the file at the last call; null before the first call, '' for no file. */
let lastSeen: string | null = null;

/**
 * Whether auth_file must be read again: its path or the file itself has changed since the last call, or it could not be
 * read completely. A missing file counts as a change only once. PgBouncer's auth_loaded(), with time stamps finer than a
 * second.
 * @param path auth_file, or null if there is none (never a reason to read; forgets the remembered state)
 */
export function usersFileChanged(path: string | null): boolean {
  let seen = '';
  if (path !== null) {
    try {
      seen = identity(statSync(Buffer.from(path, 'latin1'), { bigint: true }));
    } catch {
      // missing or inaccessible: treated as no file
    }
  }
  const changed = path !== null && lastSeen !== seen;
  lastSeen = seen;
  return changed;
}

function identity(st: BigIntStats): string {
  return [st.dev, st.ino, st.mode, st.uid, st.gid, st.mtimeNs, st.size].join(' ');
}

/**
 * Reads an auth_file. A malformed line is logged and ends the reading. At the first load the users above that line
 * count, as in PgBouncer. On a reload a malformed file is ignored as a whole, so that a typing error locks no user out.
 * @param path file name as a byte string
 * @param firstLoad false on RELOAD and SIGHUP
 * @returns the users in the file's order (a later line replaces an earlier line of the same name), or null if the known
 *   users must stay as they are. The texts may be substrings of the file's text, and keep all of it in memory.
 */
export function loadAuthFile(path: string, firstLoad: boolean): AuthFileUser[] | null {
  let text: string;
  try {
    text = readByteString(path);
  } catch (err) {
    logError(`could not open auth_file ${path}: ${strerror(err)}`);
    readAgain();
    return null;
  }
  logDebug(`loading auth_file: "${path}"`);
  const users: AuthFileUser[] = [];
  const broken = parseAuthFile(text, 0, users);
  if (broken === null) return users;
  logError(broken.reason);
  readAgain();
  return firstLoad ? users : null;
}

/** The next RELOAD reads the file again: the cause may be gone, or else the error must not be passed over in silence. */
function readAgain(): void {
  if (lastSeen !== '') lastSeen = null;
}

/** A malformed line. */
interface BrokenLine {
  reason: string;
  /** line number, from 1 */
  line: number;
}

/** Every malformed line of an auth_file, for the config check. Throws as fs does. */
export function findBrokenLines(path: string): BrokenLine[] {
  const text = readByteString(path);
  const found: BrokenLine[] = [];
  let broken = parseAuthFile(text, 0, []);
  while (broken !== null) {
    found.push({ reason: broken.reason, line: text.slice(0, broken.pos).split('\n').length });
    broken = parseAuthFile(text, lineEnd(text, broken.pos), []);
  }
  return found;
}

/** Adds to `users`, starting at position `from`. @returns null, or the first fault and its position */
function parseAuthFile(text: string, from: number, users: AuthFileUser[]): { reason: string; pos: number } | null {
  let p = from;
  for (;;) {
    p = skipSpace(text, p);
    if (p >= text.length) return null;
    if (text[p] === ';') {
      p = lineEnd(text, p);
      continue;
    }

    const broken = { reason: 'broken auth file', pos: p };
    if (text[p] !== '"') return broken;
    const nameStart = p + 1;
    const nameEnd = closingQuote(text, nameStart);
    if (nameEnd < 0) return broken;
    if (nameEnd - nameStart >= MAX_USERNAME) return { ...broken, reason: 'username too long in auth file' };

    const passwdQuote = text.indexOf('"', nameEnd + 1);
    // in PgBouncer, a user without a password gets the name in the next line as one
    if (passwdQuote < 0 || lineEnd(text, nameEnd) < passwdQuote) return broken;
    const passwdEnd = closingQuote(text, passwdQuote + 1);
    if (passwdEnd < 0) return broken;
    if (passwdEnd - passwdQuote - 1 >= MAX_PASSWORD) return { ...broken, reason: 'password too long in auth file' };

    users.push({ name: unquote(text, nameStart, nameEnd), passwd: unquote(text, passwdQuote + 1, passwdEnd) });
    // further fields are ignored
    p = lineEnd(text, passwdEnd + 1);
  }
}

function lineEnd(text: string, from: number): number {
  const end = text.indexOf('\n', from);
  return end < 0 ? text.length : end;
}

function unquote(text: string, start: number, end: number): string {
  const field = text.slice(start, end);
  return field.includes('"') ? field.replaceAll('""', '"') : field;
}
