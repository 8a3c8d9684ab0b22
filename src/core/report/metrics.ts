/*
 * Metrics: while metrics_port is set, a thread (src/workers/metrics.ts) answers HTTP, and the loop tells it once a second
 * what has changed (metrics-report.ts). So a scrape costs the loop nothing.
 */

import { isDeepStrictEqual } from 'node:util';
import { receiveMessageOnPort } from 'node:worker_threads';
import { logInfo, logWarning } from '../base/log';
import { startThread, type Thread } from '../base/thread';
import { USEC } from '../base/time';
import { newTimer, timerStart, timerStop } from '../base/timer';
import type { MetricsNews, MetricsSecrets, MetricsWorkerData } from '../base/worker-messages';
import { readMetricsSecrets } from '../config/metrics-secrets';
import { cf } from '../config/settings';
import { beginMetricsReports, endMetricsReports, metricsLayout, nextMetricsReport } from './metrics-report';

/** Between two reports, in usec. */
const PERIOD = USEC;
/** The same if not all changes had room in the first one. */
const SHORT_PERIOD = USEC / 50;

/** The thread confirms each report. After so many seconds without that it hangs, or has ended for want of memory. */
const UNANSWERED_MAX = 15;

let thread: Thread | null = null;
/** seconds since it last confirmed a report */
let unanswered = 0;
let startedWith = '';
/** what the thread was told last */
let secrets: MetricsSecrets | null = null;

const timer = newTimer(tell);

/** Logs what the thread has to say. */
function hear(from: Thread): void {
  for (;;) {
    const got = receiveMessageOnPort(from.port);
    if (got === undefined) return;
    unanswered = 0;
    const { failed, text } = got.message as MetricsNews;
    if (text === '') continue;
    if (failed) logWarning(text);
    else logInfo(text);
  }
}

function tell(): void {
  if (thread === null) return;
  hear(thread);
  if (unanswered > UNANSWERED_MAX && secrets !== null) {
    logWarning('the metrics thread no longer answers, starting another');
    endThread();
    beginThread(secrets);
    return;
  }
  const report = nextMetricsReport();
  const { pools, timings, databases } = report;
  thread.port.postMessage(
    report,
    [pools, timings, databases].map((numbers) => numbers.buffer as ArrayBuffer),
  );
  if (!report.more) unanswered++;
  timerStart(timer, report.more ? SHORT_PERIOD : PERIOD, 0);
}

function endThread(): void {
  thread?.end();
  thread = null;
  timerStop(timer);
  endMetricsReports();
}

function beginThread(own: MetricsSecrets): void {
  const data: Omit<MetricsWorkerData, 'port' | 'wakeFd'> = {
    host: cf.metricsAddr === '*' ? '' : cf.metricsAddr,
    listenPort: cf.metricsPort,
    secrets: own,
    layout: metricsLayout,
  };
  try {
    thread = startThread('metrics.js', data);
  } catch (err) {
    logWarning(`could not start the metrics thread: ${(err as Error).message}`);
    return;
  }
  unanswered = 0;
  beginMetricsReports();
  // not at once: after a takeover clients are waiting
  timerStart(timer, SHORT_PERIOD, 0);
}

/**
 * Starts, restarts or ends the thread, as the settings say: at start, when one of them has changed, and after RELOAD,
 * when the files may have changed.
 */
export function metricsSetup(): void {
  const { metricsAddr, metricsPort, metricsTokenFile, metricsTlsCertFile, metricsTlsKeyFile } = cf;
  const settings = [metricsAddr, metricsPort, metricsTokenFile, metricsTlsCertFile, metricsTlsKeyFile];
  const wanted = metricsPort === 0 && !metricsAddr.startsWith('/') ? '' : JSON.stringify(settings);
  const read = wanted === '' ? null : readMetricsSecrets((_setting, text) => logWarning(`metrics: ${text}`));
  if (thread !== null && wanted === startedWith) {
    // if a file cannot be read any more, what it had before stays
    if (read !== null && !isDeepStrictEqual(read, secrets)) thread.port.postMessage(read);
    secrets = read ?? secrets;
    return;
  }
  startedWith = wanted;
  if (thread !== null) endThread();
  // a config that wants a token or TLS gets no metrics without it
  secrets = read;
  if (read !== null) beginThread(read);
}
