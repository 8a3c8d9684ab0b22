/*
 * SHOW, and SELECT, which some clients send instead: one row per word that may follow.
 */

import { getPauseMode, PauseMode } from '../core/base/lifecycle';
import { equalNoCase } from '../core/base/strutil';
import { TSBOUNCER_VERSION } from '../core/base/version';
import { shownVersion } from '../core/config/compat';
import { configForEach } from '../core/config/settings';
import type { ClientSocket } from '../core/pool/bouncer';
import { PqMsg } from '../core/wire/packets';
import { pktbufTemp } from '../core/wire/pktbuf';
import { type Columns, columnsOfShow, helpText, showColumns } from './columns';
import { findFake } from './fake-params';
import { adminFlush, type PutRow, sendResult, syntaxError } from './reply';
import { showFds } from './show-fds';
import { putDnsHosts, putDnsZones, putLists, putMem, putThreads } from './show-lists';
import { putDatabases, putPeerPools, putPeers, putPools, putUsers, putWaits } from './show-pools';
import { putActiveSockets, putClients, putServers, putSockets } from './show-sockets';
import { putStats, putStatsAverages, putStatsTotals, putTotals } from './show-stats';

/** A word after SHOW, with its result set or its own kind of answer. */
interface ShowRow {
  readonly word: string;
  /** null: the answer has no rows */
  readonly columns: Columns | null;
  readonly run: (admin: ClientSocket) => boolean;
}

function result(word: keyof typeof showColumns, putAll: (put: PutRow) => void): ShowRow {
  return {
    word,
    get columns() {
      return columnsOfShow(word);
    },
    run: (admin) => sendResult(admin, columnsOfShow(word), putAll),
  };
}

function putConfig(put: PutRow): void {
  configForEach((name, value, def, changeable) => put(name, value, def, changeable ? 'yes' : 'no'));
}

function putState(put: PutRow): void {
  const is = (mode: PauseMode): string => (getPauseMode() === mode ? 'yes' : 'no');
  put('active', is(PauseMode.NONE));
  put('paused', is(PauseMode.PAUSE));
  put('suspended', is(PauseMode.SUSPEND));
}

function showHelp(admin: ClientSocket): boolean {
  const buf = pktbufTemp();
  buf.startPacket(PqMsg.NoticeResponse);
  for (const field of ['SNOTICE', 'C00000', 'MConsole usage', `D${helpText}`, '']) buf.putString(field);
  buf.finishPacket();
  return adminFlush(admin, buf, 'SHOW');
}

export const showTable: readonly ShowRow[] = [
  result('clients', putClients),
  result('config', putConfig),
  result('databases', putDatabases),
  { word: 'fds', columns: showColumns.fds, run: showFds },
  { word: 'help', columns: null, run: showHelp },
  result('lists', putLists),
  result('peers', putPeers),
  result('peer_pools', putPeerPools),
  result('pools', putPools),
  result('servers', putServers),
  result('sockets', putSockets),
  result('active_sockets', putActiveSockets),
  result('stats', putStats),
  result('stats_totals', putStatsTotals),
  result('stats_averages', putStatsAverages),
  result('users', putUsers),
  // exactly this text: tools take everything behind the name for numbers with dots
  result('version', (put) => put(`PgBouncer ${shownVersion()}`)),
  result('tsbouncer_version', (put) => put(TSBOUNCER_VERSION)),
  result('totals', putTotals),
  result('mem', putMem),
  result('dns_hosts', putDnsHosts),
  result('dns_zones', putDnsZones),
  result('state', putState),
  result('threads', putThreads),
  result('waits', putWaits),
];

function findShow(word: string): ShowRow | undefined {
  return showTable.find((row) => equalNoCase(row.word, word));
}

export function cmdShow(admin: ClientSocket, arg: string): boolean {
  const fake = findFake(arg);
  if (fake !== undefined) return sendResult(admin, { types: 's', names: [fake.name] }, (put) => put(fake.value));
  return findShow(arg)?.run(admin) ?? syntaxError(admin);
}

/** The columns of SHOW with that word: null if it has no rows, undefined if the word is unknown. */
export function columnsOf(arg: string): Columns | null | undefined {
  const fake = findFake(arg);
  return fake === undefined ? findShow(arg)?.columns : { types: 's', names: [fake.name] };
}
