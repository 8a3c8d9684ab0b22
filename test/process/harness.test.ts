/*
 * The harness itself: all other tests depend on its server, its pooler and its raw client.
 */

import assert from 'node:assert/strict';
import { Bouncer, it, itUnless, noOriginal, PgCluster, type Secret } from '../harness';
import { after, before } from '../harness/limits';
import { cancelRequest, errorFields, letters, RawClient, rowValues } from '../harness/raw-client';

let cluster: PgCluster;

before(async () => {
  cluster = await PgCluster.start();
});
after(() => cluster.stop());

function direct(): Promise<RawClient> {
  return RawClient.connect({ port: cluster.port });
}

it('the raw client logs in with every method, and is refused with a wrong password', async () => {
  const methods: ['password' | 'md5' | 'scram-sha-256', Secret][] = [
    ['password', 'scram'],
    ['md5', 'md5'],
    ['scram-sha-256', 'scram'],
  ];
  for (const [method, secret] of methods) {
    const name = `raw_${method.replaceAll('-', '_')}`;
    await cluster.createUser(name, "p'w", secret);
    await cluster.setAuth(method);
    const good = await direct();
    assert.match(letters(await good.login({ user: name, password: "p'w" })), /^RR*S+KZ$/, method);
    assert.ok(good.backendPid > 0);
    await good.end();
    const bad = await direct();
    const last = (await bad.login({ user: name, password: 'wrong' })).at(-1);
    assert.ok(last !== undefined && last.type === 'E');
    assert.equal(errorFields(last).C, '28P01');
    await bad.end();
  }
  await cluster.setHba(['local all all trust', 'host all all 127.0.0.1/32 trust']);
});

it('the raw client reads rows, large rows and NULL', async () => {
  const client = await direct();
  await client.login();
  const messages = await client.query("SELECT 'a', NULL, repeat('x', 10000000)");
  assert.equal(letters(messages), 'TDCZ');
  const values = rowValues(messages[1] as (typeof messages)[0]);
  assert.deepEqual([values[0], values[1], values[2]?.length], ['a', null, 10_000_000]);
  await client.end();
});

it('a stopped server that is started again keeps its port and data', async () => {
  await cluster.sql('CREATE TABLE kept (x int)');
  await cluster.halt();
  await cluster.resume();
  assert.equal((await cluster.sql('SELECT * FROM kept')).rowCount, 0);
});

for (const original of [false, true]) {
  const who = original ? 'PgBouncer' : 'tsbouncer';

  itUnless(original ? noOriginal : null)(
    `the harness runs ${who}: driver, raw client, console, cancel request, log, exit`,
    async () => {
      const bouncer = await Bouncer.start({ cluster, original, settings: { pool_mode: 'transaction' } });
      assert.equal((await bouncer.sql('SELECT 42 AS x')).rows[0]?.x, 42);
      const pools = await bouncer.admin('SHOW POOLS');
      assert.ok(pools.some((row) => row.database === 'postgres' && row.pool_mode === 'transaction'));

      const client = await bouncer.raw();
      await client.login();
      const answer = client.query('SELECT pg_sleep(100)');
      await cluster.log.wait(/connection authorized/);
      await cancelWhenRunning(bouncer, client);
      const failed = (await answer).find((msg) => msg.type === 'E');
      assert.equal(failed && errorFields(failed).C, '57014');
      await client.end();

      await bouncer.logWait(/closing because: client close request/);
      bouncer.signal('SIGINT');
      assert.equal((await bouncer.expectEnd()).code, 0);
      await bouncer.stop();
    },
  );

  itUnless(original ? noOriginal : null)(`the harness detects that ${who} cannot start`, async () => {
    const bouncer = await Bouncer.start({ cluster, original, settings: { auth_type: 'nonsense' }, wait: false });
    await assert.rejects(bouncer.waitUp(), /cannot load config file/);
    assert.equal((await bouncer.expectEnd()).code, 1);
    await bouncer.stop();
  });
}

async function cancelWhenRunning(bouncer: Bouncer, client: RawClient): Promise<void> {
  for (;;) {
    const running = await cluster.sql(
      "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'",
    );
    if (running.rowCount !== 0) break;
  }
  await cancelRequest({ port: bouncer.port }, client.backendPid, client.backendKey);
}
