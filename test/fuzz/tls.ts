/*
 * The record layer of a continued TLS connection, in the loop: whatever a peer sends, the connection delivers what another
 * implementation of TLS 1.3, below, reads from the same bytes, and ends as that does. And the bytes of a session that another
 * process sent: whatever they are, nothing breaks.
 */

import assert from 'node:assert/strict';
import { createCipheriv, createDecipheriv, createHmac } from 'node:crypto';
import { writeSync } from 'node:fs';
import { arena, Ev, native, Rec, ring, startLoop } from '../../src/core/base/native';
import type { Random } from '../harness/hostile/random';
import type { Target } from './engine';

/** Other targets replace the functions of the loop. */
const real = { ...native };

const RECV_MAX = 4096;
const IDLE_MAX = 32;
const FRAGMENT_MAX = 1 << 14;
const [ALERT, HANDSHAKE, DATA] = [21, 22, 23];
const KEY_UPDATE = 24;
const SECRET = Buffer.alloc(32, 'client');

let started = false;
function loop(): void {
  if (!started) startLoop({ backend: 'epoll', recvMax: RECV_MAX, threads: 0, load: 0, handshakeThreads: 0 });
  started = true;
}

/* ---- the other implementation ---- */

function expand(secret: Buffer, label: string, length: number): Buffer {
  const name = Buffer.from(`tls13 ${label}`);
  const info = Buffer.concat([Buffer.from([0, length, name.length]), name, Buffer.from([0, 1])]);
  return createHmac('sha256', secret).update(info).digest().subarray(0, length);
}

/** One direction with AES-128-GCM. */
class Side {
  private secret: Buffer = SECRET;
  private number = 0n;

  private nonce(): Buffer {
    const nonce = Buffer.from(expand(this.secret, 'iv', 12));
    nonce.writeBigUInt64BE(nonce.readBigUInt64BE(4) ^ this.number++, 4);
    return nonce;
  }

  update(): void {
    this.secret = expand(this.secret, 'traffic upd', 32);
    this.number = 0n;
  }

  seal(type: number, bytes: Buffer, padding: number): Buffer {
    const inner = Buffer.concat([bytes, Buffer.from([type]), Buffer.alloc(padding)]);
    const header = Buffer.from([DATA, 3, 3, (inner.length + 16) >> 8, (inner.length + 16) & 255]);
    const cipher = createCipheriv('aes-128-gcm', expand(this.secret, 'key', 16), this.nonce());
    cipher.setAAD(header);
    return Buffer.concat([header, cipher.update(inner), cipher.final(), cipher.getAuthTag()]);
  }

  /** @returns the type and the bytes, or null */
  open(record: Buffer): [number, Buffer] | null {
    const decipher = createDecipheriv('aes-128-gcm', expand(this.secret, 'key', 16), this.nonce());
    decipher.setAAD(record.subarray(0, 5));
    decipher.setAuthTag(record.subarray(-16));
    let inner: Buffer;
    try {
      inner = Buffer.concat([decipher.update(record.subarray(5, -16)), decipher.final()]);
    } catch {
      return null;
    }
    let end = inner.length;
    while (end > 0 && inner[end - 1] === 0) end--;
    return end === 0 ? null : [inner[end - 1] as number, inner.subarray(0, end - 1)];
  }
}

type End = 'open' | 'closed' | 'failed';

/** The messages of a client: key updates only. @returns whether the connection goes on; `held` = a part of a message */
function takeMessages(side: Side, held: Buffer, bytes: Buffer): Buffer | null {
  const all = Buffer.concat([held, bytes]);
  if (bytes.length === 0 || (all.length >= 4 && (all[0] !== KEY_UPDATE || all.readUIntBE(1, 3) !== 1))) return null;
  if (all.length < 5) return all;
  if (all.length > 5 || (all[4] as number) > 1) return null;
  side.update();
  return Buffer.alloc(0);
}

function readAll(input: Buffer): { data: Buffer; end: End } {
  const side = new Side();
  const parts: Buffer[] = [];
  const done = (end: End) => ({ data: Buffer.concat(parts), end });
  let held: Buffer = Buffer.alloc(0);
  let idle = 0;
  for (let at = 0; at + 5 <= input.length; ) {
    const length = input.readUInt16BE(at + 3);
    const known = input[at] === DATA && input.readUInt16BE(at + 1) === 0x303;
    // what a header says is looked at with the whole record, unless that would be longer than any can be
    const whole = at + 5 + length <= input.length;
    if (!whole && length <= FRAGMENT_MAX + 2048) break;
    if (!known || length > FRAGMENT_MAX + 256 || length < 17) return done('failed');
    const opened = side.open(input.subarray(at, at + 5 + length));
    at += 5 + length;
    if (opened === null) return done('failed');
    const [type, bytes] = opened;
    if (bytes.length > FRAGMENT_MAX) return done('failed');
    const brings = type === DATA && bytes.length > 0;
    if (!brings && ++idle > IDLE_MAX) return done('failed');
    if (type !== HANDSHAKE && held.length > 0) return done('failed');
    if (brings) {
      idle = 0;
      parts.push(bytes);
    } else if (type === ALERT) {
      if (bytes.length !== 2) return done('failed');
      if (bytes[1] === 0) return done('closed');
      if (bytes[1] !== 90) return done('failed');
    } else if (type === HANDSHAKE) {
      const rest = takeMessages(side, held, bytes);
      if (rest === null) return done('failed');
      held = rest;
    } else if (type !== DATA) {
      return done('failed');
    }
  }
  return done('open');
}

/* ---- the connection ---- */

function field(tag: number, value: Buffer): Buffer {
  const head = Buffer.alloc(5);
  head[0] = tag;
  head.writeUInt32BE(value.length, 1);
  return Buffer.concat([head, value]);
}

/** As native/tls/transfer.cc writes it: TLS 1.3 with AES-128-GCM, as the server. */
const SESSION = Buffer.concat([
  field(1, Buffer.from([3, 4])),
  field(2, Buffer.from([0x13, 1])),
  field(3, Buffer.from([1])),
  field(7, SECRET),
  field(8, Buffer.alloc(32, 'server')),
]);

/** What the loop delivers of those bytes, when they arrive in any pieces. */
function deliver(input: Buffer, random: Random): { data: Buffer; end: End } {
  const [near = -1, far = -1] = real.socketPair();
  const handle = real.open(near);
  assert.equal(real.tlsContinue(handle, SESSION), 0);
  real.tlsFreeze(handle, 0);
  real.recvStart(handle);
  const parts: Buffer[] = [];
  let result = 1;
  const turn = (): boolean => {
    const count = real.wait(0);
    for (let i = 0; i < count; i++) {
      const at = i * Rec.SIZE;
      if (ring[at + Rec.KIND] !== Ev.RECV || ring[at + Rec.HANDLE] !== handle) continue;
      result = ring[at + Rec.RESULT] as number;
      const offset = ring[at + Rec.OFFSET] as number;
      if (result > 0) parts.push(Buffer.from(arena.subarray(offset, offset + result)));
    }
    return count > 0;
  };
  for (let at = 0; at < input.length && result > 0; ) {
    const length = random.one(3) ? random.between(1, 40) : random.between(1, 20_000);
    at += writeSync(far, input, at, Math.min(length, input.length - at));
    while (turn());
  }
  const before = result;
  real.closeFd(far);
  for (let i = 0; i < 100 && result > 0; i++) turn();
  assert.ok(result <= 0, 'the end is not reported');
  real.close(handle);
  while (turn());
  return { data: Buffer.concat(parts), end: result < 0 ? 'failed' : before > 0 ? 'open' : 'closed' };
}

function someRecords(random: Random): Buffer {
  const side = new Side();
  const records: Buffer[] = [];
  for (let left = random.between(1, random.one(8) ? 60 : 8); left > 0; left--) {
    const padding = random.one(4) ? random.below(300) : 0;
    const kind = random.below(12);
    if (kind < 6) {
      const bytes = random.bytes(random.one(6) ? random.below(FRAGMENT_MAX + 1) : random.below(50));
      records.push(side.seal(DATA, bytes, bytes.length > 16_000 ? 0 : padding));
    } else if (kind < 9) {
      records.push(side.seal(HANDSHAKE, Buffer.from([KEY_UPDATE, 0, 0, 1, random.below(2)]), padding));
      side.update();
    } else if (kind === 9) {
      const message = [KEY_UPDATE, 0, 0, 1, random.below(3)];
      const cut = random.between(1, 4);
      records.push(side.seal(HANDSHAKE, Buffer.from(message.slice(0, cut)), 0));
      records.push(side.seal(HANDSHAKE, Buffer.from(message.slice(cut)), 0));
      side.update();
    } else if (kind === 10) {
      records.push(side.seal(random.pick([ALERT, HANDSHAKE, DATA, 20, 99]), random.bytes(random.below(5)), padding));
    } else if (random.one(4)) {
      records.push(side.seal(ALERT, Buffer.from([1, random.pick([0, 90, 90, 40])]), padding));
    }
  }
  return Buffer.concat(records);
}

const records: Target = {
  name: 'tls-records',
  cases: 1500,
  words: ['\x17\x03\x03\0\x13', '\x17\x03\x03\x40\0', '\x15\x03\x03\0\x02', '\x16\x03\x03\0\x05'],
  make: someRecords,
  run(input, random) {
    loop();
    const expected = readAll(input);
    const got = deliver(input, random);
    assert.equal(got.end, expected.end);
    assert.ok(got.data.equals(expected.data), `${got.data.length} bytes, expected ${expected.data.length}`);
  },
};

const session: Target = {
  name: 'tls-session',
  cases: 3000,
  words: [
    '\x01\0\0\0\x02\x03\x04',
    '\x02\0\0\0\x02\x13\x03',
    '\x0e\0\0\0\x02\x02\0',
    '\x15\0\0\0\x05\x17\x03\x03\0\x20',
  ],
  make: () => Buffer.from(SESSION),
  run(input) {
    loop();
    const [near = -1, far = -1] = real.socketPair();
    const handle = real.open(near);
    if (real.tlsContinue(handle, input) === 0) {
      real.tlsFreeze(handle, 0);
      real.recvStart(handle);
      real.sendBytes(handle, Buffer.from('hello'), 0, 5);
      writeSync(far, Buffer.from([DATA, 3, 3, 0, 20, ...Buffer.alloc(20)]));
      for (let i = 0; i < 3; i++) real.wait(0);
      assert.ok(real.tlsInfo(handle) !== null);
      // what was taken can be given on
      real.recvStopAll(-1);
      const again = real.tlsExport(handle);
      if (again !== null) assert.ok(again.length > 0);
    }
    real.close(handle);
    real.closeFd(far);
    real.wait(0);
  },
};

export const tlsTargets: Target[] = [records, session];
