/*
 * Prepared statements with errors, or that a server has lost or cannot use: a client gets the answers of PostgreSQL,
 * and the session continues. Also the unnamed statement, which all clients of a server share.
 */

import assert from 'node:assert/strict';
import { PgCluster } from '../harness';
import { ask, errorIn, login, withPooler } from '../harness/answers';
import type { Bouncer } from '../harness/bouncer';
import { after, before, describe } from '../harness/limits';
import { it } from '../harness/machine';
import { cstring, int16, int32, letters, type Message, message, RawClient, rowValues } from '../harness/raw-client';
import { withRebootChain } from '../harness/reboot-chain';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

const SYNC = message('S');
const EXECUTE = message('E', cstring(''), int32(0));
const DESCRIBE = message('D', Buffer.from('P'), cstring(''));
const parse = (name: string, sql: string) => message('P', cstring(name), cstring(sql), int16(0));
const bind = (name: string) => message('B', cstring(''), cstring(name), int16(0), int16(0), int16(0));
const run = (name: string) => Buffer.concat([bind(name), DESCRIBE, EXECUTE]);
const close = (name: string) => message('C', Buffer.from('S'), cstring(name));

async function exchange(client: RawClient, ...packets: Buffer[]): Promise<Message[]> {
  await client.send(...packets, SYNC);
  return client.until('Z');
}

/** The rows of an answer, or its error as "SQLSTATE text", and the state of the transaction. */
function summary(answer: Message[]): string {
  const error = errorIn(answer);
  const rows = answer.filter((msg) => msg.type === 'D').map((msg) => rowValues(msg).join(','));
  const said = error === null ? rows.join(';') : `${error.C} ${error.M}`;
  return `${said} ${answer.at(-1)?.body.toString('latin1')}`;
}

const use = async (client: RawClient, name: string) => summary(await exchange(client, run(name)));

function withMode(mode: string, body: (pooler: Bouncer) => Promise<void>, settings = {}): Promise<void> {
  const all = { pool_mode: mode, default_pool_size: 1, server_reset_query: '', ...settings };
  return withPooler({ cluster: pg, settings: all }, body);
}

describe('with prepared_errors_fatal', () => {
  const FATAL = { prepared_errors_fatal: 1 };
  const ended = (answer: Message[], text: string) => {
    const error = errorIn(answer);
    assert.deepEqual([error?.S, error?.C, error?.M], ['FATAL', '08P01', text]);
  };

  it('a duplicate statement name ends the connection with prepared_errors_fatal', () =>
    withMode(
      'transaction',
      async (pooler) => {
        const client = await login(pooler);
        await exchange(client, parse('q', 'SELECT 1'));
        assert.equal(await use(client, 'q'), '1 I');
        ended(await exchange(client, parse('q', 'SELECT 2')), 'prepared statement name is already in use');
        assert.equal(await client.next(), null);
      },
      FATAL,
    ));

  for (const [what, packet] of [
    ['Bind', bind('unheard')],
    ['Describe', message('D', Buffer.from('S'), cstring('unheard'))],
  ] as const)
    it(`${what} of an unknown name ends the connection with prepared_errors_fatal`, () =>
      withMode(
        'transaction',
        async (pooler) => {
          const client = await login(pooler);
          ended(await exchange(client, packet), 'prepared statement did not exist');
          assert.equal(await client.next(), null);
        },
        FATAL,
      ));
});

for (const mode of ['transaction', 'statement', 'session'] as const) {
  describe(`in ${mode} mode`, () => {
    it(`a duplicate statement name is an error that keeps the session: ${mode} mode`, () =>
      withMode(mode, async (pooler) => {
        const client = await login(pooler);
        await exchange(client, parse('q', 'SELECT 1'));
        const answer = await exchange(client, parse('q', 'SELECT 2'), run('q'));
        assert.equal(letters(answer), 'EZ');
        assert.equal(summary(answer), '42P05 prepared statement "q" already exists I');
        assert.equal(await use(client, 'q'), '1 I');
      }));

    it(`an error in the query precedes the error about a duplicate name: ${mode} mode`, () =>
      withMode(mode, async (pooler) => {
        const client = await login(pooler);
        await exchange(client, parse('q', 'SELECT 1'));
        assert.match(summary(await exchange(client, parse('q', 'SELEC'))), /^42601 /);
      }));

    it(`an unknown statement is an error that keeps the session: ${mode} mode`, () =>
      withMode(mode, async (pooler) => {
        const client = await login(pooler);
        const wanted = '26000 prepared statement "PGBOUNCER_1" does not exist I';
        assert.equal(await use(client, 'PGBOUNCER_1'), wanted);
        const describeIt = message('D', Buffer.from('S'), cstring('nothing'));
        assert.match(summary(await exchange(client, describeIt, parse('', 'SELECT 1'))), /"nothing" does not exist I$/);
        assert.equal(await ask(client, 'SELECT 7'), '7');
      }));

    it(`a name whose Parse failed can be prepared again at once: ${mode} mode`, () =>
      withMode(mode, async (pooler) => {
        const client = await login(pooler);
        await client.send(parse('q', 'SELECT nothing_such'), SYNC, parse('q', 'SELECT 3'), run('q'), SYNC);
        assert.match(summary(await client.until('Z')), /^42703 /);
        assert.equal(summary(await client.until('Z')), '3 I');
        // a Parse between the failure and Sync is skipped
        const answer = await exchange(client, parse('r', 'SELECT nothing_such'), parse('r', 'SELECT 4'));
        assert.equal(letters(answer), 'EZ');
        assert.equal(letters(await exchange(client, parse('r', 'SELECT 5'))), '1Z');
        assert.equal(await use(client, 'r'), '5 I');
      }));

    it(`a statement whose Close and next Parse are skipped stays as it was: ${mode} mode`, () =>
      withMode(mode, async (pooler) => {
        const client = await login(pooler);
        await exchange(client, parse('q', 'SELECT 1'));
        const answer = await exchange(client, parse('', 'SELEC'), close('q'), parse('q', 'SELECT 2'));
        assert.equal(letters(answer), 'EZ');
        assert.equal(await use(client, 'q'), '1 I');
        assert.equal(letters(await exchange(client, close('q'), parse('q', 'SELECT 3'))), '31Z');
        assert.equal(await use(client, 'q'), '3 I');
      }));

    for (const sql of ['DEALLOCATE Mine', 'deallocate  PREPARE "mine";'])
      it(`${sql} frees a protocol-level name: ${mode} mode`, () =>
        withMode(mode, async (pooler) => {
          const client = await login(pooler);
          await exchange(client, parse('mine', 'SELECT 1'));
          const answer = await client.query(sql);
          assert.equal(letters(answer), 'CZ');
          assert.equal(answer[0]?.body.toString('latin1'), 'DEALLOCATE\0');
          assert.equal(await use(client, 'mine'), '26000 prepared statement "mine" does not exist I');
          assert.match(summary(await client.query(sql)), /^26000 prepared statement "mine" does not exist/);
          // and in the extended protocol, followed by its next Parse
          await exchange(client, parse('mine', 'SELECT 2'));
          const again = await exchange(client, parse('', sql), run(''), parse('mine', 'SELECT 3'), run('mine'));
          assert.equal(letters(again), '12nC12TDCZ');
          assert.equal(again[3]?.body.toString('latin1'), 'DEALLOCATE\0');
          assert.equal(summary(again), '3 I');
        }));
  });
}

describe('in a transaction', () => {
  it('an unknown statement, a duplicate name and a DEALLOCATE fail a transaction, and fail in a failed one', () =>
    withMode('transaction', async (pooler) => {
      const client = await login(pooler);
      await exchange(client, parse('q', 'SELECT 1'));
      for (const bad of [run('nothing'), parse('q', 'SELECT 2')]) {
        await ask(client, 'BEGIN');
        assert.match(summary(await exchange(client, bad)), / E$/);
        assert.match(await use(client, 'q'), /^25P02 .* E$/);
        assert.match(summary(await exchange(client, parse('new', 'SELECT 1'))), /^25P02 .* E$/);
        assert.match(summary(await client.query('DEALLOCATE q')), /^25P02 .* E$/);
        await ask(client, 'ROLLBACK');
        assert.equal(await use(client, 'q'), '1 I');
      }
    }));
});

describe('a statement whose result changes', () => {
  const table = async (pooler: Bouncer, body: (client: RawClient) => Promise<void>) => {
    await pg.sql('DROP TABLE IF EXISTS changing; CREATE TABLE changing AS SELECT 1 AS a');
    const client = await login(pooler);
    await exchange(client, parse('q', 'SELECT * FROM changing'));
    assert.equal(await use(client, 'q'), '1 I');
    await body(client);
  };
  const alter = () => pg.sql('ALTER TABLE changing ADD COLUMN b int DEFAULT 2');

  for (const mode of ['transaction', 'statement'])
    it(`a statement whose result changes is prepared again, and its client sees the new result: ${mode} mode`, () =>
      withMode(mode, (pooler) =>
        table(pooler, async (client) => {
          await alter();
          const answer = await exchange(client, run('q'), parse('', "SELECT 'behind'"), run(''));
          assert.equal(letters(answer), '2TDC12TDCZ');
          assert.equal(summary(answer), '1,2;behind I');
          // a Describe of the statement has been answered in part when the error occurs
          await pg.sql('ALTER TABLE changing ADD COLUMN c int DEFAULT 3');
          const describeIt = message('D', Buffer.from('S'), cstring('q'));
          assert.equal(letters(await exchange(client, describeIt)), 'tEZ');
          assert.equal(letters(await exchange(client, describeIt)), 'tTZ');
          assert.equal(await use(client, 'q'), '1,2,3 I');
        }),
      ));

  it('a statement whose result changes is an error in a transaction, once', () =>
    withMode('transaction', (pooler) =>
      table(pooler, async (client) => {
        await alter();
        await ask(client, 'BEGIN');
        assert.match(await use(client, 'q'), /^0A000 .* E$/);
        await ask(client, 'ROLLBACK');
        await ask(client, 'BEGIN');
        assert.equal(await use(client, 'q'), '1,2 T');
        await ask(client, 'ROLLBACK');
      }),
    ));

  it('a statement whose result changes is an error, once, for a client that does not use Describe', () =>
    withMode('transaction', (pooler) =>
      table(pooler, async (client) => {
        await alter();
        assert.match(summary(await exchange(client, bind('q'), EXECUTE)), /^0A000 .* I$/);
        assert.equal(summary(await exchange(client, bind('q'), EXECUTE)), '1,2 I');
      }),
    ));

  it('a statement whose result changes is an error, once, within a longer pipeline', () =>
    withMode('transaction', (pooler) =>
      table(pooler, async (client) => {
        await alter();
        assert.match(summary(await exchange(client, parse('', 'SELECT 0'), run(''), run('q'))), /^0A000 .* I$/);
        assert.equal(await use(client, 'q'), '1,2 I');
        await pg.sql('ALTER TABLE changing DROP COLUMN b');
        await client.send(run('q'), SYNC, run('q'), SYNC);
        await client.until('Z');
        await client.until('Z');
        assert.equal(await use(client, 'q'), '1 I');
      }),
    ));
});

describe('a server that lost its statements', () => {
  it('a statement whose parameters no longer fit the table is prepared again', () =>
    withMode('transaction', async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      const sql = 'SELECT count(*) FROM kinds WHERE id = $1';
      const useOne = async (client: RawClient) => {
        const values = [int16(0), int16(1), int32(1), Buffer.from('1'), int16(0)];
        return summary(await exchange(client, message('B', cstring(''), cstring('q'), ...values), EXECUTE));
      };
      await ask(a, 'CREATE TABLE kinds AS SELECT 1 AS id');
      try {
        await exchange(a, parse('q', sql));
        assert.equal(await useOne(a), '1 I');
        await ask(a, 'ALTER TABLE kinds ALTER id TYPE text');
        await exchange(b, parse('q', sql));
        assert.match(await useOne(b), /^42883 /);
        assert.equal(await useOne(b), '1 I');
        assert.equal(await useOne(a), '1 I');
      } finally {
        await ask(a, 'DROP TABLE kinds');
      }
    }));

  it('a server connection on which SQL has prepared a name of the pooler is replaced after one error', () =>
    withMode('transaction', async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      await ask(a, 'PREPARE "PGBOUNCER_1" AS SELECT 0');
      assert.match(summary(await exchange(b, parse('q', 'SELECT 1'))), /^42P05 /);
      await exchange(b, parse('q', 'SELECT 1'));
      assert.equal(await use(b, 'q'), '1 I');
    }));

  it('statements lost by DEALLOCATE ALL in a function are prepared again without an error for clients', () =>
    withMode('transaction', async (pooler) => {
      const client = await login(pooler);
      await exchange(client, parse('a', 'SELECT 1'), parse('b', 'SELECT 2'));
      const lose = () => ask(client, "DO $$BEGIN EXECUTE 'DEALLOCATE ALL'; END$$");
      await lose();
      // Bind and Execute alone: the result is unchanged
      const answer = await exchange(client, bind('a'), EXECUTE, bind('b'), EXECUTE);
      assert.equal(letters(answer), '2DC2DCZ');
      assert.equal(summary(answer), '1;2 I');
      await lose();
      await ask(client, 'BEGIN');
      assert.equal(await use(client, 'a'), '26000 prepared statement "a" does not exist E');
      await ask(client, 'ROLLBACK');
      await ask(client, 'BEGIN');
      assert.equal(await use(client, 'b'), '2 T');
      assert.equal(await use(client, 'a'), '1 T');
      await ask(client, 'COMMIT');
    }));
});

describe('the unnamed statement', () => {
  for (const [mode, limit] of [
    ['transaction', 200],
    ['transaction', 0],
    ['statement', 200],
  ] as const)
    it(`the unnamed statement belongs to its client in ${mode} mode with max_prepared_statements = ${limit}`, () =>
      withMode(
        mode,
        async (pooler) => {
          const [a, b] = [await login(pooler), await login(pooler)];
          await exchange(a, parse('', "SELECT 'of a'"));
          await exchange(b, parse('', "SELECT 'of b'"));
          for (let i = 0; i < 2; i++) {
            assert.equal(await use(a, ''), 'of a I');
            const answer = await exchange(b, message('D', Buffer.from('S'), cstring('')), run(''));
            assert.equal(letters(answer), 'tT2TDCZ');
            assert.equal(summary(answer), 'of b I');
          }
          await exchange(a, parse('', 'SELECT nothing_such'));
          assert.equal(await use(a, ''), '26000 unnamed prepared statement does not exist I');
          await ask(b, 'SELECT 1');
          await exchange(a, parse('', "SELECT 'of a'"));
          assert.equal(await use(b, ''), '26000 unnamed prepared statement does not exist I');
        },
        { max_prepared_statements: limit },
      ));

  it('an unnamed statement that is too large to be kept is not used by other clients', () =>
    withMode('transaction', async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      await exchange(a, parse('', `SELECT length('${'x'.repeat(70_000)}')`));
      assert.equal(await use(a, ''), '70000 I');
      await exchange(b, parse('', "SELECT 'of b'"));
      assert.equal(await use(a, ''), '26000 unnamed prepared statement does not exist I');
      assert.equal(await use(b, ''), 'of b I');
    }));

  it('an unnamed statement whose Parse is skipped is not confused with another within a pipeline', () =>
    withMode('transaction', async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      await exchange(b, parse('', "SELECT 'of b'"));
      await a.send(bind('nothing'), parse('', "SELECT 'of a'"), SYNC, run(''), SYNC);
      assert.match(summary(await a.until('Z')), /^26000 /);
      assert.equal(summary(await a.until('Z')), '26000 unnamed prepared statement does not exist I');
      assert.equal(await use(b, ''), 'of b I');
    }));

  it('the unnamed statement stays if the server skips what would replace it, as in a direct connection', () =>
    withMode('transaction', async (pooler) => {
      const [a, b] = [await login(pooler), await login(pooler)];
      const direct = await RawClient.connect({ port: pg.port });
      await direct.login();
      for (const client of [direct, a]) {
        const isThen = async (wanted: string, ...packets: Buffer[]) => {
          assert.match(summary(await exchange(client, ...packets)), /^(26000|42703) /);
          await exchange(b, parse('', "SELECT 'of b'"));
          assert.equal(await use(client, ''), wanted);
        };
        const [one, two] = [parse('', "SELECT 'one'"), parse('', "SELECT 'two'")];
        await exchange(client, one);
        await isThen('one I', bind('nothing'), two);
        await isThen('one I', bind('nothing'), close(''), two, parse('', "SELECT 'three'"));
        await isThen('one I', bind('nothing'), message('Q', cstring('SELECT 2')), two);
        await isThen('two I', two, bind('nothing'), one);
        const none = '26000 unnamed prepared statement does not exist I';
        await isThen(none, parse('', 'SELECT nothing_such'), one);
        await exchange(client, one);
        await isThen(none, bind(''), close(''), EXECUTE, bind('nothing'), two);
      }
      await direct.end();
    }));

  it('the unnamed statement belongs to its client in a new process', () =>
    withRebootChain({ cluster: pg, settings: { pool_mode: 'transaction', default_pool_size: 1 } }, async (chain) => {
      await chain.start('ts');
      const [a, b] = [await chain.raw(), await chain.raw()];
      for (const client of [a, b]) await client.login();
      await exchange(a, parse('', "SELECT 'of a'"), parse('q', 'SELECT 1'));
      await exchange(b, parse('', "SELECT 'of b'"));
      await chain.reboot('ts');
      for (let i = 0; i < 2; i++) {
        assert.equal(await use(a, ''), 'of a I');
        assert.equal(await use(b, ''), 'of b I');
      }
      assert.equal(await use(a, 'q'), '1 I');
      assert.match(summary(await exchange(a, parse('q', 'SELECT 2'))), /^42P05 prepared statement "q" /);
      await a.end();
      await b.end();
    }));
});

it('the error about a wrong number of parameters has the name that the client uses', () =>
  withMode('transaction', async (pooler) => {
    const client = await login(pooler);
    await exchange(client, parse('mine', 'SELECT $1::int'));
    const wanted = 'bind message supplies 0 parameters, but prepared statement "mine" requires 1';
    assert.equal(await use(client, 'mine'), `08P01 ${wanted} I`);
  }));
