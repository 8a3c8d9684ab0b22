/*
 * The console's data about a client. src/admin/extended.ts uses it; src/takeover includes it in a handover.
 */

import type { ColumnFormats } from '../wire/messages';

/** A bound command. Its first Execute runs it. */
export interface ConsolePortal {
  /** byte string; '' = a query without a command */
  readonly query: string;
  readonly formats: ColumnFormats;
  /** Execute has been answered; remaining rows are in `rest` */
  done: boolean;
  /** DataRow packets left by an Execute with a row limit */
  rest: Buffer | null;
  /** row limit of the current Execute, 0 = none */
  limit: number;
}

/** A command whose answer waits: PAUSE, SUSPEND or WAIT_CLOSE. */
export interface WaitingCommand {
  /** '' = not known: from an earlier version */
  readonly tag: 'PAUSE' | 'SUSPEND' | 'WAIT_CLOSE' | '';
  /** name of the database; null = all */
  readonly db: string | null;
}

export class ConsoleSession {
  /** may make changes: a user in admin_users, or the owner of the process */
  admin = false;
  /** connected over a Unix socket by the user that runs the pooler */
  owner = false;
  /** the command that waits to complete */
  waitsFor: WaitingCommand | null = null;

  /* extended protocol */

  /** queries by statement name, '' = unnamed */
  readonly statements = new Map<string, string>();
  /** open until Sync */
  readonly portals = new Map<string, ConsolePortal>();
  /** total length of `rest` in all portals, in bytes */
  restBytes = 0;
  /** the packet being handled, or whose command waits, belongs to the extended protocol */
  extended = false;
  /** a packet failed: skips everything up to Sync */
  skipping = false;
  /** the portal of the current Execute, also while its command waits */
  executing: ConsolePortal | null = null;
  /** a Sync arrived while a command waits: its answer ends with ReadyForQuery */
  syncWaits = false;
  /** reading is off until the waiting command has been answered */
  held = false;
}
