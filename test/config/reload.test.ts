/*
 * RELOAD and SIGHUP: effects on changed, added and removed databases, users and settings. An error in the file changes
 * nothing.
 */

import assert from 'node:assert/strict';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ask, backendOf, login, refusal, rowsBecome, show, thrownOut, withPooler } from '../harness/answers';
import type { Bouncer } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { fails } from '../harness/expect';
import { after, before, describe } from '../harness/limits';
import { eventually, it } from '../harness/machine';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
  for (const name of ['one', 'two']) await pg.sql(`CREATE DATABASE ${name}`);
  await pg.createUser('ann', '', 'none');
});
after(() => pg.stop());

const TX = { pool_mode: 'transaction' };

/** SHOW CONFIG as an object. */
async function config(pooler: Bouncer): Promise<Record<string, string | number | null>> {
  const rows = await pooler.admin('SHOW CONFIG');
  return Object.fromEntries(rows.map((row) => [String(row.key), row.value ?? null]));
}

describe('databases', () => {
  it('RELOAD replaces the servers of changed databases when they are idle, and keeps other servers', async () => {
    const databases = { app: pg.connstr('one'), other: pg.connstr('one') };
    await withPooler({ databases, settings: TX }, async (pooler) => {
      const [idle, busy] = [await login(pooler, { database: 'app' }), await login(pooler, { database: 'app' })];
      const other = await login(pooler, { database: 'other' });
      await ask(busy, 'BEGIN');
      const kept = await backendOf(other);
      pooler.rewrite({ databases: { ...databases, app: pg.connstr('two') } });
      await pooler.admin('RELOAD');
      assert.equal(await ask(idle, 'SELECT current_database()'), 'two');
      assert.equal(await ask(busy, 'SELECT current_database()'), 'one', 'a transaction ends where it began');
      await ask(busy, 'COMMIT');
      assert.equal(await ask(busy, 'SELECT current_database()'), 'two');
      assert.equal(await backendOf(other), kept);
      await pooler.logWait(
        /S-\w+: app[^\n]* closing because: (close_needed|obsolete connection|database configuration changed)/,
      );
    });
  });

  it('RELOAD applies changed initial values of variables', async () => {
    const line = (zone: string) => ({ app: pg.connstr('one', `timezone=${zone}`) });
    await withPooler({ databases: line('Asia/Tokyo'), settings: TX }, async (pooler) => {
      const zone = async () => ask(await login(pooler, { database: 'app' }), 'SHOW timezone');
      assert.equal(await zone(), 'Asia/Tokyo');
      pooler.rewrite({ databases: line('Asia/Kolkata') });
      await pooler.admin('RELOAD');
      assert.equal(await zone(), 'Asia/Kolkata');
    });
  });

  it('RELOAD keeps the servers of databases whose limits have changed', async () => {
    await withPooler({ databases: { app: pg.connstr('one') }, settings: TX }, async (pooler) => {
      const client = await login(pooler, { database: 'app' });
      const kept = await backendOf(client);
      pooler.rewrite({ databases: { app: pg.connstr('one', 'pool_size=7 pool_mode=session') } });
      await pooler.admin('RELOAD');
      const row = (await show(pooler, 'DATABASES', { name: 'app' }))[0];
      assert.deepEqual([row?.pool_size, row?.pool_mode], [7, 'session']);
      assert.equal(await backendOf(client), kept);
    });
  });

  it('after RELOAD to transaction pooling, what a session has left is reset before the next client', async () => {
    const databases = (mode: string) => ({ app: pg.connstr('one', `pool_size=1 pool_mode=${mode}`) });
    await withPooler({ databases: databases('session'), settings: TX }, async (pooler) => {
      const client = await login(pooler, { database: 'app' });
      await ask(client, "SET statement_timeout = '1234'");
      pooler.rewrite({ databases: databases('transaction') });
      await pooler.admin('RELOAD');
      await ask(client, 'SELECT 1');
      assert.equal(await ask(await login(pooler, { database: 'app' }), 'SHOW statement_timeout'), '0');
    });
  });

  it('RELOAD disconnects clients of removed databases and adds new databases', async () => {
    const databases = { app: pg.connstr('one'), old: pg.connstr('one') };
    await withPooler({ databases, settings: TX }, async (pooler) => {
      const [client, stays] = [await login(pooler, { database: 'old' }), await login(pooler, { database: 'app' })];
      await ask(client, 'SELECT 1');
      assert.equal(await refusal(pooler, { database: 'fresh' }), 'no such database: fresh');
      pooler.rewrite({ databases: { app: pg.connstr('one'), fresh: pg.connstr('two') } });
      pooler.signal('SIGHUP');
      assert.equal(await thrownOut(client), 'database removed');
      await pooler.logWait(/got SIGHUP, re-reading config/);
      await pooler.logWait(/dropping database 'old' as it does not exist anymore or inactive auto-database/);
      assert.equal(await refusal(pooler, { database: 'old' }), 'no such database: old');
      const fresh = await login(pooler, { database: 'fresh' });
      assert.equal(await ask(fresh, 'SELECT current_database()'), 'two');
      assert.equal(await ask(stays, 'SELECT 1'), '1');
      assert.deepEqual((await show(pooler, 'SERVERS', { database: 'old' })).length, 0);
    });
  });

  it('RELOAD applies changes of the * line to its databases', async () => {
    await withPooler({ databases: { '*': pg.connstr('one') }, settings: TX }, async (pooler) => {
      const client = await login(pooler, { database: 'any' });
      assert.equal(await ask(client, 'SELECT current_database()'), 'one');
      pooler.rewrite({ databases: { '*': pg.connstr('two') } });
      await pooler.admin('RELOAD');
      assert.equal(await ask(client, 'SELECT current_database()'), 'two');
    });
  });

  it('RELOAD applies changes of the * line to its idle databases', async () => {
    const settings = { ...TX, server_idle_timeout: 0.4 };
    await withPooler({ databases: { '*': pg.connstr('one') }, settings }, async (pooler) => {
      const client = await login(pooler, { database: 'any' });
      assert.equal(await ask(client, 'SELECT current_database()'), 'one');
      await client.end();
      await eventually('an idle database', async () => (await show(pooler, 'DATABASES', { name: 'any' })).length === 0);
      pooler.rewrite({ databases: { '*': pg.connstr('two') } });
      await pooler.admin('RELOAD');
      const next = await login(pooler, { database: 'any' });
      assert.equal(await ask(next, 'SELECT current_database()'), 'two');
    });
  });

  it('RELOAD without the * line removes its databases, also those that are idle', async () => {
    const settings = { ...TX, server_idle_timeout: 0.4 };
    await withPooler({ databases: { '*': pg.connstr('one') }, settings }, async (pooler) => {
      const [client, leaves] = [await login(pooler, { database: 'any' }), await login(pooler, { database: 'idle' })];
      await ask(client, 'BEGIN');
      await ask(leaves, 'SELECT 1');
      await leaves.end();
      await eventually(
        'an idle database',
        async () => (await show(pooler, 'DATABASES', { name: 'idle' })).length === 0,
      );
      pooler.rewrite({ databases: { named: pg.connstr('one') }, settings });
      await pooler.admin('RELOAD');
      assert.equal(await thrownOut(client), 'database removed');
      for (const name of ['any', 'idle', 'fresh'])
        assert.equal(await refusal(pooler, { database: name }), `no such database: ${name}`);
      await login(pooler, { database: 'named' });
    });
  });

  it('RELOAD applies a changed auth_user to the databases of the * line', async () => {
    for (const name of ['asks1', 'asks2', 'bob']) await pg.createUser(name, '', 'none');
    // trust between the pooler and PostgreSQL
    const asking = { ...TX, auth_type: 'plain', auth_query: "SELECT $1::text, 'plain'" };
    const databases = { '*': pg.connstr('one') };
    await withPooler({ databases, settings: { ...asking, auth_user: 'asks1' } }, async (pooler) => {
      await login(pooler, { database: 'any', user: 'ann', password: 'plain' });
      pooler.rewrite({ databases, settings: { ...asking, auth_user: 'asks2' } });
      await pooler.admin('RELOAD');
      await login(pooler, { database: 'any', user: 'bob', password: 'plain' });
      assert.equal((await show(pooler, 'POOLS', { database: 'any', user: 'asks2' })).length, 1);
    });
  });
});

describe('users', () => {
  it('RELOAD applies changed lines of [users], and the general settings after their removal', async () => {
    const databases = { app: pg.connstr('one') };
    await withPooler({ databases, settings: TX, userlist: { ann: '' } }, async (pooler) => {
      const row = async () => {
        const user = (await show(pooler, 'USERS', { name: 'ann' }))[0];
        return [user?.pool_mode, user?.pool_size, user?.max_user_connections, user?.max_user_client_connections];
      };
      const before = await row();
      pooler.rewrite({
        users: { ann: 'pool_mode=session pool_size=5 max_user_connections=6 max_user_client_connections=1' },
      });
      await pooler.admin('RELOAD');
      assert.deepEqual(
        (await row()).map((value) => String(value).trim()),
        ['session', '5', '6', '1'],
      );
      await login(pooler, { user: 'ann', database: 'app' });
      assert.match(await refusal(pooler, { user: 'ann', database: 'app' }), /max_user_client_connections/);
      pooler.rewrite({});
      await pooler.admin('RELOAD');
      assert.deepEqual(await row(), before);
      await login(pooler, { user: 'ann', database: 'app' });
    });
  });
});

describe('settings', () => {
  it('RELOAD applies new values, or the defaults of removed lines, even after SET', async () => {
    await withPooler({ cluster: pg, settings: { ...TX, query_timeout: 7, max_client_conn: 50 } }, async (pooler) => {
      await pooler.admin('SET max_client_conn = 60');
      await pooler.admin('SET server_lifetime = 61');
      pooler.rewrite({ settings: { query_timeout: 8, max_client_conn: null } });
      await pooler.admin('RELOAD');
      const after = await config(pooler);
      assert.deepEqual([after.query_timeout, after.max_client_conn, after.server_lifetime], ['8', '100', '3600']);
    });
  });

  it('RELOAD does not change settings that are not reloadable', async () => {
    await withPooler({ cluster: pg, settings: TX }, async (pooler) => {
      const fixed = {
        disable_pqexec: 1,
        job_name: 'other',
        listen_addr: '127.0.0.9',
        listen_backlog: 'nonsense',
        listen_port: 1,
        pidfile: '/nowhere/a.pid',
        pkt_buf: 77,
        resolv_conf: '/nowhere',
        so_reuseport: 1,
        track_extra_parameters: 'search_path',
        unix_socket_dir: '/nowhere',
        unix_socket_group: 'nobody',
        unix_socket_mode: '0700',
        user: 'nobody',
      };
      const before = await config(pooler);
      pooler.rewrite({ settings: { ...fixed, server_lifetime: 99 } });
      await pooler.admin('RELOAD');
      const after = await config(pooler);
      assert.equal(after.server_lifetime, '99');
      for (const name of Object.keys(fixed)) assert.equal(after[name], before[name], name);
      assert.equal(await ask(await login(pooler), 'SELECT 1'), '1');
    });
  });

  it('RELOAD of pool_mode and the limits affects the next client', async () => {
    await withPooler({ cluster: pg, settings: { ...TX, max_client_conn: 1 } }, async (pooler) => {
      const client = await login(pooler);
      assert.match(await refusal(pooler), /max_client_conn/);
      pooler.rewrite({ settings: { pool_mode: 'statement', max_client_conn: 9 } });
      await pooler.admin('RELOAD');
      await login(pooler);
      await client.query('BEGIN');
      await pooler.logWait(/closing because: transaction blocks not allowed in statement pooling mode/);
    });
  });

  it('RELOAD reads the file that conffile names', async () => {
    await withPooler({ cluster: pg, settings: TX }, async (pooler) => {
      const other = join(pooler.dir, 'other.ini');
      writeFileSync(
        other,
        `[databases]\nelse = ${pg.connstr('two')}\n[pgbouncer]\nauth_type = trust\nauth_file = ${join(pooler.dir, 'userlist.txt')}\nadmin_users = admin\nquery_timeout = 5\n`,
      );
      await pooler.admin(`SET conffile = '${other}'`);
      await pooler.admin('RELOAD');
      assert.equal((await config(pooler)).query_timeout, '5');
      assert.equal(await ask(await login(pooler, { database: 'else' }), 'SELECT current_database()'), 'two');
    });
  });

  it('RELOAD reads settings in an included file', async () => {
    await withPooler({ cluster: pg, settings: TX }, async (pooler) => {
      const part = join(pooler.dir, 'part.ini');
      writeFileSync(part, 'query_timeout = 6\n');
      const own = `[pgbouncer]\nauth_type = trust\nauth_file = ${join(pooler.dir, 'userlist.txt')}\nadmin_users = admin\n`;
      pooler.writeIni(`${own}%include ${part}\n[databases]\npostgres = ${pg.connstr()}\n`);
      await pooler.admin('RELOAD');
      assert.equal((await config(pooler)).query_timeout, '6');
    });
  });
});

describe('RELOAD with an error', () => {
  const mistakes: [string, string, RegExp][] = [
    ['an unknown setting', '[pgbouncer]\nno_such = 1\n', /ERROR unknown parameter: pgbouncer\/no_such/],
    [
      'a bad value',
      '[pgbouncer]\nquery_timeout = soon\n',
      /invalid value "soon" for parameter query_timeout in configuration/,
    ],
    ['an unknown section', '[nonsense]\na = b\n', /ERROR /],
    ['a bad database', '[databases]\nbad = port=99999\n', /ERROR invalid port: 99999/],
    ['a bad user', '[users]\nann = pool_mode=none\n', /ERROR invalid pool mode: none/],
    ['no syntax at all', 'words without meaning\n', /ERROR syntax error in configuration/],
    ['a missing include', '%include /nowhere/at.all\n', /ERROR /],
  ];
  for (const [what, text, line] of mistakes) {
    it(`RELOAD with ${what} changes nothing, and the log names the error`, async () => {
      await withPooler({ databases: { app: pg.connstr('one') }, settings: TX }, async (pooler) => {
        const client = await login(pooler, { database: 'app' });
        const kept = await backendOf(client);
        const before = await config(pooler);
        pooler.writeIni(
          `[pgbouncer]\nquery_timeout = 3\nauth_type = any\n[databases]\nfresh = ${pg.connstr('two')}\n${text}`,
        );
        await pooler.admin('RELOAD').catch(() => {});
        await pooler.logWait(line);
        await pooler.logWait(/WARNING config file loading failed/);
        assert.deepEqual(await config(pooler), before);
        assert.equal(await refusal(pooler, { database: 'fresh' }), 'no such database: fresh');
        assert.equal(await backendOf(client), kept);
      });
    });
  }

  const lockouts: [string, string, RegExp][] = [
    ['auth_type=cert without TLS', 'auth_type = cert', /ERROR auth_type=cert requires client_tls_sslmode/],
    [
      'auth_type=cert and a missing certificate',
      'auth_type = cert\nclient_tls_sslmode = verify-full\nclient_tls_ca_file = /nowhere/ca\n' +
        'client_tls_cert_file = /nowhere/cert\nclient_tls_key_file = /nowhere/key',
      /ERROR TLS setup failed: /,
    ],
    [
      'auth_type=hba and a missing auth_hba_file',
      'auth_type = hba\nauth_hba_file = /nowhere/hba',
      /ERROR could not open hba config file \/nowhere\/hba/,
    ],
    ['auth_type=hba without auth_hba_file', 'auth_type = hba', /ERROR could not open hba config file/],
    ['auth_type=ldap without options', 'auth_type = ldap', /ERROR auth_ldap_options is null/],
    [
      'auth_type=ldap and unusable options',
      'auth_type = ldap\nauth_ldap_options = ldapport=99999',
      /ERROR invalid LDAP port number: "99999"/,
    ],
  ];
  for (const [what, text, line] of lockouts) {
    it(`RELOAD with ${what} fails and changes nothing`, async () => {
      await withPooler({ databases: { app: pg.connstr('one') }, settings: TX }, async (pooler) => {
        const before = await config(pooler);
        pooler.writeIni(
          `[pgbouncer]\nquery_timeout = 3\n${text}\n[databases]\napp = ${pg.connstr('one')}\nfresh = ${pg.connstr('two')}\n`,
        );
        await fails(pooler.admin('RELOAD'), 'RELOAD failed, see logs for additional details', 'F0000');
        await pooler.logWait(line);
        assert.deepEqual(await config(pooler), before);
        assert.equal(await refusal(pooler, { database: 'fresh' }), 'no such database: fresh');
        assert.equal(await ask(await login(pooler, { database: 'app' }), 'SELECT 1'), '1');
      });
    });
  }

  it('RELOAD keeps the previous HBA rules if their file has vanished, and applies the rest', async () => {
    await withPooler({ cluster: pg, settings: TX }, async (pooler) => {
      const rules = join(pooler.dir, 'rules');
      writeFileSync(rules, 'local all all trust\nhost all all all trust\n');
      pooler.rewrite({ settings: { auth_type: 'hba', auth_hba_file: rules } });
      await pooler.admin('RELOAD');
      rmSync(rules);
      pooler.rewrite({ settings: { auth_type: 'hba', auth_hba_file: rules, query_timeout: 4 } });
      await pooler.admin('RELOAD');
      await pooler.logWait(/WARNING could not load HBA file, keeping the previous rules/);
      assert.equal((await config(pooler)).query_timeout, '4');
      assert.equal(await ask(await login(pooler), 'SELECT 1'), '1');
    });
  });

  it('SET of a setting of logins is refused where RELOAD would be', async () => {
    await withPooler({ cluster: pg, settings: TX }, async (pooler) => {
      for (const method of ['hba', 'cert', 'ldap']) {
        await fails(pooler.admin(`SET auth_type = '${method}'`), 'SET failed', '08P01');
        assert.equal((await config(pooler)).auth_type, 'trust');
      }
      assert.equal(await ask(await login(pooler), 'SELECT 1'), '1');
    });
  });

  it('SET of a file with rules or users reads it', async () => {
    await pg.createUser('carl', '', 'none');
    await withPooler({ cluster: pg, settings: TX, userlist: { ann: '' } }, async (pooler) => {
      const [rules, users] = [join(pooler.dir, 'rules'), join(pooler.dir, 'users')];
      assert.match(await refusal(pooler, { user: 'carl' }), /authentication failed/);
      writeFileSync(users, `${readFileSync(join(pooler.dir, 'userlist.txt'), 'latin1')}\n"carl" ""\n`);
      await pooler.admin(`SET auth_file = '${users}'`);
      await login(pooler, { user: 'carl' });

      writeFileSync(rules, 'host all ann all reject\nhost all all all trust\nlocal all all trust\n');
      await pooler.admin(`SET auth_hba_file = '${rules}'`);
      await pooler.admin("SET auth_type = 'hba'");
      assert.equal(await refusal(pooler, { user: 'ann' }), 'login rejected');
      await login(pooler, { user: 'carl' });
      writeFileSync(rules, 'host all carl all reject\nhost all all all trust\nlocal all all trust\n');
      await pooler.admin(`SET auth_hba_file = '${rules}'`);
      assert.equal(await refusal(pooler, { user: 'carl' }), 'login rejected');
      await login(pooler, { user: 'ann' });
    });
  });

  it('SET of auth_user applies to databases that have used the former one', async () => {
    const settings = { ...TX, auth_user: 'postgres', auth_query: 'SELECT $1, NULL' };
    await withPooler({ cluster: pg, settings }, async (pooler) => {
      await login(pooler, { user: 'bob' });
      await pooler.admin("SET auth_user = 'nosuch'");
      assert.match(await refusal(pooler, { user: 'carl' }), /role "nosuch" does not exist/);
    });
  });

  it('RELOAD with an error in auth_file keeps the previous users', async () => {
    await withPooler({ cluster: pg, settings: TX, userlist: { ann: '' } }, async (pooler) => {
      writeFileSync(join(pooler.dir, 'userlist.txt'), '"ann" "x"\n"half\n');
      pooler.signal('SIGHUP');
      await pooler.logWait(/got SIGHUP/);
      await eventually('the complaint', () => pooler.log.count(/ERROR (broken auth file|broken)/) > 0);
      await login(pooler, { user: 'ann' });
      await login(pooler, { user: 'postgres' });
      await rowsBecome(pooler, 'CLIENTS', { database: 'postgres' }, 2);
      // the file has not changed, but the error is still there
      await pooler.admin('RELOAD');
      assert.equal(pooler.log.count(/ERROR broken auth file/), 2);
    });
  });
});
