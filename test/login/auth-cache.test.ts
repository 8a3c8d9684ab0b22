/*
 * auth_query_cache_time: how often PostgreSQL is asked, and that no former answer refuses a login or outlives its time.
 */

import assert from 'node:assert/strict';
import { pgMd5Encrypt } from '../../src/core/auth/md5';
import { cacheTime, findAnswer, keepAnswer } from '../../src/core/login/auth-cache';
import { ClientSocket, PgDatabase, SocketState } from '../../src/core/pool/bouncer';
import { ask, backendsBecome, errorIn, login, refusal, rowsBecome, withPooler } from '../harness/answers';
import { Bouncer } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { eventually, it } from '../harness/machine';
import { cstring, type RawClient } from '../harness/raw-client';
import { withRebootChain } from '../harness/reboot-chain';

/** Counts its calls, and takes as long as `pace` says. */
const LOOKUP = `
  CREATE SEQUENCE asked;
  CREATE TABLE pace AS SELECT 0.0::float8 AS seconds;
  CREATE TABLE secrets (name text PRIMARY KEY, secret text);
  CREATE FUNCTION lookup(who text) RETURNS TABLE (name text, secret text) LANGUAGE plpgsql AS $$
    BEGIN
      PERFORM nextval('asked');
      PERFORM pg_sleep(pace.seconds) FROM pace;
      RETURN QUERY SELECT s.name, s.secret FROM secrets s WHERE s.name = who;
    END $$;
  CREATE ROLE ann LOGIN; CREATE ROLE bob LOGIN`;

const QUERY = 'SELECT name, secret FROM lookup($1)';
const ANN = { user: 'ann', password: 'right' };
const LONG = 60;

const SETTINGS = { auth_type: 'plain', auth_user: 'postgres', auth_query: QUERY };

let pg: PgCluster;
let pooler: Bouncer;
before(async () => {
  pg = await PgCluster.start();
  await pg.sql(LOOKUP);
  const databases = { '*': pg.connstr(), fresh: pg.connstr('postgres', 'auth_query_cache_time=0') };
  pooler = await Bouncer.start({ databases, settings: { ...SETTINGS, auth_dbname: 'asking' } });
});
after(async () => {
  await pooler.stop();
  await pg.stop();
});

/** Nothing is kept, and nothing has been asked. */
async function begin(auth_type: string, time: number, secret: string): Promise<void> {
  await setSecret('ann', secret);
  await pooler.admin(`SET auth_type = '${auth_type}'`);
  await pooler.admin(`SET auth_query_cache_time = ${time}`);
  await pooler.admin('RECONNECT');
  await asked();
}

/** How often the query has run since the last call. */
async function asked(): Promise<number> {
  const result = await pg.sql('SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS n FROM asked');
  await pg.sql("SELECT setval('asked', 1, false)");
  return Number(result.rows[0].n);
}

async function setSecret(name: string, secret: string): Promise<void> {
  await pg.sql(`INSERT INTO secrets VALUES ('${name}', '${secret}')
    ON CONFLICT (name) DO UPDATE SET secret = excluded.secret`);
}

/** The secret that PostgreSQL stores for that password of ann. */
async function storedAs(encryption: string, password: string): Promise<string> {
  await pg.sql(`SET password_encryption = '${encryption}'; ALTER ROLE ann PASSWORD '${password}'`);
  return (await pg.storedSecret('ann')) as string;
}

async function setPace(seconds: number): Promise<void> {
  await pg.sql(`UPDATE pace SET seconds = ${seconds}`);
}

async function loginAndOut(who = ANN): Promise<void> {
  await (await login(pooler, who)).end();
}

/** Begins the login and waits until the pooler has asked for a password. */
async function challenged(client: RawClient, user: string): Promise<void> {
  await client.startup({ user, database: 'postgres' });
  assert.equal((await client.next())?.type, 'R');
}

/** Sends the password that the pooler asks for; the login must succeed. */
async function passes(client: RawClient, password: string): Promise<void> {
  await client.sendMessage('p', cstring(password));
  assert.equal((await client.until('ZE')).at(-1)?.type, 'Z');
}

/** Runs `body` with a pooler whose config file sets the time, so that RELOAD keeps it. */
async function withCaching(auth_type: string, body: (own: Bouncer) => Promise<void>): Promise<void> {
  await setSecret('ann', 'right');
  const settings = { ...SETTINGS, auth_type, auth_query_cache_time: LONG };
  await withPooler({ databases: { postgres: pg.connstr() }, settings }, body);
}

/** Waits until the query runs for one login. */
function running(logins: number): Promise<unknown> {
  return eventually('the logins to wait for one query', async () => {
    const waiting = (await pooler.admin('SHOW LISTS')).find((row) => row.list === 'login_clients')?.items;
    const active = await pg.sql("SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
    return Number(waiting) === logins && active.rowCount === 1;
  });
}

describe('auth_query_cache_time', () => {
  it('is off by default: each login asks', async () => {
    await begin('plain', 0, 'right');
    for (let i = 0; i < 3; i++) await loginAndOut();
    assert.equal(await asked(), 3);
  });

  for (const type of ['plain', 'md5', 'scram-sha-256', 'trust']) {
    it(`one answer serves several logins with ${type}, and each database can have its own time`, async () => {
      await begin(type, LONG, 'right');
      for (let i = 0; i < 5; i++) await loginAndOut();
      assert.equal(await asked(), 1);
      for (let i = 0; i < 2; i++) await (await login(pooler, { ...ANN, database: 'fresh' })).end();
      assert.equal(await asked(), 2);
    });
  }

  it('the keys of a SCRAM secret log in to the server', async () => {
    await begin('scram-sha-256', LONG, await storedAs('scram-sha-256', 'right'));
    await pg.setHba(['local all postgres trust', 'host all postgres all trust', 'host all all all scram-sha-256']);
    for (let i = 0; i < 3; i++) {
      const client = await login(pooler, ANN);
      assert.equal(await ask(client, 'SELECT current_user'), 'ann');
      await client.destroy();
      await pg.killBackends("usename = 'ann'");
      await rowsBecome(pooler, 'SERVERS', { user: 'ann' }, 0);
    }
    assert.equal(await asked(), 1);
    await pg.setAuth('trust');
  });

  it('a wrong password is checked with a fresh answer, and is never kept', async () => {
    await begin('plain', LONG, 'right');
    const wrong = { ...ANN, password: 'wrong' };
    for (let i = 0; i < 3; i++) assert.equal(await refusal(pooler, wrong), 'password authentication failed');
    assert.equal(await asked(), 3);
    await loginAndOut();
    await loginAndOut();
    assert.equal(await refusal(pooler, wrong), 'password authentication failed');
    assert.equal(await asked(), 2);
    for (let i = 0; i < 2; i++) assert.equal(await refusal(pooler, { user: 'nobody', password: 'x' }), 'no such user');
    assert.equal(await asked(), 2);
  });

  const changes: [name: string, type: string, secret: (password: string) => Promise<string>][] = [
    ['a password, with plain', 'plain', async (password) => password],
    ['a SCRAM secret, with plain', 'plain', (password) => storedAs('scram-sha-256', password)],
    ['a password, with md5', 'md5', async (password) => password],
    ['an MD5 secret, with md5', 'md5', (password) => storedAs('md5', password)],
    ['a password, with SCRAM', 'scram-sha-256', async (password) => password],
  ];
  for (const [name, type, secret] of changes) {
    it(`a changed password is accepted at once: ${name}`, async () => {
      await begin(type, LONG, await secret('right'));
      await loginAndOut();
      await setSecret('ann', await secret('changed'));
      await asked();
      await loginAndOut({ user: 'ann', password: 'changed' });
      assert.equal(await asked(), 1);
      await loginAndOut({ user: 'ann', password: 'changed' });
      assert.equal(await asked(), 0);
      assert.match(await refusal(pooler, ANN), /authentication failed/);
    });
  }

  it('a changed SCRAM secret is accepted from the second login on', async () => {
    await begin('scram-sha-256', LONG, await storedAs('scram-sha-256', 'right'));
    const changed = { user: 'ann', password: 'changed' };
    await loginAndOut();
    await setSecret('ann', await storedAs('scram-sha-256', 'changed'));
    assert.equal(await refusal(pooler, changed), 'SASL authentication failed');
    await loginAndOut(changed);
    await setSecret('ann', await storedAs('md5', 'right'));
    for (let i = 0; i < 2; i++) assert.equal(await refusal(pooler, ANN), 'SASL authentication failed');
    assert.equal(pooler.log.count(/user has MD5 secret/), 1);
    await setSecret('ann', 'right');
    await loginAndOut();
  });

  it('a SCRAM secret cannot be used as an MD5 secret when it has replaced one', async () => {
    await begin('md5', LONG, await storedAs('md5', 'right'));
    await loginAndOut();
    const secret = await storedAs('scram-sha-256', 'right');
    await setSecret('ann', secret);
    const thief = await pooler.raw();
    await thief.startup({ user: 'ann', database: 'postgres' });
    const request = await thief.next();
    const answer = pgMd5Encrypt(secret.slice(3), request?.body.subarray(4) as Buffer) as string;
    await thief.sendMessage('p', cstring(answer));
    assert.equal(errorIn(await thief.until('ZE'))?.M, 'password authentication failed');
  });

  it('a removed user is refused after the time at the latest, and at once after RELOAD and RECONNECT', async () => {
    await begin('md5', 1, 'right');
    await loginAndOut();
    await pg.sql('DELETE FROM secrets');
    const begun = performance.now();
    await eventually('ann to be refused', async () => {
      const client = await pooler.raw();
      const answer = await client.login(ANN);
      await client.destroy();
      return errorIn(answer)?.M === 'no such user';
    });
    assert.ok(performance.now() - begun < 5000);
    for (const command of ['RELOAD', 'RECONNECT', 'RECONNECT asking', 'SET auth_query_cache_time = 0']) {
      await begin('md5', LONG, 'right');
      await loginAndOut();
      await pg.sql('DELETE FROM secrets');
      await loginAndOut();
      await pooler.admin(command);
      assert.equal(await refusal(pooler, ANN), 'no such user', command);
    }
  });

  it('many logins at once make one query, also for a name that does not exist', async () => {
    await begin('scram-sha-256', LONG, 'right');
    await setPace(0.5);
    const known = Array.from({ length: 30 }, async (_, i) => login(pooler, { ...ANN, database: `shop${i % 3}` }));
    for (const client of await Promise.all(known)) {
      assert.equal(await ask(client, 'SELECT current_user'), 'ann');
      await client.end();
    }
    assert.equal(await asked(), 1);
    const unknown = Array.from({ length: 30 }, () => refusal(pooler, { user: 'nobody', password: 'x' }));
    for (const text of await Promise.all(unknown)) assert.equal(text, 'no such user');
    assert.equal(await asked(), 1);
    await setPace(0);
  });

  it('if the login that asks is lost, another one asks; if the query fails, it fails for all', async () => {
    await begin('plain', LONG, 'right');
    await setPace(30);
    const logins = Array.from({ length: 10 }, async () => {
      const client = await pooler.raw();
      const answer = await client.login(ANN);
      await client.destroy();
      return errorIn(answer)?.M ?? 'in';
    });
    await running(10);
    await setPace(0);
    await pg.killBackends("wait_event = 'PgSleep'");
    const outcomes = await Promise.all(logins);
    assert.equal(outcomes.filter((text) => text === 'in').length, 9, outcomes.join());

    await pooler.admin('RECONNECT');
    await pg.sql('ALTER FUNCTION lookup RENAME TO lost');
    const failed = Array.from({ length: 10 }, () => refusal(pooler, ANN));
    for (const text of await Promise.all(failed)) assert.equal(text, 'bouncer config error');
    await pg.sql('ALTER FUNCTION lost RENAME TO lookup');
    await loginAndOut();
  });

  it('a login that began before RELOAD asks again for a password that its old answer refuses', async () => {
    await begin('plain', LONG, 'right');
    await loginAndOut();
    const begun = await pooler.raw();
    await challenged(begun, 'ann');
    await setSecret('ann', 'changed');
    await pooler.admin('RELOAD');
    await begun.sendMessage('p', cstring('changed'));
    assert.equal((await begun.until('ZE')).at(-1)?.type, 'Z');
    await begun.end();
  });

  it('a login that RELOAD lets in without the query keeps no other login waiting', () =>
    withCaching('plain', async (own) => {
      await own.admin('PAUSE postgres');
      const [first, second] = [await own.raw(), await own.raw()];
      await first.startup({ user: 'ann', database: 'postgres' });
      await rowsBecome(own, 'CLIENTS', { state: 'waiting' }, 1);
      await second.startup({ user: 'ann', database: 'postgres' });
      await rowsBecome(own, 'LISTS', { list: 'login_clients', items: 1 }, 1);
      own.rewrite({ userlist: { ann: 'right' } });
      await own.admin('RELOAD');
      await own.admin('RESUME postgres');
      for (const client of [first, second]) {
        assert.equal((await client.next())?.type, 'R');
        await passes(client, 'right');
      }
      own.rewrite({});
      await own.admin('RELOAD');
      for (const client of [await login(own, ANN), first, second]) await client.end();
    }));

  it('RELOAD and RECONNECT also end an answer that a login in progress holds', () =>
    withCaching('plain', async (own) => {
      for (const command of ['RELOAD', 'RECONNECT', 'RECONNECT postgres']) {
        await setSecret('ann', 'right');
        await (await login(own, ANN)).end();
        const begun = await own.raw();
        await challenged(begun, 'ann');
        await setSecret('ann', 'changed');
        await own.admin(command);
        await passes(begun, 'right');
        assert.equal(await refusal(own, ANN), 'password authentication failed', command);
        await begun.end();
      }
    }));

  it('a login after RELOAD asks, although a query that was sent before is still running', () =>
    withCaching('plain', async (own) => {
      await asked();
      await setPace(1);
      const before = login(own, ANN);
      await backendsBecome(pg, "wait_event = 'PgSleep'", 1);
      await own.admin('RELOAD');
      for (const client of [await login(own, ANN), await before]) await client.end();
      await setPace(0);
      assert.equal(await asked(), 2);
    }));

  it('a plain password replaces the SCRAM secret of a user, and its keys', () =>
    withCaching('scram-sha-256', async (own) => {
      await setSecret('ann', await storedAs('scram-sha-256', 'right'));
      await pg.setHba(['local all postgres trust', 'host all postgres all trust', 'host all all all scram-sha-256']);
      const client = await login(own, ANN);
      assert.equal(await ask(client, 'SELECT current_user'), 'ann');
      await client.end();
      await storedAs('scram-sha-256', 'changed');
      await setSecret('ann', 'changed');
      await own.admin('RECONNECT');
      const later = await login(own, { user: 'ann', password: 'changed' });
      assert.equal(await ask(later, 'SELECT current_user'), 'ann');
      await later.end();
      await pg.setAuth('trust');
    }));

  it('an online reboot keeps waiting logins, and asks again for a password that an old answer refuses', async () => {
    await setSecret('ann', 'right');
    await setSecret('bob', 'right');
    const options = { cluster: pg, settings: { ...SETTINGS, auth_query_cache_time: LONG } };
    await withRebootChain(options, async (chain) => {
      await chain.start('ts');
      const before = await chain.raw();
      assert.equal((await before.login(ANN)).at(-1)?.type, 'Z');
      const begun = await chain.raw();
      await challenged(begun, 'ann');
      await setSecret('ann', 'changed');
      await setPace(2);
      const waiting = [await chain.raw(), await chain.raw(), await chain.raw()];
      const logins = waiting.map((client) => client.login({ user: 'bob', password: 'right' }));
      await eventually('the query to run', async () => {
        return ((await chain.show('POOLS')).find((row) => row.user === 'postgres')?.sv_active ?? 0) === 1;
      });
      await chain.reboot('ts');
      await setPace(0);
      await begun.sendMessage('p', cstring('changed'));
      assert.equal((await begun.until('ZE')).at(-1)?.type, 'Z');
      for (const answer of await Promise.all(logins)) assert.equal(answer.at(-1)?.type, 'Z');
      for (const client of [before, begun, ...waiting]) await client.end();
    });
  });

  it('the least recently used answers are dropped when there are too many', () => {
    const db = new PgDatabase('shop');
    db.config = { ...db.config, authQueryCacheTime: 1e12 };
    assert.equal(cacheTime(db), 1e12);
    const use = (i: number) => {
      const client = new ClientSocket(SocketState.CL_LOGIN);
      client.db = db;
      if (client.login !== null) client.login.answer = { key: `k${i}`, name: 'ann', passwd: 'x', askedAt: 1 };
      keepAnswer(client);
    };
    for (let i = 0; i < 10_000; i++) use(i);
    use(0);
    use(10_000);
    assert.notEqual(findAnswer('k0', Number.POSITIVE_INFINITY), null);
    assert.equal(findAnswer('k1', Number.POSITIVE_INFINITY), null);
    assert.notEqual(findAnswer('k10000', Number.POSITIVE_INFINITY), null);
  });
});
