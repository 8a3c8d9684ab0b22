/*
 * The host of a new server connection, chosen by load_balance_hosts, and the next host after a failure. launch.ts asks
 * for a host; objects.ts reports a host that failed.
 *
 * An attempt tries every target once: each host of the list, and each address of a host name. The attempt fails, and
 * server_login_retry applies, only when all targets have failed. LoginOutcome.HOST_FAILED lists the failures of a host.
 */

import { getCachedTime, USEC } from '../base/time';
import { LoadBalanceHosts, TargetSession } from '../config/choices';
import { hostNames } from '../config/records';
import { cf } from '../config/settings';
import { dnsAddressCount } from '../net/dnslookup';
import type { PgPool, ServerSocket } from '../pool/bouncer';

/** While clients are held because no host fits, the hosts are asked often. usec */
const HOLDING_RETRY = USEC / 2;
/** Cancel requests wait no longer than cancel_wait_timeout. usec */
const CANCEL_RETRY = USEC / 2;

/** True while an attempt has met a failed host and has another target to try. */
export function attemptContinues(pool: PgPool): boolean {
  return pool.hostsTried > 0 || pool.failedAddresses.length > 0;
}

/** After a failed attempt, the time until the next one may begin. @returns usec, not above 0 = it may begin now */
export function retryWait(pool: PgPool): number {
  if (!pool.lastConnectFailed || attemptContinues(pool)) return 0;
  const retry = pool.holding ? Math.min(HOLDING_RETRY, cf.serverLoginRetry) : cf.serverLoginRetry;
  return retry - (getCachedTime() - pool.lastConnectTime);
}

/**
 * True if a connection for a cancel request may be opened now. Failed logins say nothing about it: a server that has no
 * room for another session takes requests, too.
 * @returns false if something has failed, and the last one was opened a moment ago
 */
export function cancelMayConnect(pool: PgPool): boolean {
  const retry = Math.min(CANCEL_RETRY, cf.serverLoginRetry);
  return !pool.lastConnectFailed || getCachedTime() - pool.lastCancelTime >= retry;
}

/** Makes the next connection begin a new attempt. */
export function endAttempt(pool: PgPool): void {
  pool.attempt++;
  pool.hostsTried = 0;
  pool.failedAddresses = [];
}

/** True if the pool stays with a host as long as that works. There is only one primary. */
function staysWithHost({ db }: PgPool): boolean {
  const { loadBalanceHosts, targetSession } = db.config;
  if (targetSession === TargetSession.READ_WRITE || targetSession === TargetSession.PRIMARY) return true;
  return loadBalanceHosts === LoadBalanceHosts.DISABLE;
}

/** The host and port for the next connection. */
export function pickHost(pool: PgPool): { host: string | null; port: number } {
  const { host, port, ports } = pool.db.config;
  const hosts = hostNames(host);
  if (hosts.length === 1) return { host: hosts[0] as string | null, port };
  const sameHost = pool.failedAddresses.length > 0;
  let at = pool.rrcounter;
  if (!staysWithHost(pool)) {
    // the counter is already at the host after the last one used
    if (sameHost) at = (at - 1) & 0xffff;
    else pool.rrcounter = (at + 1) & 0xffff;
  } else if (!sameHost && (pool.lastConnectFailed || pool.hostsTried > 0)) {
    at = pool.rrcounter = (at + 1) & 0xffff;
  }
  const index = at % hosts.length;
  return { host: hosts[index] as string | null, port: ports?.[index] ?? port };
}

/**
 * Handles the failure of the host of a connection.
 * @returns true if the attempt continues: the next connection goes to another address of that host, or to another host
 */
export function nextTarget({ pool, host, remoteAddr }: ServerSocket): boolean {
  pool.attempt++;
  if (host !== null && pool.failedAddresses.length + 1 < dnsAddressCount(host)) {
    pool.failedAddresses = [...pool.failedAddresses, remoteAddr.host];
    pool.targetFailedAt = getCachedTime();
    return true;
  }
  pool.failedAddresses = [];
  if (pool.hostsTried + 1 < hostNames(pool.db.config.host).length) {
    pool.hostsTried++;
    pool.targetFailedAt = getCachedTime();
    return true;
  }
  pool.hostsTried = 0;
  return false;
}
