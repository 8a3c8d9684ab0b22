// Marks server connections whose settings have changed: they are closed when they become idle.

import { nextOf } from '../base/list';
import { hostNames } from '../config/records';
import { type PgDatabase, type PgPool, ServerProtocol, SocketState } from '../pool/bouncer';
import { databaseList } from '../pool/database';
import { forEachServer } from '../pool/states';

import { resetWelcomeMsg } from '../pool/welcome';
import { endAttempt } from './hosts';
import { closeServerList } from './kill';
import { disconnectServer, LoginOutcome } from './objects';

/** Nothing is known about the servers of a pool any more: its next login need not wait, and no client gets an old error. */
function forgetFailures(pool: PgPool): void {
  endAttempt(pool);
  pool.lastLoginFailed = pool.lastConnectFailed = pool.holding = false;
}

/** Closes the servers of this pool when they are released, and those logging in at once. */
export function tagPoolDirty(pool: PgPool): void {
  if (pool.db.admin) return;
  resetWelcomeMsg(pool);
  forEachServer(pool, (server) => {
    server.closeNeeded = true;
  });
  closeServerList(pool.newServerList, 'connect string changed');
  forgetFailures(pool);
}

/** Does so for all pools of a database: its connect string changed, or RECONNECT was requested. */
export function tagDatabaseDirty(db: PgDatabase): void {
  db.serverProtocol = ServerProtocol.ASK_32;
  for (const pool of db.pools) tagPoolDirty(pool);
}

/**
 * Handles a change of the host list only: closes servers on a host that is no longer listed.
 * @param host the new list, as in the connect string
 */
export function tagHostsGone(db: PgDatabase, host: string | null): void {
  const hosts = hostNames(host);
  // no host is left, so what is known about the old servers does not apply to the new servers
  if (!hostNames(db.config.host).some((name) => hosts.includes(name))) {
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
    forgetFailures(pool);
  }
}

/** A host name lost an address: closes servers on that address when they are idle. */
export function tagHostAddrDirty(host: string, addr: string): void {
  for (let db = databaseList.head; db !== null; db = nextOf(db)) {
    for (const pool of db.pools) {
      forEachServer(pool, (server) => {
        // also if the name is one of a list of hosts, which PgBouncer does not consider
        if (server.host === host && server.remoteAddr.host === addr) server.closeNeeded = true;
      });
    }
  }
}
