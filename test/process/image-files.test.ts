/*
 * The files that build and start the container image: the compose file describes a config that loads, and the Dockerfile
 * has what scripts/image-root.mjs makes. `npm run image-test` starts the image.
 */

import assert from 'node:assert/strict';
import { existsSync, lstatSync, mkdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { authFileText, iniText } from '../../src/cli/image/config-text';
import { edoburuConfig } from '../../src/cli/image/edoburu';
import { run, tempDir } from '../harness';
import { load } from '../harness/config-fixtures';
import { describe, it } from '../harness/limits';
import { PROJECT_DIR } from '../harness/machine';

const FOLDER = join(PROJECT_DIR, 'packaging', 'container');

type Tree = { [key: string]: Tree | string };

/** The part of YAML that the compose file uses: maps by indentation, plain and quoted scalars; lists stay text. */
function parseYaml(text: string): Tree {
  const root: Tree = {};
  const stack: { indent: number; map: Tree }[] = [{ indent: -1, map: root }];
  for (const line of text.split('\n')) {
    const parts = /^( *)([\w.-]+):(?: +(.*))?$/.exec(line.replace(/(^|\s)#.*$/, '').trimEnd());
    if (parts === null) continue;
    const [, { length: indent }, key, value] = parts as unknown as [string, string, string, string | undefined];
    while ((stack.at(-1)?.indent ?? -1) >= indent) stack.pop();
    const map = stack.at(-1)?.map ?? root;
    assert.ok(!(key in map), `${key} is there twice`);
    if (value !== undefined) {
      map[key] = value.replace(/^"(.*)"$/, '$1');
    } else {
      const child: Tree = {};
      map[key] = child;
      stack.push({ indent, map: child });
    }
  }
  return root;
}

function at(tree: Tree, ...path: string[]): Tree | string {
  let found: Tree | string = tree;
  for (const key of path) found = (found as Tree)[key] ?? assert.fail(`no ${path.join('.')}`);
  return found;
}

describe('the compose file', () => {
  const text = readFileSync(join(FOLDER, 'compose.yaml'), 'utf8');
  const compose = parseYaml(text);
  const env = at(compose, 'services', 'tsbouncer', 'environment') as Record<string, string>;

  it('sets variables that the entrypoint understands, for a config that loads', () => {
    const config = edoburuConfig(env);
    load(iniText(config));
    const used = new Set([
      'DB_HOST',
      'DB_USER',
      'DB_PASSWORD',
      ...[...config.settings.keys()].map((s) => s.toUpperCase()),
    ]);
    for (const name of Object.keys(env)) assert.ok(used.has(name), `${name} has no effect`);
    assert.match(authFileText(config), /^"app" "secret"$/m);
  });

  it('connects to the server beside it, as a user of that server', () => {
    const server = at(compose, 'services', env.DB_HOST as string, 'environment') as Record<string, string>;
    assert.equal(server.POSTGRES_USER, env.DB_USER);
    assert.equal(server.POSTGRES_PASSWORD, env.DB_PASSWORD);
  });

  it('publishes the port that the pooler listens on, and gives a shutdown enough time', () => {
    assert.match(text, new RegExp(`^ +- 127\\.0\\.0\\.1:\\d+:${env.LISTEN_PORT}$`, 'm'));
    const grace = Number.parseInt(String(at(compose, 'services', 'tsbouncer', 'stop_grace_period')), 10);
    // docs/operating.md: shutdown_timeout and 5 seconds
    assert.ok(grace >= Number(env.SHUTDOWN_TIMEOUT) + 5, `${grace} s`);
  });

  it('runs the image without rights, on a read-only file system', () => {
    assert.equal(at(compose, 'services', 'tsbouncer', 'read_only'), 'true');
    assert.equal(at(compose, 'services', 'tsbouncer', 'cap_drop'), '[ALL]');
    const dockerfile = String(at(compose, 'services', 'tsbouncer', 'build', 'dockerfile'));
    const context = join(FOLDER, String(at(compose, 'services', 'tsbouncer', 'build', 'context')));
    assert.ok(existsSync(join(context, dockerfile)), dockerfile);
  });
});

describe('the Dockerfile', () => {
  const text = readFileSync(join(FOLDER, 'Dockerfile'), 'utf8');

  it('starts what scripts/image-root.mjs makes, as a user by number', async () => {
    const root = join(tempDir('image'), 'root');
    mkdirSync(root);
    const script = join(PROJECT_DIR, 'scripts', 'image-root.mjs');
    const prebuilt = await run(process.execPath, [join(PROJECT_DIR, 'scripts', 'prebuild.mjs')], { asSelf: true });
    assert.equal(prebuilt.code, 0, prebuilt.stderr);
    const made = await run(process.execPath, [script, root], { asSelf: true });
    assert.equal(made.code, 0, made.stderr);
    const entrypoints = [...text.matchAll(/^ENTRYPOINT \["\/([^"]+)"\]$/gm)].map((match) => match[1] as string);
    assert.equal(entrypoints.length, 2);
    for (const path of [...entrypoints, 'usr/bin/pgbouncer', 'usr/sbin/pgbouncer', 'usr/bin/tsbouncer']) {
      assert.ok(lstatSync(join(root, path)).isSymbolicLink(), path);
      const target = join(root, path, '..', readlinkSync(join(root, path)));
      assert.equal(statSync(target).mode & 0o777, 0o755, path);
      assert.match(readFileSync(target, 'latin1'), /^#!\/usr\/bin\/node\n/, path);
    }
    for (const folder of ['etc/pgbouncer', 'var/log/pgbouncer', 'run/pgbouncer']) {
      assert.equal(statSync(join(root, folder)).mode & 0o7777, 0o1777, folder);
    }
    assert.deepEqual(
      [...text.matchAll(/^USER (.*)$/gm)].map((match) => match[1]),
      ['998:0', '998:0'],
    );
    assert.match(text, /pgbouncer:x:998:0:/);
  });
});
