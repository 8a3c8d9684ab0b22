/*
 * Rows of the kinds of objects, with estimates of the memory that they use. PgBouncer asks its allocators; here the
 * garbage collector owns the memory.
 */

import { nextOf } from '../base/list';
import { native } from '../base/native';
import { databaseList } from '../pool/database';
import { poolList } from '../pool/pool';
import { preparedCount } from '../pool/statements';
import { forEachServer } from '../pool/states';
import { userCount } from '../pool/user';
import { varNames } from '../pool/varcache';
import { listCounts } from './lists';

/** Estimated bytes of one object and the memory that only it uses. */
enum Size {
  USER = 272,
  CREDENTIALS = 160,
  DATABASE = 448,
  POOL = 1760,
  SOCKET = 800,
  /** type and action in 16 bits, the statement in 32 */
  REQUEST = 6,
  /** a pointer to a text that may be shared */
  VAR = 8,
  PREPARED_STATEMENT = 96,
}

interface MemoryRow {
  /** PgBouncer's name of the allocator */
  readonly name: string;
  /** bytes of one object */
  readonly size: number;
  readonly used: number;
  readonly free: number;
}

function credentialsCount(): number {
  let count = userCount();
  for (let db = databaseList.head; db !== null; db = nextOf(db)) {
    count += db.dynamicUsers.size + (db.forcedUser === null ? 0 : 1);
  }
  return count;
}

function serverObjects(): { requests: number; prepared: number } {
  const counts = { requests: 0, prepared: 0 };
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    forEachServer(pool, (server) => {
      counts.requests += server.requests.count;
      counts.prepared += preparedCount(server);
    });
  }
  return counts;
}

export function memoryRows(): MemoryRow[] {
  const { requests, prepared } = serverObjects();
  const counts = listCounts();
  const { usedClients, freeClients, usedServers, freeServers } = counts;
  const row = (name: string, size: number, used: number, free = 0): MemoryRow => ({ name, size, used, free });
  return [
    row('user_cache', Size.USER, counts.users),
    row('credentials_cache', Size.CREDENTIALS, credentialsCount()),
    row('db_cache', Size.DATABASE, counts.databases),
    row('peer_cache', Size.DATABASE, counts.peers),
    row('peer_pool_cache', Size.POOL, counts.peerPools),
    row('pool_cache', Size.POOL, counts.pools),
    row('outstanding_request_cache', Size.REQUEST, requests),
    row('server_cache', Size.SOCKET, usedServers, freeServers),
    row('client_cache', Size.SOCKET, usedClients, freeClients),
    // all connections share one receive arena
    row('iobuf_cache', native.arena.byteLength, 1),
    row('var_list_cache', Size.VAR * varNames().length, usedClients + usedServers, freeClients + freeServers),
    row('server_prepared_statement_cache', Size.PREPARED_STATEMENT, prepared),
  ];
}
