/*
 * The reader of the full handover: makes databases, users, pools and sockets of what the old process described. Everything
 * stays as it is described until the old process is gone: nothing is read from the sockets, nothing is sent on them. A
 * record that makes no sense throws, and the new process gives up.
 */

import { ScramState } from '../core/auth/scram';
import { enterPause } from '../core/base/lifecycle';
import { native } from '../core/base/native';
import { fromWallTime, type WallTime } from '../core/base/time';
import { hostsOf } from '../core/link/hosts';
import { findOrRegisterDatabase } from '../core/link/registry';
import { usePoolerSocket } from '../core/net/pooler';
import { attachHandle, sbufClose } from '../core/net/sbuf';
import { type PgAddr, PgCredentials, PgDatabase, type PgPool, type PgSocket, SocketState } from '../core/pool/bouncer';
import { adoptCancelKey, forgetCancelKey } from '../core/pool/cancel-keys';
import { addDatabase, addDynamicCredentials, findDatabase, findPeer, retireAutodatabase } from '../core/pool/database';
import { getPeerPool, getPool } from '../core/pool/pool';
import { NoteKind } from '../core/pool/prepare';
import { keepOwners, uncountClient } from '../core/pool/provisional';
import { isServerSocket } from '../core/pool/socket';
import {
  type ClientPrepared,
  freeClientStatements,
  type RequestPrepared,
  raiseQueryId,
  restoreClientPrepared,
  restoreRequests,
  restoreServerPrepared,
  type ServerPrepared,
} from '../core/pool/statements';
import { newClient, newServer, socketCounts } from '../core/pool/states';
import { type PgStats, statNames, statsStamps } from '../core/pool/stats';
import { addPamCredentials, findGlobalUser, findOrAddLoginUser } from '../core/pool/user';
import { newVarCache, varcacheSet } from '../core/pool/varcache';
import { restoreUnnamed } from '../core/session/unnamed';
import { consoleOf } from './console';
import {
  type AddrTuple,
  type BeginRecord,
  type ClientStatementTuple,
  type CredentialsRef,
  connectChange,
  type DatabaseRecord,
  FORMAT,
  flagFields,
  type HandoverRecord,
  numberFields,
  type PoolRecord,
  type SecretRecord,
  type SocketRecord,
  timeFields,
  type UserRecord,
} from './format';
import type { Stillness } from './freeze';
import { isServerStateName, placeSocket, stateOf } from './sockets';

type FlagField = (typeof flagFields)[number];
type NumberField = (typeof numberFields)[number];

function bytesOf(text: string | null | undefined): Buffer | null {
  return text === null || text === undefined ? null : Buffer.from(text, 'latin1');
}

function addrOf(tuple: AddrTuple): PgAddr {
  const [family, host, port, uid, pid] = tuple;
  return { family, host, port, uid, pid };
}

/** Unix sockets carry the peer's key, so a buffer of bytes is `{ bytes }`. */
function scramOf(fields: Record<string, unknown>): ScramState {
  const state = new ScramState() as unknown as Record<string, unknown>;
  for (const [name, value] of Object.entries(fields)) {
    if (!(name in state)) continue;
    const bytes = value !== null && typeof value === 'object' ? (value as { bytes?: string }).bytes : undefined;
    state[name] = bytes === undefined ? value : bytesOf(bytes);
  }
  return state as unknown as ScramState;
}

/** Takes over what was learnt with a secret, when it is still the secret. */
function adoptSecret(user: PgCredentials, from: SecretRecord): void {
  if (user.passwd !== from.passwd || from.scramClientKey === null || from.scramServerKey === null) return;
  user.scramClientKey = bytesOf(from.scramClientKey);
  user.scramServerKey = bytesOf(from.scramServerKey);
  user.scramPassthroughValid = true;
}

/** A linked pair, or a cancel request and its target: ends that may be described later. */
interface Tie {
  from: PgSocket;
  to: number;
}

export class Restorer {
  begin: BeginRecord | null = null;
  /** the last record came, and what it counts is what arrived */
  complete = false;
  /** usec when the old process stood still, 0 = it still serves */
  stillSince = 0;
  listeners = 0;
  readonly still: Stillness = { sockets: [], unsent: new Map() };
  /** databases that the new config does not have: they end as after RELOAD, once the sockets are ours */
  readonly goneDatabases: PgDatabase[] = [];

  private flags: (FlagField | null)[] = [];
  private numbers: (NumberField | null)[] = [];
  private vars: string[] = [];
  private stats: number[] = [];
  private readonly pools = new Map<number, PgPool>();
  /** databases whose servers were opened under another config */
  private readonly changed = new Set<string>();
  /** databases whose config differs in the list of hosts only */
  private readonly hostsChanged = new Set<string>();
  private readonly ownCredentials = new Map<string, PgCredentials>();
  private readonly byId = new Map<number, PgSocket>();
  private readonly links: Tie[] = [];
  /** prepared queries by the number they have in the old process */
  private readonly queries = new Map<number, Buffer>();
  private readonly requests: {
    server: PgSocket;
    requests: number[];
    notes: RequestPrepared[];
    subjects: number[];
  }[] = [];
  private readonly cancels: Tie[] = [];
  /** sockets that arrived, used or not */
  private arrived = 0;

  /**
   * Takes one record.
   * @param raw the bytes behind its text
   * @param takeFd fetches its descriptor, which arrived before it; throws when there is none
   */
  take(record: HandoverRecord, raw: Buffer, takeFd: () => number): void {
    if (record.k === 'begin') {
      this.takeBegin(record);
      return;
    }
    if (this.begin === null) throw new Error(`record '${record.k}' before the first`);
    switch (record.k) {
      case 'aheadEnd':
        return;
      case 'still':
        this.stillSince = fromWallTime(record.since);
        if (record.paused) enterPause();
        statsStamps.old = fromWallTime(record.statsStamps[0]);
        statsStamps.now = fromWallTime(record.statsStamps[1]);
        raiseQueryId(record.newestQueryId ?? 0);
        return;
      case 'listener': {
        const fd = takeFd();
        const isUnix = native.sockName(fd).family === 1;
        if (!usePoolerSocket(fd, isUnix, record.inherited)) throw new Error('a listening socket cannot be used');
        this.listeners++;
        return;
      }
      case 'user':
        this.takeUser(record);
        return;
      case 'database':
        this.takeDatabase(record);
        return;
      case 'pool':
        this.takePool(record);
        return;
      case 'statement':
        // the buffer it arrived in is not ours to keep
        this.queries.set(record.queryId, Buffer.from(raw.subarray(0, record.length)));
        return;
      case 'ahead':
      case 'socket':
        this.takeSocket(record, raw, record.fd ? takeFd() : -1);
        return;
      case 'gone':
        for (const id of record.ids) this.takeGone(id);
        return;
      case 'end':
        this.tie();
        if (record.sockets !== this.arrived || record.listeners !== this.listeners) {
          throw new Error(
            `got ${this.arrived} sockets and ${this.listeners} listeners of ${record.sockets} and ${record.listeners}`,
          );
        }
        this.complete = true;
        return;
      default: {
        // a newer version's: what it says of descriptors has to be obeyed
        const unknown = record as { fd?: boolean };
        if (unknown.fd === true) native.closeFd(takeFd());
      }
    }
  }

  private takeBegin(record: BeginRecord): void {
    if (record.format < 1 || record.format > FORMAT) throw new Error(`unknown handover format ${record.format}`);
    this.begin = record;
    this.flags = record.flags.map((name) => flagFields.find((known) => known === name) ?? null);
    this.numbers = record.numbers.map((name) => numberFields.find((known) => known === name) ?? null);
    this.vars = record.vars;
    this.stats = record.stats.map((name) => statNames.indexOf(name));
  }

  private takeUser(record: UserRecord): void {
    const known = findGlobalUser(record.name);
    if (known !== null) adoptSecret(known.credentials, record);
  }

  private takeDatabase(record: DatabaseRecord): void {
    const inactiveTime = fromWallTime(record.inactiveTime);
    let db = findOrRegisterDatabase(null, record.name);
    if (db?.admin) return;
    if (db === null) {
      // an auto-database that nobody uses, and no `*` any more
      if (inactiveTime > 0) return;
      db = addDatabase(record.name);
      this.goneDatabases.push(db);
    }
    db.paused = record.paused;
    db.disabled = record.disabled;
    db.waitClose = record.waitClose;
    const change = connectChange(record.connect, db);
    if (change === 'all') this.changed.add(db.name);
    else if (change === 'hosts') this.hostsChanged.add(db.name);
    for (const user of record.dynamicUsers) adoptSecret(addDynamicCredentials(db, user.name, user.passwd), user);
    if (inactiveTime > 0 && db.auto && db.pools.length === 0) retireAutodatabase(db, inactiveTime);
  }

  /** Those credentials here; what this config has no place for is made up. */
  private credentials(ref: CredentialsRef, db: PgDatabase | null): PgCredentials {
    const { kind, name } = ref;
    if (kind === 'mock') {
      const mock = new PgCredentials(name, findGlobalUser(name));
      mock.mockAuth = true;
      return mock;
    }
    if (kind === 'global') return findOrAddLoginUser(name).credentials;
    if (kind === 'pam') return addPamCredentials(name, ref.passwd);
    if (kind === 'dynamic' && db !== null) return db.dynamicUsers.get(name) ?? addDynamicCredentials(db, name, '');
    if (kind === 'forced' && db?.forcedUser?.name === name) return db.forcedUser;
    const key = `${ref.db ?? ''}\0${name}`;
    let own = this.ownCredentials.get(key);
    if (own === undefined) {
      own = new PgCredentials(name, findOrAddLoginUser(name));
      own.passwd = ref.passwd ?? '';
      this.ownCredentials.set(key, own);
    }
    return own;
  }

  private statsOf(values: readonly number[], into: PgStats): void {
    for (let i = 0; i < values.length; i++) {
      const slot = this.stats[i] ?? -1;
      if (slot >= 0) into[slot] = values[i] as number;
    }
  }

  private varsOf(values: readonly (string | null)[], into: (string | null)[]): void {
    for (let i = 0; i < values.length; i++) {
      const value = values[i] ?? null;
      if (value !== null) varcacheSet(into, this.vars[i] as string, value);
    }
  }

  private findPool(record: PoolRecord): PgPool | null {
    if (record.peerId > 0) {
      const peer = findPeer(record.peerId);
      return peer === null ? null : getPeerPool(peer);
    }
    const db = findDatabase(record.db);
    if (db === null || record.user === null) throw new Error(`pool of unknown database ${record.db}`);
    const credentials = this.credentials(record.user, db);
    // a pool shows that a login has succeeded
    db.provisional = false;
    if (credentials.globalUser !== null) credentials.globalUser.provisional = false;
    return getPool(db, credentials);
  }

  private takePool(record: PoolRecord): void {
    const pool = this.findPool(record);
    // a peer that is not configured any more
    if (pool === null) return;
    this.pools.set(record.n, pool);
    this.statsOf(record.stats, pool.stats);
    this.statsOf(record.newerStats, pool.newerStats);
    this.statsOf(record.olderStats, pool.olderStats);
    pool.lastLifetimeDisconnect = fromWallTime(record.lastLifetimeDisconnect);
    pool.lastActiveTime = fromWallTime(record.lastActiveTime);
    pool.rrcounter = record.rrcounter;
    // what was learnt of servers under another config, and the console's own welcome, are not for us
    if (pool.db.admin || this.changed.has(pool.db.name)) return;
    pool.lastConnectTime = fromWallTime(record.lastConnectTime);
    pool.lastConnectFailed = record.lastConnectFailed;
    pool.lastConnectFailedMessage = record.lastConnectFailedMessage;
    pool.lastLoginFailed = record.lastLoginFailed;
    if (record.welcomeMsg === null) return;
    pool.welcomeMsg = bytesOf(record.welcomeMsg);
    pool.welcomeMsgReady = true;
    this.varsOf(record.origVars, pool.origVars);
  }

  private fresh(record: SocketRecord, fd: number): PgSocket {
    const handle = native.open(fd);
    if (handle < 0) throw new Error(`cannot use a socket: ${native.strerror(-handle)}`);
    const sk = isServerStateName(record.state) ? newServer() : newClient();
    attachHandle(sk, handle);
    return sk;
  }

  private takeSocket(record: SocketRecord, raw: Buffer, fd: number): void {
    const known = this.byId.get(record.id);
    if (known === undefined && fd < 0) throw new Error(`a socket without its descriptor: ${record.id}`);
    if (known !== undefined) {
      this.unplace(known);
      known.vars = newVarCache();
    }
    const sk = known ?? this.fresh(record, fd);
    this.fillFields(sk, record);
    this.place(sk, record, raw);
    if (known === undefined) {
      this.still.sockets.push(sk);
      this.byId.set(record.id, sk);
    }
  }

  /** A client that left after it was described ahead. */
  private takeGone(id: number): void {
    const known = this.byId.get(id);
    if (known === undefined) throw new Error(`unknown client ${id}`);
    this.byId.delete(id);
    this.unplace(known);
    this.drop(known);
  }

  /** Undoes place(), for a client that was described ahead. */
  private unplace(sk: PgSocket): void {
    this.arrived--;
    sk.list?.remove(sk);
    freeClientStatements(sk);
    uncountClient(sk);
  }

  private drop(sk: PgSocket): void {
    forgetCancelKey(sk);
    if (isServerSocket(sk)) {
      socketCounts.servers--;
      sk.state = SocketState.SV_JUSTFREE;
    } else {
      socketCounts.clients--;
      sk.state = SocketState.CL_JUSTFREE;
    }
    sbufClose(sk);
  }

  private place(sk: PgSocket, record: SocketRecord, raw: Buffer): void {
    this.arrived++;
    const state = stateOf(record.state);
    sk.pool = this.pools.get(record.pool) ?? null;
    if (state === null || (record.pool >= 0 && sk.pool === null)) {
      // belongs to a peer that left the config: a cancel request
      this.drop(sk);
      return;
    }
    this.fillOwners(sk, record);
    if (state === SocketState.CL_LOGIN) {
      // a login has no pool but that on which its auth_query runs; older versions gave it one
      if (!sk.waitForUser) sk.pool = null;
    } else if (state !== SocketState.CL_WAITING_LOGIN && !isServerSocket(sk)) {
      keepOwners(sk);
    }
    if (!placeSocket(sk, state)) throw new Error(`a socket in state ${record.state} without a pool`);
    this.takeStatements(sk, record);

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
    if (record.collected > 0) {
      const start = record.kept + record.unsent;
      sk.collect = Buffer.from(raw.subarray(start, start + record.collected));
      sk.collectLen = sk.collect.length;
      if (sk.collectLen !== record.collected) throw new Error('bytes of a packet are missing');
    }
    if (record.link !== undefined) this.links.push({ from: sk, to: record.link });
    if (record.canceled !== undefined) this.cancels.push({ from: sk, to: record.canceled });
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

  /** What a connection has prepared; its requests have to wait until it is linked. */
  private takeStatements(sk: PgSocket, record: SocketRecord): void {
    if (record.clientStatements !== undefined) {
      restoreClientPrepared(
        sk,
        record.clientStatements.map((tuple) => this.clientPrepared(tuple)),
      );
    }
    if (record.serverStatements !== undefined) {
      const stale = new Set(record.staleStatements ?? []);
      const entries = record.serverStatements.map((queryId) => this.serverPrepared(queryId, stale.has(queryId)));
      if (!restoreServerPrepared(sk, entries)) sk.closeNeeded = true;
    }
    if (record.unnamed !== undefined) restoreUnnamed(sk, Buffer.from(record.unnamed, 'latin1'));
    if (record.requests === undefined) return;
    const notes = (record.notes ?? []).map(([at, closing, server, client, deallocate]) => ({
      at,
      kind: deallocate ? NoteKind.DEALLOCATE : closing ? NoteKind.CLOSE : NoteKind.PARSE,
      server: server === null ? null : this.serverPrepared(server),
      client: client === null ? null : this.clientPrepared(client),
    }));
    this.requests.push({ server: sk, requests: record.requests, notes, subjects: record.subjects ?? [] });
  }

  private fillFields(sk: PgSocket, record: SocketRecord): void {
    for (let i = 0; i < this.flags.length; i++) {
      const name = this.flags[i] ?? null;
      if (name !== null) sk[name] = (record.f & (1 << i)) !== 0;
    }
    for (let i = 0; i < this.numbers.length; i++) {
      const name = this.numbers[i] ?? null;
      if (name === null) continue;
      sk[name] = timeFields.has(name) ? fromWallTime(record.n[i] as WallTime) : (record.n[i] as number);
    }
    this.varsOf(record.v, sk.vars);
    sk.remoteAddr = addrOf(record.remote);
    sk.localAddr = addrOf(record.local);
    sk.host = record.host ?? null;
    sk.startupOptions = record.startupOptions ?? null;
    sk.loginSalt = bytesOf(record.loginSalt);
    sk.scram = record.scram === undefined ? null : scramOf(record.scram);
    const key = Buffer.from(record.cancelKey, 'latin1');
    sk.ldapOptions = record.ldapOptions ?? '';
    sk.console = record.console === undefined ? null : consoleOf(record.console);
    if (sk.waitForAuth && !sk.authPassed) {
      // PAM or LDAP was asked by the old process: the password, which is kept, is looked at again
      sk.waitForAuth = false;
      sk.reading = true;
    }
    if (sk.requests !== null) {
      sk.cancelKey = key;
    } else if (sk.welcomeSent) {
      adoptCancelKey(sk, key);
    } else {
      sk.cancelKey = key;
    }
  }

  /** Database, user, and the counts of both. */
  private fillOwners(sk: PgSocket, record: SocketRecord): void {
    if (record.db !== undefined) {
      sk.db = record.fake ? null : findDatabase(record.db);
      if (sk.db === null) {
        sk.db = new PgDatabase(record.db);
        sk.db.fake = true;
      }
    }
    const poolUser = sk.pool?.user ?? null;
    if (record.user === undefined) sk.loginUser = poolUser;
    else sk.loginUser = record.user === null ? null : this.credentials(record.user, sk.db);

    if (isServerStateName(record.state)) {
      const db = (sk.pool as PgPool).db;
      db.connectionCount++;
      if (poolUser?.globalUser) poolUser.globalUser.connectionCount++;
      const hostGone = this.hostsChanged.has(db.name) && !hostsOf(db.host).includes(sk.host);
      if (this.changed.has(db.name) || hostGone) sk.closeNeeded = true;
      return;
    }
    if (sk.db !== null && sk.contributesDbClientCount) sk.db.clientConnectionCount++;
    const globalUser = sk.loginUser?.globalUser ?? null;
    if (globalUser !== null && sk.userConnectionCounted) globalUser.clientConnectionCount++;
  }

  private tie(): void {
    for (const { from, to } of this.links) {
      from.link = this.byId.get(to) ?? null;
      // whether its client's transaction has begun is not known here: nothing of it is repeated
      if (from.requests !== null) from.requests.total++;
    }
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
}
