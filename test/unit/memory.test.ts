/*
 * When the pooler gives memory back: after the start, and after a wave of connections, not during it.
 */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { native } from '../../src/core/base/native';
import { memoryMaint } from '../../src/core/life/memory';
import { describe, it } from '../harness/limits';
import { itUnless, notLinux } from '../harness/needs';

/** The program's constants are many megabytes, of which some are in use. */
const CONSTANTS_KB_MIN = 4096;

const release = native.releaseMemory;
let calls = 0;
native.releaseMemory = () => {
  calls++;
};

/** @returns how often memory was given back in runs with these numbers of connections */
function runs(...connections: number[]): number {
  calls = 0;
  for (const number of connections) memoryMaint(number);
  return calls;
}

describe('memory is given back', () => {
  it('once after the start', () => {
    assert.equal(runs(0, 0, 0), 1);
  });

  it('after a wave that came, and after it has left, but not while it moves', () => {
    assert.equal(runs(400, 800, 1200, 1600), 0);
    assert.equal(runs(1590, 1600, 1600), 1);
    assert.equal(runs(1200, 800, 400), 0);
    assert.equal(runs(390, 400), 1);
  });

  it('not for a few connections, and not for many small changes around the same number', () => {
    assert.equal(runs(500, 500, 900, 900, 400, 400, 1380, 1380), 0);
    assert.equal(runs(1400), 1);
  });

  itUnless(notLinux)('constants of the program that are not read again are no longer resident', () => {
    const fileKb = () => Number(/^RssFile:\s+(\d+) kB/m.exec(readFileSync('/proc/self/status', 'latin1'))?.[1]);
    const before = fileKb();
    release();
    const after = fileKb();
    assert.ok(after < before - CONSTANTS_KB_MIN, `${before} kB, then ${after} kB`);
  });
});
