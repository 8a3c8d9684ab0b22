/*
 * RESET and DISCARD ALL give a session of PostgreSQL the values of its startup packet. On a server connection of a pool
 * they give it the server's defaults. Where the next transaction begins with the client's variables anyway, these
 * become those of the startup packet again, and the client is told. Called by server.ts.
 */

import { keepsClient } from '../link/leftovers';
import { type ServerSocket, SocketState } from '../pool/bouncer';
import { writeParameterStatus, writeReadyForQuery } from '../wire/messages';
import { PktBuf } from '../wire/pktbuf';

const told = new PktBuf(256);

/**
 * The server is idle outside a transaction, and has reported variables since it was so before.
 * @returns what the client gets instead of ReadyForQuery; null = nothing else
 */
export function restoredAfterReset(server: ServerSocket): PktBuf | null {
  const { link: client, afterReset, changedVars, requests, pool } = server;
  // the requests behind it are still executed with the defaults
  if (requests.count > 0) return null;
  server.changedVars = 0;
  server.afterReset = false;
  if (!afterReset || client === null || client.startupVars === null) return null;
  if (client.state !== SocketState.CL_ACTIVE || keepsClient(server)) return null;
  told.reset();
  client.vars.restoreStartup(client.startupVars, pool.origVars, changedVars, (name, value) => {
    writeParameterStatus(told, name, value);
  });
  if (told.pos === 0) return null;
  writeReadyForQuery(told);
  return told;
}
