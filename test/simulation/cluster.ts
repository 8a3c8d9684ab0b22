/*
 * Two simulated servers of one cluster: a primary and a standby, which exchange their roles from time to time. For a while
 * there may be no primary. The pooler has databases with target_session_attrs for them.
 */
import { MS, SECOND } from './clock';
import type { PgServer } from './postgres';
import type { World } from './world';

/** Longest time that the old primary is away, and longest time until the standby is promoted. usec */
const AWAY_MAX = 6 * SECOND;
const PROMOTION_MAX = 4 * SECOND;

export class Cluster {
  /** how often the roles have changed */
  changes = 0;

  constructor(
    private readonly world: World,
    private primary: PgServer,
    private standby: PgServer,
  ) {
    primary.standby = false;
    standby.standby = true;
    if (world.scenario.failoverEvery > 0) this.plan();
  }

  private plan(): void {
    const { clock, random, scenario } = this.world;
    clock.after(random.below(2 * scenario.failoverEvery), () => {
      if (!this.world.isCalm) this.change();
    });
  }

  private change(): void {
    const { clock, random, trace } = this.world;
    const { primary: old } = this;
    const away = random.below(AWAY_MAX);
    const promotion = random.below(PROMOTION_MAX);
    this.changes++;
    if (random.one(2)) {
      // without a restart, and perhaps without a report
      trace.add(old.name, 'becomes a standby');
      old.changeRole(true, !random.one(3));
    } else {
      trace.add(old.name, 'is lost, and comes back as a standby');
      old.leave(random.one(2) ? 'refuse' : 'silence', away);
      old.changeRole(true, true);
    }
    clock.after(promotion, () => this.promote());
    clock.after(Math.max(away, promotion) + MS, () => this.plan());
  }

  private promote(): void {
    const { primary, standby } = this;
    this.world.trace.add(standby.name, 'is promoted');
    [this.primary, this.standby] = [standby, primary];
    standby.changeRole(false, true);
  }

  /** When a server became usable that has the role, usec; Infinity = none is. */
  availableSince(standby: boolean): number {
    const since = [this.primary, this.standby].map((server) =>
      server.standby === standby ? server.usableSince : Number.POSITIVE_INFINITY,
    );
    return Math.min(...since);
  }
}
