/*
 * The protocol version towards servers: 3.2 where the server speaks it, which brings longer cancel keys, else 3.0.
 *
 * PostgreSQL answers a request for 3.2 with NegotiateProtocolVersion when it is older. Other servers (poolers, proxies)
 * refuse the startup packet: with an ErrorResponse, or by closing the connection. Then the next connection asks for 3.0, at
 * once, and when that one is answered the database stays with 3.0 until RECONNECT or another connect string. Otherwise the
 * version was not the reason, and the failure counts as ever. server-login.ts, server.ts and maint.ts call this.
 */

import { slogDebug, slogInfo } from '../base/log';
import { disconnectServer, LoginOutcome } from '../link/objects';
import { ProtocolTry, ServerProtocol, type ServerSocket, SocketState } from '../pool/bouncer';
import { serverLoginOf } from '../pool/socket';
import { Pkt, PqMsg } from '../wire/packets';
import { type PktReader, parseServerError } from '../wire/reader';

/** How servers refuse a version: feature_not_supported, or what poolers say to whatever they do not understand. */
const REFUSALS: readonly (string | null)[] = ['0A000', '08P01'];

/** The version of a server's startup packet. */
export function chooseProtocol(server: ServerSocket): Pkt {
  const { db } = server.pool;
  // the console of an older process, which a new one takes over from, need not know 3.2
  if (!db.config.maxProtocol32 || db.admin || db.serverProtocol === ServerProtocol.ONLY_30) return Pkt.STARTUP_V3;
  if (db.serverProtocol === ServerProtocol.TRY_30) {
    db.serverProtocol = ServerProtocol.ASK_32;
    serverLoginOf(server).protocolTry = ProtocolTry.TRYING_30;
    return Pkt.STARTUP_V3;
  }
  serverLoginOf(server).protocolTry = ProtocolTry.ASKED_32;
  return Pkt.STARTUP_V32;
}

/** Closes a server that does not take 3.2, without counting it as one that failed. The end of the turn opens the next. */
function tryOlder(server: ServerSocket): void {
  const pool = server.pool;
  pool.db.serverProtocol = ServerProtocol.TRY_30;
  serverLoginOf(server).protocolTry = ProtocolTry.NONE;
  // a replication client waits for the next one
  if (server.link !== null) server.link.link = null;
  server.link = null;
  disconnectServer(server, false, 'server refused protocol 3.2, trying 3.0', LoginOutcome.CONNECTED);
}

/**
 * The first packet of a server.
 * @returns true when it refuses the protocol version: the server is closed
 */
export function protocolRefused(server: ServerSocket, type: number, buf: Buffer, off: number, end: number): boolean {
  const asked = serverLoginOf(server).protocolTry;
  const refused = type === PqMsg.ErrorResponse;
  if (asked === ProtocolTry.ASKED_32 && refused && REFUSALS.includes(parseServerError(buf, off, end).sqlstate)) {
    tryOlder(server);
    return true;
  }
  if (asked === ProtocolTry.TRYING_30 && !refused) {
    slogInfo(server, 'server does not speak protocol 3.2, using 3.0 for this database');
    server.pool.db.serverProtocol = ServerProtocol.ONLY_30;
  }
  // NegotiateProtocolVersion is good as an answer to 3.2, and as the first one
  if (type !== PqMsg.NegotiateProtocolVersion || asked === ProtocolTry.TRYING_30)
    serverLoginOf(server).protocolTry = ProtocolTry.NONE;
  return false;
}

/** NegotiateProtocolVersion. @returns false when it makes no sense: the server is closed */
export function negotiateVersion(server: ServerSocket, reader: PktReader): boolean {
  const expected = serverLoginOf(server).protocolTry === ProtocolTry.ASKED_32;
  serverLoginOf(server).protocolTry = ProtocolTry.NONE;
  // PostgreSQL sends the whole version, the manual speaks of the minor one
  const version = reader.u32();
  const major = version >>> 16;
  reader.u32();
  if (!expected || reader.fail || (major !== 0 && major !== 3) || (version & 0xffff) > 2) {
    disconnectServer(server, true, 'bad NegotiateProtocolVersion from server');
    return false;
  }
  slogDebug(server, `S: protocol version 3.${version & 0xffff}`);
  return true;
}

/** The connection ended. @returns true when that was the answer to 3.2: the server is closed */
export function connectionRefused(server: ServerSocket): boolean {
  if (server.state !== SocketState.SV_LOGIN || server.login?.protocolTry !== ProtocolTry.ASKED_32) return false;
  tryOlder(server);
  return true;
}

/** The startup packet was not answered in time: that counts as a failure, but maybe 3.0 is answered. */
export function startupUnanswered(server: ServerSocket): void {
  if (server.login?.protocolTry !== ProtocolTry.ASKED_32) return;
  server.pool.db.serverProtocol = ServerProtocol.TRY_30;
}
