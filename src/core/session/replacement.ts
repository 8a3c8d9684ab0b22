/*
 * What a client gets instead of bytes of its server (Verdict.REWRITE): another packet, nothing, or the end of its session.
 * Used by server.ts while it handles one packet.
 */

import type { ClientSocket, ServerSocket } from '../pool/bouncer';
import type { PktBuf } from '../wire/pktbuf';
import { Verdict } from '../wire/verdict';
import { refuseSession } from './complete';
import { answerDueFakes, sendToClient } from './prepared';

/** null = nothing is sent instead */
let replacement: PktBuf | null = null;
let replacedLen = 0;
/** the replacement is the end of the client */
let refused = false;

/** Replaces `len` bytes of the server, from the packet's start, for the client. */
export function replace(by: PktBuf | null, len: number): Verdict {
  replacement = by;
  replacedLen = len;
  refused = false;
  return Verdict.REWRITE;
}

/** Ends the client instead of forwarding `len` bytes of the server, after everything before them. */
export function refuse(len: number): Verdict {
  const verdict = replace(null, len);
  refused = true;
  return verdict;
}

/** Number of bytes that are replaced. */
export function replacedLength(): number {
  return replacedLen;
}

/** Sends the replacement of a packet, and the made-up answers after it. @returns false if a connection broke or ended */
export function sendReplacement(server: ServerSocket): boolean {
  if (refused) {
    refuseSession(server);
    return false;
  }
  const client = server.link as ClientSocket;
  if (replacement !== null && !sendToClient(client, server, replacement.buf, replacement.pos)) return false;
  return answerDueFakes(server);
}
