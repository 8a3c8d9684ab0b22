/*
 * Set-up that tests of HBA rules share: a PostgreSQL server with users that have the password `right`, and a folder for
 * the rules.
 */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { giveTo } from '../../tools/unprivileged';
import { withPooler } from './answers';
import type { Bouncer, BouncerOptions } from './bouncer';
import { PgCluster } from './cluster';
import { after, before } from './limits';
import { dropDir, tempDir, user } from './machine';

let pg: PgCluster;
let dir = '';

/** Starts a PostgreSQL server with these users before the tests of a file, and stops it after them. */
export function withRuleCluster(...users: string[]): void {
  before(async () => {
    dir = tempDir('rules');
    pg = await PgCluster.start();
    for (const name of new Set(users)) if (name !== 'postgres') await pg.createUser(name, 'right', 'scram');
  });
  after(async () => {
    await pg.stop();
    dropDir(dir);
  });
}

/** The server of withRuleCluster(); may be called only inside tests. */
export function ruleCluster(): PgCluster {
  return pg;
}

/** The path of a file in the folder of the rules; may be called only inside tests. */
export function rulePath(name: string): string {
  return join(dir, name);
}

/** Writes a file into the folder of the rules. @returns its path */
export function ruleFile(name: string, ...lines: string[]): string {
  const path = rulePath(name);
  writeFileSync(path, lines.map((line) => `${line}\n`).join(''));
  giveTo(user, path);
  return path;
}

/** Runs `body` with a pooler that has these HBA rules. */
export function withRules(
  lines: string[],
  body: (pooler: Bouncer) => Promise<void>,
  more: BouncerOptions = {},
): Promise<void> {
  const settings = { auth_type: 'hba', auth_hba_file: ruleFile('hba.conf', ...lines), ...more.settings };
  return withPooler({ cluster: pg, userlist: { ann: 'right' }, ...more, settings }, body);
}
