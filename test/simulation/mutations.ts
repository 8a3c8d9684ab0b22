/*
 * Faults that the simulation has to find when they are put back: each was once in the code, or resembles such a fault.
 * They change the compiled text of a module. If the text to change is gone, the test fails, and the fault must be
 * expressed anew.
 */
import type { Mutation } from './modules';

const NONE = { servers: false, clients: false, console: false, reboots: false, clock: false };

const TLS = { client_tls_sslmode: 'allow', suspend_timeout: 10 };

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
    wanted: { faults: { ...NONE, reboots: true } },
    edits: [
      {
        file: 'takeover/snapshot-writer',
        find: 'native_1.native.buffered(sk.handle) === 0',
        replace: '!sk.hasKept',
      },
    ],
  },
  {
    name: 'unsent TLS records are encrypted once more in the new process',
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
    wanted: { faults: { ...NONE, reboots: true }, settings: TLS },
    edits: [
      {
        file: 'takeover/staying',
        find: 'return (0, sockets_1.refusalOf)(client, this.format) !== null;',
        replace: 'return false;',
      },
    ],
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
        find: 'if (server.replication === 0 /* Replication.NONE */)\n        (0, welcome_1.finishWelcomeMsg)(pool);',
        replace: '(0, welcome_1.finishWelcomeMsg)(pool); if (server.replication === 0);',
      },
    ],
  },
  {
    name: 'the pools of a paused database are filled up to min_pool_size',
    wanted: { faults: { ...NONE, console: true } },
    edits: [{ file: 'core/life/maint', find: '|| pool.db.paused ||', replace: '||' }],
  },
  {
    // the process ended when WAIT_CLOSE was to be answered
    name: 'a paused auto-database without clients is not counted as paused',
    wanted: { faults: { ...NONE, console: true }, settings: { pool_idle_timeout: 0 }, clients: 2 },
    edits: [
      {
        file: 'core/pool/database',
        find: 'for (const list of [exports.databaseList, exports.autodatabaseIdleList])',
        replace: 'for (const list of [exports.databaseList])',
      },
    ],
  },
  {
    name: 'a server is not reset before its next client',
    wanted: { settings: { dirty_session: 'reset', server_reset_query_always: 0 } },
    edits: [{ file: 'core/link/leftovers', find: 'left === null || left.kinds === 0', replace: 'left !== undefined' }],
  },
];
