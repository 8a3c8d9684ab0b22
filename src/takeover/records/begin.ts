/*
 * The first record: the format, the old process, and the names of the fields that later records give as lists.
 */

import { notifyState } from '../../core/base/systemd';
import { TSBOUNCER_VERSION } from '../../core/base/version';
import { statNames } from '../../core/pool/stats';
import { varNames } from '../../core/pool/varcache';
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
  };
}

export function readBegin({ flags, numbers, vars, stats }: BeginRecord): Frame {
  const counters = stats.map((name) => statNames.indexOf(name));
  return new Frame(flags, numbers, vars, counters);
}
