/*
 * What a test may need of the machine and not find there: it is skipped then, and says why. `.ci/run` sees to it that
 * everything is there.
 */
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { systemPostgres } from '../../src/demo/postgres';
import { isRoot } from '../../src/demo/unprivileged';
import { originalBin } from './bouncer';
import { it, onPath, user } from './machine';

/** Why there can be no test beside the C original, or null. */
export const noOriginal = originalBin() === null ? 'the C original is not installed' : null;

/** Why there can be no test of what root may do, or null. */
export const notRoot = isRoot() && user !== null ? null : 'needs root';

/** The npm package's PostgreSQL has none. */
function findPgbench(): string | null {
  const beside = join(systemPostgres() ?? '', 'pgbench');
  if (existsSync(beside)) return beside;
  return onPath('pgbench') ? 'pgbench' : null;
}

export const pgbench = findPgbench();
/** Why there can be no test with pgbench, or null. */
export const noPgbench = pgbench === null ? 'there is no pgbench on this machine' : null;

/** it(), or its like that skips and says why. @param missing what is not there, or null */
export function itUnless(missing: string | null): typeof it {
  if (missing === null) return it;
  return (name) => {
    test(name, { skip: missing }, () => {});
  };
}
