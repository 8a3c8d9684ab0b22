/*
 * `tsbouncer mkauth FILE CONNSTR`: writes the login roles of a PostgreSQL server with their secrets, in the form of
 * auth_file. What etc/mkauth.py of the original does, by way of psql. FILE `-` is stdout. A file that would not change
 * is left alone; else it is replaced in one step, readable by its owner only.
 */
import { spawnSync } from 'node:child_process';
import { closeSync, fsyncSync, openSync, readFileSync, renameSync, unlinkSync, writeSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { PROGRAM_NAME } from './options';

/** Roles whose time is over keep their line, without a secret. The quoting is auth_file's. */
const QUERY = `SELECT '"' || replace(rolname, '"', '""') || '" "' || replace(secret, '"', '""') || '"'
  FROM (SELECT rolname, CASE WHEN rolvaliduntil < now() THEN '' ELSE coalesce(rolpassword, '') END AS secret
        FROM pg_catalog.pg_authid WHERE rolcanlogin) AS roles
  ORDER BY rolname`;

/** Most bytes of a server's answer. */
const ANSWER_MAX = 256 * 1024 * 1024;

function fail(message: string): number {
  writeSync(2, `${PROGRAM_NAME}: ${message}\n`);
  return 1;
}

function readOld(path: string): Buffer | null {
  try {
    return readFileSync(path);
  } catch {
    // missing or out of reach: it is written anew
    return null;
  }
}

/** Secrets must not be readable by others, not even for a moment; and nobody must ever read half a file. */
function replaceFile(path: string, text: Buffer): void {
  const temporary = join(dirname(path), `.mkauth-${process.pid}-${Date.now()}`);
  const fd = openSync(temporary, 'wx', 0o600);
  try {
    let done = 0;
    while (done < text.length) done += writeSync(fd, text, done);
    fsyncSync(fd);
    closeSync(fd);
    renameSync(temporary, path);
  } catch (err) {
    unlinkSync(temporary);
    throw err;
  }
}

/**
 * The whole command.
 * @param args what follows the word mkauth
 * @returns the exit code
 */
export function mkauth(args: readonly string[]): number {
  const [path, connstr] = args;
  if (path === undefined || connstr === undefined || args.length !== 2) {
    writeSync(1, 'usage: mkauth DSTFN CONNSTR\n');
    return 1;
  }
  const options = ['--no-psqlrc', '--quiet', '--tuples-only', '--no-align', '--set=ON_ERROR_STOP=1'];
  const psql = spawnSync('psql', [...options, '--command', QUERY, '--dbname', connstr], {
    stdio: ['inherit', 'pipe', 'inherit'],
    maxBuffer: ANSWER_MAX,
  });
  if (psql.error !== undefined) return fail(`could not run psql: ${psql.error.message}`);
  // what went wrong, psql has said itself
  if (psql.status !== 0) return 1;
  const text = psql.stdout;
  if (path === '-') {
    let done = 0;
    while (done < text.length) done += writeSync(1, text, done);
    return 0;
  }
  if (readOld(path)?.equals(text) === true) return 0;
  try {
    replaceFile(path, text);
  } catch (err) {
    return fail((err as Error).message);
  }
  return 0;
}
