/*
 * Host names of servers: resolved off the loop, cached for dns_max_ttl (failures for dns_nxdomain_ttl). The addresses
 * of a name are used in turn. A name has at most one look-up in progress, which serves all callers.
 *
 * The system resolves names, unless `resolv_conf` or `dns_zone_check_period` is set; then c-ares does (name-thread.ts).
 */

import { logDebug, logNoise, logWarning, wantNoise } from '../base/log';
import { native, type SockAddr } from '../base/native';
import { compareNames } from '../base/strutil';
import { getCachedTime, USEC } from '../base/time';
import { cf } from '../config/settings';
import { upcalls } from '../pool/upcalls';
import { zoneCounts, zoneRegister } from './dns-zones';
import { askNameThread } from './name-thread';

interface Waiter {
  token: number;
  done: (addr: SockAddr | null) => void;
  /** addresses that have just failed */
  avoid: readonly string[];
}

class DnsRequest {
  name: string;
  addrs: SockAddr[] = [];
  /** the last answer with addresses: a failure in between hides no change. After a takeover, the addresses in use. */
  lastGood: SockAddr[] = [];
  /** position of the next address to use */
  next = 0;
  /** usec when the answer expires */
  expires = 0;
  resolved = false;
  inFlight = false;
  waiters: Waiter[] = [];

  constructor(name: string) {
    this.name = name;
  }
}

const requests = new Map<string, DnsRequest>();
/** requests resolved by the system, by the loop's id */
const bySystem = new Map<number, DnsRequest>();
let inFlightCount = 0;
let lastToken = 0;

/** The record of a name, created if missing. */
function requestOf(name: string): DnsRequest {
  const known = requests.get(name);
  if (known !== undefined) return known;
  logNoise(`dns: new req: ${name}`);
  const added = new DnsRequest(name);
  requests.set(name, added);
  zoneRegister(name, () => lookUpAgain(added));
  return added;
}

/**
 * A connection of another process to this address of a name has been taken over. From now on the zone of the name is
 * checked, and the next look-up tells whether the address has disappeared.
 */
export function dnsRemember(name: string, addr: SockAddr): void {
  const req = requestOf(name);
  if (req.lastGood.some((known) => addrText(known) === addrText(addr))) return;
  req.lastGood = req.addrs = [...req.lastGood, { ...addr, port: 0 }];
  req.resolved = true;
}

/** Looks a name up again, because its zone has changed. */
function lookUpAgain(req: DnsRequest): void {
  if (req.inFlight || !req.resolved) return;
  req.expires = 0;
  launch(req);
}

/** An address in PgBouncer's format, which includes a port; here it is always 0. */
function addrText(addr: SockAddr): string {
  return addr.host.includes(':') ? `[${addr.host}]:0` : `${addr.host}:0`;
}

/** Several pools take addresses in turn, so the next one may have failed for this pool. */
function pickAddress(req: DnsRequest, avoid: readonly string[]): SockAddr | null {
  const { addrs, next } = req;
  const count = addrs.length;
  if (count === 0) return null;
  let at = next % count;
  for (let i = 0; i < count && avoid.includes((addrs[at] as SockAddr).host); i++) at = (at + 1) % count;
  req.next = (at + 1) % count;
  return addrs[at] as SockAddr;
}

function deliver(req: DnsRequest, { done, avoid }: Omit<Waiter, 'token'>): void {
  const addr = pickAddress(req, avoid);
  logNoise(`dns: deliver_info(${req.name}) addr=${addr === null ? 'NULL' : addrText(addr)}`);
  done(addr);
}

/**
 * Looks up an address of `name`.
 * @param done called with an address (port 0) or null: before this function returns if the answer is cached, else later
 * @param avoid addresses that have just failed: they are used only if there is no other
 * @returns a token for dnsCancel(), or -1 if `done` has already been called
 */
export function dnsResolve(name: string, done: (addr: SockAddr | null) => void, avoid: readonly string[] = []): number {
  const req = requestOf(name);
  if (!req.inFlight && req.resolved) {
    if (getCachedTime() <= req.expires) {
      deliver(req, { done, avoid });
      return -1;
    }
    logNoise(`dns: ttl over: ${name}`);
  }
  const token = ++lastToken;
  req.waiters.push({ token, done, avoid });
  if (!req.inFlight) launch(req);
  return req.inFlight ? token : -1;
}

/**
 * Looks up all addresses of `name`; an answer that is still cached is not used, but a failure is.
 * @param done called with the addresses, none if the look-up failed: now or later, as by dnsResolve()
 */
export function dnsLookUpAll(name: string, done: (addrs: readonly SockAddr[]) => void): void {
  const req = requests.get(name);
  if (req !== undefined && req.addrs.length > 0) req.expires = 0;
  dnsResolve(name, () => done(requests.get(name)?.addrs ?? []));
}

function launch(req: DnsRequest): void {
  logDebug(`dns: resolving ${req.name}`);
  req.inFlight = true;
  inFlightCount++;
  if (cf.resolvConf !== '' || cf.dnsZoneCheckPeriod > 0) {
    logNoise(`dns: ares_gethostbyname(${req.name})`);
    askNameThread('host', req.name, ({ error, addrs }) => {
      logNoise(`dns: xares_host_cb(${req.name})=${error || 'Successful completion'}`);
      if (error !== '') logDebug(`DNS lookup failed: ${req.name} - ${error}`);
      gotResult(req, addrs, 0);
    });
    return;
  }
  const id = native.resolve(req.name);
  if (id > 0) bySystem.set(id, req);
  else gotResult(req, [], id);
}

/** Number of known addresses of a name; 0 if it has not been looked up. */
export function dnsAddressCount(name: string): number {
  return requests.get(name)?.addrs.length ?? 0;
}

/** Cancels a pending call of `done`; the answer is still cached. */
export function dnsCancel(token: number): void {
  for (const req of requests.values()) {
    const i = req.waiters.findIndex((waiter) => waiter.token === token);
    if (i >= 0) {
      req.waiters.splice(i, 1);
      return;
    }
  }
}

/** Handles an Ev.RESOLVED record. @param result number of addresses, or an EAI code < 0 */
export function onResolved(id: number, result: number): void {
  const req = bySystem.get(id);
  const addrs = native.resolveResult(id);
  if (req === undefined) return;
  bySystem.delete(id);
  gotResult(req, result > 0 ? addrs : [], result);
}

/** Reports addresses that disappeared, so that servers connected to them are closed when idle. */
function tellGone(req: DnsRequest, addrs: SockAddr[]): void {
  const now = new Set(addrs.map(addrText));
  for (const old of req.lastGood) if (!now.has(addrText(old))) upcalls.addressGone(req.name, old);
}

function gotResult(req: DnsRequest, addrs: SockAddr[], result: number): void {
  inFlightCount--;
  req.inFlight = false;
  req.resolved = true;
  // a failure clears the addresses: connecting to the old addresses would hide it
  req.addrs = addrs;
  req.next = 0;
  if (addrs.length === 0) {
    logWarning(`DNS lookup failed: ${req.name}: result=${result}`);
    req.expires = getCachedTime() + cf.dnsNxdomainTtl;
  } else {
    tellGone(req, addrs);
    req.lastGood = addrs;
    if (wantNoise())
      for (const [at, addr] of addrs.entries()) logNoise(`DNS: ${req.name}[${at}] = ${addrText(addr)} [STREAM]`);
    req.expires = getCachedTime() + cf.dnsMaxTtl;
  }
  const waiters = req.waiters;
  req.waiters = [];
  for (const waiter of waiters) deliver(req, waiter);
}

/** Calls `each` for every cached name in order, for SHOW DNS_HOSTS. ttl in seconds. */
export function dnsForEachHost(each: (name: string, ttl: number, addrs: string[]) => void): void {
  const now = getCachedTime();
  const sorted = [...requests.values()].sort((a, b) => compareNames(a.name, b.name));
  for (const req of sorted) {
    const ttl = Math.max(0, Math.floor((req.expires - now) / USEC));
    each(req.name, ttl, req.addrs.map(addrText));
  }
}

/** Counts for SHOW LISTS. As in PgBouncer, `pending` is always 0. */
export function dnsCounts(): { names: number; zones: number; queries: number; pending: number } {
  const { zones, asking } = zoneCounts();
  return { names: requests.size, zones, queries: inFlightCount + asking, pending: 0 };
}
