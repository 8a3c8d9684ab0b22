/*
 * The console's commands with a real PostgreSQL: their permissions, their effects on clients and servers, what they
 * wait for, and their errors. SHOW is in console-show.test.ts, SHUTDOWN with the signals in signals.test.ts.
 */

import assert from 'node:assert/strict';
import { join } from 'node:path';
import type { Client } from 'pg';
import { PGBOUNCER_COMPAT_VERSION } from '../../src/core/base/version';
import { Bouncer, eventually, installed, it, run, STATS_PASSWORD, STATS_USER } from '../harness';
import { fails, watch } from '../harness/expect';
import { cluster, itAlone, startPooler, withCluster } from '../harness/fixtures';
import { after, before, describe } from '../harness/limits';
import { errorFields, letters, RawClient } from '../harness/raw-client';

const stats = { user: STATS_USER, password: STATS_PASSWORD };

let bouncer: Bouncer;

withCluster();

describe('console queries', () => {
  let con: Client;
  before(async () => {
    bouncer = await startPooler();
    con = await bouncer.console();
  });
  after(async () => {
    await con.end();
    await bouncer.stop();
  });

  it('an unknown command gets the usage hint and keeps the session open', async () => {
    for (const query of ['SHOW nonsense', 'frobnicate', 'SELECT 1 + 1', 'SHUTDOWN sometime', 'RELOAD app']) {
      await fails(con.query(query), `invalid command '${query}', use SHOW HELP;`);
    }
    assert.equal((await con.query('SHOW VERSION')).rows.length, 1);
  });

  it('an empty query, with which drivers test a connection, is answered as in PostgreSQL', async () => {
    const raw = await bouncer.raw();
    await raw.login({ user: 'admin', database: 'pgbouncer', password: 'admin-password' });
    for (const query of ['', ';', ' \n', '-- ping']) assert.equal(letters(await raw.query(query)), 'IZ', query);
    await raw.end();
  });

  it('a query string with two commands is refused', async () => {
    for (const query of ['SHOW VERSION; SHOW VERSION', 'SHOW VERSION;;', 'PAUSE; RESUME;']) {
      await fails(con.query(query), `invalid command '${query}', use SHOW HELP;`);
    }
    assert.equal((await bouncer.admin('SHOW STATE')).find((row) => row.key === 'active')?.value, 'yes');
    assert.equal((await con.query(' show  version ; ')).rows.length, 1);
  });

  it('a command with a word that is too long is refused as a bad argument', async () => {
    await fails(con.query(`PAUSE ${'x'.repeat(64)}`), 'bad arguments');
    await fails(con.query(`SET verbose = '${'x'.repeat(300)}'`), 'bad arguments');
  });

  it('SELECT works like SHOW', async () => {
    assert.deepEqual((await con.query('SELECT version')).rows, (await con.query('SHOW version')).rows);
  });

  it('the console refuses unknown packets with the reason', async () => {
    const packets: [string, Buffer[], string][] = [
      ['F', [Buffer.alloc(8)], 'unsupported packet type for admin console: 70'],
    ];
    for (const [type, body, text] of packets) {
      const raw = await bouncer.raw();
      await raw.login({ user: 'admin', database: 'pgbouncer', password: 'admin-password' });
      await raw.sendMessage(type, ...body);
      const answer = await raw.until('');
      assert.equal(letters(answer), 'EZE', type);
      const [first, , last] = answer.map(errorFields);
      assert.deepEqual([first?.S, first?.C, first?.M], ['ERROR', '08P01', text]);
      assert.deepEqual([last?.S, last?.C, last?.M], ['FATAL', '08P01', 'bad packet']);
      await raw.destroy();
    }
  });

  it('the welcome message of the console contains the parameters that drivers need', async () => {
    const raw = await bouncer.raw();
    await raw.login({ user: 'admin', database: 'pgbouncer', password: 'admin-password' });
    assert.match(raw.parameters.server_version as string, /^\d+\.\d+\.\d+\/bouncer$/);
    assert.deepEqual(
      { ...raw.parameters, server_version: '' },
      {
        server_version: '',
        client_encoding: 'UTF8',
        server_encoding: 'UTF8',
        DateStyle: 'ISO',
        TimeZone: 'GMT',
        standard_conforming_strings: 'on',
        is_superuser: 'on',
        'pgbouncer.version': PGBOUNCER_COMPAT_VERSION,
        'pgbouncer.pool_mode': 'statement',
        'pgbouncer.max_prepared_statements': '0',
      },
    );
    await raw.end();
  });

  it('parameters that drivers set are accepted without effect and can be shown', async () => {
    const raw = await bouncer.raw();
    await raw.login({ user: 'stats', database: 'pgbouncer', password: STATS_PASSWORD });
    const set = await raw.query('SET client_encoding = latin1');
    assert.equal(letters(set), 'NCZ');
    assert.equal(errorFields(set[0] as never).M, 'SET ignored');
    assert.equal(set[1]?.body.toString(), 'SET\0');
    await raw.end();
    const shown = { client_encoding: 'UTF-8', datestyle: 'ISO', timezone: 'GMT', standard_conforming_strings: 'on' };
    for (const [name, value] of Object.entries(shown)) {
      assert.deepEqual((await con.query(`SHOW ${name.toUpperCase()}`)).rows, [{ [name]: value }]);
    }
  });

  it('SHOW HELP is sent as a notice', async () => {
    const raw = await bouncer.raw();
    await raw.login({ user: 'admin', database: 'pgbouncer', password: 'admin-password' });
    const answer = await raw.query('SHOW HELP');
    assert.equal(letters(answer), 'NCZ');
    const notice = errorFields(answer[0] as never);
    assert.deepEqual([notice.S, notice.C, notice.M], ['NOTICE', '00000', 'Console usage']);
    assert.match(notice.D as string, /^\n\tSHOW HELP\|CONFIG\|/);
    assert.equal(answer[1]?.body.toString(), 'SHOW\0');
    await raw.end();
  });

  it('a stats user may run SHOW but no other command', async () => {
    const viewer = await bouncer.console(stats);
    for (const word of ['POOLS', 'CLIENTS', 'CONFIG', 'STATS', 'MEM']) await viewer.query(`SHOW ${word}`);
    const commands = ['SHOW FDS', 'PAUSE', 'PAUSE app', 'RESUME', 'DISABLE app', 'ENABLE app', 'RECONNECT', 'KILL'];
    commands.push('KILL_CLIENT 1', 'SUSPEND', 'SHUTDOWN', 'SHUTDOWN WAIT_FOR_CLIENTS', 'WAIT_CLOSE', 'RELOAD');
    for (const command of [...commands, 'SET verbose = 1']) await fails(viewer.query(command), 'admin access needed');
    // an invalid command is reported as such to every user
    await fails(viewer.query('RELOAD app'), /^invalid command/);
    await fails(viewer.query('SUSPEND app'), /^invalid command/);
    await viewer.end();
  });

  it('users who are neither admin_users nor stats_users cannot log in to the console', async () => {
    await fails(bouncer.console({ user: 'postgres' }), 'not allowed');
    await fails(bouncer.console({ user: 'stranger' }), /authentication failed/);
  });

  it('commands refuse unknown databases and the admin database by name', async () => {
    for (const word of ['PAUSE', 'RESUME', 'DISABLE', 'ENABLE', 'RECONNECT', 'KILL', 'WAIT_CLOSE']) {
      await fails(con.query(`${word} nothere`), 'no such database: nothere');
    }
    const verbs = { PAUSE: 'pause', DISABLE: 'disable', ENABLE: 'enable', RECONNECT: 'reconnect', KILL: 'kill' };
    for (const [word, verb] of Object.entries({ ...verbs, WAIT_CLOSE: 'wait in' })) {
      await fails(con.query(`${word} pgbouncer`), `cannot ${verb} admin db: pgbouncer`);
    }
    for (const word of ['DISABLE', 'ENABLE']) await fails(con.query(word), 'a database is required');
    await fails(con.query('RESUME'), 'pooler is not paused/suspended');
    await fails(con.query('RESUME app'), 'database app is not paused');
  });

  it('the console logs its errors', async () => {
    const from = bouncer.log.mark();
    await fails(con.query('PAUSE lost'), 'no such database: lost');
    await bouncer.logWait(/ ERROR no such database: lost\n/, from);
    await bouncer.logWait(
      / WARNING C-0x[0-9a-f]+: pgbouncer\/admin@127\.0\.0\.1:\d+ pooler error: no such database: lost\n/,
      from,
    );
  });
});

describe('ending connections', () => {
  itAlone('KILL disconnects all clients of a database and leaves the database paused', async (own) => {
    const [one, two] = [await own.connect({ database: 'app' }), await own.connect({ database: 'app' })];
    const other = await own.connect({ database: 'other' });
    await one.query('BEGIN');
    await two.query('SELECT 1');
    await other.query('SELECT 1');
    await own.admin('KILL app');
    for (const victim of [one, two]) await assert.rejects(victim.query('SELECT 1'));
    assert.equal(own.log.count(/C-0x[0-9a-f]+: app\/postgres@.* closing because: database removed/), 2);
    await other.query('SELECT 1');
    const row = (await own.admin('SHOW DATABASES')).find((db) => db.name === 'app');
    assert.deepEqual([row?.paused, row?.current_connections, row?.current_client_connections], [1, 0, 0]);
    const late = watch(own.sql('SELECT 1 AS one', { database: 'app' }), 'the client that came later');
    await eventually('it to wait', async () =>
      (await own.admin('SHOW CLIENTS')).some((client) => client.database === 'app' && client.state === 'waiting'),
    );
    assert.equal(late.settled, false);
    await own.admin('RESUME app');
    assert.equal((await late.done()).rows[0].one, 1);
    await Promise.all([one.end(), two.end(), other.end()].map((end) => end.catch(() => {})));
  });

  itAlone('KILL of all databases does not affect the console', async (own) => {
    const clients = [await own.connect({ database: 'app' }), await own.connect({ database: 'other' })];
    for (const client of clients) await client.query('SELECT 1');
    const con = await own.console();
    assert.equal((await con.query('KILL')).command, 'KILL');
    for (const client of clients) await assert.rejects(client.query('SELECT 1'));
    const paused = (await con.query('SHOW DATABASES')).rows.filter((row) => row.paused === 1).map((row) => row.name);
    assert.deepEqual(paused.sort(), ['app', 'other']);
    await con.query('RESUME app');
    await own.sql('SELECT 1', { database: 'app' });
    await con.end();
  });

  itAlone('a killed client gets an error', async (own) => {
    const raw = await own.raw();
    await raw.login({ database: 'app' });
    await raw.query('BEGIN');
    await own.admin('KILL app');
    const [error] = await raw.until('');
    const fields = errorFields(error as never);
    assert.deepEqual([fields.S, fields.C, fields.M], ['FATAL', '08P01', 'database removed']);
    await raw.destroy();
  });

  itAlone('KILL_CLIENT disconnects a client and the server that it uses', async (own) => {
    const raw = await own.raw();
    await raw.login({ database: 'app', params: { application_name: 'victim' } });
    await raw.query('BEGIN');
    const other = await own.connect({ database: 'app' });
    await other.query('SELECT 1');
    const id = (await own.admin('SHOW CLIENTS')).find((row) => row.application_name === 'victim')?.id;
    assert.equal((await own.admin('SHOW SERVERS')).length, 2);
    await own.admin(`KILL_CLIENT ${id}`);
    const [error] = await raw.until('');
    assert.deepEqual(errorFields(error as never).M, 'admin forced disconnect');
    assert.equal((await own.admin('SHOW SERVERS')).length, 1);
    await other.query('SELECT 1');
    await fails(own.admin(`KILL_CLIENT ${id}`), 'client not found');
    await fails(own.admin('KILL_CLIENT 999999'), 'client not found');
    for (const word of ['KILL_CLIENT', 'KILL_CLIENT victim']) {
      await fails(own.admin(word), 'invalid client pointer supplied');
    }
    await raw.destroy();
    await other.end();
  });

  itAlone('a console client can kill its own connection', async (own) => {
    const con = await own.console({ application_name: 'suicidal' });
    const id = (await con.query('SHOW CLIENTS')).rows.find((row) => row.application_name === 'suicidal')?.id;
    await fails(con.query(`KILL_CLIENT ${id}`), 'admin forced disconnect');
    await own.admin('SHOW VERSION');
  });
});

describe('settings', () => {
  async function settingOf(own: Bouncer, key: string): Promise<string | number | null | undefined> {
    return (await own.admin('SHOW CONFIG')).find((row) => row.key === key)?.value;
  }

  itAlone('SET changes a setting at once and confirms the change', async (own) => {
    const con = await own.console();
    const raw = await own.raw();
    await raw.login({ user: 'admin', database: 'pgbouncer', password: 'admin-password' });
    const answer = await raw.query("SET server_check_query = 'select 2';");
    assert.equal(letters(answer), 'CZ');
    assert.equal(answer[0]?.body.toString(), 'SET server_check_query=select 2\0');
    assert.equal(await settingOf(own, 'server_check_query'), 'select 2');
    await con.query('SET default_pool_size TO 7');
    assert.equal((await own.admin('SHOW DATABASES')).find((row) => row.name === 'app')?.pool_size, 7);
    await con.query('SET log_connections = 0');
    const from = own.log.mark();
    await own.sql('SELECT 1', { database: 'app' });
    assert.equal(own.log.count(/login attempt/, from), 0);
    await raw.end();
    await con.end();
  });

  itAlone('SET refuses unknown settings and bad values, and ignores settings that are not reloadable', async (own) => {
    const con = await own.console();
    for (const query of ['SET nonsense = 1', 'SET verbose = many', 'SET pool_mode = sometimes']) {
      await fails(con.query(query), 'SET failed');
    }
    await con.query('SET listen_port = 1');
    assert.equal(Number(await settingOf(own, 'listen_port')), own.port);
    await con.query("SET auth_type = 'trust'");
    await con.end();
  });

  itAlone('RELOAD reads settings, databases and users again', async (own) => {
    const old = await own.connect({ database: 'app' });
    await old.query('SELECT 1');
    own.rewrite({
      databases: { app: cluster().connstr(), fresh: cluster().connstr() },
      settings: { default_pool_size: 3, auth_type: 'plain' },
      userlist: { carla: 'secret' },
    });
    const from = own.log.mark();
    await own.admin('RELOAD');
    await own.logWait(/LOG RELOAD command issued/, from);
    assert.equal(await settingOf(own, 'default_pool_size'), '3');
    assert.deepEqual((await own.admin('SHOW DATABASES')).map((row) => row.name).sort(), ['app', 'fresh', 'pgbouncer']);
    await old.query('SELECT 1');
    // accepted by the pooler, and then refused by PostgreSQL
    await assert.rejects(
      own.sql('SELECT 1', { user: 'carla', password: 'secret', database: 'fresh' }),
      /"carla" does not exist/,
    );
    await assert.rejects(
      own.sql('SELECT 1', { user: 'carla', password: 'wrong', database: 'fresh' }),
      /authentication failed/,
    );
    await old.end();
  });

  itAlone('RELOAD disconnects the clients of a removed database', async (own) => {
    const raw = await own.raw();
    await raw.login({ database: 'other' });
    await raw.query('SELECT 1');
    own.rewrite({ databases: { app: cluster().connstr() } });
    await own.admin('RELOAD');
    await own.logWait(/WARNING dropping database 'other' as it does not exist anymore or inactive auto-database/);
    assert.equal(errorFields((await raw.until('')).at(-1) as never).M, 'database removed');
    await fails(own.connect({ database: 'other' }), 'no such database: other');
    await raw.destroy();
  });

  itAlone('a failed RELOAD reports an error and changes nothing', async (own) => {
    own.rewrite({ settings: { server_lifetime: 'for ever', default_pool_size: 3 } });
    await fails(own.admin('RELOAD'), 'RELOAD failed, see logs for additional details', 'F0000');
    await own.logWait(/ERROR RELOAD Failed, see logs for more details/);
    assert.equal(await settingOf(own, 'default_pool_size'), '20');
    await own.sql('SELECT 1', { database: 'other' });
  });
});

describe('who may log in to the console', () => {
  /** Logs in over the Unix socket as the user that the pooler runs as, and runs a command. */
  async function asOwner(own: Bouncer, name: string, query: string): Promise<string> {
    const script = `
      const [path, user, query] = process.argv.slice(1);
      const text = Buffer.from(\`user\\0\${user}\\0database\\0pgbouncer\\0\\0\`);
      const start = Buffer.alloc(8);
      start.writeInt32BE(text.length + 8, 0);
      start.writeInt32BE(196608, 4);
      const ask = Buffer.alloc(5);
      ask.write('Q');
      ask.writeInt32BE(query.length + 5, 1);
      const bye = Buffer.from('X\\0\\0\\0\\x04');
      const socket = require('net').connect(path);
      socket.end(Buffer.concat([start, text, ask, Buffer.from(query + '\\0'), bye]));
      socket.pipe(process.stdout);`;
    const socket = join(own.socketDir, `.s.PGSQL.${own.port}`);
    const outcome = await run(installed().node, ['-e', script, socket, name, query]);
    assert.equal(outcome.code, 0, outcome.stderr);
    return outcome.stdout;
  }

  itAlone(
    'user pgbouncer with the same uid needs no password on the Unix socket and is an administrator',
    async (own) => {
      assert.match(await asOwner(own, 'pgbouncer', 'RECONNECT'), /RECONNECT/);
      await own.logWait(/LOG C-0x[0-9a-f]+: \(nodb\)\/pgbouncer@unix\(\d+\):\d+ pgbouncer access from unix socket/);
      // the exception applies neither to other user names nor to TCP
      assert.doesNotMatch(await asOwner(own, 'admin', 'RECONNECT'), /RECONNECT/);
      await fails(own.console({ user: 'pgbouncer', password: 'x' }), /authentication failed/);
    },
    { auth_type: 'scram-sha-256' },
  );

  it('user pgbouncer with another uid has no special rights', async () => {
    if (process.getuid?.() !== 0) return;
    const own = await startPooler({ auth_type: 'scram-sha-256' });
    const raw = await RawClient.connect({ path: join(own.socketDir, `.s.PGSQL.${own.port}`) });
    assert.equal(letters(await raw.login({ user: 'pgbouncer', database: 'pgbouncer', password: '' })).at(-1), 'E');
    await raw.destroy();
    await own.stop();
  });

  it('auth_type=any admits users to the console by name alone', async () => {
    const databases = { app: cluster().connstr('postgres', 'user=postgres') };
    const own = await Bouncer.start({ cluster: cluster(), databases, settings: { auth_type: 'any' } });
    await own.admin('RECONNECT');
    await own.admin('SHOW POOLS', stats);
    await fails(own.admin('RECONNECT', stats), 'admin access needed');
    await own.stop();
  });
});
