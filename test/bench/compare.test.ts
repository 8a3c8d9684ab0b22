/*
 * The exit code of `npm run compare`: a comparison that did not take place must not look like one without differences.
 */

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { PROJECT_DIR, runSync, tempDir } from '../harness';
import { it } from '../harness/machine';

const RUN_MS_MAX = 60_000;
const PROGRAM = join(PROJECT_DIR, 'dist-test', 'compare', 'main.js');

/** Compares with a program that says that it is PgBouncer 1.0, and can do nothing else. */
function compare(env: Record<string, string>, ...words: string[]) {
  const original = join(tempDir('original'), 'pgbouncer');
  writeFileSync(original, '#!/bin/sh\necho PgBouncer 1.0\n', { mode: 0o755 });
  return runSync(process.execPath, [PROGRAM, ...words], {
    env: { ...process.env, PGBOUNCER_BIN: original, ...env },
    timeout: RUN_MS_MAX,
  });
}

it('a comparison that cannot start exits with 2, not with the code of differences', () => {
  const { status, stderr } = compare({ PG_BIN: '/nonexistent' });
  assert.equal(status, 2);
  assert.match(stderr, /\/nonexistent\/\w+ ENOENT/);
});

it('a comparison of which every scenario is left out exits with 2', () => {
  const { status, stdout, stderr } = compare({}, 'signals: TERM with a client');
  assert.equal(status, 2);
  assert.match(stdout, /^left out, as PgBouncer 1\.23 brought it: 1 scenarios$/m);
  assert.match(stderr, /nothing was compared/);
});
