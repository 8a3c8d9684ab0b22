/*
 * Sharing servers: pool modes and their precedence, the order of servers, cleaning and checking between clients,
 * variables that follow a client, and the parameters with which a server connection is opened.
 */

import assert from 'node:assert/strict';
import { hostname } from 'node:os';
import {
  ask,
  backendOf,
  backendsBecome,
  errorIn,
  login,
  rowsBecome,
  show,
  start,
  thrownOut,
  valueIn,
  withPooler,
} from '../harness/answers';
import type { Bouncer, BouncerOptions } from '../harness/bouncer';
import { clusterWithUsers } from '../harness/fixtures';
import { describe } from '../harness/limits';
import { it } from '../harness/machine';
import { cstring, int16, int32, letters, message, type RawClient } from '../harness/raw-client';

const pg = clusterWithUsers('ann', 'ben');

const USERS = { ann: '', ben: '' };
const TX = { pool_mode: 'transaction' };

describe('pool_mode', () => {
  /** Finds the pool mode from the behaviour of two clients with one server. */
  async function modeOf(pooler: Bouncer, first: RawClient, second: RawClient): Promise<string> {
    await ask(first, 'SELECT 1');
    await start(second, 'SELECT 2');
    // the server is released, or stays with the first client until it disconnects
    const waits = rowsBecome(pooler, 'CLIENTS', { state: 'waiting' }, 1).then(() => null);
    waits.catch(() => {});
    const early = await Promise.race([second.until('Z'), waits]);
    if (early === null) return 'session';
    assert.equal(valueIn(early), '2');
    const error = errorIn(await first.query('BEGIN'));
    if (error?.M === 'transaction blocks not allowed in statement pooling mode') return 'statement';
    assert.equal(error, null);
    return 'transaction';
  }

  const cases: [string, string, string, string, string][] = [
    ['session', 'session', '', '', 'session'],
    ['transaction', 'transaction', '', '', 'transaction'],
    ['statement', 'statement', '', '', 'statement'],
    ['of the database, before the global setting,', 'session', 'pool_mode=transaction', '', 'transaction'],
    ['of the user, before the database,', 'session', 'pool_mode=transaction', 'pool_mode=statement', 'statement'],
    ['of the user, back to session,', 'statement', 'pool_mode=transaction', 'pool_mode=session', 'session'],
  ];
  for (const [what, general, database, user, mode] of cases) {
    it(`pool_mode ${what} is ${mode}`, async () => {
      const options: BouncerOptions = {
        databases: { postgres: pg().connstr('postgres', database) },
        users: { ann: user },
        settings: { pool_mode: general, default_pool_size: 1 },
        userlist: USERS,
      };
      await withPooler(options, async (pooler) => {
        const clients = [await login(pooler, { user: 'ann' }), await login(pooler, { user: 'ann' })] as const;
        assert.equal(await modeOf(pooler, ...clients), mode);
        assert.equal((await show(pooler, 'POOLS', { user: 'ann' }))[0]?.pool_mode, mode);
      });
    });
  }
});

describe('server_round_robin', () => {
  for (const [value, order] of [
    [0, [0, 0, 0, 0]],
    [1, [2, 1, 0, 2]],
  ] as const) {
    it(`server_round_robin=${value} ${value === 0 ? 'reuses the last used server' : 'uses servers in turn'}`, async () => {
      const settings = { ...TX, server_round_robin: value, server_reset_query: '' };
      await withPooler({ cluster: pg(), settings }, async (pooler) => {
        const clients = [await login(pooler), await login(pooler), await login(pooler)];
        for (const client of clients) await ask(client, 'BEGIN');
        const pids: number[] = [];
        for (const client of clients) pids.push(await backendOf(client));
        for (const client of [...clients].reverse()) await ask(client, 'COMMIT');
        const turns: number[] = [];
        for (const _turn of order) turns.push(pids.indexOf(await backendOf(clients[0] as RawClient)));
        assert.deepEqual(turns, order);
      });
    });
  }
});

describe('server_reset_query', () => {
  /** Whether a client sees a mark that the previous client of the same server has left. */
  async function markStays(settings: Record<string, string | number>): Promise<boolean> {
    let stays = false;
    await withPooler({ cluster: pg(), settings: { default_pool_size: 1, ...settings } }, async (pooler) => {
      const first = await login(pooler);
      const pid = await backendOf(first);
      await ask(first, "SET test.mark = 'seen'");
      await first.end();
      const second = await login(pooler);
      stays = (await ask(second, "SELECT current_setting('test.mark', true)")) === 'seen';
      assert.equal(await backendOf(second), pid);
    });
    return stays;
  }

  it('server_reset_query runs in session mode', async () => assert.equal(await markStays({}), false));
  it('server_reset_query does not run in transaction mode', async () => assert.equal(await markStays(TX), true));
  it('server_reset_query runs in transaction mode with server_reset_query_always', async () =>
    assert.equal(await markStays({ ...TX, server_reset_query_always: 1 }), false));
  it('server_reset_query can be empty', async () => assert.equal(await markStays({ server_reset_query: '' }), true));
  it('server_reset_query can be changed', async () => {
    assert.equal(await markStays({ server_reset_query: 'RESET test.mark' }), false);
    assert.equal(await markStays({ server_reset_query: 'SELECT 1' }), true);
  });
});

describe('server_check_query', () => {
  const checked = /P: checking: (.*)/;

  it('server_check_query runs before a server idle for longer than server_check_delay is used again', async () => {
    const settings = { ...TX, server_check_query: 'SELECT 17', server_check_delay: 0.3, verbose: 1 };
    await withPooler({ cluster: pg(), settings }, async (pooler) => {
      const client = await login(pooler);
      const pid = await backendOf(client);
      for (let i = 0; i < 5; i++) await ask(client, 'SELECT 1');
      assert.equal(pooler.log.count(checked), 0);
      await rowsBecome(pooler, 'SERVERS', { state: 'used' }, 1);
      assert.equal(await backendOf(client), pid);
      assert.equal((await pooler.logWait(checked))[1], 'SELECT 17');
    });
  });

  it('server_check_query <empty> is an empty query, which runs every time with a delay of 0', async () => {
    await withPooler({ cluster: pg(), settings: { ...TX, server_check_delay: 0, verbose: 1 } }, async (pooler) => {
      const client = await login(pooler);
      for (let i = 0; i < 3; i++) await ask(client, `SELECT ${i}`);
      // the first query needed no check, because the server had just logged in
      assert.equal(pooler.log.count(/P: checking: <empty>/), 2);
    });
  });

  it('server_check_query can be disabled', async () => {
    const settings = { ...TX, server_check_delay: 0, server_check_query: '', verbose: 1 };
    await withPooler({ cluster: pg(), settings }, async (pooler) => {
      const client = await login(pooler);
      for (let i = 0; i < 3; i++) await ask(client, `SELECT ${i}`);
      assert.equal(pooler.log.count(checked), 0);
    });
  });
});

describe('server_fast_close', () => {
  for (const on of [0, 1]) {
    it(`RECONNECT with server_fast_close=${on} ${on ? 'closes' : 'keeps'} servers of idle sessions`, async () => {
      await withPooler({ cluster: pg(), settings: { server_fast_close: on } }, async (pooler) => {
        const idle = await login(pooler);
        const busy = await login(pooler);
        const pid = await backendOf(idle);
        await ask(busy, 'BEGIN');
        await pooler.admin('RECONNECT');
        if (on) {
          assert.equal(await thrownOut(idle), 'database configuration changed');
        } else {
          await new Promise((wake) => setTimeout(wake, 800));
          assert.equal(await backendOf(idle), pid);
        }
        assert.equal(await ask(busy, 'SELECT 1'), '1');
      });
    });
  }
});

it('disable_pqexec refuses the simple protocol and accepts the extended protocol', async () => {
  await withPooler({ cluster: pg(), settings: { disable_pqexec: 1 } }, async (pooler) => {
    const client = await login(pooler);
    await client.send(
      message('P', cstring(''), cstring('SELECT 5'), int16(0)),
      message('B', cstring(''), cstring(''), int16(0), int16(0), int16(0)),
      message('E', cstring(''), int32(0)),
      message('S'),
    );
    assert.equal(letters(await client.until('Z')), '12DCZ');
    await start(client, 'SELECT 1');
    assert.equal(await thrownOut(client), 'PQexec disallowed');
  });
});

describe('variables', () => {
  const vars: Record<string, string> = {
    DateStyle: 'SQL, DMY',
    client_encoding: 'LATIN1',
    TimeZone: 'Asia/Tokyo',
    standard_conforming_strings: 'off',
    application_name: 'mine',
    IntervalStyle: 'iso_8601',
  };

  it('variables of the startup packet are set on every server of the client', async () => {
    await withPooler({ cluster: pg(), settings: { ...TX, default_pool_size: 1 } }, async (pooler) => {
      const tuned = await login(pooler, { params: vars });
      const plain = await login(pooler);
      const pid = await backendOf(plain);
      const defaults: Record<string, string | null> = {};
      for (const name of Object.keys(vars)) defaults[name] = await ask(plain, `SHOW ${name}`);
      for (const [name, value] of Object.entries(vars)) {
        assert.equal(await ask(tuned, `SHOW ${name}`), value);
        assert.equal(tuned.parameters[name], value);
        assert.equal(await ask(plain, `SHOW ${name}`), defaults[name]);
        assert.notEqual(defaults[name], value);
      }
      assert.equal(await backendOf(tuned), pid);
    });
  });

  it('variables changed with SET follow the client', async () => {
    await withPooler({ cluster: pg(), settings: { ...TX, default_pool_size: 1 } }, async (pooler) => {
      const [tuned, plain] = [await login(pooler), await login(pooler)];
      for (const [name, value] of Object.entries(vars)) {
        await ask(tuned, `SET ${name} = '${value}'`);
        assert.notEqual(await ask(plain, `SHOW ${name}`), value);
        assert.equal(await ask(tuned, `SHOW ${name}`), value);
      }
    });
  });

  it('variables of a client are restored on another server', async () => {
    await withPooler({ cluster: pg(), settings: TX }, async (pooler) => {
      const [tuned, other] = [await login(pooler), await login(pooler)];
      await ask(tuned, "SET TimeZone = 'Asia/Tokyo'");
      const pid = await backendOf(tuned);
      await ask(other, 'BEGIN');
      assert.equal(await backendOf(other), pid, 'the other one took its server');
      assert.equal(await ask(tuned, 'SHOW TimeZone'), 'Asia/Tokyo');
      assert.notEqual(await backendOf(tuned), pid);
    });
  });

  it('track_extra_parameters may name a variable that is tracked anyway, or not name it', async () => {
    for (const extra of ['default_transaction_read_only, IntervalStyle', 'intervalstyle', '']) {
      const settings = { ...TX, default_pool_size: 1, track_extra_parameters: extra };
      await withPooler({ cluster: pg(), settings }, async (pooler) => {
        const [tuned, plain] = [await login(pooler), await login(pooler)];
        await ask(tuned, "SET IntervalStyle = 'iso_8601'");
        assert.equal(await ask(plain, 'SHOW IntervalStyle'), 'postgres');
        assert.equal(await ask(tuned, 'SHOW IntervalStyle'), 'iso_8601');
      });
    }
  });

  it("application_name_add_host adds the client's address", async () => {
    await withPooler({ cluster: pg(), settings: { ...TX, application_name_add_host: 1 } }, async (pooler) => {
      for (const [params, name] of [
        [{ application_name: 'mine' }, 'mine'],
        [{}, 'app'],
      ] as const) {
        const client = await login(pooler, { params });
        const { localPort } = client.socket;
        assert.equal(await ask(client, 'SHOW application_name'), `${name} - 127.0.0.1:${localPort}`);
      }
      const unix = await pooler.sql('SHOW application_name', { host: pooler.socketDir, application_name: 'mine' });
      assert.equal(unix.rows[0].application_name, `mine - unix(${process.pid}@${hostname()}):${pooler.port}`);
    });
  });
});

describe('what a server is opened with', () => {
  it('a server is opened with user, dbname and the parameters of the database line', async () => {
    await pg().sql('CREATE DATABASE real_name');
    const extra = "user=ann client_encoding=LATIN1 datestyle=German timezone='Asia/Tokyo' application_name=pooled";
    const databases = { alias: pg().connstr('real_name', extra) };
    await withPooler({ databases, settings: TX, userlist: USERS }, async (pooler) => {
      const client = await login(pooler, { user: 'ben', database: 'alias' });
      assert.equal(await ask(client, 'SELECT current_user'), 'ann');
      assert.equal(await ask(client, 'SELECT current_database()'), 'real_name');
      assert.equal(await ask(client, 'SHOW client_encoding'), 'LATIN1');
      assert.equal(await ask(client, 'SHOW DateStyle'), 'German, DMY');
      assert.equal(await ask(client, 'SHOW TimeZone'), 'Asia/Tokyo');
      assert.equal(await ask(client, 'SHOW application_name'), 'pooled');
      assert.equal(client.parameters.TimeZone, 'Asia/Tokyo');
      const other = await login(pooler, { user: 'postgres', database: 'alias' });
      assert.equal(await backendOf(other), await backendOf(client), 'a forced user means one pool');
    });
    await backendsBecome(pg(), "datname = 'real_name'", 0);
  });

  it("a server is opened with the database name and the client's user by default", async () => {
    const databases = { real_name: `host=127.0.0.1 port=${pg().port}` };
    await withPooler({ databases, settings: TX, userlist: USERS }, async (pooler) => {
      const client = await login(pooler, { user: 'ben', database: 'real_name' });
      assert.equal(await ask(client, "SELECT current_user || '@' || current_database()"), 'ben@real_name');
    });
  });

  it('a server of an auto-database is opened with the parameters of the * line', async () => {
    const databases = { alias: pg().connstr('real_name'), '*': pg().connstr('postgres') };
    await withPooler({ databases, settings: TX, userlist: USERS }, async (pooler) => {
      assert.equal(await ask(await login(pooler, { database: 'alias' }), 'SELECT current_database()'), 'real_name');
      assert.equal(await ask(await login(pooler, { database: 'x y' }), 'SELECT current_database()'), 'postgres');
      await pooler.logWait(/registered new auto-database: x y/);
    });
  });

  it('a server can be reached with host as an address, a name, a directory or unset', async () => {
    const at = async (host: string, unixDir: string | null = null): Promise<string | null> => {
      let addr: string | null = null;
      const databases = { postgres: `${host} port=${pg().port}` };
      await withPooler({ databases, settings: { ...TX, unix_socket_dir: unixDir } }, async (pooler) => {
        addr = await ask(await login(pooler), 'SELECT host(inet_server_addr())');
      });
      return addr;
    };
    assert.equal(await at('host=127.0.0.1'), '127.0.0.1');
    assert.equal(await at('host=localhost'), '127.0.0.1');
    assert.equal(await at(`host=${pg().socketDir}`), null);
    assert.equal(await at('', pg().socketDir), null, 'no host: unix_socket_dir');
  });

  it('connect_query runs on every new server, and its failure is only logged', async () => {
    const databases = {
      postgres: pg().connstr('postgres', "connect_query='set test.mark to ''from connect'''"),
      bad: pg().connstr('postgres', "connect_query='select nonsense'"),
    };
    await withPooler({ databases, settings: TX }, async (pooler) => {
      const clients = [await login(pooler), await login(pooler)];
      for (const client of clients) await ask(client, 'BEGIN');
      for (const client of clients) assert.equal(await ask(client, 'SHOW test.mark'), 'from connect');
      assert.equal(await ask(await login(pooler, { database: 'bad' }), 'SELECT 1'), '1');
      await pooler.logWait(/S: error while executing exec_on_query: ERROR: column "nonsense" does not exist/);
    });
  });
});
