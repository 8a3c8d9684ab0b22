/*
 * auth_query runs on a server connection that other clients use, too. Their variables must neither decide what it finds
 * nor become those of the client that logs in.
 */

import assert from 'node:assert/strict';
import { ask, login, withPooler } from '../harness/answers';
import { PgCluster } from '../harness/cluster';
import { after, before } from '../harness/limits';
import { it } from '../harness/machine';

/** One server for auth_query and the clients that are in auth_file. */
const SETTINGS = { auth_type: 'plain', auth_user: 'postgres', pool_mode: 'transaction', default_pool_size: 1 };

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
  await pg.sql('CREATE ROLE ann LOGIN');
});
after(() => pg.stop());

it('what the server reports during auth_query does not become a variable of the client', async () => {
  // the query itself changes a variable, as a reload of the server's config would
  const changes = "set_config('TimeZone', 'Asia/Tokyo', false) IS NOT NULL";
  const auth_query = `SELECT rolname, 'secret' FROM pg_roles WHERE rolname = $1 AND ${changes}`;
  await withPooler({ cluster: pg, settings: { ...SETTINGS, auth_query } }, async (pooler) => {
    const client = await login(pooler, { user: 'ann', password: 'secret', params: { TimeZone: 'Europe/Paris' } });
    assert.equal(client.parameters.TimeZone, 'Europe/Paris');
    assert.equal(await ask(client, 'SHOW TimeZone'), 'Europe/Paris');
  });
});
