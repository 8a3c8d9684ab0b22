/*
 * SHOW MEM, LISTS, DNS_HOSTS and DNS_ZONES: numbers of objects, and the contents of the DNS cache.
 */

import { nextOf } from '../core/base/list';
import { native } from '../core/base/native';
import { dnsForEachZone } from '../core/net/dns-zones';
import { dnsCounts, dnsForEachHost } from '../core/net/dnslookup';
import type { PgPool } from '../core/pool/bouncer';
import { databaseList, peerList } from '../core/pool/database';
import { peerPoolList, poolList } from '../core/pool/pool';
import { preparedCount } from '../core/pool/statements';
import { forEachServer, loginClientList, socketCounts } from '../core/pool/states';
import { userCount } from '../core/pool/user';
import { varNames } from '../core/pool/varcache';
import type { PutRow } from './reply';

/**
 * Estimated bytes of one object and the memory that only it uses. PgBouncer asks its allocators; here the garbage
 * collector owns the memory.
 */
enum Size {
  USER = 272,
  CREDENTIALS = 160,
  DATABASE = 448,
  POOL = 1760,
  SOCKET = 800,
  /** type and action in one integer */
  REQUEST = 2,
  /** a pointer to a text that may be shared */
  VAR = 8,
  PREPARED_STATEMENT = 96,
}

/** Numbers of the objects that SHOW MEM prints. */
interface Counts {
  credentials: number;
  requests: number;
  prepared: number;
}

function countObjects(): Counts {
  const counts: Counts = { credentials: userCount(), requests: 0, prepared: 0 };
  for (let db = databaseList.head; db !== null; db = nextOf(db)) {
    counts.credentials += db.dynamicUsers.size + (db.forcedUser === null ? 0 : 1);
  }
  for (let pool: PgPool | null = poolList.head; pool !== null; pool = nextOf(pool)) {
    forEachServer(pool, (server) => {
      counts.requests += server.requests.count ?? 0;
      counts.prepared += preparedCount(server);
    });
  }
  return counts;
}

export function memRows(put: PutRow): void {
  const counts = countObjects();
  const { clients, servers, clientsPeak, serversPeak } = socketCounts;
  const row = (name: string, size: number, used: number, free: number): void => {
    put(name, size, used, free, (used + free) * size);
  };
  row('user_cache', Size.USER, userCount(), 0);
  row('credentials_cache', Size.CREDENTIALS, counts.credentials, 0);
  row('db_cache', Size.DATABASE, databaseList.count, 0);
  row('peer_cache', Size.DATABASE, peerList.count, 0);
  row('peer_pool_cache', Size.POOL, peerPoolList.count, 0);
  row('pool_cache', Size.POOL, poolList.count, 0);
  row('outstanding_request_cache', Size.REQUEST, counts.requests, 0);
  row('server_cache', Size.SOCKET, servers, serversPeak - servers);
  row('client_cache', Size.SOCKET, clients, clientsPeak - clients);
  // all connections share one receive arena
  row('iobuf_cache', native.arena.byteLength, 1, 0);
  const free = clientsPeak + serversPeak - clients - servers;
  row('var_list_cache', Size.VAR * varNames().length, clients + servers, free);
  row('server_prepared_statement_cache', Size.PREPARED_STATEMENT, counts.prepared, 0);
}

export function listRows(put: PutRow): void {
  const dns = dnsCounts();
  put('databases', databaseList.count);
  put('users', userCount());
  put('peers', peerList.count);
  put('pools', poolList.count);
  put('peer_pools', peerPoolList.count);
  put('free_clients', socketCounts.clientsPeak - socketCounts.clients);
  put('used_clients', socketCounts.clients);
  put('login_clients', loginClientList.count);
  put('free_servers', socketCounts.serversPeak - socketCounts.servers);
  put('used_servers', socketCounts.servers);
  put('dns_names', dns.names);
  put('dns_zones', dns.zones);
  put('dns_queries', dns.queries);
  put('dns_pending', dns.pending);
}

export function dnsHostRows(put: PutRow): void {
  dnsForEachHost((name, ttl, addrs) => put(name, ttl, addrs.join(',')));
}

export function dnsZoneRows(put: PutRow): void {
  dnsForEachZone((zone, serial, count) => put(zone, serial, count));
}
