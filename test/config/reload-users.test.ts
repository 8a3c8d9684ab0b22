/*
 * RELOAD and SIGHUP: the users with whom pools log in to servers.
 */

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { freePort } from '../../tools/postgres';
import { ask, login, rowsBecome, show, start, thrownOut, withPooler } from '../harness/answers';
import { ADMIN_PASSWORD, ADMIN_USER, type Bouncer } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { eventually, it } from '../harness/machine';
import { becomes, get } from '../harness/metrics';
import type { RawClient } from '../harness/raw-client';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
  await pg.sql('CREATE DATABASE one');
});
after(() => pg.stop());

const TX = { pool_mode: 'transaction' };

describe('forced users', () => {
  it('RELOAD with another forced user gives its servers also to clients that stay connected', async () => {
    for (const name of ['before', 'after']) await pg.createUser(name, '', 'none');
    const line = (user: string) => ({ app: pg.connstr('one', `user=${user}`) });
    const metricsPort = await freePort();
    const settings = { ...TX, metrics_port: metricsPort };
    await withPooler({ databases: line('before'), settings }, async (pooler) => {
      const [idle, busy] = [await login(pooler, { database: 'app' }), await login(pooler, { database: 'app' })];
      assert.equal(await ask(idle, 'SELECT current_user'), 'before');
      await ask(busy, 'BEGIN');
      pooler.rewrite({ databases: line('after'), settings });
      await pooler.admin('RELOAD');
      assert.equal(await ask(idle, 'SELECT current_user'), 'after');
      assert.equal(await ask(busy, 'SELECT current_user'), 'before', 'a transaction ends where it began');
      await ask(busy, 'COMMIT');
      assert.equal(await ask(busy, 'SELECT current_user'), 'after');
      assert.deepEqual(
        (await show(pooler, 'POOLS', { database: 'app' })).map((row) => row.user),
        ['after'],
      );
      const counts = await Promise.all(
        ['before', 'after'].map(async (name) => (await show(pooler, 'USERS', { name }))[0]?.current_connections),
      );
      assert.deepEqual(counts, [0, (await show(pooler, 'SERVERS', { database: 'app' })).length]);
      await becomes(metricsPort, '/metrics', 200);
      await eventually('the metrics to name the user', async () =>
        (await get(metricsPort, '/metrics')).body.includes('database="app",user="after"'),
      );
      assert.doesNotMatch((await get(metricsPort, '/metrics')).body, /database="app",user="before"/);
    });
  });

  it('RELOAD applies a changed password of a forced user', async () => {
    await pg.createUser('secret', 'first', 'scram');
    await pg.setHba(['local all all trust', 'host all secret all scram-sha-256', 'host all all all trust']);
    const line = (password: string) => ({ app: pg.connstr('one', `user=secret password=${password}`) });
    await withPooler({ databases: line('first'), settings: TX }, async (pooler) => {
      const client = await login(pooler, { database: 'app' });
      await pg.sql("ALTER ROLE secret PASSWORD 'second'");
      pooler.rewrite({ databases: line('second') });
      await pooler.admin('RELOAD');
      await pooler.admin('RECONNECT app');
      assert.equal(await ask(client, 'SELECT current_user'), 'secret');
    });
  });

  it('after RELOAD with another password, no client gets the error of the former one', async () => {
    await pg.createUser('rotated', 'first', 'scram');
    await pg.setHba(['local all all trust', 'host all rotated all scram-sha-256', 'host all all all trust']);
    const line = (password: string) => ({ app: pg.connstr('one', `user=rotated password=${password}`) });
    const settings = { ...TX, server_login_retry: 600 };
    await withPooler({ databases: line('first'), settings }, async (pooler) => {
      const clients = [];
      for (let i = 0; i < 3; i++) clients.push(await login(pooler, { database: 'app' }));
      const [refused, next, works] = clients as [RawClient, RawClient, RawClient];
      await pg.sql("ALTER ROLE rotated PASSWORD 'second'");
      await pooler.admin('RECONNECT');
      await start(refused, 'SELECT 1');
      assert.match(await thrownOut(refused), /password authentication failed/);
      await start(next, 'SELECT 1');
      assert.match(
        await thrownOut(next),
        /^server login has been failing, cached error: password authentication failed/,
      );
      pooler.rewrite({ databases: line('second'), settings });
      await pooler.admin('RELOAD');
      assert.equal(await ask(works, 'SELECT current_user'), 'rotated');
    });
  });

  it('the servers of another forced user also replace those of a pool that it had before', async () => {
    for (const name of ['first', 'next']) await pg.createUser(name, '', 'none');
    const line = (user: string) => ({ app: pg.connstr('one', user) });
    const userlist = { next: '' };
    await withPooler({ databases: line(''), settings: TX, userlist }, async (pooler) => {
      const own = await login(pooler, { database: 'app', user: 'next' });
      assert.equal(await ask(own, 'SELECT current_user'), 'next');
      await own.end();
      await pooler.admin('RECONNECT');
      await rowsBecome(pooler, 'SERVERS', { database: 'app' }, 0);
      for (const name of ['first', 'next', 'first']) {
        pooler.rewrite({ databases: line(`user=${name}`), userlist });
        await pooler.admin('RELOAD');
        const client = await login(pooler, { database: 'app' });
        for (const next of ['next', 'first']) {
          pooler.rewrite({ databases: line(`user=${next}`), userlist });
          await pooler.admin('RELOAD');
          assert.equal(await ask(client, 'SELECT current_user'), next);
        }
        await client.end();
      }
    });
  });

  it('another forced user may have clients of its own in the database', async () => {
    for (const name of ['former', 'latter']) await pg.createUser(name, '', 'none');
    const line = (user: string) => ({ app: pg.connstr('one', user) });
    const userlist = { latter: '' };
    await withPooler({ databases: line(''), settings: TX, userlist }, async (pooler) => {
      const own = await login(pooler, { database: 'app', user: 'latter' });
      await ask(own, 'BEGIN');
      pooler.rewrite({ databases: line('user=former'), userlist });
      await pooler.admin('RELOAD');
      const [idle, busy] = [await login(pooler, { database: 'app' }), await login(pooler, { database: 'app' })];
      await ask(busy, 'BEGIN');
      assert.equal(await ask(idle, 'SELECT current_user'), 'former');
      pooler.rewrite({ databases: line('user=latter'), userlist });
      await pooler.admin('RELOAD');
      assert.equal(await ask(idle, 'SELECT current_user'), 'latter');
      assert.equal(await ask(busy, 'SELECT current_user'), 'former', 'a transaction ends where it began');
      for (const client of [busy, own]) await ask(client, 'COMMIT');
      for (const client of [idle, busy, own]) assert.equal(await ask(client, 'SELECT current_user'), 'latter');
      const [pool, ...others] = await show(pooler, 'POOLS', { database: 'app' });
      assert.deepEqual([pool?.user, pool?.cl_active, others.length], ['latter', 3, 0]);
      const counts = await Promise.all(
        ['former', 'latter'].map(async (name) => (await show(pooler, 'USERS', { name }))[0]?.current_connections),
      );
      assert.deepEqual(counts, [0, (await show(pooler, 'SERVERS', { database: 'app' })).length]);
    });
  });

  it('without a forced user, new clients log in to servers as themselves', async () => {
    await pg.createUser('forced', '', 'none');
    await withPooler({ databases: { app: pg.connstr('one', 'user=forced') }, settings: TX }, async (pooler) => {
      const stays = await login(pooler, { database: 'app' });
      assert.equal(await ask(stays, 'SELECT current_user'), 'forced');
      pooler.rewrite({ databases: { app: pg.connstr('one') } });
      await pooler.admin('RELOAD');
      const client = await login(pooler, { database: 'app' });
      assert.equal(await ask(client, 'SELECT current_user'), 'postgres');
      assert.equal(await ask(stays, 'SELECT current_user'), 'forced');
    });
  });
});

describe('credentials of a pool that exists', () => {
  const PASSWORD = 'right';
  const settings = { ...TX, auth_type: 'scram-sha-256', auth_user: 'postgres', server_login_retry: 1 };

  before(async () => {
    await pg.createUser('kim', PASSWORD, 'scram');
    await pg.setHba([
      'local all all trust',
      'host all postgres 127.0.0.1/32 trust',
      'host all all 127.0.0.1/32 scram-sha-256',
    ]);
  });

  /** Writes auth_file. */
  function writeUsers(pooler: Bouncer, users: Record<string, string>): void {
    const all = Object.entries({ postgres: '', [ADMIN_USER]: ADMIN_PASSWORD, ...users });
    writeFileSync(join(pooler.dir, 'userlist.txt'), all.map(([name, secret]) => `"${name}" "${secret}"\n`).join(''));
  }

  async function closeServers(pooler: Bouncer): Promise<void> {
    await pooler.admin('RECONNECT');
    await rowsBecome(pooler, 'SERVERS', { user: 'kim' }, 0);
  }

  /** Replaces the servers of the pool, and has a client log in. */
  async function works(pooler: Bouncer): Promise<void> {
    await closeServers(pooler);
    const client = await login(pooler, { user: 'kim', password: PASSWORD, database: 'app' });
    assert.equal(await ask(client, 'SELECT session_user'), 'kim');
    await client.end();
  }

  it('a forced user has the password of its line, although its pool logged in with another', async () => {
    const secret = await pg.storedSecret('kim');
    await withPooler(
      { databases: { app: pg.connstr() }, settings, userlist: { kim: secret as string } },
      async (pooler) => {
        const client = await login(pooler, { user: 'kim', password: PASSWORD, database: 'app' });
        assert.equal(await ask(client, 'SELECT session_user'), 'kim');
        // the keys of a verifier are those of the client's login, which another secret drops
        pooler.rewrite({
          databases: { app: pg.connstr('postgres', `user=kim password=${PASSWORD}`) },
          userlist: { kim: 'else' },
        });
        await pooler.admin('RELOAD');
        await closeServers(pooler);
        assert.equal(await ask(client, 'SELECT session_user'), 'kim');
        await client.end();
      },
    );
  });

  it('a user that moves from auth_file to auth_query, and back', async () => {
    await withPooler({ databases: { app: pg.connstr() }, settings, userlist: { kim: PASSWORD } }, async (pooler) => {
      await works(pooler);
      writeUsers(pooler, {});
      await pooler.admin('RELOAD');
      await works(pooler);
      await pg.sql(`ALTER ROLE kim PASSWORD 'changed'`);
      writeUsers(pooler, { kim: 'changed' });
      await pooler.admin('RELOAD');
      await closeServers(pooler);
      const client = await login(pooler, { user: 'kim', password: 'changed', database: 'app' });
      assert.equal(await ask(client, 'SELECT session_user'), 'kim');
      await client.end();
    });
  });
});
