/*
 * Chooses the address family for a name that has addresses of both. As in c-ares, it is the family of the address that
 * RFC 6724 puts first. Here the first address of each family represents it.
 */
import { createSocket } from 'node:dgram';
import { BlockList } from 'node:net';
import type { NameAddress } from '../core/base/worker-messages';

/** RFC 6724's policy table: the first net that contains an address counts. */
const POLICIES: readonly [net: string, bits: number, precedence: number, label: number][] = [
  ['::1', 128, 50, 0],
  ['::ffff:0:0', 96, 35, 4],
  ['::', 96, 1, 3],
  ['2002::', 16, 30, 2],
  ['2001::', 32, 5, 5],
  ['fc00::', 7, 3, 13],
  ['fec0::', 10, 1, 11],
  ['3ffe::', 16, 1, 12],
  ['::', 0, 40, 1],
];

const LINK_LOCAL = 2;
const SITE_LOCAL = 5;
const GLOBAL = 14;

/** Nets whose addresses have a scope smaller than global. */
const SCOPES: readonly [family: 4 | 6, net: string, bits: number, scope: number][] = [
  [4, '127.0.0.0', 8, LINK_LOCAL],
  [4, '169.254.0.0', 16, LINK_LOCAL],
  [6, '::1', 128, LINK_LOCAL],
  [6, 'fe80::', 10, LINK_LOCAL],
  [6, 'fec0::', 10, SITE_LOCAL],
];

function contains(family: 4 | 6, net: string, bits: number, host: string): boolean {
  const list = new BlockList();
  list.addSubnet(net, bits, `ipv${family}`);
  return list.check(host, `ipv${family}`);
}

function policyOf({ family, host }: NameAddress): { precedence: number; label: number } {
  const text = family === 4 ? `::ffff:${host}` : host;
  const [, , precedence, label] = POLICIES.find(([net, bits]) =>
    net === '::' && bits === 0 ? true : contains(6, net, bits, text),
  ) as (typeof POLICIES)[number];
  return { precedence, label };
}

function scopeOf({ family, host }: NameAddress): number {
  const found = SCOPES.find(([ofFamily, net, bits]) => ofFamily === family && contains(family, net, bits, host));
  return found?.[3] ?? GLOBAL;
}

/** The source address for a destination; null if there is no route. Sends nothing. */
function sourceFor(to: NameAddress): Promise<NameAddress | null> {
  return new Promise((settle) => {
    const socket = createSocket(to.family === 4 ? 'udp4' : 'udp6');
    const end = (from: NameAddress | null) => {
      socket.removeAllListeners();
      // a later error must not end the thread
      socket.on('error', () => {});
      socket.close();
      settle(from);
    };
    socket.once('error', () => end(null));
    socket.once('connect', () => end({ family: to.family, host: socket.address().address.replace(/%.*/, '') }));
    try {
      socket.connect(9, to.host);
    } catch {
      end(null);
    }
  });
}

/** A destination with its source address. */
interface Way {
  to: NameAddress;
  from: NameAddress | null;
}

/** Applies the rules of RFC 6724 that can distinguish two families. @returns < 0 if `a` is better */
export function compareWays(a: Way, b: Way): number {
  if (a.from === null || b.from === null) return Number(a.from === null) - Number(b.from === null);
  const scopes = [scopeOf(a.to), scopeOf(b.to)] as const;
  const sameScope = Number(scopes[1] === scopeOf(b.from)) - Number(scopes[0] === scopeOf(a.from));
  if (sameScope !== 0) return sameScope;
  const policies = [policyOf(a.to), policyOf(b.to)] as const;
  const sameLabel =
    Number(policies[1].label === policyOf(b.from).label) - Number(policies[0].label === policyOf(a.from).label);
  return sameLabel || policies[1].precedence - policies[0].precedence || scopes[0] - scopes[1];
}

/** The addresses of the preferred family, in their original order. */
export async function oneFamily(addresses: NameAddress[]): Promise<NameAddress[]> {
  const four = addresses.find(({ family }) => family === 4);
  const six = addresses.find(({ family }) => family === 6);
  if (four === undefined || six === undefined) return addresses;
  const [from4, from6] = await Promise.all([sourceFor(four), sourceFor(six)]);
  const best = compareWays({ to: six, from: from6 }, { to: four, from: from4 }) <= 0 ? 6 : 4;
  return addresses.filter(({ family }) => family === best);
}
