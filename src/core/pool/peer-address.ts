/*
 * Peers that are found by DNS (peers_dns): the number of a process is derived from the address at which its clients
 * reach it. Every process derives the same number from the same address, so numbers need not be assigned.
 */

import { parseInet } from '../base/inet';
import { native } from '../base/native';
import type { ClientSocket } from './bouncer';

/** Set in the numbers of these peers. Those of [peers] are smaller. */
export const DNS_PEER = 0x8000;
const NUMBER_MASK = 0x7fff;

const IPV4_BYTES = 4;
/** An IPv4 address in the form of IPv6 begins with ten zeros and this. */
const MAPPED_AT = 12;

function isMapped(bytes: Uint8Array): boolean {
  return bytes.length > IPV4_BYTES && bytes.subarray(0, MAPPED_AT).every((byte, i) => byte === (i < 10 ? 0 : 0xff));
}

/**
 * The number of the process at an address. IPv4: the lowest 15 bits, which differ within a network of /17. IPv6: a hash
 * (FNV-1a), which may be the same for two addresses.
 * @returns 0 for a Unix socket
 */
export function addressPeerId(host: string): number {
  let bytes = parseInet(host.split('%', 1)[0] as string);
  if (bytes === null) return 0;
  if (isMapped(bytes)) bytes = bytes.subarray(MAPPED_AT);
  const { length } = bytes;
  if (length === IPV4_BYTES) {
    const low = ((bytes[length - 2] as number) << 8) | (bytes[length - 1] as number);
    return DNS_PEER | (low & NUMBER_MASK);
  }
  let hash = 0x811c9dc5;
  for (const byte of bytes) hash = Math.imul(hash ^ byte, 0x01000193);
  return DNS_PEER | ((hash ^ (hash >>> 15)) & NUMBER_MASK);
}

/** The address at which a client has reached this process; a header of the PROXY protocol does not change it. */
export function reachedAt(client: ClientSocket): string {
  try {
    return native.sockName(native.fdOf(client.handle)).host;
  } catch {
    // the connection has just been reset
    return '';
  }
}
