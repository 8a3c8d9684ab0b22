/*
 * Host names of servers: resolved off the loop, cached for dns_max_ttl (failures for dns_nxdomain_ttl), and handed out
 * round robin. One request per name is in flight, whoever asks meanwhile waits for it.
 */
import { logDebug, logNoise, logWarning } from '../base/log';
import { native, type SockAddr } from '../base/native';
import { getCachedTime, USEC } from '../base/time';
import { cf } from '../config/settings';

interface Waiter {
  token: number;
  done: (addr: SockAddr | null) => void;
}

class DnsRequest {
  name: string;
  addrs: SockAddr[] = [];
  /** next address to hand out */
  next = 0;
  /** usec until which the answer counts */
  expires = 0;
  resolved = false;
  /** id of the resolution in flight, -1 = none */
  requestId = -1;
  waiters: Waiter[] = [];

  constructor(name: string) {
    this.name = name;
  }
}

const requests = new Map<string, DnsRequest>();
const inFlight = new Map<number, DnsRequest>();
let lastToken = 0;
let queryCount = 0;

/** Told when a name lost an address: servers connected to it are to be closed when they are free. */
export const dnsSlot: { addressGone: (name: string, addr: SockAddr) => void } = { addressGone: () => {} };

function nextAddr(req: DnsRequest): SockAddr | null {
  if (req.addrs.length === 0) return null;
  const addr = req.addrs[req.next % req.addrs.length] as SockAddr;
  req.next = (req.next + 1) % req.addrs.length;
  return addr;
}

/**
 * Asks for an address of `name`.
 * @param done called with an address (port 0) or null, now when the cache knows, else later
 * @returns a token for dnsCancel, -1 when `done` was called already
 */
export function dnsResolve(name: string, done: (addr: SockAddr | null) => void): number {
  const key = name.toLowerCase();
  let req = requests.get(key);
  if (req === undefined) {
    req = new DnsRequest(name);
    requests.set(key, req);
  }
  if (req.requestId < 0 && req.resolved && getCachedTime() < req.expires) {
    logNoise(`dns: using cached answer for ${name}`);
    done(nextAddr(req));
    return -1;
  }
  const token = ++lastToken;
  req.waiters.push({ token, done });
  if (req.requestId < 0) launch(req);
  return token;
}

function launch(req: DnsRequest): void {
  logDebug(`dns: resolving ${req.name}`);
  queryCount++;
  req.requestId = native.resolve(req.name);
  inFlight.set(req.requestId, req);
}

/** The one who asked has gone; the answer is still cached for the next. */
export function dnsCancel(token: number): void {
  for (const req of inFlight.values()) {
    const i = req.waiters.findIndex((waiter) => waiter.token === token);
    if (i >= 0) {
      req.waiters.splice(i, 1);
      return;
    }
  }
}

/** One Ev.RESOLVED record. @param result number of addresses, or an EAI code < 0 */
export function onResolved(id: number, result: number): void {
  const req = inFlight.get(id);
  const addrs = native.resolveResult(id);
  if (req === undefined) return;
  inFlight.delete(id);
  req.requestId = -1;
  req.resolved = true;
  if (result <= 0) {
    logWarning(`DNS lookup failed: ${req.name}: result=${result}`);
    // an old answer that cannot be refreshed is gone: connecting to it would hide the failure
    req.addrs = [];
    req.expires = getCachedTime() + cf.dnsNxdomainTtl;
  } else {
    for (const old of req.addrs) {
      if (!addrs.some((addr) => addr.family === old.family && addr.host === old.host))
        dnsSlot.addressGone(req.name, old);
    }
    req.addrs = addrs;
    req.next = 0;
    req.expires = getCachedTime() + cf.dnsMaxTtl;
  }
  const waiters = req.waiters;
  req.waiters = [];
  for (const waiter of waiters) waiter.done(nextAddr(req));
}

/** An address as the original prints a socket address: with a port, which a looked up name has none of. */
function addrText(addr: SockAddr): string {
  return addr.host.includes(':') ? `[${addr.host}]:0` : `${addr.host}:0`;
}

/** Every cached name, for SHOW DNS_HOSTS. ttl in seconds. */
export function dnsForEachHost(each: (name: string, ttl: number, addrs: string[]) => void): void {
  const now = getCachedTime();
  for (const req of requests.values()) {
    const ttl = Math.max(0, Math.floor((req.expires - now) / USEC));
    each(req.name, ttl, req.addrs.map(addrText));
  }
}

/** Zones are known to resolvers that can ask for SOA records; the system resolver cannot. */
export function dnsForEachZone(_each: (zone: string, serial: number, count: number) => void): void {
  return;
}

/** Counts for SHOW LISTS. */
export function dnsCounts(): { names: number; zones: number; queries: number; pending: number } {
  return { names: requests.size, zones: 0, queries: queryCount, pending: inFlight.size };
}
