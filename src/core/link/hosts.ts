/*
 * Which host of its database a new server connection goes to, by load_balance_hosts, and which comes next when that
 * host cannot be reached. launch.ts asks for a host; objects.ts reports the one that failed.
 *
 * One attempt passes over every place once: each host of the list, and each address of a host that is a name. Only when
 * all of them have failed does the attempt fail, and server_login_retry apply. What counts as a failure of the host is
 * said at LoginOutcome.HOST_FAILED.
 */

import { LoadBalanceHosts } from '../config/settings';
import { dnsAddressCount } from '../net/dnslookup';
import type { PgPool } from '../pool/bouncer';

/** The hosts of a connect string; null stands for the Unix socket of this machine. */
export function hostsOf(host: string | null): (string | null)[] {
  if (host === null || !host.includes(',')) return [host];
  const hosts = host.split(',').filter((name) => name !== '');
  // a list of nothing names no host: the Unix socket is only for those who name none at all
  return hosts.length === 0 ? [''] : hosts;
}

/** True while an attempt has met a host that failed, and has another to go to. */
export function attemptGoesOn(pool: PgPool): boolean {
  return pool.hostsTried > 0 || pool.addressesTried > 0;
}

/** The next connection begins an attempt of its own. */
export function endAttempt(pool: PgPool): void {
  pool.hostsTried = 0;
  pool.addressesTried = 0;
}

/** The host that the next connection goes to. */
export function pickHost(pool: PgPool): string | null {
  const hosts = hostsOf(pool.db.config.host);
  if (hosts.length === 1) return hosts[0] as string | null;
  const sameHost = pool.addressesTried > 0;
  let at = pool.rrcounter;
  if (pool.db.config.loadBalanceHosts === LoadBalanceHosts.ROUND_ROBIN) {
    // the counter names the host after the one that was picked last
    if (sameHost) at = (at - 1) & 0xffff;
    else pool.rrcounter = (at + 1) & 0xffff;
  } else if (!sameHost && (pool.lastConnectFailed || pool.hostsTried > 0)) {
    at = pool.rrcounter = (at + 1) & 0xffff;
  }
  return hosts[at % hosts.length] as string | null;
}

/**
 * A host could not be reached.
 * @returns true when the attempt goes on: the next connection goes to another address of that host, or another host
 */
export function nextPlace(pool: PgPool, failed: string | null): boolean {
  if (failed !== null && pool.addressesTried + 1 < dnsAddressCount(failed)) {
    pool.addressesTried++;
    return true;
  }
  pool.addressesTried = 0;
  if (pool.hostsTried + 1 < hostsOf(pool.db.config.host).length) {
    pool.hostsTried++;
    return true;
  }
  pool.hostsTried = 0;
  return false;
}
