/*
 * What the new process has read from the records that precede the sockets. The records of the sockets refer to it.
 */

import { hostNames } from '../../core/config/records';
import type { PgCredentials, PgDatabase, PgPool, ServerSocket } from '../../core/pool/bouncer';
import type { ServerPrepared } from '../../core/pool/statements';
import type { PgStats } from '../../core/pool/stats';
import { isTracked, VarBit, type VarCache, varNames } from '../../core/pool/varcache';
import type { UnknownUsers } from './user';

export class Frame {
  /** pools by their number in the records */
  readonly pools = new Map<number, PgPool>();
  /** numbers of the pools that have been described since the freeze; empty if a version describes them only once */
  readonly described = new Set<number>();
  /** prepared queries by their number in the old process */
  readonly queries = new Map<number, Omit<ServerPrepared, 'stale'>>();
  /** databases missing from the new config */
  readonly goneDatabases: PgDatabase[] = [];
  /** databases whose servers were opened under another config */
  readonly changed = new Set<string>();
  /** databases whose config differs only in the list of hosts */
  readonly hostsChanged = new Set<string>();
  /** servers were connected to under other server_tls_* settings, and have to be replaced as after RELOAD */
  serverTlsChanged = false;
  readonly unknownUsers: UnknownUsers = new Map();
  /** pools whose clients wait for room in their database, each with its place in that order */
  readonly claims = new Map<PgPool, number>();
  /** credentials that are in no list, by database and name */
  readonly ownCredentials = new Map<string, PgCredentials>();

  /**
   * @param flags the names of the bits in the record of a socket
   * @param numbers the names of the numbers in the record of a socket
   * @param vars the names of the variables
   * @param counters the index in this process of each counter, -1 = unknown
   */
  constructor(
    readonly flags: readonly string[],
    readonly numbers: readonly string[],
    private readonly vars: readonly string[],
    private readonly counters: readonly number[],
  ) {}

  statsOf(values: readonly number[], into: PgStats): void {
    for (let i = 0; i < values.length; i++) {
      const at = this.counters[i] ?? -1;
      if (at >= 0) into[at] = values[i] as number;
    }
  }

  varsOf(values: readonly (string | null)[], into: VarCache): void {
    for (let i = 0; i < values.length; i++) {
      const value = values[i] ?? null;
      if (value !== null) into.set(this.vars[i] as string, value);
    }
  }

  /** @param values undefined if the old process has not sent them */
  varBitsOf(values: readonly number[] | undefined, server: ServerSocket): void {
    if (values !== undefined) {
      for (let i = 0; i < values.length; i++) server.vars.setBits(this.vars[i] as string, values[i] as number);
      return;
    }
    // any value that was reported may have been SET by a client
    varNames().forEach((name, at) => {
      if (server.vars.values[at] != null) server.vars.setBits(name, VarBit.REPORTED | VarBit.CHANGED);
    });
  }

  /**
   * True if a server has a client's value of a variable that is no longer tracked (track_extra_parameters): nothing would
   * set it back for the next client.
   * @param bits undefined if the old process has not sent them
   */
  hasUntracked(values: readonly (string | null)[], bits: readonly number[] | undefined): boolean {
    return this.vars.some((name, i) => {
      if (isTracked(name)) return false;
      return bits === undefined ? (values[i] ?? null) !== null : ((bits[i] ?? 0) & VarBit.CHANGED) !== 0;
    });
  }

  /** The counters of pools that the old process has removed meanwhile are in those of their databases. */
  forgetRemovedPools(): void {
    if (this.described.size === 0) return;
    for (const [number, { stats, newerStats, olderStats }] of this.pools)
      if (!this.described.has(number)) for (const counters of [stats, newerStats, olderStats]) counters.fill(0);
  }

  /** The pools get room in the order in which they have begun to wait. */
  restoreClaims(): void {
    const inOrder = [...this.claims].sort(([, a], [, b]) => a - b);
    for (const [{ db }] of inOrder) db.claims ??= new Set();
    for (const [pool] of inOrder) pool.db.claims?.add(pool);
  }

  /** True if the server connection was opened under settings that have changed since. */
  isOutdated(server: ServerSocket): boolean {
    const { db } = server.pool;
    if (this.serverTlsChanged) return true;
    if (this.changed.has(db.name)) return true;
    return this.hostsChanged.has(db.name) && !hostNames(db.config.host).includes(server.host);
  }
}
