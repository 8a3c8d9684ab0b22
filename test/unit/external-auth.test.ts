/*
 * Logins by PAM and LDAP whose decision never comes, because the thread has ended or hangs.
 */

import assert from 'node:assert/strict';
import { getCachedTime, setTimeCache, USEC } from '../../src/core/base/time';
import { externalAuthBegin, externalAuthDone, newAuthQueue } from '../../src/core/login/external-auth';
import { type ClientSocket, PgCredentials, SocketState } from '../../src/core/pool/bouncer';
import { isDead } from '../../src/core/pool/socket';
import { changeClientState, newClient } from '../../src/core/pool/states';
import { Verdict } from '../../src/core/wire/verdict';
import { toDefaults } from '../harness/config-fixtures';
import { beforeEach } from '../harness/limits';
import { it } from '../harness/machine';

const HOUR = 3600 * USEC;

const started: number[] = [];
let threadsLost = 0;
const queue = newAuthQueue(
  'LDAP',
  (id) => {
    started.push(id);
    return null;
  },
  () => {
    threadsLost++;
  },
);

function begin(): ClientSocket {
  const client = newClient();
  changeClientState(client, SocketState.CL_LOGIN);
  client.loginUser = new PgCredentials('lucy', null);
  assert.equal(externalAuthBegin(queue, client, 'right'), Verdict.PAUSED);
  return client;
}

beforeEach(toDefaults);

it('a thread that has not answered for long is replaced at the next login, however few there are', () => {
  setTimeCache(HOUR);
  const lost = begin();
  setTimeCache(getCachedTime() + 299 * USEC);
  const other = begin();
  assert.equal(threadsLost, 0);
  setTimeCache(getCachedTime() + 2 * USEC);
  const next = begin();
  assert.equal(threadsLost, 1);
  assert.deepEqual([lost, other, next].map(isDead), [true, true, false]);
  externalAuthDone(queue, started.at(-1) as number, false, []);
  assert.equal(isDead(next), true);
  begin();
  assert.equal(threadsLost, 1);
});
