/*
 * Metrics: while metrics_port is set, a thread (src/workers/metrics.ts) answers HTTP, and the loop tells it once a second
 * what has changed (metrics-report.ts). So a scrape costs the loop nothing.
 */

import { readFileSync } from 'node:fs';
import { receiveMessageOnPort } from 'node:worker_threads';
import { logInfo, logWarning, strerror } from '../base/log';
import { trimSpace } from '../base/strutil';
import { startThread, type Thread } from '../base/thread';
import { USEC } from '../base/time';
import { newTimer, timerStart, timerStop } from '../base/timer';
import type { MetricsNews, MetricsWorkerData } from '../base/worker-messages';
import { cf } from '../config/settings';
import { beginMetricsReports, endMetricsReports, metricsLayout, nextMetricsReport } from './metrics-report';

/** Between two reports, in usec. */
const PERIOD = USEC;
/** The same if not all changes had room in the first one. */
const SHORT_PERIOD = USEC / 50;

let thread: Thread | null = null;
let startedWith = '';

const timer = newTimer(tell);

/** Logs what the thread has to say. */
function hear(from: Thread): void {
  for (;;) {
    const got = receiveMessageOnPort(from.port);
    if (got === undefined) return;
    const { failed, text } = got.message as MetricsNews;
    if (failed) logWarning(text);
    else logInfo(text);
  }
}

function tell(): void {
  if (thread === null) return;
  hear(thread);
  const report = nextMetricsReport();
  const { pools, timings, databases } = report;
  thread.port.postMessage(
    report,
    [pools, timings, databases].map((numbers) => numbers.buffer as ArrayBuffer),
  );
  timerStart(timer, report.more ? SHORT_PERIOD : PERIOD, 0);
}

/** The bearer token in the first line of a file; null after a warning. */
function readToken(path: string): string | null {
  if (path === '') return '';
  try {
    const token = trimSpace(readFileSync(Buffer.from(path, 'latin1'), 'utf8').split('\n')[0] ?? '');
    if (token !== '') return token;
    logWarning(`metrics: ${path} has no token`);
  } catch (err) {
    logWarning(`metrics: could not open metrics_token_file ${path}: ${strerror(err)}`);
  }
  return null;
}

/** Starts, restarts or ends the thread, as the settings say: at start, and when one of them has changed. */
export function metricsSetup(): void {
  const token = cf.metricsPort === 0 ? '' : readToken(cf.metricsTokenFile);
  // a config that wants a token gets no metrics without it
  const on = cf.metricsPort !== 0 && token !== null;
  const wanted = on ? JSON.stringify([cf.metricsAddr, cf.metricsPort, token]) : '';
  if (wanted === startedWith) return;
  startedWith = wanted;
  if (thread !== null) {
    thread.end();
    thread = null;
    timerStop(timer);
    endMetricsReports();
  }
  if (!on) return;
  const data: Omit<MetricsWorkerData, 'port' | 'wakeFd'> = {
    host: cf.metricsAddr === '*' ? '' : cf.metricsAddr,
    listenPort: cf.metricsPort,
    token: token as string,
    layout: metricsLayout,
  };
  try {
    thread = startThread('metrics.js', data);
  } catch (err) {
    logWarning(`could not start the metrics thread: ${(err as Error).message}`);
    return;
  }
  beginMetricsReports();
  // not at once: after a takeover clients are waiting
  timerStart(timer, SHORT_PERIOD, 0);
}
