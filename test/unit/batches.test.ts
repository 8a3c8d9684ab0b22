/*
 * The records of a handover on their way to a new process that reads slowly.
 */
import assert from 'node:assert/strict';
import { Ev, native } from '../../src/core/base/native';
import { Batches } from '../../src/takeover/batches';
import { startTestLoop } from '../harness/backend';
import { test } from '../harness/limits';
import { closeAll, pair, RECV_MAX, turn } from '../harness/loop-driver';

startTestLoop(RECV_MAX);

/** More than one batch, so that a socket takes a part of it. */
const RECORD = 60_000;
const RECORDS_MAX = 100;

/** Reads what has arrived. */
function read(handle: number): string {
  return turn(10)
    .filter((event) => event.kind === Ev.RECV && event.handle === handle)
    .map((event) => event.text)
    .join('');
}

/** The number of whole records in the bytes; fails if something else is between them. */
function countRecords(bytes: Buffer): number {
  let records = 0;
  let at = 0;
  while (at < bytes.length) {
    assert.equal(bytes.toString('latin1', at, at + 1), 'd');
    at += 1 + bytes.readUInt32BE(at + 1);
    records++;
  }
  assert.equal(at, bytes.length);
  return records;
}

test('a part of a record is known to be sent until the rest of it is', () => {
  const [from, to] = pair();
  const batches = new Batches(native.fdOf(from));
  assert.equal(batches.inRecord, false);
  let put = 0;
  while (!batches.inRecord && put < RECORDS_MAX) {
    // of different sizes, because a socket may be full behind a whole record
    batches.put({ k: 'wait' }, [Buffer.alloc(RECORD + 1000 * put)], null);
    put++;
  }
  assert.equal(batches.inRecord, true);
  assert.equal(batches.hasWaiting, true);

  let got = '';
  while (batches.hasWaiting) {
    got += read(to);
    batches.pump();
  }
  assert.equal(batches.inRecord, false);
  for (let more = read(to); more !== ''; more = read(to)) got += more;
  assert.equal(countRecords(Buffer.from(got, 'latin1')), put);
  closeAll(from, to);
});
