/*
 * Actors in the middle of a large transfer during a reboot: COPY in both directions, slow readers.
 */

import assert from 'node:assert/strict';
import { ask, bigSql, checkBigRow, login, type Make, md5, query, ROW_BYTES, ROWS, rowsOf } from './actor';
import { letters, type Message, type RawClient, rowValues } from './raw-client';

export const copyIn: Make = (context) => {
  let client: RawClient;
  return {
    name: 'COPY in',
    before: async () => {
      client = await login(context);
      await client.query('BEGIN');
      await client.query('CREATE TEMP TABLE copied (i int, t text) ON COMMIT DROP');
      await query(client, 'COPY copied FROM STDIN');
      assert.equal(letters(await client.until('G')), 'G');
      for (let i = 0; i < 500; i++) await client.sendMessage('d', Buffer.from(`${i}\tbefore ${i}\n`));
    },
    after: async () => {
      for (let i = 500; i < 1000; i++) await client.sendMessage('d', Buffer.from(`${i}\tafter ${i}\n`));
      await client.sendMessage('c');
      const done = await client.until('Z');
      assert.equal(letters(done), 'CZ');
      const texts = Array.from({ length: 1000 }, (_, i) => `${i < 500 ? 'before' : 'after'} ${i}`);
      assert.equal(await ask(client, "SELECT md5(string_agg(t, ',' ORDER BY i)) FROM copied"), md5(texts.join(',')));
      await client.query('COMMIT');
      await client.end();
    },
  };
};

export const copyOutSql = `COPY (SELECT i, repeat('y', ${ROW_BYTES}) FROM generate_series(1, ${ROWS}) i) TO STDOUT`;

async function checkCopyOut(client: RawClient): Promise<void> {
  const messages = await client.until('ZE', 60_000);
  const data = messages.filter((msg) => msg.type === 'd');
  assert.equal(data.length, ROWS);
  const line = 'y'.repeat(ROW_BYTES);
  data.forEach((msg, at) => {
    assert.equal(msg.body.toString('latin1'), `${at + 1}\t${line}\n`);
  });
  assert.equal(letters(messages.filter((msg) => msg.type !== 'd')), 'HcCZ');
}

export const copyOut: Make = (context) => {
  let client: RawClient;
  let answer: Promise<void>;
  return {
    name: 'COPY out',
    before: async () => {
      client = await login(context);
      await query(client, copyOutSql);
      answer = checkCopyOut(client);
      answer.catch(() => {});
    },
    after: async () => {
      await answer;
      await client.end();
    },
  };
};

/* ---- what only the full handover carries ---- */

export const slowReader: Make = (context) => {
  let client: RawClient;
  return {
    name: 'a half-received 10 MB answer',
    before: async () => {
      client = await login(context);
      await query(client, bigSql);
      assert.equal((await client.next())?.type, 'T');
      for (let i = 1; i <= 50; i++) {
        const msg = await client.next();
        assert.equal(msg?.type, 'D');
        checkBigRow(rowValues(msg as Message), i);
      }
      client.pause();
    },
    after: async () => {
      client.resume();
      const rows = rowsOf(await client.until('Z', 60_000));
      assert.equal(rows.length, ROWS - 50);
      for (let i = 50; i < ROWS; i++) checkBigRow(rows[i - 50] as (string | null)[], i + 1);
      await client.end();
    },
  };
};

export const oneHugeRow: Make = (context) => {
  let client: RawClient;
  const length = 10_000_000;
  return {
    name: 'one row of 10 MB, half received',
    before: async () => {
      client = await login(context);
      client.pause();
      await query(client, `SELECT repeat('z', ${length}), 'end'`);
    },
    after: async () => {
      client.resume();
      assert.deepEqual(rowsOf(await client.until('Z', 60_000)), [['z'.repeat(length), 'end']]);
      await client.end();
    },
  };
};

export const copyOutPaused: Make = (context) => {
  let client: RawClient;
  return {
    name: 'COPY out to a reader that stopped',
    before: async () => {
      client = await login(context);
      client.pause();
      await query(client, copyOutSql);
    },
    after: async () => {
      client.resume();
      await checkCopyOut(client);
      await client.end();
    },
  };
};
