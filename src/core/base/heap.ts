/*
 * The settings of V8's heap. Called by main.ts, once.
 */
import { setFlagsFromString } from 'node:v8';

/**
 * Keeps the young generation at its initial size, a few megabytes. V8 would let it grow to about 50 MB as soon as many
 * clients log in, and never shrink it. The hot path allocates nothing, so a small young generation is rarely collected.
 */
export function keepYoungGenerationSmall(): void {
  setFlagsFromString('--semi-space-growth-factor=1');
}
