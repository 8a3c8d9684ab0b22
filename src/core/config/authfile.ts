/*
 * auth_file: the list of users with their passwords or secrets, one `"user" "password"` a line. Read at start and on
 * reload; who the users become is up to the pool floor.
 */
import { type BigIntStats, statSync } from 'node:fs';
import { logDebug, logError, strerror } from '../base/log';
import { isSpace } from '../base/strutil';
import { readByteString } from './ini';
import { AuthType, MAX_PASSWORD, MAX_USERNAME } from './settings';

export interface AuthFileUser {
  name: string;
  /** plain text, md5... or SCRAM-SHA-256$...; may be empty */
  passwd: string;
}

/** Whether logins of this auth_type look into auth_file. */
export function requiresAuthFile(authType: AuthType): boolean {
  return authType !== AuthType.PAM && authType >= AuthType.TRUST;
}

/** What the last call saw of the file; null before the first call, '' for no file. */
let lastSeen: string | null = null;

/**
 * Whether auth_file must be read again: it is another file than at the last call, or it changed since. Remembers what
 * it saw, whether or not the reading then succeeds; a missing file is a change only the first time. The original's
 * auth_loaded(), with time stamps finer than a second.
 * @param path auth_file, or null when there is none (never a reason to read, forgets what was seen)
 */
export function usersFileChanged(path: string | null): boolean {
  let seen = '';
  if (path !== null) {
    try {
      seen = identity(statSync(Buffer.from(path, 'latin1'), { bigint: true }));
    } catch {
      // missing or out of reach: as good as no file
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
 * Reads an auth_file. A broken line is logged and ends the reading. At the first load the users above it count, as in
 * the original; on a reload nothing of a broken file does, so that a slip of the editor locks nobody out.
 * @param path file name as a byte string
 * @param firstLoad false on RELOAD and SIGHUP
 * @returns the users in the file's order (a later line of the same name replaces an earlier one), or null when the
 *   users known so far must stay as they are. Their texts may be pieces of the file's, and keep all of it in memory.
 */
export function loadAuthFile(path: string, firstLoad: boolean): AuthFileUser[] | null {
  let text: string;
  try {
    text = readByteString(path);
  } catch (err) {
    logError(`could not open auth_file ${path}: ${strerror(err)}`);
    return null;
  }
  logDebug(`loading auth_file: "${path}"`);
  const users: AuthFileUser[] = [];
  const broken = parseAuthFile(text, 0, users);
  if (broken === null) return users;
  logError(broken.reason);
  return firstLoad ? users : null;
}

/** A line that is no good. */
interface BrokenLine {
  reason: string;
  /** from 1 */
  line: number;
}

/** Every broken line of an auth_file, for the config check. Throws as fs does. */
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

/** Fills `users` from position `from` on. @returns null, or what is wrong with the first line that is, and where */
function parseAuthFile(text: string, from: number, users: AuthFileUser[]): { reason: string; pos: number } | null {
  let p = from;
  for (;;) {
    while (isSpace(text.charCodeAt(p))) p++;
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
    if (passwdQuote < 0) return broken;
    const passwdEnd = closingQuote(text, passwdQuote + 1);
    if (passwdEnd < 0) return broken;
    if (passwdEnd - passwdQuote - 1 >= MAX_PASSWORD) return { ...broken, reason: 'password too long in auth file' };

    users.push({ name: unquote(text, nameStart, nameEnd), passwd: unquote(text, passwdQuote + 1, passwdEnd) });
    // further fields are somebody else's
    p = lineEnd(text, passwdEnd + 1);
  }
}

function lineEnd(text: string, from: number): number {
  const end = text.indexOf('\n', from);
  return end < 0 ? text.length : end;
}

/** Position of the quote that ends a field which starts at `from` (two in a row are one within it), or -1. */
function closingQuote(text: string, from: number): number {
  let p = text.indexOf('"', from);
  while (p >= 0 && text[p + 1] === '"') p = text.indexOf('"', p + 2);
  return p;
}

function unquote(text: string, start: number, end: number): string {
  const field = text.slice(start, end);
  return field.includes('"') ? field.replaceAll('""', '"') : field;
}
