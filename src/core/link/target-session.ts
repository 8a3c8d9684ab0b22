/*
 * target_session_attrs: whether a server fits what its database asks for, and what happens when its role changes.
 * login/server-login.ts asks at the end of each login. session/ reports parameters and errors of servers.
 */

import { slogWarning } from '../base/log';
import { getCachedTime, USEC } from '../base/time';
import { TargetSession } from '../config/choices';
import type { ServerSocket } from '../pool/bouncer';
import { forEachServer } from '../pool/states';
import { resetWelcomeMsg } from '../pool/welcome';

/** SQLSTATE read_only_sql_transaction */
const READ_ONLY_TRANSACTION = '25006';
/** A client can cause that error by itself, so it counts only once in this time. usec */
const RECYCLE_INTERVAL = 10 * USEC;

/** Notes a parameter that a server has reported. @returns true if the server's role has changed since its login */
export function noteRole(server: ServerSocket, name: string, value: string): boolean {
  if (name === 'in_hot_standby') {
    const before = server.hotStandby;
    server.hotStandby = value === 'on';
    // unknown after an online reboot from PgBouncer or an earlier version
    return server.login === null && before !== server.hotStandby;
  }
  // later, clients change it
  if (name === 'default_transaction_read_only' && server.login !== null) server.readOnly = value === 'on';
  return false;
}

/** @returns null if the server fits, or else why not; PostgreSQL reports both parameters from version 14 on */
export function misfit(server: ServerSocket): string | null {
  const wanted = server.pool.db.config.targetSession;
  if (wanted === TargetSession.ANY) return null;
  const { hotStandby, readOnly } = server;
  if (hotStandby === null || readOnly === null) return 'server does not report in_hot_standby';
  switch (wanted) {
    case TargetSession.READ_WRITE:
      return hotStandby || readOnly ? 'session is read-only' : null;
    case TargetSession.READ_ONLY:
      return hotStandby || readOnly ? null : 'session is not read-only';
    case TargetSession.PRIMARY:
      return hotStandby ? 'server is in hot standby mode' : null;
    case TargetSession.STANDBY:
      return hotStandby ? null : 'server is not in hot standby mode';
  }
}

/** Closes all connections of a database to the host of this one, each when it is released. */
function recycleHost(server: ServerSocket, why: string): void {
  const { db } = server.pool;
  const { host, port } = server.remoteAddr;
  slogWarning(server, `${why}: replacing the server connections to this host`);
  db.recycledAt = getCachedTime();
  for (const pool of db.pools) {
    resetWelcomeMsg(pool);
    forEachServer(pool, (other) => {
      if (other.remoteAddr.host === host && other.remoteAddr.port === port) other.closeNeeded = true;
    });
  }
}

/** A logged-in server has reported another role. */
export function roleChanged(server: ServerSocket): void {
  if (misfit(server) !== null)
    recycleHost(server, `server is ${server.hotStandby ? '' : 'not '}in hot standby mode now`);
}

/** A server has answered with an error: if it refuses to write, the primary is another host. */
export function noteServerError(server: ServerSocket, sqlstate: string | null): void {
  const { db } = server.pool;
  const wanted = db.config.targetSession;
  if (sqlstate !== READ_ONLY_TRANSACTION || (wanted !== TargetSession.READ_WRITE && wanted !== TargetSession.PRIMARY))
    return;
  if (db.recycledAt === 0 || getCachedTime() - db.recycledAt >= RECYCLE_INTERVAL)
    recycleHost(server, 'server refuses to write');
}
