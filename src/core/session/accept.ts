// Sets up new client connections.

import { slogDebug, wantDebug } from '../base/log';
import { native } from '../base/native';
import { getCachedTime } from '../base/time';
import { expectsProxyHeader } from '../login/proxy-protocol';
import { connInfo, fillAddrs } from '../net/addr';
import { attachHandle, sbufContinue } from '../net/sbuf';
import { tuneAccepted } from '../net/tune';
import { SocketState } from '../pool/bouncer';
import { loginOf } from '../pool/socket';
import { changeClientState, newClient } from '../pool/states';

/** Handles a new connection from a listening socket. */
export function acceptClient(fd: number, isUnix: boolean): void {
  if (!tuneAccepted(fd, isUnix)) {
    native.closeFd(fd);
    return;
  }
  const handle = native.open(fd);
  if (handle < 0) {
    native.closeFd(fd);
    return;
  }
  const client = newClient();
  client.connectTime = client.requestTime = getCachedTime();
  fillAddrs(client, fd, isUnix);
  attachHandle(client, handle);
  changeClientState(client, SocketState.CL_LOGIN);
  loginOf(client).proxyHeaderDue = expectsProxyHeader(client);
  if (wantDebug()) slogDebug(client, `P: got connection: ${connInfo(client)}`);
  sbufContinue(client);
}
