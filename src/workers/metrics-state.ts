/*
 * What the metrics thread knows of the pooler: the reports of the loop, put together.
 */

import type { MetricsLabels, MetricsLayout, MetricsReport } from '../core/base/worker-messages';

export interface KnownPool {
  readonly database: string;
  readonly user: string;
  /** by MetricsLayout.pool */
  numbers: Float64Array;
  /** for each histogram the count of each bucket, and the sum in usec; null = no time was measured */
  timings: Float64Array | null;
}

export interface KnownDatabase {
  labels: MetricsLabels;
  /** by MetricsLayout.database */
  numbers: Float64Array;
}

/** Reports, each of a second, over which the longest turn is shown: longer than most scrapers wait. */
const TURN_REPORTS = 60;

export class MetricsState {
  /** null until everything is known */
  report: MetricsReport | null = null;
  readonly pools = new Map<number, KnownPool>();
  readonly databases = new Map<number, KnownDatabase>();
  /** of each of the last seconds, usec */
  private readonly longestTurns: number[] = [0];

  constructor(readonly layout: MetricsLayout) {}

  /** Adds what a report says. */
  hear(report: MetricsReport): void {
    for (const id of report.gonePools) this.pools.delete(id);
    for (const id of report.goneDatabases) this.databases.delete(id);
    const none = new Float64Array(0);
    for (const { id, database, user } of report.newPools)
      this.pools.set(id, { database, user, numbers: none, timings: null });
    for (const { id, labels } of report.newDatabases) {
      const known = this.databases.get(id);
      if (known === undefined) this.databases.set(id, { labels, numbers: none });
      else known.labels = labels;
    }
    this.hearNumbers(report);
    this.hearTurn(report);
    if (this.report !== null || !report.more) this.report = report;
  }

  /** The longest turn of the loop in the last minute, usec. */
  longestTurn(): number {
    return Math.max(...this.longestTurns);
  }

  private hearTurn({ longestTurn, more }: MetricsReport): void {
    const turns = this.longestTurns;
    turns.push(Math.max(turns.pop() ?? 0, longestTurn));
    // the reports that follow in a moment belong to the same second
    if (more) return;
    turns.push(0);
    if (turns.length > TURN_REPORTS) turns.shift();
  }

  private hearNumbers({ pools, timings, databases }: MetricsReport): void {
    const { layout } = this;
    eachRow(pools, layout.pool.length, (id, numbers) => {
      const known = this.pools.get(id);
      if (known !== undefined) known.numbers = numbers;
    });
    eachRow(timings, layout.timings.length * (layout.timingBounds.length + 2), (id, numbers) => {
      const known = this.pools.get(id);
      if (known !== undefined) known.timings = numbers;
    });
    eachRow(databases, layout.database.length, (id, numbers) => {
      const known = this.databases.get(id);
      if (known !== undefined) known.numbers = numbers;
    });
  }
}

/** @param width the numbers of a row, which follow its id */
function eachRow(rows: Float64Array, width: number, each: (id: number, numbers: Float64Array) => void): void {
  for (let at = 0; at < rows.length; at += width + 1) each(rows[at] as number, rows.slice(at + 1, at + 1 + width));
}
