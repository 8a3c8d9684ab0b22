/*
 * Rows of client and server connections.
 */

import { nextOf, type StatList } from '../base/list';
import { native } from '../base/native';
import { getCachedTime } from '../base/time';
import { addrHost, isUnixAddr } from '../net/addr';
import { sbufIsEmpty } from '../net/sbuf';
import { tlsConnectionInfo } from '../net/tls';
import type { AnySocket, PgAddr, PgPool, Replication } from '../pool/bouncer';
import { peerPoolList, poolList } from '../pool/pool';
import { isServerSocket, shownDatabase } from '../pool/socket';
import { preparedCount } from '../pool/statements';
import { clientStates, LOGIN_STATE_NAME, loginClientList, serverStates } from '../pool/states';
import { Var } from '../pool/varcache';

export interface SocketRow {
  readonly isServer: boolean;
  readonly user: string | null;
  /** null for a cancel request to a peer, too */
  readonly database: string | null;
  readonly replication: Replication;
  readonly state: string;
  /** `unix` for a Unix socket, empty for a connection that is still being opened */
  readonly host: string;
  readonly port: number;
  readonly localHost: string;
  readonly localPort: number;
  readonly connectTime: number;
  readonly requestTime: number;
  /** how long a client's query has waited or run, usec */
  readonly wait: number;
  readonly closeNeeded: boolean;
  readonly id: number;
  /** id of the linked socket */
  readonly link: number | null;
  readonly remotePid: number;
  /** protocol version and cipher, empty without TLS */
  readonly tls: string;
  readonly applicationName: string;
  readonly preparedStatements: number;
}

export interface BufferRow extends SocketRow {
  /** bytes that were received and not handled yet */
  readonly kept: number;
  /** bytes of the current packet that have not arrived yet */
  readonly pktRemain: number;
  /** bytes of this socket that the linked socket has still to send */
  readonly unsent: number;
}

function hostOf(addr: PgAddr): string {
  return addr.host === '' ? '' : addrHost(addr);
}

/** The pid of the peer's process on this machine, or else the pid from the server's cancel key. */
function remotePid(sk: AnySocket): number {
  const pid = isUnixAddr(sk.remoteAddr) ? sk.remoteAddr.pid : 0;
  return pid === 0 && isServerSocket(sk) ? sk.cancelKey.readInt32BE(0) : pid;
}

function databaseName(sk: AnySocket): string | null {
  const db = shownDatabase(sk);
  return db !== null && db.peerId === 0 ? db.name : null;
}

function socketRow(sk: AnySocket, state: string, now: number): SocketRow {
  const isServer = isServerSocket(sk);
  return {
    isServer,
    user: sk.loginUser?.name ?? null,
    database: databaseName(sk),
    replication: sk.replication,
    state: sk.link === null && state === 'active' ? 'idle' : state,
    host: hostOf(sk.remoteAddr),
    port: sk.remoteAddr.port,
    localHost: hostOf(sk.localAddr),
    localPort: sk.localAddr.port,
    connectTime: sk.connectTime,
    requestTime: sk.requestTime,
    wait: !isServer && sk.queryStart > 0 ? now - sk.queryStart : 0,
    closeNeeded: isServer && sk.closeNeeded,
    id: sk.id,
    link: sk.link?.id ?? null,
    remotePid: remotePid(sk),
    tls: tlsConnectionInfo(sk),
    applicationName: sk.vars.get(Var.APPNAME) ?? '',
    preparedStatements: preparedCount(sk),
  };
}

function bufferRow(sk: AnySocket, state: string, now: number): BufferRow {
  return {
    ...socketRow(sk, state, now),
    kept: sk.handle >= 0 ? native.keptLength(sk.handle) : 0,
    pktRemain: sk.pktRemain,
    unsent: sk.link !== null && sk.link.handle >= 0 ? native.unsent(sk.link.handle) : 0,
  };
}

/** The sockets in the given states, pool by pool. */
function* inStates<T extends AnySocket>(
  pools: StatList<PgPool>,
  states: readonly { list: (pool: PgPool) => StatList<T>; show: string }[],
): Generator<SocketRow> {
  const now = getCachedTime();
  for (let pool = pools.head; pool !== null; pool = nextOf(pool)) {
    for (const { list, show } of states) {
      for (let sk = list(pool).head; sk !== null; sk = nextOf(sk)) yield socketRow(sk, show, now);
    }
  }
}

/** The pool of a peer has cancel requests, and the servers that carry them. */
const cancelClientStates = clientStates.filter(({ show }) => show.endsWith('cancel_req'));
const peerServerStates = serverStates.filter(({ show }) => show === 'new' || show === 'active_cancel');

/** Clients that have a pool. */
export function* clientRows(): Generator<SocketRow> {
  yield* inStates(poolList, clientStates);
  yield* inStates(peerPoolList, cancelClientStates);
}

export function* serverRows(): Generator<SocketRow> {
  yield* inStates(poolList, serverStates);
  yield* inStates(peerPoolList, peerServerStates);
}

interface NamedSocket {
  readonly sk: AnySocket;
  readonly state: string;
}

/** All sockets but those of cancel requests; clients that are logging in come last. */
function* namedSockets(): Generator<NamedSocket> {
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) {
    for (const { list, showSockets } of [...clientStates, ...serverStates]) {
      if (showSockets === null) continue;
      let sk: AnySocket | null = list(pool).head;
      for (; sk !== null; sk = nextOf(sk)) yield { sk, state: showSockets };
    }
  }
  for (let sk = loginClientList.head; sk !== null; sk = nextOf(sk)) yield { sk, state: LOGIN_STATE_NAME };
}

export function* bufferRows(): Generator<BufferRow> {
  const now = getCachedTime();
  for (const { sk, state } of namedSockets()) yield bufferRow(sk, state, now);
}

/** Only sockets with bytes in their buffers. */
export function* activeBufferRows(): Generator<BufferRow> {
  const now = getCachedTime();
  for (const { sk, state } of namedSockets()) if (!sbufIsEmpty(sk)) yield bufferRow(sk, state, now);
}
