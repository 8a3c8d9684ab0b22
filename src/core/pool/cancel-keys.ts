/*
 * The cancel keys of logged-in clients. A hash table finds a key's client in constant time.
 */

import { takeRandom } from '../base/random';
import { cf } from '../config/settings';
import { BACKENDKEY_LEN } from '../wire/packets';
import type { ClientSocket } from './bouncer';
import { addressPeerId, reachedAt } from './peer-address';

/** The two lowest bits of a key count how often peers may still forward the request. */
export const CANCELLATION_TTL_MASK = 0x03;

/**
 * Clients whose keys have the same hash are chained through `nextByKey`. The number of chains is a power of two.
 *
 * This is no Map, because in V8 a Map that has outgrown its table, or is full of deleted entries, leaves the old table
 * with all its entries, and a reference to the new one. Once such a table has survived two collections of young objects,
 * every later client survives them, too: with many short connections, each collection took some milliseconds.
 */
let chains: (ClientSocket | null)[] = new Array(1024).fill(null);
let keyCount = 0;

/** Bytes 1 and 2 may be the same in all keys, and the last ones vary while a request is forwarded. */
const HASHED_AT = 3;

function chainOf(key: Buffer): number {
  return key.readInt32BE(HASHED_AT) & (chains.length - 1);
}

function chain(client: ClientSocket): void {
  const at = chainOf(client.cancelKey);
  client.nextByKey = chains[at] as ClientSocket | null;
  chains[at] = client;
}

function growTable(): void {
  const old = chains;
  chains = new Array(2 * old.length).fill(null);
  for (let client of old) {
    while (client !== null) {
      const next: ClientSocket | null = client.nextByKey;
      chain(client);
      client = next;
    }
  }
}

/** Length of a key for protocol 3.2: the secret has 32 bytes, as in PostgreSQL 18. */
const LONG_KEY_LEN = 4 + 32;

/**
 * Gives a client a new key.
 *
 * With peering, bytes 1 and 2 identify this process and the last two bits of the first 8 bytes allow three hops. With
 * [peers] a key is always 8 bytes long, because PgBouncer as a peer takes no longer key. The sign bit is clear, because
 * some clients read the first four bytes as a process id.
 */
export function newCancelKey(client: ClientSocket): void {
  const key = takeRandom(client.protocol32 && cf.peerId === 0 ? LONG_KEY_LEN : BACKENDKEY_LEN);
  const peerId = cf.peerId === 0 && cf.peersDns !== '' ? addressPeerId(reachedAt(client)) : cf.peerId;
  if (peerId > 0) {
    key[1] = peerId & 0xff;
    key[2] = (peerId >> 8) & 0xff;
    key[7] = (key[7] as number) | CANCELLATION_TTL_MASK;
  }
  key[0] = (key[0] as number) & 0x7f;
  adoptCancelKey(client, key);
}

/** Registers an existing key of a client (takeover). */
export function adoptCancelKey(client: ClientSocket, key: Buffer): void {
  forgetCancelKey(client);
  client.cancelKey = key;
  if (++keyCount > chains.length) growTable();
  chain(client);
}

/** A client without a key is in no chain. */
export function forgetCancelKey(client: ClientSocket): void {
  const first = chainOf(client.cancelKey);
  let before: ClientSocket | null = null;
  let at = chains[first] as ClientSocket | null;
  while (at !== null && at !== client) {
    before = at;
    at = at.nextByKey;
  }
  if (at === null) return;
  if (before === null) chains[first] = client.nextByKey;
  else before.nextByKey = client.nextByKey;
  client.nextByKey = null;
  keyCount--;
}

/** The number of the process that has issued a key, if that has peers. */
export function peerIdOf(key: Buffer): number {
  return (key[1] as number) | ((key[2] as number) << 8);
}

/** The client whose key a peer has forwarded, with a smaller count of hops; or null. */
export function findByForwardedKey(key: Buffer): ClientSocket | null {
  const issued = Buffer.from(key);
  issued[7] = (issued[7] as number) | CANCELLATION_TTL_MASK;
  return findByCancelKey(issued);
}

/** The client with this key, or null. */
export function findByCancelKey(key: Buffer): ClientSocket | null {
  let client = chains[chainOf(key)] as ClientSocket | null;
  while (client !== null && !client.cancelKey.equals(key)) client = client.nextByKey;
  return client;
}
