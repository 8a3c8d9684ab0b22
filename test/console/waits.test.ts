/*
 * SHOW WAITS: what the clients of a pool wait for, and which pools have it. shares.test.ts and password-command.test.ts
 * have max_db_connections and password_command.
 */

import assert from 'node:assert/strict';
import { freePort } from '../../tools/postgres';
import { ask, login, show, start, valueIn, withPooler } from '../harness/answers';
import type { Bouncer } from '../harness/bouncer';
import { clusterWithUsers } from '../harness/fixtures';
import { describe } from '../harness/limits';
import { eventually, it } from '../harness/machine';
import type { RawClient } from '../harness/raw-client';
import { withGate } from '../harness/timeout-gate';

const pg = clusterWithUsers('ann');

const TX = { pool_mode: 'transaction', default_pool_size: 1 };

/** Waits until SHOW WAITS says this of the only pool with waiting clients. */
async function waitsFor(pooler: Bouncer, database: string, wanted: string, heldBy = ''): Promise<void> {
  await eventually(`clients that wait for ${wanted}`, async () => {
    const rows = await show(pooler, 'WAITS', {});
    return rows.length === 1 && rows[0]?.database === database && rows[0]?.waits_for === wanted;
  });
  const [row] = await show(pooler, 'WAITS', {});
  assert.deepEqual([row?.cl_waiting, row?.held_by], [1, heldBy]);
}

/** A client whose login waits for a server, in vain. */
async function waiting(pooler: Bouncer, database: string): Promise<RawClient> {
  const client = await pooler.raw();
  await client.startup({ user: 'postgres', database });
  return client;
}

describe('SHOW WAITS', () => {
  it('pause', async () => {
    await withPooler({ cluster: pg(), settings: TX }, async (pooler) => {
      const client = await login(pooler);
      await ask(client, 'SELECT 1');
      await pooler.admin('PAUSE');
      await start(client, 'SELECT 2');
      await waitsFor(pooler, 'postgres', 'pause');
      await pooler.admin('RESUME');
      assert.equal(valueIn(await client.until('Z')), '2');
      assert.deepEqual(await show(pooler, 'WAITS', {}), []);
    });
  });

  it('pool_size', async () => {
    await withPooler({ cluster: pg(), settings: TX }, async (pooler) => {
      const [holder, client] = [await login(pooler), await login(pooler)];
      await ask(holder, 'BEGIN');
      await start(client, 'SELECT 2');
      await waitsFor(pooler, 'postgres', 'pool_size', 'postgres=1');
    });
  });

  it('max_user_connections', async () => {
    const databases = { one: pg().connstr(), two: pg().connstr() };
    const users = { ann: 'max_user_connections=1' };
    await withPooler({ databases, users, userlist: { ann: '' }, settings: TX }, async (pooler) => {
      // the first login of a pool needs a server
      const [holder, client] = [
        await login(pooler, { user: 'ann', database: 'one' }),
        await login(pooler, { user: 'ann', database: 'two' }),
      ];
      await ask(holder, 'BEGIN');
      await start(client, 'SELECT 2');
      await waitsFor(pooler, 'two', 'max_user_connections', 'one=1');
    });
  });

  it('server login', async () => {
    await withGate(null, async ({ port }) => {
      await withPooler({ databases: { mute: `host=127.0.0.1 port=${port}` }, settings: TX }, async (pooler) => {
        const client = await waiting(pooler, 'mute');
        await waitsFor(pooler, 'mute', 'server login');
        await client.destroy();
      });
    });
  });

  it('server_login_retry', async () => {
    const databases = { down: `host=127.0.0.1 port=${await freePort()}` };
    await withPooler({ databases, settings: { ...TX, server_login_retry: 60 } }, async (pooler) => {
      const client = await waiting(pooler, 'down');
      await waitsFor(pooler, 'down', 'server_login_retry');
      await client.destroy();
    });
  });

  it('target_session_attrs', async () => {
    const databases = { app: pg().connstr('postgres', 'target_session_attrs=standby') };
    await withPooler({ databases, settings: TX }, async (pooler) => {
      const client = await waiting(pooler, 'app');
      await waitsFor(pooler, 'app', 'target_session_attrs');
      await client.destroy();
    });
  });
});
