/*
 * auth_type ldap: an LDAP server verifies the password. src/workers/ldap.ts communicates with it in a separate thread,
 * started at the first such login. The thread posts its answers to a port, which is emptied when it wakes the loop.
 */

import { receiveMessageOnPort } from 'node:worker_threads';
import { utf8Of } from '../base/strutil';
import { startThread, type Thread } from '../base/thread';
import type { LdapAnswer, LdapRequest } from '../base/worker-messages';
import { type LdapOptions, parseLdapOptions } from '../config/ldap-options';
import type { ClientSocket, PgCredentials } from '../pool/bouncer';
import { loginOf } from '../pool/socket';
import { externalAuthDone, newAuthQueue } from './external-auth';

let thread: Thread | null = null;

function toBytes(text: string): string {
  return Buffer.from(text, 'utf8').toString('latin1');
}

function requestOf(id: number, options: LdapOptions, user: string, passwd: string): LdapRequest {
  const text = (bytes: string | null) => (bytes === null ? null : utf8Of(bytes));
  return {
    id,
    user: utf8Of(user),
    password: utf8Of(passwd),
    tls: options.tls,
    scheme: options.scheme,
    server: utf8Of(options.server),
    port: options.port,
    baseDn: text(options.baseDn),
    bindDn: utf8Of(options.bindDn ?? ''),
    bindPasswd: utf8Of(options.bindPasswd ?? ''),
    searchAttribute: text(options.searchAttribute),
    searchFilter: text(options.searchFilter),
    scope: options.scope,
    directDn: utf8Of(`${options.prefix ?? ''}${user}${options.suffix ?? ''}`),
  };
}

function startLdap(id: number, client: ClientSocket, passwd: string): string | null {
  const { options, error } = parseLdapOptions(loginOf(client).ldapOptions);
  if (options === null) return error;
  try {
    thread ??= startThread('ldap.js');
  } catch (err) {
    return `LDAP authentication is not supported: ${(err as Error).message}`;
  }
  thread.port.postMessage(requestOf(id, options, (client.loginUser as PgCredentials).name, passwd));
  return null;
}

/** The thread no longer answers: ends it. The next login starts another. */
function loseWorker(): void {
  thread?.end();
  thread = null;
}

export const ldapQueue = newAuthQueue('LDAP', startLdap, loseWorker);

/** Called when the loop was woken, possibly by answers. */
export function collectLdapAnswers(): void {
  if (thread === null) return;
  const { port } = thread;
  for (let got = receiveMessageOnPort(port); got !== undefined; got = receiveMessageOnPort(port)) {
    const { id, allowed, warnings } = got.message as LdapAnswer;
    externalAuthDone(ldapQueue, id, allowed, warnings.map(toBytes));
  }
}
