/*
 * auth_type pam: PAM verifies the password, by the rules in its service file `pgbouncer`.
 */

import { native } from '../base/native';
import { addrHost } from '../net/addr';
import type { ClientSocket, PgCredentials } from '../pool/bouncer';
import { externalAuthDone, newAuthQueue } from './external-auth';

function startPam(id: number, client: ClientSocket, passwd: string): string | null {
  const missing = native.pamOpen();
  if (missing !== '') return `PAM authentication is not supported: ${missing}`;
  const err = native.pamSubmit(id, (client.loginUser as PgCredentials).name, passwd, addrHost(client.remoteAddr));
  return err === 0 ? null : `PAM login could not be queued: ${native.strerror(-err)}`;
}

export const pamQueue = newAuthQueue('PAM', startPam, null);

/** Handles Ev.AUTHENTICATED for the login `id`. */
export function onPamDone(id: number, allowed: boolean): void {
  externalAuthDone(pamQueue, id, allowed, native.pamMessages(id));
}
