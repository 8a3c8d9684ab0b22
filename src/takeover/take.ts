/*
 * The new process in a takeover (-R): logs in to the console of the old process over the Unix socket, takes all
 * sockets, shuts the old process down and serves in its place. Called by src/main.ts: takeoverPart1() before going to
 * the background, and takeoverFinish() when everything else is set up. docs/online-reboot.md shows the whole exchange.
 *
 * Until SHUTDOWN is acknowledged this process does not use the sockets: if anything fails, it exits and the old process
 * keeps running.
 */

import { accessSync, constants as fsConstants } from 'node:fs';
import { constants } from 'node:os';
import { dirname } from 'node:path';
import { unpinCpus } from '../core/base/cpu-affinity';
import { endTakeover, ownsListeners } from '../core/base/lifecycle';
import { die, fatal, logDebug, logError, logInfo, logWarning, slogInfo } from '../core/base/log';
import { native } from '../core/base/native';
import { noteReboot } from '../core/base/reboots';
import { listenFdCount, notify, notifyState } from '../core/base/systemd';
import { Tally, tally } from '../core/base/tallies';
import { readClock, setTimeCache, USEC } from '../core/base/time';
import { newTimer, timerStart, timerStop } from '../core/base/timer';
import { cf } from '../core/config/settings';
import { mainLoopOnce } from '../core/life/mainloop';
import { resumeSockets } from '../core/life/pause';
import { killDatabase } from '../core/link/kill';
import { launchNewConnection } from '../core/link/launch';
import { disconnectServer } from '../core/link/objects';
import { checkListenAddr, resumePooler, settleListeners } from '../core/net/pooler';
import { socketsByHandle } from '../core/net/sbuf';
import type { PgPool, ServerSocket } from '../core/pool/bouncer';
import { findDatabase } from '../core/pool/database';
import { getPool } from '../core/pool/pool';
import { isServerSocket } from '../core/pool/socket';
import { PqMsg } from '../core/wire/packets';
import { PktReader } from '../core/wire/reader';
import { Verdict } from '../core/wire/verdict';
import { Channel, type ChannelMessage, errorText, foreignUid } from './channel';
import { classicState, takeoverLoadFd, takeoverPostprocessFds } from './classic';
import { crashPoint } from './crash-point';
import { FORMAT, type HandoverRecord, READY } from './format';
import { requeueUnsent, resumeFrozen } from './freeze';
import { isAlive, isPidfileFree, mayReplacePidfile, refuseOtherPidfile, removePidfile } from './old-pidfile';
import { SnapshotReader } from './snapshot-reader';
import { countKinds } from './sockets';

/** How long the old process may read nothing of a command. */
const SEND_MS = 10_000;
/** How long the old process, which serves its clients meanwhile, may take to answer. */
const ANSWER_MS = 10_000;
/** How long SUSPEND in the classic exchange may take if suspend_timeout does not limit it. */
const SUSPEND_MS_MAX = 600_000;
/** How long the old process may take to exit once this process owns the sockets and serves. usec */
const END_MAX = 10 * USEC;
/** How long the old process may take to exit if its connection ends without acknowledgement. */
const DYING_MS_MAX = 5_000;
/** Interval between checks whether the old process has exited: short at first, because it usually exits soon. usec */
const LOOK_FIRST = USEC / 1000;
const LOOK = USEC / 10;
const QUICK_LOOKS = 100;
const NAP_MS = 1;

/** The server connection of the admin pool that leads to the old process. */
let oldBouncer: ServerSocket | null = null;
/** the same connection, once it has logged in and left the loop */
let loggedIn: ServerSocket | null = null;
let channel: Channel | null = null;
/** null = the classic exchange */
let snapshotReader: SnapshotReader | null = null;
/** usec when clients began to wait, and when they were served again */
let pauseBegan = 0;
let pauseEnded = 0;

/** True while this process takes over: it accepts no HANDOVER before the old process has exited. */
export function isFinishingTakeover(): boolean {
  return channel !== null;
}

function nap(ms: number): void {
  native.sleepMs(ms);
}

/**
 * Serves clients until `done` returns true. A shutdown of this process ends the wait too.
 * @returns false when END_MAX has passed
 */
function serveUntil(done: () => boolean): boolean {
  const end = readClock() + END_MAX;
  let due = true;
  let isDone = false;
  const tick = newTimer(() => {
    due = true;
  });
  for (let looks = 0; globalThis.cfShutdown < 2; ) {
    if (due) {
      isDone = done();
      if (isDone || readClock() >= end) break;
      due = false;
      timerStart(tick, looks++ < QUICK_LOOKS ? LOOK_FIRST : LOOK, 0);
    }
    mainLoopOnce();
  }
  timerStop(tick);
  return isDone || globalThis.cfShutdown >= 2;
}

/** Ends this process if the config lacks what -R needs. */
function requireUnixSocket(): void {
  if (cf.unixSocketDir === '') die('cannot reboot if unix dir not configured');
  // the new process could not bind an abstract name that the old process still holds
  if (cf.unixSocketDir.startsWith('@')) die('cannot reboot with abstract Unix socket');
  // the service manager has started this process as the service itself: there is no old process
  if (listenFdCount() > 0) die('cannot reboot under service manager');
}

/** Checks, before the old process is disturbed, what could fail after it has exited. */
function checkLaterSteps(): void {
  checkListenAddr();
  if (cf.pidfile === null || cf.pidfile === '') return;
  try {
    accessSync(Buffer.from(dirname(cf.pidfile), 'latin1'), fsConstants.W_OK);
  } catch (err) {
    die(`could not open pidfile '${cf.pidfile}': ${(err as Error).message}`);
  }
}

/** Opens a server connection of this process's admin pool, which leads to the console of the old process. */
function takeoverInit(): PgPool {
  const db = findDatabase('pgbouncer');
  if (db === null || db.forcedUser === null) return fatal('no admin pool?');
  const pool = getPool(db, db.forcedUser);
  logInfo('takeover_init: launching connection');
  launchNewConnection(pool, true);
  return pool;
}

/** The server connection to the old process has logged in: it leaves the loop. */
export function takeoverLoggedIn(server: ServerSocket): Verdict {
  loggedIn = server;
  return Verdict.DISCONNECTED;
}

/** Runs the loop until the old process has accepted an ordinary login. */
function waitForLogin(pool: PgPool): ServerSocket {
  const limit = newTimer(() => die('login failed: the old process does not answer'));
  timerStart(limit, cf.serverConnectTimeout > 0 ? cf.serverConnectTimeout : (ANSWER_MS * USEC) / 1000, 0);
  while (loggedIn === null) {
    if (pool.newServerList.count === 0) fatal('login failed');
    mainLoopOnce();
  }
  timerStop(limit);
  return loggedIn;
}

/** True if the old process does not know the command. */
function isUnknownCommand(msg: ChannelMessage): boolean {
  return msg.type === PqMsg.ErrorResponse && errorText(msg).startsWith('invalid command');
}

/** After the login: asks for the full handover, and falls back to the classic exchange if the command is unknown. */
function takeoverLogin(server: ServerSocket): void {
  slogInfo(server, 'login OK, sending SUSPEND');
  const fd = native.detach(server.handle);
  const uid = foreignUid(fd);
  if (uid !== null) die(`the process at the Unix socket runs as another user (uid ${uid}), not taking over`);
  socketsByHandle[server.handle] = null;
  server.handle = -1;
  oldBouncer = server;
  channel = new Channel(fd);
  crashPoint('take-login');

  pauseBegan = readClock();
  send(channel, `HANDOVER ${FORMAT};`);
  const first = receive(channel);
  if (first.type !== PqMsg.ErrorResponse) {
    takeFull(channel, first);
    return;
  }
  if (!isUnknownCommand(first)) {
    logError(`old bouncer sent: ${errorText(first)}`);
    die('something failed');
  }
  while (receive(channel).type !== PqMsg.ReadyForQuery);
  takeClassic(channel);
}

function send(ch: Channel, sql: string): void {
  const failed = ch.query(sql, SEND_MS);
  if (failed !== 0) fatal(`command send failed: ${native.strerror(failed)}`);
}

const NO_FD = 'got row without fd info: out of file descriptors?';

function receive(ch: Channel, timeoutMs = ANSWER_MS): ChannelMessage {
  const msg = ch.next(timeoutMs);
  if (msg === null) return fatal('unexpected EOF');
  if (msg === constants.errno.ETIMEDOUT) {
    return die(`no answer from the old process for ${timeoutMs / 1000} s, giving up`);
  }
  if (msg === constants.errno.EMFILE) return die(NO_FD);
  if (typeof msg === 'number') return fatal(`safe_recvmsg: ${native.strerror(msg)}`);
  return msg;
}

function commandTag(msg: ChannelMessage): string {
  return new PktReader(msg.buf, msg.off, msg.end).str() ?? fatal('bad result pkt');
}

/** Ignores a message that does not concern the caller; ends this process if the old process reports an error. */
function passOver(msg: ChannelMessage): void {
  if (msg.type === PqMsg.ErrorResponse) {
    logError(`old bouncer sent: ${errorText(msg)}`);
    die('something failed');
  }
  const known =
    msg.type === PqMsg.ReadyForQuery || msg.type === PqMsg.RowDescription || msg.type === PqMsg.NoticeResponse;
  if (!known) fatal(`takeover_parse_data: unexpected pkt: '${String.fromCharCode(msg.type)}'`);
}

function takeClassic(ch: Channel): void {
  unpinCpus();
  pauseBegan = readClock();
  send(ch, 'SUSPEND;');
  // answered once all unsent output is sent, or suspend_timeout has closed the clients that did not read theirs
  const suspendMs = cf.suspendTimeout > 0 ? (cf.suspendTimeout * 1000) / USEC + ANSWER_MS : SUSPEND_MS_MAX;
  let suspended = false;
  for (;;) {
    const msg = receive(ch, suspended ? ANSWER_MS : suspendMs);
    if (msg.type === PqMsg.DataRow) {
      const fd = ch.fds.shift();
      if (fd === undefined) fatal('got row without fd info');
      takeoverLoadFd(msg, fd);
      crashPoint('take-row');
    } else if (msg.type === PqMsg.CommandComplete) {
      const tag = commandTag(msg);
      logDebug(`takeover_recv_fds: CommandComplete body: ${tag}`);
      if (tag === 'SUSPEND') {
        suspended = true;
        logInfo('SUSPEND finished, sending SHOW FDS');
        crashPoint('take-suspended');
        send(ch, 'SHOW FDS;');
      } else if (tag.startsWith('SHOW')) {
        takeoverPostprocessFds();
        logInfo('SHOW FDS finished');
        return;
      } else {
        fatal(`got bad CMD from old bouncer: ${tag}`);
      }
    } else if (!suspended && isUnknownCommand(msg)) {
      die('the old process cannot hand over, as PgBouncer from 1.26 on: stop it, then start this one without -R');
    } else {
      passOver(msg);
    }
  }
}

function takeFull(ch: Channel, first: ChannelMessage): void {
  const reader = new SnapshotReader();
  snapshotReader = reader;
  const takeFd = (): number => ch.fds.shift() ?? die(NO_FD);
  for (let msg = first; ; msg = receive(ch)) {
    if (msg.type === PqMsg.CopyData) {
      const frozen = reader.frozenSince > 0;
      const kind = takeRecord(reader, msg, takeFd);
      if (kind === 'begin') refuseOtherPidfile(reader.begin?.pid ?? 0);
      else if (kind === 'aheadEnd') {
        unpinCpus();
        pauseBegan = readClock();
        send(ch, `HANDOVER ${READY};`);
      }
      if (!frozen && reader.frozenSince > 0) {
        logInfo('SUSPEND finished, sending SHOW FDS');
        // setting the wall clock meanwhile must not lengthen the reported pause
        pauseBegan = Math.max(pauseBegan, reader.frozenSince);
        crashPoint('take-suspended');
      }
      crashPoint(frozen ? 'take-row' : 'take-ahead');
    } else if (msg.type === PqMsg.CommandComplete) {
      if (!reader.complete) die('incomplete data from old process');
      logInfo('SHOW FDS finished');
      return;
    } else {
      passOver(msg);
    }
  }
}

/** @returns the kind of the record */
function takeRecord(reader: SnapshotReader, msg: ChannelMessage, takeFd: () => number): HandoverRecord['k'] {
  try {
    const length = msg.buf.readUInt32BE(msg.off);
    const textEnd = msg.off + 4 + length;
    if (textEnd > msg.end) throw new Error('record too short');
    const record = JSON.parse(msg.buf.toString('latin1', msg.off + 4, textEnd)) as HandoverRecord;
    reader.take(record, msg.buf.subarray(textEnd, msg.end), takeFd);
    return record.k;
  } catch (err) {
    logError((err as Error).message);
    return die('invalid data from old process');
  }
}

/**
 * Takes all sockets of the old process. Ends this process if that fails; the old process then keeps running.
 * @returns false if there is no old process, and the caller has to boot as usual
 */
export function takeoverPart1(oldProcessAnswers: () => boolean): boolean {
  requireUnixSocket();
  if (!oldProcessAnswers()) {
    logInfo('old process not found, try to continue normally');
    endTakeover();
    unpinCpus();
    return false;
  }
  checkLaterSteps();
  crashPoint('take-start');
  takeoverLogin(waitForLogin(takeoverInit()));
  crashPoint('take-complete');
  endTakeover();
  logInfo('disko over, going background');
  return true;
}

/** Runs one event loop turn without waiting. */
function oneTurn(): void {
  native.loopBreak();
  mainLoopOnce();
}

/** This process now owns the sockets: clients are served again. */
function resumeWork(): void {
  // the sockets have instants that are later than the last turn of this process
  setTimeCache(readClock());
  const goneDatabases = snapshotReader === null ? classicState.goneDatabases : snapshotReader.goneDatabases;
  if (snapshotReader === null) {
    resumeSockets();
    // a server in use whose client was not handed over is useless, and a login in progress cannot be continued
    for (const sk of classicState.sockets) {
      if (isServerSocket(sk) && !sk.ready && sk.link === null)
        disconnectServer(sk, true, 'server connection was not ready at takeover');
    }
  } else {
    requeueUnsent(snapshotReader.frozen);
    resumePooler();
  }
  for (const db of goneDatabases) killDatabase(db);
  if (snapshotReader !== null) resumeFrozen(snapshotReader.frozen, oneTurn);
  pauseEnded = readClock();
}

/**
 * PgBouncer does not answer SHUTDOWN: the end of the connection shows that it has exited. SHUTDOWN cannot be revoked,
 * so giving up now would leave the clients without any process.
 */
function shutDownOriginal(ch: Channel, owned: () => void): void {
  if (ch.query('SHUTDOWN;', SEND_MS) !== 0) die('failed to send SHUTDOWN;');
  owned();
  crashPoint('take-shutdown-sent');
  for (let msg = ch.next(ANSWER_MS); msg !== null; msg = ch.next(ANSWER_MS)) {
    if (typeof msg !== 'number') continue;
    if (msg === constants.errno.ETIMEDOUT) logWarning('the old process is still running after SHUTDOWN, waiting');
    else die(`sky is falling - error while waiting result from SHUTDOWN: ${native.strerror(msg)}`);
  }
  resumeWork();
}

/** True once the old process has closed its end; it sends nothing before that. */
function channelEnded(ch: Channel): boolean {
  for (;;) {
    const msg = ch.next(0);
    if (msg === null) return true;
    if (typeof msg === 'number') return msg !== constants.errno.ETIMEDOUT;
  }
}

/** The old process's answer to SHUTDOWN: 'given' or the reason for refusing; '' = the connection has ended. */
function shutdownAnswer(ch: Channel): 'given' | string {
  let refusal = '';
  let timeoutMs = ANSWER_MS;
  for (;;) {
    const msg = ch.next(timeoutMs);
    if (msg === constants.errno.ETIMEDOUT && timeoutMs > 0) {
      // an answer may arrive at this moment: after refuseMore() it either has arrived and counts, or can no longer be
      // sent
      ch.refuseMore();
      timeoutMs = 0;
      refusal = `no answer for ${ANSWER_MS / 1000} s`;
    } else if (msg === null || typeof msg === 'number') {
      return refusal;
    } else if (msg.type === PqMsg.CommandComplete) {
      return 'given';
    } else if (msg.type === PqMsg.ErrorResponse) {
      refusal = errorText(msg);
    }
  }
}

/**
 * Shuts down an old tsbouncer process: this process owns the sockets after its acknowledgement, or its death.
 * @param pid the old process
 * @param owned called as soon as this process owns the sockets
 */
function shutDownOwn(ch: Channel, pid: number, owned: () => void): void {
  // a failed send needs no handling: the answer shows what has happened
  ch.query('SHUTDOWN;', SEND_MS);
  crashPoint('take-shutdown-sent');
  let answer = shutdownAnswer(ch);
  if (answer === 'given') {
    owned();
    resumeWork();
    if (!serveUntil(() => channelEnded(ch))) logWarning('the old process is still running after the handover');
    return;
  }
  // closed without acknowledgement: take over only once the old process is gone
  for (let waited = 0; answer === '' && isAlive(pid); waited += NAP_MS) {
    if (waited >= DYING_MS_MAX) answer = 'connection lost';
    nap(NAP_MS);
  }
  if (answer !== '') {
    notify(`MAINPID=${pid}`);
    die(`handover failed, old process keeps running: ${answer}`);
  }
  owned();
  resumeWork();
}

/**
 * Shuts the old process down and serves in its place.
 * @param owned called as soon as this process owns the sockets, and nothing may end it any more
 * @returns a summary for the operator
 */
export function takeoverFinish(owned: () => void): string {
  const ch = channel as Channel;
  if (snapshotReader?.begin?.notifySocket) notifyState.socket ??= snapshotReader.begin.notifySocket;
  logInfo('sending SHUTDOWN;');
  // systemd must learn its new main process before the old process exits
  notify(`MAINPID=${process.pid}`);
  if (snapshotReader === null) shutDownOriginal(ch, owned);
  else shutDownOwn(ch, snapshotReader.begin?.pid ?? 0, owned);
  crashPoint('take-owned');
  ch.close();
  if (oldBouncer !== null) disconnectServer(oldBouncer, false, 'disko over');
  if (cf.pidfile !== null && cf.pidfile !== '') {
    logInfo('waiting for old pidfile to go away');
    if (!serveUntil(isPidfileFree) && mayReplacePidfile(snapshotReader?.begin?.pid ?? 0)) {
      logWarning('the old process has not removed its pidfile, replacing it');
      removePidfile();
    }
  }
  logInfo('old process killed, resuming work');
  tally(Tally.REBOOT_DONE);
  settleListeners();
  if (ownsListeners()) resumePooler();

  const { clients, servers } = snapshotReader === null ? classicState : countKinds(snapshotReader.frozen.sockets);
  const listeners = snapshotReader === null ? classicState.listeners : snapshotReader.listeners;
  const pauseMs = Math.max(1, Math.round(((pauseEnded - pauseBegan) * 1000) / USEC));
  const outcome = `took over ${listeners} listening sockets, ${clients} clients, ${servers} servers; longest pause ${pauseMs} ms`;
  noteReboot(snapshotReader?.begin?.pid ?? 0, outcome);
  oldBouncer = null;
  channel = null;
  snapshotReader = null;
  classicState.sockets.length = 0;
  return outcome;
}
