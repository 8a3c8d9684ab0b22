/*
 * COPY of 100 MB in both directions and in every pool mode, its failures, and flow control: a side that does not read
 * makes the other side wait, and the pooler does not grow.
 */

import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { Bouncer, eventually, it, PgCluster, withTimeout } from '../harness';
import { backendPid, fails } from '../harness/expect';
import { after, before, describe } from '../harness/limits';
import { cstring, errorFields, letters, message, type RawClient } from '../harness/raw-client';

const MODES = ['session', 'transaction', 'statement'] as const;
const LINES = 100_000;
/** Length of a line with its newline; all lines together are about 100 MB. */
const LINE_BYTES = 1025;
const COPY_OUT = `COPY (SELECT repeat(md5(n::text), 32) FROM generate_series(1, ${LINES}) n) TO STDOUT`;
const CHECKSUM = `SELECT count(*)::int AS count, md5(string_agg(md5(line), '' ORDER BY n)) AS sum FROM`;
const TRANSFER_MS_MAX = 60_000;
/** Most memory that a stalled transfer of any size may cost. */
const GROWTH_BYTES_MAX = 40 << 20;

let pg: PgCluster;
let bouncer: Bouncer;

before(async () => {
  pg = await PgCluster.start({ settings: { max_wal_size: '4GB', autovacuum: 'off' } });
  const databases = Object.fromEntries(MODES.map((mode) => [mode, pg.connstr('postgres', `pool_mode=${mode}`)]));
  bouncer = await Bouncer.start({ cluster: pg, databases });
});
after(async () => {
  await bouncer.stop();
  await pg.stop();
});

/** A logged-in client in that pool mode. */
async function rawIn(mode: string): Promise<RawClient> {
  const raw = await bouncer.raw();
  assert.equal(letters(await raw.login({ database: mode })).at(-1), 'Z');
  return raw;
}

function line(n: number): string {
  return createHash('md5').update(String(n)).digest('hex').repeat(32);
}

/** The text of lines first..last in COPY format. */
function linesText(first: number, last: number): Buffer {
  const lines: string[] = [];
  for (let n = first; n <= last; n++) lines.push(`${n}\t${line(n)}\n`);
  return Buffer.from(lines.join(''), 'latin1');
}

/** Summary of an answer. */
interface Answer {
  /** messages by letter */
  counts: Record<string, number>;
  /** bytes inside CopyData or DataRow */
  bytes: number;
  sha256: string;
}

/**
 * Reads up to ReadyForQuery without storing the bytes, as RawClient would. The client cannot be used otherwise
 * afterwards.
 */
function drain(raw: RawClient): Promise<Answer> {
  const answer: Answer = { counts: {}, bytes: 0, sha256: '' };
  const hash = createHash('sha256');
  const head = Buffer.alloc(5);
  let headLength = 0;
  let left = 0;
  let type = '';
  const walk = (chunk: Buffer): boolean => {
    for (let at = 0; at < chunk.length; ) {
      if (left > 0) {
        const part = chunk.subarray(at, at + left);
        if (type === 'd' || type === 'D') {
          hash.update(part);
          answer.bytes += part.length;
        }
        left -= part.length;
        at += part.length;
      } else {
        head[headLength++] = chunk[at++] as number;
      }
      if (headLength === head.length && left === 0 && type === '') {
        type = String.fromCharCode(head[0] as number);
        left = head.readInt32BE(1) - 4;
        answer.counts[type] = (answer.counts[type] ?? 0) + 1;
      }
      if (type !== '' && left === 0) {
        if (type === 'Z') return true;
        type = '';
        headLength = 0;
      }
    }
    return false;
  };
  raw.socket.removeAllListeners('data');
  const done = new Promise<Answer>((settle, reject) => {
    raw.socket.on('data', (chunk: Buffer) => {
      if (!walk(chunk)) return;
      answer.sha256 = hash.digest('hex');
      settle(answer);
    });
    raw.socket.once('close', () => reject(new Error(`the connection ended: ${JSON.stringify(answer)}`)));
  });
  raw.socket.resume();
  return withTimeout(done, () => `the rest of ${JSON.stringify(answer)}`, TRANSFER_MS_MAX);
}

/** Resident memory of the pooler, in bytes. */
function rss(): number {
  const kb = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${bouncer.pid}/status`, 'latin1'))?.[1];
  return Number(kb) * 1024;
}

/** Resolves once the value has not changed for a while. */
async function settled(value: () => number): Promise<void> {
  let last = value();
  let since = Date.now();
  await eventually('everything to stand still', () => {
    const now = value();
    if (now !== last) since = Date.now();
    last = now;
    return Date.now() - since > 500;
  });
}

/** Starts a COPY FROM STDIN and waits for CopyInResponse. */
async function startCopyIn(raw: RawClient, table: string): Promise<void> {
  await raw.sendMessage('Q', cstring(`COPY ${table} FROM STDIN`));
  assert.equal(letters(await raw.until('GE')), 'G');
}

/** Sends all lines, as fast as the pooler reads them. */
async function sendLines(raw: RawClient): Promise<void> {
  const step = 500;
  for (let n = 1; n <= LINES; n += step) await raw.sendMessage('d', linesText(n, n + step - 1));
}

describe('COPY of 100 MB', () => {
  const expected = createHash('sha256');
  before(() => {
    for (let n = 1; n <= LINES; n++) expected.update(`${line(n)}\n`);
  });
  const digest = (() => {
    let text = '';
    return () => {
      if (text === '') text = expected.digest('hex');
      return text;
    };
  })();

  for (const mode of MODES) {
    it(`COPY of 100 MB out delivers every byte in order: ${mode} pooling`, async () => {
      const raw = await rawIn(mode);
      await raw.sendMessage('Q', cstring(COPY_OUT));
      const answer = await drain(raw);
      assert.deepEqual(answer.counts, { H: 1, d: LINES, c: 1, C: 1, Z: 1 });
      assert.equal(answer.bytes, LINES * LINE_BYTES);
      assert.equal(answer.sha256, digest());
      await raw.destroy();
    });

    it(`COPY of 100 MB in delivers every byte in order: ${mode} pooling`, async () => {
      const table = `copied_${mode}`;
      await pg.sql(`CREATE UNLOGGED TABLE ${table} (n int, line text)`);
      const raw = await rawIn(mode);
      await startCopyIn(raw, table);
      await withTimeout(sendLines(raw), 'all to be sent', TRANSFER_MS_MAX);
      await raw.sendMessage('c');
      const answer = await raw.until('Z', TRANSFER_MS_MAX);
      assert.equal(letters(answer), 'CZ');
      assert.equal(answer[0]?.body.toString(), `COPY ${LINES}\0`);
      const origin = `(SELECT n, repeat(md5(n::text), 32) AS line FROM generate_series(1, ${LINES}) n) origin`;
      const wanted = (await pg.sql(`${CHECKSUM} ${origin}`)).rows[0];
      assert.deepEqual((await pg.sql(`${CHECKSUM} ${table}`)).rows[0], wanted);
      // the connection and its server still work
      assert.equal(letters(await raw.query('SELECT 1')), 'TDCZ');
      await pg.sql(`DROP TABLE ${table}`);
      await raw.end();
    });
  }
});

describe('COPY that fails', () => {
  before(() => pg.sql('CREATE TABLE target (n int, line text)').then(() => {}));

  for (const mode of MODES) {
    it(`a bad COPY row is an error, the rest of the data is dropped, and the client works: ${mode} pooling`, async () => {
      const raw = await rawIn(mode);
      await startCopyIn(raw, 'target');
      await raw.sendMessage('d', Buffer.from('1\tgood\nbad\tbad\n'));
      const rows = message('d', linesText(1, 100));
      for (let i = 0; i < 50; i++) await raw.send(rows);
      await raw.sendMessage('c');
      const answer = await raw.until('Z');
      assert.equal(letters(answer), 'EZ');
      assert.equal(errorFields(answer[0] as never).C, '22P02');
      assert.equal(letters(await raw.query('SELECT count(*) FROM target')), 'TDCZ');
      await raw.end();
    });

    it(`a client may end a COPY with CopyFail: ${mode} pooling`, async () => {
      const raw = await rawIn(mode);
      await startCopyIn(raw, 'target');
      await raw.sendMessage('d', linesText(1, 10));
      await raw.sendMessage('f', cstring('changed my mind'));
      const answer = await raw.until('Z');
      assert.equal(letters(answer), 'EZ');
      assert.match(errorFields(answer[0] as never).M as string, /changed my mind/);
      assert.equal(letters(await raw.query('SELECT 1')), 'TDCZ');
      await raw.end();
    });
  }

  it('a client that disconnects during COPY in ends its server connection, and nothing is stored', async () => {
    const raw = await rawIn('transaction');
    await startCopyIn(raw, 'target');
    await raw.sendMessage('d', linesText(1, 10));
    const from = bouncer.log.mark();
    await raw.destroy(true);
    await bouncer.logWait(/S-0x.* closing because: client disconnect while server was not ready/, from);
    const other = await bouncer.connect({ database: 'transaction' });
    assert.equal((await other.query('SELECT count(*)::int AS count FROM target')).rows[0].count, 0);
    await other.end();
  });

  it('a client that disconnects during COPY out ends its server connection', async () => {
    const raw = await rawIn('transaction');
    await raw.sendMessage('Q', cstring(COPY_OUT));
    await raw.next();
    const from = bouncer.log.mark();
    await raw.destroy(true);
    await bouncer.logWait(/S-0x.* closing because: client disconnect/, from);
    const running =
      "SELECT count(*)::int AS count FROM pg_stat_activity WHERE query LIKE 'COPY (%' AND state = 'active'";
    await eventually('the server to notice', async () => (await pg.sql(running)).rows[0].count === 0);
  });

  it('a server that dies during a COPY is an error for its client only', async () => {
    const raw = await rawIn('transaction');
    const other = await bouncer.connect({ database: 'transaction' });
    await startCopyIn(raw, 'target');
    await pg.killBackends("query LIKE 'COPY target%'");
    const error = (await raw.until('')).filter((msg) => msg.type === 'E').map(errorFields);
    assert.equal(error[0]?.C, '57P01');
    await other.query('SELECT 1');
    await raw.destroy();
    await other.end();
  });
});

describe('flow control', { skip: process.platform !== 'linux' && 'reads /proc' }, () => {
  const ROWS = 200_000;
  const BIG_RESULT = `SELECT repeat('x', 1000) FROM generate_series(1, ${ROWS})`;

  async function waitsToWrite(): Promise<void> {
    const blocked = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'ClientWrite' AND query LIKE 'SELECT repeat%'";
    await eventually('PostgreSQL to wait for the pooler', async () => (await pg.sql(blocked)).rowCount === 1);
  }

  for (const mode of ['session', 'transaction'] as const) {
    it(`a client that stops reading makes PostgreSQL wait, and later gets every byte of 200 MB: ${mode} pooling`, async () => {
      const raw = await rawIn(mode);
      const other = await bouncer.connect({ database: mode });
      await other.query('SELECT 1');
      const begin = rss();
      raw.pause();
      await raw.sendMessage('Q', cstring(BIG_RESULT));
      await waitsToWrite();
      const pid = await backendPid(other);
      assert.ok(rss() - begin < GROWTH_BYTES_MAX, `grew by ${rss() - begin} bytes`);
      const answer = await drain(raw);
      assert.deepEqual(answer.counts, { T: 1, D: ROWS, C: 1, Z: 1 });
      // each row has a column count, and a length before each value
      assert.equal(answer.bytes, ROWS * 1006);
      assert.ok(rss() - begin < GROWTH_BYTES_MAX, `grew by ${rss() - begin} bytes while it was read`);
      if (mode === 'session') assert.equal(await backendPid(other), pid);
      await other.end();
      await raw.destroy();
    });
  }

  it('a client that never reads can be killed and leaves nothing behind', async () => {
    const raw = await rawIn('transaction');
    raw.pause();
    await raw.sendMessage('Q', cstring(BIG_RESULT));
    await waitsToWrite();
    const row = (await bouncer.admin('SHOW CLIENTS')).find((client) => client.port === raw.socket.localPort);
    await bouncer.admin(`KILL_CLIENT ${row?.id}`);
    const left = await bouncer.admin('SHOW CLIENTS');
    assert.equal(
      left.some((client) => client.port === raw.socket.localPort),
      false,
    );
    await raw.destroy();
  });

  it('a server that stops reading makes the client wait, and later gets every byte of 100 MB', async () => {
    await pg.sql(`CREATE UNLOGGED TABLE slow (n int, line text);
      CREATE FUNCTION wait_for_lock() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN PERFORM pg_advisory_xact_lock_shared(7); RETURN NEW; END';
      CREATE TRIGGER slow BEFORE INSERT ON slow FOR EACH ROW EXECUTE FUNCTION wait_for_lock()`);
    const keeper = await bouncer.connect({ database: 'session' });
    await keeper.query('SELECT pg_advisory_lock(7)');
    const raw = await rawIn('transaction');
    const begin = rss();
    await startCopyIn(raw, 'slow');
    const sent = sendLines(raw);
    const taken = () => raw.socket.bytesWritten - raw.socket.writableLength;
    await settled(taken);
    assert.ok(taken() < LINES * LINE_BYTES);
    assert.ok(rss() - begin < GROWTH_BYTES_MAX, `grew by ${rss() - begin} bytes`);
    await keeper.query('SELECT pg_advisory_unlock(7)');
    await withTimeout(sent, 'all to be sent', TRANSFER_MS_MAX);
    await raw.sendMessage('c');
    assert.equal(letters(await raw.until('Z', TRANSFER_MS_MAX)), 'CZ');
    const { count } = (await pg.sql('SELECT count(*)::int AS count FROM slow')).rows[0];
    assert.equal(count, LINES);
    assert.ok(rss() - begin < GROWTH_BYTES_MAX, `grew by ${rss() - begin} bytes while it was taken`);
    await keeper.end();
    await raw.end();
  });

  it('twenty clients that do not read cost only the memory of their buffers', async () => {
    const begin = rss();
    const stalled = await Promise.all(Array.from({ length: 20 }, () => rawIn('session')));
    for (const raw of stalled) {
      raw.pause();
      await raw.sendMessage('Q', cstring(BIG_RESULT));
    }
    const blocked = "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'ClientWrite' AND query LIKE 'SELECT repeat%'";
    await eventually('all to be blocked', async () => (await pg.sql(blocked)).rowCount === stalled.length);
    assert.ok(rss() - begin < GROWTH_BYTES_MAX, `grew by ${rss() - begin} bytes`);
    const other = await bouncer.connect({ database: 'transaction' });
    await other.query('SELECT 1');
    await other.end();
    for (const raw of stalled) await raw.destroy(true);
    await eventually('their servers to go', async () => (await pg.sql(blocked)).rowCount === 0);
  });

  it('a console client that does not read its answers does not make the pooler grow', async () => {
    const raw = await bouncer.raw();
    await raw.login({ user: 'admin', database: 'pgbouncer', password: 'admin-password' });
    const begin = rss();
    raw.pause();
    const questions = Buffer.concat(Array.from({ length: 1000 }, () => message('Q', cstring('SHOW CONFIG'))));
    const sending = (async () => {
      for (let i = 0; i < 50; i++) await raw.send(questions);
    })();
    sending.catch(() => {});
    await settled(() => raw.socket.bytesWritten - raw.socket.writableLength);
    assert.ok(rss() - begin < GROWTH_BYTES_MAX, `grew by ${rss() - begin} bytes`);
    await fails(bouncer.admin('SHOW NOTHING'), /^invalid command/);
    await raw.destroy(true);
  });
});
