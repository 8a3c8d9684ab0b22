/*
 * The histograms of /metrics: what is measured while real clients use real servers.
 */

import assert from 'node:assert/strict';
import { freePort } from '../../tools/postgres';
import { ask, login, withPooler } from '../harness/answers';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { it } from '../harness/machine';
import { type Histogram, histogram, samplesBecome } from '../harness/metrics';

const LABELS = '{database="postgres",user="postgres"}';

let pg: PgCluster;
before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

function times(found: Map<string, number>, what: string): Histogram | null {
  return histogram(found, `tsbouncer_pools_${what}_duration_seconds`, LABELS);
}

/** Number of times that were longer than `seconds`. */
function longer({ buckets, count }: Histogram, seconds: number): number {
  return count - (buckets.find(([bound]) => bound === seconds)?.[1] ?? 0);
}

describe('the histograms of a pool', () => {
  it('have the times of queries, transactions, connects and logins', async () => {
    const port = await freePort();
    const settings = { pool_mode: 'transaction', metrics_port: port };
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      const client = await login(pooler);
      await ask(client, 'SELECT 1');
      await ask(client, 'BEGIN');
      await ask(client, 'SELECT pg_sleep(0.03)');
      await ask(client, 'SELECT pg_sleep(0.03)');
      await ask(client, 'COMMIT');
      const found = await samplesBecome(port, 'the transactions', (all) => times(all, 'transaction')?.count === 2);
      const [query, transaction] = [times(found, 'query'), times(found, 'transaction')];
      assert.ok(query !== null && transaction !== null);
      assert.equal(query.count, 5);
      assert.ok(longer(query, 0.02) >= 2);
      assert.ok(query.sum >= 0.06);
      assert.ok(longer(transaction, 0.05) >= 1);
      assert.ok(transaction.sum >= 0.06);
      for (const what of ['server_connect', 'server_login']) {
        const made = times(found, what);
        assert.equal(made?.count, 1, what);
        assert.ok(made.sum > 0, what);
      }
    });
  });

  it('have the time of each client in the queue, however it ends', async () => {
    const port = await freePort();
    const settings = { pool_mode: 'transaction', default_pool_size: 1, metrics_port: port };
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      const [first, second] = [await login(pooler), await login(pooler)];
      await ask(first, 'BEGIN');
      const before = await samplesBecome(port, 'the servers', (all) => times(all, 'server_login') !== null);
      // the first login may have waited for the server
      const logins = times(before, 'client_wait')?.count ?? 0;
      const waiting = ask(second, 'SELECT 2');
      await ask(first, 'SELECT pg_sleep(0.03)');
      await ask(first, 'COMMIT');
      assert.equal(await waiting, '2');
      const one = await samplesBecome(port, 'the wait', (all) => times(all, 'client_wait')?.count === logins + 1);
      assert.ok(longer(times(one, 'client_wait') as Histogram, 0.02) >= 1);
      await ask(first, 'BEGIN');
      await pooler.admin('SET query_wait_timeout = 1');
      await assert.rejects(ask(second, 'SELECT 2'), /query_wait_timeout/);
      const two = await samplesBecome(port, 'the timeout', (all) => times(all, 'client_wait')?.count === logins + 2);
      assert.ok(longer(times(two, 'client_wait') as Histogram, 0.5) >= 1);
      await ask(first, 'COMMIT');
    });
  });
});
