/*
 * The files that build and start the container image: the compose file describes a config that loads, and the Dockerfile
 * has what scripts/image-root.mjs makes. `npm run image-test` starts the image.
 */

import assert from 'node:assert/strict';
import { existsSync, lstatSync, mkdirSync, readFileSync, readlinkSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { parse } from 'yaml';
import { authFileText, iniText } from '../../src/cli/image/config-text';
import { edoburuConfig } from '../../src/cli/image/edoburu';
import { run, tempDir } from '../harness';
import { load } from '../harness/config-fixtures';
import { describe, it } from '../harness/limits';
import { PROJECT_DIR } from '../harness/machine';

const FOLDER = join(PROJECT_DIR, 'packaging', 'container');

/** The part of a compose file that is checked here. */
interface Service {
  build: { context: string; dockerfile: string };
  environment: Record<string, string>;
  ports: string[];
  read_only: boolean;
  cap_drop: string[];
  stop_grace_period: string;
}

describe('the compose file', () => {
  const text = readFileSync(join(FOLDER, 'compose.yaml'), 'utf8');
  const services = parse(text).services as Record<string, Service>;
  const pooler = services.tsbouncer ?? assert.fail('no tsbouncer');
  const env = pooler.environment;

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
    const server = services[env.DB_HOST as string]?.environment ?? assert.fail('no server');
    assert.equal(server.POSTGRES_USER, env.DB_USER);
    assert.equal(server.POSTGRES_PASSWORD, env.DB_PASSWORD);
  });

  it('publishes the port that the pooler listens on, and gives a shutdown enough time', () => {
    assert.deepEqual(pooler.ports, [`127.0.0.1:6432:${env.LISTEN_PORT}`]);
    const grace = Number.parseInt(pooler.stop_grace_period, 10);
    // docs/operating.md: shutdown_timeout and 5 seconds
    assert.ok(grace >= Number(env.SHUTDOWN_TIMEOUT) + 5, `${grace} s`);
  });

  it('runs the image without rights, on a read-only file system', () => {
    assert.equal(pooler.read_only, true);
    assert.deepEqual(pooler.cap_drop, ['ALL']);
    const { context: folder, dockerfile } = pooler.build;
    const context = join(FOLDER, folder);
    assert.ok(existsSync(join(context, dockerfile)), dockerfile);
  });
});

describe('docs/install.md', () => {
  it('starts the image with variables that also fit a server that asks for SCRAM', () => {
    const page = readFileSync(join(PROJECT_DIR, 'docs', 'install.md'), 'utf8');
    const command = /^ {4}docker run [\s\S]*?tsbouncer$/m.exec(page)?.[0] ?? assert.fail('no docker run');
    const env = Object.fromEntries([...command.matchAll(/ -e (\w+)=(\S+)/g)].map(([, name, value]) => [name, value]));
    const config = edoburuConfig(env);
    load(iniText(config));
    assert.equal(command.includes(`-p 6432:${env.LISTEN_PORT} `), true);
    // an MD5 secret would not do
    assert.match(authFileText(config), /^"app" "secret"$/m);
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
