/*
 * peers_dns: the addresses of a DNS name are the peers of this process. They are looked up every five seconds (or every
 * dns_max_ttl, if that is shorter), and when a cancel request names a peer that is not known yet. A failed look-up
 * changes nothing.
 */

import { isFrozen } from '../base/lifecycle';
import { nextOf } from '../base/list';
import { logInfo, logWarning } from '../base/log';
import type { SockAddr } from '../base/native';
import { getCachedTime, USEC } from '../base/time';
import { splitHostPort } from '../config/host-port';
import { DATABASE_DEFAULTS } from '../config/records';
import { cf } from '../config/settings';
import { dnsLookUpAll } from '../net/dnslookup';
import { sbufContinue } from '../net/sbuf';
import type { ClientSocket, PgDatabase } from '../pool/bouncer';
import { addDnsPeer, peerList } from '../pool/database';
import { addressPeerId } from '../pool/peer-address';
import { isDead } from '../pool/socket';
import { killDatabase } from './kill';

/** usec */
const PERIOD = 5 * USEC;
/** Shortest time between an answer and a look-up for cancel requests: these need no password. usec */
const PAUSE_MIN = 1 * USEC;
/** Most addresses that are used. */
const PEERS_MAX = 256;
/** Most cancel requests that wait for a look-up. */
const WAITING_MAX = 100;

/** peers_dns of the peers in the list; '' = there are none */
let current = '';
let looking = false;
/** usec; when the last answer came */
let answered = 0;
let due = false;
/** cancel requests for unknown peers, which wait for the next look-up */
let waiting: ClientSocket[] = [];
/** those that the last look-up has been made for */
let answeredFor = new Set<ClientSocket>();

/** The setting, unless peer_id says that the peers are those of [peers]. */
function wanted(): string {
  return cf.peerId > 0 ? '' : cf.peersDns;
}

/** True if the peers are those of peers_dns. */
export function usesPeersDns(): boolean {
  return wanted() !== '';
}

/** The peers that were found by DNS. */
function dnsPeers(): PgDatabase[] {
  const peers: PgDatabase[] = [];
  for (let peer = peerList.head; peer !== null; peer = nextOf(peer)) if (peer.fromDns) peers.push(peer);
  return peers;
}

/** The peers with this number; several only if their addresses have the same number by chance. */
export function dnsPeersWith(peerId: number): PgDatabase[] {
  return dnsPeers().filter((peer) => peer.peerId === peerId);
}

/** Adds the peer at an address, or finds it. */
export function dnsPeerAt(host: string): PgDatabase {
  const peer = addDnsPeer(host, addressPeerId(host));
  const port = splitHostPort(wanted())?.port ?? null;
  peer.config = { ...DATABASE_DEFAULTS, host, port: port ?? cf.listenPort };
  return peer;
}

function apply(addrs: readonly SockAddr[]): void {
  const hosts = new Set(addrs.map((addr) => addr.host));
  if (hosts.size > PEERS_MAX) logWarning(`peers_dns: ${current} has ${hosts.size} addresses, using ${PEERS_MAX}`);
  const used = new Set([...hosts].slice(0, PEERS_MAX));
  for (const peer of dnsPeers()) {
    if (used.has(peer.name)) continue;
    logInfo(`peers_dns: ${current} has no longer the address ${peer.name}`);
    killDatabase(peer);
  }
  for (const host of used) dnsPeerAt(host);
}

function gotAddresses(asked: string, addrs: readonly SockAddr[]): void {
  looking = false;
  // the new process looks up again, and so does this one if the handover fails
  if (isFrozen() || asked !== current) {
    due = true;
    return;
  }
  answered = getCachedTime();
  if (addrs.length > 0) apply(addrs);
  answeredFor = new Set(waiting);
  waiting = [];
  for (const req of answeredFor) if (!isDead(req)) sbufContinue(req);
}

function lookUp(): void {
  const asked = current;
  due = false;
  looking = true;
  dnsLookUpAll(splitHostPort(asked)?.host ?? '', (addrs) => gotAddresses(asked, addrs));
}

/** Applies a changed setting. */
function followSetting(): void {
  if (wanted() === current) return;
  // at the start there are only peers of cancel requests that have been taken over
  if (current !== '') for (const peer of dnsPeers()) killDatabase(peer);
  current = wanted();
  due = true;
  answered = 0;
}

/** Called by the maintenance: looks up the addresses when they are due. */
export function peersDnsMaint(): void {
  followSetting();
  if (looking || current === '') return;
  const period = waiting.length > 0 ? PAUSE_MIN : Math.min(PERIOD, cf.dnsMaxTtl);
  if (due || getCachedTime() - answered >= period) lookUp();
}

/**
 * Makes a cancel request for an unknown peer wait for a look-up: the peer may have just started.
 * @returns false if it has waited, or too many wait; otherwise the request is handled again
 */
export function waitForPeers(req: ClientSocket): boolean {
  followSetting();
  if (waiting.includes(req)) return true;
  if (answeredFor.delete(req) || waiting.length >= WAITING_MAX) return false;
  if (!looking && getCachedTime() - answered >= PAUSE_MIN) {
    lookUp();
    // a failure that is still cached
    if (!looking) return false;
  }
  waiting.push(req);
  return true;
}
