/*
 * The record with which the old process announces that it has frozen its sockets. The records before it described only
 * idle clients, ahead of time.
 */

import { enterPause, PauseMode } from '../../core/base/lifecycle';
import { Tally, tallies, tally } from '../../core/base/tallies';
import type { WallTime } from '../../core/base/time';
import { newestQueryId, raiseQueryId } from '../../core/pool/prepare';
import { statsStamps } from '../../core/pool/stats';
import { receivedTime, sentTime } from '../clock';

export interface StillRecord {
  k: 'still';
  since: WallTime;
  /** the old process was in PAUSE */
  paused: boolean;
  /** begin of the last and of the current statistics period */
  statsStamps: [WallTime, WallTime];
  /** number of the newest prepared statement; on servers the statements are named PGBOUNCER_<number> */
  newestQueryId: number;
  /** earlier online reboots */
  rebootsDone?: number;
  rebootsFailed?: number;
}

/**
 * @param since when the sockets were frozen
 * @param pauseMode the mode before the freeze
 */
export function stillRecord(since: number, pauseMode: PauseMode): StillRecord {
  return {
    k: 'still',
    since: sentTime(since),
    paused: pauseMode === PauseMode.PAUSE,
    statsStamps: [sentTime(statsStamps.old), sentTime(statsStamps.now)],
    newestQueryId: newestQueryId(),
    rebootsDone: tallies[Tally.REBOOT_DONE] as number,
    rebootsFailed: tallies[Tally.REBOOT_FAILED] as number,
  };
}

/** @returns when the sockets were frozen, usec */
export function readStill(record: StillRecord): number {
  if (record.paused) enterPause();
  statsStamps.old = receivedTime(record.statsStamps[0]);
  statsStamps.now = receivedTime(record.statsStamps[1]);
  raiseQueryId(record.newestQueryId ?? 0);
  tally(Tally.REBOOT_DONE, record.rebootsDone ?? 0);
  tally(Tally.REBOOT_FAILED, record.rebootsFailed ?? 0);
  return receivedTime(record.since);
}
