/*
 * Replication clients: each has a server connection with startup parameters of its own, which must not become those of
 * other clients, and counts towards pool_size.
 */

import assert from 'node:assert/strict';
import { ask, login, rowsBecome, show, withPooler } from '../harness/answers';
import type { Bouncer } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { after, before } from '../harness/limits';
import { it } from '../harness/machine';
import type { Message, RawClient } from '../harness/raw-client';

let pg: PgCluster;
before(async () => {
  pg = await PgCluster.start({
    settings: { wal_level: 'logical', max_wal_senders: 5 },
    hba: ['local all all trust', 'host all all 127.0.0.1/32 trust', 'host replication all 127.0.0.1/32 trust'],
  });
});
after(() => pg.stop());

const OWN = { application_name: 'walreceiver', options: '-c IntervalStyle=iso_8601 -c DateStyle=German' };

/** The last value of each parameter that a login reported. */
function parameters(answer: Message[]): Record<string, string> {
  const pairs = answer.filter(({ type }) => type === 'S').map(({ body }) => body.toString('latin1').split('\0'));
  return Object.fromEntries(pairs.map(([name = '', value = '']) => [name, value]));
}

/** Logs in as a replication client with startup parameters of its own. */
async function replicate(pooler: Bouncer): Promise<{ client: RawClient; reported: Record<string, string> }> {
  const client = await pooler.raw();
  const reported = parameters(await client.login({ params: { replication: 'database', ...OWN } }));
  assert.ok((await client.query('IDENTIFY_SYSTEM')).some(({ type }) => type === 'D'));
  return { client, reported };
}

for (const mode of ['session', 'transaction']) {
  const settings = { pool_mode: mode, default_pool_size: 1 };

  it(`a replication client gets the parameters of its own server if it logs in first: ${mode} pooling`, async () => {
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      const { client, reported } = await replicate(pooler);
      assert.equal(reported.IntervalStyle, 'iso_8601');
      assert.equal(reported.DateStyle, 'German, DMY');
      assert.equal(reported.application_name, 'walreceiver');
      assert.ok(reported.server_version);
      await client.end();
    });
  });

  it(`an ordinary client does not get the parameters of a replication client: ${mode} pooling`, async () => {
    // the maintenance closes idle servers above pool_size
    await withPooler({ cluster: pg, settings: { ...settings, default_pool_size: 2 } }, async (pooler) => {
      const { client: replicating } = await replicate(pooler);
      const client = await pooler.raw();
      const reported = parameters(await client.login());
      assert.equal(reported.IntervalStyle, 'postgres');
      assert.equal(reported.DateStyle, 'ISO, MDY');
      assert.equal(reported.application_name ?? '', '');
      assert.equal(await ask(client, 'SHOW application_name'), '');
      assert.equal(await ask(client, 'SHOW DateStyle'), 'ISO, MDY');
      await client.end();
      await replicating.end();
    });
  });

  it(`the welcome message of an ordinary server stays that of the pool after a replication client: ${mode} pooling`, async () => {
    await withPooler({ cluster: pg, settings: settings }, async (pooler) => {
      const first = await login(pooler);
      await first.end();
      const { client: replicating } = await replicate(pooler);
      const client = await pooler.raw();
      assert.equal(parameters(await client.login()).IntervalStyle, 'postgres');
      await client.end();
      await replicating.end();
    });
  });
}

it('pool_size limits replication clients also before an ordinary client has logged in', async () => {
  await withPooler({ cluster: pg, settings: { default_pool_size: 2 } }, async (pooler) => {
    const first = await replicate(pooler);
    const second = await replicate(pooler);
    const third = replicate(pooler);
    await rowsBecome(pooler, 'CLIENTS', { state: 'waiting' }, 1);
    assert.equal((await show(pooler, 'SERVERS')).length, 2);
    await first.client.end();
    await (await third).client.end();
    await second.client.end();
  });
});

it('a replication client evicts one idle server, and the log names pool_size', async () => {
  const settings = { pool_mode: 'transaction', default_pool_size: 2 };
  await withPooler({ cluster: pg, settings }, async (pooler) => {
    const clients = [await login(pooler), await login(pooler)];
    for (const client of clients) await ask(client, 'BEGIN');
    for (const client of clients) await ask(client, 'COMMIT');
    const { client: replicating } = await replicate(pooler);
    await pooler.logWait(/S-[^\n]* closing because: evicted for pool_size \(/);
    assert.equal((await show(pooler, 'SERVERS')).length, 2, 'one idle server has stayed');
    await replicating.end();
  });
});
