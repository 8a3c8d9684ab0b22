/*
 * The host of a new server connection, chosen by load_balance_hosts, and the next host after a failure. launch.ts asks
 * for a host; objects.ts reports a host that failed.
 *
 * An attempt tries every target once: each host of the list, and each address of a host name. The attempt fails, and
 * server_login_retry applies, only when all targets have failed. LoginOutcome.HOST_FAILED lists the failures of a host.
 */

import { LoadBalanceHosts } from '../config/settings-table';
import { dnsAddressCount } from '../net/dnslookup';
import type { PgPool } from '../pool/bouncer';

/** The hosts of a connect string; null stands for the local Unix socket. */
export function hostsOf(host: string | null): (string | null)[] {
  if (host === null || !host.includes(',')) return [host];
  const hosts = host.split(',').filter((name) => name !== '');
  // a host list without names is an error; only an absent host means the Unix socket
  return hosts.length === 0 ? [''] : hosts;
}

/** True while an attempt has met a failed host and has another target to try. */
export function attemptContinues(pool: PgPool): boolean {
  return pool.hostsTried > 0 || pool.addressesTried > 0;
}

/** Makes the next connection begin a new attempt. */
export function endAttempt(pool: PgPool): void {
  pool.attempt++;
  pool.hostsTried = 0;
  pool.addressesTried = 0;
}

/** The host for the next connection. */
export function pickHost(pool: PgPool): string | null {
  const hosts = hostsOf(pool.db.config.host);
  if (hosts.length === 1) return hosts[0] as string | null;
  const sameHost = pool.addressesTried > 0;
  let at = pool.rrcounter;
  if (pool.db.config.loadBalanceHosts === LoadBalanceHosts.ROUND_ROBIN) {
    // the counter is already at the host after the last one used
    if (sameHost) at = (at - 1) & 0xffff;
    else pool.rrcounter = (at + 1) & 0xffff;
  } else if (!sameHost && (pool.lastConnectFailed || pool.hostsTried > 0)) {
    at = pool.rrcounter = (at + 1) & 0xffff;
  }
  return hosts[at % hosts.length] as string | null;
}

/**
 * Handles the failure of a host.
 * @returns true if the attempt continues: the next connection goes to another address of that host, or to another host
 */
export function nextTarget(pool: PgPool, failed: string | null): boolean {
  pool.attempt++;
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
