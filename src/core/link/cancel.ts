/*
 * Cancel requests. The pooler finds a request's client by its key, opens a connection for the request, and forwards it
 * with the server's key. With peering, the request may be for another process.
 */

import { nextOf } from '../base/list';
import { logDebug, slogDebug, slogWarning } from '../base/log';
import { getCachedTime } from '../base/time';
import { cf } from '../config/settings';
import { sbufContinue, sbufPause, sendBytes, sendPacket } from '../net/sbuf';
import { type ClientSocket, type PgDatabase, type PgPool, type ServerSocket, SocketState } from '../pool/bouncer';
import { CANCELLATION_TTL_MASK, findByCancelKey, findByForwardedKey, peerIdOf } from '../pool/cancel-keys';
import { findPeer } from '../pool/database';
import { addressPeerId, DNS_PEER, reachedAt } from '../pool/peer-address';
import { Dropping } from '../pool/phases';
import { getPeerPool } from '../pool/pool';
import { addCancel } from '../pool/socket';
import { changeClientState, changeServerState, newOwnRequest } from '../pool/states';
import { count, Stat } from '../pool/stats';
import { upcalls } from '../pool/upcalls';
import { PACKET_READY_IDLE, writeCancelRequest } from '../wire/messages';
import { BACKENDKEY_LEN, PqMsg } from '../wire/packets';
import { pktbufTemp } from '../wire/pktbuf';
import { Verdict } from '../wire/verdict';
import { sameEnd } from './connect';
import { launchFor } from './launch';
import { activateClient, disconnectClient, disconnectServer, LoginOutcome } from './objects';
import { dnsPeersWith, usesPeersDns, waitForPeers } from './peers-dns';
import { sendPoolerError } from './pooler-error';

const ERRCODE_QUERY_CANCELED = '57014';
/** Reasons of PgBouncer for closing the connection of a request. */
const FAILED = 'failed cancel request';
const NO_PEER = 'could not find peer to forward request to';
/** Most peers beside the first that get a request because their numbers are the same by chance. */
const COPIES_MAX = 3;

/** Queues a request. Bytes that some clients send after it are not read. */
function pauseCancelRequest(req: ClientSocket): void {
  slogDebug(req, 'pause_cancel_request');
  changeClientState(req, SocketState.CL_WAITING_CANCEL);
  sbufPause(req);
}

function forwardToPeer(peerId: number, req: ClientSocket, key: Buffer): void {
  if (((key[7] as number) & CANCELLATION_TTL_MASK) === 0) {
    disconnectClient(req, false, 'failed to forward cancel request because its TTL was exhausted');
    return;
  }
  // one hop less; the count is in the lowest bits
  key[7] = (key[7] as number) - 1;
  const peer = findPeer(peerId);
  if (peer === null) {
    disconnectClient(req, false, NO_PEER);
    return;
  }
  queueForPeer(peer, req, key);
}

function queueForPeer(peer: PgDatabase, req: ClientSocket, key: Buffer): void {
  logDebug(`forwarding cancellation request to peer ${peer.name}`);
  req.cancelKey = key;
  req.pool = getPeerPool(peer);
  pauseCancelRequest(req);
  launchFor(req.pool, 1);
}

/** Queues the same request for one more peer. */
function queueCopyForPeer(peer: PgDatabase, { remoteAddr }: ClientSocket, key: Buffer): void {
  const copy = newOwnRequest();
  copy.connectTime = copy.requestTime = getCachedTime();
  copy.remoteAddr = remoteAddr;
  copy.cancelKey = key;
  copy.pool = getPeerPool(peer);
  changeClientState(copy, SocketState.CL_WAITING_CANCEL);
  launchFor(copy.pool, 1);
}

/**
 * Forwards a request to the peer of peers_dns that has issued its key, or disconnects it. The peer does not forward it
 * once more: it has issued the key, or no process has.
 * @returns true if the request waits for a look-up of the peers, and is then handled again
 */
function forwardToDnsPeer(req: ClientSocket, key: Buffer): boolean {
  const peerId = peerIdOf(key);
  const own = reachedAt(req);
  if (peerId < DNS_PEER || ((key[7] as number) & CANCELLATION_TTL_MASK) === 0) {
    disconnectClient(req, false, FAILED);
    return false;
  }
  const [peer, ...others] = dnsPeersWith(peerId).filter(({ name }) => name !== own);
  if (peer === undefined) {
    const ours = peerId === addressPeerId(own);
    if (!ours && waitForPeers(req)) return true;
    disconnectClient(req, false, ours ? FAILED : NO_PEER);
    return false;
  }
  key[7] = (key[7] as number) & ~CANCELLATION_TTL_MASK;
  for (const other of others.slice(0, COPIES_MAX)) queueCopyForPeer(other, req, key);
  queueForPeer(peer, req, key);
  return false;
}

/**
 * Cancels a client's request that no server has received yet: removes the client from the queue and handles its packet
 * again. If the pooler is setting the client's variables, the packet is handled afterwards: that SET must not be
 * canceled.
 */
function cancelWaiting(client: ClientSocket): void {
  client.dropping = Dropping.REQUEST;
  if (client.state !== SocketState.CL_WAITING) return;
  // a replication client waits for its own server connection to log in
  const server = client.link;
  if (server !== null) {
    server.link = null;
    client.link = null;
    disconnectServer(server, true, 'replication client canceled its request', LoginOutcome.ABANDONED);
  }
  activateClient(client);
}

/** Handles a packet of a client whose request was canceled before a server received it, as PostgreSQL would. */
export function dropCanceled(client: ClientSocket, type: number, len: number): Verdict {
  count((client.pool as PgPool).stats, Stat.CLIENT_BYTES, len);
  if (type === PqMsg.Terminate) {
    disconnectClient(client, false, 'client close request');
    return Verdict.DISCONNECTED;
  }
  const first = client.dropping === Dropping.REQUEST;
  const last = type === PqMsg.Sync || (first && (type === PqMsg.Query || type === PqMsg.FunctionCall));
  client.dropping = last ? Dropping.NONE : Dropping.UNTIL_SYNC;
  client.queryStart = client.xactStart = 0;
  let sent = true;
  if (first)
    sent = sendPoolerError(client, last, false, ERRCODE_QUERY_CANCELED, 'canceling statement due to user request');
  else if (last) sent = sendBytes(client, PACKET_READY_IDLE, PACKET_READY_IDLE.length);
  if (sent) return Verdict.CONSUMED;
  disconnectClient(client, false, 'unexpected eof');
  return Verdict.DISCONNECTED;
}

/**
 * Handles a cancel request.
 * @param key the bytes after the code; owned by the request from now on
 * @returns false if it has to be handled again later
 */
export function acceptCancelRequest(req: ClientSocket, key: Buffer): boolean {
  // the client may have got its key before peering was configured, or with another peer_id
  const known = findByCancelKey(key);
  if (known !== null) {
    cancelFor(known, req);
    return true;
  }
  // a longer key names no peer: its client logged in before peering was configured
  if (cf.peerId > 0 && key.length === BACKENDKEY_LEN) {
    const peerId = peerIdOf(key);
    if (peerId !== cf.peerId) {
      forwardToPeer(peerId, req, key);
      return true;
    }
    // the client's key is stored with the full count of hops
    key[7] = (key[7] as number) | CANCELLATION_TTL_MASK;
  }

  const client = findByCancelKey(key) ?? (usesPeersDns() ? findByForwardedKey(key) : null);
  if (client !== null) cancelFor(client, req);
  else if (usesPeersDns()) return !forwardToDnsPeer(req, key);
  else disconnectClient(req, false, FAILED);
  return true;
}

/** Cancels what a client waits for, or queues the request for its server. */
function cancelFor(client: ClientSocket, req: ClientSocket): void {
  if ((client.pool as PgPool).db.admin) {
    disconnectClient(req, false, 'cancel request for console client');
    upcalls.admin.handleCancel(client);
    return;
  }
  const server = client.link;
  if (client.state === SocketState.CL_WAITING || server?.settingVars) {
    disconnectClient(req, false, 'canceled a request that was waiting for a server');
    cancelWaiting(client);
    return;
  }
  if (server === null) {
    disconnectClient(req, false, 'cancel request for idle client');
    return;
  }
  addCancel(server, req);
  req.pool = client.pool as PgPool;
  pauseCancelRequest(req);
  launchFor(req.pool, req.pool.waitingCancelReqList.count);
}

/** The waiting cancel request that a new connection can carry, or null: the query must run at its other end. */
export function cancelRequestFor(server: ServerSocket): ClientSocket | null {
  for (let req = server.pool.waitingCancelReqList.head; req !== null; req = nextOf(req)) {
    // a request to a peer has no server here, and neither has one whose query has ended, which is dropped
    if (req.canceledServer === null || sameEnd(req.canceledServer, server)) return req;
  }
  return null;
}

/** A connection is open, with TLS if the canceled one has it: sends the cancel request on it. */
export function forwardCancelRequest(server: ServerSocket, req: ClientSocket): void {
  const pool = server.pool;
  server.login = null;
  server.link = req;
  req.link = server;
  let key = req.cancelKey;
  if (pool.db.peerId === 0) {
    if (req.canceledServer === null) {
      // the query has ended, and the server may be running another client's query
      disconnectClient(req, false, 'not sending cancel request for client that is now idle');
      return;
    }
    key = req.canceledServer.cancelKey;
  }
  const buf = pktbufTemp();
  writeCancelRequest(buf, key);
  if (!sendPacket(server, buf)) {
    slogWarning(req, 'sending cancel request failed');
    disconnectClient(req, false, 'failed to send cancel request');
    return;
  }
  slogDebug(req, 'started sending cancel request');
  changeClientState(req, SocketState.CL_ACTIVE_CANCEL);
  changeServerState(server, SocketState.SV_ACTIVE_CANCEL);
  sbufContinue(server);
}
