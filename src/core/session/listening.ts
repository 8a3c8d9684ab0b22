/*
 * What a listening server connection sends (listen_mode = share): notifications, which go to the clients of the channel,
 * and the answers to LISTEN and UNLISTEN. Called by server.ts with complete packets.
 */

import { slogWarning } from '../base/log';
import { arena } from '../base/native';
import { listenerAnswered, sendTo } from '../link/listen-share';
import { CHANNEL_AT, channelOf } from '../link/notifications';
import { disconnectClient, disconnectServer } from '../link/objects';
import type { ServerSocket } from '../pool/bouncer';
import { type PoolListening, sameEncoding } from '../pool/listening';
import { isDead } from '../pool/socket';
import { NEW_HEADER_LEN, PqMsg } from '../wire/packets';
import { isFatal, parseServerError, pktDesc, serverErrorLine } from '../wire/reader';
import { Verdict } from '../wire/verdict';
import { countBytes } from './counters';
import { loadParameter } from './parameters';

export const OTHER_ENCODING = 'client_encoding differs from that of the listening server connection';
const NOT_SUPPORTED = '0A000';

function isAscii(off: number, end: number): boolean {
  for (let i = off; i < end; i++) if ((arena[i] as number) >= 0x80) return false;
  return true;
}

/** Sends a notification, in the arena at [off, off + len), to all clients that listen on its channel. */
function fanOut(shared: PoolListening, off: number, len: number): void {
  const channel = channelOf(arena, off, len);
  const clients = channel === null ? undefined : shared.channels.get(channel);
  if (clients === undefined) return;
  // a client that is disconnected leaves the set
  for (const client of clients) {
    const own = client.listening;
    if (own === null) continue;
    if (!sameEncoding(client, shared) && !isAscii(off + CHANNEL_AT, off + len)) {
      disconnectClient(client, true, OTHER_ENCODING, NOT_SUPPORTED);
    } else sendTo(client, own, arena, off, len, true);
  }
}

/** Handles a packet of a listening server. @returns CONSUMED, or DISCONNECTED */
export function listeningPacket(server: ServerSocket, type: number, off: number, len: number): Verdict {
  const shared = server.pool.listening;
  const body = off + NEW_HEADER_LEN;
  countBytes(server, len);
  if (shared === null || shared.server !== server) {
    disconnectServer(server, true, 'no client listens any more');
    return Verdict.DISCONNECTED;
  }
  switch (type) {
    case PqMsg.NotificationResponse:
      fanOut(shared, off, len);
      break;
    case PqMsg.ParameterStatus:
      return loadParameter(server, body, off + len) ? Verdict.CONSUMED : Verdict.DISCONNECTED;
    case PqMsg.ErrorResponse: {
      const error = parseServerError(arena, body, off + len);
      slogWarning(server, serverErrorLine('listening server connection', error));
      shared.failure ??= error.msg ?? 'error';
      server.dying = isFatal(arena, body, off + len);
      break;
    }
    case PqMsg.ReadyForQuery:
      listenerAnswered(server, shared);
      break;
    case PqMsg.CommandComplete:
    case PqMsg.NoticeResponse:
      break;
    default:
      disconnectServer(server, true, `unknown pkt from listening server: '${pktDesc(type)}'`);
  }
  return isDead(server) || server.list === null ? Verdict.DISCONNECTED : Verdict.CONSUMED;
}
