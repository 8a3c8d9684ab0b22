/*
 * The samples that the page has: those of this process, and those of the process before an online reboot as far as the page
 * has seen them.
 */

/** How long the charts look back, in seconds. */
export const SPAN = 300;
/** Two samples that are further apart are not connected. */
const GAP = 3;

export class Samples {
  /** @type {{ at: number, process: number, values: Record<string, number> }[]} with `at` in seconds since 1970 */
  list = [];
  /** number of the last sample of this process */
  count = 0;
  process = 0;
  /** when the page saw another process answer, in seconds since 1970 */
  changes = [];

  /** Adds the samples of an answer. @returns true if another process than before has answered */
  add({ pid, time, wall, history }) {
    const changed = this.process !== 0 && this.process !== pid;
    this.process = pid;
    if (changed) this.changes.push(wall / 1000);
    const end = wall / 1000;
    // if the wall clock was set back, samples of before are in the future: they make room for those of now
    this.list = this.list.filter((sample) => sample.at > end - SPAN - GAP && sample.at <= end + 1);
    const last = this.list.at(-1)?.at ?? 0;
    for (const row of history.rows) {
      const values = Object.fromEntries(history.columns.map((column, at) => [column, row[at]]));
      const at = end - (time - values.time);
      if (at > last) this.list.push({ at, process: pid, values });
    }
    this.count = history.count;
    this.changes = this.changes.filter((at) => at > end - SPAN && at <= end);
    return changed;
  }

  get last() {
    return this.list.at(-1) ?? null;
  }

  /** The sample next to a time, or null if there is none within two seconds. */
  near(at) {
    let best = null;
    for (const sample of this.list) {
      if (best === null || Math.abs(sample.at - at) < Math.abs(best.at - at)) best = sample;
    }
    return best !== null && Math.abs(best.at - at) < 2 ? best : null;
  }

  /** Sums of the samples of the last seconds. */
  sum(seconds) {
    const total = {};
    const end = this.last?.at ?? 0;
    for (const { at, values } of this.list) {
      if (at <= end - seconds) continue;
      for (const [key, value] of Object.entries(values)) total[key] = (total[key] ?? 0) + value;
    }
    return total;
  }

  /** Points of a chart: runs of samples without a gap. @param value of one sample; null leaves it out */
  runs(value) {
    const runs = [];
    let run = null;
    let before = null;
    for (const sample of this.list) {
      const y = value(sample.values);
      const broken = before === null || sample.at - before.at > GAP || sample.process !== before.process;
      before = sample;
      if (y === null) continue;
      if (run === null || broken) {
        run = [];
        runs.push(run);
      }
      run.push({ at: sample.at, y });
    }
    return runs;
  }
}

/** An event count for each second. */
export function rate(values, column) {
  return values.seconds > 0 ? values[column] / values.seconds : null;
}

/** A mean time in usec; null if there was no event. */
export function mean(values, time, count) {
  return values[count] > 0 ? values[time] / values[count] : null;
}
