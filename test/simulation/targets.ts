/*
 * The rules of target_session_attrs: a session whose server has told that it does not fit serves no further client, and
 * clients do not wait while a server fits.
 */
import { type PgPool, Replication } from '../../src/core/pool/bouncer';
import { SECOND } from './clock';
import type { Heads } from './core';
import { WANTS_STANDBY } from './scenario';
import type { Session } from './session';
import type { World } from './world';

/** How long the pooler may take to read what a server tells, and to close its connections. usec */
const SLACK = 2 * SECOND;
/** The same if clients do not read for a while. */
const SLACK_DEAF = 6 * SECOND;
/** The same if the pooler may be stopped, or suspended. */
const SLACK_STOPPED = 25 * SECOND;
/** An error counts only once in this time, in which the clocks may differ a little. usec */
const RECYCLE = 9 * SECOND;
const RECYCLE_LATER = 11 * SECOND;
/** How long a pool without a server may take to find the server that fits. usec */
const FIND_MAX = 6 * SECOND;
/** Longest time between two turns of a process that is not stopped. usec */
const TURN_MAX = SECOND;

export class Targets {
  /** by database and server: when the server told that it does not fit, usec */
  private readonly misfits = new Map<string, number>();
  /** by database: when its connections to a server were last replaced, usec */
  private readonly replaced = new Map<string, number>();
  /** since when a pool has waited without a server, usec */
  private readonly waiting = new WeakMap<PgPool, number>();
  private lastTurn = 0;

  constructor(private readonly world: World) {}

  /** A session has reported the role of its server. */
  told(database: string, server: string, standby: boolean): void {
    const wanted = WANTS_STANDBY.get(database);
    if (wanted === undefined || wanted === standby) return;
    this.replaced.set(database, this.world.clock.now);
    this.note(database, server);
  }

  /** A session has refused to write. */
  refused(database: string, server: string): void {
    if (WANTS_STANDBY.get(database) !== false) return;
    const { now } = this.world.clock;
    const before = this.replaced.get(database);
    if (before !== undefined && now - before < RECYCLE) return;
    this.replaced.set(database, now);
    if (before === undefined || now - before > RECYCLE_LATER) this.note(database, server);
  }

  private note(database: string, server: string): void {
    const key = `${database} ${server}`;
    if (!this.misfits.has(key)) this.misfits.set(key, this.world.clock.now);
  }

  /** A server has another role: what it told before is not valid any more. */
  changed(server: string): void {
    for (const key of this.misfits.keys()) if (key.endsWith(` ${server}`)) this.misfits.delete(key);
  }

  /**
   * A session is to run a query of a client.
   * @param between outside a transaction
   * @returns what is wrong with that, or null
   */
  fault(session: Session, between: boolean): string | null {
    const { serverName, welcomedAs } = session;
    const { database, replication } = session.entry;
    const wanted = WANTS_STANDBY.get(database);
    if (wanted === undefined) return null;
    if (welcomedAs !== wanted) return `of ${database}, although its server did not fit at the login`;
    const { clock, scenario } = this.world;
    const keeps = scenario.poolMode === 'session' || scenario.settings.listen_mode === 'pin' || replication;
    if (!between || keeps) return null;
    const { clients, clock: stops, console, reboots } = scenario.faults;
    const slack = stops || console || reboots ? SLACK_STOPPED : clients ? SLACK_DEAF : SLACK;
    const since = this.misfits.get(`${database} ${serverName}`) ?? clock.now;
    return clock.now - since > slack ? `of ${database}, although its server does not fit any more` : null;
  }

  /** Called when a turn has ended. @returns the description of a pool that does not find its server, or null */
  broken(heads: Heads): string | null {
    const { now } = this.world.clock;
    const gap = now - this.lastTurn > TURN_MAX;
    this.lastTurn = now;
    for (const [name, standby] of WANTS_STANDBY) {
      const db = heads.database.findDatabase(name);
      for (const pool of db?.pools ?? []) {
        const waits = !gap && this.waits(heads, pool);
        const since = waits ? (this.waiting.get(pool) ?? now) : now;
        this.waiting.set(pool, since);
        const available = Math.max(since, this.world.cluster.availableSince(standby));
        if (now - available > FIND_MAX) return `a client of ${name}/${pool.user?.name} waits, although a server fits`;
      }
    }
    return null;
  }

  /** True if clients wait for the first server of a pool, which may be opened at once. */
  private waits(heads: Heads, pool: PgPool): boolean {
    const { getPauseMode, getShutdownMode, isTakingOver, ownsListeners } = heads.lifecycle;
    if (getPauseMode() !== 0 || getShutdownMode() !== 0 || isTakingOver() || !ownsListeners()) return false;
    const { db, newServerList, waitingCancelReqList, waitingClientList } = pool;
    if (db.paused || db.disabled || waitingCancelReqList.count > 0) return false;
    if (heads.admission.databaseMaxConnections(db) > 0 || heads.pool.poolServerCount(pool) > newServerList.count)
      return false;
    return waitingClientList.head !== null && waitingClientList.head.replication === Replication.NONE;
  }
}
