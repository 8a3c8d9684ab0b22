/*
 * password_file and password_env: the password of a forced user that is not in the ini, and its rotation.
 */

import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, renameSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { giveTo } from '../../tools/unprivileged';
import { Bouncer } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { dropDir, installed, it, run, tempDir, user } from '../harness/machine';
import { withRebootChain } from '../harness/reboot-chain';

const ASK = 'SELECT current_user';

let pg: PgCluster;
let dir = '';
/** as Kubernetes mounts a secret: a link to a file in a folder that a link names */
let secret = '';
let version = 0;

/** Replaces all files of the secret at once. */
function mount(password: string): void {
  const folder = `..${++version}`;
  mkdirSync(join(dir, folder));
  const file = join(dir, folder, 'password');
  writeFileSync(file, `${password}\n`);
  chmodSync(file, 0o400);
  giveTo(user, join(dir, folder));
  symlinkSync(folder, join(dir, '..new'));
  renameSync(join(dir, '..new'), join(dir, '..data'));
}

before(async () => {
  pg = await PgCluster.start();
  await pg.createUser('app', 'one');
  await pg.createUser('other', 'env');
  await pg.setAuth('scram-sha-256');
  dir = tempDir('secret');
  secret = join(dir, 'password');
  mount('one');
  symlinkSync('..data/password', secret);
});
after(async () => {
  await pg.stop();
  dropDir(dir);
});

const databases = (): Record<string, string> => ({
  shop: pg.connstr('postgres', `user=app password_file=${secret}`),
  env: pg.connstr('postgres', 'user=other password_env=SHOP_PASSWORD'),
  '*': pg.connstr('postgres', `user=app password_file=${secret}`),
});

async function change(password: string): Promise<void> {
  await pg.sql(`ALTER ROLE app PASSWORD '${password}'`);
  mount(password);
}

describe('password_file', () => {
  it('a changed file is used by the next login to the server, and a missing one changes nothing', async () => {
    const pooler = await Bouncer.start({ databases: databases(), env: { SHOP_PASSWORD: 'env' } });
    try {
      assert.equal((await pooler.sql(ASK, { database: 'shop' })).rows[0].current_user, 'app');
      assert.equal((await pooler.sql(ASK, { database: 'env' })).rows[0].current_user, 'other');
      await change('two');
      await pooler.admin('RECONNECT');
      assert.equal((await pooler.sql(ASK, { database: 'shop' })).rows[0].current_user, 'app');
      await pooler.logWait(/database shop: password_file .* has changed/);
      // an auto-database reads the file when it is registered
      assert.equal((await pooler.sql(ASK, { database: 'another' })).rows[0].current_user, 'app');

      rmSync(join(dir, '..data'));
      await pooler.admin('RECONNECT');
      assert.equal((await pooler.sql(ASK, { database: 'shop' })).rows[0].current_user, 'app');
      await pooler.logWait(/WARNING could not open password_file .*: No such file or directory, keeping the known/);
      await assert.rejects(pooler.admin('RELOAD'), /RELOAD failed/);
      await pooler.logWait(/ERROR could not open password_file .*: No such file or directory/);
      assert.equal((await pooler.sql(ASK, { database: 'shop' })).rows[0].current_user, 'app');

      await change('three');
      await pooler.admin('RELOAD');
      await pooler.admin('RECONNECT');
      assert.equal((await pooler.sql(ASK, { database: 'shop' })).rows[0].current_user, 'app');
      assert.equal(pooler.log.count(/two|three/), 0);
      // only its user can read it
      assert.equal(pooler.log.count(/can be read by all users/), 0);
      chmodSync(secret, 0o444);
      await pooler.admin('RELOAD');
      await pooler.logWait(/WARNING password_file .*password can be read by all users/);
      chmodSync(secret, 0o400);
    } finally {
      await pooler.stop();
    }
  });

  it('a config whose password is missing does not start, and --check names the line', async () => {
    const env = { SHOP_PASSWORD: 'env' };
    const broken = { shop: pg.connstr('postgres', `user=app password_file=${join(dir, 'gone')}`) };
    const pooler = await Bouncer.start({ databases: broken, env, wait: false });
    assert.equal((await pooler.expectEnd()).code, 1);
    assert.match(pooler.log.text, /could not open password_file .*gone: No such file or directory/);
    const { node, mainJs } = installed();
    const checked = await run(node, [mainJs, '--check', pooler.iniPath], { cwd: pooler.dir });
    assert.equal(checked.code, 1);
    assert.match(checked.stdout, /pooler\.ini:2: could not open password_file /);
    await pooler.stop();
  });

  it('the process of an online reboot reads the file, too', async () => {
    await withRebootChain({ cluster: pg, databases: { shop: databases().shop as string } }, async (chain) => {
      await chain.start('ts');
      const client = await chain.connect({ database: 'shop' });
      assert.equal((await client.query(ASK)).rows[0].current_user, 'app');
      await change('four');
      await chain.reboot('ts');
      const admin = await chain.connect({ user: 'admin', password: 'admin', database: 'pgbouncer' });
      await admin.query('RECONNECT');
      await admin.end();
      await client.end();
      const again = await chain.connect({ database: 'shop' });
      assert.equal((await again.query(ASK)).rows[0].current_user, 'app');
      await again.end();
    });
  });
});
