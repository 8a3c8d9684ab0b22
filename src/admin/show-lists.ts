/*
 * SHOW MEM, LISTS, THREADS, DNS_HOSTS and DNS_ZONES: numbers of objects, what the threads do, and the contents of the DNS
 * cache.
 */

import { dnsForEachZone } from '../core/net/dns-zones';
import { dnsForEachHost } from '../core/net/dnslookup';
import { listCounts } from '../core/report/lists';
import { memoryRows } from '../core/report/memory';
import { threadRows } from '../core/report/threads';
import type { PutRow } from './reply';

export function putMem(put: PutRow): void {
  for (const { name, size, used, free } of memoryRows()) put(name, size, used, free, (used + free) * size);
}

export function putLists(put: PutRow): void {
  const counts = listCounts();
  put('databases', counts.databases);
  put('users', counts.users);
  put('peers', counts.peers);
  put('pools', counts.pools);
  put('peer_pools', counts.peerPools);
  put('free_clients', counts.freeClients);
  put('used_clients', counts.usedClients);
  put('login_clients', counts.loginClients);
  put('free_servers', counts.freeServers);
  put('used_servers', counts.usedServers);
  put('dns_names', counts.dnsNames);
  put('dns_zones', counts.dnsZones);
  put('dns_queries', counts.dnsQueries);
  put('dns_pending', counts.dnsPending);
}

export function putThreads(put: PutRow): void {
  for (const { name, handles, turns, received, sent, cpuUsec, busyPercent } of threadRows())
    put(name, handles, turns, received, sent, cpuUsec, busyPercent);
}

export function putDnsHosts(put: PutRow): void {
  dnsForEachHost((name, ttl, addrs) => put(name, ttl, addrs.join(',')));
}

export function putDnsZones(put: PutRow): void {
  dnsForEachZone((zone, serial, count) => put(zone, serial, count));
}
