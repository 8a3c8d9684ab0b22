/*
 * What V8 makes of its heap. Called by main.ts, once.
 */
import { setFlagsFromString } from 'node:v8';

/**
 * Keeps the young generation at the size it starts with, some megabytes. V8 would let it grow to about 50 MB as soon as many
 * clients log in, and never give that back. The hot path allocates nothing, so that a small one is collected seldom.
 */
export function keepYoungGenerationSmall(): void {
  setFlagsFromString('--semi-space-growth-factor=1');
}
