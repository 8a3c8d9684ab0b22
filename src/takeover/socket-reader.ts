/*
 * Creates the sockets of a handover from their records and puts each into the list of its state, with its buffered
 * input and unsent output. Links are resolved at the end, because either side may come first. Used by
 * snapshot-reader.ts.
 */

import { ScramState } from '../core/auth/scram';
import { native } from '../core/base/native';
import { attachHandle, sbufClose } from '../core/net/sbuf';
import { countForDatabase, countForUser, countServer } from '../core/pool/admission';
import {
  type AnySocket,
  type ClientLogin,
  type ClientSocket,
  LoginPhase,
  type PgAddr,
  type PgCredentials,
  PgDatabase,
  type PgPool,
  type ServerSocket,
  SocketState,
} from '../core/pool/bouncer';
import { adoptCancelKey, forgetCancelKey } from '../core/pool/cancel-keys';
import { findDatabase } from '../core/pool/database';
import { NoteKind } from '../core/pool/prepare';
import { keepOwners, uncountClient } from '../core/pool/provisional';
import { isServerSocket } from '../core/pool/socket';
import {
  type ClientPrepared,
  freeClientStatements,
  type RequestPrepared,
  restoreClientPrepared,
  restoreRequests,
  restoreServerPrepared,
  type ServerPrepared,
} from '../core/pool/statements';
import { insertInState, newClient, newServer, socketCounts, stateOfHandoverName } from '../core/pool/states';
import { newVarCache } from '../core/pool/varcache';
import { restoreUnnamed } from '../core/session/unnamed';
import { consoleOf } from './console';
import type { AddrTuple, ClientStatementTuple, CredentialsRef, SocketRecord } from './format';
import type { FrozenSockets } from './freeze';
import { hasFlag, setFlags, setNumbers } from './socket-fields';
import { isServerStateName } from './sockets';

/** The contents of the records that precede the sockets. */
interface Frame {
  readonly flags: readonly string[];
  readonly numbers: readonly string[];
  readonly pools: ReadonlyMap<number, PgPool>;
  credentials(ref: CredentialsRef, db: PgDatabase | null): PgCredentials;
  varsOf(values: readonly (string | null)[], into: (string | null)[]): void;
  isOutdated(server: ServerSocket): boolean;
}

/** One side of a link whose other side may be described later. */
interface PendingLink<From extends AnySocket> {
  from: From;
  to: number;
}

interface PendingRequests {
  server: ServerSocket;
  requests: number[];
  notes: RequestPrepared[];
  subjects: number[];
}

function bytesOf(text: string): Buffer {
  return Buffer.from(text, 'latin1');
}

function addrOf([family, host, port, uid, pid]: AddrTuple): PgAddr {
  return { family, host, port, uid, pid };
}

/** A SCRAM exchange in progress. Records contain buffers as `{ bytes }`. */
function scramOf(fields: Record<string, unknown>): ScramState {
  const state = new ScramState();
  const known: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(fields)) {
    if (!(name in state)) continue;
    const bytes = value !== null && typeof value === 'object' ? (value as { bytes?: string }).bytes : undefined;
    known[name] = bytes === undefined ? value : bytesOf(bytes);
  }
  return Object.assign(state, known);
}

export class SocketReader {
  readonly still: FrozenSockets = { sockets: [], unsent: new Map() };
  /** sockets described so far, without clients that have disconnected since */
  arrived = 0;

  private readonly byId = new Map<number, AnySocket>();
  private readonly links: PendingLink<AnySocket>[] = [];
  private readonly cancels: PendingLink<ClientSocket>[] = [];
  private readonly requests: PendingRequests[] = [];
  /** prepared queries by their number in the old process */
  private readonly queries = new Map<number, Buffer>();

  constructor(private readonly frame: Frame) {}

  addQuery(queryId: number, query: Buffer): void {
    this.queries.set(queryId, query);
  }

  /**
   * Takes a socket, or a client that was described ahead and has changed since.
   * @param raw its buffered input, unsent output and partial packet
   * @param fd -1 for a client whose descriptor came with the description ahead
   */
  take(record: SocketRecord, raw: Buffer, fd: number): void {
    const known = this.byId.get(record.id);
    if (known === undefined && fd < 0) throw new Error(`a socket without its descriptor: ${record.id}`);
    if (known !== undefined) {
      if (isServerSocket(known)) throw new Error(`server ${record.id} is described twice`);
      this.takeOut(known);
      known.vars = newVarCache();
    }
    this.arrived++;
    const state = stateOfHandoverName(record.state);
    const pool = this.frame.pools.get(record.pool) ?? null;
    const isServer = isServerStateName(record.state);
    if (state === null || (pool === null && (isServer || record.pool >= 0))) {
      // a cancel request for a peer that is no longer configured, or its server
      if (known === undefined) native.closeFd(fd);
      else this.drop(known);
      return;
    }
    const sk = known ?? this.open(fd, isServer ? newServer(pool as PgPool) : newClient());
    this.fillCommon(sk, record);
    if (isServerSocket(sk)) this.fillServer(sk, record);
    else this.fillClient(sk, record, state, pool);
    if (!insertInState(sk, state)) throw new Error(`a socket in state ${record.state} without a pool`);
    this.takeBytes(sk, record, raw);
    if (record.link !== undefined) this.links.push({ from: sk, to: record.link });
    if (known !== undefined) return;
    this.still.sockets.push(sk);
    this.byId.set(record.id, sk);
  }

  /** Drops a client that has disconnected since it was described ahead. */
  takeGone(id: number): void {
    const known = this.byId.get(id);
    if (known === undefined || isServerSocket(known)) throw new Error(`unknown client ${id}`);
    this.takeOut(known);
    this.drop(known);
  }

  /** After the last socket: links clients to servers, and cancel requests to the servers whose queries they cancel. */
  resolveLinks(): void {
    for (const { from, to } of this.links) this.link(from, this.byId.get(to) ?? null);
    for (const { server, requests, notes, subjects } of this.requests)
      restoreRequests(server, requests, notes, subjects);
    for (const { from, to } of this.cancels) {
      const server = this.byId.get(to) ?? null;
      if (server === null || !isServerSocket(server)) continue;
      from.canceledServer = server;
      if (server.cancelingClients === null) server.cancelingClients = [from];
      else server.cancelingClients.push(from);
    }
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
    return sk;
  }

  /** Removes a client from its list and its counts; its connection stays open. */
  private takeOut(client: ClientSocket): void {
    this.arrived--;
    client.list?.remove(client);
    freeClientStatements(client);
    uncountClient(client);
  }

  private drop(client: AnySocket): void {
    if (isServerSocket(client)) throw new Error('only clients are described ahead');
    for (const [id, sk] of this.byId) if (sk === client) this.byId.delete(id);
    forgetCancelKey(client);
    socketCounts.clients--;
    client.state = SocketState.CL_JUSTFREE;
    sbufClose(client);
  }

  private fillCommon(sk: AnySocket, record: SocketRecord): void {
    setFlags(sk, this.frame.flags, record.f);
    setNumbers(sk, this.frame.numbers, record.n);
    this.frame.varsOf(record.v, sk.vars);
    sk.remoteAddr = addrOf(record.remote);
    sk.localAddr = addrOf(record.local);
  }

  private fillServer(server: ServerSocket, record: SocketRecord): void {
    const { pool } = server;
    server.login = null;
    server.cancelKey = bytesOf(record.cancelKey);
    server.host = record.host ?? null;
    server.loginUser = this.loginUser(record, pool.user, null);
    countServer(server);
    if (this.frame.isOutdated(server)) server.closeNeeded = true;
    this.takeServerStatements(server, record);
  }

  private loginUser(record: SocketRecord, poolUser: PgCredentials | null, db: PgDatabase | null): PgCredentials | null {
    if (record.user === undefined) return poolUser;
    return record.user === null ? null : this.frame.credentials(record.user, db);
  }

  private fillClient(client: ClientSocket, record: SocketRecord, state: SocketState, pool: PgPool | null): void {
    if (record.console !== undefined) client.console = consoleOf(record.console, client.console);
    client.startupOptions = record.startupOptions ?? null;
    if (client.login !== null) this.fillLogin(client, client.login, record);
    const key = bytesOf(record.cancelKey);
    if (client.login === null) adoptCancelKey(client, key);
    else client.cancelKey = key;
    if (record.db !== undefined) client.db = this.databaseOf(record.db, record.fake === true);
    client.loginUser = this.loginUser(record, pool?.user ?? null, client.db);
    this.countClient(client, record);
    // Since 0.2 a login has a pool only while its auth_query runs.
    const hasPool = state !== SocketState.CL_LOGIN || client.login?.phase === LoginPhase.AUTH_QUERY_RESULT;
    client.pool = hasPool ? pool : null;
    if (state !== SocketState.CL_LOGIN && state !== SocketState.CL_WAITING_LOGIN) keepOwners(client);
    if (record.clientStatements !== undefined) {
      const entries = record.clientStatements.map((tuple) => this.clientPrepared(tuple));
      restoreClientPrepared(client, entries);
    }
    if (record.unnamed !== undefined) restoreUnnamed(client, bytesOf(record.unnamed));
    if (record.canceled !== undefined) this.cancels.push({ from: client, to: record.canceled });
  }

  private fillLogin(client: ClientSocket, login: ClientLogin, record: SocketRecord): void {
    login.salt = record.loginSalt === undefined ? null : bytesOf(record.loginSalt);
    login.scram = record.scram === undefined ? null : scramOf(record.scram);
    login.ldapOptions = record.ldapOptions ?? '';
    if (login.phase !== LoginPhase.EXTERNAL_AUTH) return;
    // PAM or LDAP had not answered the old process: the packet with the password is still buffered and is handled again
    login.phase = LoginPhase.CHALLENGED;
    client.reading = true;
  }

  private databaseOf(name: string, fake: boolean): PgDatabase {
    const known = fake ? null : findDatabase(name);
    if (known !== null) return known;
    const mock = new PgDatabase(name);
    mock.fake = true;
    return mock;
  }

  private countClient(client: ClientSocket, { f }: SocketRecord): void {
    const { flags } = this.frame;
    if (client.db !== null && hasFlag('contributesDbClientCount', flags, f)) countForDatabase(client, client.db);
    const globalUser = client.loginUser?.globalUser ?? null;
    if (globalUser !== null && hasFlag('userConnectionCounted', flags, f)) countForUser(client, globalUser);
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
      this.still.unsent.set(sk, unsent);
    }
    if (record.collected > 0 && !isServerSocket(sk)) {
      const start = record.kept + record.unsent;
      const buf = Buffer.from(raw.subarray(start, start + record.collected));
      if (buf.length !== record.collected) throw new Error('bytes of a packet are missing');
      sk.partial = { buf, length: buf.length };
    }
  }

  private query(queryId: number): Buffer {
    const query = this.queries.get(queryId);
    if (query === undefined) throw new Error(`unknown prepared statement ${queryId}`);
    return query;
  }

  private clientPrepared([name, unsure, queryId]: ClientStatementTuple): ClientPrepared {
    return { name, unsure, queryId, query: this.query(queryId) };
  }

  private serverPrepared(queryId: number, stale = false): ServerPrepared {
    return { queryId, query: this.query(queryId), stale };
  }

  /** Restores the prepared statements of a server; its requests have to wait until it is linked. */
  private takeServerStatements(server: ServerSocket, record: SocketRecord): void {
    if (record.serverStatements !== undefined) {
      const stale = new Set(record.staleStatements ?? []);
      const entries = record.serverStatements.map((queryId) => this.serverPrepared(queryId, stale.has(queryId)));
      if (!restoreServerPrepared(server, entries)) server.closeNeeded = true;
    }
    if (record.requests === undefined) return;
    const notes = (record.notes ?? []).map(([at, closing, ofServer, client, deallocate]) => ({
      at,
      kind: deallocate ? NoteKind.DEALLOCATE : closing ? NoteKind.CLOSE : NoteKind.PARSE,
      server: ofServer === null ? null : this.serverPrepared(ofServer),
      client: client === null ? null : this.clientPrepared(client),
    }));
    this.requests.push({ server, requests: record.requests, notes, subjects: record.subjects ?? [] });
  }
}
