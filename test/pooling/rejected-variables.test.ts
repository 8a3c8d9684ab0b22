/*
 * A server rejects the variables that its client has: the client gets PostgreSQL's own error, and the server is used
 * again, with the variables that it had before.
 */

import assert from 'node:assert/strict';
import { ask, backendOf, errorIn, login, show, withPooler } from '../harness/answers';
import { errorResponse, ScriptedServer } from '../harness/attacked-pooler';
import { PgCluster } from '../harness/cluster';
import { oneRow, READY, WELCOME } from '../harness/hostile/fake-server';
import { after, before, describe } from '../harness/limits';
import { eventually, it } from '../harness/machine';
import { cstring, int16, int32, type Login, letters, type Message, message, RawClient } from '../harness/raw-client';
import { withRebootChain } from '../harness/reboot-chain';

/** One server for all clients, without a reset between them. */
const SHARED = { pool_mode: 'transaction', default_pool_size: 1, track_extra_parameters: 'enable_seqscan, role' };
const USERS = { ann: '', ben: '' };

const clusters: { what: string; newest: boolean; pg: PgCluster | null }[] = [
  { what: "the machine's PostgreSQL", newest: false, pg: null },
  { what: 'the newest PostgreSQL', newest: true, pg: null },
];

before(async () => {
  for (const one of clusters) {
    one.pg = await PgCluster.start({ newest: one.newest });
    for (const name of ['ann', 'ben']) await one.pg.createUser(name, '', 'none');
  }
});
after(async () => {
  for (const one of clusters) await one.pg?.stop();
});

/** Values that PostgreSQL rejects for the user ann. */
const REJECTED: Record<string, string> = {
  TimeZone: 'No/Where',
  client_encoding: 'no_such',
  DateStyle: 'no_such',
  IntervalStyle: 'no_such',
  default_transaction_read_only: 'no_such',
  session_authorization: 'ben',
  role: 'ben',
  enable_seqscan: 'no_such',
};

/** Sends Parse, Bind, Execute and Sync of a query in one piece, as drivers do. */
async function extended(client: RawClient, sql: string): Promise<Message[]> {
  const packets = [
    message('P', cstring(''), cstring(sql), int16(0)),
    message('B', cstring(''), cstring(''), int16(0), int16(0), int16(0)),
    message('E', cstring(''), int32(0)),
    message('S'),
  ];
  await client.send(Buffer.concat(packets));
  return client.until('Z');
}

/** The error that answers a client's next query, after which its connection must end. */
async function rejection(client: RawClient, send = (sql: string) => client.query(sql)): Promise<string> {
  const answer = await send('SELECT 1');
  assert.equal(letters(answer), 'E');
  assert.equal(await client.next(), null, 'the connection stays open');
  await client.destroy();
  return described(answer);
}

/** What a user reads of an error. */
function described(answer: Message[]): string {
  const { S, C, M, D, H } = errorIn(answer) ?? {};
  // before PostgreSQL 16, the spelling of the name in a message is not that of the packet
  return [S, C, M?.replace('IntervalStyle', 'intervalstyle'), D, H].filter((field) => field !== undefined).join('|');
}

/** PostgreSQL's own error for the same login. */
async function directError(pg: PgCluster, who: Login): Promise<string> {
  const direct = await RawClient.connect({ port: pg.port });
  const answer = await direct.login(who);
  assert.equal(answer.at(-1)?.type, 'E', 'PostgreSQL accepts it');
  await direct.destroy();
  return described(answer);
}

for (const one of clusters) {
  const pg = (): PgCluster => one.pg as PgCluster;

  describe(`variables that ${one.what} rejects`, () => {
    for (const mode of ['transaction', 'session', 'statement']) {
      it(`the client gets the error of a direct login, and the server is kept: ${mode} pooling`, async () => {
        const settings = { ...SHARED, pool_mode: mode, server_reset_query: '' };
        await withPooler({ cluster: pg(), settings, userlist: USERS }, async (pooler) => {
          const first = await login(pooler, { user: 'ann' });
          const pid = await backendOf(first);
          await first.end();
          for (const [name, value] of Object.entries(REJECTED)) {
            const who = { user: 'ann', database: 'postgres', params: { [name]: value } };
            const expected = await directError(pg(), who);
            const simple = await login(pooler, who);
            assert.equal(await rejection(simple), expected, name);
            const tuned = await login(pooler, who);
            assert.equal(await rejection(tuned, (sql) => extended(tuned, sql)), expected, `${name}, extended`);
            await pooler.logWait(/varcache_apply failed: ERROR: /);
            const next = await login(pooler, { user: 'ann' });
            assert.equal(await backendOf(next), pid, `the server is closed after ${name}`);
            await next.end();
          }
        });
      });
    }

    it('variables that were set before the rejected one are as before, for clients with and without values', async () => {
      await withPooler({ cluster: pg(), settings: SHARED, userlist: USERS }, async (pooler) => {
        const user = 'ann';
        const shown = ['TimeZone', 'IntervalStyle', 'search_path', 'enable_seqscan'];
        const plain = await login(pooler, { user });
        const values = async (client: RawClient): Promise<(string | null)[]> => {
          const seen: (string | null)[] = [];
          for (const name of shown) seen.push(await ask(client, `SHOW ${name}`));
          return seen;
        };
        const defaults = await values(plain);
        const pid = await backendOf(plain);
        const own = { TimeZone: 'Asia/Tokyo', IntervalStyle: 'iso_8601', search_path: 'mine', enable_seqscan: 'off' };
        const tuned = await login(pooler, { user, params: own });
        const bad = { ...own, TimeZone: 'Asia/Kabul', search_path: 'theirs', role: 'ben' };
        for (let turn = 0; turn < 2; turn++) {
          assert.match(await rejection(await login(pooler, { user, params: bad })), /^FATAL\|42501\|/);
          assert.deepEqual(await values(plain), defaults);
          assert.match(await rejection(await login(pooler, { user, params: bad })), /^FATAL\|42501\|/);
          assert.deepEqual(await values(tuned), Object.values(own));
        }
        // the rejected statements reset what the server has of `tuned`, which that client then still has
        assert.match(await rejection(await login(pooler, { user, params: { role: 'ben' } })), /^FATAL\|42501\|/);
        assert.deepEqual(await values(tuned), Object.values(own));
        assert.equal(await backendOf(plain), pid);
      });
    });

    it('a value that the server has accepted and then rejects ends the session in the same way', async () => {
      await withPooler({ cluster: pg(), settings: SHARED }, async (pooler) => {
        await pg().createUser('temporary', '', 'none');
        const [client, other] = [await login(pooler), await login(pooler)];
        await ask(client, 'SET SESSION AUTHORIZATION temporary');
        const pid = await backendOf(other);
        await pg().sql('DROP ROLE temporary');
        assert.equal(await rejection(client), 'FATAL|22023|role "temporary" does not exist');
        assert.equal(await ask(other, 'SELECT session_user'), 'postgres');
        assert.equal(await backendOf(other), pid);
      });
    });

    it('a client that waits gets the server of a client whose variables are rejected', async () => {
      await withPooler({ cluster: pg(), settings: SHARED, userlist: USERS }, async (pooler) => {
        const [holder, bad, next] = [
          await login(pooler, { user: 'ann' }),
          await login(pooler, { user: 'ann', params: { TimeZone: 'No/Where' } }),
          await login(pooler, { user: 'ann' }),
        ];
        await ask(holder, 'BEGIN');
        const pid = await backendOf(holder);
        const answers = [rejection(bad), backendOf(next)] as const;
        await eventually('both to wait', async () => {
          return (await show(pooler, 'CLIENTS', { user: 'ann', state: 'waiting' })).length === 2;
        });
        await ask(holder, 'COMMIT');
        assert.match(await answers[0], /^FATAL\|22023\|/);
        assert.equal(await answers[1], pid);
      });
    });

    it('after an online reboot, values from before it are rejected in the same way', async () => {
      await withRebootChain({ cluster: pg(), settings: SHARED, userlist: USERS }, async (chain) => {
        await chain.start('ts');
        const [bad, plain, tuned] = [await chain.raw(), await chain.raw(), await chain.raw()];
        await bad.login({
          user: 'ann',
          database: 'postgres',
          params: { enable_seqscan: 'off', session_authorization: 'ben' },
        });
        await plain.login({ user: 'ann', database: 'postgres' });
        await tuned.login({ user: 'ann', database: 'postgres', params: { enable_seqscan: 'off' } });
        assert.equal(await ask(tuned, 'SHOW enable_seqscan'), 'off');
        const pid = await backendOf(tuned);
        await chain.reboot('ts');
        assert.match(await rejection(bad), /^FATAL\|42501\|permission denied to set session authorization/);
        assert.equal(await ask(plain, 'SHOW enable_seqscan'), 'on');
        assert.equal(await ask(tuned, 'SHOW enable_seqscan'), 'off');
        assert.equal(await backendOf(plain), pid);
        for (const client of [plain, tuned]) await client.end();
      });
    });
  });
}

describe('servers that reject variables in other ways', () => {
  const settings = { ...SHARED, server_tls_sslmode: 'disable' };
  const error = errorResponse('SERROR', 'VERROR', 'C22023', 'Mnot this one', 'Hanother');

  it('a server that rejects them in the middle of an online reboot is closed, and the client gets the error', async () => {
    const server = await ScriptedServer.start();
    let release: (() => void) | null = null;
    server.play('slow', async ({ socket, next }) => {
      socket.write(WELCOME);
      for (let msg = await next(); msg?.type === 'Q'; msg = await next()) {
        if (!msg.body.toString('latin1').startsWith('SET')) socket.write(oneRow('1'));
        else release = () => void socket.write(Buffer.concat([error, READY]));
      }
      socket.end();
    });
    const databases = { slow: `host=127.0.0.1 port=${server.port}` };
    const cluster = clusters[0]?.pg as PgCluster;
    await withRebootChain({ cluster, databases, settings, userlist: { postgres: '' } }, async (chain) => {
      await chain.start('ts');
      const client = await chain.raw();
      await client.login({ database: 'slow', params: { TimeZone: 'Asia/Tokyo' } });
      const answer = rejection(client);
      await eventually('the server to have the SET', () => release !== null);
      await chain.reboot('ts');
      (release as unknown as () => void)();
      assert.equal(await answer, 'FATAL|22023|not this one|another');
      await chain.now.log.wait(/S-.*closing because: invalid server parameter/);
    });
    await server.stop();
  });

  it('a server that does not finish its answer is closed soon, and assigned to no client meanwhile', async () => {
    const server = await ScriptedServer.start();
    server.play('silent', async ({ socket, next }) => {
      socket.write(WELCOME);
      for (let msg = await next(); msg?.type === 'Q'; msg = await next()) {
        socket.write(msg.body.toString('latin1').startsWith('SET') ? error : oneRow('1'));
      }
      socket.end();
    });
    const databases = { silent: `host=127.0.0.1 port=${server.port}` };
    await withPooler({ databases, settings }, async (pooler) => {
      const bad = await login(pooler, { database: 'silent', params: { TimeZone: 'Asia/Tokyo' } });
      assert.equal(await rejection(bad), 'FATAL|22023|not this one|another');
      const next = await login(pooler, { database: 'silent' });
      const answer = ask(next, 'SELECT 1');
      await pooler.logWait(/closing because: server_recovery_timeout/);
      assert.equal(await answer, '1');
    });
    await server.stop();
  });
});
