/*
 * Fuzz target: several clients share servers, and each must get the results that a server of its own would give.
 */

import assert from 'node:assert/strict';
import type { AnySocket, ClientSocket, ServerSocket } from '../../src/core/pool/bouncer';
import { queryCacheSize } from '../../src/core/pool/prepare';
import { isDead } from '../../src/core/pool/socket';
import { preparedCount } from '../../src/core/pool/statements';
import { clientRecvFailed } from '../../src/core/session/client';
import { serverRecvFailed } from '../../src/core/session/server';
import type { Random } from '../harness/hostile/random';
import { cstring, message } from '../harness/raw-client';
import { Backend } from './backend';
import type { Target } from './engine';
import { World } from './loopless';
import { bind, close, describe, execute, FLUSH, parse, query, SYNC } from './requests';
import { requestsOf } from './walkers';

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

/** A client that follows the protocol, with the answers that a server of its own would give. */
class Customer {
  readonly direct = new Backend();
  expected: Buffer = Buffer.alloc(0);
  heard: Buffer = Buffer.alloc(0);
  private names = 0;
  private readonly texts: string[] = TEXTS;
  /** names whose Close may have been skipped: the pooler lets a client prepare them again */
  private readonly closed = new Set<string>();
  /** false if after an error the current unnamed statement is uncertain */
  private unnamedSure = true;

  /** @param syncs pipelines contain more than one Sync */
  constructor(
    readonly sk: AnySocket,
    private readonly syncs: boolean,
  ) {
    // a Parse that the pooler answers itself is not refused after an earlier failure of the transaction in the pipeline
    if (syncs) this.texts = TEXTS.filter((text) => text !== 'BEGIN');
  }

  /** Makes a pipeline; the usable names follow from the client's own server. */
  pipeline(random: Random): Buffer {
    const way = random.below(10);
    const parts: Buffer[] = [];
    if (way === 0) parts.push(query(random.pick([...TEXTS, 'DISCARD ALL', 'DEALLOCATE ALL', ''])));
    else if (way === 1) parts.push(...this.copy(random, true));
    else {
      // a COPY needs its data; the pooler does not refuse a second DEALLOCATE of a name by the same statement
      const once = /^(?:COPY|DEALLOCATE)/.test(this.direct.statements.get('') ?? '');
      if (this.unnamedSure && !once && random.one(5)) parts.push(bind('', ''), execute(''));
      // after a Sync the client knows its own server's statements, although the pooler has not seen the answers
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

  /** Passes the messages to the client's own server. @returns the bytes */
  private tell(parts: Buffer[]): Buffer {
    const bytes = Buffer.concat(parts);
    const answer = this.direct.process(bytes);
    this.expected = Buffer.concat([this.expected, answer]);
    if (answer.includes('SERROR')) this.unnamedSure = false;
    else if (parts.some((part) => part.equals(parse('', 'SELECT a')))) this.unnamedSure = true;
    return bytes;
  }

  /** Messages of a faulty client: a duplicate name, or an unknown name. */
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

/** Messages that follow no rules: in any order, and sometimes incomplete. */
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

export const sharing: Target = {
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
          // a client in a transaction keeps the only server, and the other clients wait
          let alike = 0;
          while (alike < heard.length && heard[alike] === expected[alike]) alike++;
          const part = (bytes: Buffer) => bytes.toString('latin1', Math.max(0, alike - 300), heard.length);
          if (alike < heard.length) assert.equal(part(heard), part(expected));
        }
        // disconnects with work undone
        if (guest !== null && !isDead(guest)) clientRecvFailed(guest);
        settle(world, servers, customers, random);
        for (const { sk, backend } of servers) {
          if (isDead(sk) || sk.closeNeeded) continue;
          // the pooler's list of the server's statements is correct, and within the limit. An eviction skipped while
          // the next part of the pipeline is already under way is made up for later
          const named = [...backend.statements.keys()].filter((name) => name !== '' && name !== 'PGBOUNCER_0');
          assert.equal(preparedCount(sk), named.length);
          assert.ok(syncs || rude || named.length <= limit, `${named.length} of ${limit}`);
        }
      }
    } finally {
      world.end();
    }
    assert.equal(queryCacheSize(), before, 'queries without references');
  },
};

/** Exchanges bytes in pieces until no more arrive. */
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
    // some clients disconnect meanwhile
    if (guest !== null && random.one(12) && !isDead(guest)) clientRecvFailed(guest);
    world.turn();
    for (const customer of customers) {
      customer.heard = Buffer.concat([customer.heard, world.take(customer.sk)]);
      assert.ok(!isDead(customer.sk), `a client was ended: ${customer.heard.toString('latin1').slice(-200)}`);
    }
    busy = [...clients, ...servers.map(({ sk }) => sk)].some((sk) => world.canRead(sk));
  }
}

/** Answers the bytes sent to a server; removes a server that has ended its connection. */
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

/** Replaces a server that the pooler has closed because its statements were uncertain. */
function replaceDead(world: World, shared: Shared): void {
  if (!isDead(shared.sk)) return;
  shared.sk = world.server();
  shared.backend = new Backend();
}

/** Ends open transactions until all clients have their answers. */
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
