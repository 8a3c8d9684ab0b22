// Sets up new client connections.

import { slogDebug, wantDebug } from '../base/log';
import { native } from '../base/native';
import { getCachedTime } from '../base/time';
import { disconnectClient } from '../link/objects';
import { expectsProxyHeader } from '../login/proxy-protocol';
import { connInfo, fillAcceptedAddrs, hasRemoteAddr } from '../net/addr';
import { attachHandle } from '../net/sbuf';
import { type ClientSocket, SocketState } from '../pool/bouncer';
import { loginOf } from '../pool/socket';
import { changeClientState, newClient } from '../pool/states';

/**
 * Handles a new connection from a listening socket, which has its TCP options from that.
 * @returns the client, from which nothing is read yet; null if there is no room for it, or it has no address
 */
export function acceptClient(fd: number, isUnix: boolean): ClientSocket | null {
  const handle = native.openAccepted(fd);
  if (handle < 0) {
    native.closeFd(fd);
    return null;
  }
  const client = newClient();
  client.connectTime = client.requestTime = getCachedTime();
  fillAcceptedAddrs(client, fd, isUnix);
  attachHandle(client, handle);
  changeClientState(client, SocketState.CL_LOGIN);
  if (!hasRemoteAddr(client)) {
    // it has reset the connection; what it sent before could still be read, but no HBA rule or limit could apply to it
    disconnectClient(client, false, 'client without an address');
    return null;
  }
  loginOf(client).proxyHeaderDue = expectsProxyHeader(client);
  if (wantDebug()) slogDebug(client, `P: got connection: ${connInfo(client)}`);
  return client;
}
