/*
 * `tsbouncer mkauth FILE CONNSTR`: writes the login roles of a PostgreSQL server with their secrets in the format of
 * auth_file, as PgBouncer's etc/mkauth.py does. FILE `-` is stdout. A file whose contents would not change is left
 * alone; otherwise it is replaced atomically, readable by its owner only.
 */

import { closeSync, fsyncSync, openSync, readFileSync, renameSync, unlinkSync, writeSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { readConnInfo } from './connect-info';
import { PROGRAM_NAME } from './options';
import { fetchRows } from './pg-client';
import { printable } from './printable';

/** Expired roles keep their line, without a secret. */
const QUERY = `SELECT rolname, CASE WHEN rolvaliduntil < pg_catalog.now() THEN NULL ELSE rolpassword END
  FROM pg_catalog.pg_authid WHERE rolcanlogin ORDER BY 1`;

/** @param message byte string */
function warn(message: string): void {
  writeSync(2, Buffer.from(`${PROGRAM_NAME}: ${printable(message)}\n`, 'latin1'));
}

/** Quotes a text for auth_file. */
function quoted(text: string): string {
  return `"${text.replaceAll('"', '""')}"`;
}

function readOld(path: string): Buffer | null {
  try {
    return readFileSync(path);
  } catch {
    // missing or unreadable: the file is written anew
    return null;
  }
}

function writeAll(fd: number, text: Buffer): void {
  let done = 0;
  while (done < text.length) done += writeSync(fd, text, done);
}

/** Replaces the file atomically, and never makes the secrets readable by other users. */
function replaceFile(path: string, text: Buffer): void {
  const temporary = join(dirname(path), `.mkauth-${process.pid}-${Date.now()}`);
  const fd = openSync(temporary, 'wx', 0o600);
  try {
    writeAll(fd, text);
    fsyncSync(fd);
    closeSync(fd);
    renameSync(temporary, path);
  } catch (err) {
    unlinkSync(temporary);
    throw err;
  }
}

async function userList(connstr: string): Promise<Buffer> {
  const info = readConnInfo(Buffer.from(connstr).toString('latin1'), process.env, warn);
  const rows = await fetchRows(info, QUERY);
  const lines = rows.map(([name, secret]) => `${quoted(name ?? '')} ${quoted(secret ?? '')}\n`);
  return Buffer.from(lines.join(''), 'latin1');
}

/**
 * Runs the command.
 * @param args the arguments after the word mkauth
 * @returns the exit code
 */
export async function mkauth(args: readonly string[]): Promise<number> {
  const [path, connstr] = args;
  if (path === undefined || connstr === undefined || args.length !== 2) {
    writeSync(1, 'usage: mkauth DSTFN CONNSTR\n');
    return 1;
  }
  try {
    const text = await userList(connstr);
    if (path === '-') writeAll(1, text);
    else if (readOld(path)?.equals(text) !== true) replaceFile(path, text);
  } catch (err) {
    warn((err as Error).message);
    return 1;
  }
  return 0;
}
