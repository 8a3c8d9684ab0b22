/*
 * The record of a database: what the console has changed, the users that auth_query has found, and the settings that
 * its servers were opened with.
 */

import type { WallTime } from '../../core/base/time';
import { TargetSession } from '../../core/config/choices';
import { hostNames } from '../../core/config/records';
import { findOrRegisterDatabase, findOrRegisterLoginDatabase } from '../../core/link/registry';
import { type PgDatabase, ServerProtocol } from '../../core/pool/bouncer';
import { addDatabase, addDynamicCredentials, retireAutodatabase } from '../../core/pool/database';
import { newStats } from '../../core/pool/stats';
import { receivedTime, sentTime } from '../clock';
import type { Frame } from './frame';
import { readSecret, type SecretRecord, secretRecord } from './user';

export interface DatabaseRecord {
  k: 'database';
  name: string;
  paused: boolean;
  disabled: boolean;
  waitClose: boolean;
  auto: boolean;
  /** 0 = in use */
  inactiveTime: WallTime;
  /** see connectText() */
  connect: string;
  /** users found by auth_query */
  dynamicUsers: SecretRecord[];
  /** counters of its pools that were removed; left out if there are none */
  removedStats?: number[];
  /** no login to it has succeeded yet; left out if one has, and by versions before 0.2 */
  provisional?: boolean;
  /** its servers have refused protocol 3.2, and accept 3.0; left out if not, and by versions before 0.2 */
  only30?: boolean;
}

export function databaseRecord(db: PgDatabase): DatabaseRecord {
  return {
    k: 'database',
    name: db.name,
    paused: db.paused,
    disabled: db.disabled,
    waitClose: db.waitClose,
    auto: db.auto,
    inactiveTime: sentTime(db.inactiveTime),
    connect: connectText(db),
    dynamicUsers: [...db.dynamicUsers.values()].map(secretRecord),
    ...(db.removedStats === null ? {} : { removedStats: [...db.removedStats] }),
    ...(db.provisional ? { provisional: true } : {}),
    ...(db.serverProtocol === ServerProtocol.ONLY_30 ? { only30: true } : {}),
  };
}

export function readDatabase(record: DatabaseRecord, frame: Frame): void {
  const inactiveTime = receivedTime(record.inactiveTime);
  const find = record.provisional ? findOrRegisterLoginDatabase : findOrRegisterDatabase;
  let db = find(null, record.name);
  if (db?.admin) return;
  if (db === null) {
    // an idle auto-database, and the config has no `*` any more
    if (inactiveTime > 0) return;
    db = addDatabase(record.name);
    frame.goneDatabases.push(db);
  }
  db.paused = record.paused;
  db.disabled = record.disabled;
  db.waitClose = record.waitClose;
  if (record.removedStats !== undefined) {
    db.removedStats = newStats();
    frame.statsOf(record.removedStats, db.removedStats);
  }
  const change = connectChange(record.connect, db);
  if (change === 'all') frame.changed.add(db.name);
  else if (change === 'hosts') frame.hostsChanged.add(db.name);
  if (change !== 'all') db.serverProtocol = record.only30 ? ServerProtocol.ONLY_30 : ServerProtocol.ASK_32;
  for (const user of record.dynamicUsers) readSecret(user, addDynamicCredentials(db, user.name, user.passwd));
  if (inactiveTime > 0 && db.auto && db.pools.length === 0) retireAutodatabase(db, inactiveTime);
}

/** Index of the host list in connectText(). */
const HOST_INDEX = 1;

/**
 * The settings that the servers of a database depend on. If they differ between the two processes, the config has
 * changed, and servers opened under the old config are closed as after RELOAD.
 */
function connectText(db: PgDatabase): string {
  const { dbname, host, port, ports, targetSession, connectQuery, authDbname, authQuery, startupParams, tls } =
    db.config;
  return JSON.stringify([
    dbname,
    host,
    ports ?? port,
    db.forcedUser?.name ?? null,
    connectQuery,
    authDbname,
    authQuery,
    startupParams,
    // as in earlier versions without it
    ...(targetSession === TargetSession.ANY ? [] : [targetSession]),
    ...(tls === null ? [] : [tls]),
  ]);
}

/**
 * Compares connectText() of the old process with the database in this process.
 * @returns 'hosts' if only the host lists differ and they have a host in common
 */
function connectChange(before: string, db: PgDatabase): 'nothing' | 'hosts' | 'all' {
  if (connectText(db) === before) return 'nothing';
  const old: unknown[] = JSON.parse(before);
  const now: unknown[] = JSON.parse(connectText(db));
  const oldHosts = hostNames(old[HOST_INDEX] as string | null);
  const hosts = hostNames(db.config.host);
  old[HOST_INDEX] = now[HOST_INDEX] = null;
  const same = JSON.stringify(old) === JSON.stringify(now);
  return same && oldHosts.some((host) => hosts.includes(host)) ? 'hosts' : 'all';
}
