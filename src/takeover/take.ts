/*
 * The side that takes (-R): a new process logs in to the console of the running one over its Unix socket, takes every socket
 * of it, has it shut down, and goes on in its place. src/main.ts calls takeoverPart1() before going to the background
 * and takeoverFinish() when everything else is set up; docs/online-reboot.md draws the whole exchange.
 *
 * Until SHUTDOWN was acknowledged this process touches nothing: whatever fails, it dies and the old one goes on.
 */

import { accessSync, constants as fsConstants, readFileSync, unlinkSync } from 'node:fs';
import { constants } from 'node:os';
import { dirname } from 'node:path';
import { unpinCpus } from '../core/base/cpu-affinity';
import { endTakeover, ownsListeners } from '../core/base/lifecycle';
import { die, fatal, logDebug, logError, logInfo, logWarning, slogInfo } from '../core/base/log';
import { native } from '../core/base/native';
import { listenFdCount, notify, notifyState } from '../core/base/systemd';
import { readClock, USEC } from '../core/base/time';
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
import { Channel, type ChannelMessage, errorText } from './channel';
import { classicState, takeoverLoadFd, takeoverPostprocessFds } from './classic';
import { crashPoint } from './crash-point';
import { FORMAT, type HandoverRecord, READY } from './format';
import { requeueUnsent, resumeFrozen } from './freeze';
import { SnapshotReader } from './snapshot-reader';
import { countKinds } from './sockets';

/** How long the old process may take none of a command. */
const SEND_MS = 10_000;
/** How long it may say nothing when it is asked for something: it serves its clients meanwhile. */
const ANSWER_MS = 10_000;
/** How long a SUSPEND of the classic exchange may take where suspend_timeout sets no end to it. */
const SUSPEND_MS_MAX = 600_000;
/** How long it may take to end once its sockets belong to this process, which serves meanwhile. usec */
const END_MAX = 10 * USEC;
/** How long a process whose connection ended without a word may take to be gone. */
const DYING_MS_MAX = 5_000;
/** Between two looks whether the old process is gone: often at first, because usually it is gone soon. usec */
const LOOK_FIRST = USEC / 1000;
const LOOK = USEC / 10;
const QUICK_LOOKS = 100;
const NAP_MS = 1;

/** The pseudo-server whose other end is the old process. */
let oldBouncer: ServerSocket | null = null;
/** the same connection, once it has logged in and left the loop */
let loggedIn: ServerSocket | null = null;
let channel: Channel | null = null;
/** null = the classic exchange */
let snapshotReader: SnapshotReader | null = null;
/** usec when the clients were first kept waiting, and when they were served again */
let pauseBegan = 0;
let pauseEnded = 0;

/** It owns the sockets or is about to; no other process may ask it for them before it has ended the old one. */
export function isFinishingTakeover(): boolean {
  return channel !== null;
}

function nap(ms: number): void {
  native.sleepMs(ms);
}

/**
 * Serves everybody until the old process has done something. SHUTDOWN and its like end the wait too.
 * @returns false when it has not done it within END_MAX
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

/* ---- part 1 ---- */

/** What -R needs of the config; ends the process when it is not there. */
function requireUnixSocket(): void {
  if (cf.unixSocketDir === '') die('cannot reboot if unix dir not configured');
  // the new process could not put a socket of its own in the place of that one
  if (cf.unixSocketDir.startsWith('@')) die('cannot reboot with abstract Unix socket');
  // it is the service manager that starts this process, not its reload command: there is nothing to take over
  if (listenFdCount() > 0) die('cannot reboot under service manager');
}

/** Whatever could fail for good after the old process is gone is tried before it is disturbed. */
function tryWhatComesLater(): void {
  checkListenAddr();
  if (cf.pidfile === null || cf.pidfile === '') return;
  try {
    accessSync(Buffer.from(dirname(cf.pidfile), 'latin1'), fsConstants.W_OK);
  } catch (err) {
    die(`could not open pidfile '${cf.pidfile}': ${(err as Error).message}`);
  }
}

/** Opens a server connection of our own admin pool: its other end is the console of the old process. */
function takeoverInit(): PgPool {
  const db = findDatabase('pgbouncer');
  if (db === null || db.forcedUser === null) return fatal('no admin pool?');
  const pool = getPool(db, db.forcedUser);
  logInfo('takeover_init: launching connection');
  launchNewConnection(pool, true);
  return pool;
}

/** The server connection to the old process has logged in: the loop has no more to do with it. */
export function takeoverLoggedIn(server: ServerSocket): Verdict {
  loggedIn = server;
  return Verdict.DISCONNECTED;
}

/** Turns the loop until the old process has accepted an ordinary login. */
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

/** The login is done: asks a process of our own kind for everything, any other for what it can give. */
function takeoverLogin(server: ServerSocket): void {
  slogInfo(server, 'login OK, sending SUSPEND');
  const fd = native.detach(server.handle);
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
  const refusal = errorText(first);
  if (!refusal.startsWith('invalid command')) {
    logError(`old bouncer sent: ${refusal}`);
    die('something failed');
  }
  while (receive(channel).type !== PqMsg.ReadyForQuery);
  takeClassic(channel);
}

function send(ch: Channel, sql: string): void {
  const failed = ch.query(sql, SEND_MS);
  if (failed !== 0) fatal(`command send failed: ${native.strerror(failed)}`);
}

function receive(ch: Channel, timeoutMs = ANSWER_MS): ChannelMessage {
  const msg = ch.next(timeoutMs);
  if (msg === null) return fatal('unexpected EOF');
  if (msg === constants.errno.ETIMEDOUT) {
    return die(`the old process has not answered for ${timeoutMs / 1000} s, giving up: it keeps its clients`);
  }
  if (typeof msg === 'number') return fatal(`safe_recvmsg: ${native.strerror(msg)}`);
  return msg;
}

function commandTag(msg: ChannelMessage): string {
  return new PktReader(msg.buf, msg.off, msg.end).str() ?? fatal('bad result pkt');
}

/** Reads what does not concern the caller; ends the process when the old one complains. */
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
  // it answers when its clients have got everything, or when suspend_timeout has closed those that have not
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
    } else {
      passOver(msg);
    }
  }
}

function takeFull(ch: Channel, first: ChannelMessage): void {
  const reader = new SnapshotReader();
  snapshotReader = reader;
  const takeFd = (): number => ch.fds.shift() ?? die('got row without fd info: out of file descriptors?');
  for (let msg = first; ; msg = receive(ch)) {
    if (msg.type === PqMsg.CopyData) {
      const still = reader.stillSince > 0;
      if (takeRecord(reader, msg, takeFd) === 'aheadEnd') {
        unpinCpus();
        pauseBegan = readClock();
        send(ch, `HANDOVER ${READY};`);
      }
      if (!still && reader.stillSince > 0) {
        logInfo('SUSPEND finished, sending SHOW FDS');
        // a wall clock that was set meanwhile must not make it longer than it can be
        pauseBegan = Math.max(pauseBegan, reader.stillSince);
        crashPoint('take-suspended');
      }
      crashPoint(still ? 'take-row' : 'take-ahead');
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
 * Takes every socket of the running process; returns false when there is none, and the caller boots as usual. Ends this
 * process when something fails: the old one then goes on.
 */
export function takeoverPart1(oldProcessAnswers: () => boolean): boolean {
  requireUnixSocket();
  if (!oldProcessAnswers()) {
    logInfo('old process not found, try to continue normally');
    endTakeover();
    unpinCpus();
    return false;
  }
  tryWhatComesLater();
  crashPoint('take-start');
  takeoverLogin(waitForLogin(takeoverInit()));
  crashPoint('take-complete');
  endTakeover();
  logInfo('disko over, going background');
  return true;
}

/* ---- part 2 ---- */

/** Lives and is no zombie: one whose parent never looks is as good as gone. */
function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
  } catch (err) {
    return (err as NodeJS.ErrnoException).code !== 'ESRCH';
  }
  try {
    return !/^State:[ \t]+[ZX]/m.test(readFileSync(`/proc/${pid}/status`, 'latin1'));
  } catch {
    return true;
  }
}

/** Serves who is served already. */
function oneTurn(): void {
  native.loopBreak();
  mainLoopOnce();
}

/** The sockets are ours: everybody is served again. */
function resumeWork(): void {
  const goneDatabases = snapshotReader === null ? classicState.goneDatabases : snapshotReader.goneDatabases;
  if (snapshotReader === null) {
    resumeSockets();
    // one whose client was not given has nobody to answer to, and one that was not logged in cannot go on with that
    for (const sk of classicState.sockets) {
      if (isServerSocket(sk) && !sk.ready && sk.link === null)
        disconnectServer(sk, true, 'not ready when it was handed over');
    }
  } else {
    requeueUnsent(snapshotReader.still);
    resumePooler();
  }
  for (const db of goneDatabases) killDatabase(db);
  if (snapshotReader !== null) resumeFrozen(snapshotReader.still.sockets, oneTurn);
  pauseEnded = readClock();
}

/**
 * The C original says nothing any more: its end is what counts. SHUTDOWN cannot be taken back: it will end as soon as it can, so
 * giving up would leave its clients without any process.
 */
function shutDownOriginal(ch: Channel): void {
  if (ch.query('SHUTDOWN;', SEND_MS) !== 0) die('failed to send SHUTDOWN;');
  crashPoint('take-shutdown-sent');
  for (let msg = ch.next(ANSWER_MS); msg !== null; msg = ch.next(ANSWER_MS)) {
    if (typeof msg !== 'number') continue;
    if (msg === constants.errno.ETIMEDOUT)
      logWarning('the old process was told to shut down and does not end, waiting');
    else die(`sky is falling - error while waiting result from SHUTDOWN: ${native.strerror(msg)}`);
  }
  resumeWork();
}

/** The old process has closed its end; it says nothing before that. */
function channelEnded(ch: Channel): boolean {
  for (;;) {
    const msg = ch.next(0);
    if (msg === null) return true;
    if (typeof msg === 'number') return msg !== constants.errno.ETIMEDOUT;
  }
}

/** What the old process says to SHUTDOWN: that the sockets are given, or why not; '' = its connection has ended. */
function shutdownAnswer(ch: Channel): 'given' | string {
  let refusal = '';
  let timeoutMs = ANSWER_MS;
  for (;;) {
    const msg = ch.next(timeoutMs);
    if (msg === constants.errno.ETIMEDOUT && timeoutMs > 0) {
      // an answer may come at this very moment: it counts if it is here, and cannot be given any more if it is not
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
 * With one of our own kind its acknowledgement is what counts, or its death.
 * @param pid the old process
 */
function shutDownOwn(ch: Channel, pid: number): void {
  // whether it went or not: what comes back tells
  ch.query('SHUTDOWN;', SEND_MS);
  crashPoint('take-shutdown-sent');
  let answer = shutdownAnswer(ch);
  if (answer === 'given') {
    resumeWork();
    if (!serveUntil(() => channelEnded(ch))) logWarning('the old process has given everything and does not end');
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
  resumeWork();
}

function removeFile(file: Buffer): void {
  try {
    unlinkSync(file);
  } catch {
    // it went by itself
  }
}

/** The file is gone, or names no process that is alive: the old process may have been killed. */
function isPidfileFree(file: Buffer): boolean {
  let pid: number;
  try {
    pid = Number.parseInt(readFileSync(file, 'latin1'), 10);
  } catch (err) {
    return (err as NodeJS.ErrnoException).code === 'ENOENT';
  }
  if (!(pid > 0) || isAlive(pid)) return false;
  removeFile(file);
  return true;
}

/**
 * Has the old process shut down and goes on with what it had.
 * @returns what was taken, for the operator
 */
export function takeoverFinish(): string {
  const ch = channel as Channel;
  if (snapshotReader?.begin?.notifySocket) notifyState.socket ??= snapshotReader.begin.notifySocket;
  logInfo('sending SHUTDOWN;');
  // systemd has to know its new main process before the old one is gone
  notify(`MAINPID=${process.pid}`);
  if (snapshotReader === null) shutDownOriginal(ch);
  else shutDownOwn(ch, snapshotReader.begin?.pid ?? 0);
  crashPoint('take-owned');
  ch.close();
  if (oldBouncer !== null) disconnectServer(oldBouncer, false, 'disko over');
  if (cf.pidfile !== null && cf.pidfile !== '') {
    const pidfile = Buffer.from(cf.pidfile, 'latin1');
    logInfo('waiting for old pidfile to go away');
    if (!serveUntil(() => isPidfileFree(pidfile))) {
      logWarning('the old process has not removed its pidfile, replacing it');
      removeFile(pidfile);
    }
  }
  logInfo('old process killed, resuming work');
  settleListeners();
  if (ownsListeners()) resumePooler();

  const { clients, servers } = snapshotReader === null ? classicState : countKinds(snapshotReader.still.sockets);
  const listeners = snapshotReader === null ? classicState.listeners : snapshotReader.listeners;
  const pauseMs = Math.max(1, Math.round(((pauseEnded - pauseBegan) * 1000) / USEC));
  oldBouncer = null;
  channel = null;
  snapshotReader = null;
  classicState.sockets.length = 0;
  return (
    `took over ${listeners} listening sockets, ${clients} clients, ${servers} servers; ` + `longest pause ${pauseMs} ms`
  );
}
