/*
 * Host names of servers: resolved off the loop, cached for dns_max_ttl (failures for dns_nxdomain_ttl), and handed out
 * round robin. One request per name is in flight, whoever asks meanwhile waits for it.
 *
 * Who resolves: the system, unless `resolv_conf` or `dns_zone_check_period` is set; then c-ares (name-thread.ts).
 */

import { logDebug, logNoise, logState, logWarning } from '../base/log';
import { native, type SockAddr } from '../base/native';
import { getCachedTime, USEC } from '../base/time';
import { cf } from '../config/settings';
import { upcalls } from '../pool/upcalls';
import { zoneCounts, zoneRegister } from './dns-zones';
import { askNameThread } from './name-thread';

interface Waiter {
  token: number;
  done: (addr: SockAddr | null) => void;
}

class DnsRequest {
  name: string;
  addrs: SockAddr[] = [];
  /** the last answer that had addresses: a failure in between hides no change */
  lastGood: SockAddr[] = [];
  /** next address to hand out */
  next = 0;
  /** usec until which the answer counts */
  expires = 0;
  resolved = false;
  inFlight = false;
  waiters: Waiter[] = [];

  constructor(name: string) {
    this.name = name;
  }
}

const requests = new Map<string, DnsRequest>();
/** by the loop's id: those that the system resolves */
const bySystem = new Map<number, DnsRequest>();
let inFlightCount = 0;
let lastToken = 0;

/** The zone of a name that was resolved before has changed. */
function lookUpAgain(req: DnsRequest): void {
  if (req.inFlight || !req.resolved) return;
  req.expires = 0;
  launch(req);
}

/** An address as the original prints a socket address: with a port, which a looked up name has none of. */
function addrText(addr: SockAddr): string {
  return addr.host.includes(':') ? `[${addr.host}]:0` : `${addr.host}:0`;
}

function deliver(req: DnsRequest, done: Waiter['done']): void {
  const count = req.addrs.length;
  const addr = count === 0 ? null : (req.addrs[req.next % count] as SockAddr);
  if (addr !== null) req.next = (req.next + 1) % count;
  logNoise(`dns: deliver_info(${req.name}) addr=${addr === null ? 'NULL' : addrText(addr)}`);
  done(addr);
}

/**
 * Asks for an address of `name`.
 * @param done called with an address (port 0) or null, now when the cache knows, else later
 * @returns a token for dnsCancel, -1 when `done` was called already
 */
export function dnsResolve(name: string, done: (addr: SockAddr | null) => void): number {
  let req = requests.get(name);
  if (req === undefined) {
    logNoise(`dns: new req: ${name}`);
    req = new DnsRequest(name);
    requests.set(name, req);
    const added = req;
    zoneRegister(name, () => lookUpAgain(added));
  }
  if (!req.inFlight && req.resolved) {
    if (getCachedTime() <= req.expires) {
      deliver(req, done);
      return -1;
    }
    logNoise(`dns: ttl over: ${name}`);
  }
  const token = ++lastToken;
  req.waiters.push({ token, done });
  if (!req.inFlight) launch(req);
  return req.inFlight ? token : -1;
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

/** How many addresses are known of a name; 0 when it is none that was looked up. */
export function dnsAddressCount(name: string): number {
  return requests.get(name)?.addrs.length ?? 0;
}

/** The one who asked has gone; the answer is still cached for the next. */
export function dnsCancel(token: number): void {
  for (const req of requests.values()) {
    const i = req.waiters.findIndex((waiter) => waiter.token === token);
    if (i >= 0) {
      req.waiters.splice(i, 1);
      return;
    }
  }
}

/** One Ev.RESOLVED record. @param result number of addresses, or an EAI code < 0 */
export function onResolved(id: number, result: number): void {
  const req = bySystem.get(id);
  const addrs = native.resolveResult(id);
  if (req === undefined) return;
  bySystem.delete(id);
  gotResult(req, result > 0 ? addrs : [], result);
}

/** Who is connected where the name does not lead any more is to leave. */
function tellGone(req: DnsRequest, addrs: SockAddr[]): void {
  const now = new Set(addrs.map(addrText));
  for (const old of req.lastGood) if (!now.has(addrText(old))) upcalls.addressGone(req.name, old);
}

function gotResult(req: DnsRequest, addrs: SockAddr[], result: number): void {
  inFlightCount--;
  req.inFlight = false;
  req.resolved = true;
  // a failure takes the old answer away: connecting to that would hide it
  req.addrs = addrs;
  req.next = 0;
  if (addrs.length === 0) {
    logWarning(`DNS lookup failed: ${req.name}: result=${result}`);
    req.expires = getCachedTime() + cf.dnsNxdomainTtl;
  } else {
    tellGone(req, addrs);
    req.lastGood = addrs;
    if (logState.verbose > 1)
      for (const [at, addr] of addrs.entries()) logNoise(`DNS: ${req.name}[${at}] = ${addrText(addr)} [STREAM]`);
    req.expires = getCachedTime() + cf.dnsMaxTtl;
  }
  const waiters = req.waiters;
  req.waiters = [];
  for (const waiter of waiters) deliver(req, waiter.done);
}

/** Every cached name in order, for SHOW DNS_HOSTS. ttl in seconds. */
export function dnsForEachHost(each: (name: string, ttl: number, addrs: string[]) => void): void {
  const now = getCachedTime();
  const sorted = [...requests.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  for (const req of sorted) {
    const ttl = Math.max(0, Math.floor((req.expires - now) / USEC));
    each(req.name, ttl, req.addrs.map(addrText));
  }
}

/** Counts for SHOW LISTS. The original counts no pending ones either. */
export function dnsCounts(): { names: number; zones: number; queries: number; pending: number } {
  const { zones, asking } = zoneCounts();
  return { names: requests.size, zones, queries: inFlightCount + asking, pending: 0 };
}
