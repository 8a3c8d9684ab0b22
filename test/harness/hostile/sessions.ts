/*
 * Invalid messages of logged-in clients, which hostile.test.ts sends in the middle of sessions.
 */

import { CANCEL_REQUEST, cstring, int16, int32, message, PROTOCOL_30, SSL_REQUEST, startupPacket } from '../raw-client';
import type { Random } from './random';
import { LENGTHS } from './startups';

const SYNC = message('S');
const query = (sql: string) => message('Q', cstring(sql));
const parse = (name: string, sql: string) => message('P', cstring(name), cstring(sql), int16(0));
const bind = (portal: string, name: string) =>
  message('B', cstring(portal), cstring(name), int16(0), int16(0), int16(0));
const execute = (portal: string) => message('E', cstring(portal), int32(0));

/** Messages of a well-behaved client, as the basis of mutations. */
const SEEDS = [
  query('SELECT 1'),
  query('BEGIN; SELECT 1; COMMIT'),
  query('SELECT 1/0'),
  query('COPY (SELECT generate_series(1, 20)) TO STDOUT'),
  Buffer.concat([parse('', 'SELECT 2'), bind('', ''), message('D', cstring('P')), execute(''), SYNC]),
  Buffer.concat([parse('', 'SELECT $1'), message('D', cstring('S')), message('H'), SYNC]),
  Buffer.concat([message('C', cstring('Snone')), SYNC]),
  Buffer.concat([
    query('CREATE TEMP TABLE t (a int); COPY t FROM STDIN'),
    message('d', Buffer.from('1\n')),
    message('c'),
  ]),
  Buffer.concat([SYNC, SYNC, SYNC]),
];

type Maker = (random: Random) => Buffer;

const MAKERS: readonly Maker[] = [
  // unknown types and wrong lengths
  (r) => message(String.fromCharCode(r.below(256)), r.bytes(r.below(60))),
  (r) => Buffer.concat([Buffer.from([r.below(256)]), int32(r.pick(LENGTHS)), r.bytes(r.below(200))]),
  (r) => Buffer.concat([Buffer.from(r.pick([...'QPBDESHCFdcfXp'])), int32(r.pick(LENGTHS)), r.bytes(r.below(200))]),
  (r) => Buffer.concat([Buffer.from(r.pick([...'QPBd'])), int32(1 << 30), r.bytes(r.below(20_000))]),
  (r) => Buffer.concat([Buffer.from('Q'), int32(-r.between(1, 100_000)), cstring('SELECT 1')]),
  // cut off
  (r) => {
    const seed = r.pick(SEEDS);
    return seed.subarray(0, r.below(seed.length));
  },
  (r) => Buffer.concat([query('SELECT 1'), query('SELECT 2').subarray(0, r.below(14))]),
  // missing NULs
  (r) => message('Q', r.bytes(r.below(100))),
  (r) => message('P', Buffer.from(r.text(r.below(60)), 'latin1')),
  // wrong counts
  (r) =>
    Buffer.concat([
      parse('', 'SELECT 1'),
      message('B', cstring(''), cstring(''), int16(r.u32() & 0xffff), r.bytes(9)),
      SYNC,
    ]),
  (r) => Buffer.concat([message('B', cstring(''), cstring('nobody'), r.bytes(r.below(30))), SYNC]),
  (r) => message('F', int32(r.u32()), int16(r.below(3)), r.bytes(r.below(20))),
  // COPY without COPY
  (r) => message('d', r.bytes(r.below(5000))),
  () => message('c'),
  (r) => message('f', cstring(r.text(r.below(30)))),
  (r) => Buffer.concat(Array.from({ length: r.between(1, 50) }, () => message('d', r.bytes(20)))),
  (r) => Buffer.concat([query('BEGIN'), message('d', r.bytes(40)), message('c'), query('SELECT 1')]),
  (r) => Buffer.concat([query('CREATE TEMP TABLE t (a int); COPY t FROM STDIN'), r.bytes(r.between(1, 60))]),
  () => Buffer.concat([query('CREATE TEMP TABLE t (a int); COPY t FROM STDIN'), SYNC, query('SELECT 1')]),
  // messages of an earlier phase
  (r) => message('p', cstring(r.text(r.below(40)))),
  () => startupPacket(PROTOCOL_30, { user: 'postgres' }),
  () => startupPacket(SSL_REQUEST, Buffer.alloc(0)),
  (r) => startupPacket(CANCEL_REQUEST, r.bytes(8)),
  // incomplete exchanges
  () => parse('', 'SELECT 1'),
  () => Buffer.concat([parse('', 'SELECT generate_series(1, 1000)'), bind('', ''), execute(''), message('H')]),
  () => query('BEGIN'),
  () => query("SELECT repeat('x', 3000000)"),
  // many messages
  (r) => Buffer.concat(Array.from({ length: r.between(2, 200) }, () => SYNC)),
  (r) => Buffer.concat(Array.from({ length: r.between(2, 50) }, () => query('SELECT 1'))),
  (r) => Buffer.concat(Array.from({ length: r.between(2, 100) }, () => message('H'))),
  // noise
  (r) => r.bytes(r.between(1, 300)),
  (r) => Buffer.alloc(r.between(1, 2000)),
  (r) => Buffer.alloc(r.between(1, 2000), 0xff),
  () => message('X'),
  (r) => Buffer.concat([message('X'), r.bytes(r.below(50))]),
];

/** Hostile messages of a logged-in client to a database. */
export function hostileMessages(random: Random): Buffer {
  return random.one(2) ? random.mutate(random.pick(SEEDS)) : random.pick(MAKERS)(random);
}

const COMMANDS = [
  'SHOW LISTS',
  'SHOW POOLS',
  'SHOW',
  'SHOW HELP',
  'SHOW FDS',
  'KILL',
  'SET a = b',
  "SELECT 'x'",
  ';;;',
  '',
];

/** Hostile messages of a stats user to the console. */
export function hostileCommands(random: Random): Buffer {
  const makers: readonly Maker[] = [
    (r) => query(r.pick(COMMANDS)),
    (r) => query(r.text(r.below(200))),
    (r) => query(`SHOW ${r.text(r.below(30))}`),
    (r) => query('SHOW LISTS;'.repeat(r.between(2, 20))),
    (r) => query('x'.repeat(r.pick([1000, 70_000, 300_000]))),
    (r) => r.mutate(query(r.pick(COMMANDS))),
    (r) => hostileMessages(r),
  ];
  return random.pick(makers)(random);
}
