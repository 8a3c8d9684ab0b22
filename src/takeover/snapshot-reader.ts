/*
 * The reader of the full handover: creates databases, users, pools and sockets from the records of the old process. The
 * sockets stay frozen until this process owns them: nothing is read from them or sent to them. An invalid record
 * throws, and the new process exits.
 */

import { enterPause } from '../core/base/lifecycle';
import { native } from '../core/base/native';
import { fromWallTime } from '../core/base/time';
import { hostsOf } from '../core/link/hosts';
import { findOrRegisterDatabase } from '../core/link/registry';
import { usePoolerSocket } from '../core/net/pooler';
import { PgCredentials, type PgDatabase, type PgPool, type ServerSocket } from '../core/pool/bouncer';
import { addDatabase, addDynamicCredentials, findDatabase, findPeer, retireAutodatabase } from '../core/pool/database';
import { getPeerPool, getPool } from '../core/pool/pool';
import { raiseQueryId } from '../core/pool/statements';
import { type PgStats, statNames, statsStamps } from '../core/pool/stats';
import { addPamCredentials, findGlobalUser, findOrAddLoginUser } from '../core/pool/user';
import { varcacheSet } from '../core/pool/varcache';
import {
  type BeginRecord,
  type CredentialsRef,
  connectChange,
  type DatabaseRecord,
  FORMAT,
  type HandoverRecord,
  type PoolRecord,
  type SecretRecord,
  type UserRecord,
} from './format';
import type { FrozenSockets } from './freeze';
import { SocketReader } from './socket-reader';

function bytesOf(text: string | null | undefined): Buffer | null {
  return text === null || text === undefined ? null : Buffer.from(text, 'latin1');
}

/** Adopts the SCRAM keys learnt with a secret, if the user's secret is unchanged. */
function adoptSecret(user: PgCredentials, from: SecretRecord): void {
  if (user.passwd !== from.passwd || from.scramClientKey === null || from.scramServerKey === null) return;
  user.scramClientKey = bytesOf(from.scramClientKey);
  user.scramServerKey = bytesOf(from.scramServerKey);
  user.scramPassthroughValid = true;
}

export class SnapshotReader {
  begin: BeginRecord | null = null;
  /** the last record has arrived, and its counts match the records received */
  complete = false;
  /** usec when the old process froze its sockets, 0 = it still serves */
  stillSince = 0;
  listeners = 0;
  /** databases missing from the new config: they are killed as after RELOAD once this process owns the sockets */
  readonly goneDatabases: PgDatabase[] = [];

  flags: readonly string[] = [];
  numbers: readonly string[] = [];
  private vars: string[] = [];
  private stats: number[] = [];
  /** pools by their number in the records */
  readonly pools = new Map<number, PgPool>();
  /** databases whose servers were opened under another config */
  private readonly changed = new Set<string>();
  /** databases whose config differs only in the list of hosts */
  private readonly hostsChanged = new Set<string>();
  private readonly ownCredentials = new Map<string, PgCredentials>();
  private readonly sockets = new SocketReader(this);

  /**
   * Takes one record.
   * @param raw the bytes behind the record's text
   * @param takeFd returns the record's descriptor, which arrived before it; throws if there is none
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
        // copied, because the receive buffer is reused
        this.sockets.addQuery(record.queryId, Buffer.from(raw.subarray(0, record.length)));
        return;
      case 'ahead':
      case 'socket':
        this.sockets.take(record, raw, record.fd ? takeFd() : -1);
        return;
      case 'gone':
        for (const id of record.ids) this.sockets.takeGone(id);
        return;
      case 'end':
        this.sockets.resolveLinks();
        if (record.sockets !== this.sockets.arrived || record.listeners !== this.listeners) {
          throw new Error(
            `got ${this.sockets.arrived} sockets and ${this.listeners} listeners of ${record.sockets} and ${record.listeners}`,
          );
        }
        this.complete = true;
        return;
      default: {
        // a record of a newer version: ignored, but its descriptor must not shift those of later records
        const unknown = record as { fd?: boolean };
        if (unknown.fd === true) native.closeFd(takeFd());
      }
    }
  }

  private takeBegin(record: BeginRecord): void {
    if (record.format < 1 || record.format > FORMAT) throw new Error(`unknown handover format ${record.format}`);
    this.begin = record;
    this.flags = record.flags;
    this.numbers = record.numbers;
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
      // an idle auto-database, and the config has no `*` any more
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

  /** The credentials that `ref` names; credentials missing from this config are created. */
  credentials(ref: CredentialsRef, db: PgDatabase | null): PgCredentials {
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

  /** All sockets with their unsent output. */
  get still(): FrozenSockets {
    return this.sockets.still;
  }

  /** True if the server connection was opened under settings that have changed since. */
  isOutdated(server: ServerSocket): boolean {
    const { db } = server.pool;
    if (this.changed.has(db.name)) return true;
    return this.hostsChanged.has(db.name) && !hostsOf(db.config.host).includes(server.host);
  }

  private statsOf(values: readonly number[], into: PgStats): void {
    for (let i = 0; i < values.length; i++) {
      const slot = this.stats[i] ?? -1;
      if (slot >= 0) into[slot] = values[i] as number;
    }
  }

  varsOf(values: readonly (string | null)[], into: (string | null)[]): void {
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
    // a pool proves that a login has succeeded
    db.provisional = false;
    if (credentials.globalUser !== null) credentials.globalUser.provisional = false;
    return getPool(db, credentials);
  }

  private takePool(record: PoolRecord): void {
    const pool = this.findPool(record);
    // the peer is no longer configured
    if (pool === null) return;
    this.pools.set(record.n, pool);
    this.statsOf(record.stats, pool.stats);
    this.statsOf(record.newerStats, pool.newerStats);
    this.statsOf(record.olderStats, pool.olderStats);
    pool.lastLifetimeDisconnect = fromWallTime(record.lastLifetimeDisconnect);
    pool.lastActiveTime = fromWallTime(record.lastActiveTime);
    pool.rrcounter = record.rrcounter;
    // the console's welcome message, and results of connecting under another config, do not apply here
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
}
