/*
 * SHOW (and SELECT, which some clients say instead): one row per word that may follow.
 */

import { PauseMode, runState } from '../core/base/runstate';
import { equalNoCase } from '../core/base/strutil';
import { VERSION_STRING } from '../core/base/version';
import { configForEach } from '../core/config/settings';
import type { PgSocket } from '../core/pool/socket';
import { writeDataRow, writeNotice, writeRowDescription } from '../core/wire/messages';
import { PqMsg } from '../core/wire/packets';
import { pktbufTemp } from '../core/wire/pktbuf';
import { type Columns, helpText, showColumns } from './columns';
import { adminFlush, type PutRow, sendResult, syntaxError } from './reply';
import { showFds } from './showfds';
import { dnsHostRows, dnsZoneRows, listRows, memRows } from './showmem';
import { databaseRows, peerPoolRows, peerRows, poolRows, userRows } from './showpools';
import { activeSocketRows, clientRows, serverRows, socketRows } from './showsockets';
import { statsAveragesRows, statsRows, statsTotalsRows, totalsRows } from './showstats';

/** One word after SHOW: a result set, or an answer of its own kind. */
interface ShowRow {
  readonly word: string;
  readonly run: (admin: PgSocket) => boolean;
}

function result(word: keyof typeof showColumns, rows: (put: PutRow) => void): ShowRow {
  const columns: Columns = showColumns[word];
  return { word, run: (admin) => sendResult(admin, columns, rows) };
}

function configRows(put: PutRow): void {
  configForEach((name, value, def, changeable) => put(name, value, def, changeable ? 'yes' : 'no'));
}

function stateRows(put: PutRow): void {
  const is = (mode: PauseMode): string => (runState.pauseMode === mode ? 'yes' : 'no');
  put('active', is(PauseMode.NONE));
  put('paused', is(PauseMode.PAUSE));
  put('suspended', is(PauseMode.SUSPEND));
}

function showHelp(admin: PgSocket): boolean {
  const buf = pktbufTemp();
  buf.startPacket(PqMsg.NoticeResponse);
  for (const field of ['SNOTICE', 'C00000', 'MConsole usage', `D${helpText}`, '']) buf.putString(field);
  buf.finishPacket();
  return adminFlush(admin, buf, 'SHOW');
}

/** Every word that may follow SHOW. */
export const showTable: readonly ShowRow[] = [
  result('clients', clientRows),
  result('config', configRows),
  result('databases', databaseRows),
  { word: 'fds', run: showFds },
  { word: 'help', run: showHelp },
  result('lists', listRows),
  result('peers', peerRows),
  result('peer_pools', peerPoolRows),
  result('pools', poolRows),
  result('servers', serverRows),
  result('sockets', socketRows),
  result('active_sockets', activeSocketRows),
  result('stats', statsRows),
  result('stats_totals', statsTotalsRows),
  result('stats_averages', statsAveragesRows),
  result('users', userRows),
  result('version', (put) => put(VERSION_STRING)),
  result('totals', totalsRows),
  result('mem', memRows),
  result('dns_hosts', dnsHostRows),
  result('dns_zones', dnsZoneRows),
  result('state', stateRows),
];

/** Server parameters that clients ask for and set without being asked to: a constant answer keeps them happy. */
const fakeParams: readonly { readonly name: string; readonly value: string }[] = [
  { name: 'client_encoding', value: 'UTF-8' },
  { name: 'default_transaction_isolation', value: 'read committed' },
  { name: 'standard_conforming_strings', value: 'on' },
  { name: 'datestyle', value: 'ISO' },
  { name: 'timezone', value: 'GMT' },
];

/** SET of such a parameter: accepted and forgotten. Null when it is none. */
export function fakeSet(admin: PgSocket, key: string): boolean | null {
  if (!fakeParams.some((param) => equalNoCase(param.name, key))) return null;
  const buf = pktbufTemp();
  writeNotice(buf, 'SET ignored');
  return adminFlush(admin, buf, 'SET');
}

export function cmdShow(admin: PgSocket, arg: string): boolean {
  for (const param of fakeParams) {
    if (!equalNoCase(param.name, arg)) continue;
    const buf = pktbufTemp();
    writeRowDescription(buf, 's', [param.name]);
    writeDataRow(buf, 's', [param.value]);
    return adminFlush(admin, buf, 'SHOW');
  }
  for (const row of showTable) if (equalNoCase(row.word, arg)) return row.run(admin);
  return syntaxError(admin);
}
