/*
 * Pools and databases that are removed while clients log in: each client is refused with the reason, or served by a new
 * pool. No client waits for an object that no longer exists.
 */

import assert from 'node:assert/strict';
import { type Bouncer, it, PgCluster } from '../harness';
import { ask, errorIn, login, rowsBecome, thrownOut, withPooler } from '../harness/answers';
import { after, before, describe } from '../harness/limits';
import { cstring, type Message, type RawClient } from '../harness/raw-client';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
  await pg.createUser('ann', 'ann-password', 'md5');
  await pg.createUser('lookup', 'lookup-password', 'md5', 'SUPERUSER');
});
after(() => pg.stop());

const PLAIN = { auth_type: 'plain', query_wait_timeout: 10 };
const ANN = { ann: 'ann-password' };

/** A client that was asked for its password and has not sent it. */
async function halfLogin(pooler: Bouncer, database: string): Promise<RawClient> {
  const client = await pooler.raw();
  await client.startup({ user: 'ann', database });
  const asked = (await client.next()) as Message;
  assert.deepEqual([asked.type, asked.body.readInt32BE(0)], ['R', 3]);
  return client;
}

/** Sends the client's password; the login must succeed. */
async function finishLogin(client: RawClient): Promise<void> {
  await client.sendMessage('p', cstring('ann-password'));
  const answer = await client.until('Z');
  assert.equal(answer.at(-1)?.type, 'Z', `refused: ${errorIn(answer)?.M}`);
}

describe('a client that logs in', () => {
  it('a client that logs in is refused if its database is killed, even if another client has a pool there', async () => {
    await withPooler({ databases: { app: pg.connstr() }, userlist: ANN, settings: PLAIN }, async (pooler) => {
      await ask(await login(pooler, { user: 'ann', password: 'ann-password', database: 'app' }), 'SELECT 1');
      const clients = [await halfLogin(pooler, 'app'), await halfLogin(pooler, 'app')];
      await pooler.admin('KILL app');
      for (const client of clients) assert.equal(await thrownOut(client), 'database removed');
      await pooler.admin('RESUME app');
      const again = await login(pooler, { user: 'ann', password: 'ann-password', database: 'app' });
      assert.equal(await ask(again, 'SELECT 1'), '1');
    });
  });

  it('KILL of all databases refuses a client that logs in, and KILL of another database does not', async () => {
    const databases = { app: pg.connstr(), other: pg.connstr() };
    await withPooler({ databases, userlist: ANN, settings: PLAIN }, async (pooler) => {
      const [client, other] = [await halfLogin(pooler, 'app'), await halfLogin(pooler, 'other')];
      await pooler.admin('KILL other');
      assert.equal(await thrownOut(other), 'database removed');
      await finishLogin(client);
      const third = await halfLogin(pooler, 'app');
      await pooler.admin('KILL');
      assert.equal(await thrownOut(third), 'database removed');
      assert.equal(await thrownOut(client), 'database removed');
    });
  });

  it('a client that logs in gets a new pool if pool_idle_timeout has removed the old pool', async () => {
    const settings = { ...PLAIN, pool_idle_timeout: 1, server_idle_timeout: 1 };
    await withPooler({ databases: { app: pg.connstr() }, userlist: ANN, settings }, async (pooler) => {
      const first = await login(pooler, { user: 'ann', password: 'ann-password', database: 'app' });
      await ask(first, 'SELECT 1');
      const clients = [await halfLogin(pooler, 'app'), await halfLogin(pooler, 'app')];
      await first.end();
      await pooler.logWait(/cleaning up idle pool for user ann on db app/);
      for (const client of clients) {
        await finishLogin(client);
        assert.equal(await ask(client, 'SELECT 1'), '1');
      }
    });
  });

  it('a client that logs in is refused if its database is removed from the config', async () => {
    const databases = { app: pg.connstr(), stays: pg.connstr() };
    await withPooler({ databases, userlist: ANN, settings: PLAIN }, async (pooler) => {
      const client = await halfLogin(pooler, 'app');
      pooler.rewrite({ databases: { stays: pg.connstr() } });
      await pooler.admin('RELOAD');
      assert.equal(await thrownOut(client), 'database removed');
    });
  });

  it('a client that logs in keeps its auto-database, however long the login takes', async () => {
    const settings = { ...PLAIN, autodb_idle_timeout: 1 };
    await withPooler({ databases: { '*': pg.connstr() }, userlist: ANN, settings }, async (pooler) => {
      const client = await halfLogin(pooler, 'postgres');
      // an unused auto-database is removed meanwhile
      await pooler.admin('RECONNECT unused');
      await pooler.logWait(/dropping database 'unused'/);
      await finishLogin(client);
      assert.equal(await ask(client, 'SELECT 1'), '1');
    });
  });
});

describe('a client that waits for auth_query', () => {
  const AUTH = { ...PLAIN, auth_user: 'lookup', auth_query: 'SELECT $1::text, $2::text' };
  /** The server for auth_query is in use, so that another login waits in its pool. */
  const settings = {
    ...AUTH,
    default_pool_size: 1,
    auth_query: "SELECT $1::text, 'ann-password'::text FROM pg_sleep(CASE $1 WHEN 'slow' THEN 20 ELSE 0 END)",
  };
  const userlist = { lookup: 'lookup-password' };

  async function waitingLogins(pooler: Bouncer): Promise<{ asking: RawClient; waiting: RawClient }> {
    const asking = await pooler.raw();
    await asking.startup({ user: 'slow', database: 'app' });
    await rowsBecome(pooler, 'SERVERS', { user: 'lookup', state: 'active' }, 1);
    const waiting = await pooler.raw();
    await waiting.startup({ user: 'ann', database: 'app' });
    await rowsBecome(pooler, 'CLIENTS', { state: 'waiting' }, 1);
    return { asking, waiting };
  }

  const databases = () => ({ app: pg.connstr(), users: pg.connstr() });

  it('a login that waits for auth_query is refused if the database of auth_dbname is killed', async () => {
    const options = { databases: databases(), userlist, settings: { ...settings, auth_dbname: 'users' } };
    await withPooler(options, async (pooler) => {
      const { asking, waiting } = await waitingLogins(pooler);
      await pooler.admin('KILL users');
      assert.equal(await thrownOut(waiting), 'database removed');
      assert.equal(await thrownOut(asking), 'bouncer config error');
    });
  });

  it('a login that waits for auth_query is refused if the database of auth_dbname is removed', async () => {
    const options = { databases: databases(), userlist, settings: { ...settings, auth_dbname: 'users' } };
    await withPooler(options, async (pooler) => {
      const { asking, waiting } = await waitingLogins(pooler);
      pooler.rewrite({ databases: { app: pg.connstr() } });
      await pooler.admin('RELOAD');
      assert.equal(await thrownOut(waiting), 'database removed');
      assert.equal(await thrownOut(asking), 'bouncer config error');
    });
  });

  it('a login that waits for auth_query is refused if its own database is removed', async () => {
    const options = { databases: databases(), userlist, settings: { ...settings, auth_dbname: 'users' } };
    await withPooler(options, async (pooler) => {
      const { asking, waiting } = await waitingLogins(pooler);
      pooler.rewrite({ databases: { users: pg.connstr() } });
      await pooler.admin('RELOAD');
      assert.equal(await thrownOut(waiting), 'database removed');
      assert.equal(await thrownOut(asking), 'database removed');
    });
  });

  it('a login that waits for auth_query is refused if its own database is killed', async () => {
    const options = { databases: databases(), userlist, settings: { ...settings, auth_dbname: 'users' } };
    await withPooler(options, async (pooler) => {
      const { asking, waiting } = await waitingLogins(pooler);
      await pooler.admin('KILL app');
      assert.equal(await thrownOut(waiting), 'database removed');
      assert.equal(await thrownOut(asking), 'database removed');
    });
  });
});
