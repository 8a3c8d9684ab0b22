/*
 * Host names and host lists of databases: resolving, caching, failures, several hosts with and without load balancing,
 * and servers on an address that the name no longer has.
 */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { freePort } from '../../tools/postgres';
import { ask, backendOf, login, refusal, show, start, thrownOut, valueIn, withPooler } from '../harness/answers';
import type { Bouncer } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { iniText } from '../harness/index';
import { after, before, describe, runSync } from '../harness/limits';
import { LogTail } from '../harness/log-tail';
import { eventually, installed, it, startProgram, tempDir, user } from '../harness/machine';
import { itUnless, notLinux, notRoot } from '../harness/needs';
import { cstring, message, RawClient, SSL_REQUEST } from '../harness/raw-client';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start({
    settings: { listen_addresses: '127.0.0.1,127.0.0.2' },
    hba: ['local all all trust', 'host all all 127.0.0.0/8 trust'],
  });
});
after(() => pg.stop());

const TX = { pool_mode: 'transaction' };
const RESOLVING = /DEBUG dns: resolving (\S+)/;
const pause = (ms: number) => new Promise((wake) => setTimeout(wake, ms));

/** The addresses of the next `count` new servers. */
async function hostsOf(pooler: Bouncer, count: number): Promise<(string | null)[]> {
  const hosts: (string | null)[] = [];
  for (let i = 0; i < count; i++) {
    const client = await login(pooler);
    await ask(client, 'BEGIN');
    hosts.push(await ask(client, 'SELECT host(inet_server_addr())'));
  }
  return hosts;
}

/** Changes the database lines and reloads the pooler. */
async function changeHosts(pooler: Bouncer, databases: Record<string, string>): Promise<void> {
  pooler.rewrite({ databases });
  await pooler.admin('RELOAD');
}

/** A server at the real server's port that ends each login with that error. */
async function refusingServer(host: string, sqlstate: string, text: string): Promise<Server> {
  const error = message(
    'E',
    cstring('SFATAL'),
    cstring('VFATAL'),
    cstring(`C${sqlstate}`),
    cstring(`M${text}`),
    cstring(''),
  );
  const server = createServer((socket) => {
    socket.on('error', () => {});
    socket.on('data', (bytes) => {
      if (bytes.length === 8 && bytes.readInt32BE(4) === SSL_REQUEST) socket.write('N');
      else socket.end(error);
    });
  });
  server.listen(pg.port, host);
  await once(server, 'listening');
  return server;
}

describe('names', () => {
  it('a DNS answer is used for dns_max_ttl', async () => {
    const databases = { postgres: `host=localhost port=${pg.port}` };
    await withPooler({ databases, settings: { ...TX, verbose: 1, dns_max_ttl: 30 } }, async (pooler) => {
      await hostsOf(pooler, 3);
      assert.equal(pooler.log.count(RESOLVING), 1);
      const row = (await show(pooler, 'DNS_HOSTS'))[0];
      assert.equal(row?.hostname, 'localhost');
      assert.match(String(row?.addrs), /127\.0\.0\.1/);
      assert.ok(Number(row?.ttl) > 20 && Number(row?.ttl) <= 30, `ttl ${row?.ttl}`);
      const lists = await pooler.admin('SHOW LISTS');
      assert.equal(Number(lists.find((each) => each.list === 'dns_names')?.items), 1);
    });
    await withPooler({ databases, settings: { ...TX, verbose: 1, dns_max_ttl: 0 } }, async (pooler) => {
      await hostsOf(pooler, 3);
      assert.equal(pooler.log.count(RESOLVING), 3);
    });
  });

  for (const [ttl, many] of [
    [30, false],
    [0, true],
  ] as const) {
    it(`a failed lookup is ${many ? 'repeated' : 'cached'} with a dns_nxdomain_ttl of ${ttl}`, async () => {
      const databases = { postgres: 'host=no-such-host.invalid' };
      const settings = { ...TX, verbose: 1, server_login_retry: 0.2, dns_nxdomain_ttl: ttl };
      await withPooler({ databases, settings }, async (pooler) => {
        const client = await pooler.raw();
        await client.startup({ user: 'postgres', database: 'postgres' });
        const failed = /S-[^\n]* closing because: server DNS lookup failed/g;
        await eventually('three failures', () => pooler.log.count(failed) >= 3);
        assert.match(pooler.log.text, /WARNING DNS lookup failed: no-such-host\.invalid: result=-?\d+/);
        if (many) assert.ok(pooler.log.count(RESOLVING) >= 3);
        else assert.equal(pooler.log.count(RESOLVING), 1);
        await client.destroy();
      });
    });
  }

  it('a host that is almost an address is treated as a name', async () => {
    const databases = {
      octal: `host=0177.0.0.1 port=${pg.port} dbname=postgres`,
      colon: 'host=no:such dbname=postgres',
    };
    await withPooler({ databases, settings: { ...TX, verbose: 1, query_wait_timeout: 5 } }, async (pooler) => {
      const client = await login(pooler, { database: 'octal' });
      assert.equal(await ask(client, 'SELECT host(inet_server_addr())'), '127.0.0.1');
      const other = await pooler.raw();
      await other.startup({ user: 'postgres', database: 'colon' });
      await pooler.logWait(/S-[^\n]*colon\/postgres[^\n]* closing because: server DNS lookup failed/);
      await other.destroy();
    });
  });

  it('a failed lookup does not make a client wait longer than query_wait_timeout', async () => {
    const databases = { postgres: 'host=no-such-host.invalid' };
    await withPooler({ databases, settings: { ...TX, query_wait_timeout: 0.5 } }, async (pooler) => {
      assert.equal(await refusal(pooler), 'query_wait_timeout');
    });
  });
});

describe('several hosts', () => {
  it('several hosts of a database take turns', async () => {
    const databases = { postgres: `host=127.0.0.1,127.0.0.2 port=${pg.port}` };
    await withPooler({ databases, settings: TX }, async (pooler) => {
      assert.deepEqual(await hostsOf(pooler, 4), ['127.0.0.1', '127.0.0.2', '127.0.0.1', '127.0.0.2']);
    });
  });

  it('load_balance_hosts=disable uses the first host while it works', async () => {
    const databases = { postgres: `host=127.0.0.2,127.0.0.1 port=${pg.port} load_balance_hosts=disable` };
    await withPooler({ databases, settings: TX }, async (pooler) => {
      assert.deepEqual(await hostsOf(pooler, 3), ['127.0.0.2', '127.0.0.2', '127.0.0.2']);
    });
  });

  for (const bad of ['127.0.0.9', 'no-such-host.invalid']) {
    for (const mode of ['disable', 'round-robin']) {
      it(`a failing host (${bad}) is skipped with load_balance_hosts=${mode}`, async () => {
        const databases = { postgres: `host=${bad},127.0.0.2 port=${pg.port} load_balance_hosts=${mode}` };
        await withPooler({ databases, settings: { ...TX, server_login_retry: 5 } }, async (pooler) => {
          assert.deepEqual(await hostsOf(pooler, 3), ['127.0.0.2', '127.0.0.2', '127.0.0.2']);
          const failures = pooler.log.count(/closing because: (connect failed|server DNS lookup failed)/);
          if (mode === 'disable') assert.equal(failures, 1, 'the bad one is tried once');
          else assert.ok(failures >= 2, 'the bad one has its turns');
        });
      });
    }
  }

  for (const mode of ['disable', 'round-robin']) {
    it(`the next host is tried at once if a host refuses, with load_balance_hosts=${mode}`, async () => {
      const databases = { postgres: `host=127.0.0.9,127.0.0.2 port=${pg.port} load_balance_hosts=${mode}` };
      await withPooler({ databases, settings: { ...TX, server_login_retry: 600 } }, async (pooler) => {
        assert.deepEqual(await hostsOf(pooler, 3), ['127.0.0.2', '127.0.0.2', '127.0.0.2']);
        assert.equal(pooler.log.count(/closing because: connect failed/), mode === 'disable' ? 1 : 3);
      });
    });
  }

  for (const [what, line] of [
    ['another host', 'host=127.0.0.1'],
    ['one more host', 'host=127.0.0.9,127.0.0.1'],
  ])
    it(`after RELOAD with ${what}, no client gets the error of an earlier login`, async () => {
      const databases = (hosts: string) => ({ postgres: `${hosts} port=${pg.port}` });
      const settings = { ...TX, server_login_retry: 600 };
      await withPooler({ databases: databases('host=127.0.0.1'), settings }, async (pooler) => {
        const [waits, fails, works] = [await login(pooler), await login(pooler), await login(pooler)];
        await changeHosts(pooler, databases('host=127.0.0.8,127.0.0.9'));
        await start(waits, 'SELECT 1');
        await pooler.logWait(/closing because: connect failed[\s\S]*closing because: connect failed/);
        await start(fails, 'SELECT 1');
        assert.match(await thrownOut(fails), /^server login has been failing, cached error: connect failed/);
        await changeHosts(pooler, databases(line as string));
        assert.equal(await ask(works, 'SELECT 1'), '1');
        assert.equal(valueIn(await waits.until('Z')), '1');
      });
    });

  it('all hosts are tried once before the login counts as failed and server_login_retry applies', async () => {
    const databases = { postgres: `host=127.0.0.7,127.0.0.8,127.0.0.9 port=${pg.port}` };
    await withPooler({ databases, settings: { ...TX, server_login_retry: 600, verbose: 1 } }, async (pooler) => {
      const waiter = await pooler.raw();
      await waiter.startup({ user: 'postgres', database: 'postgres' });
      await pooler.logWait(/(last failed, not launching new connection yet[\s\S]*){3}/);
      assert.equal(pooler.log.count(/closing because: connect failed/), 3);
      await waiter.destroy();
    });
  });

  it('a host that is starting up is skipped, but a host that refuses the user is not', async () => {
    const ends: [string, string, string][] = [
      ['57P03', 'the database system is starting up', '127.0.0.2'],
      ['28000', 'no entry for you', 'no entry for you'],
    ];
    for (const [sqlstate, text, outcome] of ends) {
      const refusing = await refusingServer('127.0.0.3', sqlstate, text);
      const databases = { postgres: `host=127.0.0.3,127.0.0.2 port=${pg.port}` };
      await withPooler({ databases, settings: { ...TX, server_login_retry: 600 } }, async (pooler) => {
        if (sqlstate === '57P03') assert.deepEqual(await hostsOf(pooler, 1), [outcome]);
        else assert.equal(await refusal(pooler), outcome);
        await pooler.logWait(new RegExp(`server login failed: FATAL ${text}`));
      });
      refusing.close();
    }
  });

  it('RELOAD with added hosts closes no server, and with a removed host only its servers', async () => {
    const line = (hosts: string) => ({ postgres: `host=${hosts} port=${pg.port}` });
    await withPooler({ databases: line('127.0.0.1'), settings: TX }, async (pooler) => {
      const clients = [await login(pooler), await login(pooler), await login(pooler)];
      const pids = [await backendOf(clients[0] as RawClient)];
      await changeHosts(pooler, line('127.0.0.1,127.0.0.2'));
      for (const client of clients) await ask(client, 'BEGIN');
      const hosts = [];
      for (const client of clients) hosts.push(await ask(client, 'SELECT host(inet_server_addr())'));
      assert.deepEqual(hosts, ['127.0.0.1', '127.0.0.1', '127.0.0.2']);
      assert.deepEqual([await backendOf(clients[0] as RawClient)], pids);
      pids.push(await backendOf(clients[1] as RawClient));
      for (const client of clients) await ask(client, 'COMMIT');

      await changeHosts(pooler, line('127.0.0.1'));
      await pooler.logWait(/S-[^\n]*@127.0.0.2:[^\n]* closing because: database configuration changed/);
      for (const client of clients.slice(0, 2)) await ask(client, 'BEGIN');
      const left = [await backendOf(clients[0] as RawClient), await backendOf(clients[1] as RawClient)];
      assert.deepEqual(left.sort(), pids.sort());
    });
  });

  it('a takeover with added hosts closes no server', async () => {
    const line = (hosts: string) => ({ postgres: `host=${hosts} port=${pg.port}` });
    await withPooler({ databases: line('127.0.0.1'), settings: TX }, async (pooler) => {
      const client = await login(pooler);
      const pid = await backendOf(client);
      pooler.rewrite({ databases: line('127.0.0.2,127.0.0.1') });
      const next = pooler.beside(['-R']);
      await next.waitUp();
      assert.deepEqual(await pooler.expectEnd(), { code: 0, signal: null });
      assert.equal(await backendOf(client), pid);
      next.rewrite({ databases: line('127.0.0.2') });
      const last = next.beside(['-R']);
      await last.waitUp();
      assert.deepEqual(await next.expectEnd(), { code: 0, signal: null });
      assert.notEqual(await backendOf(client), pid);
      await last.stop();
    });
  });

  it('RELOAD changes load_balance_hosts at once', async () => {
    const line = (mode: string) => ({
      postgres: `host=127.0.0.1,127.0.0.2 port=${pg.port} load_balance_hosts=${mode}`,
    });
    await withPooler({ databases: line('disable'), settings: TX }, async (pooler) => {
      assert.deepEqual(await hostsOf(pooler, 2), ['127.0.0.1', '127.0.0.1']);
      pooler.rewrite({ databases: line('round-robin') });
      await pooler.admin('RELOAD');
      assert.deepEqual((await hostsOf(pooler, 2)).sort(), ['127.0.0.1', '127.0.0.2']);
    });
  });
});

/** Why a process cannot have its own /etc/hosts, or null. */
function noOwnHosts(): string | null {
  if ((notLinux ?? notRoot) !== null) return notLinux ?? notRoot;
  const hosts = join(tempDir('hosts'), 'hosts');
  writeFileSync(hosts, '');
  const args = ['-m', 'sh', '-c', 'mount --bind "$0" /etc/hosts && exec setpriv --version', hosts];
  return runSync('unshare', args).status === 0 ? null : 'needs a mount namespace';
}

itUnless(noOwnHosts())('servers on an old address of a host name are closed when they are idle', async () => {
  const dir = tempDir('moving');
  const hosts = join(dir, 'hosts');
  const port = await freePort();
  const pgbouncer = {
    listen_addr: '127.0.0.1',
    listen_port: port,
    unix_socket_dir: '',
    auth_type: 'any',
    dns_max_ttl: 0,
    max_db_connections: 4,
    ...TX,
  };
  const databases = { postgres: `host=moving.test port=${pg.port} user=postgres` };
  writeFileSync(join(dir, 'pooler.ini'), iniText({ databases, pgbouncer }));
  writeFileSync(hosts, '127.0.0.1 moving.test\n');
  const { node, mainJs } = installed();
  const { uid, gid } = user as NonNullable<typeof user>;
  const script = `mount --bind "$0" /etc/hosts && exec setpriv --reuid ${uid} --regid ${gid} --clear-groups "$@"`;
  const args = ['-m', 'sh', '-c', script, hosts, node, mainJs, join(dir, 'pooler.ini')];
  const child = startProgram('unshare', args, { cwd: '/' });
  const ended = new Promise((settle) => child.once('close', settle));
  try {
    const log = new LogTail(child);
    await log.wait(/process up: /);
    const clients: RawClient[] = [];
    for (let i = 0; i < 3; i++) {
      clients.push(await RawClient.connect({ port }));
      await clients[i]?.login();
    }
    const [first, second, third] = clients as [RawClient, RawClient, RawClient];
    const where = 'SELECT host(inet_server_addr())';
    await ask(first, 'BEGIN');
    assert.equal(await ask(first, where), '127.0.0.1');
    // overwrites the same file, because a bind mount does not follow a new file
    writeFileSync(hosts, '127.0.0.2 moving.test\n');
    await ask(second, 'BEGIN');
    assert.equal(await ask(second, where), '127.0.0.2', 'a new server asks anew');
    assert.equal(await ask(first, where), '127.0.0.1', 'a transaction goes on');
    await ask(first, 'COMMIT');
    await log.wait(/S-[^\n]*@127\.0\.0\.1:\d+ closing because: /);
    assert.equal(await ask(third, where), '127.0.0.2');
  } finally {
    child.kill('SIGQUIT');
    await Promise.race([ended, pause(5000)]);
  }
});
