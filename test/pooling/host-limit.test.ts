/*
 * max_client_conn_per_host: how many clients may come from one address.
 */

import assert from 'node:assert/strict';
import { it, PgCluster, RawClient } from '../harness';
import { ask, errorIn, login, refusal, withPooler } from '../harness/answers';
import { after, before } from '../harness/limits';
import { withRebootChain } from '../harness/reboot-chain';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

const TOO_MANY = 'client connections exceeded (max_client_conn_per_host)';

it('clients of one address beyond max_client_conn_per_host are refused, others and the console are not', async () => {
  await withPooler({ cluster: pg, settings: { max_client_conn_per_host: 2 } }, async (pooler) => {
    const one = await login(pooler);
    const two = await login(pooler);
    for (let i = 0; i < 3; i++) assert.equal(await refusal(pooler), TOO_MANY);
    const far = await RawClient.connect({ host: '127.0.0.1', port: pooler.port, localAddress: '127.0.0.9' });
    assert.equal((await far.login()).at(-1)?.type, 'Z');
    const local = await RawClient.connect({ path: `${pooler.socketDir}/.s.PGSQL.${pooler.port}` });
    assert.equal((await local.login()).at(-1)?.type, 'Z');
    assert.equal((await pooler.admin('SHOW VERSION')).length, 1);
    await one.end();
    const again = await login(pooler);
    assert.equal(await ask(again, 'SELECT 1'), '1');
    assert.equal(await refusal(pooler), TOO_MANY);
    await pooler.admin('SET max_client_conn_per_host = 0');
    const more = await login(pooler);
    for (const client of [two, far, local, again, more]) await client.end();
  });
});

it('the counts survive an online reboot', async () => {
  await withRebootChain({ cluster: pg, settings: { max_client_conn_per_host: 2 } }, async (chain) => {
    await chain.start('ts');
    const one = await chain.raw();
    await one.login();
    const two = await chain.raw();
    await two.login();
    await chain.reboot('ts');
    const three = await chain.raw();
    assert.equal(errorIn(await three.login())?.M, TOO_MANY);
    await one.end();
    const four = await chain.raw();
    assert.equal((await four.login()).at(-1)?.type, 'Z');
    await two.end();
    await four.end();
  });
});
