/*
 * password_command: the password of a forced user is what a command prints. Databases with the same command share its
 * runs. A thread runs it (src/workers/command.ts), and the loop never waits:
 *
 * - The first run begins with the first turns of the loop, and RELOAD begins another. Until the first run has ended, the
 *   pools open no connections, and their clients wait.
 * - If a server refuses the password, the command runs again, and the pools wait for it before their next login. If the
 *   password is the same, the next refusal is told to the clients.
 * - A run that fails changes nothing: the known password stays.
 *
 * Called by launch.ts, registry.ts, login/server-login.ts and life/maint.ts.
 */

import { receiveMessageOnPort } from 'node:worker_threads';
import { isFrozen } from '../base/lifecycle';
import { logError, logInfo, logWarning } from '../base/log';
import { utf8Of } from '../base/strutil';
import { startThread, type Thread } from '../base/thread';
import { getCachedTime, USEC } from '../base/time';
import type { CommandAnswer, CommandRequest } from '../base/worker-messages';
import { commandWords, passwordFault } from '../config/password-source';
import type { PgDatabase, PgPool, ServerSocket } from '../pool/bouncer';
import { eachDatabase, forceUserCredentials } from '../pool/database';
import { poolServerCount, touchPool } from '../pool/pool';
import { MAX_PASSWORD } from '../wire/limits';
import { closeClientList } from './kill';

/** The time limit of a run. */
const LIMIT_MS = 10_000;
/** usec; at most one run of a command begins in this time, however often servers refuse the password */
const RUN_PERIOD = 2 * USEC;
/** usec; a thread that has not answered by then is replaced */
const LOST_AFTER = 30 * USEC;
/** What clients are told if there is no password. */
const FAILED = 'password_command failed';

interface Command {
  /** program and arguments */
  readonly words: readonly string[];
  /** null = not known yet */
  passwd: string | null;
  /** it is to run as soon as it may */
  wanted: boolean;
  /** id of the run under way; 0 = none */
  run: number;
  /** usec; when the last run began, 0 = never */
  ranAt: number;
  /** usec; when the password last changed, 0 = never */
  changedAt: number;
  /** a server has refused the known password, so the pools wait for the next end of a run */
  refused: boolean;
  /** usec; when a run after a refusal last brought no other password, 0 = never */
  vainAt: number;
}

/** By the text in the config. */
const commands = new Map<string, Command>();
let thread: Thread | null = null;
let lastRun = 0;

function commandOf(text: string): Command {
  let command = commands.get(text);
  if (command === undefined) {
    const words = commandWords(text);
    // the config was checked
    if (typeof words === 'string') throw new Error(words);
    command = { words, passwd: null, wanted: false, run: 0, ranAt: 0, changedAt: 0, refused: false, vainAt: 0 };
    commands.set(text, command);
  }
  return command;
}

/** @returns the password that is known, or ''. The command runs again soon. */
export function commandPassword(text: string): string {
  const command = commandOf(text);
  command.wanted = true;
  return command.passwd ?? '';
}

/** The process before an online reboot knew this password: it is used until the first run has ended. */
export function inheritPassword(db: PgDatabase, passwd: string): void {
  const text = db.config.passwordCommand;
  if (text === null || db.forcedUser === null || passwd === '') return;
  const command = commandOf(text);
  command.passwd ??= passwd;
  forceUserCredentials(db, db.forcedUser.name, command.passwd);
}

/** Forgets the passwords of commands that are no longer in the config. @param autodb the command of the `*` entry */
export function forgetUnusedCommands(autodb: string | null): void {
  if (commands.size === 0) return;
  const used = new Set([autodb]);
  eachDatabase((db) => used.add(db.config.passwordCommand));
  for (const text of commands.keys()) if (!used.has(text)) commands.delete(text);
}

function eachUser(command: Command, visit: (db: PgDatabase) => void): void {
  eachDatabase((db) => {
    if (db.config.passwordCommand !== null && commands.get(db.config.passwordCommand) === command) visit(db);
  });
}

/** Begins a run, unless the last one has begun a moment ago or is under way. */
function begin(command: Command): void {
  const now = getCachedTime();
  if (command.run !== 0 || (command.ranAt !== 0 && now - command.ranAt < RUN_PERIOD)) return;
  command.wanted = false;
  command.ranAt = now;
  lastRun = (lastRun % 0x7fffffff) + 1;
  command.run = lastRun;
  try {
    thread ??= startThread('command.js');
  } catch (err) {
    runEnded(command, '', `could not be started: ${(err as Error).message}`);
    return;
  }
  const words = command.words.map(utf8Of);
  const request: CommandRequest = { id: lastRun, words, limitMs: LIMIT_MS, outputMax: MAX_PASSWORD + 1 };
  thread.port.postMessage(request);
}

/**
 * True if a pool must not open a connection yet, because its password is not known. Begins a run if none is under way.
 */
export function awaitsPassword(pool: PgPool): boolean {
  const text = pool.db.config.passwordCommand;
  if (text === null || pool.user !== pool.db.forcedUser) return false;
  const command = commandOf(text);
  if (command.passwd !== null) return command.refused;
  command.wanted = true;
  begin(command);
  return command.passwd === null;
}

/** As awaitsPassword(), for the console: begins nothing. */
export function isWithoutPassword({ user, db }: PgPool): boolean {
  const command = db.config.passwordCommand === null ? undefined : commands.get(db.config.passwordCommand);
  return command !== undefined && user === db.forcedUser && (command.passwd === null || command.refused);
}

/**
 * A server has refused the login of a pool's user.
 * @returns true if the password may be another one now: the login is to be repeated, and no client is told
 */
export function passwordRefused({ pool, connectTime }: ServerSocket): boolean {
  const text = pool.db.config.passwordCommand;
  if (text === null || pool.user !== pool.db.forcedUser) return false;
  const command = commandOf(text);
  if (command.changedAt !== 0 && connectTime <= command.changedAt) return true;
  if (command.vainAt !== 0 && getCachedTime() - command.vainAt < RUN_PERIOD) return false;
  command.refused = true;
  command.wanted = true;
  begin(command);
  return true;
}

/** There is no password to log in with: the clients of a pool would wait in vain. */
function failPool(pool: PgPool): void {
  pool.lastLoginFailed = true;
  pool.lastConnectFailed = true;
  pool.lastConnectTime = getCachedTime();
  pool.lastConnectFailedMessage = FAILED;
  closeClientList(pool.waitingClientList, FAILED);
}

function passwordChanged(command: Command, passwd: string): void {
  if (command.passwd !== null) logInfo(`password_command ${command.words[0]}: the password has changed`);
  command.passwd = passwd;
  command.changedAt = getCachedTime();
  eachUser(command, (db) => {
    if (db.forcedUser !== null) forceUserCredentials(db, db.forcedUser.name, passwd);
  });
}

/** @param error why the run has failed; '' = it has not */
function runEnded(command: Command, stdout: string, error: string): void {
  const { refused } = command;
  command.run = 0;
  command.refused = false;
  const passwd = stdout.replace(/\r?\n$/, '');
  const fault = error === '' ? passwordFault(passwd) : null;
  const failed = error !== '' ? error : fault === null ? '' : `has printed no password: the output ${fault}`;
  if (failed !== '') {
    const rest = command.passwd === null ? '' : ', keeping the known password';
    logError(`password_command ${command.words[0]} ${failed}${rest}`);
  }
  const changed = failed === '' && passwd !== command.passwd;
  if (changed) passwordChanged(command, passwd);
  else if (refused) command.vainAt = getCachedTime();
  const pools: PgPool[] = [];
  eachUser(command, (db) => pools.push(...db.pools.filter((pool) => pool.user === db.forcedUser)));
  for (const pool of pools) {
    if (command.passwd === null && poolServerCount(pool) === 0) failPool(pool);
    // the failures were those of another password
    if (changed) pool.lastLoginFailed = pool.lastConnectFailed = false;
    touchPool(pool);
  }
}

function onAnswer({ id, error, stdout, lines }: CommandAnswer): void {
  for (const command of commands.values()) {
    if (command.run !== id) continue;
    for (const line of lines) logWarning(`password_command ${command.words[0]}: ${line}`);
    runEnded(command, stdout, error);
  }
}

/** Called when the loop was woken, possibly by answers. In a freeze they stay where they are. */
export function collectPasswords(): void {
  if (thread === null || isFrozen()) return;
  const { port } = thread;
  for (let got = receiveMessageOnPort(port); got !== undefined; got = receiveMessageOnPort(port))
    onAnswer(got.message as CommandAnswer);
}

/** Called by the janitor: begins the runs that are wanted, and replaces a thread that no longer answers. */
export function passwordCommandMaint(): void {
  if (commands.size === 0) return;
  collectPasswords();
  const now = getCachedTime();
  const running = [...commands.values()].filter(({ run }) => run !== 0);
  if (running.some(({ ranAt }) => now - ranAt > LOST_AFTER)) {
    thread?.end();
    thread = null;
    for (const command of running) runEnded(command, '', 'was never answered by its thread');
  }
  for (const command of commands.values()) if (command.wanted) begin(command);
}
