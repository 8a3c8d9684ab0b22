/*
 * Percentiles of histograms, as their counts say: exact to a bucket, and linear within it. Used by history.ts and status.ts.
 */

import type { MetricsLayout } from '../core/base/worker-messages';

/** The numbers of a histogram: its buckets, one without a bound, and the sum. */
export function histogramWidth({ timingBounds }: MetricsLayout): number {
  return timingBounds.length + 2;
}

/**
 * Percentiles of one histogram.
 * @param counts of its buckets, from `from` on
 * @param parts as shares of 1
 * @returns usec; empty if nothing was counted
 */
export function percentiles(counts: Float64Array, from: number, bounds: readonly number[], parts: number[]): number[] {
  const count = (bucket: number) => counts[from + bucket] ?? 0;
  let total = 0;
  for (let bucket = 0; bucket <= bounds.length; bucket++) total += count(bucket);
  if (total <= 0) return [];
  return parts.map((part) => {
    let before = 0;
    for (let bucket = 0; bucket < bounds.length; bucket++) {
      const low = bounds[bucket - 1] ?? 0;
      const high = bounds[bucket] as number;
      if (before + count(bucket) >= total * part && count(bucket) > 0) {
        return Math.round(low + ((high - low) * (total * part - before)) / count(bucket));
      }
      before += count(bucket);
    }
    return bounds.at(-1) ?? 0;
  });
}

/** Adds what was counted since an earlier time. @param earlier null = nothing had been counted */
export function addCounted(into: Float64Array, now: Float64Array, earlier: Float64Array | null): void {
  for (let i = 0; i < now.length; i++) into[i] = (into[i] ?? 0) + Math.max(0, (now[i] ?? 0) - (earlier?.[i] ?? 0));
}
