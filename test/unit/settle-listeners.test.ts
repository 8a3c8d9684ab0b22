/*
 * The listening sockets after a takeover, when the names in listen_addr can no longer be looked up.
 */

import assert from 'node:assert/strict';
import { endProcessWith, logState } from '../../src/core/base/log';
import { Family, native } from '../../src/core/base/native';
import { cf } from '../../src/core/config/settings';
import { checkListenAddr, settleListeners } from '../../src/core/net/pooler';
import { it } from '../harness/limits';

it('a name in listen_addr is not looked up again after the takeover', () => {
  const lines: string[] = [];
  logState.sink = (_, line) => lines.push(line);
  endProcessWith((code): never => {
    throw new Error(`the process ends with ${code}`);
  });
  const { getaddrinfoPassive, listenTcp } = native;
  cf.listenAddr = 'pooler.test';
  try {
    native.getaddrinfoPassive = (_, port) => [{ family: Family.INET, host: '127.0.0.9', port }];
    checkListenAddr();
    native.getaddrinfoPassive = () => {
      throw new Error('Temporary failure in name resolution');
    };
    assert.throws(checkListenAddr, /the process ends with 1/);
    native.listenTcp = ({ host }) => {
      throw new Error(`not here: ${host}`);
    };
    lines.length = 0;
    settleListeners();
    assert.match(lines.join('\n'), /cannot listen on 127\.0\.0\.9:\d+: .*not here: 127\.0\.0\.9/);
  } finally {
    Object.assign(native, { getaddrinfoPassive, listenTcp });
    logState.sink = null;
    endProcessWith(process.exit);
  }
});
