/*
 * Connections that cannot be handed over: they end with the old process. Before the sockets are frozen, the
 * transactions on them get time to end, while all other clients are served. A client that is between two transactions
 * is not read any more, so that it begins no other. It is not closed before the end, because the handover may still
 * fail. At the end it is told why.
 */

import { getPauseMode, PauseMode } from '../core/base/lifecycle';
import { slogInfo } from '../core/base/log';
import { native } from '../core/base/native';
import { cf } from '../core/config/settings';
import { ADMIN_SHUTDOWN, isBetweenTransactions } from '../core/life/drain';
import {
  sbufClose,
  sbufContinue,
  sbufIsEmpty,
  sbufPause,
  sendBytes,
  sendPacket,
  socketsByHandle,
} from '../core/net/sbuf';
import { type AnySocket, type ClientSocket, SocketState } from '../core/pool/bouncer';
import { isDead, isServerSocket } from '../core/pool/socket';
import { PACKET_TERMINATE, writeErrorResponse } from '../core/wire/messages';
import { PktBuf } from '../core/wire/pktbuf';
import { FORMAT_LISTEN, FORMAT_TLS } from './format';
import { allSockets, isListening, lastingRefusalOf } from './sockets';

/** Longest time until a new connection that cannot be handed over is found, in usec. */
const FIND_INTERVAL = 50_000;

/** The clients whose connection, or whose server's connection, cannot be handed over. */
function findClients(except: AnySocket, format: number): Set<ClientSocket> {
  let sockets: (AnySocket | null | undefined)[];
  if (format < FORMAT_TLS) {
    sockets = allSockets(except).filter((sk) => sk.tls || isListening(sk));
  } else {
    // one call for all connections, because there may be thousands
    const refused = native.tlsFreezeAll(except.handle);
    native.tlsThawAll();
    sockets = refused
      .filter((handle) => native.tlsLastingRefusal(handle) !== null)
      .map((handle) => socketsByHandle[handle]);
    if (format < FORMAT_LISTEN) sockets.push(...allSockets(except).filter(isListening));
  }
  const clients = new Set<ClientSocket>();
  for (const sk of sockets) {
    const client = sk && isServerSocket(sk) ? sk.link : sk;
    if (client) clients.add(client);
  }
  return clients;
}

/** True for a client that waits for a server and will get none before a RESUME. */
function isHeldUp(client: ClientSocket): boolean {
  return (
    client.state === SocketState.CL_WAITING && (getPauseMode() !== PauseMode.NONE || client.pool?.db.paused === true)
  );
}

/** The last transactions of these connections. */
export class LastTransactions {
  /** clients that are not read any more */
  private readonly held = new Set<ClientSocket>();
  private busy = new Map<ClientSocket, string>();
  /** when to look for others at the latest, usec */
  private findAt = 0;

  /**
   * @param except the connection of the new process
   * @param format that of the handover
   */
  constructor(
    private readonly except: AnySocket,
    private readonly format: number,
  ) {}

  /**
   * Holds the clients whose transactions have ended. Clients log in meanwhile, too, and servers are opened.
   * @param now the clock, usec
   * @returns the others, and why they cannot be handed over
   */
  look(now: number): ReadonlyMap<ClientSocket, string> {
    this.busy = this.busyOf(this.busy.keys());
    if (this.busy.size === 0 || now >= this.findAt) {
      this.findAt = now + FIND_INTERVAL;
      const found = findClients(this.except, this.format);
      for (const client of this.busy.keys()) found.add(client);
      this.busy = this.busyOf(found);
    }
    return this.busy;
  }

  private busyOf(clients: Iterable<ClientSocket>): Map<ClientSocket, string> {
    const busy = new Map<ClientSocket, string>();
    for (const client of clients) {
      const reason = this.reasonOf(client);
      if (reason !== null) busy.set(client, reason);
    }
    return busy;
  }

  /** Why a transaction is waited for, null = it is not. */
  private reasonOf(client: ClientSocket): string | null {
    if (isDead(client) || client.login !== null || isHeldUp(client)) return null;
    if (isBetweenTransactions(client)) {
      // even if it could be handed over now: its next server might be another that cannot be
      if (client.reading) {
        sbufPause(client);
        this.held.add(client);
      }
      return null;
    }
    return lastingRefusalOf(client, this.format);
  }

  /**
   * Resumes reading from the held clients: before the freeze, which remembers which were read, or after a failed
   * handover.
   */
  resumeHeld(): void {
    // RESUME continues those that SUSPEND has stopped meanwhile
    for (const client of this.held) if (!isDead(client) && !client.suspended) sbufContinue(client);
    this.held.clear();
    this.busy.clear();
  }
}

/** True if a message to the client cannot get into the middle of another. */
function isBetweenPackets(client: ClientSocket): boolean {
  return sbufIsEmpty(client) && (client.link === null || client.link.pktRemain === 0);
}

/**
 * The new process owns everything else: tells the clients why their connections end, and closes them. Nothing but these
 * sockets may be touched.
 * @param staying the sockets that were not handed over, and why
 */
export function closeStaying(staying: ReadonlyMap<AnySocket, string>): void {
  for (const [sk, reason] of staying) {
    if (isDead(sk) || sk.handle < 0) continue;
    const msg = `connection cannot be handed over: ${reason}`;
    if (cf.logDisconnections) slogInfo(sk, `closing because: ${msg}`);
    if (isServerSocket(sk)) {
      sendBytes(sk, PACKET_TERMINATE, PACKET_TERMINATE.length);
    } else if (sk.login === null && isBetweenPackets(sk)) {
      const buf = new PktBuf();
      writeErrorResponse(buf, { severity: 'FATAL', sqlstate: ADMIN_SHUTDOWN, msg });
      sendPacket(sk, buf);
    }
  }
  for (const sk of staying.keys()) if (!isDead(sk)) sbufClose(sk);
}
