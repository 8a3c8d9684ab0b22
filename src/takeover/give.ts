/*
 * The side that gives: the console's HANDOVER command, by which a new tsbouncer process takes every socket of this one.
 *
 *     command       noted; this turn's events are handled to their end, so that no received byte is on its way inside
 *     end of turn   everything stands still, is described, and sent with its descriptors, in one go
 *     SHUTDOWN      of the same connection: acknowledged, and the process ends without touching what it gave
 *     anything else (the connection ends, time is up, another command): everything goes on as if nothing had been
 *
 * Only the acknowledgement makes the new process the owner, and only this process sends it: so no socket ever has two
 * owners, or none.
 */
import { logError, logInfo, logWarning } from '../core/base/log';
import { native } from '../core/base/native';
import { PauseMode, runState, ShutdownMode } from '../core/base/runstate';
import { getRealTime, USEC } from '../core/base/time';
import { newTimer, timerStart, timerStop } from '../core/base/timer';
import { cf } from '../core/config/settings';
import { resumePooler, suspendPooler } from '../core/net/listener';
import { isDead, type PgSocket } from '../core/pool/socket';
import { disconnectClient } from '../core/session/objects';
import { handoverSlot, reloadSlot } from '../core/session/slots';
import { writeCommandComplete, writeReadyForQuery } from '../core/wire/messages';
import { PqMsg } from '../core/wire/packets';
import { PktBuf } from '../core/wire/pktbuf';
import { sendAll } from './channel';
import { describeAll, travels } from './describe';
import { diePoint } from './diepoint';
import { FORMAT, type HandoverRecord } from './format';
import { goOn, type Still, standStill } from './still';
import { allSockets, countKinds } from './walk';

/** Most descriptors, and about how many bytes, of one message. */
const BATCH_FDS = 200;
const BATCH_BYTES = 48 * 1024;
/** How long the new process may do nothing, when suspend_timeout is off. usec */
const STALL_DEFAULT = 10 * USEC;

/** The connection of the process that takes over, from its command to its end. */
let taker: PgSocket | null = null;
let format = 0;
let still: Still[] = [];
let pauseBefore: PauseMode = PauseMode.NONE;
let reloadAsked = false;

function stallTime(): number {
  return cf.suspendTimeout > 0 ? cf.suspendTimeout : STALL_DEFAULT;
}

const patience = newTimer(() => {
  if (taker === null || !handoverSlot.frozen) return;
  logWarning('handover: the new process does nothing, resuming work');
  abort('handover timeout');
});

/* ---- sending ---- */

/** Collects records until a message is full. */
class Batches {
  private readonly pkt = new PktBuf(2 * BATCH_BYTES);
  private fds: number[] = [];
  failed = 0;

  constructor(private readonly socket: number) {}

  put(record: HandoverRecord, raw: readonly Uint8Array[], fd: number): boolean {
    const text = JSON.stringify(record);
    this.pkt.startPacket(PqMsg.CopyData);
    this.pkt.putUint32(text.length);
    this.pkt.putChars(text);
    for (const bytes of raw) this.pkt.putBytes(bytes);
    this.pkt.finishPacket();
    if (fd >= 0) this.fds.push(fd);
    return this.fds.length < BATCH_FDS && this.pkt.pos < BATCH_BYTES ? true : this.flush();
  }

  finish(tag: string): boolean {
    writeCommandComplete(this.pkt, tag);
    writeReadyForQuery(this.pkt);
    return this.flush();
  }

  private flush(): boolean {
    const failed = this.pkt.failed ? 12 : sendAll(this.socket, this.pkt.written(), this.fds, stallTime() / 1000);
    this.failed = failed;
    this.pkt.reset();
    this.fds = [];
    return failed === 0;
  }
}

/* ---- the command ---- */

/** @returns null when the handover begins, or why not */
function command(admin: PgSocket, arg: string): string | null {
  const asked = Number.parseInt(arg, 10);
  if (!(asked >= 1)) return `bad handover format: ${arg}`;
  const cred = native.peerCred(native.fdOf(admin.handle));
  if (!admin.ownUser || cred === null || cred[0] !== process.getuid?.())
    return 'handover is for the owner of the process';
  if (taker !== null) return 'another handover is under way';
  if (runState.shutdownMode !== ShutdownMode.NONE || globalThis.cfShutdown > 0) return 'pooler is shutting down';
  if (runState.pauseMode === PauseMode.SUSPEND) return 'already suspended/paused';
  logInfo('HANDOVER command issued');
  taker = admin;
  format = Math.min(asked, FORMAT);
  handoverSlot.active = true;
  return null;
}

function freeze(): void {
  const began = getRealTime();
  pauseBefore = runState.pauseMode;
  // the exit hooks, the signals and the janitor know this mode: hands off what another process may own
  runState.pauseMode = PauseMode.SUSPEND;
  runState.suspendStart = began;
  handoverSlot.frozen = true;
  suspendPooler();
  still = allSockets(taker).map(standStill);
  diePoint('give-still');
  const admin = taker as PgSocket;
  const socket = native.fdOf(admin.handle);
  const batches = new Batches(socket);
  // a notice that is still queued must not be overtaken
  if (native.unsent(admin.handle) > 0)
    batches.failed = sendAll(socket, native.takeUnsent(admin.handle), [], stallTime() / 1000);
  const put = (record: HandoverRecord, raw: readonly Uint8Array[], fd: number): boolean => batches.put(record, raw, fd);
  const sent =
    batches.failed === 0 && describeAll(format, still, admin, began, pauseBefore, put) && batches.finish('HANDOVER');
  if (!sent) {
    logError(`handover: sending failed: ${native.strerror(batches.failed)}`);
    abort('handover failed');
    return;
  }
  diePoint('give-described');
  const moved = still.map((one) => one.sk).filter(travels);
  if (moved.length < still.length) {
    logWarning(`handover: ${still.length - moved.length} TLS connections cannot be handed over`);
  }
  const { clients, servers } = countKinds(moved);
  logInfo(
    `handover: described ${clients} clients and ${servers} servers in ${Math.round((getRealTime() - began) / 1000)} ms`,
  );
  timerStart(patience, stallTime(), 0);
}

/** The new process is gone or unfit: everything goes on. */
function thaw(): void {
  const frozen = handoverSlot.frozen;
  taker = null;
  handoverSlot.active = false;
  handoverSlot.frozen = false;
  timerStop(patience);
  if (!frozen) return;
  logInfo('handover failed, resuming work');
  runState.pauseMode = pauseBefore;
  const sockets = still;
  still = [];
  goOn(sockets);
  resumePooler();
  handoverSlot.replay();
  if (reloadAsked) reloadSlot.loadConfig();
  reloadAsked = false;
}

/** Ends the connection of the new process, which thereby knows, and goes on. */
function abort(reason: string): void {
  const admin = taker;
  if (admin !== null && !isDead(admin)) disconnectClient(admin, true, reason);
  thaw();
}

function turnEnd(): void {
  if (taker === null) return;
  if (isDead(taker)) thaw();
  else if (!handoverSlot.frozen) freeze();
}

/**
 * SHUTDOWN while everything stands still: the point of no return. The answer tells the new process that it owns
 * everything now.
 */
function shutdown(admin: PgSocket): boolean {
  if (!handoverSlot.frozen || admin !== taker) return false;
  const pkt = new PktBuf();
  writeCommandComplete(pkt, 'SHUTDOWN');
  diePoint('give-shutdown');
  const failed = sendAll(native.fdOf(admin.handle), pkt.written(), [], stallTime() / 1000);
  if (failed !== 0) {
    // it did not hear it: it takes nothing from a process that lives
    abort('handover failed');
    return false;
  }
  diePoint('give-acknowledged');
  return true;
}

/** Registers the command; called once at start. */
export function handoverSetup(): void {
  handoverSlot.command = command;
  handoverSlot.turnEnd = turnEnd;
  handoverSlot.shutdown = shutdown;
  handoverSlot.abort = abort;
  handoverSlot.laterReload = () => {
    reloadAsked = true;
  };
}
