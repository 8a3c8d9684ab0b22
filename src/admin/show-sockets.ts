/*
 * SHOW CLIENTS, SERVERS, SOCKETS and ACTIVE_SOCKETS: one row per connection.
 */

import { nextOf, type StatList } from '../core/base/list';
import { native } from '../core/base/native';
import { getCachedTime, USEC, wallTime } from '../core/base/time';
import { addrHost, isUnixAddr } from '../core/net/addr';
import { sbufIsEmpty } from '../core/net/sbuf';
import { tlsConnectionInfo } from '../core/net/tls';
import { type AnySocket, type PgAddr, type PgPool, Replication } from '../core/pool/bouncer';
import { peerPoolList, poolList } from '../core/pool/pool';
import { isServerSocket, shownDatabase } from '../core/pool/socket';
import { preparedCount } from '../core/pool/statements';
import { clientStates, eachSocket, LOGIN_STATE_NAME, loginClientList, serverStates } from '../core/pool/states';
import { Var } from '../core/pool/varcache';
import type { ColumnValue } from '../core/wire/messages';
import type { PutRow } from './reply';

/** by Replication */
const replicationNames = ['none', 'logical', 'physical'];

/** Stands for the object's address in PgBouncer: unique for the lifetime of the process, and the same as in the log. */
function ptrText(sk: AnySocket): string {
  return `0x${sk.id.toString(16)}`;
}

/** Empty for a connection that is still being opened. */
function hostText(addr: PgAddr): string {
  return addr.host === '' ? '(bad-af)' : addrHost(addr);
}

/** The pid of the peer's process on this machine, or else the pid from the server's cancel key. */
function remotePid(sk: AnySocket): number {
  const pid = isUnixAddr(sk.remoteAddr) ? sk.remoteAddr.pid : 0;
  return pid === 0 && isServerSocket(sk) ? sk.cancelKey.readInt32BE(0) : pid;
}

/**
 * The debug columns. The loop has no buffer per socket: buffered input starts at 0 and is unparsed, and parsed bytes
 * are unsent output of the linked socket.
 */
function bufferValues(sk: AnySocket): number[] {
  const kept = sk.handle >= 0 ? native.keptLength(sk.handle) : 0;
  const unsent = sk.link !== null && sk.link.handle >= 0 ? native.unsent(sk.link.handle) : 0;
  return [kept, 0, sk.pktRemain, 0, 0, kept, unsent];
}

/** @param now usec. @param debug with the columns of SHOW SOCKETS */
function socketRow(sk: AnySocket, state: string, now: number, debug: boolean): ColumnValue[] {
  const isServer = isServerSocket(sk);
  const wait = !isServer && sk.queryStart > 0 ? now - sk.queryStart : 0;
  const db = shownDatabase(sk);
  const row: ColumnValue[] = [
    isServer ? 'S' : 'C',
    sk.loginUser?.name ?? '(nouser)',
    db !== null && db.peerId === 0 ? db.name : '(nodb)',
    replicationNames[sk.replication] ?? (replicationNames[Replication.NONE] as string),
    sk.link === null && state === 'active' ? 'idle' : state,
    hostText(sk.remoteAddr),
    sk.remoteAddr.port,
    hostText(sk.localAddr),
    sk.localAddr.port,
    wallTime(sk.connectTime),
    wallTime(sk.requestTime),
    Math.floor(wait / USEC),
    wait % USEC,
    isServer && sk.closeNeeded ? 1 : 0,
    ptrText(sk),
    sk.link === null ? '' : ptrText(sk.link),
    remotePid(sk),
    tlsConnectionInfo(sk),
    sk.vars[Var.APPNAME] ?? '',
    preparedCount(sk),
    sk.id,
  ];
  return debug ? row.concat(bufferValues(sk)) : row;
}

/** Prints the sockets of the given states, pool by pool, as SHOW CLIENTS and SHOW SERVERS do. */
function stateRows<T extends AnySocket>(
  put: PutRow,
  pools: StatList<PgPool>,
  states: readonly { list: (pool: PgPool) => StatList<T>; show: string }[],
): void {
  const now = getCachedTime();
  for (let pool = pools.head; pool !== null; pool = nextOf(pool))
    for (const { list, show } of states) eachSocket(list(pool), (sk) => put(...socketRow(sk, show, now, false)));
}

/** The pool of a peer has cancel requests, and the servers that carry them. */
const cancelClientStates = clientStates.filter(({ show }) => show.endsWith('cancel_req'));
const peerServerStates = serverStates.filter(({ show }) => show === 'new' || show === 'active_cancel');

export function clientRows(put: PutRow): void {
  stateRows(put, poolList, clientStates);
  stateRows(put, peerPoolList, cancelClientStates);
}

export function serverRows(put: PutRow): void {
  stateRows(put, poolList, serverStates);
  stateRows(put, peerPoolList, peerServerStates);
}

function debugRows(put: PutRow, wanted: (sk: AnySocket) => boolean): void {
  const now = getCachedTime();
  const putIfWanted = (sk: AnySocket, name: string): void => {
    if (wanted(sk)) put(...socketRow(sk, name, now, true));
  };
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    for (const { list, showSockets } of [...clientStates, ...serverStates])
      if (showSockets !== null) eachSocket<AnySocket>(list(pool), (sk) => putIfWanted(sk, showSockets));
  }
  eachSocket(loginClientList, (sk) => putIfWanted(sk, LOGIN_STATE_NAME));
}

export function socketRows(put: PutRow): void {
  debugRows(put, () => true);
}

/** Rows of SHOW ACTIVE_SOCKETS: only sockets with bytes in their buffers. */
export function activeSocketRows(put: PutRow): void {
  debugRows(put, (sk) => !sbufIsEmpty(sk));
}
