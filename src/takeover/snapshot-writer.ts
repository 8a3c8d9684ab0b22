/*
 * The writer of the full handover: turns the state of the old process into records without changing it. It determines
 * the order of the records and numbers the pools; records/ has the records themselves.
 */

import type { PauseMode } from '../core/base/lifecycle';
import { nextOf } from '../core/base/list';
import { native } from '../core/base/native';
import { forEachPoolerFd } from '../core/net/pooler';
import { type AnySocket, type PgPool, SocketState } from '../core/pool/bouncer';
import { eachDatabase } from '../core/pool/database';
import { isServerSocket } from '../core/pool/socket';
import { eachSocket, handoverName, loginClientList } from '../core/pool/states';
import { userList } from '../core/pool/user';
import type { HandoverRecord } from './format';
import type { FrozenSockets } from './freeze';
import { beginRecord } from './records/begin';
import { type ClientRecord, clientRecord } from './records/client';
import { databaseRecord } from './records/database';
import { listenerRecord } from './records/listener';
import { poolRecord } from './records/pool';
import { type ServerRecord, serverRecord } from './records/server';
import type { Described } from './records/socket';
import { type NumberedQuery, statementRecord } from './records/statement';
import { stillRecord } from './records/still';
import { userRecord } from './records/user';
import { allPools, eachOfPool, refusalOf } from './sockets';

/** What a record owns: nothing, a descriptor, or the descriptor of a socket at the time the record is sent. */
export type Owned = null | number | AnySocket;

/** Accepts one record, the raw bytes that belong to it, and what it owns. @returns false to stop */
type PutRecord = (record: HandoverRecord, raw: readonly Uint8Array[], owned: Owned) => boolean;

/** State of a client described ahead; if it is unchanged, the client has done nothing since. */
interface Seen {
  requestTime: number;
  pool: PgPool | null;
  /** records of its TLS connection: others than requests change its state too */
  traffic: number;
  /** the client is still connected */
  met: boolean;
  /** this process has stopped reading from the client; what has arrived since is known from one call for all clients */
  rested: boolean;
}

/**
 * True for a client that changes only when it sends a packet, which updates its requestTime. Console clients never count
 * as idle, because they may wait for an event.
 */
function isIdle(sk: AnySocket): boolean {
  return (
    !isServerSocket(sk) &&
    sk.state === SocketState.CL_ACTIVE &&
    sk.link === null &&
    // the record tells whether it is read; RESUME after SUSPEND changes that
    sk.reading &&
    sk.pool?.db.admin === false &&
    sk.pktRemain === 0 &&
    sk.partial === null &&
    sk.canceledServer === null &&
    // a server may end its wait, a notification may fill its queue, and the end of the listening connection concern it
    (sk.listening === null || (!sk.listening.waiting && sk.listening.queue === null && !sk.listening.noticeDue))
  );
}

function trafficOf(sk: AnySocket): number {
  return sk.tls ? native.tlsTraffic(sk.handle) : 0;
}

/** What the loop has received ahead counts too: its sender is no longer idle. */
function hasBuffered(sk: AnySocket): boolean {
  return native.buffered(sk.handle) > 0;
}

/** True if a client described ahead still is what its record says, but for what only the loop knows. */
function isUnchanged(sk: AnySocket, seen: Seen): boolean {
  return seen.requestTime === sk.requestTime && seen.pool === sk.pool && isIdle(sk);
}

/** What the loop knows of a client from which this process still reads. */
function isQuiet(sk: AnySocket, seen: Seen): boolean {
  return seen.traffic === trafficOf(sk) && !hasBuffered(sk);
}

/** The state of a TLS connection; null for a plain one. It has secrets: the caller wipes it. */
function tlsSession(sk: AnySocket): Uint8Array | null {
  if (!sk.tls) return null;
  const session = native.tlsExport(sk.handle);
  if (session === null) throw new Error(`the state of a TLS connection is not known: ${native.tlsRefusal(sk.handle)}`);
  return session;
}

/** Writes one snapshot, from the first record to the last. */
export class SnapshotWriter {
  private readonly numbers = new Map<PgPool, number>();
  private readonly statements = new Set<number>();
  private readonly ahead = new Map<AnySocket, Seen>();
  /** clients described ahead from which this process may stop reading */
  private toRest: Iterator<[AnySocket, Seen]> | null = null;
  /** handles of clients that have sent something although reading from them has been stopped */
  private stirred: ReadonlySet<number> = new Set();
  private ok = true;
  private count = 0;

  /** @param format the version to write */
  constructor(
    private readonly format: number,
    private readonly put: PutRecord,
  ) {}

  begin(): boolean {
    this.ok = this.put(beginRecord(this.format), [], null);
    this.putFrame();
    return this.ok;
  }

  /** Users, databases and pools. Written twice, because they still change while clients are described ahead. */
  private putFrame(): void {
    for (let user = userList.head; user !== null; user = nextOf(user)) {
      this.write(userRecord(user), [], null);
    }
    eachDatabase((db) => this.write(databaseRecord(db), [], null));
    for (const pool of allPools()) this.write(poolRecord(pool, this.numberOf(pool)), [], null);
  }

  /**
   * Describes a client while the process still serves, if the client is idle. Most clients are, and clients that stay
   * idle need no further record while the sockets are frozen.
   */
  describeAhead(sk: AnySocket): boolean {
    // before the state of TLS: what is queued is encrypted when it is sent
    if (sk.handle < 0 || !isIdle(sk) || hasBuffered(sk) || native.unsent(sk.handle) > 0) return this.ok;
    if (refusalOf(sk, this.format) !== null) return this.ok;
    // its pool was created after the pools were described
    if (sk.pool !== null && !this.numbers.has(sk.pool)) return this.ok;
    const tls = tlsSession(sk);
    const described = { state: 'cl_active', pool: this.numberOf(sk.pool), kept: 0, unsent: 0, tls: tls?.length ?? 0 };
    const record = this.socketRecord(sk, described);
    record.k = 'ahead';
    this.write(record, tls === null ? [] : [tls], sk);
    tls?.fill(0);
    this.ahead.set(sk, {
      requestTime: sk.requestTime,
      pool: sk.pool,
      traffic: trafficOf(sk),
      met: false,
      rested: false,
    });
    return this.ok;
  }

  /** Ends the records sent ahead. */
  endAhead(): boolean {
    this.write({ k: 'aheadEnd' }, [], null);
    return this.ok;
  }

  /**
   * Stops reading from some of the clients described ahead, so that the freeze has less to do. What they send waits in
   * their sockets.
   * @returns false if there are no more
   */
  restSome(most: number): boolean {
    this.toRest ??= this.ahead.entries();
    for (let i = 0; i < most; i++) {
      const next = this.toRest.next();
      if (next.done === true) return i > 0;
      const [sk, seen] = next.value;
      if (sk.handle >= 0 && isUnchanged(sk, seen) && isQuiet(sk, seen)) seen.rested = native.rest(sk.handle) === 0;
    }
    return true;
  }

  /** @returns the clients of restSome(), which the caller reads from again */
  endRest(): AnySocket[] {
    this.toRest = null;
    const rested = [...this.ahead].filter(([, seen]) => seen.rested);
    for (const [, seen] of rested) seen.rested = false;
    return rested.map(([sk]) => sk);
  }

  /**
   * Describes the process while its sockets are frozen.
   * @param frozen every socket, with its unsent output
   * @param except the connection of the new process, which is not handed over
   * @param since when the sockets were frozen
   * @param pauseMode the mode before the freeze
   * @returns false if `put` has failed
   */
  describeAll(frozen: FrozenSockets, except: AnySocket, since: number, pauseMode: PauseMode): boolean {
    this.write(stillRecord(since, pauseMode), [], null);
    this.stirred = new Set(native.stirred());
    let listeners = 0;
    forEachPoolerFd((fd, _addr, inherited) => {
      listeners++;
      this.write(listenerRecord(inherited), [], fd);
      return this.ok;
    });
    this.putFrame();
    const each = (sk: AnySocket): void => {
      if (sk !== except && !frozen.staying.has(sk)) this.putSocket(sk, frozen.unsent.get(sk) ?? null);
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

  private readonly putStatement = (query: NumberedQuery): void => {
    if (this.statements.has(query.queryId)) return;
    this.statements.add(query.queryId);
    this.write(statementRecord(query), [query.query], null);
  };

  /** Also writes the queries that the record refers to. */
  private socketRecord(sk: AnySocket, described: Described): ClientRecord | ServerRecord {
    const { putStatement } = this;
    return isServerSocket(sk) ? serverRecord(sk, described, putStatement) : clientRecord(sk, described, putStatement);
  }

  private isAsDescribed(sk: AnySocket, seen: Seen): boolean {
    if (!isUnchanged(sk, seen)) return false;
    return seen.rested ? !this.stirred.has(sk.handle) : isQuiet(sk, seen);
  }

  private putSocket(sk: AnySocket, unsent: Uint8Array | null): void {
    const seen = this.ahead.get(sk);
    // a client that listens may have been sent notifications since
    if (seen !== undefined && unsent === null && this.isAsDescribed(sk, seen)) {
      this.count++;
      seen.met = true;
      return;
    }
    const state = handoverName(sk.state);
    if (!this.ok || state === null || sk.handle < 0) return;
    this.count++;
    if (seen !== undefined) seen.met = true;
    const raw: Uint8Array[] = [];
    const kept = native.keptLength(sk.handle) > 0 ? native.copyKept(sk.handle) : null;
    if (kept !== null) raw.push(kept);
    if (unsent !== null) raw.push(unsent);
    if (!isServerSocket(sk) && sk.partial !== null) raw.push(sk.partial.buf.subarray(0, sk.partial.length));
    const tls = tlsSession(sk);
    if (tls !== null) raw.push(tls);
    const record = this.socketRecord(sk, {
      state,
      pool: this.numberOf(sk.pool),
      kept: kept?.length ?? 0,
      unsent: unsent?.length ?? 0,
      tls: tls?.length ?? 0,
    });
    record.fd = seen === undefined;
    this.write(record, raw, record.fd ? sk : null);
    tls?.fill(0);
  }
}
