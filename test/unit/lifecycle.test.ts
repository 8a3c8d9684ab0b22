/*
 * The lifecycle module: its transitions, and that cfShutdown and the shutdown mode agree.
 */

import assert from 'node:assert/strict';
import {
  clientsHeldUp,
  enterFreeze,
  enterPause,
  enterSuspend,
  getPauseMode,
  getShutdownMode,
  isFrozen,
  leaveFreeze,
  leavePause,
  ownsListeners,
  PauseMode,
  ShutdownMode,
  setShutdown,
} from '../../src/core/base/lifecycle';
import { describe, it } from '../harness/limits';

describe('the lifecycle of the process', () => {
  it('PAUSE, SUSPEND and freeze start from allowed modes only, and return to the previous mode', () => {
    assert.throws(leavePause, /resume in pause mode 0/);
    enterPause();
    assert.throws(() => enterSuspend(1), /suspend in pause mode 1/);
    assert.equal(enterFreeze(7), PauseMode.PAUSE);
    assert.ok(isFrozen());
    assert.ok(!ownsListeners());
    assert.throws(leavePause, /resume in pause mode 3/);
    assert.throws(() => setShutdown(ShutdownMode.WAIT_FOR_SERVERS), /shutdown in pause mode 3/);
    assert.equal(getShutdownMode(), ShutdownMode.NONE, 'a refused shutdown changes nothing');
    leaveFreeze();
    assert.equal(getPauseMode(), PauseMode.PAUSE);
    leavePause();
    enterSuspend(9);
    assert.ok(!ownsListeners());
    leavePause();
    assert.ok(ownsListeners());
  });

  it('cfShutdown shows the shutdown mode, and only 2 can be assigned to it', () => {
    assert.equal(globalThis.cfShutdown, 0);
    for (const value of [0, 1, 3]) {
      assert.throws(() => {
        globalThis.cfShutdown = value;
      }, RangeError);
    }
    setShutdown(ShutdownMode.WAIT_FOR_CLIENTS);
    assert.equal(globalThis.cfShutdown, 1);
    enterPause();
    assert.ok(clientsHeldUp());
    setShutdown(ShutdownMode.WAIT_FOR_SERVERS);
    assert.equal(getPauseMode(), PauseMode.PAUSE);
    globalThis.cfShutdown = 2;
    assert.equal(getShutdownMode(), ShutdownMode.IMMEDIATE);
    assert.throws(() => setShutdown(ShutdownMode.WAIT_FOR_CLIENTS), /after an immediate shutdown/);
  });
});
