/*
 * What the live page shows besides the metrics: the clock, warnings and errors of the log, and the last reboots. Sent to
 * the metrics thread with each report.
 */

import { logState } from '../base/log';
import { lastReboots } from '../base/reboots';
import { utf8Of } from '../base/strutil';
import { readClock, wallTime } from '../base/time';
import { TSBOUNCER_VERSION } from '../base/version';
import type { LiveReport, LogLine } from '../base/worker-messages';

/** Lines between two reports; further ones are counted. */
const LINES_MAX = 50;
/** Longest line, in bytes; the rest is cut off. */
const LINE_MAX = 500;

let lines: LogLine[] = [];
let linesLeftOut = 0;

function wallMs(instant: number): number {
  return Math.floor((wallTime(instant) as unknown as number) / 1000);
}

function keepLine(level: string, text: string): void {
  if (lines.length < LINES_MAX) {
    const shown = utf8Of(text.slice(0, LINE_MAX));
    lines.push({ at: wallMs(readClock()), level, text: shown });
  } else {
    linesLeftOut++;
  }
}

/** Begins or ends to keep lines of the log for the reports. */
export function watchLog(on: boolean): void {
  logState.watch = on ? keepLine : null;
  lines = [];
  linesLeftOut = 0;
}

/** What has happened since the last report. */
export function liveReport(): LiveReport {
  const time = readClock();
  const report = {
    version: TSBOUNCER_VERSION,
    time,
    wall: wallMs(time),
    up: Math.floor(process.uptime() * 1000),
    lines,
    linesLeftOut,
    reboots: lastReboots(),
  };
  lines = [];
  linesLeftOut = 0;
  return report;
}
