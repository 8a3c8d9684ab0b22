/*
 * RESET and DISCARD ALL, which drivers send when they take a connection back: the values of the client's startup packet
 * apply again, as in a direct connection.
 */

import assert from 'node:assert/strict';
import { ask, login, withPooler } from '../harness/answers';
import { PgCluster } from '../harness/cluster';
import { after, before } from '../harness/limits';
import { it } from '../harness/machine';
import { RawClient } from '../harness/raw-client';
import { withRebootChain } from '../harness/reboot-chain';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

const PARAMS = { TimeZone: 'Asia/Tokyo', DateStyle: 'SQL, DMY', application_name: 'mine' };
const NAMES = Object.keys(PARAMS);
const SETTINGS = { default_pool_size: 1, server_reset_query: '' };

/** What a client runs; the values are compared after each list. */
const COURSES: string[][] = [
  ['RESET ALL'],
  ['DISCARD ALL'],
  ['RESET TimeZone'],
  ['SELECT 1; RESET ALL'],
  ["SET TimeZone = 'Europe/Paris'", 'RESET DateStyle'],
  ["SET TimeZone = 'Europe/Paris'", 'RESET TimeZone'],
  ["SET TimeZone = 'Europe/Paris'", 'BEGIN', 'RESET ALL', 'ROLLBACK'],
  ['BEGIN', 'RESET ALL', 'COMMIT'],
  ['BEGIN', 'RESET ALL', "SET TimeZone = 'Europe/Paris'", 'COMMIT'],
];

async function valuesAfter(client: RawClient, course: string[]): Promise<Record<string, string | null>> {
  for (const sql of course) await client.query(sql);
  const values: Record<string, string | null> = {};
  for (const name of NAMES) values[name] = await ask(client, `SHOW ${name}`);
  const told = Object.fromEntries(NAMES.map((name) => [name, client.parameters[name]]));
  assert.deepEqual(told, values, `what the server has reported after ${course.join('; ')}`);
  return values;
}

for (const mode of ['transaction', 'statement']) {
  const courses = COURSES.filter((course) => mode !== 'statement' || !course.includes('BEGIN'));
  it(`RESET and DISCARD ALL give a client the values of its startup packet: ${mode} mode`, () =>
    withPooler({ cluster: pg, settings: { ...SETTINGS, pool_mode: mode } }, async (pooler) => {
      const plain = await login(pooler);
      const original = await valuesAfter(plain, []);
      for (const course of courses) {
        const direct = await RawClient.connect({ port: pg.port });
        await direct.login({ params: PARAMS });
        const pooled = await login(pooler, { params: PARAMS });
        const wanted = await valuesAfter(direct, course);
        assert.deepEqual(await valuesAfter(pooled, course), wanted, course.join('; '));
        assert.deepEqual(await valuesAfter(plain, []), original, 'another client');
        assert.deepEqual(await valuesAfter(pooled, []), wanted, 'after another client');
        await direct.end();
        await pooled.end();
      }
    }));
}

it('a client that has set a variable to the default of the server keeps that when it resets another', () =>
  withPooler({ cluster: pg, settings: { ...SETTINGS, pool_mode: 'transaction' } }, async (pooler) => {
    const TimeZone = await ask(await login(pooler), 'SHOW TimeZone');
    const client = await login(pooler, { params: PARAMS });
    await ask(client, `SET TimeZone = '${TimeZone}'`);
    await ask(client, 'RESET DateStyle');
    assert.equal(await ask(client, 'SHOW TimeZone'), TimeZone);
  }));

it('the values of the startup packet apply after RESET in a new process, too', () =>
  withRebootChain({ cluster: pg, settings: { ...SETTINGS, pool_mode: 'transaction' } }, async (chain) => {
    await chain.start('ts');
    const client = await chain.raw();
    await client.login({ params: PARAMS });
    await chain.reboot('ts');
    await ask(client, 'RESET ALL');
    assert.equal(await ask(client, 'SHOW TimeZone'), PARAMS.TimeZone);
    await client.end();
  }));
