/*
 * The consoles that wait for PAUSE, SUSPEND or WAIT_CLOSE to complete: each is answered when its own command is
 * complete, or can no longer be.
 */

import { getPauseMode, PauseMode } from '../core/base/lifecycle';
import { nextOf, type StatList } from '../core/base/list';
import { poolBusyServers, poolWaitClose } from '../core/life/pause';
import { disconnectClient } from '../core/link/objects';
import type { ClientSocket, PgDatabase } from '../core/pool/bouncer';
import type { WaitingCommand } from '../core/pool/console-session';
import { databaseList, findDatabase } from '../core/pool/database';
import { sumOfPools } from '../core/pool/pool';
import { consoleSession } from '../core/pool/socket';
import { continueReading } from './extended';
import { adminError, adminReady } from './reply';

/** SQLSTATE query_canceled */
export const QUERY_CANCELED = '57014';

/** The command is answered later. @param db null = all databases */
export function waitFor(admin: ClientSocket, tag: WaitingCommand['tag'], db: PgDatabase | null): true {
  consoleSession(admin).waitsFor = { tag, db: db?.name ?? null };
  return true;
}

/** The command of a console that an earlier version has handed over: such a version does not name it. */
function guessCommand(): WaitingCommand {
  if (getPauseMode() !== PauseMode.NONE) return { tag: 'PAUSE', db: null };
  let paused: PgDatabase | null = null;
  for (let db = databaseList.head; db !== null; db = nextOf(db)) {
    if (!db.paused) continue;
    if (paused === null || sumOfPools(db, poolBusyServers) > 0) paused = db;
  }
  return paused === null ? { tag: 'WAIT_CLOSE', db: null } : { tag: 'PAUSE', db: paused.name };
}

/** How a command has ended. */
type Outcome = { state: 'waiting' } | { state: 'complete' } | { state: 'failed'; message: string; code?: string };

const WAITING: Outcome = { state: 'waiting' };
const COMPLETE: Outcome = { state: 'complete' };
const RESUMED: Outcome = { state: 'failed', message: 'canceling statement due to RESUME', code: QUERY_CANCELED };

/** @param modeReached the mode of the whole pooler (PAUSE, SUSPEND) is reached */
function outcomeOf(command: WaitingCommand, modeReached: boolean): Outcome {
  if (command.db === null && command.tag !== 'WAIT_CLOSE') {
    const wanted = command.tag === 'PAUSE' ? PauseMode.PAUSE : PauseMode.SUSPEND;
    if (getPauseMode() !== wanted) return RESUMED;
    return modeReached ? COMPLETE : WAITING;
  }
  const db = command.db === null ? null : findDatabase(command.db);
  if (command.db !== null && db === null)
    return command.tag === 'PAUSE' ? { state: 'failed', message: `no such database: ${command.db}` } : COMPLETE;
  if (command.tag === 'WAIT_CLOSE') return sumOfPools(db, poolWaitClose) === 0 ? COMPLETE : WAITING;
  if (!db?.paused) return RESUMED;
  return sumOfPools(db, poolBusyServers) === 0 ? COMPLETE : WAITING;
}

/** Ends the wait of a console with an error. */
export function failWaiting(admin: ClientSocket, message: string, code?: string): void {
  consoleSession(admin).waitsFor = null;
  if (adminError(admin, message, code)) continueReading(admin);
  else disconnectClient(admin, false, 'dead admin');
}

function completeWaiting(admin: ClientSocket, tag: string): void {
  consoleSession(admin).waitsFor = null;
  if (adminReady(admin, tag)) continueReading(admin);
  else disconnectClient(admin, false, 'dead admin');
}

/** Answers a console if its command has come to an end. @returns the command if it still waits */
function answerOne(admin: ClientSocket, modeReached: boolean): WaitingCommand | null {
  const session = consoleSession(admin);
  if (session.waitsFor === null) return null;
  if (session.waitsFor.tag === '') session.waitsFor = guessCommand();
  const command = session.waitsFor;
  const outcome = outcomeOf(command, modeReached);
  if (outcome.state === 'waiting') return command;
  if (outcome.state === 'complete') completeWaiting(admin, command.tag);
  else failWaiting(admin, outcome.message, outcome.code);
  return null;
}

/**
 * Answers the consoles whose commands have come to an end.
 * @param consoles the clients of the admin database
 * @param modeReached the mode of the whole pooler is reached
 */
export function answerWaiting(consoles: StatList<ClientSocket>, modeReached: boolean): void {
  const left: WaitingCommand[] = [];
  for (let admin = consoles.head; admin !== null; ) {
    const next = nextOf(admin);
    const command = answerOne(admin, modeReached);
    if (command?.tag === 'WAIT_CLOSE') left.push(command);
    admin = next;
  }
  for (let db = databaseList.head; db !== null; db = nextOf(db)) {
    const { name } = db;
    if (db.waitClose) db.waitClose = left.some((command) => command.db === null || command.db === name);
  }
}
