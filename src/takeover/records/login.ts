/*
 * The fields of a client whose login is in progress.
 */

import { ScramState } from '../../core/auth/scram';
import { seenCertHash } from '../../core/net/tls';
import type { ClientSocket } from '../../core/pool/bouncer';
import type { ClientLogin } from '../../core/pool/login-state';
import { LoginPhase } from '../../core/pool/phases';
import { bytesOf, bytesText } from './bytes';

/** Left out where they do not apply. */
export interface LoginFields {
  loginSalt?: string;
  /** fields of ScramState; bytes as `{ bytes }` */
  scram?: Record<string, unknown>;
  /** from 0.2.0 on */
  ldapOptions?: string;
  proxyHeaderDue?: true;
  cachedFor?: string;
  /** hash of the certificate that the client has seen */
  certHash?: string;
}

function scramRecord(state: object): Record<string, unknown> {
  const fields: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(state)) {
    fields[name] = value instanceof Uint8Array ? { bytes: bytesText(value) } : value;
  }
  return fields;
}

function scramOf(fields: Record<string, unknown>): ScramState {
  const state = new ScramState();
  const known: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(fields)) {
    if (!(name in state)) continue;
    const bytes = value !== null && typeof value === 'object' ? (value as { bytes?: string }).bytes : undefined;
    known[name] = bytes === undefined ? value : bytesOf(bytes);
  }
  return Object.assign(state, known);
}

/** @param login that of the client */
export function addLoginFields(record: LoginFields, client: ClientSocket, login: ClientLogin<ClientSocket>): void {
  const certHash = seenCertHash(client);
  if (certHash !== null) record.certHash = bytesText(certHash);
  if (login.ldapOptions !== '') record.ldapOptions = login.ldapOptions;
  if (login.proxyHeaderDue) record.proxyHeaderDue = true;
  if (login.cachedFor !== '') record.cachedFor = login.cachedFor;
  if (login.salt !== null) record.loginSalt = bytesText(login.salt);
  if (login.scram !== null) record.scram = scramRecord(login.scram);
}

/** @param login that of the client; its flags have determined its phase */
export function readLoginFields(record: LoginFields, client: ClientSocket, login: ClientLogin<ClientSocket>): void {
  login.salt = record.loginSalt === undefined ? null : bytesOf(record.loginSalt);
  login.scram = record.scram === undefined ? null : scramOf(record.scram);
  login.ldapOptions = record.ldapOptions ?? '';
  login.proxyHeaderDue = record.proxyHeaderDue === true;
  login.cachedFor = record.cachedFor ?? '';
  login.certHash = record.certHash === undefined ? null : bytesOf(record.certHash);
  if (login.phase !== LoginPhase.EXTERNAL_AUTH) return;
  // PAM or LDAP had not answered the old process: the packet with the password is still buffered and is handled again
  login.phase = LoginPhase.CHALLENGED;
  client.reading = true;
}
