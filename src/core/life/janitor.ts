/*
 * The janitor. At the end of every turn it handles the marked pools: it assigns servers to waiting clients, or launches
 * servers for them. Three times a second it calls maint.ts for everything that depends on time.
 */

import { getPauseMode, isFrozen, PauseMode, suspendStart } from '../base/lifecycle';
import { nextOf } from '../base/list';
import { logWarning, slogDebug, wantDebug } from '../base/log';
import { getCachedTime, USEC } from '../base/time';
import { cf } from '../config/settings';
import { closeClientList } from '../link/kill';
import { launchFor } from '../link/launch';
import { serveListeners } from '../link/listen-share';
import { activateClient, disconnectServer, dropIfEnded, releaseServer } from '../link/objects';
import { isSettling } from '../link/settling';
import { sendPacket } from '../net/sbuf';
import { type ClientSocket, type PgPool, Replication, SocketState } from '../pool/bouncer';
import { LoginPhase } from '../pool/phases';
import {
  anyPoolTouched,
  endFullLoopMaintRequest,
  forgetTouchedPools,
  handleTouchedPools,
  isFullLoopMaintRequested,
  peerPoolList,
  poolList,
  requestFullLoopMaint,
} from '../pool/pool';
import { changeServerState, loginClientList } from '../pool/states';
import { upcalls } from '../pool/upcalls';
import { writeNotice, writeQuery } from '../wire/messages';
import { pktbufTemp } from '../wire/pktbuf';
import { poolPause, suspendClients, suspendServers } from './pause';

/** Processes the input of clients that were just activated, so that each takes its server before the next is woken. */
type RunQueue = () => void;

/** Sends the check query to a used server, or releases it if it was used a moment ago. */
function launchRecheck(pool: PgPool): void {
  let server = pool.usedServerList.head;
  while (server !== null && !server.ready) {
    disconnectServer(server, true, 'idle server got dirty');
    server = pool.usedServerList.head;
  }
  if (server === null) return;
  const query = cf.serverCheckQuery;
  const recent = cf.serverCheckDelay > 0 && getCachedTime() - server.requestTime < cf.serverCheckDelay;
  if (query === '' || recent) {
    releaseServer(server);
    return;
  }
  if (wantDebug()) slogDebug(server, `P: checking: ${query}`);
  changeServerState(server, SocketState.SV_TESTED);
  // until the check is answered: a notification that arrives first must not release the server
  server.ready = false;
  server.unnamedSeq = 0;
  const buf = pktbufTemp();
  writeQuery(buf, query === '<empty>' ? '' : query);
  if (!sendPacket(server, buf)) disconnectServer(server, false, 'test query failed');
}

function notifyWaiting(client: ClientSocket): void {
  const due =
    cf.queryWaitNotify > 0 &&
    client.state === SocketState.CL_WAITING &&
    client.login === null &&
    !client.waitNotified &&
    Math.floor((getCachedTime() - client.waitStart) / USEC) > cf.queryWaitNotify;
  if (!due) return;
  const buf = pktbufTemp();
  writeNotice(buf, 'No server connection available in postgres backend, client being queued');
  if (!sendPacket(client, buf)) logWarning('Sending queue warning failed');
  client.waitNotified = true;
}

/**
 * Wakes waiting clients while there are idle servers. The others wait for servers being tested, used servers to be
 * rechecked, or a new connection.
 */
function poolActivate(pool: PgPool, runQueue: RunQueue): void {
  // the clients go on: a request may have to wait for long until its connection can be opened
  const canceling = pool.waitingCancelReqList.count;
  if (canceling > 0) launchFor(pool, canceling);
  if (pool.listening !== null) serveListeners(pool);
  if (isSettling(pool)) return;
  let tested = pool.testedServerList.count;
  let used = pool.usedServerList.count;
  for (let client = pool.waitingClientList.head; client !== null; ) {
    const next: ClientSocket | null = nextOf(client);
    notifyWaiting(client);
    if (dropIfEnded(client)) {
      // it needs no server any more
    } else if (client.replication !== Replication.NONE) {
      launchFor(pool, 1);
    } else if (pool.idleServerList.count > 0) {
      if (client.login?.phase === LoginPhase.WELCOME && !pool.welcomeMsgReady) {
        launchFor(pool, 1);
      } else {
        activateClient(client);
        runQueue();
      }
    } else if (tested > 0) {
      tested--;
    } else if (used > 0) {
      launchRecheck(pool);
      runQueue();
      used--;
    } else {
      const soon = pool.testedServerList.count + pool.usedServerList.count;
      launchFor(pool, canceling + Math.max(1, pool.waitingClientList.count - soon));
      break;
    }
    // activating a client may have disconnected or moved any client
    if (next !== null && next.list !== (pool.waitingClientList as unknown)) break;
    client = next;
  }
}

/** Called at the end of every turn. */
export function perLoopMaint(runQueue: RunQueue): void {
  if (isFrozen()) return;
  if (getPauseMode() === PauseMode.NONE && !isFullLoopMaintRequested()) {
    if (!anyPoolTouched()) return;
    handleTouchedPools((pool) => {
      if (pool.dead || pool.db.admin) return;
      // whether the mode of a database is reached depends on its other pools too
      if (pool.db.paused || pool.db.waitClose) requestFullLoopMaint();
      else poolActivate(pool, runQueue);
    });
    if (!isFullLoopMaintRequested()) return;
  }
  endFullLoopMaintRequest();
  forgetTouchedPools();
  fullLoopMaint(runQueue);
}

/** SUSPEND in a pool. Until its clients are suspended, its waiting clients still get servers. */
function suspendPool(pool: PgPool, force: boolean, runQueue: RunQueue): number {
  const busy = suspendClients(pool, force);
  if (busy === 0) return suspendServers(pool, force);
  poolActivate(pool, runQueue);
  return busy;
}

function fullLoopMaint(runQueue: RunQueue): void {
  let active = 0;
  const mode = getPauseMode();
  const force =
    mode === PauseMode.SUSPEND && cf.suspendTimeout > 0 && getCachedTime() - suspendStart() >= cf.suspendTimeout;

  for (let pool = poolList.head; pool !== null; ) {
    const next: PgPool | null = nextOf(pool);
    if (!pool.db.admin) {
      if (mode === PauseMode.SUSPEND) {
        active += suspendPool(pool, force, runQueue);
      } else if (mode === PauseMode.PAUSE || pool.db.paused) {
        active += poolPause(pool);
      } else {
        poolActivate(pool, runQueue);
      }
    }
    pool = next;
  }
  // peers are never paused
  if (mode !== PauseMode.SUSPEND) peerPoolsMaint();
  if (mode === PauseMode.SUSPEND) {
    if (force) closeClientList(loginClientList, 'suspend_timeout');
    else active += loginClientList.count;
  }
  upcalls.admin.answerWaiting(mode !== PauseMode.NONE && active === 0);
}

/** Handles the pools of peers: launches connections for waiting cancel requests. */
export function peerPoolsMaint(): void {
  for (let pool = peerPoolList.head; pool !== null; pool = nextOf(pool)) {
    if (pool.waitingCancelReqList.count > 0) launchFor(pool, 1);
  }
}
