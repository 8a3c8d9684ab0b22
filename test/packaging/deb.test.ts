/*
 * The Debian packages: what they depend on, and what they install. `npm run deb-test` installs them.
 */

import assert from 'node:assert/strict';
import { readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { noProgram, run, tempDir } from '../harness';
import { describe, it } from '../harness/limits';
import { PROJECT_DIR } from '../harness/machine';
import { itUnless } from '../harness/needs';

const MAKE_MS_MAX = 50_000;
const SCRIPTS = join(PROJECT_DIR, 'scripts');

/** Depends for addons of these versions of Node. */
async function nodeVersions(majors: number[]): Promise<string[]> {
  const file = join(tempDir('depends'), 'versions.mjs');
  writeFileSync(
    file,
    `import { nodeVersions } from '${join(SCRIPTS, 'install-tree.mjs')}';
    console.log(JSON.stringify(nodeVersions(${JSON.stringify(majors)})));`,
  );
  const { code, stdout, stderr } = await run(process.execPath, [file], { asSelf: true });
  assert.equal(code, 0, stderr);
  return JSON.parse(stdout);
}

/** Whether dpkg would find the dependencies satisfied. */
function isSatisfied(parts: string[], version: number): boolean {
  const holds = (relation: string): boolean => {
    const [, operator, bound] = /^nodejs \((>=|<<) (\d+)\)$/.exec(relation) ?? assert.fail(relation);
    return operator === '>=' ? version >= Number(bound) : version < Number(bound);
  };
  return parts.every((part) => part.split(' | ').some(holds));
}

describe('the Debian packages', () => {
  it('allow only the versions of Node that have an addon', async () => {
    for (const majors of [[20], [24, 20, 26, 22], [20, 21, 24]]) {
      const parts = await nodeVersions(majors);
      for (let version = 18; version <= 28; version++) {
        assert.equal(isSatisfied(parts, version), majors.includes(version), `Node ${version}: ${parts.join(', ')}`);
      }
    }
  });

  itUnless(noProgram('dpkg-deb'))('have the program, its pages, and the dashboard that they mention', async () => {
    const folder = tempDir('deb');
    for (const [script, ...args] of [['prebuild.mjs'], ['deb.mjs', folder]] as [string, ...string[]][]) {
      const made = await run(process.execPath, [join(SCRIPTS, script), ...args], {
        asSelf: true,
        timeoutMs: MAKE_MS_MAX,
      });
      assert.equal(made.code, 0, made.stderr);
    }
    const file = readdirSync(folder).find((name) => name.startsWith('tsbouncer_')) ?? assert.fail('no package');
    const { stdout } = await run('dpkg-deb', ['--contents', join(folder, file)], { asSelf: true });
    const paths = new Set([...stdout.matchAll(/ (\.\/\S*)(?: -> .*)?$/gm)].map((match) => match[1]));
    const doc = './usr/share/doc/tsbouncer';
    const wanted = [
      './usr/bin/tsbouncer',
      './usr/lib/tsbouncer/dist/main.js',
      './usr/share/man/man1/tsbouncer.1.gz',
      ...readdirSync(join(PROJECT_DIR, 'docs')).map((page) => `${doc}/${page}.gz`),
      ...readdirSync(join(PROJECT_DIR, 'etc/grafana')).map((name) => `${doc}/examples/grafana/${name}`),
    ];
    for (const path of wanted) assert.ok(paths.has(path), path);
  });
});
