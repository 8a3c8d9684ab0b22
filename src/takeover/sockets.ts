/*
 * Finds the sockets that a handover covers.
 */

import { nextOf } from '../core/base/list';
import { native } from '../core/base/native';
import { type AnySocket, type PgPool, type ServerSocket, SocketState } from '../core/pool/bouncer';
import { Recovery } from '../core/pool/phases';
import { peerPoolList, poolList } from '../core/pool/pool';
import { isOwnRequest, isServerSocket } from '../core/pool/socket';
import { clientStates, eachSocket, loginClientList, serverStates } from '../core/pool/states';
import { FORMAT_LISTEN, FORMAT_TLS } from './format';

/** All pools; the pools of peers come last. */
export function allPools(): PgPool[] {
  const pools: PgPool[] = [];
  for (let pool = poolList.head; pool !== null; pool = nextOf(pool)) pools.push(pool);
  for (let pool = peerPoolList.head; pool !== null; pool = nextOf(pool)) pools.push(pool);
  return pools;
}

/** Calls `each` for every socket of a pool that is handed over, in the order of its lists: clients first. */
export function eachOfPool(pool: PgPool, each: (sk: AnySocket) => void): void {
  for (const { list } of clientStates) eachSocket(list(pool), each);
  for (const { list, handover } of serverStates) if (handover !== null) eachSocket(list(pool), each);
}

/** All sockets except `except`, including servers that are logging in. */
export function allSockets(except: AnySocket | null): AnySocket[] {
  const found: AnySocket[] = [];
  const take = (sk: AnySocket): void => {
    if (sk !== except && sk.handle >= 0) found.push(sk);
  };
  eachSocket(loginClientList, take);
  for (const pool of allPools()) {
    eachOfPool(pool, take);
    eachSocket(pool.newServerList, take);
  }
  return found;
}

/** Counts the clients and the servers among the sockets. */
export function countKinds(sockets: readonly AnySocket[]): { clients: number; servers: number } {
  const servers = sockets.filter(isServerSocket).length;
  return { clients: sockets.length - servers, servers };
}

/** What the loop says about a connection whose TLS handshake is not finished. */
const UNDER_WAY = 'handshake under way';

/** Whether the TLS handshake of a client is under way. Those of servers are begun again by the new process. */
export function anyHandshake(): boolean {
  for (let sk = loginClientList.head; sk !== null; sk = nextOf(sk)) {
    if (sk.tls && sk.handle >= 0 && native.tlsRefusal(sk.handle) === UNDER_WAY) return true;
  }
  return false;
}

/** True for a listening connection, and for its clients. */
export function isListening(sk: AnySocket): boolean {
  return isServerSocket(sk) ? sk.state === SocketState.SV_LISTEN : (sk.listening?.channels.size ?? 0) > 0;
}

/** Why a new process of that format cannot take it. */
function tooOld(sk: AnySocket, format: number): string | null {
  if (format < FORMAT_LISTEN && isListening(sk)) return 'new process without support for shared LISTEN';
  return format < FORMAT_TLS && sk.tls ? 'new process without support for TLS' : null;
}

/** True if a server without a client waits for the end of a cancel request that ends with the old process. */
function waitsInVain(server: ServerSocket, format: number, refused?: ReadonlySet<number>): boolean {
  if (server.state !== SocketState.SV_BEING_CANCELED) return false;
  return server.cancelingClients?.some((req) => refusalOf(req, format, refused) !== null) === true;
}

function ownRefusal(sk: AnySocket, format: number, refused?: ReadonlySet<number>): string | null {
  if (isServerSocket(sk)) {
    if (sk.recovery !== Recovery.NONE || sk.cancelingClients?.some(isOwnRequest)) return 'its client has left';
    if (waitsInVain(sk, format, refused)) return 'cancel request that cannot be handed over';
  } else if (isOwnRequest(sk)) return 'cancel request of the pooler';
  const old = tooOld(sk, format);
  if (old !== null || !sk.tls) return old;
  return refused === undefined || refused.has(sk.handle) ? native.tlsRefusal(sk.handle) : null;
}

function ownLastingRefusal(sk: AnySocket, format: number): string | null {
  return tooOld(sk, format) ?? (sk.tls ? native.tlsLastingRefusal(sk.handle) : null);
}

/**
 * Why a socket cannot be handed over, null = it can. It ends with the old process then, and so does the socket linked to
 * it: the reason is the same for both.
 * @param refused the handles whose TLS may be the reason; default: all
 */
export function refusalOf(sk: AnySocket, format: number, refused?: ReadonlySet<number>): string | null {
  return ownRefusal(sk, format, refused) ?? (sk.link === null ? null : ownRefusal(sk.link, format, refused));
}

/** As refusalOf(), but only reasons that stay: others, such as half a record, may be gone at the freeze. */
export function lastingRefusalOf(sk: AnySocket, format: number): string | null {
  const own = ownLastingRefusal(sk, format);
  return own !== null || sk.link === null ? own : ownLastingRefusal(sk.link, format);
}
