/*
 * auth_query runs on a server connection that other clients use, too. Their variables must neither decide what it finds
 * nor become those of the client that logs in.
 */

import assert from 'node:assert/strict';
import { ask, backendOf, login, refusal, withPooler } from '../harness/answers';
import { PgCluster } from '../harness/cluster';
import { after, before } from '../harness/limits';
import { it } from '../harness/machine';

/** One server for auth_query and the clients that are in auth_file. */
const SETTINGS = { auth_type: 'plain', auth_user: 'postgres', pool_mode: 'transaction', default_pool_size: 1 };
const POSTGRES = { userlist: { postgres: 'known' } };
const KNOWN = { password: 'known' };

/** The bytes of a text in UTF-8, each as a character. */
const utf8 = (text: string) => Buffer.from(text).toString('latin1');

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
  for (const name of ['ann', 'j\u00fcrgen', 'j\u00c3\u00bcrgen']) await pg.sql(`CREATE ROLE "${name}" LOGIN`);
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

it('auth_query finds a name that is not ASCII, whatever the encoding of the last client was', async () => {
  const auth_query = "SELECT rolname, 'length ' || length(rolname) FROM pg_roles WHERE rolname = $1";
  await withPooler({ cluster: pg, settings: { ...SETTINGS, auth_query }, ...POSTGRES }, async (pooler) => {
    const plain = await login(pooler, KNOWN);
    const backend = await backendOf(plain);
    for (const client_encoding of ['UTF8', 'LATIN1', 'SQL_ASCII', 'EUC_JP']) {
      const last = await login(pooler, { ...KNOWN, params: { client_encoding } });
      assert.equal(await backendOf(last), backend);
      const who = { user: utf8('j\u00fcrgen'), password: 'length 6' };
      const found = await login(pooler, who);
      assert.equal(await ask(found, 'SELECT length(session_user::text)'), '6');
      assert.equal(await ask(found, 'SHOW client_encoding'), 'UTF8');
      // of the same server as auth_query
      assert.equal(await ask(last, 'SHOW client_encoding'), client_encoding);
      assert.equal(await ask(plain, 'SHOW client_encoding'), 'UTF8');
      assert.equal(await backendOf(plain), backend);
    }
  });
});

it('a name that makes auth_query fail costs no server connection', async () => {
  const auth_query = 'SELECT rolname, rolname FROM pg_roles WHERE rolname = $1';
  await withPooler({ cluster: pg, settings: { ...SETTINGS, auth_query }, ...POSTGRES }, async (pooler) => {
    const client = await login(pooler, KNOWN);
    const backend = await backendOf(client);
    for (let i = 0; i < 3; i++) {
      const from = pooler.log.mark();
      assert.equal(await refusal(pooler, { user: '\xff', password: 'secret' }), 'bouncer config error');
      await pooler.logWait(/S: error in auth_query: ERROR: invalid byte sequence for encoding "UTF8"/, from);
      assert.equal(await backendOf(client), backend);
    }
  });
});
