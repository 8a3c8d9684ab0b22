/*
 * The loop's side of the DNS resolver thread (src/workers/names.ts), which looks up hosts as `resolv_conf` says, and
 * queries the serial numbers of zones. Used by dnslookup.ts and dns-zones.ts. The thread is started with the first
 * request, and replaced if it fails. It has a limited number of requests at a time; the others wait here.
 */

import { accessSync, constants } from 'node:fs';
import { receiveMessageOnPort } from 'node:worker_threads';
import { logWarning, strerror } from '../base/log';
import { Family, type SockAddr } from '../base/native';
import { utf8Of } from '../base/strutil';
import { startThread, type Thread } from '../base/thread';
import { getCachedTime, USEC } from '../base/time';
import type { NameAnswer, NameQuestion } from '../base/worker-messages';
import { cf } from '../config/settings';

const SYSTEM_RESOLV_CONF = '/etc/resolv.conf';

/** Most requests that the thread has at a time. */
const RUNNING_MAX = 32;
/** usec; longer than the slowest answer takes */
const LOST_AFTER = 120 * USEC;

interface Resolution {
  /** why the request failed, in c-ares's words; '' = success */
  error: string;
  /** addresses of a host; ports are 0 */
  addrs: SockAddr[];
  /** serial number of a zone */
  serial: number;
}

interface Question {
  kind: 'host' | 'zone';
  /** byte string */
  name: string;
  /** usec; when the thread received it */
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
    logWarning(`could not start DNS resolver thread: ${(err as Error).message}`);
    failed(question, 'no DNS resolver thread');
    return;
  }
  lastId = (lastId % 0x7fffffff) + 1;
  question.since = getCachedTime();
  running.set(lastId, question);
  const message: NameQuestion = {
    id: lastId,
    kind: question.kind,
    name: utf8Of(question.name),
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
 * Requests the addresses of a host or the serial number of a zone.
 * @param done called once, possibly before this function returns
 */
export function askNameThread(kind: Question['kind'], name: string, done: (resolution: Resolution) => void): void {
  waiting.push({ kind, name, since: 0, done });
  giveWaiting();
}

/** The thread no longer answers: ends it and fails its requests. The next request starts another thread. */
function loseThread(why: string): void {
  thread?.end();
  thread = null;
  const lost = [...running.values()];
  running.clear();
  logWarning(`DNS resolver thread failed: ${why}`);
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

/** Called when the loop was woken, possibly by answers. */
export function collectNameAnswers(): void {
  while (thread !== null) {
    const got = receiveMessageOnPort(thread.port);
    if (got === undefined) break;
    onAnswer(got.message as NameAnswer);
  }
  giveWaiting();
}

/** Called by the janitor: requests of a thread that no longer answers must not stay forever. */
export function nameThreadMaint(): void {
  for (const { since } of running.values()) {
    if (since < getCachedTime() - LOST_AFTER) loseThread('no answer');
    break;
  }
  giveWaiting();
}
