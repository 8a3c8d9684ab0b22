/*
 * Fuzz targets of binary formats: packet readers, the queue of requests, startup packets, handover records, and host
 * lists.
 */

import assert from 'node:assert/strict';
import { native } from '../../src/core/base/native';
import { asciiLower } from '../../src/core/base/strutil';
import { DATABASE_DEFAULTS } from '../../src/core/config/records';
import { cf } from '../../src/core/config/settings';
import { launchNewConnection } from '../../src/core/link/launch';
import { RequestQueue, ResponseAction } from '../../src/core/pool/requests';
import { isDead } from '../../src/core/pool/socket';
import {
  getHeader,
  incompleteHeader,
  PktHdr,
  PktReader,
  parseServerError,
  scanTextRow,
} from '../../src/core/wire/reader';
import type { HandoverRecord } from '../../src/takeover/format';
import { SnapshotReader } from '../../src/takeover/snapshot-reader';
import type { Random } from '../harness/hostile/random';
import { cstring, message, PROTOCOL_30, startupPacket } from '../harness/raw-client';
import type { Target } from './engine';
import { World } from './loopless';

/* ---- readers ---- */

/** Reads the bytes alone in a buffer, and among other bytes, which must not matter. */
function readAll(buf: Buffer, off: number, end: number, random: Random): unknown[] {
  const reader = new PktReader(buf, off, end);
  const found: unknown[] = [];
  for (let left = 12; left > 0; left--) {
    const way = random.below(6);
    if (way === 0) found.push(reader.u8());
    else if (way === 1) found.push(reader.u16());
    else if (way === 2) found.push(reader.i32());
    else if (way === 3) found.push(reader.str());
    else if (way === 4) found.push(reader.chars(reader.u32()));
    else found.push(reader.bytes(random.below(9))?.toString('hex') ?? null);
    found.push(reader.fail, reader.pos - off);
    assert.ok(reader.pos <= end && reader.pos >= off);
  }
  return [...found, reader.rest()];
}

const hdr = new PktHdr();
function header(buf: Buffer, off: number, end: number): unknown[] {
  const incomplete = incompleteHeader(buf, off, end);
  if (incomplete) return [incomplete];
  const ok = getHeader(buf, off, end, 0x7fff_ffff, hdr);
  if (ok) assert.ok(hdr.len >= hdr.headerLen && hdr.len <= 0x7fff_ffff);
  return ok ? [hdr.type, hdr.len, hdr.headerLen] : [false];
}

const wire: Target = {
  name: 'wire',
  cases: 12_000,
  words: [
    '\0\0\0\x04',
    '\xff\xff\xff\xff',
    '\x7f\xff\xff\xff',
    '\0\x03\0\0',
    '\x04\xd2\x16\x2f',
    'SFATAL\0',
    'C08P01\0',
    'Mtext\0',
  ],
  run(input, random) {
    const front = random.below(9);
    const around = Buffer.concat([Buffer.alloc(front, random.below(256)), input, random.bytes(random.below(30))]);
    const end = front + input.length;
    const seed = random.u32();
    const again = () => new (random.constructor as new (state: number) => Random)(seed);
    assert.deepEqual(readAll(around, front, end, again()), readAll(input, 0, input.length, again()));
    assert.deepEqual(header(around, front, end), header(input, 0, input.length));
    assert.deepEqual(parseServerError(around, front, end), parseServerError(input, 0, input.length));
    const asked = random.below(5);
    const row = scanTextRow(new PktReader(around, front, end), asked);
    assert.deepEqual(row, scanTextRow(new PktReader(input), asked));
    if (row !== null) assert.equal(row.length, asked);
  },
};

/* ---- requests ---- */

const MARKS = [0x63, 0x64, 0x66];
const TYPES = [0x50, 0x42, 0x44, 0x43, 0x45, 0x53, 0x51, ...MARKS];
const SYNC = 0x53;

/** A model of the queue as an array. */
class PlainQueue {
  list: [type: number, action: number][] = [];

  private trim(): void {
    while (this.list.length > 0 && MARKS.includes((this.list[0] as [number, number])[0])) this.list.shift();
  }

  mark(type: number): void {
    if (this.list.length === 0 || (type === 0x64 && this.list.at(-1)?.[0] === 0x64)) return;
    this.list.push([type, ResponseAction.FORWARD]);
  }

  shift(): void {
    this.list.shift();
    this.trim();
  }

  clearUntil(a: number, b: number): void {
    while (this.list.length > 0) {
      const type = this.list[0]?.[0];
      this.shift();
      if (type === a || type === b) return;
    }
  }

  endCopy(failed: boolean): void {
    const [head, ...rest] = this.list;
    if (head === undefined) return;
    let data = false;
    while (rest.length > 0) {
      const type = (rest[0] as [number, number])[0];
      if (type === 0x64) data = true;
      if (!MARKS.includes(type) && (type !== SYNC || (failed && data))) break;
      rest.shift();
      if (type === 0x63 || type === 0x66) break;
    }
    this.list = [head, ...rest];
  }
}

const requests: Target = {
  name: 'requests',
  cases: 4000,
  words: ['\0', '\x01', '\x02', '\x03', '\x04', '\x05'],
  make: (random) => random.bytes(random.between(1, 200)),
  run(input) {
    const queue = new RequestQueue();
    const plain = new PlainQueue();
    for (let at = 0; at + 1 < input.length; at += 2) {
      const way = (input[at] as number) % 8;
      const type = TYPES[(input[at + 1] as number) % TYPES.length] as number;
      if (way < 4) {
        if (MARKS.includes(type)) {
          queue.markCopy(type);
          plain.mark(type);
        } else {
          // the pooler never answers a Sync itself
          const action = type === SYNC ? way % 2 : way % 3;
          queue.push(type, action);
          plain.list.push([type, action]);
        }
      } else if (way === 4 && queue.count > 0) {
        assert.equal(queue.firstAction(), plain.list[0]?.[1]);
        queue.shift();
        plain.shift();
      } else if (way === 5) {
        queue.clearUntil(type, SYNC);
        plain.clearUntil(type, SYNC);
      } else if (way >= 6) {
        queue.endCopy(way === 6);
        plain.endCopy(way === 6);
      }
      const held = Array.from({ length: queue.count }, (_, n) => queue.entryAt(n));
      assert.deepEqual(
        held,
        plain.list.map(([kind, action]) => kind | (action << 8)),
      );
      assert.equal(queue.firstType(), plain.list[0]?.[0] ?? 0);
      assert.equal(queue.fakes, plain.list.filter(([, action]) => action === ResponseAction.FAKE).length);
    }
  },
};

/* ---- startup packets ---- */

function startupRun(bytes: Buffer, sizes: number[], random: Random): string[] {
  const world = new World();
  try {
    const client = world.stranger();
    world.arrive(client, bytes);
    for (const size of sizes) world.deliver(client, size, random);
    // random in each run: cancel key and salt
    const chosen = /K\0\0\0(?:\f[\s\S]{8}|\([\s\S]{36})|R\0\0\0\f\0{3}[^\0\n][\s\S]{4}/g;
    const said = world
      .take(client)
      .toString('latin1')
      .replace(/E\0\0[\s\S]{2}SFATAL/g, 'ESFATAL');
    return [
      said.replace(chosen, 'chosen').replace(/bad packet header: '[0-9a-f]*'/, ''),
      String(isDead(client)),
      String(client.loginUser?.name),
    ];
  } finally {
    world.end();
  }
}

const GOOD = { user: 'fuzzer', database: 'fuzz' };
const STARTUPS = [
  startupPacket(PROTOCOL_30, GOOD),
  startupPacket(0x0003_0002, { ...GOOD, '_pq_.x': '1' }),
  startupPacket(PROTOCOL_30, { ...GOOD, options: '-c timezone=UTC --datestyle=ISO', application_name: 'x' }),
  startupPacket(PROTOCOL_30, { ...GOOD, replication: 'database' }),
  startupPacket(PROTOCOL_30, { user: 'nobody', database: 'nothing' }),
  startupPacket(80877102, Buffer.alloc(8)),
];

/** Bytes behind an encryption request in the same piece are refused, so these inputs depend on the pieces. */
const asksForEncryption = (bytes: Buffer) =>
  bytes.includes(Buffer.from('04d2162f', 'hex')) || bytes.includes(Buffer.from('04d21630', 'hex'));

const startup: Target = {
  name: 'startup',
  cases: 2500,
  words: [
    'user\0',
    'database\0',
    'options\0',
    '-c ',
    '--',
    '=',
    '\\',
    ' ',
    '\0',
    '\0\x03\0\0',
    'replication\0',
    'true\0',
    '_pq_.',
  ],
  make: (random) =>
    Buffer.concat([random.pick(STARTUPS), random.one(3) ? message('p', cstring('x')) : Buffer.alloc(0)]),
  run(input, random) {
    if (asksForEncryption(input)) return;
    cf.authType = random.pick([2, 3]);
    const whole = startupRun(input, [input.length], random);
    const sizes = Array.from({ length: input.length }, () => random.between(1, 9));
    const split = startupRun(input, input.length > 2000 ? [1000, input.length] : sizes, random);
    assert.deepEqual(split.slice(1), whole.slice(1));
    assert.equal(split[0], whole[0]);
  },
};

/* ---- handover records ---- */

const SOCKET = {
  k: 'socket',
  fd: true,
  id: 7,
  state: 'cl_active',
  pool: 0,
  f: 0,
  n: [0, 0, 0, 1, 1, 0, 0, 0],
  v: ['UTF8', null],
  cancelKey: '12345678',
  remote: [4, '127.0.0.1', 1234, 0, 0],
  local: [4, '127.0.0.1', 6432, 0, 0],
  kept: 0,
  unsent: 0,
  collected: 0,
};
const BEGIN = {
  k: 'begin',
  format: 1,
  version: '1',
  pid: 1,
  flags: ['reading', 'ready'],
  numbers: [
    'pktRemain',
    'clientAuthType',
    'replication',
    'connectTime',
    'requestTime',
    'queryStart',
    'xactStart',
    'waitStart',
  ],
  vars: ['client_encoding', 'TimeZone'],
  stats: ['xact_count'],
  notifySocket: null,
};
const POOL = {
  k: 'pool',
  n: 0,
  db: 'fuzz',
  peerId: 0,
  user: { kind: 'global', name: 'fuzzer', db: null, passwd: null },
  stats: [1],
  newerStats: [],
  olderStats: [],
  welcomeMsg: null,
  origVars: [],
  lastLifetimeDisconnect: 0,
  lastConnectTime: 0,
  lastActiveTime: 0,
  lastConnectFailed: false,
  lastConnectFailedMessage: '',
  lastLoginFailed: false,
  rrcounter: 0,
};
const RECORDS: object[] = [
  { k: 'still', since: 1, paused: false, statsStamps: [1, 2], newestQueryId: 3 },
  { k: 'user', name: 'fuzzer', passwd: 'x', scramClientKey: 'a', scramServerKey: 'b' },
  {
    k: 'database',
    name: 'fuzz',
    paused: false,
    disabled: false,
    waitClose: false,
    auto: false,
    inactiveTime: 0,
    connect: '',
    dynamicUsers: [],
    removedStats: [1, 2],
  },
  POOL,
  { k: 'statement', queryId: 1, length: 4 },
  SOCKET,
  { ...SOCKET, id: 8, clientStatements: [['a', false, 1]], kept: 3, unsent: 2 },
  {
    ...SOCKET,
    id: 9,
    state: 'sv_active',
    link: 7,
    serverStatements: [1],
    requests: [80, 83],
    notes: [[0, false, 1, ['a', true, 1]]],
  },
  {
    ...SOCKET,
    id: 10,
    state: 'cl_login',
    pool: -1,
    scram: { clientNonce: 'x', storedKey: { bytes: 'y' } },
    user: null,
  },
  { ...SOCKET, k: 'ahead', id: 11 },
  { ...SOCKET, id: 12, tls: 5 },
  { k: 'gone', ids: [11] },
  { k: 'future', fd: true },
  { k: 'end', listeners: 0, sockets: 3 },
];

/** Replaces one value somewhere. */
function spoil(value: unknown, random: Random): unknown {
  const odd = [
    null,
    -1,
    0,
    1,
    2 ** 31,
    2 ** 53,
    1e300,
    '',
    'x',
    '__proto__',
    true,
    [],
    {},
    [[]],
    'sv_idle',
    'cl_waiting',
    NaN,
  ];
  if (value === null || typeof value !== 'object' || random.one(8)) return random.pick(odd);
  if (Array.isArray(value)) {
    const list = [...value];
    if (list.length === 0 || random.one(4)) list.push(random.pick(odd));
    else list[random.below(list.length)] = spoil(random.pick(list), random);
    return list;
  }
  const copy: Record<string, unknown> = { ...(value as Record<string, unknown>) };
  const keys = Object.keys(copy);
  const key = keys[random.below(keys.length)];
  if (key === undefined) return copy;
  if (random.one(5)) delete copy[key];
  else copy[key] = spoil(copy[key], random);
  return copy;
}

const handover: Target = {
  name: 'handover',
  cases: 2500,
  words: ['{', '}', '[', ']', '"', ':', ',', '-1', 'null', 'true', '1e999', '"k":"socket"', '"fd":true'],
  make(random) {
    const some = RECORDS.filter(() => !random.one(4));
    const lines = [BEGIN, ...some].map((record) => (random.one(6) ? spoil(record, random) : record));
    return Buffer.from(lines.map((record) => JSON.stringify(record)).join('\n'), 'latin1');
  },
  run(input, random) {
    const world = new World();
    const restorer = new SnapshotReader();
    let wanted = 0;
    try {
      const takeFd = () => {
        if (wanted > 40) throw new Error('no descriptor');
        return 100 + wanted++;
      };
      for (const line of input.toString('latin1').split('\n')) {
        const record = JSON.parse(line) as HandoverRecord;
        restorer.take(record, random.bytes(random.below(9)), takeFd);
      }
    } catch (err) {
      // the reader throws on an invalid record, and the new process then exits
      assert.ok(err instanceof Error && !/the process would end/.test(err.message), String(err));
    } finally {
      assert.equal(({} as Record<string, unknown>).x, undefined);
      world.endForeign(restorer.frozen.sockets);
      world.end();
    }
  },
};

/* ---- hosts ---- */

const hosts: Target = {
  name: 'hosts',
  cases: 6000,
  words: [',', ',,', '127.0.0.1', '::1', 'localhost', '/tmp', '@abstract', ' ', '1.2.3.4.5', '\0', '%'],
  run(input, random) {
    const list = input.toString('latin1', 0, 400);
    if (list === '') return;
    const world = new World();
    const asked: string[] = [];
    const { connect, resolve } = native;
    native.connect = (family, host) => {
      asked.push(`${family} ${host}`);
      return -1;
    };
    native.resolve = (name) => {
      asked.push(`0 ${name}`);
      return -1;
    };
    const db = world.pool.db;
    try {
      db.config = { ...DATABASE_DEFAULTS, host: list };
      world.pool.rrcounter = random.below(0x1_0000);
      for (let left = 5; left > 0; left--) {
        world.pool.lastConnectFailed = world.pool.lastLoginFailed = false;
        launchNewConnection(world.pool, true);
      }
      const names = list.split(',').filter((name) => name !== '');
      for (const target of asked) {
        const [family, host = ''] = [target.charAt(0), target.slice(2)];
        // only a folder selects a Unix socket
        if (family === '1')
          assert.ok(names.some((name) => /^[/@]/.test(name) && host === `${name}/.s.PGSQL.${db.config.port}`));
        else
          assert.ok(
            names.some((name) => asciiLower(name) === asciiLower(host)) || (names.length === 0 && host === ''),
            `${host} of ${list}`,
          );
      }
    } finally {
      native.connect = connect;
      native.resolve = resolve;
      db.config = DATABASE_DEFAULTS;
      world.end();
    }
  },
};

export const recordTargets: readonly Target[] = [wire, requests, startup, handover, hosts];
