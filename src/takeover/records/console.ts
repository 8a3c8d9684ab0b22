/*
 * The extended protocol of the console: a client's prepared statements, its portals and the state of its pipeline.
 */

import { ConsoleSession, type WaitingCommand } from '../../core/pool/console-session';

/** A portal of the console: its name, its query, whether it was run, which columns are binary. */
type ConsolePortalTuple = [string, string, boolean, readonly boolean[] | null];

/** Prepared statements, portals and pipeline state of a console client. */
export interface ConsoleRecord {
  /** names and queries */
  statements: [string, string][];
  portals: ConsolePortalTuple[];
  extended: boolean;
  skipping: boolean;
  syncWaits: boolean;
  held: boolean;
  /** the command that waits */
  waitsFor?: WaitingCommand;
}

/** A portal with rows left is not handed over: its next Execute gets the error that the portal does not exist. */
export function consoleRecord(session: ConsoleSession): ConsoleRecord {
  const { extended, skipping, syncWaits, held, waitsFor } = session;
  const portals: ConsolePortalTuple[] = [];
  for (const [name, portal] of session.portals) {
    if (portal.rest === null) portals.push([name, portal.query, portal.done, portal.formats]);
  }
  const record = { statements: [...session.statements], portals, extended, skipping, syncWaits, held };
  return waitsFor === null ? record : { ...record, waitsFor };
}

/** @param session the session that the socket's flags have created; null when none of those flags is set */
export function consoleOf(record: ConsoleRecord, session: ConsoleSession | null): ConsoleSession {
  session ??= new ConsoleSession();
  for (const [name, query] of record.statements) session.statements.set(name, query);
  for (const [name, query, done, formats] of record.portals) {
    session.portals.set(name, { query, formats, done, rest: null, limit: 0 });
  }
  session.extended = record.extended;
  session.skipping = record.skipping;
  session.syncWaits = record.syncWaits;
  session.held = record.held;
  if (record.waitsFor !== undefined) session.waitsFor = record.waitsFor;
  return session;
}
