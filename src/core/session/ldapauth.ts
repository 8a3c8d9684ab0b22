/*
 * auth_type ldap: the password is a directory's to judge. The asking is done by src/workers/ldap.ts on a thread of its
 * own, which is started at the first such login; its answers lie in a port that is emptied when it wakes the loop.
 */
import { accessSync, constants } from 'node:fs';
import { join } from 'node:path';
import { MessageChannel, type MessagePort, receiveMessageOnPort, Worker } from 'node:worker_threads';
import { native } from '../base/native';
import { type LdapOptions, parseLdapOptions } from '../config/ldapopts';
import type { PgSocket } from '../pool/socket';
import type { PgCredentials } from '../pool/user';
import { externalAuthDone, newAuthLine } from './extauth';

/** What the thread is asked, and what it answers: LdapRequest and LdapAnswer of src/workers/ldap.ts. */
interface LdapAnswer {
  id: number;
  allowed: boolean;
  warnings: string[];
}

const WORKER = join(__dirname, '..', '..', 'workers', 'ldap.js');

let port: MessagePort | null = null;

/** Text as LDAP has it; inside the pooler strings are bytes. */
function toUtf8(bytes: string): string {
  return Buffer.from(bytes, 'latin1').toString('utf8');
}

function toBytes(text: string): string {
  return Buffer.from(text, 'utf8').toString('latin1');
}

function startWorker(): MessagePort {
  const channel = new MessageChannel();
  const worker = new Worker(WORKER, {
    workerData: { port: channel.port2, wakeFd: native.wakeFd() },
    transferList: [channel.port2],
    // of what it may write there nothing would ever be read
    stdout: true,
    stderr: true,
  });
  worker.unref();
  channel.port1.unref();
  return channel.port1;
}

function requestOf(id: number, options: LdapOptions, user: string, passwd: string): object {
  const text = (bytes: string | null) => (bytes === null ? null : toUtf8(bytes));
  return {
    id,
    user: toUtf8(user),
    password: toUtf8(passwd),
    tls: options.tls,
    scheme: options.scheme,
    server: toUtf8(options.server),
    port: options.port,
    baseDn: text(options.baseDn),
    bindDn: toUtf8(options.bindDn ?? ''),
    bindPasswd: toUtf8(options.bindPasswd ?? ''),
    searchAttribute: text(options.searchAttribute),
    searchFilter: text(options.searchFilter),
    scope: options.scope,
    directDn: toUtf8(`${options.prefix ?? ''}${user}${options.suffix ?? ''}`),
  };
}

function startLdap(id: number, client: PgSocket, passwd: string): string | null {
  const { options, error } = parseLdapOptions(client.ldapOptions);
  if (options === null) return error;
  if (port === null) {
    try {
      // what fails in the thread's first moments nobody would ever hear of
      accessSync(WORKER, constants.R_OK);
      port = startWorker();
    } catch (err) {
      return `LDAP authentication is not supported: ${(err as Error).message}`;
    }
  }
  port.postMessage(requestOf(id, options, (client.loginUser as PgCredentials).name, passwd));
  return null;
}

/** The thread is gone, or as good as that: the next login starts another. */
function loseWorker(): void {
  port = null;
}

export const ldapLine = newAuthLine('LDAP', startLdap, loseWorker);

/** The loop was woken: maybe by answers. */
export function collectLdapAnswers(): void {
  if (port === null) return;
  for (let got = receiveMessageOnPort(port); got !== undefined; got = receiveMessageOnPort(port)) {
    const { id, allowed, warnings } = got.message as LdapAnswer;
    externalAuthDone(ldapLine, id, allowed, warnings.map(toBytes));
  }
}
