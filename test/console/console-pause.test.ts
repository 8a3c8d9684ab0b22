/*
 * The console's commands that stop and resume traffic, and those that replace server connections: PAUSE, RESUME,
 * SUSPEND, DISABLE, ENABLE, RECONNECT, WAIT_CLOSE.
 */

import assert from 'node:assert/strict';
import { type Bouncer, eventually } from '../harness';
import { backendPid, fails, watch } from '../harness/expect';
import { cluster, itAlone, withCluster } from '../harness/fixtures';
import { describe } from '../harness/limits';
import { cancelRequest, cstring, errorFields, letters, RawClient, SSL_REQUEST } from '../harness/raw-client';

withCluster();

/** The answer to a new connection that asks for TLS. */
async function refusedEncryption(own: Bouncer): Promise<string> {
  const raw = await RawClient.connect({ port: own.port });
  const answer = await raw.request(SSL_REQUEST);
  await raw.destroy();
  return answer;
}

async function serversOf(own: Bouncer, database: string): Promise<Record<string, string | number | null>[]> {
  return (await own.admin('SHOW SERVERS')).filter((row) => row.database === database);
}

describe('PAUSE and RESUME', () => {
  itAlone('PAUSE waits for a transaction and holds new queries until RESUME', async (own) => {
    const busy = await own.connect({ database: 'app' });
    const idle = await own.connect({ database: 'app' });
    await idle.query('SELECT 1');
    await busy.query('BEGIN');
    const con = await own.console();
    const pause = watch(con.query('PAUSE'), 'PAUSE');
    await own.logWait(/LOG PAUSE command issued/);
    const late = watch(idle.query('SELECT 2 AS two'), 'the late query');
    const state = await own.admin('SHOW STATE');
    assert.deepEqual(
      state.map((row) => row.value),
      ['no', 'yes', 'no'],
    );
    await busy.query('SELECT 1');
    assert.equal(pause.settled, false);
    await busy.query('COMMIT');
    assert.equal((await pause.done()).command, 'PAUSE');
    assert.equal(late.settled, false);
    assert.deepEqual(await serversOf(own, 'app'), []);
    await fails(con.query('PAUSE'), 'already suspended/paused');
    await fails(con.query('PAUSE app'), 'already suspended/paused');
    await fails(con.query('SUSPEND'), 'already suspended/paused');
    await fails(con.query('KILL'), 'already suspended/paused');
    // a client that connects now waits as well
    const newcomer = watch(own.sql('SELECT 3 AS three', { database: 'other' }), 'the newcomer');
    await eventually('the newcomer to wait', async () =>
      (await own.admin('SHOW CLIENTS')).some((row) => row.database === 'other' && row.state === 'waiting'),
    );
    assert.equal((await con.query('RESUME')).command, 'RESUME');
    assert.equal((await late.done()).rows[0].two, 2);
    assert.equal((await newcomer.done()).rows[0].three, 3);
    await fails(con.query('RESUME'), 'pooler is not paused/suspended');
    await Promise.all([busy.end(), idle.end(), con.end()]);
  });

  itAlone('PAUSE of one database does not affect other databases', async (own) => {
    const busy = await own.connect({ database: 'app' });
    const other = await own.connect({ database: 'other' });
    await busy.query('BEGIN');
    const con = await own.console();
    const pause = watch(con.query('PAUSE app'), 'PAUSE');
    await own.logWait(/LOG PAUSE 'app' command issued/);
    await other.query('SELECT 1');
    assert.equal(pause.settled, false);
    await busy.query('ROLLBACK');
    await pause.done();
    const paused = (await own.admin('SHOW DATABASES')).filter((row) => row.paused === 1).map((row) => row.name);
    assert.deepEqual(paused, ['app']);
    assert.equal((await own.admin('SHOW STATE'))[0]?.value, 'yes');
    await fails(con.query('SUSPEND'), 'cannot suspend with paused databases');
    await other.query('SELECT 1');
    const late = watch(busy.query('SELECT 1 AS one'), 'the late query');
    await other.query('SELECT 1');
    assert.equal(late.settled, false);
    await con.query('RESUME app');
    assert.equal((await late.done()).rows[0].one, 1);
    await Promise.all([busy.end(), other.end(), con.end()]);
  });

  itAlone('PAUSE in session pooling waits until the client disconnects', async (own) => {
    const client = await own.connect({ database: 'sess' });
    await client.query('SELECT 1');
    const con = await own.console();
    const pause = watch(con.query('PAUSE'), 'PAUSE');
    await own.logWait(/LOG PAUSE command issued/);
    await client.query('SELECT 1');
    assert.equal(pause.settled, false);
    await client.end();
    await pause.done();
    await con.query('RESUME');
    await own.sql('SELECT 1', { database: 'sess' });
    await con.end();
  });

  itAlone('PAUSE of a database without connections takes effect at once, and its first client waits', async (own) => {
    await own.admin('PAUSE app');
    const client = watch(own.sql('SELECT 1 AS one', { database: 'app' }), 'the client');
    await eventually('the client to wait', async () =>
      (await own.admin('SHOW POOLS')).some((row) => row.database === 'app' && row.cl_waiting === 1),
    );
    assert.equal((await own.admin('SHOW POOLS')).find((row) => row.database === 'app')?.sv_login, 0);
    await own.admin('RESUME app');
    assert.equal((await client.done()).rows[0].one, 1);
  });

  itAlone('a cancel request ends a waiting PAUSE', async (own) => {
    const busy = await own.connect({ database: 'app' });
    await busy.query('BEGIN');
    const raw = await own.raw();
    await raw.login({ user: 'admin', database: 'pgbouncer', password: 'admin-password' });
    await raw.sendMessage('Q', cstring('PAUSE'));
    await own.logWait(/LOG PAUSE command issued/);
    await cancelRequest({ port: own.port }, raw.backendPid, raw.backendKey);
    const answer = await raw.until('Z');
    assert.equal(letters(answer), 'EZ');
    const error = errorFields(answer[0] as never);
    assert.deepEqual([error.C, error.M], ['57014', 'canceling statement due to user request']);
    assert.equal((await own.admin('SHOW STATE'))[0]?.value, 'yes');
    await busy.query('COMMIT');
    await own.sql('SELECT 1', { database: 'app' });
    await busy.end();
    await raw.end();
  });

  itAlone('the pooler stays paused if the console client disconnects while its PAUSE waits', async (own) => {
    const busy = await own.connect({ database: 'app' });
    await busy.query('BEGIN');
    const raw = await own.raw();
    await raw.login({ user: 'admin', database: 'pgbouncer', password: 'admin-password' });
    await raw.sendMessage('Q', cstring('PAUSE'));
    await own.logWait(/LOG PAUSE command issued/);
    await raw.destroy();
    await busy.query('COMMIT');
    assert.equal((await own.admin('SHOW STATE'))[1]?.value, 'yes');
    await own.admin('RESUME');
    await busy.query('SELECT 1');
    await busy.end();
  });
});

describe('SUSPEND', () => {
  itAlone('SUSPEND flushes buffers and stops reading and accepting until RESUME', async (own) => {
    const client = await own.connect({ database: 'app' });
    await client.query('BEGIN');
    const con = await own.console();
    assert.equal((await con.query('SUSPEND')).command, 'SUSPEND');
    assert.deepEqual(
      (await con.query('SHOW STATE')).rows.map((row) => row.value),
      ['no', 'no', 'yes'],
    );
    const query = watch(client.query('SELECT 7 AS seven'), 'the query');
    const newcomer = watch(refusedEncryption(own), 'the newcomer');
    for (let i = 0; i < 3; i++) await con.query('SHOW STATE');
    assert.deepEqual([query.settled, newcomer.settled], [false, false]);
    await fails(con.query('SUSPEND'), 'already suspended/paused');
    await con.query('RESUME');
    assert.equal((await query.done()).rows[0].seven, 7);
    assert.equal(await newcomer.done(), 'N');
    await client.query('COMMIT');
    await client.end();
    await con.end();
  });

  for (const others of ['no other console', 'a console that watches']) {
    itAlone(`SUSPEND ends when the console client that issued it disconnects: ${others}`, async (own) => {
      const client = await own.connect({ database: 'app' });
      await client.query('SELECT 1');
      const watching = others.startsWith('no') ? null : await own.console();
      const con = await own.console();
      await con.query('SUSPEND');
      await con.end();
      await own.logWait(/LOG admin disappeared when suspended, doing RESUME/);
      assert.equal((await client.query('SELECT 1 AS one')).rows[0].one, 1);
      assert.equal((await own.admin('SHOW STATE'))[0]?.value, 'yes');
      await client.end();
      await watching?.end();
    });
  }

  itAlone(
    'SUSPEND disconnects clients whose buffers are not empty at suspend_timeout',
    async (own) => {
      // a running query does not delay SUSPEND: its answer can follow after RESUME
      const client = await own.connect({ database: 'app' });
      const sleeping = watch(client.query('SELECT pg_sleep(3), 5 AS five'), 'the slow query');
      await eventually('the query to run', async () => (await serversOf(own, 'app'))[0]?.state === 'active');
      // a partial packet cannot be flushed
      const stuck = await own.raw();
      await stuck.login({ database: 'other' });
      await stuck.send(Buffer.from('Q\0\0\0\x20SELECT'));
      const con = await own.console();
      await con.query('SUSPEND');
      const end = await stuck.until('');
      assert.equal(errorFields(end.at(-1) as never).M, 'suspend_timeout');
      await con.query('RESUME');
      await con.end();
      await stuck.destroy();
      assert.equal((await sleeping.done()).rows[0].five, 5);
      await client.end();
    },
    { suspend_timeout: 1 },
  );
});

describe('SHUTDOWN of a suspended pooler', () => {
  itAlone('WAIT_FOR_SERVERS lets transactions end, and the pooler exits', async (own) => {
    const client = await own.connect({ database: 'app' });
    await client.query('BEGIN');
    const con = await own.console();
    await con.query('SUSPEND');
    await con.query('SHUTDOWN WAIT_FOR_SERVERS');
    await client.query('COMMIT');
    await own.expectEnd();
    await Promise.all([client.end().catch(() => {}), con.end().catch(() => {})]);
  });

  itAlone('after WAIT_FOR_CLIENTS, RESUME does not open the TCP sockets again', async (own) => {
    const client = await own.connect({ database: 'app' });
    const con = await own.console();
    await con.query('SUSPEND');
    await con.query('SHUTDOWN WAIT_FOR_CLIENTS');
    await con.query('RESUME');
    await assert.rejects(RawClient.connect({ port: own.port }), /ECONNREFUSED/);
    await client.query('SELECT 1');
    await Promise.all([client.end(), con.end()]);
    await own.expectEnd();
  });
});

describe('databases and their servers', () => {
  itAlone('DISABLE refuses new clients and keeps connected clients; ENABLE accepts new clients again', async (own) => {
    const old = await own.connect({ database: 'app' });
    await own.admin('DISABLE app');
    await fails(own.connect({ database: 'app' }), 'database "app" is disabled');
    await old.query('SELECT 1');
    assert.equal((await own.admin('SHOW DATABASES')).find((row) => row.name === 'app')?.disabled, 1);
    await own.sql('SELECT 1', { database: 'other' });
    await own.admin('ENABLE app');
    await own.sql('SELECT 1', { database: 'app' });
    await old.end();
  });

  itAlone('RECONNECT closes idle servers at once and busy servers when they are released', async (own) => {
    const busy = await own.connect({ database: 'app' });
    const other = await own.connect({ database: 'other' });
    const otherPid = await backendPid(other);
    await busy.query('BEGIN');
    const busyPid = await backendPid(busy);
    await own.admin('RECONNECT app');
    const [server] = await serversOf(own, 'app');
    assert.deepEqual([server?.close_needed, server?.remote_pid], [1, busyPid]);
    assert.equal(await backendPid(busy), busyPid);
    await busy.query('COMMIT');
    assert.notEqual(await backendPid(busy), busyPid);
    assert.equal(await backendPid(other), otherPid);
    await own.admin('RECONNECT');
    assert.notEqual(await backendPid(other), otherPid);
    await own.logWait(/closing because: (close_needed|database configuration changed) \(age=\d+s\)/);
    await Promise.all([busy.end(), other.end()]);
  });

  itAlone('WAIT_CLOSE returns when all servers that RECONNECT has marked are closed', async (own) => {
    const busy = await own.connect({ database: 'app' });
    await busy.query('BEGIN');
    const con = await own.console();
    await con.query('RECONNECT');
    const all = watch(con.query('WAIT_CLOSE'), 'WAIT_CLOSE');
    const one = await own.console();
    const single = watch(one.query('WAIT_CLOSE app'), 'WAIT_CLOSE app');
    await own.logWait(/LOG WAIT_CLOSE command issued/);
    await own.logWait(/LOG WAIT_CLOSE 'app' command issued/);
    await own.admin('WAIT_CLOSE other');
    await busy.query('SELECT 1');
    assert.deepEqual([all.settled, single.settled], [false, false]);
    await busy.query('COMMIT');
    await all.done();
    await single.done();
    await con.query('WAIT_CLOSE');
    await Promise.all([busy.end(), con.end(), one.end()]);
  });
});

/** The tag WAIT_CLOSE as the driver reads it. */
const WAIT_CLOSE_TAG = 'WAIT';

describe('several consoles that wait', () => {
  itAlone('PAUSE waits although a WAIT_CLOSE has been answered before', async (own) => {
    await own.sql('SELECT 1', { database: 'other' });
    const busy = await own.connect({ database: 'app' });
    await busy.query('BEGIN');
    const con = await own.console();
    assert.equal((await con.query('WAIT_CLOSE other')).command, WAIT_CLOSE_TAG);
    const pause = watch(con.query('PAUSE app'), 'PAUSE app');
    await own.logWait(/LOG PAUSE 'app' command issued/);
    await busy.query('SELECT 1');
    await own.admin('SHOW VERSION');
    assert.equal(pause.settled, false);
    await busy.query('COMMIT');
    assert.equal((await pause.done()).command, 'PAUSE');
    await Promise.all([busy.end(), con.end()]);
  });

  itAlone('WAIT_CLOSE waits although another database is paused', async (own) => {
    await own.admin('PAUSE other');
    const busy = await own.connect({ database: 'app' });
    await busy.query('BEGIN');
    const con = await own.console();
    await con.query('RECONNECT app');
    const closed = watch(con.query('WAIT_CLOSE app'), 'WAIT_CLOSE app');
    await own.logWait(/LOG WAIT_CLOSE 'app' command issued/);
    await busy.query('SELECT 1');
    await own.admin('SHOW VERSION');
    assert.equal(closed.settled, false);
    await busy.query('COMMIT');
    assert.equal((await closed.done()).command, WAIT_CLOSE_TAG);
    await Promise.all([busy.end(), con.end()]);
  });

  itAlone('each is answered when its own command is complete', async (own) => {
    const [inApp, inOther] = [await own.connect({ database: 'app' }), await own.connect({ database: 'other' })];
    await inApp.query('BEGIN');
    await inOther.query('BEGIN');
    await own.admin('RECONNECT other');
    const begin = async (command: string) => {
      const con = await own.console();
      const answer = watch(con.query(command), command);
      await own.logWait(new RegExp(`LOG ${command.replace(' ', " '")}' command issued`));
      return { con, command, answer };
    };
    const waits: Awaited<ReturnType<typeof begin>>[] = [];
    // the servers of app need not be closed, so WAIT_CLOSE app is complete at once
    for (const command of ['PAUSE app', 'PAUSE app', 'PAUSE other', 'WAIT_CLOSE app', 'WAIT_CLOSE other'])
      waits.push(await begin(command));
    const settled = () => waits.map(({ answer }) => answer.settled);
    await own.admin('SHOW VERSION');
    assert.deepEqual(settled(), [false, false, false, true, false]);
    await inApp.query('COMMIT');
    await waits[0]?.answer.done();
    await waits[1]?.answer.done();
    await own.admin('SHOW VERSION');
    assert.deepEqual(settled(), [true, true, false, true, false]);
    await inOther.query('COMMIT');
    for (const { con, command, answer } of waits) {
      assert.equal((await answer.done()).command, command.startsWith('PAUSE') ? 'PAUSE' : WAIT_CLOSE_TAG);
      await con.end();
    }
    await Promise.all([inApp.end(), inOther.end()]);
  });

  for (const [pause, resume] of [
    ['PAUSE', 'RESUME'],
    ['PAUSE app', 'RESUME app'],
  ] as const) {
    itAlone(`${resume} ends a waiting ${pause} with an error`, async (own) => {
      const busy = await own.connect({ database: 'app' });
      await busy.query('BEGIN');
      const con = await own.console();
      const waits = fails(con.query(pause), 'canceling statement due to RESUME', '57014');
      await own.logWait(/LOG PAUSE .*command issued/);
      await own.admin(resume);
      await waits;
      assert.equal((await con.query('SHOW VERSION')).command, 'SHOW');
      await busy.query('COMMIT');
      await busy.query('SELECT 1');
      await Promise.all([busy.end(), con.end()]);
    });
  }

  itAlone('SIGUSR2 ends a waiting PAUSE with an error', async (own) => {
    const busy = await own.connect({ database: 'app' });
    await busy.query('BEGIN');
    const con = await own.console();
    const waits = fails(con.query('PAUSE'), 'canceling statement due to RESUME', '57014');
    await own.logWait(/LOG PAUSE command issued/);
    own.signal('SIGUSR2');
    await waits;
    await Promise.all([busy.end(), con.end()]);
  });

  itAlone('RELOAD that removes the database ends a waiting PAUSE and WAIT_CLOSE of it', async (own) => {
    const busy = await own.connect({ database: 'app' });
    await busy.query('BEGIN');
    busy.on('error', () => {});
    await own.admin('RECONNECT app');
    const [first, second] = [await own.console(), await own.console()];
    const paused = fails(first.query('PAUSE app'), 'no such database: app');
    const closed = watch(second.query('WAIT_CLOSE app'), 'WAIT_CLOSE app');
    await own.logWait(/LOG PAUSE 'app' command issued/);
    await own.logWait(/LOG WAIT_CLOSE 'app' command issued/);
    own.rewrite({ databases: { other: cluster().connstr() } });
    await own.admin('RELOAD');
    await paused;
    assert.equal((await closed.done()).command, WAIT_CLOSE_TAG);
    await Promise.all([first.end(), second.end(), busy.end().catch(() => {})]);
  });
});
