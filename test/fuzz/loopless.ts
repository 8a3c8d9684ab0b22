/*
 * Clients and servers of the pooler without a loop, a kernel or a database: sockets are byte queues, and the test
 * decides in which pieces their bytes arrive. All code between client and server is the pooler's.
 */

import { getPauseMode, leavePause, PauseMode } from '../../src/core/base/lifecycle';
import { StatList } from '../../src/core/base/list';
import { arena, native, resumedLength } from '../../src/core/base/native';
import { getCachedTime, setTimeCache } from '../../src/core/base/time';
import { runTimers } from '../../src/core/base/timer';
import { cf } from '../../src/core/config/settings';
import { perLoopMaint } from '../../src/core/life/janitor';
import { disconnectClient, disconnectServer, releaseServer } from '../../src/core/link/objects';
import { attachHandle, runContinueQueue, sbufClose } from '../../src/core/net/sbuf';
import {
  type AnySocket,
  type ClientSocket,
  type PgPool,
  type ServerSocket,
  SocketState,
} from '../../src/core/pool/bouncer';
import { addDatabase } from '../../src/core/pool/database';
import { getPool } from '../../src/core/pool/pool';
import { raiseQueryId } from '../../src/core/pool/prepare';
import { isDead, isServerSocket } from '../../src/core/pool/socket';
import {
  changeClientState,
  changeServerState,
  loginClientList,
  newClient,
  newServer,
} from '../../src/core/pool/states';
import { findOrAddGlobalUser } from '../../src/core/pool/user';
import { clientInput } from '../../src/core/session/client';
import { serverInput } from '../../src/core/session/server';
import { toDefaults } from '../harness/config-fixtures';
import type { Random } from '../harness/hostile/random';

/** The state that kernel and loop would keep for one end of a connection. */
interface Line {
  kept: Buffer;
  sent: Buffer[];
  closed: boolean;
}

const lines = new Map<number, Line>();
let lastHandle = 0;
/** Offset in the arena at which bytes are delivered, with other bytes before and behind. */
const ARRIVAL = 4096;
const BADF = -9;
const TURN_USEC = 500;

function sendOn(handle: number, bytes: Uint8Array): number {
  const line = lines.get(handle);
  if (line === undefined || line.closed) return BADF;
  line.sent.push(Buffer.from(bytes));
  return 0;
}

/** Replaces the loop functions that the walkers call, for the rest of this process. */
const fakes: Partial<typeof native> = {
  send: (handle, off, len) => sendOn(handle, arena.subarray(off, off + len)),
  sendBytes: (handle, bytes, off, len) => sendOn(handle, bytes.subarray(off, off + len)),
  recvStart: () => 0,
  recvFirst: () => -1,
  recvStop: () => 0,
  unsent: () => 0,
  keep(handle, off, len) {
    const line = lines.get(handle);
    if (line === undefined) return BADF;
    line.kept = Buffer.concat([line.kept, arena.subarray(off, off + len)]);
    return 0;
  },
  park: (handle, off, len) => fakes.keep?.(handle, off, len),
  keptLength: (handle) => lines.get(handle)?.kept.length ?? 0,
  resume(handle) {
    const line = lines.get(handle) as Line;
    if (line.kept.length === 0) return -1;
    resumedLength[0] = line.kept.length;
    line.kept.copy(arena, ARRIVAL);
    line.kept = Buffer.alloc(0);
    return ARRIVAL;
  },
  close(handle) {
    const line = lines.get(handle);
    if (line !== undefined) line.closed = true;
    return 0;
  },
  readClock: () => getCachedTime(),
  // connections are never answered
  socket: () => 0,
  setUpSocket: () => {},
  tuneTcp: () => {},
  connect() {
    lines.set(++lastHandle, { kept: Buffer.alloc(0), sent: [], closed: false });
    return lastHandle;
  },
  closeFd: () => 0,
  open: () => fakes.connect?.(4, '', 0, 0) ?? -1,
  openAccepted: () => fakes.open?.(0) ?? -1,
  keepBytes: (handle, bytes) => fakes.keep?.(handle, arena.set(bytes, 0) ?? 0, bytes.length) ?? BADF,
  tlsContinue: (_handle, bytes) => (bytes.length > 2 ? 0 : BADF),
  tlsCertHash: () => '',
  sockName: () => ({ family: 4, host: '127.0.0.1', port: 1 }),
  listenOpen: () => -1,
};

export interface WorldOptions {
  poolMode?: 'transaction' | 'statement' | 'session';
  maxPreparedStatements?: number;
}

let defaults = false;

/** A pool with sockets of its own. */
export class World {
  readonly pool: PgPool;
  private readonly inbound = new Map<AnySocket, Buffer>();
  private readonly lineOf = new Map<AnySocket, Line>();
  private readonly poolMode: string;

  constructor(options: WorldOptions = {}) {
    Object.assign(native, fakes);
    // the start of time; later worlds continue from the end of the last world, because timers outlive it
    if (!defaults) setTimeCache(1_000_000_000_000_000);
    if (!defaults) toDefaults();
    // so that names of statements have a constant length
    raiseQueryId(1_000_000_000);
    defaults = true;
    this.poolMode = options.poolMode ?? 'transaction';
    cf.poolMode = { session: 0, transaction: 1, statement: 2 }[this.poolMode] as number;
    cf.maxPreparedStatements = options.maxPreparedStatements ?? 200;
    cf.logConnections = cf.logDisconnections = cf.logPoolerErrors = 0;
    const db = addDatabase('fuzz');
    this.pool = getPool(db, findOrAddGlobalUser('fuzzer').credentials);
    this.pool.welcomeMsgReady = true;
    this.pool.welcomeMsg = Buffer.alloc(0);
  }

  private attach(sk: AnySocket): void {
    const handle = ++lastHandle;
    const line: Line = { kept: Buffer.alloc(0), sent: [], closed: false };
    lines.set(handle, line);
    this.lineOf.set(sk, line);
    this.inbound.set(sk, Buffer.alloc(0));
    attachHandle(sk, handle);
    sk.reading = true;
    sk.connectTime = sk.requestTime = getCachedTime();
  }

  /** A client that is logged in. */
  client(): ClientSocket {
    const client = newClient();
    this.attach(client);
    client.db = this.pool.db;
    client.loginUser = this.pool.user;
    client.login = null;
    changeClientState(client, SocketState.CL_LOGIN);
    client.pool = this.pool;
    changeClientState(client, SocketState.CL_ACTIVE);
    return client;
  }

  /** A client that has only connected. */
  stranger(): ClientSocket {
    const client = newClient();
    this.attach(client);
    client.remoteAddr = { family: 4, host: '127.0.0.1', port: 1, uid: 0, pid: 0 };
    changeClientState(client, SocketState.CL_LOGIN);
    return client;
  }

  /** Closes connections created elsewhere, as the exit of the process would. */
  endForeign(sockets: AnySocket[]): void {
    for (const sk of sockets) {
      sk.list?.remove(sk);
      sk.link = null;
    }
    for (const list of ownLists(this.pool)) while (list.head !== null) list.remove(list.head);
    while (loginClientList.head !== null) loginClientList.remove(loginClientList.head);
    for (const db of [this.pool.db]) {
      db.paused = db.disabled = db.waitClose = false;
      db.connectionCount = db.clientConnectionCount = 0;
    }
    if (getPauseMode() !== PauseMode.NONE) leavePause();
  }

  /** An idle server that has logged in. */
  server(): ServerSocket {
    const server = newServer(this.pool);
    this.attach(server);
    server.login = null;
    server.loginUser = this.pool.user;
    this.pool.db.connectionCount++;
    const globalUser = this.pool.user?.globalUser ?? null;
    if (globalUser !== null) globalUser.connectionCount++;
    changeServerState(server, SocketState.SV_LOGIN);
    server.ready = true;
    releaseServer(server);
    return server;
  }

  /** Queues bytes to be delivered to the pooler. */
  arrive(sk: AnySocket, bytes: Buffer): void {
    this.inbound.set(sk, Buffer.concat([this.inbound.get(sk) as Buffer, bytes]));
  }

  /** True if the pooler would read some of the queued bytes. */
  canRead(sk: AnySocket): boolean {
    return !isDead(sk) && sk.reading && !sk.blocked && (this.inbound.get(sk) as Buffer).length > 0;
  }

  /** The pooler receives at most `most` bytes more of this socket. */
  deliver(sk: AnySocket, most: number, random: Random): void {
    if (!this.canRead(sk)) return;
    const line = this.lineOf.get(sk) as Line;
    const waiting = this.inbound.get(sk) as Buffer;
    const now = waiting.subarray(0, most);
    this.inbound.set(sk, waiting.subarray(now.length));
    const bytes = Buffer.concat([line.kept, now]);
    line.kept = Buffer.alloc(0);
    // the surrounding bytes are random, because they must not matter
    arena.fill(random.below(256), 0, ARRIVAL + bytes.length + 64);
    bytes.copy(arena, ARRIVAL);
    sk.hasKept = false;
    input(sk, ARRIVAL, bytes.length);
    this.turn();
  }

  /** Ends a turn of the loop and advances the time. */
  turn(): void {
    setTimeCache(getCachedTime() + TURN_USEC);
    runTimers(getCachedTime());
    runContinueQueue(input);
    perLoopMaint(() => runContinueQueue(input));
    runContinueQueue(input);
  }

  /** Takes what was sent on a socket since the last call. */
  take(sk: AnySocket): Buffer {
    const line = this.lineOf.get(sk) as Line;
    const sent = Buffer.concat(line.sent);
    line.sent = [];
    return sent;
  }

  /** The buffered input of a socket. */
  keptOf(sk: AnySocket): Buffer {
    return (this.lineOf.get(sk) as Line).kept;
  }

  /** Ends every connection. */
  end(): void {
    for (const sk of this.inbound.keys()) {
      if (isDead(sk)) continue;
      if (isServerSocket(sk)) disconnectServer(sk, false, 'over');
      else disconnectClient(sk, false, 'over');
      sbufClose(sk);
    }
    while (this.pool.newServerList.head !== null) disconnectServer(this.pool.newServerList.head, false, 'over');
    runContinueQueue(() => {});
    lines.clear();
    lastHandle = 0;
    this.pool.lastConnectFailed = this.pool.lastLoginFailed = false;
  }
}

function ownLists(pool: PgPool): StatList<AnySocket>[] {
  return Object.values(pool).filter((value): value is StatList<AnySocket> => value instanceof StatList);
}

function input(sk: AnySocket, off: number, length: number): void {
  if (isServerSocket(sk)) serverInput(sk, off, length);
  else clientInput(sk, off, length);
}
