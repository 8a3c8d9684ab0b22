/*
 * Memory that is held but not used goes back to the kernel: once after the start, and after each wave of connections that
 * came or went. Called by maint.ts.
 */
import { native } from '../base/native';

/** A wave: so many connections more, whose logins needed more than they keep, or so many fewer. */
const WAVE_MIN = 1000;
/** A wave is over when no more than this came or went since the last run. */
const STEADY_MAX = 100;

/** the number in the last run */
let previous = 0;
/** the number when memory was last given back */
let released = -WAVE_MIN;

/** @param connections number of client and server connections now, without clients in login */
export function memoryMaint(connections: number): void {
  const steady = Math.abs(connections - previous) <= STEADY_MAX;
  previous = connections;
  if (!steady || Math.abs(connections - released) < WAVE_MIN) return;
  released = connections;
  native.releaseMemory();
}
