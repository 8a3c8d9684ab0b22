/*
 * Counts the traffic of a server connection: bytes, and the time that queries and transactions take.
 */

import { slogDebug, slogWarning, wantDebug } from '../base/log';
import { getCachedTime } from '../base/time';
import type { ClientSocket, ServerSocket } from '../pool/bouncer';
import { count, Stat } from '../pool/stats';
import { observe, Timing } from '../pool/timings';

/** Counts bytes received from a server. */
export function countBytes(server: ServerSocket, len: number): void {
  const stats = server.pool.stats;
  count(stats, Stat.SERVER_BYTES, len);
}

/**
 * Stops the clocks of a query and of a transaction. Pipelined queries are timed together, because the server is
 * occupied that long. The two warnings are PgBouncer's log lines, word for word.
 * @param ready the transaction has ended too
 * @param asynchronous the packet answers no request, so no query need have been running
 */
export function countTimes(server: ServerSocket, client: ClientSocket, ready: boolean, asynchronous: boolean): void {
  const stats = server.pool.stats;
  const now = getCachedTime();
  if (client.queryStart !== 0) {
    const total = now - client.queryStart;
    client.queryStart = 0;
    count(stats, Stat.QUERY_TIME, total);
    observe(server.pool, Timing.QUERY, total);
    if (wantDebug()) slogDebug(client, `query time: ${total} us`);
  } else if (!asynchronous) {
    slogWarning(client, 'FIXME: query end, but query_start == 0');
  }
  if (!ready) return;
  if (client.xactStart !== 0) {
    const total = now - client.xactStart;
    client.xactStart = 0;
    count(stats, Stat.XACT_TIME, total);
    observe(server.pool, Timing.TRANSACTION, total);
    if (wantDebug()) slogDebug(client, `transaction time: ${total} us`);
  } else if (!asynchronous) {
    slogWarning(client, 'FIXME: transaction end, but xact_start == 0');
  }
}
