/*
 * The form and the number of log lines: log_format and log_repeat_limit.
 */

import assert from 'node:assert/strict';
import { jsonLine } from '../../src/core/base/log-json';
import { endOfRepeats, isTooOften } from '../../src/core/base/log-repeats';
import { ask, login, refusal, show, withPooler } from '../harness/answers';
import type { Bouncer } from '../harness/bouncer';
import { PgCluster } from '../harness/cluster';
import { after, before, describe } from '../harness/limits';
import { it } from '../harness/machine';

let pg: PgCluster;

before(async () => {
  pg = await PgCluster.start();
});
after(() => pg.stop());

type Line = Record<string, string | number>;

/** The JSON lines of a pooler's log, which the harness keeps as bytes; every line from `from` on has to be one. */
function jsonLines(pooler: Bouncer, from: number): Line[] {
  const lines = pooler.log.text.slice(from).split('\n');
  return lines.slice(0, -1).map((line) => JSON.parse(Buffer.from(line, 'latin1').toString()) as Line);
}

function withMessage(lines: Line[], message: RegExp): Line {
  const found = lines.find((line) => message.test(String(line.message)));
  assert.ok(found, `no line with ${message}`);
  return found;
}

describe('log_format', () => {
  it('json makes each line an object, with the connection as fields', async () => {
    await withPooler({ cluster: pg, settings: { log_format: 'json', verbose: 1 } }, async (pooler) => {
      const from = pooler.log.text.indexOf('{"time"');
      const client = await login(pooler);
      await ask(client, 'SELECT 1');
      const [row] = await show(pooler, 'CLIENTS', { user: 'postgres', database: 'postgres' });
      await client.end();
      await pooler.logWait(/client close request/);
      const lines = jsonLines(pooler, from);
      for (const { time, pid, level } of lines) {
        assert.match(String(time), /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$/);
        assert.equal(pid, pooler.pid);
        assert.match(String(level), /^(FATAL|ERROR|WARNING|LOG|DEBUG|NOISE)$/);
      }
      const attempt = withMessage(lines, /^login attempt: db=postgres user=postgres tls=no/);
      assert.equal(attempt.socket, 'client');
      assert.equal(attempt.database, 'postgres');
      assert.equal(attempt.user, 'postgres');
      assert.equal(attempt.id, Number(row?.id));
      assert.equal(attempt.address, row?.addr);
      assert.equal(attempt.port, Number(row?.port));
      assert.equal(withMessage(lines, /^new connection to server/).socket, 'server');
      assert.ok(!('socket' in withMessage(lines, /^process up/)));
    });
  });

  it('SET log_format changes the form at once, and back', async () => {
    await withPooler({ cluster: pg }, async (pooler) => {
      await pooler.admin("SET log_format = 'json'");
      const from = pooler.log.mark();
      await (await login(pooler)).end();
      await pooler.logWait(/^\{.*"message":"client close request|"closing because: client close request/m, from);
      await pooler.admin("SET log_format = 'text'");
      const back = pooler.log.mark();
      await login(pooler);
      await pooler.logWait(/\] LOG C-[^\n]* login attempt/, back);
    });
  });

  it('what a client sends cannot end a line or break the JSON', async () => {
    await withPooler({ cluster: pg, settings: { log_format: 'json' } }, async (pooler) => {
      const from = pooler.log.text.indexOf('{"time"');
      const user = 'a"b\\c\n{"level":"LOG"}\xff';
      await refusal(pooler, { user });
      await pooler.logWait(/no such user/);
      const line = withMessage(jsonLines(pooler, from), /no such user/);
      assert.match(String(line.message), /a"b\\c\n\{"level":"LOG"\}\ufffd/);
    });
  });

  it('bytes are read as UTF-8', () => {
    const fields = { user: Buffer.from('J\u00fcrgen').toString('latin1'), port: 5 };
    const line = jsonLine('t', 1, 'LOG', `${Buffer.from('gr\u00fcn').toString('latin1')}\n`, fields);
    assert.equal(
      line.toString(),
      '{"time":"t","pid":1,"level":"LOG","user":"J\u00fcrgen","port":5,"message":"gr\u00fcn"}\n',
    );
  });
});

describe('log_repeat_limit', () => {
  it('lines that differ in numbers are counted, and the count is told when the process ends', async () => {
    await withPooler({ cluster: pg, settings: { log_repeat_limit: 2 } }, async (pooler) => {
      for (let i = 0; i < 6; i++) await refusal(pooler, { user: 'nobody' });
      const line = /closing because: "trust" authentication failed/;
      await pooler.admin('SET log_repeat_limit = 0');
      const told = await pooler.logWait(/ LOG \d+ lines like this were left out: closing because: "trust"[^\n]*/);
      assert.match(told[0], / LOG 4 lines /);
      assert.equal(pooler.log.count(line), 3);
      const from = pooler.log.mark();
      for (let i = 0; i < 4; i++) await refusal(pooler, { user: 'nobody' });
      assert.equal(pooler.log.count(line, from), 4);
    });
  });

  it('different lines, and lines of different levels, are counted apart', () => {
    assert.equal(isTooOften(1, 'a 1', 1), false);
    assert.equal(isTooOften(1, 'a 22', 1), true);
    assert.equal(isTooOften(2, 'a 1', 1), false);
    assert.equal(isTooOften(1, 'b 1', 1), false);
    assert.deepEqual(endOfRepeats(1), ['1 lines like this were left out: a 1']);
    assert.equal(isTooOften(1, 'a 3', 1), false);
    assert.deepEqual(endOfRepeats(1), []);
  });

  it('without a limit, nothing is counted', () => {
    for (let i = 0; i < 5; i++) assert.equal(isTooOften(1, 'a', 0), false);
    assert.deepEqual(endOfRepeats(0), []);
  });

  it('the table is bounded: lines beyond it are written', () => {
    for (let i = 0; i < 3000; i++) isTooOften(1, 'x'.repeat(i), 1);
    assert.equal(isTooOften(1, 'x'.repeat(5), 1), true);
    assert.equal(isTooOften(1, 'x'.repeat(2500), 1), false);
    assert.equal(endOfRepeats(1).length, 1);
  });
});
