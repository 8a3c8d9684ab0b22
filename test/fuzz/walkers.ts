/*
 * Fuzz targets of the packet walkers: bytes in other pieces must come out the same, and clients that share servers must hear
 * what they would hear from a server of their own.
 */

import assert from 'node:assert/strict';
import type { AnySocket, ClientSocket, ServerSocket } from '../../src/core/pool/bouncer';
import { queryCacheSize } from '../../src/core/pool/prepare';
import { isDead } from '../../src/core/pool/socket';
import { preparedCount } from '../../src/core/pool/statements';
import { clientRecvFailed } from '../../src/core/session/client';
import { serverRecvFailed } from '../../src/core/session/server';
import type { Random } from '../harness/hostile/random';
import { cstring, int16, int32, message } from '../harness/raw-client';
import { Backend } from './backend';
import type { Target } from './engine';
import { World, type WorldOptions } from './loopless';

const parse = (name: string, sql: string) => message('P', cstring(name), cstring(sql), int16(0));
const bind = (portal: string, name: string) =>
  message('B', cstring(portal), cstring(name), int16(0), int16(0), int16(0));
const describe = (kind: string, name: string) => message('D', cstring(kind + name));
const close = (kind: string, name: string) => message('C', cstring(kind + name));
const execute = (portal: string) => message('E', cstring(portal), int32(0));
const query = (sql: string) => message('Q', cstring(sql));
const SYNC = message('S');
const FLUSH = message('H');

/* ---- in other pieces ---- */

/** Where somebody was disconnected, what stood in front in the same piece may be lost; nothing else is. */
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

/** What was said, and the last words. */
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

function requestsOf(server: ServerSocket): number[] {
  const queue = server.requests;
  return Array.from({ length: queue.count }, (_, at) => queue.entryAt(at));
}

/** A header that was not whole is shown as far as it was there. */
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

/** Errors carry their length, which depends on the hex of a broken header. */
function lengthless(bytes: Buffer): string {
  return bytes.toString('latin1').replace(/E\0\0[\s\S]{2}SFATAL/g, 'ESFATAL');
}

/** A large packet that is not all there is looked at sooner or later, depending on the pieces. */
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
  // a few bytes at a time are for what is short
  const way = bytes.length > 1000 ? 3 : random.below(4);
  const sizes: number[] = [];
  for (let left = bytes.length; left > 0; left -= sizes.at(-1) as number) {
    sizes.push(way === 0 ? 1 : way === 1 ? random.between(1, 7) : random.between(1, Math.max(1, bytes.length)));
  }
  return sizes;
}

/** One client, one server that does not answer: what the client's bytes become. */
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

/** The numbers of queries go on from case to case. */
function renumbered(run: Seen): Seen {
  const numbers = new Map<string, string>();
  const server = run.server.replace(
    /([PBCD])[\s\S]{4}([\s\S]?[^\0]{0,20000}\0?)PGBOUNCER_(\d+)/g,
    (_all, type, front, number) => {
      if (!numbers.has(number)) numbers.set(number, `#${numbers.size}`);
      return `${type}${front}${numbers.get(number)}`;
    },
  );
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

/** What the client asks for in front of the answers. */
const QUESTIONS = [
  query('SELECT 1'),
  Buffer.concat([parse('one', 'SELECT 1'), bind('', 'one'), describe('S', 'one'), execute(''), SYNC]),
  // nothing that waits for answers: when it goes on depends on the pieces
  Buffer.concat([parse('a', 'SELECT 1'), parse('b', 'SELECT 1'), close('S', 'a'), bind('', 'b'), SYNC]),
  Buffer.concat([query('COPY'), message('d', Buffer.from('x')), message('c'), query('SELECT 2')]),
  Buffer.concat([parse('', 'x'), bind('', ''), execute(''), FLUSH]),
];

function serverRun(question: Buffer, bytes: Buffer, sizes: number[], options: WorldOptions, random: Random): Seen {
  const world = new World(options);
  try {
    const server = world.server();
    const client = world.client();
    // it asks for so much that the server is never done, and nobody else's
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

/* ---- sharing servers ---- */

const TEXTS = [
  'SELECT a',
  'SELECT b',
  'SELECT c',
  'SELECT d',
  'BEGIN',
  'ROLLBACK',
  'FAIL',
  'BADPARSE',
  'BADBIND',
  'UPDATE',
];

/** A client that keeps to the rules, and what it would hear from a server of its own. */
class Customer {
  readonly direct = new Backend();
  expected: Buffer = Buffer.alloc(0);
  heard: Buffer = Buffer.alloc(0);
  private names = 0;
  private readonly texts: string[] = TEXTS;
  /** names whose Close may have been skipped: the pooler lets a client prepare them again */
  private readonly closed = new Set<string>();
  /** no error has left it open which unnamed statement there is */
  private unnamedSure = true;

  /** @param syncs its pipelines have more than one */
  constructor(
    readonly sk: AnySocket,
    private readonly syncs: boolean,
  ) {
    // a Parse that the pooler answers itself is not refused for a transaction that fails in front of it in the pipeline
    if (syncs) this.texts = TEXTS.filter((text) => text !== 'BEGIN');
  }

  /** One pipeline; which names may be used follows from what the server of its own has. */
  pipeline(random: Random): Buffer {
    const way = random.below(10);
    const parts: Buffer[] = [];
    if (way === 0) parts.push(query(random.pick([...TEXTS, 'DISCARD ALL', 'DEALLOCATE ALL', ''])));
    else if (way === 1) parts.push(...this.copy(random, true));
    else {
      // a COPY wants its data; a second DEALLOCATE of the same name by the same statement is not refused by the pooler
      const once = /^(?:COPY|DEALLOCATE)/.test(this.direct.statements.get('') ?? '');
      if (this.unnamedSure && !once && random.one(5)) parts.push(bind('', ''), execute(''));
      // behind a Sync the client knows what a server of its own has, although the pooler has not heard its answers
      let front: Buffer = Buffer.alloc(0);
      for (let left = this.syncs ? random.between(1, 3) : 1; left > 0; left--) {
        const known = [...this.direct.statements.keys()].filter((name) => name !== '');
        for (let steps = random.between(1, 5); steps > 0; steps--) parts.push(...this.step(random, known));
        if (left === 1) break;
        front = Buffer.concat([front, this.tell([...parts, SYNC])]);
        parts.length = 0;
      }
      if (random.one(8)) parts.push(...this.copy(random, false));
      parts.push(SYNC);
      if (random.one(6)) parts.push(query(random.pick(this.texts)));
      return Buffer.concat([front, this.tell(parts)]);
    }
    if (random.one(6)) parts.push(query(random.pick(this.texts)));
    return this.tell(parts);
  }

  /** What a server of its own says to that. @returns the bytes */
  private tell(parts: Buffer[]): Buffer {
    const bytes = Buffer.concat(parts);
    const answer = this.direct.process(bytes);
    this.expected = Buffer.concat([this.expected, answer]);
    if (answer.includes('SERROR')) this.unnamedSure = false;
    else if (parts.some((part) => part.equals(parse('', 'SELECT a')))) this.unnamedSure = true;
    return bytes;
  }

  /** What a client with a mistake does: a name in use, a name that never was. */
  private mistake(random: Random, known: string[]): Buffer[] {
    const unknown = `u${random.below(3)}`;
    const used = known.find((name) => !this.closed.has(name));
    if (used !== undefined && random.one(2)) return [parse(used, random.pick(this.texts))];
    return random.one(2) ? [bind('', unknown), execute('')] : [describe('S', unknown)];
  }

  private step(random: Random, known: string[]): Buffer[] {
    if (random.one(12)) return this.mistake(random, known);
    const way = random.below(13);
    if (way < 4 || known.length === 0) {
      const name = `s${this.names++}${random.one(5) ? 'x'.repeat(random.below(80)) : ''}`;
      known.push(name);
      const made = parse(name, random.pick(this.texts));
      return random.one(3) ? [made, bind('', name), execute('')] : [made];
    }
    if (way < 6) return [parse('', random.one(2) ? 'SELECT a' : random.pick(this.texts)), bind('', ''), execute('')];
    const at = random.below(known.length);
    const name = known[at] as string;
    if (way < 9) return [bind('', name), describe('P', ''), execute('')];
    if (way === 9) return [describe('S', name)];
    if (way === 10) return [FLUSH];
    known.splice(at, 1);
    this.closed.add(name);
    if (way === 11) return [close('S', name)];
    const sql = `DEALLOCATE ${name}`;
    return random.one(2) ? [parse('', sql), bind('', ''), execute('')] : [query(sql)];
  }

  /** A COPY that is sent without waiting, good or bad. */
  private copy(random: Random, simple: boolean): Buffer[] {
    const begin = simple ? [query('COPY t')] : [parse('', 'COPY t'), bind('', ''), execute('')];
    if (!simple && random.one(3)) begin.push(SYNC);
    const data = Array.from({ length: random.below(3) }, () =>
      message('d', Buffer.from(random.one(4) ? 'bad' : 'good')),
    );
    const end = random.one(5) ? message('f', cstring('no')) : message('c');
    return [...begin, ...data, end];
  }
}

/** What keeps to no rules: whole messages in any order, and now and then half of one. */
function rudeness(random: Random): Buffer {
  const parts = Array.from({ length: random.between(1, 8) }, () => random.pick(RUDE));
  if (random.one(4)) parts.push(Buffer.from(`${random.pick(['H', 'd', 'Q', 'P', 'S'])}\0\0\x04\0begun`, 'latin1'));
  return Buffer.concat(parts);
}

const RUDE = [
  query('SELECT rude'),
  query('BEGIN'),
  query('ROLLBACK'),
  query('FAIL'),
  query('COPY t'),
  query('DISCARD ALL'),
  parse('', 'COPY t'),
  parse('rude', 'SELECT rude'),
  parse('rude2', 'BADPARSE'),
  bind('', ''),
  bind('', 'rude'),
  execute(''),
  close('S', 'rude'),
  message('d', Buffer.from('good')),
  message('d', Buffer.from('bad')),
  message('c'),
  message('f', cstring('no')),
  SYNC,
  SYNC,
  FLUSH,
];

const sharing: Target = {
  name: 'sharing',
  cases: 500,
  words: [],
  make: (random) => random.bytes(8),
  run(_input, random) {
    const limit = random.pick([1, 2, 3, 50]);
    const world = new World({ maxPreparedStatements: limit });
    const before = queryCacheSize();
    try {
      const fresh = () => ({ sk: world.server(), backend: new Backend() });
      const servers: Shared[] = Array.from({ length: random.between(1, 2) }, fresh);
      const syncs = !random.one(3);
      const customers = Array.from({ length: random.between(1, 3) }, () => new Customer(world.client(), syncs));
      const rude = random.one(2);
      for (let rounds = random.between(2, 12); rounds > 0; rounds--) {
        for (const customer of customers) world.arrive(customer.sk, customer.pipeline(random));
        const guest = rude ? world.client() : null;
        if (guest !== null) world.arrive(guest, rudeness(random));
        round(world, servers, customers, guest, random);
        for (const { expected, heard } of customers) {
          // a client in a transaction keeps the one server there is, and the others wait
          let alike = 0;
          while (alike < heard.length && heard[alike] === expected[alike]) alike++;
          const part = (bytes: Buffer) => bytes.toString('latin1', Math.max(0, alike - 300), heard.length);
          if (alike < heard.length) assert.equal(part(heard), part(expected));
        }
        // whatever it has left undone
        if (guest !== null && !isDead(guest)) clientRecvFailed(guest);
        settle(world, servers, customers, random);
        for (const { sk, backend } of servers) {
          if (isDead(sk) || sk.closeNeeded) continue;
          // the pooler knows what the server has, and keeps to the limit. An eviction that is skipped while the next part of the
          // pipeline is on its way already is made up for later
          const named = [...backend.statements.keys()].filter((name) => name !== '' && name !== 'PGBOUNCER_0');
          assert.equal(preparedCount(sk), named.length);
          assert.ok(syncs || rude || named.length <= limit, `${named.length} of ${limit}`);
        }
      }
    } finally {
      world.end();
    }
    assert.equal(queryCacheSize(), before, 'queries that nobody uses');
  },
};

/** Bytes go to and fro in pieces until nothing moves any more. */
function round(
  world: World,
  servers: Shared[],
  customers: Customer[],
  guest: ClientSocket | null,
  random: Random,
): void {
  const atOnce = () => (random.one(3) ? random.between(1, 20) : 60_000);
  const clients = customers.map(({ sk }) => sk);
  if (guest !== null) clients.push(guest);
  for (let busy = true; busy; ) {
    busy = false;
    for (const sk of clients) if (!random.one(3)) world.deliver(sk, atOnce(), random);
    for (const shared of servers) {
      serve(world, shared);
      if (!random.one(3)) world.deliver(shared.sk, atOnce(), random);
    }
    // some leave in the middle of it
    if (guest !== null && random.one(12) && !isDead(guest)) clientRecvFailed(guest);
    world.turn();
    for (const customer of customers) {
      customer.heard = Buffer.concat([customer.heard, world.take(customer.sk)]);
      assert.ok(!isDead(customer.sk), `a client was ended: ${customer.heard.toString('latin1').slice(-200)}`);
    }
    busy = [...clients, ...servers.map(({ sk }) => sk)].some((sk) => world.canRead(sk));
  }
}

/** What was sent to a server is answered; one that gave up is gone. */
function serve(world: World, shared: Shared): void {
  replaceDead(world, shared);
  const asked = world.take(shared.sk);
  if (asked.length > 0) world.arrive(shared.sk, shared.backend.process(asked));
  if (shared.backend.gaveUp && !world.canRead(shared.sk)) {
    serverRecvFailed(shared.sk);
    replaceDead(world, shared);
  }
}

interface Shared {
  sk: ServerSocket;
  backend: Backend;
}

/** The pooler closes a server of which it is not sure what it has prepared, and would open another. */
function replaceDead(world: World, shared: Shared): void {
  if (!isDead(shared.sk)) return;
  shared.sk = world.server();
  shared.backend = new Backend();
}

/** Those in a transaction end it, until everybody has heard everything. */
function settle(world: World, servers: Shared[], customers: Customer[], random: Random): void {
  for (let round = 0; round < 200; round++) {
    let behind = false;
    world.turn();
    for (const shared of servers) {
      serve(world, shared);
      while (world.canRead(shared.sk)) world.deliver(shared.sk, 60_000, random);
    }
    for (const customer of customers) {
      while (world.canRead(customer.sk)) world.deliver(customer.sk, 60_000, random);
      customer.heard = Buffer.concat([customer.heard, world.take(customer.sk)]);
      if (customer.heard.length < customer.expected.length) behind = true;
      else if (inTransaction(customer)) {
        const bytes = query('ROLLBACK');
        customer.expected = Buffer.concat([customer.expected, customer.direct.process(bytes)]);
        world.arrive(customer.sk, bytes);
        behind = true;
      }
    }
    if (!behind) return;
  }
  const lacking = customers.map(({ heard, expected }) => expected.toString('latin1', heard.length));
  const state = servers.map(({ sk }) => `${sk.state} ready ${sk.ready} ${requestsOf(sk)}`);
  const clients = customers.map(
    ({ sk }) => `${sk.state} reading ${sk.reading} blocked ${sk.blocked} kept ${sk.hasKept}`,
  );
  assert.fail(`waiting for ever: ${JSON.stringify({ lacking, clients, state })}`);
}

function inTransaction(customer: Customer): boolean {
  const { heard } = customer;
  return heard.length >= 6 && heard[heard.length - 6] === 0x5a && heard[heard.length - 1] !== 0x49;
}

export const walkerTargets: readonly Target[] = [clientPieces, serverPieces, sharing];
