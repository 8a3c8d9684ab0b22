/*
 * The first record: the format, the old process, and the names of the fields that later records give as lists.
 */

import { lastReboots, type Reboot, restoreReboots } from '../../core/base/reboots';
import { notifyState } from '../../core/base/systemd';
import { TSBOUNCER_VERSION } from '../../core/base/version';
import { serverTlsSettings } from '../../core/net/tls';
import { statNames } from '../../core/pool/stats';
import { varNames } from '../../core/pool/varcache';
import { followClock, type HandoverClock, startClock } from '../clock';
import { Frame } from './frame';
import { flagNames, numberNames } from './socket-fields';

export interface BeginRecord {
  k: 'begin';
  format: number;
  version: string;
  /** process id of the old process */
  pid: number;
  flags: string[];
  numbers: string[];
  vars: string[];
  stats: string[];
  /** where systemd listens, or null */
  notifySocket: string | null;
  /** from format 2 on: as serverTlsSettings() gives it */
  serverTls?: string;
  /** earlier reboots; older versions send none */
  reboots?: readonly Reboot[];
  /** what the times of all records refer to; older versions send none */
  clock?: HandoverClock;
}

export function beginRecord(format: number): BeginRecord {
  return {
    k: 'begin',
    format,
    version: TSBOUNCER_VERSION,
    pid: process.pid,
    flags: [...flagNames],
    numbers: [...numberNames],
    vars: [...varNames()],
    stats: [...statNames],
    notifySocket: notifyState.socket,
    serverTls: serverTlsSettings(),
    reboots: lastReboots(),
    clock: startClock(),
  };
}

export function readBegin({ flags, numbers, vars, stats, serverTls, reboots, clock }: BeginRecord): Frame {
  followClock(clock);
  restoreReboots(reboots);
  const counters = stats.map((name) => statNames.indexOf(name));
  const frame = new Frame(flags, numbers, vars, counters);
  frame.serverTlsChanged = serverTls !== undefined && serverTls !== serverTlsSettings();
  return frame;
}
