// Marks server connections whose settings have changed: they are closed when they become idle.

import { nextOf } from '../base/list';
import { type PgDatabase, type PgPool, ServerProtocol, SocketState } from '../pool/bouncer';
import { databaseList } from '../pool/database';
import { forEachServer } from '../pool/states';

import { resetWelcomeMsg } from '../pool/welcome';
import { endAttempt, hostsOf } from './hosts';
import { closeServerList, disconnectServer, LoginOutcome } from './objects';

/* ---- marking servers for closing ---- */

/** Servers of this pool are closed when their clients are done, those logging in at once. */
export function tagPoolDirty(pool: PgPool): void {
  if (pool.db.admin) return;
  resetWelcomeMsg(pool);
  forEachServer(pool, (server) => {
    server.closeNeeded = true;
  });
  closeServerList(pool.newServerList, 'connect string changed');
  endAttempt(pool);
}

/** Likewise for all pools of a database: its connect string changed, or RECONNECT was asked for. */
export function tagDatabaseDirty(db: PgDatabase): void {
  db.serverProtocol = ServerProtocol.ASK_32;
  for (const pool of db.pools) tagPoolDirty(pool);
}

/**
 * The list of hosts changed and nothing else: only servers on a host that left it go.
 * @param host the new list, as the connect string has it
 */
export function tagHostsGone(db: PgDatabase, host: string | null): void {
  const hosts = hostsOf(host);
  // nothing stays, and what was learnt of the old servers says nothing about the new
  if (!hostsOf(db.config.host).some((name) => hosts.includes(name))) {
    tagDatabaseDirty(db);
    return;
  }
  for (const pool of db.pools) {
    forEachServer(pool, (server) => {
      if (hosts.includes(server.host)) return;
      if (server.state === SocketState.SV_LOGIN)
        disconnectServer(server, true, 'connect string changed', LoginOutcome.ABANDONED);
      else server.closeNeeded = true;
    });
    endAttempt(pool);
  }
}

/** A host name lost an address: servers on that address go when they are free. */
export function tagHostAddrDirty(host: string, addr: string): void {
  for (let db = databaseList.head; db !== null; db = nextOf(db)) {
    for (const pool of db.pools) {
      forEachServer(pool, (server) => {
        // whether the name is the whole of db.config.host or one of a list, where the original overlooks it
        if (server.host === host && server.remoteAddr.host === addr) server.closeNeeded = true;
      });
    }
  }
}
