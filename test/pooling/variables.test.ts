/*
 * The variables that PgBouncer 1.26 tracks: a client keeps its values on every server, and no other client gets them.
 * The newest PostgreSQL reports all of them; the machine's may not.
 */

import assert from 'node:assert/strict';
import { ask, backendOf, errorIn, login, refusal, rowsBecome, withPooler } from '../harness/answers';
import { errorResponse, ScriptedServer } from '../harness/attacked-pooler';
import { PgCluster } from '../harness/cluster';
import { oneRow, READY, WELCOME } from '../harness/hostile/fake-server';
import { after, before, describe } from '../harness/limits';
import { eventually, it } from '../harness/machine';
import { RawClient } from '../harness/raw-client';
import { withRebootChain } from '../harness/reboot-chain';

/** One server for all clients, without a reset between them. */
const SHARED = { pool_mode: 'transaction', default_pool_size: 1 };

const clusters: { what: string; newest: boolean; pg: PgCluster | null }[] = [
  { what: "the machine's PostgreSQL", newest: false, pg: null },
  { what: 'the newest PostgreSQL', newest: true, pg: null },
];

before(async () => {
  for (const one of clusters) {
    one.pg = await PgCluster.start({ newest: one.newest });
    await one.pg.createUser('ann', '', 'none');
    await one.pg.createUser('Ann', '', 'none');
    await one.pg.createUser('ben', '', 'none');
  }
});
after(async () => {
  for (const one of clusters) await one.pg?.stop();
});

/** The value that a client sets, and how the server spells it. */
const VALUES: Record<string, { set: string; shown: string }> = {
  default_transaction_read_only: { set: 'true', shown: 'on' },
  IntervalStyle: { set: 'ISO_8601', shown: 'iso_8601' },
  scram_iterations: { set: '5000', shown: '5000' },
  search_path: { set: 'One, "Two"', shown: "'one','Two'" },
  session_authorization: { set: 'ann', shown: 'ann' },
};

/** How the server shows a value that was set by `SET name = 'a','b'`: without the quotes that it does not need. */
function spelled(name: string, shown: string): string {
  return name === 'search_path' ? 'one, "Two"' : shown;
}

for (const one of clusters) {
  const pg = (): PgCluster => one.pg as PgCluster;

  /** The version of the server, for example 15. */
  async function major(): Promise<number> {
    const { rows } = await pg().sql("SELECT current_setting('server_version_num')::int / 10000 AS major");
    return rows[0].major;
  }

  /** Names of VALUES that the server knows; the oldest with all of them is 16. */
  async function names(): Promise<string[]> {
    const known = await major();
    return Object.keys(VALUES).filter((name) => name !== 'scram_iterations' || known >= 16);
  }

  /** Names of VALUES that the server reports at login, by its own word. */
  async function reported(): Promise<string[]> {
    const direct = await RawClient.connect({ port: pg().port });
    await direct.login();
    await direct.end();
    return (await names()).filter((name) => name in direct.parameters);
  }

  describe(`tracked variables with ${one.what}`, () => {
    it('a value of the startup packet, or in its options, is kept, and other clients do not get it', async () => {
      await withPooler({ cluster: pg(), settings: SHARED }, async (pooler) => {
        for (const name of await names()) {
          const { set, shown } = VALUES[name] as { set: string; shown: string };
          const plain = await login(pooler);
          const original = await ask(plain, `SHOW ${name}`);
          const options = `-c ${name}=${set.replaceAll(' ', '\\ ')}`;
          for (const params of [{ [name]: set }, { options }] as Record<string, string>[]) {
            const tuned = await login(pooler, { params });
            assert.equal(await ask(tuned, `SHOW ${name}`), spelled(name, shown));
            assert.equal(await ask(plain, `SHOW ${name}`), original);
            assert.equal(await ask(tuned, `SHOW ${name}`), spelled(name, shown), 'again, after another client');
            assert.equal(await backendOf(plain), await backendOf(tuned));
            await tuned.end();
          }
          assert.equal(await ask(await login(pooler), `SHOW ${name}`), original, 'a client that came later');
        }
      });
    });

    it('the values are told at login', async () => {
      await withPooler({ cluster: pg(), settings: SHARED }, async (pooler) => {
        const defaults = (await login(pooler)).parameters;
        for (const name of await names()) {
          const { set } = VALUES[name] as { set: string };
          assert.equal((await login(pooler, { params: { [name]: set } })).parameters[name], set);
        }
        for (const name of await reported()) assert.notEqual(defaults[name], undefined, name);
      });
    });

    it('a value that the server reports follows the client that has changed it with SET', async () => {
      await withPooler({ cluster: pg(), settings: SHARED }, async (pooler) => {
        for (const name of await reported()) {
          const { shown } = VALUES[name] as { shown: string };
          const [tuned, plain] = [await login(pooler), await login(pooler)];
          const original = await ask(plain, `SHOW ${name}`);
          await ask(tuned, `SET ${name} = ${name === 'search_path' ? shown : `'${shown}'`}`);
          assert.equal(await ask(plain, `SHOW ${name}`), original);
          assert.equal(await ask(tuned, `SHOW ${name}`), spelled(name, shown));
        }
      });
    });

    it('SET SESSION AUTHORIZATION stays with its client until that client resets it', async () => {
      await withPooler({ cluster: pg(), settings: SHARED }, async (pooler) => {
        for (const reset of ['RESET SESSION AUTHORIZATION', 'DISCARD ALL']) {
          const [other, plain] = [await login(pooler), await login(pooler)];
          await ask(other, 'SET SESSION AUTHORIZATION ann');
          assert.equal(await ask(plain, 'SELECT current_user'), 'postgres');
          assert.equal(await ask(other, 'SELECT current_user'), 'ann');
          await ask(other, reset);
          assert.equal(await ask(plain, 'SELECT current_user'), 'postgres');
          assert.equal(await ask(other, 'SELECT current_user'), 'postgres', reset);
        }
      });
    });

    it('values of startup packets apply to the other clients after a client has run RESET', async () => {
      await withPooler({ cluster: pg(), settings: SHARED }, async (pooler) => {
        const told = await reported();
        for (const name of await names()) {
          const { set, shown } = VALUES[name] as { set: string; shown: string };
          const params = { [name]: set };
          const [one, other] = [await login(pooler, { params }), await login(pooler, { params })];
          for (const reset of ['RESET ALL', `RESET ${name}`, 'BEGIN; RESET ALL; ROLLBACK']) {
            assert.equal(await ask(one, `SHOW ${name}`), spelled(name, shown));
            await ask(one, reset);
            assert.equal(await ask(other, `SHOW ${name}`), spelled(name, shown), `after ${reset} of another client`);
            if (told.includes(name)) break;
          }
          await one.end();
          await other.end();
        }
      });
    });

    it('a client without values of its own follows new defaults of ALTER ROLE, as soon as servers are new', async () => {
      await withPooler({ cluster: pg(), settings: SHARED, userlist: { ben: '' } }, async (pooler) => {
        const who = { user: 'ben' };
        const [plain, tuned] = [
          await login(pooler, who),
          await login(pooler, { ...who, params: { search_path: 'mine' } }),
        ];
        assert.equal(await ask(plain, 'SHOW search_path'), '"$user", public');
        await pg().sql('ALTER ROLE ben SET search_path = new_default');
        await pg().killBackends("usename = 'ben'");
        await rowsBecome(pooler, 'SERVERS', { user: 'ben' }, 0);
        const late = await login(pooler, who);
        for (let turn = 0; turn < 2; turn++) {
          assert.equal(await ask(tuned, 'SHOW search_path'), 'mine');
          assert.equal(await ask(plain, 'SHOW search_path'), 'new_default');
          assert.equal(await ask(late, 'SHOW search_path'), 'new_default');
        }
        await pg().sql('ALTER ROLE ben RESET search_path');
      });
    });

    it('what connect_query has set is the default of clients', async () => {
      const known = await reported();
      const name = known.includes('search_path') ? 'search_path' : 'IntervalStyle';
      const [first, second] = name === 'search_path' ? ['ours', 'theirs'] : ['iso_8601', 'sql_standard'];
      const databases = { postgres: pg().connstr('postgres', `connect_query='SET ${name} TO ${first}'`) };
      await withPooler({ databases, settings: SHARED }, async (pooler) => {
        const [plain, tuned] = [await login(pooler), await login(pooler, { params: { [name]: second as string } })];
        for (let turn = 0; turn < 2; turn++) {
          assert.equal(await ask(tuned, `SHOW ${name}`), second);
          assert.equal(await ask(plain, `SHOW ${name}`), first);
        }
        assert.equal(plain.parameters[name], first);
      });
    });

    it('a default that changes by a reload of the server applies to clients without a value of their own', async () => {
      await withPooler({ cluster: pg(), settings: SHARED }, async (pooler) => {
        const params = { default_transaction_read_only: 'off' };
        const [plain, tuned] = [await login(pooler), await login(pooler, { params })];
        const show = 'SHOW default_transaction_read_only';
        assert.equal(await ask(plain, show), 'off');
        await pg().sql('ALTER SYSTEM SET default_transaction_read_only = on');
        await pg().sql('SELECT pg_reload_conf()');
        await eventually('the new default', async () => (await ask(plain, show)) === 'on');
        for (let turn = 0; turn < 2; turn++) {
          assert.equal(await ask(tuned, show), 'off');
          assert.equal(await ask(plain, show), 'on');
          assert.equal(await ask(await login(pooler), show), 'on');
        }
        const direct = { options: '-c default_transaction_read_only=off' };
        await pg().sql('ALTER SYSTEM RESET default_transaction_read_only', direct);
        await pg().sql('SELECT pg_reload_conf()');
      });
    });

    it('a value equal to the default is told to the client that sets it', async () => {
      await withPooler({ cluster: pg(), settings: SHARED }, async (pooler) => {
        const [client, plain] = [await login(pooler), await login(pooler)];
        const original = client.parameters.IntervalStyle;
        await ask(client, "SET IntervalStyle = 'iso_8601'");
        assert.equal(client.parameters.IntervalStyle, 'iso_8601');
        assert.equal(await ask(plain, 'SHOW IntervalStyle'), original);
        await ask(client, 'RESET ALL');
        assert.equal(client.parameters.IntervalStyle, original);
        assert.equal(await ask(client, 'SHOW IntervalStyle'), original);
      });
    });

    it('names that differ only in case are different in search_path and session_authorization', async () => {
      await withPooler({ cluster: pg(), settings: SHARED }, async (pooler) => {
        for (const [name, query] of [
          ['session_authorization', 'SELECT session_user'],
          ['search_path', 'SHOW search_path'],
        ] as const) {
          const quoted = name === 'search_path' ? '"Ann"' : 'Ann';
          const upper = await login(pooler, { params: { [name]: quoted } });
          const lower = await login(pooler, { params: { [name]: 'ann' } });
          for (let turn = 0; turn < 2; turn++) {
            assert.equal(await ask(upper, query), quoted);
            assert.equal(await ask(lower, query), 'ann');
          }
        }
      });
    });

    it('values that are not ASCII are in the encoding of their client, whatever that of the last client was', async () => {
      const names = ['\u00e9', '\u00c3\u00a9', '\u0439'];
      for (const name of names) await pg().sql(`CREATE SCHEMA "${name}"`);
      const utf8 = (text: string) => Buffer.from(text).toString('latin1');
      const params: Record<string, string>[] = [
        { search_path: utf8('\u00e9') },
        { client_encoding: 'LATIN1' },
        { search_path: utf8('\u00e9'), application_name: utf8('\u00c9') },
        { client_encoding: 'LATIN1', search_path: '\xe9' },
        { client_encoding: 'WIN1251', search_path: '\xe9' },
        { client_encoding: 'EUC_JP' },
        { application_name: utf8('\u00c9') },
        { client_encoding: 'WIN1251', search_path: '\xe9' },
      ];
      const codes = ['233', '112', '233', '233', '1081', '112', '112', '1081'];
      await withPooler({ cluster: pg(), settings: SHARED }, async (pooler) => {
        const clients = await Promise.all(params.map((each) => login(pooler, { params: each })));
        for (let turn = 0; turn < 2; turn++) {
          for (const [i, client] of clients.entries()) {
            const wanted = [codes[i], params[i]?.client_encoding ?? 'UTF8'];
            const found = await ask(client, 'SELECT ascii(current_schema())');
            assert.deepEqual([found, await ask(client, 'SHOW client_encoding')], wanted, `client ${i}`);
          }
        }
      });
      for (const name of names) await pg().sql(`DROP SCHEMA "${name}"`);
    });

    it('a search_path means the same as in a direct connection, or is refused as there', async () => {
      const lists = ['a', 'a,b', ' a , "B" ', '$user,public', '"$user", public', 'a-b,c.d', '', '""', "it's", '"x""y"'];
      const broken = ['a b', 'a,', ',a', '"a', '"a"b', 'a; BEGIN', 'pg_temp; DROP TABLE x'];
      const all = await pg().sql(`SELECT unnest(ARRAY['a', 'b', 'B', 'a-b', 'c.d', 'it''s', 'x"y']) AS name`);
      for (const { name } of all.rows) await pg().sql(`CREATE SCHEMA "${name.replaceAll('"', '""')}"`);
      await withPooler({ cluster: pg(), settings: SHARED }, async (pooler) => {
        for (const list of lists) {
          const params = { search_path: list };
          const direct = await RawClient.connect({ port: pg().port });
          await direct.login({ params });
          const effect = 'SELECT current_schemas(false)';
          assert.equal(await ask(await login(pooler, { params }), effect), await ask(direct, effect), list);
          await direct.end();
        }
        for (const list of broken) {
          const params = { search_path: list };
          const direct = await RawClient.connect({ port: pg().port });
          assert.equal((await direct.login({ params })).at(-1)?.type, 'E', `PostgreSQL takes ${list}`);
          await direct.destroy();
          assert.equal(await refusal(pooler, { params }), `invalid value for parameter "search_path": "${list}"`);
          const options = `-c search_path=${list.replaceAll(' ', '\\ ')}`;
          assert.match(await refusal(pooler, { params: { options } }), /^invalid value for parameter "search_path"/);
        }
      });
      for (const { name } of all.rows) await pg().sql(`DROP SCHEMA "${name.replaceAll('"', '""')}"`);
    });
  });
}

it('a server that ends its session instead of setting variables does not blame them', async () => {
  const server = await ScriptedServer.start();
  const reason = 'terminating connection due to administrator command';
  server.play('ending', async ({ socket, next }) => {
    socket.write(WELCOME);
    for (let msg = await next(); msg !== null; msg = await next()) {
      if (msg.type !== 'Q') continue;
      const query = msg.body.toString('latin1');
      if (query.startsWith('SET')) socket.end(errorResponse('SFATAL', 'VFATAL', 'C57P01', `M${reason}`));
      else socket.write(Buffer.concat([oneRow('1'), READY]));
    }
  });
  const databases = { ending: `host=127.0.0.1 port=${server.port}` };
  await withPooler({ databases, settings: { ...SHARED, server_tls_sslmode: 'disable' } }, async (pooler) => {
    const client = await login(pooler, { database: 'ending', params: { TimeZone: 'Asia/Tokyo' } });
    assert.equal(errorIn(await client.query('SELECT 1'))?.M, reason);
  });
  await server.stop();
});

describe('tracked variables that no server reports', () => {
  const pg = (): PgCluster => clusters[0]?.pg as PgCluster;
  const seqscan = (client: RawClient): Promise<string | null> => ask(client, 'SHOW enable_seqscan');
  const off = { params: { enable_seqscan: 'off' } };

  it('a value of the startup packet applies, and the next client of the server does not get it', async () => {
    const settings = { ...SHARED, track_extra_parameters: 'enable_seqscan' };
    await withPooler({ cluster: pg(), settings }, async (pooler) => {
      const [tuned, plain] = [await login(pooler, off), await login(pooler)];
      for (let turn = 0; turn < 2; turn++) {
        assert.equal(await seqscan(tuned), 'off');
        assert.equal(await seqscan(plain), 'on');
      }
      // two different values, with and without a client between them that has none
      const on = await login(pooler, { params: { enable_seqscan: 'on' } });
      assert.deepEqual([await seqscan(tuned), await seqscan(on), await seqscan(tuned)], ['off', 'on', 'off']);
    });
  });

  it('a value of the startup packet applies again after the client has run DISCARD ALL', async () => {
    const settings = { ...SHARED, track_extra_parameters: 'enable_seqscan' };
    await withPooler({ cluster: pg(), settings }, async (pooler) => {
      const [tuned, plain] = [await login(pooler, off), await login(pooler)];
      assert.equal(await seqscan(tuned), 'off');
      await ask(tuned, 'DISCARD ALL');
      assert.equal(await seqscan(tuned), 'off');
      await ask(tuned, 'DISCARD ALL');
      assert.equal(await seqscan(plain), 'on');
    });
  });

  for (const query of ['DISCARD ALL', 'RESET ALL', 'SELECT 1']) {
    it(`server_reset_query = ${query} neither loses a value nor passes it on`, async () => {
      const settings = { default_pool_size: 1, server_reset_query: query, track_extra_parameters: 'enable_seqscan' };
      await withPooler({ cluster: pg(), settings }, async (pooler) => {
        for (const who of [off, off, {}, off, {}, {}]) {
          const client = await login(pooler, who);
          assert.equal(await seqscan(client), who === off ? 'off' : 'on');
          await client.end();
        }
      });
    });
  }

  it('a value is kept, and not passed on, across an online reboot', async () => {
    const settings = { ...SHARED, track_extra_parameters: 'enable_seqscan' };
    await withRebootChain({ cluster: pg(), settings, userlist: { postgres: '' } }, async (chain) => {
      await chain.start('ts');
      const [tuned, plain] = [await chain.raw(), await chain.raw()];
      await tuned.login(off);
      await plain.login();
      assert.equal(await seqscan(tuned), 'off');
      await chain.reboot('ts');
      assert.equal(await seqscan(plain), 'on');
      assert.equal(await seqscan(tuned), 'off');
      await chain.reboot('ts');
      assert.equal(await seqscan(tuned), 'off');
      assert.equal(await seqscan(plain), 'on');
      for (const client of [tuned, plain]) await client.end();
    });
  });
});

describe('ignore_startup_parameters and tracked variables', () => {
  const pg = (): PgCluster => clusters[0]?.pg as PgCluster;
  const wanted: Record<string, string> = { search_path: 'other', IntervalStyle: 'iso_8601', TimeZone: 'Asia/Tokyo' };

  /** What takes effect of a client's startup parameters, by their names. */
  async function effective(settings: Record<string, string>): Promise<string[]> {
    const seen: string[] = [];
    await withPooler({ cluster: pg(), settings: { ...SHARED, ...settings } }, async (pooler) => {
      const options = Object.entries(wanted).map(([name, value]) => `-c ${name}=${value}`);
      for (const params of [wanted, { options: options.join(' ') }] as Record<string, string>[]) {
        const client = await login(pooler, { params });
        const at = params === wanted ? '' : 'options: ';
        for (const [name, value] of Object.entries(wanted)) {
          if ((await ask(client, `SHOW ${name}`)) === value) seen.push(at + name);
        }
      }
    });
    return seen;
  }

  const inOptions = ['options: search_path', 'options: IntervalStyle', 'options: TimeZone'];
  const cases: [string, string, string[]][] = [
    ['', 'IntervalStyle', [...Object.keys(wanted), ...inOptions]],
    ['search_path', 'IntervalStyle', ['IntervalStyle', 'TimeZone', 'options: IntervalStyle', 'options: TimeZone']],
    ['search_path', 'search_path', [...Object.keys(wanted), ...inOptions]],
    ['IntervalStyle', 'IntervalStyle', [...Object.keys(wanted), ...inOptions]],
    ['IntervalStyle', '', ['search_path', 'TimeZone', 'options: search_path', 'options: TimeZone']],
    ['options', 'IntervalStyle', [...Object.keys(wanted), 'options: IntervalStyle', 'options: TimeZone']],
    ['TimeZone', '', [...Object.keys(wanted), ...inOptions]],
  ];
  for (const [ignored, extra, expected] of cases) {
    it(`ignoring "${ignored}" and tracking "${extra}": ${expected.join(', ')} take effect`, async () => {
      const settings = { ignore_startup_parameters: ignored, track_extra_parameters: extra };
      assert.deepEqual(await effective(settings), expected);
    });
  }
});
