/*
 * Events of logins come after those of other clients, for a limited time in each turn. The rest stays in order, with its
 * bytes.
 */

import assert from 'node:assert/strict';
import { enterFreeze, leaveFreeze } from '../../src/core/base/lifecycle';
import { native } from '../../src/core/base/native';
import { handleLogins, keepLeftLogins, loginsAreDue, putOffLogin } from '../../src/core/life/login-queue';
import { ClientSocket, SocketState } from '../../src/core/pool/bouncer';
import { initVarLookup } from '../../src/core/pool/varcache';
import { beforeEach, describe, it } from '../harness/limits';

/** usec that handling an event takes */
let cost = 0;
let clock = 0;
let kept: [handle: number, offset: number, length: number][] = [];
let handled: [client: number, result: number, offset: number][] = [];

function loginClient(handle: number): ClientSocket {
  const client = new ClientSocket(SocketState.CL_LOGIN);
  client.handle = handle;
  client.reading = true;
  return client;
}

function handle(client: ClientSocket, result: number, offset: number): void {
  handled.push([client.handle, result, offset]);
  if (offset < 0) client.hasKept = false;
  clock += cost;
}

function turn(busy = true): typeof handled {
  handled = [];
  if (loginsAreDue()) handleLogins(handle, clock, busy);
  keepLeftLogins();
  return handled;
}

describe('the events of logins', () => {
  beforeEach(() => {
    initVarLookup('');
    native.readClock = () => clock;
    native.keep = (...piece: [number, number, number]) => kept.push(piece);
    cost = 0;
    kept = [];
    turn();
  });

  it('are all handled while there is time, in order', () => {
    putOffLogin(loginClient(1), 10, 100);
    putOffLogin(loginClient(2), 0, 0);
    assert.equal(loginsAreDue(), true);
    assert.deepEqual(turn(), [
      [1, 10, 100],
      [2, 0, 0],
    ]);
    assert.equal(loginsAreDue(), false);
    assert.deepEqual(kept, []);
  });

  for (const busy of [true, false]) {
    it(`that a ${busy ? 'busy' : 'calm'} turn has no time for go on in the next one, at least one in each`, () => {
      cost = 1e6;
      for (const number of [1, 2, 3]) putOffLogin(loginClient(number), 10, number * 100);
      assert.deepEqual(turn(busy), [[1, 10, 100]]);
      assert.deepEqual(turn(busy), [[2, 10, -1]]);
      assert.deepEqual(turn(busy), [[3, 10, -1]]);
      assert.deepEqual(turn(busy), []);
      assert.deepEqual(kept, [
        [2, 200, 10],
        [3, 300, 10],
      ]);
    });
  }

  it('have less time in a turn with other events', () => {
    cost = 60;
    const countIn = (busy: boolean) => {
      for (let i = 1; i <= 50; i++) putOffLogin(loginClient(i), 10, i);
      const count = turn(busy).length;
      while (loginsAreDue()) turn(busy);
      return count;
    };
    assert.equal(countIn(true), 2);
    assert.equal(countIn(false), 9);
  });

  it('a client whose bytes were kept gets them once, with those that came later, and its end last', () => {
    cost = 1e6;
    const client = loginClient(2);
    putOffLogin(loginClient(1), 5, 50);
    putOffLogin(client, 10, 100);
    turn();
    assert.equal(client.hasKept, true);
    putOffLogin(client, 30, 200);
    putOffLogin(client, 0, 0);
    assert.deepEqual(turn(), [[2, 30, 200]]);
    assert.deepEqual(turn(), [[2, 0, -1]]);
    assert.deepEqual(turn(), []);
  });

  it('the end of a client comes behind its bytes that were kept, although none came later', () => {
    cost = 1e6;
    const client = loginClient(2);
    putOffLogin(loginClient(1), 5, 50);
    putOffLogin(client, 10, 100);
    turn();
    putOffLogin(client, 0, 0);
    assert.deepEqual(turn(), [[2, 10, -1]]);
    assert.deepEqual(turn(), [[2, 0, -1]]);
  });

  it('of a client that is gone, or stopped, are dropped', () => {
    cost = 1e6;
    const [gone, stopped] = [loginClient(2), loginClient(3)];
    putOffLogin(loginClient(1), 5, 50);
    putOffLogin(gone, 5, 60);
    putOffLogin(stopped, 5, 70);
    turn();
    gone.state = SocketState.CL_JUSTFREE;
    stopped.reading = false;
    assert.deepEqual(turn(), []);
    assert.equal(stopped.hasKept, true, 'they are there when it goes on');
  });

  it('an exception concerns one event only', () => {
    putOffLogin(loginClient(1), 5, 50);
    putOffLogin(loginClient(2), 5, 60);
    const fail = () => {
      throw new Error('a fault');
    };
    assert.throws(() => handleLogins(fail, clock, true), /a fault/);
    assert.deepEqual(turn(), [[2, 5, 60]]);
  });

  it('wait during a freeze, with their bytes', () => {
    putOffLogin(loginClient(1), 5, 50);
    enterFreeze(clock);
    assert.equal(loginsAreDue(), false);
    assert.deepEqual(turn(), []);
    assert.deepEqual(kept, [[1, 50, 5]]);
    leaveFreeze();
    assert.deepEqual(turn(), [[1, 5, -1]]);
  });
});
