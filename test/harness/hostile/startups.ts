/*
 * Invalid startup packets, and a few that are only unusual, which hostile.test.ts sends on fresh connections.
 */

import {
  CANCEL_REQUEST,
  cstring,
  GSSENC_REQUEST,
  int32,
  message,
  PROTOCOL_30,
  PROTOCOL_32,
  SSL_REQUEST,
  startupPacket,
} from '../raw-client';
import type { Random } from './random';

/** Lengths claimed in headers. */
export const LENGTHS = [
  0,
  1,
  2,
  3,
  4,
  5,
  6,
  7,
  8,
  9,
  16,
  255,
  256,
  9999,
  10_000,
  10_001,
  65_535,
  65_536,
  65_537,
  0xff_ffff,
  0x100_0000,
  1 << 30,
  0x7fff_fffe,
  0x7fff_ffff,
  0x8000_0000,
  0x8000_0004,
  0xffff_fff0,
  0xffff_ffff,
];

const CODES = [
  0,
  1,
  0x0001_0000,
  0x0002_0000,
  0x0002_0001,
  PROTOCOL_30,
  0x0003_0001,
  PROTOCOL_32,
  0x0003_ffff,
  0x0004_0000,
  SSL_REQUEST,
  GSSENC_REQUEST,
  CANCEL_REQUEST,
  CANCEL_REQUEST - 1,
  GSSENC_REQUEST + 1,
  0x7fff_ffff,
  0xffff_ffff,
];

const GOOD = { user: 'postgres', database: 'postgres' };

/** Logins of a well-behaved client, as the basis of mutations. */
const SEEDS = [
  startupPacket(PROTOCOL_30, GOOD),
  startupPacket(PROTOCOL_32, { ...GOOD, application_name: 'seed', client_encoding: 'UTF8', '_pq_.extension': '1' }),
  startupPacket(PROTOCOL_30, { ...GOOD, options: '-c datestyle=ISO --timezone=UTC', DateStyle: 'ISO' }),
  startupPacket(PROTOCOL_30, { user: 'stats', database: 'pgbouncer' }),
  Buffer.concat([startupPacket(SSL_REQUEST, Buffer.alloc(0)), startupPacket(PROTOCOL_30, GOOD)]),
  startupPacket(CANCEL_REQUEST, Buffer.alloc(8, 7)),
];

/** A packet with an arbitrary length in its header. */
function claim(length: number, code: number, body: Buffer): Buffer {
  return Buffer.concat([int32(length), int32(code), body]);
}

function params(random: Random): Buffer {
  const pairs: Buffer[] = [];
  for (let left = random.below(6); left > 0; left--) {
    pairs.push(cstring(random.text(random.between(1, 20))), cstring(random.text(random.below(200))));
  }
  const user = random.pick([
    [cstring('user'), cstring('postgres')],
    [cstring('user'), cstring('')],
    [cstring('user')],
    [],
  ]);
  const end = random.pick([Buffer.alloc(1), Buffer.alloc(0), Buffer.alloc(5), random.bytes(3)]);
  return Buffer.concat([...(random.one(2) ? pairs : []), ...user, ...(random.one(2) ? pairs : []), end]);
}

const OPTIONS = [
  '-c',
  '--',
  '-c =',
  '--=',
  '-c a\\',
  '-d 5',
  '-cdatestyle',
  '   ',
  '--timezone=\\',
  '-c x=y',
  '\\\\\\',
];

type Maker = (random: Random) => Buffer;

const MAKERS: readonly Maker[] = [
  // lengths
  (r) => claim(r.pick(LENGTHS), PROTOCOL_30, r.bytes(r.below(40))),
  (r) => claim(r.pick(LENGTHS), r.pick(CODES), r.bytes(r.below(40))),
  (r) => claim(r.u32(), r.u32(), r.bytes(r.below(100))),
  (r) => claim(r.u32() & 0xffff, r.pick(CODES), r.bytes(r.below(300))),
  // cut off
  (r) => {
    const seed = r.pick(SEEDS);
    return seed.subarray(0, r.below(seed.length));
  },
  // unknown codes
  (r) => startupPacket(r.pick(CODES), GOOD),
  (r) => startupPacket(r.u32(), params(r)),
  // parameters
  (r) => startupPacket(r.pick([PROTOCOL_30, PROTOCOL_32]), params(r)),
  (r) => startupPacket(PROTOCOL_30, { ...GOOD, options: r.pick(OPTIONS) }),
  (r) => startupPacket(PROTOCOL_30, { ...GOOD, options: r.text(r.below(300)) }),
  (r) => startupPacket(PROTOCOL_30, { ...GOOD, replication: r.text(r.below(9)) }),
  (r) => startupPacket(PROTOCOL_30, { ...GOOD, application_name: r.text(r.below(9000)) }),
  (r) =>
    startupPacket(PROTOCOL_30, {
      ...GOOD,
      [r.pick(['DateStyle', 'TimeZone', 'client_encoding'])]: r.text(r.below(60)),
    }),
  (r) => startupPacket(PROTOCOL_30, { user: r.text(r.between(1, 400)), database: 'postgres' }),
  (r) => startupPacket(PROTOCOL_30, { user: 'postgres', database: `no-${r.text(r.below(300))}` }),
  (r) => startupPacket(PROTOCOL_30, { ...GOOD, [`_pq_.${r.text(20)}`]: r.text(20) }),
  (r) =>
    startupPacket(PROTOCOL_30, {
      ...GOOD,
      filler: 'x'.repeat(r.pick([9_000, 9_900, 30_000, 65_400, 65_600, 200_000])),
    }),
  // too many packets
  (r) => Buffer.concat(Array.from({ length: r.between(2, 4) }, () => startupPacket(PROTOCOL_30, GOOD))),
  (r) => Buffer.concat(Array.from({ length: r.between(1, 30) }, () => startupPacket(SSL_REQUEST, Buffer.alloc(0)))),
  // data behind an encryption request
  (r) => Buffer.concat([startupPacket(r.pick([SSL_REQUEST, GSSENC_REQUEST]), Buffer.alloc(0)), r.pick(SEEDS)]),
  (r) =>
    Buffer.concat([startupPacket(r.pick([SSL_REQUEST, GSSENC_REQUEST]), Buffer.alloc(0)), r.bytes(r.between(1, 60))]),
  (r) => startupPacket(r.pick([SSL_REQUEST, GSSENC_REQUEST]), r.bytes(r.between(1, 60))),
  // cancels
  (r) => startupPacket(CANCEL_REQUEST, r.bytes(r.below(24))),
  (r) => startupPacket(CANCEL_REQUEST, r.bytes(8)),
  (r) => Buffer.concat([startupPacket(CANCEL_REQUEST, r.bytes(8)), r.bytes(r.below(4000))]),
  (r) => claim(r.pick(LENGTHS), CANCEL_REQUEST, r.bytes(r.below(24))),
  // messages of a later phase
  (r) => message('p', cstring(r.text(r.below(40)))),
  (r) => Buffer.concat([Buffer.from('p'), int32(r.pick([1 << 30, ...LENGTHS])), r.bytes(r.below(40))]),
  (r) => Buffer.concat([Buffer.from(String.fromCharCode(r.below(256))), int32(r.pick(LENGTHS)), r.bytes(r.below(40))]),
  (r) => message(r.pick([...'QXPBDESHCFdcf']), r.bytes(r.below(60))),
  // other protocols, noise, nothing
  () => Buffer.from('GET / HTTP/1.1\r\nHost: pooler\r\n\r\n'),
  (r) => Buffer.concat([Buffer.from('160301020001000200fc0303', 'hex'), r.bytes(500)]),
  (r) => r.bytes(r.between(1, 200)),
  (r) => r.bytes(r.between(1, 5)),
  () => Buffer.alloc(0),
  (r) => Buffer.alloc(r.between(1, 3000)),
  (r) => Buffer.alloc(r.between(1, 3000), 0xff),
];

/** The bytes of one hostile start; half of them are mutations of valid packets. */
export function hostileStartup(random: Random): Buffer {
  return random.one(2) ? random.mutate(random.pick(SEEDS)) : random.pick(MAKERS)(random);
}

/** Invalid answers of a client to a password request. */
export function hostilePassword(random: Random): Buffer {
  const sasl = (mechanism: string, length: number, text: string) =>
    message('p', cstring(mechanism), int32(length), Buffer.from(text, 'latin1'));
  const first = `n,,n=,r=${random.bytes(18).toString('base64')}`;
  const makers: readonly (() => Buffer)[] = [
    () => message('p'),
    () => message('p', Buffer.from(random.text(random.between(1, 50)), 'latin1')),
    () => message('p', cstring(random.text(random.below(2000)))),
    () => message('p', cstring(`md5${random.bytes(16).toString('hex')}`)),
    () => message('p', random.bytes(random.pick([1, 4, 100, 65_000, 65_531, 65_532, 65_600]))),
    () => Buffer.concat([Buffer.from('p'), int32(random.pick(LENGTHS)), random.bytes(random.below(60))]),
    () => sasl('SCRAM-SHA-256', first.length, first),
    () => sasl('SCRAM-SHA-256', random.pick(LENGTHS), first),
    () => sasl('SCRAM-SHA-256-PLUS', first.length, first),
    () => sasl(random.text(random.below(30)), first.length, first),
    () => sasl('SCRAM-SHA-256', first.length, random.mutate(Buffer.from(first)).toString('latin1')),
    () => Buffer.concat([sasl('SCRAM-SHA-256', first.length, first), message('p', random.bytes(random.below(200)))]),
    () =>
      Buffer.concat([
        sasl('SCRAM-SHA-256', first.length, first),
        message(
          'p',
          Buffer.from(`c=biws,r=${random.bytes(20).toString('base64')},p=${random.bytes(32).toString('base64')}`),
        ),
      ]),
    () => random.pick(SEEDS),
    () => message(random.pick([...'QXPBSdc']), cstring('SELECT 1')),
    () => random.bytes(random.between(1, 100)),
    () => startupPacket(CANCEL_REQUEST, random.bytes(8)),
    () => Buffer.alloc(0),
  ];
  const bytes = random.pick(makers)();
  return random.one(3) ? random.mutate(bytes) : bytes;
}
