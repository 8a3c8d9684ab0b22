/*
 * The workflow that makes a release: it is consistent with the scripts that it starts, and makes every artifact. Only a
 * public forge can run it.
 */

import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parse } from 'yaml';
import { noProgram, run } from '../harness';
import { describe, it } from '../harness/limits';
import { PROJECT_DIR } from '../harness/machine';
import { itUnless } from '../harness/needs';

interface Step {
  name?: string;
  uses?: string;
  run?: string;
  with?: Record<string, string>;
}

interface Job {
  needs?: string;
  strategy?: { matrix: Record<string, (string | number)[]> };
  steps: Step[];
}

const read = (path: string): string => readFileSync(join(PROJECT_DIR, path), 'utf8');

describe('the workflow of a release', () => {
  const jobs = parse(read('.github/workflows/release.yml')).jobs as Record<string, Job>;
  const steps = Object.values(jobs).flatMap((job) => job.steps);
  const commands = steps.flatMap((step) => step.run ?? []);
  const names = (pattern: RegExp): string[] => [...commands.join('\n').matchAll(pattern)].map((m) => m[1] as string);

  it('starts only what exists, after the jobs that it needs', () => {
    const { scripts } = JSON.parse(read('package.json'));
    const started = names(/\bnpm run ([\w:-]+)/g);
    assert.ok(started.includes('build'));
    for (const script of started) assert.ok(script in scripts, script);
    const files = names(/\b((?:scripts|packaging)\/[\w./-]+)/g);
    assert.ok(files.includes('scripts/prebuild.mjs'));
    for (const file of files) assert.ok(existsSync(join(PROJECT_DIR, file)), file);
    for (const { needs } of Object.values(jobs)) assert.ok(needs === undefined || needs in jobs, needs);
  });

  it('compiles an addon for each Node and machine that a package knows', () => {
    const matrix = jobs.addon?.strategy?.matrix;
    const known = /NODE_OF_ABI = \{(.*)\}/.exec(read('scripts/install-addon.mjs'))?.[1] ?? assert.fail();
    assert.deepEqual(
      matrix?.node,
      [...known.matchAll(/: (\d+)/g)].map((match) => Number(match[1])),
    );
    assert.deepEqual(matrix?.libc, ['bullseye', 'alpine']);
    assert.deepEqual(matrix?.runner, ['ubuntu-24.04', 'ubuntu-24.04-arm']);
    // and puts them where npm pack finds them
    const { files } = JSON.parse(read('package.json'));
    for (const job of ['package', 'deb']) {
      const download = jobs[job]?.steps.find((step) => step.uses?.startsWith('actions/download-artifact'));
      assert.ok(files.includes(download?.with?.path), job);
    }
  });

  it('makes the package of npm, the Debian packages, the images and the chart', () => {
    const uploaded = steps.filter((step) => step.uses?.startsWith('actions/upload-artifact'));
    assert.deepEqual(
      uploaded.map((step) => step.with?.path),
      ['prebuilds', '*.tgz', '*.deb', 'tsbouncer-*.tgz'],
    );
    const targets = [...read('packaging/container/Dockerfile').matchAll(/ AS (\w+)$/gm)].map((match) => match[1]);
    for (const target of names(/for target in (.*);/g).flatMap((list) => list.split(' '))) {
      assert.ok(targets.includes(target), target);
    }
    // the line of the values that the release replaces
    const line = /s\|\^(.*?)\$\|/.exec(commands.join('\n'))?.[1] ?? assert.fail('the image of the chart is not set');
    assert.ok(read('packaging/helm/tsbouncer/values.yaml').split('\n').includes(line), line);
  });

  itUnless(noProgram('shellcheck'))('has no fault that shellcheck finds', async () => {
    for (const [index, command] of commands.entries()) {
      const input = command.replace(/\$\{\{.*?\}\}/g, 'value');
      const checked = await run('shellcheck', ['--shell=bash', '-'], { input });
      assert.equal(checked.code, 0, `${index}: ${checked.stdout}`);
    }
  });
});
