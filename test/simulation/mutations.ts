/*
 * Faults that the simulation has to find when they are put back: each was once in the code, or resembles such a fault.
 * They change the compiled text of a module. If the text to change is gone, the test fails, and the fault must be
 * expressed anew.
 */
import type { Mutation } from './modules';

const NONE = { servers: false, clients: false, console: false, reboots: false, clock: false };

const TLS = { client_tls_sslmode: 'allow', suspend_timeout: 10 };

const LISTENING = {
  pool_mode: 'transaction',
  listen_mode: 'pin',
  dirty_session: 'ignore',
  server_reset_query_always: 0,
};

const SHARING = {
  faults: NONE,
  settings: {
    pool_mode: 'transaction',
    listen_mode: 'ignore',
    fair_share_timeout: 0.2,
    max_db_connections: 3,
    default_pool_size: 3,
    min_pool_size: 0,
  },
  clients: 60,
  database: 'alpha',
};

export const mutations: Mutation[] = [
  {
    // the pool may be killed before the client has sent its password
    name: 'a client has a pool before it has logged in',
    wanted: {},
    edits: [
      {
        file: 'core/login/startup',
        find: 'client.pool = null;',
        replace:
          "client.pool = db.fake || user.mockAuth ? null : require('../pool/pool').getPool(db, db.forcedUser ?? user);",
      },
    ],
  },
  {
    name: 'timers follow the wall clock',
    wanted: { faults: { clients: true, clock: true } },
    edits: [
      {
        file: 'core/base/timer',
        find: 'timer.when = (0, time_1.readClock)() + delay;',
        replace: "timer.when = require('./native').native.wallOffset() + (0, time_1.readClock)() + delay;",
      },
      {
        file: 'core/base/timer',
        find: 'function timerWaitMs(now) {',
        replace: "function timerWaitMs(now) { now += require('./native').native.wallOffset();",
      },
      {
        file: 'core/base/timer',
        find: 'function runTimers(now) {',
        replace: "function runTimers(now) { now += require('./native').native.wallOffset();",
      },
    ],
  },
  {
    name: 'a server that is closed still counts for its database',
    wanted: {},
    edits: [{ file: 'core/pool/admission', find: 'pool.db.connectionCount--;', replace: ';' }],
  },
  {
    name: 'a client that leaves still counts for its database',
    wanted: {},
    edits: [{ file: 'core/pool/admission', find: 'client.countedDb.clientConnectionCount--;', replace: ';' }],
  },
  {
    name: 'a login that waited for auth_query goes behind younger ones',
    seed: 15,
    wanted: {
      faults: { ...NONE, servers: true, clients: true },
      settings: { client_login_timeout: 3, query_wait_timeout: 30, auth_type: 'plain' },
      silentOne: 2,
    },
    edits: [
      {
        file: 'core/pool/states',
        find: 'let later = exports.loginClientList.tail;',
        replace: 'let later = null;',
      },
    ],
  },
  {
    name: 'a handover forgets clients that wait',
    seed: 3,
    wanted: { faults: { reboots: true } },
    edits: [
      {
        file: 'takeover/snapshot-writer',
        find: 'if (!this.ok || state === null ||',
        replace: 'if (!this.ok || state === null || sk.state === 3 ||',
      },
    ],
  },
  {
    name: 'a handover forgets what was received ahead from an idle client',
    seed: 263,
    wanted: { faults: { ...NONE, reboots: true } },
    edits: [
      {
        file: 'takeover/snapshot-writer',
        find: 'native_1.native.buffered(sk.handle) > 0',
        replace: 'sk.hasKept',
      },
      {
        file: 'takeover/snapshot-writer',
        find: '!this.stirred.has(sk.handle)',
        replace: '!sk.hasKept',
      },
    ],
  },
  {
    name: 'unsent TLS records are encrypted once more in the new process',
    seed: 75,
    wanted: { faults: { ...NONE, reboots: true, clients: true }, settings: TLS },
    edits: [
      {
        file: 'takeover/freeze',
        find: 'native_1.native.sendRecords(sk.handle, unsent)',
        replace: '(native_1.native.tlsThawAll(), native_1.native.sendBytes(sk.handle, unsent, 0, unsent.length))',
      },
    ],
  },
  {
    name: 'the old process does not wait for transactions of clients that cannot be handed over',
    seed: 63,
    wanted: { faults: { ...NONE, reboots: true }, settings: TLS },
    edits: [
      {
        file: 'takeover/staying',
        find: 'return (0, sockets_1.lastingRefusalOf)(client, this.format);',
        replace: 'return null;',
      },
    ],
  },
  {
    name: 'the old process does not find the clients that log in while it waits and cannot be handed over',
    seed: 337,
    wanted: { faults: { ...NONE, reboots: true }, clients: 100 },
    edits: [{ file: 'takeover/staying', find: 'now >= this.findAt', replace: 'false' }],
  },
  {
    // PgBouncer does this
    name: 'the parameters of a replication connection become those of its pool',
    wanted: { faults: NONE },
    edits: [
      {
        file: 'core/login/server-login',
        find: 'const fits = server.replication === 0',
        replace: 'const fits = server.replication >= 0',
      },
      {
        file: 'core/login/server-login',
        find: 'if (server.replication === 0 /* Replication.NONE */)\n        welcomeWaiting(pool);',
        replace: 'welcomeWaiting(pool); if (server.replication === 0);',
      },
    ],
  },
  {
    name: 'the pools of a paused database are filled up to min_pool_size',
    seed: 15,
    wanted: { faults: { ...NONE, console: true } },
    edits: [{ file: 'core/life/maint', find: '|| pool.db.paused ||', replace: '||' }],
  },
  {
    name: 'a server is not reset before its next client',
    wanted: { settings: { dirty_session: 'reset', server_reset_query_always: 0 } },
    edits: [{ file: 'core/link/leftovers', find: 'left === null || left.kinds === 0', replace: 'left !== undefined' }],
  },
  {
    name: 'a client that listens gives its server to others',
    seed: 105,
    wanted: { faults: NONE, settings: LISTENING },
    edits: [
      { file: 'core/link/leftovers', find: 'PoolMode.SESSION */ || isPinned(server)', replace: 'PoolMode.SESSION */' },
    ],
  },
  {
    name: 'the next client gets the notifications of the one before',
    wanted: { faults: NONE, settings: LISTENING },
    edits: [{ file: 'core/link/leftovers', find: "'UNLISTEN *;'", replace: "''" }],
  },
  {
    name: 'a handover forgets that a client listens',
    seed: 9,
    wanted: { faults: { ...NONE, reboots: true }, settings: LISTENING },
    edits: [{ file: 'takeover/records/server', find: 'server.leftovers.restore(record.leftovers);', replace: ';' }],
  },
  {
    name: 'LISTEN is executed although it is refused',
    wanted: { faults: NONE, settings: { ...LISTENING, listen_mode: 'refuse' } },
    edits: [
      {
        file: 'core/link/leftovers',
        find: 'return all | 4 /* Left.CHANNELS */;',
        replace: 'return all;',
      },
    ],
  },
  {
    name: 'no connection is given away for a fair share',
    seed: 20,
    wanted: SHARING,
    edits: [
      {
        file: 'core/link/shares',
        find: 'if (wanted < rest || (wanted === 0 && rest === 0))',
        replace: 'if (wanted > 1000)',
      },
    ],
  },
  {
    name: 'a pool that has no right to a connection hides those behind it',
    seed: 43,
    wanted: SHARING,
    edits: [
      {
        file: 'core/link/shares',
        find: 'if (wanted < rest || (wanted === 0 && rest === 0))',
        replace: 'if (wanted >= rest && (wanted !== 0 || rest !== 0)) return null; else',
      },
    ],
  },
  {
    name: 'share_minimum does not count',
    seed: 14,
    wanted: { ...SHARING, people: ['ann', 'bob'] },
    edits: [{ file: 'core/link/shares', find: 'pool.user?.globalUser?.config.shareMinimum ?? 0', replace: '0' }],
  },
  {
    name: 'a server whose client has left in a transaction counts as ready',
    seed: 10,
    wanted: {
      faults: { ...NONE, clients: true },
      settings: { server_recovery_timeout: 3, listen_mode: 'ignore', server_fast_close: 0 },
    },
    edits: [
      {
        file: 'core/link/recovery',
        find: 'return server.requests.fakes === 0;',
        replace: 'server.ready = true; return server.requests.fakes === 0;',
      },
    ],
  },
];
