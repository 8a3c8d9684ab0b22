/*
 * The writer of the full handover: turns everything the old process knows into records, changing nothing.
 */
import { nextOf } from '../core/base/list';
import { native } from '../core/base/native';
import { notifyState } from '../core/base/notify';
import { PauseMode } from '../core/base/runstate';
import { TSBOUNCER_VERSION } from '../core/base/version';
import { AuthType, cf } from '../core/config/settings';
import { forEachPoolerFd } from '../core/net/listener';
import { autodatabaseIdleList, databaseList, type PgDatabase } from '../core/pool/database';
import type { PgPool } from '../core/pool/pool';
import type { RequestQueue } from '../core/pool/requests';
import type { PgAddr, PgSocket } from '../core/pool/socket';
import { loginClientList } from '../core/pool/state';
import {
  type ClientPrepared,
  clientPreparedEntries,
  newestQueryId,
  requestPreparedEntries,
  type ServerPrepared,
  serverPreparedEntries,
} from '../core/pool/statements';
import { statsStamps } from '../core/pool/stats';
import { type PgCredentials, userList } from '../core/pool/user';
import { varNames } from '../core/pool/varcache';
import {
  type AddrTuple,
  type BeginRecord,
  type ClientStatementTuple,
  type CredentialsRef,
  connectText,
  type DatabaseRecord,
  flagFields,
  type HandoverRecord,
  numberFields,
  type PoolRecord,
  type SecretRecord,
  type SocketRecord,
  statNames,
} from './format';
import type { Still } from './still';
import { allPools, eachOfList, eachOfPool, stateName } from './walk';

/** Takes one record, the raw bytes that belong to it, and its descriptor (-1 = none). @returns false to stop */
export type PutRecord = (record: HandoverRecord, raw: readonly Uint8Array[], fd: number) => boolean;

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

/** @param db the database that they were found or forced for, if they were */
function credentialsRef(user: PgCredentials, db: PgDatabase | null): CredentialsRef {
  const { name } = user;
  if (user.mockAuth) return { kind: 'mock', name, db: null, passwd: null };
  if (user.globalUser?.credentials === user) return { kind: 'global', name, db: null, passwd: null };
  if (db !== null && db.dynamicUsers.get(name) === user) return { kind: 'dynamic', name, db: db.name, passwd: null };
  if (db !== null && db.forcedUser === user) return { kind: 'forced', name, db: db.name, passwd: user.passwd };
  const kind = cf.authType === AuthType.PAM ? 'pam' : 'own';
  return { kind, name, db: db?.name ?? null, passwd: user.passwd };
}

function beginRecord(format: number, stillSince: number, pauseMode: PauseMode): BeginRecord {
  return {
    k: 'begin',
    format,
    version: TSBOUNCER_VERSION,
    pid: process.pid,
    stillSince,
    paused: pauseMode === PauseMode.PAUSE,
    flags: [...flagFields],
    numbers: [...numberFields],
    vars: [...varNames()],
    stats: [...statNames],
    statsStamps: [statsStamps.old, statsStamps.now],
    newestQueryId: newestQueryId(),
    notifySocket: notifyState.socket,
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
    inactiveTime: db.inactiveTime,
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
    lastLifetimeDisconnect: pool.lastLifetimeDisconnect,
    lastConnectTime: pool.lastConnectTime,
    lastActiveTime: pool.lastActiveTime,
    lastConnectFailed: pool.lastConnectFailed,
    lastConnectFailedMessage: pool.lastConnectFailedMessage,
    lastLoginFailed: pool.lastLoginFailed,
    rrcounter: pool.rrcounter,
  };
}

/** The queue as numbers. */
function requestList(queue: RequestQueue): number[] {
  const list: number[] = [];
  for (let at = 0; at < queue.count; at++) list.push(queue.entryAt(at));
  return list;
}

function clientTuple(entry: ClientPrepared): ClientStatementTuple {
  return [entry.name, entry.unsure, entry.queryId];
}

/** Prepared statements of a connection, by number. @param seen told of every query behind them */
function addStatements(record: SocketRecord, sk: PgSocket, seen: (entry: ServerPrepared) => void): void {
  if (sk.clientStatements !== null) {
    const entries = clientPreparedEntries(sk);
    entries.forEach(seen);
    record.clientStatements = entries.map(clientTuple);
  }
  if (sk.requests === null) return;
  if (sk.serverStatements !== null) {
    const entries = serverPreparedEntries(sk);
    entries.forEach(seen);
    record.serverStatements = entries.map((entry) => entry.queryId);
  }
  const notes = requestPreparedEntries(sk);
  if (notes.length === 0) return;
  for (const { server, client } of notes) {
    if (server !== null) seen(server);
    if (client !== null) seen(client);
  }
  record.notes = notes.map(({ at, closing, server, client }) => [
    at,
    closing,
    server?.queryId ?? null,
    client === null ? null : clientTuple(client),
  ]);
}

function scramRecord(state: object): Record<string, unknown> {
  const fields: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(state)) {
    fields[name] = value instanceof Uint8Array ? { bytes: bytesText(value) } : value;
  }
  return fields;
}

function flagBits(sk: PgSocket): number {
  let bits = 0;
  for (let i = 0; i < flagFields.length; i++) if (sk[flagFields[i] as (typeof flagFields)[number]]) bits |= 1 << i;
  return bits;
}

function socketRecord(sk: PgSocket, state: string, pool: number, kept: number, unsent: number): SocketRecord {
  const record: SocketRecord = {
    k: 'socket',
    fd: true,
    id: sk.id,
    state,
    pool,
    f: flagBits(sk),
    n: numberFields.map((name) => sk[name]),
    v: sk.vars,
    cancelKey: bytesText(sk.cancelKey),
    remote: addrTuple(sk.remoteAddr),
    local: addrTuple(sk.localAddr),
    kept,
    unsent,
    collected: sk.collect === null ? 0 : sk.collectLen,
  };
  if (sk.ldapOptions !== '') record.ldapOptions = sk.ldapOptions;
  if (sk.link !== null) record.link = sk.link.id;
  if (sk.canceledServer !== null) record.canceled = sk.canceledServer.id;
  if (sk.db !== null) {
    record.db = sk.db.name;
    if (sk.db.fake) record.fake = true;
  }
  if (sk.loginUser !== (sk.pool?.user ?? null)) {
    record.user = sk.loginUser === null ? null : credentialsRef(sk.loginUser, sk.db);
  }
  if (sk.host !== null) record.host = sk.host;
  if (sk.startupOptions !== null) record.startupOptions = sk.startupOptions;
  if (sk.loginSalt !== null) record.loginSalt = bytesText(sk.loginSalt);
  if (sk.scram !== null) record.scram = scramRecord(sk.scram);
  if (sk.requests !== null && sk.requests.count > 0) record.requests = requestList(sk.requests);
  return record;
}

/** The state of a TLS connection cannot be described yet: it ends with this process, and its partner with it. */
export function travels(sk: PgSocket): boolean {
  return !sk.tls && sk.link?.tls !== true;
}

/**
 * Describes the process, which stands still.
 * @param format the version to write
 * @param sockets every socket that stands still, with what it has not sent
 * @param except the connection of the new process, which does not travel
 * @param stillSince usec
 * @param pauseMode the mode before the handover
 * @returns false when `put` gave up
 */
export function describeAll(
  format: number,
  sockets: readonly Still[],
  except: PgSocket,
  stillSince: number,
  pauseMode: PauseMode,
  put: PutRecord,
): boolean {
  let ok = put(beginRecord(format, stillSince, pauseMode), [], -1);
  let listeners = 0;
  forEachPoolerFd((fd, _addr, inherited) => {
    listeners++;
    ok &&= put({ k: 'listener', fd: true, inherited }, [], fd);
    return ok;
  });
  for (let user = userList.head; user !== null; user = nextOf(user)) {
    ok &&= put({ k: 'user', ...secretRecord(user.credentials) }, [], -1);
  }
  for (const list of [databaseList, autodatabaseIdleList]) {
    for (let db = list.head; db !== null; db = nextOf(db)) ok &&= put(databaseRecord(db), [], -1);
  }

  const unsentOf = new Map<PgSocket, Uint8Array>();
  for (const { sk, unsent } of sockets) if (unsent !== null) unsentOf.set(sk, unsent);
  const numbers = new Map<PgPool, number>();
  let count = 0;
  const statements = new Set<number>();
  const putStatement = ({ queryId, query }: ServerPrepared): void => {
    if (!ok || statements.has(queryId)) return;
    statements.add(queryId);
    ok = put({ k: 'statement', queryId, length: query.length }, [query], -1);
  };
  const putSocket = (sk: PgSocket): void => {
    const state = stateName(sk.state);
    if (!ok || state === null || sk === except || sk.handle < 0 || !travels(sk)) return;
    const raw: Uint8Array[] = [];
    const kept = native.keptLength(sk.handle) > 0 ? native.copyKept(sk.handle) : null;
    const unsent = unsentOf.get(sk) ?? null;
    if (kept !== null) raw.push(kept);
    if (unsent !== null) raw.push(unsent);
    if (sk.collect !== null) raw.push(sk.collect.subarray(0, sk.collectLen));
    const pool = sk.pool === null ? -1 : (numbers.get(sk.pool) ?? -1);
    const record = socketRecord(sk, state, pool, kept?.length ?? 0, unsent?.length ?? 0);
    addStatements(record, sk, putStatement);
    ok &&= put(record, raw, native.fdOf(sk.handle));
    count++;
  };

  const pools = allPools();
  for (const pool of pools) {
    numbers.set(pool, numbers.size);
    ok &&= put(poolRecord(pool, numbers.size - 1), [], -1);
  }
  for (const pool of pools) eachOfPool(pool, putSocket);
  eachOfList(loginClientList, putSocket);
  return ok && put({ k: 'end', listeners, sockets: count }, [], -1);
}
