/*
 * SHOW CLIENTS, SERVERS, SOCKETS and ACTIVE_SOCKETS: one row per connection.
 */

import { nextOf, type StatList } from '../core/base/list';
import { native } from '../core/base/native';
import { getCachedTime, USEC, wallTime } from '../core/base/time';
import { addrHost, isUnixAddr } from '../core/net/addr';
import { sbufIsEmpty } from '../core/net/sbuf';
import { tlsConnectionInfo } from '../core/net/tls';
import { type PgAddr, type PgPool, type PgSocket, Replication } from '../core/pool/bouncer';
import { peerPoolList, poolList } from '../core/pool/pool';
import { isServerSocket, shownDatabase } from '../core/pool/socket';
import { preparedCount } from '../core/pool/statements';
import { loginClientList } from '../core/pool/states';
import { Var } from '../core/pool/varcache';
import type { ColumnValue } from '../core/wire/messages';
import type { PutRow } from './reply';

/** The lists of a pool, by the name of the field. */
type ListField = {
  [K in keyof PgPool]: PgPool[K] extends StatList<PgSocket> ? K : never;
}[keyof PgPool];

/** A list of a pool, and the state that its sockets are shown in. */
interface StateRow {
  readonly list: ListField;
  readonly state: string;
}

const cancelClientStates: readonly StateRow[] = [
  { list: 'activeCancelReqList', state: 'active_cancel_req' },
  { list: 'waitingCancelReqList', state: 'waiting_cancel_req' },
];

const clientStates: readonly StateRow[] = [
  { list: 'activeClientList', state: 'active' },
  { list: 'waitingClientList', state: 'waiting' },
  ...cancelClientStates,
];

const serverStates: readonly StateRow[] = [
  { list: 'activeServerList', state: 'active' },
  { list: 'idleServerList', state: 'idle' },
  { list: 'usedServerList', state: 'used' },
  { list: 'testedServerList', state: 'tested' },
  { list: 'newServerList', state: 'new' },
  { list: 'activeCancelServerList', state: 'active_cancel' },
  { list: 'beingCanceledServerList', state: 'being_canceled' },
];

const peerServerStates: readonly StateRow[] = [
  { list: 'newServerList', state: 'new' },
  { list: 'activeCancelServerList', state: 'active_cancel' },
];

/** SHOW SOCKETS has names of its own, and leaves out cancel requests. */
const socketStates: readonly StateRow[] = [
  { list: 'activeClientList', state: 'cl_active' },
  { list: 'waitingClientList', state: 'cl_waiting' },
  { list: 'activeServerList', state: 'sv_active' },
  { list: 'idleServerList', state: 'sv_idle' },
  { list: 'usedServerList', state: 'sv_used' },
  { list: 'testedServerList', state: 'sv_tested' },
  { list: 'newServerList', state: 'sv_login' },
];

/** by Replication */
const replicationNames = ['none', 'logical', 'physical'];

/** What stands for the address of the object: unique as long as the process lives, and the same in the log. */
function ptrText(sk: PgSocket): string {
  return `0x${sk.id.toString(16)}`;
}

/** A connection that is only being opened has no address yet. */
function hostText(addr: PgAddr): string {
  return addr.host === '' ? '(bad-af)' : addrHost(addr);
}

/** The peer's process if it is on this machine; else what the server gave as its pid in the cancel key. */
function remotePid(sk: PgSocket): number {
  const pid = isUnixAddr(sk.remoteAddr) ? sk.remoteAddr.pid : 0;
  return pid === 0 && isServerSocket(sk) ? sk.cancelKey.readInt32BE(0) : pid;
}

/**
 * The debug columns. The loop has no buffer per socket: what it keeps for one starts at 0 and is all unparsed, and what
 * was parsed but not sent waits at the other end of the link.
 */
function bufferValues(sk: PgSocket): number[] {
  const kept = sk.handle >= 0 ? native.keptLength(sk.handle) : 0;
  const unsent = sk.link !== null && sk.link.handle >= 0 ? native.unsent(sk.link.handle) : 0;
  return [kept, 0, sk.pktRemain, 0, 0, kept, unsent];
}

/** @param now usec. @param debug with the columns of SHOW SOCKETS */
function socketRow(sk: PgSocket, state: string, now: number, debug: boolean): ColumnValue[] {
  const wait = sk.queryStart > 0 ? now - sk.queryStart : 0;
  const db = shownDatabase(sk);
  const row: ColumnValue[] = [
    isServerSocket(sk) ? 'S' : 'C',
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
    sk.closeNeeded ? 1 : 0,
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

/** Calls back for every socket of the given states, pool by pool. */
function eachSocket(
  pools: StatList<PgPool>,
  states: readonly StateRow[],
  each: (sk: PgSocket, state: string) => void,
): void {
  for (let pool = pools.head; pool !== null; pool = nextOf(pool)) {
    for (const { list, state } of states) {
      for (let sk: PgSocket | null = pool[list].head; sk !== null; sk = nextOf(sk)) each(sk, state);
    }
  }
}

export function clientRows(put: PutRow): void {
  const now = getCachedTime();
  const each = (sk: PgSocket, state: string): void => put(...socketRow(sk, state, now, false));
  eachSocket(poolList, clientStates, each);
  eachSocket(peerPoolList, cancelClientStates, each);
}

export function serverRows(put: PutRow): void {
  const now = getCachedTime();
  const each = (sk: PgSocket, state: string): void => put(...socketRow(sk, state, now, false));
  eachSocket(poolList, serverStates, each);
  eachSocket(peerPoolList, peerServerStates, each);
}

function debugRows(put: PutRow, wanted: (sk: PgSocket) => boolean): void {
  const now = getCachedTime();
  const each = (sk: PgSocket, state: string): void => {
    if (wanted(sk)) put(...socketRow(sk, state, now, true));
  };
  eachSocket(poolList, socketStates, each);
  for (let sk = loginClientList.head; sk !== null; sk = nextOf(sk)) each(sk, 'cl_login');
}

export function socketRows(put: PutRow): void {
  debugRows(put, () => true);
}

/** Only those that have something in their buffers. */
export function activeSocketRows(put: PutRow): void {
  debugRows(put, (sk) => !sbufIsEmpty(sk));
}
