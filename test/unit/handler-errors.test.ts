/*
 * A handler that throws, for example because there is no memory, ends the connection that it handles and no other.
 */

import assert from 'node:assert/strict';
import { logState } from '../../src/core/base/log';
import { Ev, native, resumedLength, ring, waitClock } from '../../src/core/base/native';
import { mainLoopOnce } from '../../src/core/life/mainloop';
import { attachHandle, runContinueQueue, sbufContinue } from '../../src/core/net/sbuf';
import { type AnySocket, ClientSocket, SocketState } from '../../src/core/pool/bouncer';
import { upcalls } from '../../src/core/pool/upcalls';
import { initVarLookup } from '../../src/core/pool/varcache';
import { describe, it } from '../harness/limits';

initVarLookup('');

function activeClient(handle: number): ClientSocket {
  const client = new ClientSocket(SocketState.CL_ACTIVE);
  attachHandle(client, handle);
  return client;
}

/** A client that is read from again, and has buffered input. */
function resumed(handle: number): void {
  const client = activeClient(handle);
  client.hasKept = true;
  sbufContinue(client);
}

describe('a handler that throws', () => {
  it('leaves the other resumed connections to be handled, each once', () => {
    native.resume = (handle) => {
      resumedLength[0] = handle;
      return handle * 100;
    };
    const handled: [handle: number, offset: number, length: number][] = [];
    const input = (sk: AnySocket, offset: number, length: number): void => {
      handled.push([sk.handle, offset, length]);
      if (sk.handle === 2) throw new RangeError('no memory');
      if (sk.handle === 3) resumed(5);
    };
    for (const handle of [1, 2, 3]) resumed(handle);
    assert.throws(() => runContinueQueue(input), RangeError);
    resumed(4);
    for (let i = 0; i < 2; i++) runContinueQueue(input);
    assert.deepEqual(
      handled,
      [1, 2, 3, 4, 5].map((handle) => [handle, handle * 100, handle]),
    );
  });

  it('of a signal ends no connection whose handle is the number of the signal', () => {
    const client = activeClient(10);
    const lines: string[] = [];
    logState.sink = (_, line) => lines.push(line);
    native.wait = () => {
      ring.set([Ev.SIGNAL, client.handle, 0, 0]);
      waitClock[0] = native.readClock();
      return 1;
    };
    upcalls.signal = () => {
      throw new RangeError('no memory');
    };
    mainLoopOnce();
    logState.sink = null;
    assert.deepEqual([client.handle, client.state], [10, SocketState.CL_ACTIVE]);
    assert.equal(lines.length, 1);
    assert.match(lines[0] as string, /^exception in event handler: RangeError: no memory/);
  });
});
