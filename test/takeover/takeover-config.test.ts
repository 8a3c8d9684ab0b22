/*
 * An online reboot with a config that differs from the old process: databases, users, pool modes, listening addresses.
 */

import assert from 'node:assert/strict';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { eventually, it, type PgCluster } from '../harness';
import { after, before } from '../harness/limits';
import { cancelRequest, cstring, errorFields, type Message, RawClient } from '../harness/raw-client';
import type { RebootChain } from '../harness/reboot-chain';
import { ask, firstValue, login, type Options, startTakeoverCluster, withStarted } from '../harness/takeover-fixtures';

let pg: PgCluster;

before(async () => {
  pg = await startTakeoverCluster();
});
after(async () => {
  await pg.stop();
});

function started(options: Options, body: (chain: RebootChain) => Promise<void>): Promise<void> {
  return withStarted(pg, options, body);
}

it('clients of a database missing from the new config are disconnected as after RELOAD', () =>
  started(
    (connstr) => ({ databases: { stays: connstr, goes: connstr } }),
    async (chain) => {
      const connstr = pg.connstr();
      const [stays, goes] = [await login(chain, { database: 'stays' }), await login(chain, { database: 'goes' })];
      await stays.query('BEGIN');
      await goes.query('BEGIN');
      chain.write({ databases: { stays: connstr } });
      await chain.reboot('ts');
      const error = (await goes.until('E')).at(-1) as Message;
      assert.equal(errorFields(error).M, 'database removed');
      assert.equal(await goes.next(), null);
      assert.match(chain.now.log.text, /dropping database 'goes' as it does not exist anymore/);
      assert.equal(await ask(stays, 'SELECT 1'), '1');
      await stays.end();
    },
  ));

it('after a takeover with another forced user, clients that stay connected get its servers', async () => {
  for (const name of ['before', 'after']) await pg.createUser(name, '', 'none');
  await started(
    () => ({ databases: { postgres: pg.connstr('postgres', 'user=before') }, settings: { pool_mode: 'transaction' } }),
    async (chain) => {
      const client = await login(chain);
      await client.query('BEGIN');
      assert.equal(await ask(client, 'SELECT current_user'), 'before');
      chain.write({ databases: { postgres: pg.connstr('postgres', 'user=after') } });
      await chain.reboot('ts');
      assert.equal(await ask(client, 'SELECT current_user'), 'before');
      await client.query('COMMIT');
      assert.equal(await ask(client, 'SELECT current_user'), 'after');
      await client.end();
    },
  );
});

it('a takeover with a changed config closes servers when idle and applies new limits and pool modes', () =>
  started(
    (connstr) => ({ databases: { postgres: connstr }, settings: { pool_mode: 'session' } }),
    async (chain) => {
      const client = await login(chain);
      await client.query('BEGIN');
      const pid = await ask(client, 'SELECT pg_backend_pid()');
      chain.write({
        databases: { postgres: pg.connstr('template1') },
        settings: { pool_mode: 'transaction', max_client_conn: 2 },
      });
      await chain.reboot('ts');
      assert.equal(await ask(client, 'SELECT pg_backend_pid()'), pid);
      await client.query('COMMIT');
      assert.equal(await ask(client, 'SELECT current_database()'), 'template1');
      const second = await login(chain);
      const third = await chain.raw();
      assert.match(errorFields((await third.login()).at(-1) as Message).M ?? '', /max_client_conn/);
      await second.end();
      await client.end();
    },
  ));

it('a value of a parameter that the new process does not track reaches no other client', () =>
  started(
    { settings: { pool_mode: 'transaction', default_pool_size: 1, track_extra_parameters: 'statement_timeout' } },
    async (chain) => {
      const client = await login(chain);
      const other = await login(chain, { statement_timeout: '1234' });
      assert.equal(await ask(client, 'SHOW statement_timeout'), '0');
      assert.equal(await ask(other, 'SHOW statement_timeout'), '1234ms');
      chain.write({ settings: { track_extra_parameters: 'IntervalStyle' } });
      await chain.reboot('ts');
      assert.equal(await ask(client, 'SHOW statement_timeout'), '0');
      assert.equal(await ask(other, 'SELECT 1'), '1');
      for (const one of [client, other]) await one.end();
    },
  ));

it('a takeover adds new databases and users and applies their pool sizes and modes', () =>
  started(
    (connstr) => ({
      databases: { one: `${connstr} pool_size=1 pool_mode=session` },
      settings: { auth_type: 'md5', pool_mode: 'session' },
      userlist: { postgres: 'pw', asked: 'answer' },
    }),
    async (chain) => {
      const connstr = pg.connstr();
      const enter = async (user: string, password: string, database: string): Promise<RawClient> => {
        const client = await chain.raw();
        const answer = await client.login({ user, password, database });
        assert.equal(answer.at(-1)?.type, 'Z', JSON.stringify(answer.at(-1)?.body.toString()));
        return client;
      };
      const first = await enter('postgres', 'pw', 'one');
      await first.query('SELECT 1');
      const leaver = await enter('asked', 'answer', 'one');
      const second = await enter('postgres', 'pw', 'one');
      await second.sendMessage('Q', Buffer.from("SELECT 'second'\0"));
      await eventually('the second to wait', async () =>
        (await chain.show('POOLS')).some((row) => row.database === 'one' && row.cl_waiting === 1),
      );

      chain.write({
        databases: { one: `${connstr} pool_size=2 pool_mode=session`, two: `${connstr} pool_mode=session` },
        users: { scrammer: 'pool_mode=transaction' },
        userlist: { postgres: 'pw', scrammer: 'secret' },
      });
      // write() adds the initial users again, so the removed user has to be taken out of the file
      const file = `${chain.dir}/userlist.txt`;
      writeFileSync(file, readFileSync(file, 'latin1').replace(/^"asked".*\n/m, ''));
      await chain.reboot('ts');
      // the pool now has room for two servers
      assert.equal(firstValue(await second.until('Z')), 'second');
      assert.equal(await ask(leaver, 'SELECT current_user'), 'asked');
      const refused = await chain.raw();
      assert.equal((await refused.login({ user: 'asked', password: 'answer', database: 'one' })).at(-1)?.type, 'E');
      const others = [await enter('scrammer', 'secret', 'two'), await enter('scrammer', 'secret', 'two')];
      for (const client of others) assert.equal(await ask(client, 'SELECT current_user'), 'scrammer');
      // transaction pooling for that user: both clients used one server
      const pool = (await chain.show('POOLS')).find((row) => row.database === 'two' && row.user === 'scrammer');
      assert.deepEqual([pool?.pool_mode, Number(pool?.sv_idle) + Number(pool?.sv_used)], ['transaction', 1]);
      for (const client of [first, second, leaver, ...others]) await client.end();
    },
  ));

it('after a takeover that changes pool_mode to session, servers stay with their clients', () =>
  started({ settings: { pool_mode: 'transaction' } }, async (chain) => {
    const clients = [await login(chain), await login(chain)];
    for (const client of clients) await client.query('SELECT 1');
    chain.write({ settings: { pool_mode: 'session' } });
    await chain.reboot('ts');
    const pids: (string | null)[] = [];
    for (const client of clients) pids.push(await ask(client, 'SELECT pg_backend_pid()'));
    assert.notEqual(pids[0], pids[1]);
    for (const [i, client] of clients.entries()) assert.equal(await ask(client, 'SELECT pg_backend_pid()'), pids[i]);
    for (const client of clients) await client.end();
  }));

it('after a takeover that changes pool_mode to transaction, what a session has left is reset before the next client', () =>
  started({ settings: { pool_mode: 'session', default_pool_size: 1 } }, async (chain) => {
    const client = await login(chain);
    await client.query("SET statement_timeout = '1234'");
    chain.write({ settings: { pool_mode: 'transaction' } });
    await chain.reboot('ts');
    assert.equal(await ask(client, 'SELECT 1'), '1');
    const other = await login(chain);
    assert.equal(await ask(other, 'SHOW statement_timeout'), '0');
    for (const one of [client, other]) await one.end();
  }));

it('a takeover can change listen_addr from one address to all addresses and back', () =>
  started({ settings: { listen_addr: '127.0.0.1' } }, async (chain) => {
    const client = await login(chain);
    chain.write({ settings: { listen_addr: '*' } });
    await chain.reboot('ts');
    const other = await RawClient.connect({ host: '127.0.0.2', port: chain.port });
    assert.equal((await other.login()).at(-1)?.type, 'Z');
    chain.write({ settings: { listen_addr: '127.0.0.1' } });
    await chain.reboot('ts');
    await (await chain.raw()).destroy();
    await assert.rejects(RawClient.connect({ host: '127.0.0.2', port: chain.port }), /ECONNREFUSED/);
    for (const one of [client, other]) assert.equal(await ask(one, 'SELECT 1'), '1');
    for (const one of [client, other]) await one.end();
  }));

it('a takeover gives the listening sockets the options of the new config', () =>
  started({ settings: { unix_socket_mode: '0777', tcp_defer_accept: 1 } }, async (chain) => {
    const silent = await chain.raw();
    const mode = () => statSync(chain.socketPath).mode & 0o777;
    assert.equal(mode(), 0o777);
    chain.write({ settings: { unix_socket_mode: '0700', tcp_defer_accept: 0 } });
    await chain.reboot('ts');
    assert.equal(mode(), 0o700);
    const another = await chain.raw();
    await eventually('a silent client to be accepted', async () => {
      const lists = await chain.show('LISTS');
      return Number(lists.find((row) => row.list === 'login_clients')?.items) >= 1;
    });
    for (const one of [silent, another]) await one.destroy();
  }));

it('a takeover opens new listen addresses and closes removed ones', () =>
  started({}, async (chain) => {
    chain.write({ settings: { listen_addr: '127.0.0.1,127.0.0.2' } });
    await chain.reboot('ts');
    assert.match(chain.now.log.text, /got pooler socket: 127\.0\.0\.1:[\s\S]*listening on 127\.0\.0\.2:/);
    const other = await RawClient.connect({ host: '127.0.0.2', port: chain.port });
    assert.equal((await other.login()).at(-1)?.type, 'Z');
    chain.write({ settings: { listen_addr: '127.0.0.2' } });
    await chain.reboot('ts');
    assert.match(chain.now.log.text, /not listening on 127\.0\.0\.1:\d+ any more/);
    await assert.rejects(chain.raw(), /ECONNREFUSED/);
    assert.equal(await ask(other, 'SELECT 1'), '1');
    await other.end();
    chain.write();
    await chain.reboot('ts');
    await (await chain.raw()).destroy();
  }));

it('a key from before peering was configured cancels a query', () =>
  started({ settings: { pool_mode: 'transaction' } }, async (chain) => {
    const client = await login(chain);
    await client.sendMessage('Q', cstring('SELECT pg_sleep(600)'));
    const running = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    await eventually('the query to run', async () => (await pg.sql(running)).rowCount === 1);
    chain.write({ settings: { peer_id: 1 } });
    await chain.reboot('ts');
    await cancelRequest({ port: chain.port }, client.backendPid, client.backendKey);
    assert.equal(errorFields((await client.until('E')).at(-1) as Message).C, '57014');
    await client.until('Z');
    await client.end();
  }));

it('an auto-database that only a login in progress asks for is forgotten with that login after a takeover', () =>
  started(
    (connstr) => ({
      databases: { '*': `${connstr} user=postgres` },
      settings: { auth_type: 'scram-sha-256', min_pool_size: 2 },
      userlist: { scrammer: 'secret' },
    }),
    async (chain) => {
      const stranger = await chain.raw();
      await stranger.startup({ user: 'scrammer', database: 'invented' });
      assert.equal((await stranger.next())?.type, 'R');
      await chain.reboot('ts');
      const client = await chain.connect({ user: 'scrammer', password: 'secret', database: 'good' });
      const row = async (name: string) => (await chain.show('DATABASES')).find((one) => one.name === name);
      // the maintenance that opens these has seen all databases
      await eventually('min_pool_size', async () => Number((await row('good'))?.current_connections) === 2);
      assert.equal(Number((await row('invented'))?.current_connections), 0);
      await stranger.destroy();
      await eventually('the database to be forgotten', async () => (await row('invented')) === undefined);
      await client.end();
    },
  ));

it('pools that wait for room in their database get it in the order in which they have begun to wait', async () => {
  const names = ['share_a', 'share_b', 'share_c'];
  for (const name of names) await pg.createUser(name, '', 'none');
  const settings = { pool_mode: 'transaction', max_db_connections: 1, fair_share_timeout: '0.001' };
  await started({ settings, userlist: Object.fromEntries(names.map((name) => [name, ''])) }, async (chain) => {
    const clients: RawClient[] = [];
    for (const user of names) {
      const client = await login(chain, { user });
      assert.equal(await ask(client, 'SELECT 1'), '1');
      clients.push(client);
    }
    const [late, early, holder] = clients as [RawClient, RawClient, RawClient];
    await holder.query('BEGIN');
    const waiting = async (count: number) =>
      eventually(`${count} clients to wait`, async () => {
        const rows = await chain.show('CLIENTS');
        return rows.filter((row) => row.state === 'waiting').length === count;
      });
    const TIME = cstring('SELECT extract(epoch FROM clock_timestamp())');
    await early.sendMessage('Q', TIME);
    await waiting(1);
    await late.sendMessage('Q', TIME);
    await waiting(2);
    await chain.reboot('ts');
    await holder.query('COMMIT');
    const [first, second] = [firstValue(await early.until('Z')), firstValue(await late.until('Z'))];
    assert.ok(Number(first) < Number(second), `${first} is not before ${second}`);
    for (const client of clients) await client.end();
  });
});

it('pools of auto-databases that are not in use do not keep a takeover without a `*` entry from succeeding', () =>
  started(
    (connstr) => ({ databases: { '*': `host=127.0.0.1 port=${pg.port}`, stays: connstr } }),
    async (chain) => {
      const stays = await login(chain, { database: 'stays' });
      const unused = await login(chain, { database: 'template1' });
      assert.equal(await ask(unused, 'SELECT 1'), '1');
      await unused.end();
      await pg.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'template1'");
      const used = async () => (await chain.show('DATABASES')).some((row) => row.name === 'template1');
      await eventually('the auto-database to be idle', async () => !(await used()));
      chain.write({ databases: { stays: pg.connstr() } });
      await chain.reboot('ts');
      assert.equal(await ask(stays, 'SELECT 1'), '1');
    },
  ));
