/*
 * The protocol version of server connections: 3.2, which has longer cancel keys, if the server supports it; else 3.0.
 *
 * An older PostgreSQL answers a request for 3.2 with NegotiateProtocolVersion. Other servers (poolers, proxies) reject
 * the startup packet with an ErrorResponse, or close the connection. The next connection then requests 3.0, at once. If
 * that is answered, the database keeps using 3.0 until RECONNECT or a change of its connect string. Otherwise the
 * version was not the reason, and the failure counts as usual. Called by server-login.ts, server.ts and maint.ts.
 */

import { slogDebug, slogInfo } from '../base/log';
import { disconnectServer, LoginOutcome } from '../link/objects';
import { ServerProtocol, type ServerSocket, SocketState } from '../pool/bouncer';
import { ProtocolTry } from '../pool/phases';
import { serverLoginOf } from '../pool/socket';
import { Pkt, PqMsg } from '../wire/packets';
import { type PktReader, parseServerError } from '../wire/reader';

/** SQLSTATEs that reject a version: feature_not_supported, or the code that poolers use for anything unknown. */
const REFUSALS: readonly (string | null)[] = ['0A000', '08P01'];

/** The version for a server's startup packet. */
export function chooseProtocol(server: ServerSocket): Pkt {
  const { db } = server.pool;
  // the console of an old process, which a takeover connects to, may not know 3.2
  if (!db.config.maxProtocol32 || db.admin || db.serverProtocol === ServerProtocol.ONLY_30) return Pkt.STARTUP_V3;
  if (db.serverProtocol === ServerProtocol.TRY_30) {
    db.serverProtocol = ServerProtocol.ASK_32;
    serverLoginOf(server).protocolTry = ProtocolTry.TRYING_30;
    return Pkt.STARTUP_V3;
  }
  serverLoginOf(server).protocolTry = ProtocolTry.ASKED_32;
  return Pkt.STARTUP_V32;
}

/** Closes a server that rejects 3.2, without counting a failure. The end of the turn launches the next connection. */
function tryOlder(server: ServerSocket): void {
  const pool = server.pool;
  pool.db.serverProtocol = ServerProtocol.TRY_30;
  serverLoginOf(server).protocolTry = ProtocolTry.NONE;
  // the replication client waits for the next connection
  if (server.link !== null) server.link.link = null;
  server.link = null;
  disconnectServer(server, false, 'server refused protocol 3.2, trying 3.0', LoginOutcome.CONNECTED);
}

/** Checks the first packet of a server. @returns true if it rejects the protocol version: the server was closed */
export function protocolRefused(server: ServerSocket, type: number, buf: Buffer, off: number, end: number): boolean {
  const asked = serverLoginOf(server).protocolTry;
  const refused = type === PqMsg.ErrorResponse;
  if (asked === ProtocolTry.ASKED_32 && refused && REFUSALS.includes(parseServerError(buf, off, end).sqlstate)) {
    tryOlder(server);
    return true;
  }
  if (asked === ProtocolTry.TRYING_30 && !refused) {
    slogInfo(server, 'server does not support protocol 3.2, using 3.0 for this database');
    server.pool.db.serverProtocol = ServerProtocol.ONLY_30;
  }
  // NegotiateProtocolVersion is valid only in answer to 3.2, and only as the first packet
  if (type !== PqMsg.NegotiateProtocolVersion || asked === ProtocolTry.TRYING_30)
    serverLoginOf(server).protocolTry = ProtocolTry.NONE;
  return false;
}

/** Handles NegotiateProtocolVersion. @returns false if it is invalid: the server was closed */
export function negotiateVersion(server: ServerSocket, reader: PktReader): boolean {
  const expected = serverLoginOf(server).protocolTry === ProtocolTry.ASKED_32;
  serverLoginOf(server).protocolTry = ProtocolTry.NONE;
  // PostgreSQL sends the whole version; its manual describes the minor version only
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

/** Handles the end of the connection. @returns true if that was the answer to 3.2: the server was closed */
export function connectionRefused(server: ServerSocket): boolean {
  if (server.state !== SocketState.SV_LOGIN || server.login?.protocolTry !== ProtocolTry.ASKED_32) return false;
  tryOlder(server);
  return true;
}

/** The startup packet was not answered in time. That counts as a failure, but the next connection requests 3.0. */
export function startupUnanswered(server: ServerSocket): void {
  if (server.login?.protocolTry !== ProtocolTry.ASKED_32) return;
  server.pool.db.serverProtocol = ServerProtocol.TRY_30;
}
