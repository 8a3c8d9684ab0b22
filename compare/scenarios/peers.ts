/*
 * Two poolers that are peers: cancel requests that arrive at the wrong pooler, and the console's output about peers.
 */
import type { Config, Scenario, Step } from '../side';
import { admin, ask, bye, cancelAtOther, change, login, logSays, query, receive, vanish, whenPool } from '../steps';

const BOTH = { 1: '{self}', 2: '{other}' };

/** The first pooler has id 1 and the clients, the second pooler has id 2. */
function two(name: string, peers: { first: Config['peers']; second: Config['peers'] }, steps: Step[]): Scenario {
  const settings = { pool_mode: 'transaction', client_login_timeout: 3, server_login_retry: 1 };
  return {
    name,
    since: '1.19',
    settings: { ...settings, peer_id: 1 },
    peers: peers.first ?? {},
    second: { settings: { ...settings, peer_id: 2 }, peers: peers.second ?? {} },
    steps,
    raceInLog: true,
    repeatsInLog: true,
  };
}

const SLEEP = 'SELECT pg_sleep(60)';
const console: Step[] = [admin('SHOW PEERS'), admin('SHOW PEER_POOLS'), admin('SHOW LISTS')];

/** A cancel request without effect: the next query works. */
const goesOn: Step[] = [cancelAtOther('a'), query('a', 'SELECT 1'), bye('a')];

export const peers: Scenario[] = [
  two('a cancel request at the wrong pooler', { first: BOTH, second: BOTH }, [
    login('a'),
    ask('a', SLEEP),
    whenPool('sv_active', 1),
    cancelAtOther('a'),
    receive('a'),
    query('a', 'SELECT 1'),
    ...console,
    bye('a'),
  ]),
  two('a client that rests', { first: BOTH, second: BOTH }, [login('a'), ...goesOn]),
  two('a peer that is not listed', { first: BOTH, second: { 2: '{other}' } }, [login('a'), ...goesOn, ...console]),
  two('no peers at all', { first: {}, second: {} }, [login('a'), ...goesOn, ...console]),
  two('a peer that is not there', { first: BOTH, second: { 1: '{dead}' } }, [login('a'), ...goesOn]),
  two('the other pooler has the client', { first: BOTH, second: BOTH }, [
    login('other a'),
    cancelAtOther('other a'),
    query('other a', 'SELECT 1'),
    login('b'),
    vanish('b'),
    logSays(/client unexpected eof|client close request/),
    bye('other a'),
  ]),
  {
    name: 'peers come and go',
    since: '1.19',
    settings: { peer_id: 3 },
    peers: { 1: 'host=127.0.0.1 port=1 pool_size=5', 2: 'host=/tmp' },
    steps: [
      ...console,
      change('other peers', { peers: { 2: 'host=127.0.0.1', 4: 'host=/var/tmp port=7 pool_size=1' } }),
      admin('RELOAD'),
      ...console,
      change('peers that cannot be', { peers: { 0: 'host=/tmp', x: 'host=/tmp', 5: 'nonsense=1' } }),
      admin('RELOAD'),
      ...console,
    ],
  },
];
