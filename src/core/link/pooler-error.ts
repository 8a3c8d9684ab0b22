/* Errors of the pooler's own, as clients get them. */

import { slogWarning } from '../base/log';
import { cf } from '../config/settings';
import { sendPacket } from '../net/sbuf';
import type { ClientSocket } from '../pool/bouncer';
import { writeErrorResponse, writeReadyForQuery } from '../wire/messages';
import { pktbufTemp } from '../wire/pktbuf';

/** Logs an error that a client gets, or would get if it had not received a part of a packet. */
export function logPoolerError(client: ClientSocket, msg: string): void {
  if (cf.logPoolerErrors) slogWarning(client, `pooler error: ${msg}`);
}

/**
 * Sends an ErrorResponse to a client.
 * @param sendReady also send ReadyForQuery, if the session continues
 * @param levelFatal severity FATAL instead of ERROR: some clients then expect the connection to close
 * @param sqlstate null = protocol_violation, the pooler's default
 * @returns false if the socket failed
 */
export function sendPoolerError(
  client: ClientSocket,
  sendReady: boolean,
  levelFatal: boolean,
  sqlstate: string | null,
  msg: string,
): boolean {
  logPoolerError(client, msg);
  const buf = pktbufTemp();
  writeErrorResponse(buf, { severity: levelFatal ? 'FATAL' : 'ERROR', sqlstate, msg });
  if (sendReady) writeReadyForQuery(buf);
  return sendPacket(client, buf);
}
