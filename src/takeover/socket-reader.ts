/*
 * Creates the sockets of a handover from their records and puts each into the list of its state, with its buffered
 * input and unsent output. Links are resolved at the end, because either side may come first. Used by
 * snapshot-reader.ts.
 */

import { native } from '../core/base/native';
import { attachHandle, sbufClose } from '../core/net/sbuf';
import { type AnySocket, type ClientSocket, type PgPool, type ServerSocket, SocketState } from '../core/pool/bouncer';
import { forgetCancelKey } from '../core/pool/cancel-keys';
import { forgetListener } from '../core/pool/listening';
import { endRestoring } from '../core/pool/prepare';
import { uncountClient } from '../core/pool/provisional';
import { addCancel, isDead, isServerSocket } from '../core/pool/socket';
import { freeClientStatements } from '../core/pool/statements';
import { insertInState, newClient, newServer, socketCounts, stateOfHandoverName } from '../core/pool/states';
import { VarCache } from '../core/pool/varcache';
import type { FrozenSockets } from './freeze';
import { type ClientRecord, readClient } from './records/client';
import type { Frame } from './records/frame';
import { settleListening } from './records/listening';
import { readRequests, readServer, type ServerRecord } from './records/server';
import type { SocketRecord } from './records/socket';

/** One side of a link whose other side may be described later. */
interface PendingLink<From extends AnySocket> {
  from: From;
  to: number;
}

interface PendingRequests {
  server: ServerSocket;
  record: ServerRecord;
}

/** States are sent by name. */
function isServerRecord(record: ClientRecord | ServerRecord): record is ServerRecord {
  return record.state.startsWith('sv_');
}

export class SocketReader {
  readonly frozen: FrozenSockets = { sockets: [], unsent: new Map(), staying: new Map(), idle: new Set() };
  /** sockets described so far, without clients that have disconnected since */
  arrived = 0;

  private readonly byId = new Map<number, AnySocket>();
  private readonly links: PendingLink<AnySocket>[] = [];
  private readonly cancels: PendingLink<ClientSocket>[] = [];
  private readonly requests: PendingRequests[] = [];

  /**
   * Takes a socket, or a client that was described ahead and has changed since.
   * @param raw its buffered input, unsent output, partial packet and TLS state
   * @param fd -1 for a client whose descriptor came with the description ahead
   */
  take(record: ClientRecord | ServerRecord, raw: Buffer, fd: number, frame: Frame): void {
    const known = this.byId.get(record.id);
    if (known === undefined && fd < 0) throw new Error(`a socket without its descriptor: ${record.id}`);
    if (known !== undefined) {
      if (isServerSocket(known)) throw new Error(`server ${record.id} is described twice`);
      this.takeOut(known);
      known.vars = new VarCache();
    }
    this.arrived++;
    const state = stateOfHandoverName(record.state);
    const pool = frame.pools.get(record.pool) ?? null;
    const isServer = isServerRecord(record);
    if (state === null || (pool === null && (isServer || record.pool >= 0))) {
      // a cancel request for a peer that is no longer configured, or its server
      if (known === undefined) native.closeFd(fd);
      else this.drop(record.id, known);
      return;
    }
    const sk = known ?? this.open(fd, isServer ? newServer(pool as PgPool) : newClient());
    if (isServerSocket(sk)) this.takeServer(record, sk, frame);
    else this.takeClient(record, sk, state, pool, frame);
    if (!insertInState(sk, state)) throw new Error(`a socket in state ${record.state} without a pool`);
    if (record.tls) this.takeTls(sk, record, record.tls, raw);
    this.takeBytes(sk, record, raw);
    if (record.link !== undefined) this.links.push({ from: sk, to: record.link });
    if (record.k === 'ahead') this.frozen.idle.add(sk);
    else this.frozen.idle.delete(sk);
    if (known !== undefined) return;
    this.frozen.sockets.push(sk);
    this.byId.set(record.id, sk);
  }

  private takeServer(record: ServerRecord, server: ServerSocket, frame: Frame): void {
    readServer(record, server, frame);
    if (record.requests !== undefined || record.unnamedOfClient) this.requests.push({ server, record });
  }

  private takeClient(
    record: ClientRecord,
    client: ClientSocket,
    state: SocketState,
    pool: PgPool | null,
    frame: Frame,
  ): void {
    readClient(record, client, state, pool, frame);
    if (record.canceled !== undefined) this.cancels.push({ from: client, to: record.canceled });
  }

  /** Drops a client that has disconnected since it was described ahead. */
  takeGone(id: number): void {
    const known = this.byId.get(id);
    if (known === undefined || isServerSocket(known)) throw new Error(`unknown client ${id}`);
    this.takeOut(known);
    this.drop(id, known);
  }

  /** After the last socket: links clients to servers, and cancel requests to the servers whose queries they cancel. */
  resolveLinks(frame: Frame): void {
    this.frozen.sockets = this.frozen.sockets.filter((sk) => !isDead(sk));
    settleListening();
    for (const { from, to } of this.links) this.link(from, this.byId.get(to) ?? null);
    for (const { server, record } of this.requests) readRequests(record, server, frame);
    for (const { from, to } of this.cancels) {
      const server = this.byId.get(to) ?? null;
      if (server !== null && isServerSocket(server)) addCancel(server, from);
    }
    endRestoring();
  }

  private link(from: AnySocket, to: AnySocket | null): void {
    if (isServerSocket(from)) {
      if (to !== null && isServerSocket(to)) throw new Error('a server is linked with a server');
      from.link = to;
      // whether the client's transaction has begun is not known here, so none of its requests may be repeated
      from.requests.total++;
    } else {
      if (to !== null && !isServerSocket(to)) throw new Error('a client is linked with a client');
      from.link = to;
    }
  }

  private open<T extends AnySocket>(fd: number, sk: T): T {
    const handle = native.open(fd);
    if (handle < 0) throw new Error(`cannot use a socket: ${native.strerror(-handle)}`);
    attachHandle(sk, handle);
    sk.shared = true;
    return sk;
  }

  /** Removes a client from its list and its counts; its connection stays open. */
  private takeOut(client: ClientSocket): void {
    this.arrived--;
    client.list?.remove(client);
    forgetListener(client);
    freeClientStatements(client);
    uncountClient(client);
  }

  /** @param id that of its records */
  private drop(id: number, client: AnySocket): void {
    if (isServerSocket(client)) throw new Error('only clients are described ahead');
    this.byId.delete(id);
    this.frozen.idle.delete(client);
    forgetCancelKey(client);
    socketCounts.clients--;
    client.state = SocketState.CL_JUSTFREE;
    // the old process has ended the connection, or owns it until this process serves
    client.shared = false;
    sbufClose(client);
  }

  /** Continues a TLS connection. Nothing is sent on it before this process owns it. */
  private takeTls(sk: AnySocket, { kept, unsent, collected }: SocketRecord, length: number, raw: Buffer): void {
    const start = kept + unsent + collected;
    const session = raw.subarray(start, start + length);
    const res = session.length === length ? native.tlsContinue(sk.handle, session) : -1;
    session.fill(0);
    if (res < 0) throw new Error('the state of a TLS connection is not valid');
    sk.tls = true;
  }

  private takeBytes(sk: AnySocket, record: SocketRecord, raw: Buffer): void {
    if (record.kept > 0) {
      const kept = raw.subarray(0, record.kept);
      if (kept.length !== record.kept || native.keepBytes(sk.handle, kept) < 0)
        throw new Error('received bytes are missing');
      sk.hasKept = true;
    }
    if (record.unsent > 0) {
      const unsent = Buffer.from(raw.subarray(record.kept, record.kept + record.unsent));
      if (unsent.length !== record.unsent) throw new Error('unsent bytes are missing');
      this.frozen.unsent.set(sk, unsent);
    }
    if (record.collected > 0 && !isServerSocket(sk)) {
      const start = record.kept + record.unsent;
      const buf = Buffer.from(raw.subarray(start, start + record.collected));
      if (buf.length !== record.collected) throw new Error('bytes of a packet are missing');
      sk.partial = { buf, length: buf.length };
    }
  }
}
