/*
 * The loop's side of src/workers/names.ts, the thread that resolves names as `resolv_conf` says and asks zones for their
 * serial numbers. Used by dnslookup.ts and dns-zones.ts; started at the first question, replaced when it is lost. A bounded number
 * of questions is with the thread, the others wait here.
 */

import { accessSync, constants } from 'node:fs';
import { receiveMessageOnPort } from 'node:worker_threads';
import { logWarning, strerror } from '../base/log';
import { Family, type SockAddr } from '../base/native';
import { startThread, type Thread } from '../base/thread';
import { getCachedTime, USEC } from '../base/time';
import type { NameAnswer, NameQuestion } from '../base/worker-messages';
import { cf } from '../config/settings';

const SYSTEM_RESOLV_CONF = '/etc/resolv.conf';

/** Most questions that the thread has at a time. */
const RUNNING_MAX = 32;
/** usec; more than the thread takes for the longest answer */
const LOST_AFTER = 120 * USEC;

interface Resolution {
  /** why there is none, in c-ares's words; '' = there is one */
  error: string;
  /** of a host; ports are 0 */
  addrs: SockAddr[];
  /** of a zone */
  serial: number;
}

interface Question {
  kind: 'host' | 'zone';
  /** bytes */
  name: string;
  /** when the thread got it, usec */
  since: number;
  done: (resolution: Resolution) => void;
}

let thread: Thread | null = null;
let lastId = 0;
/** by id, oldest first */
const running = new Map<number, Question>();
const waiting: Question[] = [];

function startNameThread(): Thread {
  const path = Buffer.from(cf.resolvConf === '' ? SYSTEM_RESOLV_CONF : cf.resolvConf, 'latin1');
  try {
    accessSync(path, constants.R_OK);
  } catch (err) {
    logWarning(`could not open resolv_conf ${path.toString('latin1')}: ${strerror(err)}`);
  }
  return startThread('names.js', { resolvConf: path });
}

function failed(question: Question, error: string): void {
  question.done({ error, addrs: [], serial: 0 });
}

function give(question: Question): void {
  try {
    thread ??= startNameThread();
  } catch (err) {
    logWarning(`names cannot be resolved: ${(err as Error).message}`);
    failed(question, 'no thread to ask');
    return;
  }
  lastId = (lastId % 0x7fffffff) + 1;
  question.since = getCachedTime();
  running.set(lastId, question);
  const message: NameQuestion = {
    id: lastId,
    kind: question.kind,
    name: Buffer.from(question.name, 'latin1').toString('utf8'),
  };
  thread.port.postMessage(message);
}

function giveWaiting(): void {
  while (running.size < RUNNING_MAX) {
    const question = waiting.shift();
    if (question === undefined) return;
    give(question);
  }
}

/**
 * Asks for the addresses of a host or for the serial number of a zone.
 * @param done called once, maybe before this returns
 */
export function askNameThread(kind: Question['kind'], name: string, done: (resolution: Resolution) => void): void {
  waiting.push({ kind, name, since: 0, done });
  giveWaiting();
}

/** The thread answers no more: it is ended, its questions fail, and the next question starts another. */
function loseThread(why: string): void {
  thread?.end();
  thread = null;
  const lost = [...running.values()];
  running.clear();
  logWarning(`lost the thread that resolves names: ${why}`);
  for (const question of lost) failed(question, why);
}

function onAnswer({ id, error, addresses, serial }: NameAnswer): void {
  if (id === 0) {
    loseThread(error);
    return;
  }
  const question = running.get(id);
  if (question === undefined) return;
  running.delete(id);
  const addrs = addresses.map(({ family, host }) => {
    return { family: family === 4 ? Family.INET : Family.INET6, host, port: 0 };
  });
  question.done({ error, addrs, serial });
}

/** The loop was woken: maybe by answers. */
export function collectNameAnswers(): void {
  while (thread !== null) {
    const got = receiveMessageOnPort(thread.port);
    if (got === undefined) break;
    onAnswer(got.message as NameAnswer);
  }
  giveWaiting();
}

/** The janitor's look: a thread that says nothing any more must not keep its questions for ever. */
export function nameThreadMaint(): void {
  for (const { since } of running.values()) {
    if (since < getCachedTime() - LOST_AFTER) loseThread('no answer');
    break;
  }
  giveWaiting();
}
