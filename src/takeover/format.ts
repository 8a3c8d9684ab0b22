/*
 * The format of the full handover, which both processes must agree on. docs/online-reboot.md explains the exchange.
 *
 * The old process answers `HANDOVER <n>;` with CopyData messages, one record each: the length of a JSON text (4 bytes),
 * the text (latin1: one char is one byte), then the raw bytes that the text announces. A record with `fd` owns the next
 * of the descriptors that were received as SCM_RIGHTS. After the record `aheadEnd` the old process keeps serving and
 * waits for `HANDOVER READY;`. CommandComplete `HANDOVER` ends the exchange.
 *
 * For compatibility across versions, fields of sockets are sent as lists whose names the first record gives, and states
 * and kinds are sent by name. Readers ignore what they do not know and use defaults for what is missing. FORMAT is
 * raised only when that is not enough: a reader of format 1 would take a TLS connection for a plain one, and a reader of
 * format 2 would forget that clients listen.
 *
 * Each file in records/ has one kind of record: its fields, the function that writes it in the old process, and the
 * function that reads it in the new process.
 */

import type { BeginRecord } from './records/begin';
import type { ClientRecord } from './records/client';
import type { DatabaseRecord } from './records/database';
import type { ListenerRecord } from './records/listener';
import type { PoolRecord } from './records/pool';
import type { ServerRecord } from './records/server';
import type { StatementRecord } from './records/statement';
import type { StillRecord } from './records/still';
import type { UserRecord } from './records/user';

/** Newest format that this version writes and reads. */
export const FORMAT = 3;
/** The format from which on TLS connections are handed over. */
export const FORMAT_TLS = 2;
/** The format from which on shared listening connections are handed over, and what clients listen on. */
export const FORMAT_LISTEN = 3;

/** Sent by the new process once it has read everything up to `aheadEnd`; the old process serves until then. */
export const READY = 'READY';

/** Ends the records sent ahead; the reader answers READY once it has processed them. */
interface AheadEndRecord {
  k: 'aheadEnd';
}

/** Sent every second while the old process waits for transactions to end, so that the new process goes on waiting. */
interface WaitRecord {
  k: 'wait';
}

/** Clients that were described ahead and have left since. */
interface GoneRecord {
  k: 'gone';
  ids: number[];
}

interface EndRecord {
  k: 'end';
  listeners: number;
  sockets: number;
}

export type HandoverRecord =
  | BeginRecord
  | AheadEndRecord
  | WaitRecord
  | StillRecord
  | ListenerRecord
  | UserRecord
  | DatabaseRecord
  | PoolRecord
  | StatementRecord
  | ClientRecord
  | ServerRecord
  | GoneRecord
  | EndRecord;
