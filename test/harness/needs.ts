/*
 * Programs and rights that tests need: a test is skipped with the reason if they are missing. `.ci/run` makes sure that
 * nothing is missing.
 */

import { join } from 'node:path';
import { systemPostgres } from '../../tools/postgres';
import { isRoot } from '../../tools/unprivileged';
import { originalBin } from './bouncer';
import { test } from './limits';
import { executable, findProgram, it, user } from './machine';

/** Why tests with PgBouncer cannot run, or null. */
export const noOriginal = originalBin() === null ? 'PgBouncer is not installed' : null;

/** Why tests as root cannot run, or null. */
export const notRoot = isRoot() && user !== null ? null : 'needs root';

/** Why tests of Linux features cannot run, or null. */
export const notLinux = process.platform === 'linux' ? null : 'needs Linux';

/** Why tests with that program cannot run, or null. */
export function noProgram(name: string): string | null {
  return findProgram(name) === null ? `there is no ${name} on this machine` : null;
}

/** The path of a client program of PostgreSQL; the npm package has only server programs. */
function clientProgram(name: string): string | null {
  const beside = join(systemPostgres() ?? '/', name);
  return executable(beside) ? beside : findProgram(name);
}

export const psql = clientProgram('psql');
export const pgbench = clientProgram('pgbench');
/** Why tests with these programs cannot run, or null. */
export const noPsql = psql === null ? 'there is no psql on this machine' : null;
export const noPgbench = pgbench === null ? 'there is no pgbench on this machine' : null;

/** The first python3 that the servers' user can run. */
export const python = findProgram('python3') ?? 'python3';
export const noPython = noProgram('python3');

/** it(), or a skipped test. @param missing the reason for skipping, or null */
export function itUnless(missing: string | null): typeof it {
  if (missing === null) return it;
  return (name) => {
    test(name, { skip: missing }, () => {});
  };
}
