/*
 * The writer of the full handover: turns the state of the old process into records without changing it.
 */

import { PauseMode } from '../core/base/lifecycle';
import { nextOf } from '../core/base/list';
import { native } from '../core/base/native';
import { notifyState } from '../core/base/systemd';
import { wallTime } from '../core/base/time';
import { TSBOUNCER_VERSION } from '../core/base/version';
import { cf } from '../core/config/settings';
import { AuthType } from '../core/config/settings-table';
import { forEachPoolerFd } from '../core/net/pooler';
import {
  type AnySocket,
  type ClientSocket,
  type PgAddr,
  type PgCredentials,
  type PgDatabase,
  type PgPool,
  type ServerSocket,
  SocketState,
} from '../core/pool/bouncer';
import { autodatabaseIdleList, databaseList } from '../core/pool/database';
import { NoteKind } from '../core/pool/prepare';
import type { RequestQueue } from '../core/pool/requests';
import { isServerSocket } from '../core/pool/socket';
import {
  type ClientPrepared,
  clientPreparedEntries,
  newestQueryId,
  requestPreparedEntries,
  type ServerPrepared,
  serverPreparedEntries,
} from '../core/pool/statements';
import { eachSocket, handoverName, loginClientList } from '../core/pool/states';
import { statNames, statsStamps } from '../core/pool/stats';
import { userList } from '../core/pool/user';
import { varNames } from '../core/pool/varcache';
import { consoleRecord } from './console';
import {
  type AddrTuple,
  type BeginRecord,
  type ClientStatementTuple,
  type CredentialsRef,
  connectText,
  type DatabaseRecord,
  type HandoverRecord,
  type PoolRecord,
  type SecretRecord,
  type SocketRecord,
  type StillRecord,
} from './format';
import type { FrozenSockets } from './freeze';
import { flagBits, flagNames, numberNames, numbersOf } from './socket-fields';
import { allPools, eachOfPool, isTransferable } from './sockets';

/** What a record owns: nothing, a descriptor, or the descriptor of a socket at the time the record is sent. */
export type Owned = null | number | AnySocket;

/** Accepts one record, the raw bytes that belong to it, and what it owns. @returns false to stop */
type PutRecord = (record: HandoverRecord, raw: readonly Uint8Array[], owned: Owned) => boolean;

function bytesText(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('latin1');
}

function addrTuple(addr: PgAddr): AddrTuple {
  return [addr.family, addr.host, addr.port, addr.uid, addr.pid];
}

function secretRecord(user: PgCredentials): SecretRecord {
  const learnt = user.scramPassthroughValid;
  return {
    name: user.name,
    passwd: user.passwd,
    scramClientKey: learnt && user.scramClientKey !== null ? bytesText(user.scramClientKey) : null,
    scramServerKey: learnt && user.scramServerKey !== null ? bytesText(user.scramServerKey) : null,
  };
}

/** @param db the database for which the credentials were found or forced, or null */
function credentialsRef(user: PgCredentials, db: PgDatabase | null): CredentialsRef {
  const { name } = user;
  if (user.mockAuth) return { kind: 'mock', name, db: null, passwd: null };
  if (user.globalUser?.credentials === user) return { kind: 'global', name, db: null, passwd: null };
  if (db !== null && db.dynamicUsers.get(name) === user) return { kind: 'dynamic', name, db: db.name, passwd: null };
  if (db !== null && db.forcedUser === user) return { kind: 'forced', name, db: db.name, passwd: user.passwd };
  const kind = cf.authType === AuthType.PAM ? 'pam' : 'own';
  return { kind, name, db: db?.name ?? null, passwd: user.passwd };
}

function beginRecord(format: number): BeginRecord {
  return {
    k: 'begin',
    format,
    version: TSBOUNCER_VERSION,
    pid: process.pid,
    flags: [...flagNames],
    numbers: [...numberNames],
    vars: [...varNames()],
    stats: [...statNames],
    notifySocket: notifyState.socket,
  };
}

function stillRecord(since: number, pauseMode: PauseMode): StillRecord {
  return {
    k: 'still',
    since: wallTime(since),
    paused: pauseMode === PauseMode.PAUSE,
    statsStamps: [wallTime(statsStamps.old), wallTime(statsStamps.now)],
    newestQueryId: newestQueryId(),
  };
}

function databaseRecord(db: PgDatabase): DatabaseRecord {
  return {
    k: 'database',
    name: db.name,
    paused: db.paused,
    disabled: db.disabled,
    waitClose: db.waitClose,
    auto: db.auto,
    inactiveTime: wallTime(db.inactiveTime),
    connect: connectText(db),
    dynamicUsers: [...db.dynamicUsers.values()].map(secretRecord),
  };
}

function poolRecord(pool: PgPool, n: number): PoolRecord {
  return {
    k: 'pool',
    n,
    db: pool.db.name,
    peerId: pool.db.peerId,
    user: pool.user === null ? null : credentialsRef(pool.user, pool.db),
    stats: [...pool.stats],
    newerStats: [...pool.newerStats],
    olderStats: [...pool.olderStats],
    welcomeMsg: pool.welcomeMsgReady && pool.welcomeMsg !== null ? bytesText(pool.welcomeMsg) : null,
    origVars: pool.origVars,
    lastLifetimeDisconnect: wallTime(pool.lastLifetimeDisconnect),
    lastConnectTime: wallTime(pool.lastConnectTime),
    lastActiveTime: wallTime(pool.lastActiveTime),
    lastConnectFailed: pool.lastConnectFailed,
    lastConnectFailedMessage: pool.lastConnectFailedMessage,
    lastLoginFailed: pool.lastLoginFailed,
    rrcounter: pool.rrcounter,
  };
}

function requestList(queue: RequestQueue): number[] {
  const list: number[] = [];
  for (let at = 0; at < queue.count; at++) list.push(queue.entryAt(at));
  return list;
}

function clientTuple(entry: ClientPrepared): ClientStatementTuple {
  return [entry.name, entry.unsure, entry.queryId];
}

/** The fields that a client's and a server's statement have in common. */
type NumberedQuery = Pick<ServerPrepared, 'queryId' | 'query'>;

/** Adds the prepared statements of a connection, by number. @param seen called for the query of each */
function addStatements(record: SocketRecord, sk: AnySocket, seen: (entry: NumberedQuery) => void): void {
  if (isServerSocket(sk)) {
    addServerStatements(record, sk, seen);
  } else if (sk.statements !== null) {
    const entries = clientPreparedEntries(sk);
    entries.forEach(seen);
    record.clientStatements = entries.map(clientTuple);
  }
}

function addServerStatements(record: SocketRecord, server: ServerSocket, seen: (entry: NumberedQuery) => void): void {
  if (server.statements !== null) {
    const entries = serverPreparedEntries(server);
    entries.forEach(seen);
    record.serverStatements = entries.map((entry) => entry.queryId);
    const stale = entries.filter((entry) => entry.stale).map((entry) => entry.queryId);
    if (stale.length > 0) record.staleStatements = stale;
  }
  const notes = requestPreparedEntries(server);
  if (notes.length === 0) return;
  for (const note of notes) {
    if (note.server !== null) seen(note.server);
    if (note.client !== null) seen(note.client);
  }
  record.notes = notes.map(({ at, kind, server: ofServer, client }) => [
    at,
    kind !== NoteKind.PARSE,
    ofServer?.queryId ?? null,
    client === null ? null : clientTuple(client),
    kind === NoteKind.DEALLOCATE,
  ]);
}

function scramRecord(state: object): Record<string, unknown> {
  const fields: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(state)) {
    fields[name] = value instanceof Uint8Array ? { bytes: bytesText(value) } : value;
  }
  return fields;
}

function socketRecord(sk: AnySocket, state: string, pool: number, kept: number, unsent: number): SocketRecord {
  const record: SocketRecord = {
    k: 'socket',
    fd: true,
    id: sk.id,
    state,
    pool,
    f: flagBits(sk),
    n: numbersOf(sk),
    v: sk.vars,
    cancelKey: bytesText(sk.cancelKey),
    remote: addrTuple(sk.remoteAddr),
    local: addrTuple(sk.localAddr),
    kept,
    unsent,
    collected: 0,
  };
  if (sk.link !== null) record.link = sk.link.id;
  const db = isServerSocket(sk) ? null : sk.db;
  if (sk.loginUser !== (sk.pool?.user ?? null)) {
    record.user = sk.loginUser === null ? null : credentialsRef(sk.loginUser, db);
  }
  if (isServerSocket(sk)) addServerFields(record, sk);
  else addClientFields(record, sk);
  return record;
}

function addClientFields(record: SocketRecord, client: ClientSocket): void {
  if (client.partial !== null) record.collected = client.partial.length;
  if (client.console !== null) record.console = consoleRecord(client.console);
  if (client.canceledServer !== null) record.canceled = client.canceledServer.id;
  if (client.db !== null) {
    record.db = client.db.name;
    if (client.db.fake) record.fake = true;
  }
  if (client.startupOptions !== null) record.startupOptions = client.startupOptions;
  if (client.unnamedSeq !== 0 && client.unnamed !== null && client.unnamedLen > 0) {
    record.unnamed = bytesText(client.unnamed.subarray(0, client.unnamedLen));
  }
  const { login } = client;
  if (login === null) return;
  if (login.ldapOptions !== '') record.ldapOptions = login.ldapOptions;
  if (login.salt !== null) record.loginSalt = bytesText(login.salt);
  if (login.scram !== null) record.scram = scramRecord(login.scram);
}

function addServerFields(record: SocketRecord, server: ServerSocket): void {
  const { host, requests } = server;
  if (host !== null) record.host = host;
  if (requests.count === 0) return;
  record.requests = requestList(requests);
  record.subjects = record.requests.map((_, at) => requests.subjectAt(at));
}

/** State of a client described ahead; if it is unchanged, the client has done nothing since. */
interface Seen {
  requestTime: number;
  pool: PgPool | null;
  /** the client is still connected */
  met: boolean;
}

/**
 * True for a client without buffered or unsent bytes that changes only when it sends a packet, which updates its
 * requestTime. Console clients never count as idle, because they may wait for an event.
 */
function isIdle(sk: AnySocket): boolean {
  return (
    !isServerSocket(sk) &&
    sk.state === SocketState.CL_ACTIVE &&
    sk.link === null &&
    sk.pool?.db.admin === false &&
    sk.pktRemain === 0 &&
    sk.partial === null &&
    sk.canceledServer === null &&
    !sk.hasKept
  );
}

/** Writes one snapshot, from the first record to the last. */
export class SnapshotWriter {
  private readonly numbers = new Map<PgPool, number>();
  private readonly statements = new Set<number>();
  private readonly ahead = new Map<AnySocket, Seen>();
  private ok = true;
  private count = 0;

  constructor(private readonly put: PutRecord) {}

  /** @param format the version to write */
  begin(format: number): boolean {
    this.ok = this.put(beginRecord(format), [], null);
    this.putFrame();
    return this.ok;
  }

  /** Users, databases and pools. Written twice, because they still change while clients are described ahead. */
  private putFrame(): void {
    for (let user = userList.head; user !== null; user = nextOf(user)) {
      this.write({ k: 'user', ...secretRecord(user.credentials) }, [], null);
    }
    for (const list of [databaseList, autodatabaseIdleList]) {
      for (let db = list.head; db !== null; db = nextOf(db)) this.write(databaseRecord(db), [], null);
    }
    for (const pool of allPools()) this.write(poolRecord(pool, this.numberOf(pool)), [], null);
  }

  /**
   * Describes a client while the process still serves, if the client is idle. Most clients are, and clients that stay
   * idle need no further record while the sockets are frozen.
   */
  describeAhead(sk: AnySocket): boolean {
    if (sk.handle < 0 || !isIdle(sk) || !isTransferable(sk) || native.unsent(sk.handle) > 0) return this.ok;
    // its pool was created after the pools were described
    if (sk.pool !== null && !this.numbers.has(sk.pool)) return this.ok;
    const record = socketRecord(sk, 'cl_active', this.numberOf(sk.pool), 0, 0);
    record.k = 'ahead';
    addStatements(record, sk, this.putStatement);
    this.write(record, [], sk);
    this.ahead.set(sk, { requestTime: sk.requestTime, pool: sk.pool, met: false });
    return this.ok;
  }

  /** Ends the records sent ahead. */
  endAhead(): boolean {
    this.write({ k: 'aheadEnd' }, [], null);
    return this.ok;
  }

  /**
   * Describes the process while its sockets are frozen.
   * @param still every socket, with its unsent output
   * @param except the connection of the new process, which is not handed over
   * @param since when the sockets were frozen
   * @param pauseMode the mode before the freeze
   * @returns false if `put` has failed
   */
  describeAll(still: FrozenSockets, except: AnySocket, since: number, pauseMode: PauseMode): boolean {
    this.write(stillRecord(since, pauseMode), [], null);
    let listeners = 0;
    forEachPoolerFd((fd, _addr, inherited) => {
      listeners++;
      this.write({ k: 'listener', fd: true, inherited }, [], fd);
      return this.ok;
    });
    this.putFrame();
    const each = (sk: AnySocket): void => {
      if (sk !== except) this.putSocket(sk, still.unsent.get(sk) ?? null);
    };
    for (const pool of allPools()) eachOfPool(pool, each);
    eachSocket(loginClientList, each);
    const gone: number[] = [];
    for (const [sk, seen] of this.ahead) if (!seen.met) gone.push(sk.id);
    if (gone.length > 0) this.write({ k: 'gone', ids: gone }, [], null);
    this.write({ k: 'end', listeners, sockets: this.count }, [], null);
    return this.ok;
  }

  private write(record: HandoverRecord, raw: readonly Uint8Array[], owned: Owned): void {
    this.ok &&= this.put(record, raw, owned);
  }

  private numberOf(pool: PgPool | null): number {
    if (pool === null) return -1;
    let number = this.numbers.get(pool);
    if (number === undefined) {
      number = this.numbers.size;
      this.numbers.set(pool, number);
    }
    return number;
  }

  private readonly putStatement = ({ queryId, query }: NumberedQuery): void => {
    if (this.statements.has(queryId)) return;
    this.statements.add(queryId);
    this.write({ k: 'statement', queryId, length: query.length }, [query], null);
  };

  private putSocket(sk: AnySocket, unsent: Uint8Array | null): void {
    const seen = this.ahead.get(sk);
    if (seen !== undefined && seen.requestTime === sk.requestTime && seen.pool === sk.pool && isIdle(sk)) {
      this.count++;
      seen.met = true;
      return;
    }
    const state = handoverName(sk.state);
    if (!this.ok || state === null || sk.handle < 0 || !isTransferable(sk)) return;
    this.count++;
    if (seen !== undefined) seen.met = true;
    const raw: Uint8Array[] = [];
    const kept = native.keptLength(sk.handle) > 0 ? native.copyKept(sk.handle) : null;
    if (kept !== null) raw.push(kept);
    if (unsent !== null) raw.push(unsent);
    if (!isServerSocket(sk) && sk.partial !== null) raw.push(sk.partial.buf.subarray(0, sk.partial.length));
    const record = socketRecord(sk, state, this.numberOf(sk.pool), kept?.length ?? 0, unsent?.length ?? 0);
    record.fd = seen === undefined;
    addStatements(record, sk, this.putStatement);
    this.write(record, raw, record.fd ? sk : null);
  }
}
