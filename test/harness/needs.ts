/*
 * What a test may need of the machine and not find there: it is skipped then, and says why. `.ci/run` sees to it that
 * everything is there.
 */

import { join } from 'node:path';
import { systemPostgres } from '../../tools/postgres';
import { isRoot } from '../../tools/unprivileged';
import { originalBin } from './bouncer';
import { test } from './limits';
import { executable, findProgram, it, user } from './machine';

/** Why there can be no test beside the C original, or null. */
export const noOriginal = originalBin() === null ? 'the C original is not installed' : null;

/** Why there can be no test of what root may do, or null. */
export const notRoot = isRoot() && user !== null ? null : 'needs root';

/** Why there can be no test of what only Linux has, or null. */
export const notLinux = process.platform === 'linux' ? null : 'needs Linux';

/** Why there can be no test with that program, or null. */
export function noProgram(name: string): string | null {
  return findProgram(name) === null ? `there is no ${name} on this machine` : null;
}

/** A client program of PostgreSQL: the npm package has only the server's. */
function clientProgram(name: string): string | null {
  const beside = join(systemPostgres() ?? '/', name);
  return executable(beside) ? beside : findProgram(name);
}

export const psql = clientProgram('psql');
export const pgbench = clientProgram('pgbench');
/** Why there can be no test with them, or null. */
export const noPsql = psql === null ? 'there is no psql on this machine' : null;
export const noPgbench = pgbench === null ? 'there is no pgbench on this machine' : null;

/** The first python3 that the servers' user can run, too. */
export const python = findProgram('python3') ?? 'python3';
export const noPython = noProgram('python3');

/** it(), or its like that skips and says why. @param missing what is not there, or null */
export function itUnless(missing: string | null): typeof it {
  if (missing === null) return it;
  return (name) => {
    test(name, { skip: missing }, () => {});
  };
}
