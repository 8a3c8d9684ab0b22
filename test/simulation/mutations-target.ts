/*
 * Faults of host lists with target_session_attrs, and of the recovery of servers, that the simulation has to find when
 * they are put back: see mutations.ts.
 */
import type { Mutation } from './modules';

const NONE = { servers: false, clients: false, console: false, reboots: false, clock: false };
const TARGET = {
  faults: { ...NONE, servers: true },
  settings: {
    pool_mode: 'transaction',
    listen_mode: 'ignore',
    max_db_connections: 0,
    query_wait_timeout: 30,
    server_lifetime: 3600,
    server_idle_timeout: 600,
  },
  clients: 5,
  failoverEvery: 4_000_000,
  database: 'epsilon',
};

export const targetMutations: Mutation[] = [
  {
    name: 'any server fits at the login',
    wanted: TARGET,
    edits: [{ file: 'core/login/server-login', find: 'if (reason !== null)', replace: 'if (reason === undefined)' }],
  },
  {
    name: 'a server that reports another role goes on serving',
    seed: 33,
    wanted: TARGET,
    edits: [
      {
        file: 'core/session/parameters',
        find: 'noteRole)(server, name, value))',
        replace: 'noteRole)(server, name, value) && false)',
      },
    ],
  },
  {
    name: 'a server that refuses to write goes on serving',
    seed: 2,
    wanted: TARGET,
    edits: [
      {
        file: 'core/link/target-session',
        find: 'if (sqlstate !== READ_ONLY_TRANSACTION ||',
        replace: 'if (sqlstate !== null ||',
      },
    ],
  },
  {
    name: 'clients are refused while no host fits',
    seed: 2,
    wanted: TARGET,
    edits: [
      { file: 'core/link/objects', find: 'pool.holding = outcome ===', replace: 'pool.holding = false && outcome ===' },
    ],
  },
  {
    name: 'the pool stays with a host that does not fit',
    wanted: TARGET,
    edits: [
      {
        file: 'core/link/hosts',
        find: 'pool.lastConnectFailed || pool.hostsTried > 0',
        replace: 'pool.lastConnectFailed && false',
      },
    ],
  },
  {
    // it waited for server_connect_timeout at the same host again and again
    name: 'the pool tries no other host than one that is silent for longer than server_login_retry',
    seed: 119,
    wanted: { ...TARGET, settings: { ...TARGET.settings, server_login_retry: 1 } },
    edits: [
      { file: 'core/link/launch', find: 'now - pool.targetFailedAt >=', replace: 'now - pool.lastConnectTime >=' },
    ],
  },
  {
    name: 'a handover forgets that clients wait for a host that fits',
    seed: 7,
    wanted: { ...TARGET, faults: { ...NONE, servers: true, reboots: true } },
    edits: [{ file: 'takeover/records/pool', find: 'pool.holding = record.holding === true;', replace: ';' }],
  },
  {
    name: 'a cancel request goes to the next host of the list',
    wanted: { ...TARGET, faults: NONE, database: 'gamma' },
    edits: [
      { file: 'core/link/launch', find: 'if (running !== null) {', replace: 'if (running === undefined) {' },
      {
        file: 'core/link/cancel',
        find: '(0, connect_1.sameEnd)(req.canceledServer, server)',
        replace: 'server !== null',
      },
    ],
  },
];
