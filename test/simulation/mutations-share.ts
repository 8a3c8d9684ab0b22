/*
 * Faults of the shared LISTEN (listen_mode = share) that the simulation has to find when they are put back: see
 * mutations.ts.
 */
import type { Mutation } from './modules';

const NONE = { servers: false, clients: false, console: false, reboots: false, clock: false };
const SETTINGS = {
  pool_mode: 'transaction',
  listen_mode: 'share',
  listen_queue_size: 1_048_576,
  max_db_connections: 0,
};
const SHARE = { faults: NONE, settings: SETTINGS, listenOne: 2, clients: 20 };

export const shareMutations: Mutation[] = [
  {
    name: 'LISTEN ends before the listening connection listens',
    wanted: SHARE,
    edits: [{ file: 'core/session/listen', find: 'if (own.missing && ', replace: 'if (false && ' }],
  },
  {
    name: 'requests behind LISTEN do not wait for it',
    wanted: SHARE,
    edits: [
      {
        file: 'core/session/listen',
        find: 'if (server === null || !isRequest(type))',
        replace: 'if (server !== undefined)',
      },
    ],
  },
  {
    name: 'requests behind the COMMIT of a LISTEN do not wait for it',
    seed: 185,
    wanted: SHARE,
    edits: [
      {
        file: 'core/session/listen',
        find: 'own.expected.length === 0 && own.changes.length === 0 && !own.missing',
        replace: 'own.expected.length === 0 && own.changes.length === 0',
      },
    ],
  },
  {
    name: 'notifications do not wait for the end of a transaction',
    seed: 4,
    wanted: SHARE,
    edits: [
      {
        file: 'core/link/notifications',
        find: 'return client.link === null && !own.waiting;',
        replace: 'return true;',
      },
    ],
  },
  {
    name: 'a client gets notifications both from its server and from the listening connection',
    seed: 236,
    wanted: SHARE,
    edits: [
      { file: 'core/session/listen', find: 'return shared ? 1 /* Notification.DROP */', replace: 'return shared ? 0' },
      {
        file: 'core/session/listen',
        find: 'if (own === null || (own.changes.length === 0 && !own.missing))',
        replace: 'if (own === null)',
      },
    ],
  },
  {
    name: 'a handover forgets the notifications that wait',
    seed: 10,
    wanted: { ...SHARE, faults: { ...NONE, reboots: true } },
    edits: [
      { file: 'takeover/records/listening', find: 'if (own.queue !== null)', replace: 'if (own.queue === undefined)' },
    ],
  },
  {
    name: 'clients do not learn that the listening connection was lost',
    seed: 21,
    wanted: { ...SHARE, faults: { ...NONE, servers: true } },
    edits: [{ file: 'core/pool/listening', find: 'shared.lost = true;', replace: ';' }],
  },
  {
    name: 'notifications that wait have no limit',
    wanted: { ...SHARE, settings: { ...SETTINGS, listen_queue_size: 300 } },
    edits: [
      { file: 'core/link/listen-share', find: 'if (waiting <= (', replace: 'if (waiting < Infinity || waiting <= (' },
    ],
  },
];
