/*
 * Fuzz targets of the packet walkers: bytes that arrive in other pieces must have the same effect.
 */

import assert from 'node:assert/strict';
import type { ClientSocket, ServerSocket } from '../../src/core/pool/bouncer';
import { isDead } from '../../src/core/pool/socket';
import { preparedCount } from '../../src/core/pool/statements';
import type { Random } from '../harness/hostile/random';
import { cstring, int16, int32, message } from '../harness/raw-client';
import type { Target } from './engine';
import { World, type WorldOptions } from './loopless';
import { bind, close, describe, execute, FLUSH, parse, query, SYNC } from './requests';
import { sharing } from './sharing';

/* ---- in other pieces ---- */

/** Compares two runs. At a disconnect, earlier bytes of the same piece may be lost, and nothing else. */
function same(split: Seen, whole: Seen): void {
  if (whole.dead === 'false false') {
    assert.deepEqual(split, whole);
    return;
  }
  assert.deepEqual(split.dead, whole.dead);
  assert.deepEqual(split.requests, whole.requests);
  for (const side of ['client', 'server'] as const) {
    const [splitFront, splitEnd] = atFarewell(split[side]);
    const [wholeFront, wholeEnd] = atFarewell(whole[side]);
    assert.equal(splitEnd, wholeEnd);
    const both = Math.min(splitFront.length, wholeFront.length);
    assert.equal(splitFront.slice(0, both), wholeFront.slice(0, both));
  }
}

/** The text before the final error, and the final error. */
function atFarewell(text: string): [string, string] {
  const at = Math.max(text.lastIndexOf('ESFATAL'), text.endsWith('X\0\0\0\x04') ? text.length - 5 : -1);
  return at < 0 ? [text, ''] : [text.slice(0, at), text.slice(at)];
}

interface Seen {
  server: string;
  client: string;
  dead: string;
  requests: number[];
  prepared: number[];
}

export function requestsOf(server: ServerSocket): number[] {
  const queue = server.requests;
  return Array.from({ length: queue.count }, (_, at) => queue.entryAt(at));
}

/** Masks the hex of a bad header, which depends on how much of the header had arrived. */
const withoutHex = (text: string) => text.replace(/bad packet header: '[0-9a-f]*'/, 'bad packet header');

function seen(world: World, client: ClientSocket, server: ServerSocket): Seen {
  return {
    server: world.take(server).toString('latin1'),
    client: withoutHex(lengthless(world.take(client))),
    dead: `${isDead(client)} ${isDead(server)}`,
    requests: requestsOf(server),
    prepared: [preparedCount(client), preparedCount(server)],
  };
}

/** Masks the length of errors, which depends on the hex of a bad header. */
function lengthless(bytes: Buffer): string {
  return bytes.toString('latin1').replace(/E\0\0[\s\S]{2}SFATAL/g, 'ESFATAL');
}

/** End of the last whole packet: when an incomplete large packet is processed depends on the pieces. */
function wholeUpTo(bytes: Buffer): number {
  let at = 0;
  while (at + 5 <= bytes.length && bytes[at] !== 0) {
    const next = at + 1 + bytes.readUInt32BE(at + 1);
    if (next > bytes.length && bytes.length - at > 4000) return at;
    if (next < at + 5) break;
    at = next;
  }
  return bytes.length;
}

function pieces(bytes: Buffer, random: Random): number[] {
  // pieces of a few bytes are for short inputs only
  const way = bytes.length > 1000 ? 3 : random.below(4);
  const sizes: number[] = [];
  for (let left = bytes.length; left > 0; left -= sizes.at(-1) as number) {
    sizes.push(way === 0 ? 1 : way === 1 ? random.between(1, 7) : random.between(1, Math.max(1, bytes.length)));
  }
  return sizes;
}

/** Runs one client with a server that does not answer. @returns the effects of the client's bytes */
function clientRun(bytes: Buffer, sizes: number[], options: WorldOptions, random: Random): Seen {
  const world = new World(options);
  try {
    const server = world.server();
    const client = world.client();
    world.arrive(client, bytes);
    for (const size of sizes) world.deliver(client, size, random);
    return seen(world, client, server);
  } finally {
    world.end();
  }
}

const MESSAGES = [
  query('SELECT 1'),
  parse('one', 'SELECT 1'),
  parse('', 'SELECT 2'),
  bind('', 'one'),
  bind('portal', ''),
  describe('S', 'one'),
  describe('P', ''),
  close('S', 'one'),
  close('P', 'portal'),
  execute(''),
  SYNC,
  FLUSH,
  message('d', Buffer.from('1\n')),
  message('c'),
  message('f', cstring('no')),
  message('F', int32(1), int16(0), int16(0), int16(0)),
  message('P', cstring('big'), cstring('x'.repeat(20_000)), int16(0)),
  message('B', cstring('p'.repeat(17_000)), cstring('one'), int16(0), int16(0), int16(0)),
  message('X'),
];

const clientPieces: Target = {
  name: 'client-packets',
  cases: 2500,
  words: [...'PBDCESHQXdcfFp', '\0', 'S', 'one\0', '\0\0\0\x04', '\0\0\0\x08', '\x7f\xff\xff\xff', '\xff\xff\xff\xff'],
  make: (random) => Buffer.concat(Array.from({ length: random.between(1, 8) }, () => random.pick(MESSAGES))),
  run(bytes, random) {
    const input = bytes.subarray(0, wholeUpTo(bytes));
    const maxPreparedStatements = random.pick([0, 1, 2, 200]);
    const options: WorldOptions = { poolMode: random.pick(['transaction', 'session'] as const), maxPreparedStatements };
    const whole = clientRun(input, [input.length], options, random);
    const split = clientRun(input, pieces(input, random), options, random);
    same(renumbered(split), renumbered(whole));
  },
};

/** Renumbers queries, whose numbers continue from case to case, and masks the lengths of the packets that name them. */
function renumbered(run: Seen): Seen {
  const numbers = new Map<string, string>();
  const bytes = Buffer.from(run.server, 'latin1');
  let server = '';
  for (let at = 0; at < bytes.length; ) {
    const next = bytes.length - at < 5 ? bytes.length : Math.max(at + 5, at + 1 + bytes.readUInt32BE(at + 1));
    const packet = bytes.toString('latin1', at, next);
    const [before, number, after] = packet.split(/PGBOUNCER_(\d+)/, 3);
    if (number === undefined || !'PBCD'.includes(packet.charAt(0))) server += packet;
    else {
      if (!numbers.has(number)) numbers.set(number, `#${numbers.size}`);
      server += `${packet.charAt(0)}${before?.slice(5)}${numbers.get(number)}${after}`;
    }
    at = next;
  }
  return { ...run, server };
}

const ANSWERS = [
  message('1'),
  message('2'),
  message('3'),
  message('n'),
  message('t', int16(0)),
  message('T', int16(0)),
  message('D', int16(1), int32(2), Buffer.from('ab')),
  message('D', int16(1), int32(9000), Buffer.alloc(9000, 97)),
  message('C', cstring('SELECT 1')),
  message('C', cstring('DISCARD ALL')),
  message('C', cstring('DEALLOCATE ALL')),
  message('I'),
  message('s'),
  message('Z', Buffer.from('I')),
  message('Z', Buffer.from('T')),
  message('Z', Buffer.from('E')),
  message('E', cstring('SERROR'), cstring('C22012'), cstring('Mno'), Buffer.alloc(1)),
  message('N', cstring('SNOTICE'), cstring('Mhm'), Buffer.alloc(1)),
  message('S', cstring('TimeZone'), cstring('UTC')),
  message('S', cstring('other'), cstring('value')),
  message('A', int32(7), cstring('channel'), cstring('payload')),
  message('G', Buffer.alloc(3)),
  message('H', Buffer.alloc(3)),
  message('W', Buffer.alloc(3)),
  message('c'),
  message('d', Buffer.from('row')),
  message('V', int32(-1)),
];

/** Requests of the client whose answers are being tested. */
const QUESTIONS = [
  query('SELECT 1'),
  Buffer.concat([parse('one', 'SELECT 1'), bind('', 'one'), describe('S', 'one'), execute(''), SYNC]),
  // no request that waits for answers, because when it continues depends on the pieces
  Buffer.concat([parse('a', 'SELECT 1'), parse('b', 'SELECT 1'), close('S', 'a'), bind('', 'b'), SYNC]),
  Buffer.concat([query('COPY'), message('d', Buffer.from('x')), message('c'), query('SELECT 2')]),
  Buffer.concat([parse('', 'x'), bind('', ''), execute(''), FLUSH]),
];

function serverRun(question: Buffer, bytes: Buffer, sizes: number[], options: WorldOptions, random: Random): Seen {
  const world = new World(options);
  try {
    const server = world.server();
    const client = world.client();
    // the client sends so many requests that the server is never released to another client
    const asked = Buffer.concat([question, ...Array.from({ length: 60 }, () => [query('SELECT 1'), SYNC]).flat()]);
    world.arrive(client, asked);
    world.deliver(client, asked.length, random);
    world.take(server);
    world.take(client);
    world.arrive(server, bytes);
    for (const size of sizes) world.deliver(server, size, random);
    return seen(world, client, server);
  } finally {
    world.end();
  }
}

const serverPieces: Target = {
  name: 'server-packets',
  cases: 2500,
  words: [
    ...'123nstTDCIZENSAGHWcdVRK',
    '\0',
    'I',
    'T',
    '\0\0\0\x05',
    '\x7f\xff\xff\xff',
    '\xff\xff\xff\xff',
    'DISCARD ALL\0',
  ],
  make: (random) => Buffer.concat(Array.from({ length: random.between(1, 10) }, () => random.pick(ANSWERS))),
  run(input, random) {
    const question = random.pick(QUESTIONS);
    const options: WorldOptions = { poolMode: random.pick(['transaction', 'session', 'statement'] as const) };
    const whole = serverRun(question, input, [input.length], options, random);
    const split = serverRun(question, input, pieces(input, random), options, random);
    same(split, whole);
  },
};

export const walkerTargets: readonly Target[] = [clientPieces, serverPieces, sharing];
