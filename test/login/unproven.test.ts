/*
 * Clients that never authenticate leave nothing behind: no user, database, pool or credentials. These tests count the
 * records; bench/hostile-memory.ts opens 100,000 such connections and measures memory.
 */

import assert from 'node:assert/strict';
import { ask, login, show, withPooler } from '../harness/answers';
import type { Bouncer } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { eachCase, lists } from '../harness/hostile/attack';
import { after, before, describe } from '../harness/limits';
import { eventually, it } from '../harness/machine';
import { RawClient } from '../harness/raw-client';

const LOGINS = 200;
const AT_ONCE = 20;

let pg: PgCluster;
before(async () => {
  pg = await PgCluster.start();
  await pg.createUser('ann', 'right', 'scram');
});
after(() => pg.stop());

/** Numbers of the records that a client may cause the pooler to create. */
async function records(pooler: Bouncer): Promise<Record<string, number>> {
  const { databases, users, pools, login_clients, used_clients } = lists(await pooler.admin('SHOW LISTS'));
  return { databases, users, pools, login_clients, used_clients } as Record<string, number>;
}

async function failedLogin(pooler: Bouncer, index: number, database: string): Promise<void> {
  const client = await RawClient.connect({ port: pooler.port });
  const application_name = `a-${index}-`.padEnd(5000, 'x');
  const answer = await client.login({
    user: `user-${index}`,
    database,
    password: 'wrong',
    params: { application_name },
  });
  assert.equal(answer.at(-1)?.type, 'E');
  await client.destroy();
}

const auths: Record<string, Record<string, string>> = {
  'auth_type scram-sha-256': { auth_type: 'scram-sha-256' },
  'auth_type md5': { auth_type: 'md5' },
  auth_query: { auth_type: 'scram-sha-256', auth_user: 'postgres' },
};

describe('logins that fail', () => {
  for (const [name, settings] of Object.entries(auths)) {
    it(`failed logins leave no users, databases and pools behind: ${name}`, () => {
      const databases = { fixed: pg.connstr(), '*': pg.connstr() };
      const userlist = { ann: 'right' };
      return withPooler({ databases, userlist, settings }, async (pooler) => {
        const good = await login(pooler, { user: 'ann', password: 'right', database: 'fixed' });
        await ask(good, 'SELECT 1');
        // the pool of auth_query, if there is one
        await failedLogin(pooler, LOGINS, 'fixed');
        const before = await records(pooler);
        await eachCase(LOGINS, AT_ONCE, (index) => failedLogin(pooler, index, 'fixed'));
        await eachCase(LOGINS, AT_ONCE, (index) => failedLogin(pooler, index, `database-${index}`));
        await eventually('nothing to be left', async () => {
          return JSON.stringify(await records(pooler)) === JSON.stringify(before);
        });
        assert.equal(await ask(good, 'SELECT 1'), '1');
      });
    });
  }

  it('failed logins do not remove records that a successful login uses', () => {
    const databases = { '*': pg.connstr() };
    const settings = { auth_type: 'scram-sha-256', auth_user: 'postgres' };
    return withPooler({ databases, settings }, async (pooler) => {
      let running = true;
      const noise = (async () => {
        for (let index = 0; running; index++) await failedLogin(pooler, index % 3, `database-${index % 3}`);
      })();
      for (let index = 0; index < 30; index++) {
        const client = await login(pooler, { user: 'ann', password: 'right', database: `database-${index % 3}` });
        assert.equal(await ask(client, 'SELECT 1'), '1');
        await client.end();
      }
      running = false;
      await noise;
    });
  });
});

it('min_pool_size opens no servers for a database that no client has logged in to', async () => {
  await pg.createUser('bob', 'secret', 'scram');
  const databases = { '*': pg.connstr('postgres', 'user=postgres') };
  const settings = { auth_type: 'scram-sha-256', auth_user: 'postgres', min_pool_size: 2, pool_mode: 'transaction' };
  await withPooler({ databases, settings, userlist: { ann: 'right' } }, async (pooler) => {
    // two logins that go no further: of a user of auth_file, and of a user that auth_query finds
    const logins = [
      { user: 'ann', database: 'invented' },
      { user: 'bob', database: 'asked' },
    ];
    const clients: RawClient[] = [];
    for (const params of logins) {
      const client = await RawClient.connect({ port: pooler.port });
      await client.startup(params);
      const answer = await client.next();
      assert.equal(answer?.type, 'R', answer?.body.toString());
      clients.push(client);
    }
    const good = await login(pooler, { user: 'ann', password: 'right', database: 'good' });
    const connections = async (name: string) =>
      Number((await show(pooler, 'DATABASES', { name }))[0]?.current_connections);
    // the maintenance that does this has then seen all databases
    await eventually('the servers of min_pool_size', async () => (await connections('good')) === 2);
    assert.equal(await connections('invented'), 0);
    assert.equal(await connections('asked'), 1);
    for (const client of [good, ...clients]) await client.destroy();
  });
});
