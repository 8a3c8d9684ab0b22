/*
 * SHOW CLIENTS, SERVERS, SOCKETS and ACTIVE_SOCKETS: one row per connection.
 */

import { USEC, wallTime } from '../core/base/time';
import {
  activeBufferRows,
  type BufferRow,
  bufferRows,
  clientRows,
  type SocketRow,
  serverRows,
} from '../core/report/sockets';
import type { ColumnValue } from '../core/wire/messages';
import type { PutRow } from './reply';

/** by Replication */
const replicationNames = ['none', 'logical', 'physical'];

/** Stands for the object's address in PgBouncer: unique for the lifetime of the process, and the same as in the log. */
function ptrText(id: number | null): string {
  return id === null ? '' : `0x${id.toString(16)}`;
}

function hostText(host: string): string {
  return host === '' ? '(bad-af)' : host;
}

function socketValues(row: SocketRow): ColumnValue[] {
  return [
    row.isServer ? 'S' : 'C',
    row.user ?? '(nouser)',
    row.database ?? '(nodb)',
    replicationNames[row.replication] ?? 'none',
    row.state,
    hostText(row.host),
    row.port,
    hostText(row.localHost),
    row.localPort,
    wallTime(row.connectTime),
    wallTime(row.requestTime),
    Math.floor(row.wait / USEC),
    row.wait % USEC,
    row.closeNeeded ? 1 : 0,
    ptrText(row.id),
    ptrText(row.link),
    row.remotePid,
    row.tls,
    row.applicationName,
    row.preparedStatements,
    row.id,
  ];
}

/**
 * The values with those of the debug columns. The loop has no buffer per socket: buffered input starts at 0 and is
 * unparsed, and parsed bytes are unsent output of the linked socket.
 */
function bufferValues(row: BufferRow): ColumnValue[] {
  return [...socketValues(row), row.kept, 0, row.pktRemain, 0, 0, row.kept, row.unsent];
}

export function putClients(put: PutRow): void {
  for (const row of clientRows()) put(...socketValues(row));
}

export function putServers(put: PutRow): void {
  for (const row of serverRows()) put(...socketValues(row));
}

export function putSockets(put: PutRow): void {
  for (const row of bufferRows()) put(...bufferValues(row));
}

export function putActiveSockets(put: PutRow): void {
  for (const row of activeBufferRows()) put(...bufferValues(row));
}
