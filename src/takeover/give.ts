/*
 * The old process's side of a takeover: the console's HANDOVER command, with which a new tsbouncer process takes all
 * sockets of this process.
 *
 *     command       recorded
 *     ahead         idle clients are described and sent, some at the end of each turn, while all clients are served
 *     READY         the new process has processed these records; it may be slower than this process
 *     transactions  those on connections that cannot be handed over get time to end
 *     handshakes    no connection is accepted any more; TLS handshakes under way get some time to end, because no process
 *                   can continue another's handshake
 *     rest          idle clients are not read from any more, some at the end of each turn
 *     freeze        at the end of a turn, when no received byte is being processed, all sockets are frozen; the rest is
 *                   described and sent at once
 *     SHUTDOWN      on the same connection: acknowledged, and this process exits without touching the sockets
 *     anything else (the connection ends, a timeout, another command): this process resumes as if nothing had happened
 *
 * Only the acknowledgement makes the new process the owner, and only this process sends it. So a socket never has two
 * owners, or none.
 */

import { constants, setPriority } from 'node:os';
import {
  enterFreeze,
  getPauseMode,
  getShutdownMode,
  isFrozen,
  leaveFreeze,
  PauseMode,
  ShutdownMode,
} from '../core/base/lifecycle';
import { logError, logInfo, logWarning } from '../core/base/log';
import { native } from '../core/base/native';
import { equalNoCase } from '../core/base/strutil';
import { notify } from '../core/base/systemd';
import { Tally, tally } from '../core/base/tallies';
import { readClock, USEC } from '../core/base/time';
import { newTimer, timerStart, timerStop } from '../core/base/timer';
import { cf } from '../core/config/settings';
import { replayDeferred } from '../core/life/mainloop';
import { reloadAll } from '../core/life/reload';
import { disconnectClient } from '../core/link/objects';
import { clientUid } from '../core/net/addr';
import { resumePooler, suspendPooler } from '../core/net/pooler';
import type { AnySocket, ClientSocket } from '../core/pool/bouncer';
import { isDead } from '../core/pool/socket';
import { writeCommandComplete } from '../core/wire/messages';
import { PktBuf } from '../core/wire/pktbuf';
import { Batches } from './batches';
import { sendAll } from './channel';
import { crashPoint } from './crash-point';
import { FORMAT, READY } from './format';
import { type FrozenSockets, freezeSockets, readAgain, requeueUnsent, resumeFrozen } from './freeze';
import { SnapshotWriter } from './snapshot-writer';
import { allSockets, anyHandshake, countKinds } from './sockets';
import { closeStaying, LastTransactions } from './staying';
import { isFinishingTakeover } from './take';

/** Clients described at the end of one turn, while all clients are served. */
const AHEAD_PER_TURN = 50;
/** Clients from which reading is stopped at the end of one turn before the freeze. */
const REST_PER_TURN = 200;
/** Interval between attempts to send more while this process serves. usec */
const PUMP_PAUSE = USEC / 1000;
/** How long the new process may make no progress while this process serves, if suspend_timeout is 0. usec */
const STALL_DEFAULT = 10 * USEC;
/**
 * How long the new process may neither read nor answer while the sockets are frozen: clients are waiting. Between two
 * reads it needs a few milliseconds, or some tens on a slow machine with 10,000 connections. usec
 */
const FROZEN_STALL = 1.5 * USEC;
/** How long the freeze waits for TLS handshakes under way: some round trips to a distant client. usec */
const HANDSHAKES_MAX = 0.5 * USEC;
/** Interval between looks at handshakes and transactions. usec */
const LOOK = USEC / 200;
/** Interval between records that show the new process that this one is alive; it gives up after ten seconds. usec */
const WAIT_RECORD = USEC;
/** Interval between checks whether the new process has read. usec */
const FROZEN_LOOK = USEC / 10;

/** The connection of the new process, from the HANDOVER command to its end. */
let newProcess: ClientSocket | null = null;
let format = 0;
let frozen: FrozenSockets | null = null;
let reloadAsked = false;
/** the records being sent; `queue` holds the sockets that may still be described ahead */
let batches: Batches | null = null;
let description: SnapshotWriter | null = null;
let queue: AnySocket[] = [];
let aheadEnded = false;
let newProcessReady = false;
/** the transactions that have to end before the freeze */
let lastTransactions: LastTransactions | null = null;
/** end of the wait for them, and time of the last WaitRecord */
let transactionsEnd = 0;
let lastWord = 0;
/** idle clients are being stopped */
let resting = false;
/** end of the wait for handshakes, 0 before it begins */
let handshakesEnd = 0;
const resendTimer = newTimer(() => {});

function stallTime(): number {
  return cf.suspendTimeout > 0 ? cf.suspendTimeout : STALL_DEFAULT;
}

function frozenStallTime(): number {
  return Math.min(stallTime(), FROZEN_STALL);
}

function giveUp(): void {
  if (newProcess === null) return;
  logWarning('handover timed out waiting for the new process, resuming');
  abortHandover('handover timeout');
}

const stallTimer = newTimer(giveUp);

/** While frozen: how many bytes the new process has not read yet, and when it last read some. */
let unread = 0;
let lastRead = 0;

const frozenTimer = newTimer(() => {
  if (newProcess === null) return;
  const left = native.unreadBytes(native.fdOf(newProcess.handle));
  const now = readClock();
  if (left !== unread) {
    unread = left;
    lastRead = now;
  } else if (now - lastRead >= frozenStallTime()) {
    giveUp();
  }
});

/** All records are sent: the new process now has to read them and to send SHUTDOWN. */
function awaitShutdown(admin: ClientSocket): void {
  timerStop(stallTimer);
  unread = native.unreadBytes(native.fdOf(admin.handle));
  lastRead = readClock();
  timerStart(frozenTimer, FROZEN_LOOK, FROZEN_LOOK);
}

/** @returns null when the command is accepted, or the reason for refusing it */
export function handleHandoverCommand(admin: ClientSocket, arg: string): string | null {
  if (admin === newProcess && aheadEnded && !newProcessReady && equalNoCase(arg, READY)) {
    newProcessReady = true;
    return null;
  }
  const asked = Number.parseInt(arg, 10);
  if (!(asked >= 1)) return `bad handover format: ${arg}`;
  const uid = clientUid(admin);
  if (admin.console?.owner !== true || uid === null || uid !== process.getuid?.())
    return 'handover is only allowed for the owner of the process';
  if (newProcess !== null || isFinishingTakeover()) return 'another handover is under way';
  if (getShutdownMode() !== ShutdownMode.NONE || globalThis.cfShutdown > 0) return 'pooler is shutting down';
  if (getPauseMode() === PauseMode.SUSPEND) return 'already suspended/paused';
  logInfo('HANDOVER command issued');
  newProcess = admin;
  format = Math.min(asked, FORMAT);
  return null;
}

/** The first turn of a handover: lists the sockets that may be described ahead. */
function beginAhead(admin: ClientSocket): void {
  const sending = new Batches(native.fdOf(admin.handle));
  batches = sending;
  description = new SnapshotWriter(format, (record, raw, owned) => sending.put(record, raw, owned));
  // a notice that is still queued must be sent first
  if (native.unsent(admin.handle) > 0) sending.startWith(Buffer.from(native.takeUnsent(admin.handle)));
  queue = allSockets(admin);
  timerStart(stallTimer, stallTime(), 0);
  if (!description.begin()) abortHandover('handover failed');
}

/** Describes some idle clients. After the last, and once the new process has read all records, freezes the sockets. */
function goAhead(admin: ClientSocket, sending: Batches, describing: SnapshotWriter): void {
  if (!sending.pump()) {
    // the new process has not read enough yet: try again soon, and serve meanwhile
    if (sending.failed !== 0) failed(sending);
    else timerStart(resendTimer, PUMP_PAUSE, 0);
    return;
  }
  if (newProcessReady) {
    comeToRest(admin, sending, describing);
    return;
  }
  if (aheadEnded) return;
  for (let i = 0; i < AHEAD_PER_TURN; i++) {
    const sk = queue.pop();
    if (sk === undefined) break;
    if (!isDead(sk) && !describing.describeAhead(sk)) {
      failed(sending);
      return;
    }
  }
  timerStart(stallTimer, stallTime(), 0);
  if (queue.length === 0) aheadEnded = describing.endAhead();
  if (!sending.flush()) failed(sending);
  else if (sending.hasWaiting) timerStart(resendTimer, PUMP_PAUSE, 0);
}

/** Waits for what has to end, stops reading from idle clients, and freezes the sockets at last. */
function comeToRest(admin: ClientSocket, sending: Batches, describing: SnapshotWriter): void {
  const waits = (): boolean => waitsForTransactions(admin, sending) || waitsForHandshakes();
  if (!resting && waits()) {
    timerStart(resendTimer, LOOK, 0);
    return;
  }
  resting = describing.restSome(REST_PER_TURN);
  if (resting) {
    crashPoint('give-resting');
    native.loopBreak();
  } else if (waits()) {
    // a transaction or a handshake has begun meanwhile
    readAgain(describing.endRest());
    timerStart(resendTimer, LOOK, 0);
  } else {
    freeze(admin, sending, describing);
  }
}

/** All clients are served meanwhile, but those whose last transaction has ended. */
function waitsForTransactions(admin: ClientSocket, sending: Batches): boolean {
  const now = readClock();
  const begins = lastTransactions === null;
  lastTransactions ??= new LastTransactions(admin, format);
  if (begins) {
    transactionsEnd = now + stallTime();
    lastWord = now;
    timerStart(stallTimer, 2 * stallTime(), 0);
  }
  const busy = now < transactionsEnd ? lastTransactions.look(now) : null;
  if (busy === null || busy.size === 0) return false;
  if (begins) logInfo(`handover: waiting for ${busy.size} clients that cannot be handed over: ${reasonsOf(busy)}`);
  if (now - lastWord >= WAIT_RECORD) {
    lastWord = now;
    sending.put({ k: 'wait' }, [], null);
    sending.flush();
  }
  return true;
}

/** New connections wait in the kernel's queue meanwhile, and the new process accepts them. */
function waitsForHandshakes(): boolean {
  if (handshakesEnd === 0) {
    suspendPooler();
    handshakesEnd = readClock() + HANDSHAKES_MAX;
    timerStart(stallTimer, stallTime() + HANDSHAKES_MAX, 0);
  }
  return readClock() < handshakesEnd && anyHandshake();
}

function failed(sending: Batches): void {
  logError(`handover: sending failed: ${native.strerror(sending.failed)}`);
  abortHandover('handover failed');
}

function freeze(admin: ClientSocket, sending: Batches, describing: SnapshotWriter): void {
  if (getPauseMode() === PauseMode.SUSPEND || getShutdownMode() !== ShutdownMode.NONE) {
    abortHandover('suspended or shutting down');
    return;
  }
  const began = readClock();
  const modeBefore = enterFreeze(began);
  lastTransactions?.resumeHeld();
  suspendPooler();
  frozen = freezeSockets(admin, format);
  crashPoint('give-frozen');
  sending.stopServing((frozenStallTime() * 1000) / USEC);
  if (!describing.describeAll(frozen, admin, began, modeBefore) || !sending.finish('HANDOVER')) {
    failed(sending);
    return;
  }
  crashPoint('give-described');
  const { sockets, staying } = frozen;
  if (staying.size > 0) {
    logWarning(`handover: ${staying.size} connections cannot be handed over: ${reasonsOf(staying)}`);
  }
  const { clients, servers } = countKinds(sockets.filter((sk) => !staying.has(sk)));
  logInfo(
    `handover: described ${clients} clients and ${servers} servers in ${Math.round((readClock() - began) / 1000)} ms`,
  );
  awaitShutdown(admin);
}

/** Each reason with the number of its sockets. */
function reasonsOf(staying: ReadonlyMap<AnySocket, string>): string {
  const counts = new Map<string, number>();
  for (const reason of staying.values()) counts.set(reason, (counts.get(reason) ?? 0) + 1);
  return [...counts].map(([reason, count]) => `${count} ${reason}`).join(', ');
}

/** The new process is gone or has failed: this process resumes. */
function thaw(): void {
  const wasFrozen = isFrozen();
  const rested = description?.endRest() ?? [];
  const accepts = handshakesEnd === 0;
  handshakesEnd = 0;
  lastTransactions?.resumeHeld();
  lastTransactions = null;
  newProcess = null;
  batches?.wipe();
  timerStop(stallTimer);
  timerStop(frozenTimer);
  timerStop(resendTimer);
  batches = null;
  description = null;
  queue = [];
  aheadEnded = newProcessReady = resting = false;
  logInfo('handover failed, resuming work');
  tally(Tally.REBOOT_FAILED);
  if (!wasFrozen) {
    readAgain(rested);
    if (!accepts && getPauseMode() !== PauseMode.SUSPEND) resumePooler();
    return;
  }
  leaveFreeze();
  // the new process may have told the service manager that it is the main process
  notify(`MAINPID=${process.pid}`);
  if (frozen !== null) {
    requeueUnsent(frozen);
    // already inside a turn, which cannot be nested
    resumeFrozen(frozen, () => {});
  }
  frozen = null;
  resumePooler();
  replayDeferred();
  if (reloadAsked) reloadAll();
  reloadAsked = false;
}

/**
 * Disconnects the new process, which ends the handover there too, and resumes. The new process is not told the reason
 * if it would read it as a part of a record.
 */
export function abortHandover(reason: string): void {
  const admin = newProcess;
  if (admin !== null && !isDead(admin)) disconnectClient(admin, batches?.inRecord !== true, reason);
  thaw();
}

export function handoverTurnEnd(): void {
  if (newProcess === null) return;
  if (isDead(newProcess)) thaw();
  else if (isFrozen()) return;
  else if (batches === null || description === null) beginAhead(newProcess);
  else goAhead(newProcess, batches, description);
  if (newProcess !== null && !aheadEnded && resendTimer.when === 0) native.loopBreak();
}

/** What this process still does, above all its exit, takes no CPU time from the new process. */
function yieldCpu(): void {
  try {
    setPriority(constants.priority.PRIORITY_BELOW_NORMAL);
  } catch {
    // a service manager may forbid the call
  }
}

/**
 * SHUTDOWN while the sockets are frozen: the point of no return. The answer tells the new process that it now owns all
 * sockets.
 */
export function shutdownForHandover(admin: ClientSocket): boolean {
  if (!isFrozen() || admin !== newProcess) return false;
  const pkt = new PktBuf();
  writeCommandComplete(pkt, 'SHUTDOWN');
  crashPoint('give-shutdown');
  const failed = sendAll(native.fdOf(admin.handle), pkt.written(), [], (frozenStallTime() * 1000) / USEC);
  if (failed !== 0) {
    // not delivered, so the new process has not taken over
    abortHandover('handover failed');
    return false;
  }
  crashPoint('give-acknowledged');
  yieldCpu();
  if (frozen !== null) closeStaying(frozen.staying);
  return true;
}

/** A reload that arrives while the sockets are frozen is carried out if the handover fails. */
export function reloadAfterHandover(): void {
  reloadAsked = true;
}
