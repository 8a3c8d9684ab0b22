/*
 * Metrics: while metrics_port is set, a thread (src/workers/metrics.ts) answers HTTP, and the loop tells it once a second
 * what has changed (metrics-report.ts). So a scrape costs the loop nothing.
 */

import { readFileSync } from 'node:fs';
import { isDeepStrictEqual } from 'node:util';
import { receiveMessageOnPort } from 'node:worker_threads';
import { logInfo, logWarning, strerror } from '../base/log';
import { trimSpace } from '../base/strutil';
import { startThread, type Thread } from '../base/thread';
import { USEC } from '../base/time';
import { newTimer, timerStart, timerStop } from '../base/timer';
import type { MetricsNews, MetricsSecrets, MetricsWorkerData } from '../base/worker-messages';
import { cf } from '../config/settings';
import { beginMetricsReports, endMetricsReports, metricsLayout, nextMetricsReport } from './metrics-report';

/** Between two reports, in usec. */
const PERIOD = USEC;
/** The same if not all changes had room in the first one. */
const SHORT_PERIOD = USEC / 50;

let thread: Thread | null = null;
let startedWith = '';
/** what the thread was told last */
let secrets: MetricsSecrets | null = null;

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

/** The contents of a file that a setting names; null after a warning. */
function readSetting(setting: string, path: string): string | null {
  try {
    return readFileSync(Buffer.from(path, 'latin1'), 'utf8');
  } catch (err) {
    logWarning(`metrics: could not open ${setting} ${path}: ${strerror(err)}`);
    return null;
  }
}

/** The bearer token in the first line of a file; null after a warning. */
function readToken(path: string): string | null {
  if (path === '') return '';
  const text = readSetting('metrics_token_file', path);
  const [line = ''] = (text ?? '').split('\n');
  const token = trimSpace(line);
  if (text !== null && token === '') logWarning(`metrics: ${path} has no token`);
  return token === '' ? null : token;
}

/** What the files have; null after a warning. */
function readSecrets(): MetricsSecrets | null {
  const token = readToken(cf.metricsTokenFile);
  if (token === null) return null;
  if (cf.metricsTlsCertFile === '' && cf.metricsTlsKeyFile === '') return { token, tls: null };
  if (cf.metricsTlsCertFile === '' || cf.metricsTlsKeyFile === '') {
    logWarning('metrics: TLS needs metrics_tls_cert_file and metrics_tls_key_file');
    return null;
  }
  const cert = readSetting('metrics_tls_cert_file', cf.metricsTlsCertFile);
  const key = readSetting('metrics_tls_key_file', cf.metricsTlsKeyFile);
  return cert === null || key === null ? null : { token, tls: { cert, key } };
}

/**
 * Starts, restarts or ends the thread, as the settings say: at start, when one of them has changed, and after RELOAD,
 * when the files may have changed.
 */
export function metricsSetup(): void {
  const { metricsAddr, metricsPort, metricsTokenFile, metricsTlsCertFile, metricsTlsKeyFile } = cf;
  const settings = [metricsAddr, metricsPort, metricsTokenFile, metricsTlsCertFile, metricsTlsKeyFile];
  const wanted = metricsPort === 0 && !metricsAddr.startsWith('/') ? '' : JSON.stringify(settings);
  const read = wanted === '' ? null : readSecrets();
  if (thread !== null && wanted === startedWith) {
    // if a file cannot be read any more, what it had before stays
    if (read !== null && !isDeepStrictEqual(read, secrets)) thread.port.postMessage(read);
    secrets = read ?? secrets;
    return;
  }
  startedWith = wanted;
  if (thread !== null) {
    thread.end();
    thread = null;
    timerStop(timer);
    endMetricsReports();
  }
  // a config that wants a token or TLS gets no metrics without it
  secrets = read;
  if (read === null) return;
  const data: Omit<MetricsWorkerData, 'port' | 'wakeFd'> = {
    host: cf.metricsAddr === '*' ? '' : cf.metricsAddr,
    listenPort: cf.metricsPort,
    secrets: read,
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
