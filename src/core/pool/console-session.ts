/*
 * What the console remembers of a client: plain data. src/admin/extended.ts works with it,
 * src/takeover hands it over to a new process.
 */

import type { ColumnFormats } from '../wire/messages';
import type { ClientSocket } from './bouncer';

/** A prepared command, bound. It is carried out by its first Execute. */
export interface ConsolePortal {
  /** byte string; '' = a query without a command */
  readonly query: string;
  readonly formats: ColumnFormats;
  /** Execute was answered; what was left over is in `rest` */
  done: boolean;
  /** DataRow packets that an Execute with a row limit left for the next */
  rest: Buffer | null;
  /** rows that the current Execute may send, 0 = all */
  limit: number;
}

export class ConsoleSession {
  /** may change things: one of admin_users, or the owner of the process */
  admin = false;
  /** runs as the same user on a Unix socket */
  owner = false;
  /** waits for PAUSE, SUSPEND or WAIT_CLOSE to complete */
  waiting = false;

  /* --- extended protocol --- */

  /** queries by the name of their statement, '' being the unnamed one */
  readonly statements = new Map<string, string>();
  /** open until Sync */
  readonly portals = new Map<string, ConsolePortal>();
  /** bytes in `rest` of all portals */
  restBytes = 0;
  /** the packet that is handled, or whose command waits, belongs to the extended protocol */
  extended = false;
  /** a packet failed: everything is passed over until Sync */
  skipping = false;
  /** the portal that an Execute is about; also while its command waits */
  executing: ConsolePortal | null = null;
  /** Sync arrived while a command waits: its answer ends with ReadyForQuery */
  syncWaits = false;
  /** reading is off until the command that waits is answered */
  held = false;
}

/** The session of a client of the console. */
export function consoleSession(client: ClientSocket): ConsoleSession {
  client.console ??= new ConsoleSession();
  return client.console;
}
