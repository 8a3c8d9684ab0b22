/*
 * Fuzz target of the container image's entrypoint: whatever the variables are, the files have exactly the databases,
 * settings and users that the entrypoint found in them, or there is an error for the user.
 */

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { bitnamiConfig } from '../../src/cli/image/bitnami';
import { authFileText, type ImageConfig, iniText } from '../../src/cli/image/config-text';
import { edoburuConfig } from '../../src/cli/image/edoburu';
import { type Environment, ImageError } from '../../src/cli/image/variables';
import { zalandoConfig } from '../../src/cli/image/zalando';
import { loadAuthFile } from '../../src/core/config/authfile';
import { parseConnstr } from '../../src/core/config/connstr';
import { parseIniFile } from '../../src/core/config/ini';
import { tempDir } from '../harness/machine';
import type { Target } from './engine';

const path = join(tempDir('fuzz-image'), 'input');

/** Between variables: values may have line breaks. */
const SEPARATOR = '\x1e';

function file(text: string): string {
  writeFileSync(path, Buffer.from(text, 'latin1'));
  return path;
}

/** A value as the ini reader returns it. */
const trimmed = (value: string) => value.replace(/^[ \t]+|[ \t-\r]+$/g, '');

function checkIni(config: ImageConfig): void {
  const sections: string[] = [];
  const found: [key: string, value: string][] = [];
  const whole = parseIniFile(file(iniText(config)), {
    section: (name) => sections.push(name) > 0,
    value: (key, value) => found.push([key, value]) > 0,
  });
  assert.ok(whole);
  assert.deepEqual(sections, ['databases', 'pgbouncer']);
  const databases = found.splice(0, config.databases.length);
  for (const [at, { name, params, text }] of config.databases.entries()) {
    const [key, value] = databases[at] as [string, string];
    assert.equal(key, name);
    if (text !== '') continue;
    const pairs = Object.entries(params).filter(([, param]) => param !== '');
    assert.deepEqual(parseConnstr(value), pairs);
  }
  assert.deepEqual(
    found,
    [...config.settings].map(([name, value]) => [name, trimmed(value)]),
  );
}

function checkUsers(config: ImageConfig): void {
  const users = loadAuthFile(file(authFileText({ ...config, userLines: [] })), false);
  assert.deepEqual(
    users,
    config.users.map(({ name, password }) => ({ name, passwd: password })),
  );
}

const image: Target = {
  name: 'image',
  cases: 3000,
  words: [
    SEPARATOR,
    `${SEPARATOR}DB_HOST=`,
    `${SEPARATOR}DATABASE_URL=`,
    `${SEPARATOR}DATABASE_URLS=`,
    `${SEPARATOR}ADMIN_USERS=`,
    `${SEPARATOR}PGBOUNCER_DATABASE=`,
    'postgres://',
    '?sslmode=',
    '%0A',
    '%00',
    '%25',
    '@',
    ':',
    '/',
    ',',
    '\n',
    '\r',
    '\0',
    "'",
    '"',
    ' ',
    '%include ',
    '[users]',
    ';',
  ],
  run(input) {
    const env: Record<string, string> = {};
    for (const entry of input.toString('latin1').split(SEPARATOR)) {
      const equals = entry.indexOf('=');
      // a name of a file would be read
      if (equals > 0 && !entry.slice(0, equals).endsWith('_FILE'))
        env[entry.slice(0, equals)] = entry.slice(equals + 1);
    }
    const families: ((variables: Environment) => ImageConfig)[] = [edoburuConfig, bitnamiConfig, zalandoConfig];
    for (const family of families) {
      try {
        const config = family(env);
        checkIni(config);
        checkUsers(config);
      } catch (err) {
        if (!(err instanceof ImageError)) throw err;
      }
    }
  },
};

export const imageTargets: readonly Target[] = [image];
