/*
 * The record of a user, and the secrets of users in it and in the record of a database. The new process knows the users
 * from its own config; from the old process it adopts the SCRAM keys.
 */

import type { PgCredentials, PgGlobalUser } from '../../core/pool/bouncer';
import { findGlobalUser } from '../../core/pool/user';
import { bytesText, ownBytesOf } from './bytes';

/** A secret and the SCRAM keys learnt with it; keys are raw bytes. */
export interface SecretRecord {
  name: string;
  passwd: string;
  scramClientKey: string | null;
  scramServerKey: string | null;
}

export interface UserRecord extends SecretRecord {
  k: 'user';
}

export function secretRecord(user: PgCredentials): SecretRecord {
  const learnt = user.scramPassthroughValid;
  return {
    name: user.name,
    passwd: user.passwd,
    scramClientKey: learnt && user.scramClientKey !== null ? bytesText(user.scramClientKey) : null,
    scramServerKey: learnt && user.scramServerKey !== null ? bytesText(user.scramServerKey) : null,
  };
}

/** Adopts the SCRAM keys learnt with a secret, if the user's secret is unchanged. */
export function readSecret(from: SecretRecord, user: PgCredentials): void {
  if (user.passwd !== from.passwd || from.scramClientKey === null || from.scramServerKey === null) return;
  user.scramClientKey = ownBytesOf(from.scramClientKey);
  user.scramServerKey = ownBytesOf(from.scramServerKey);
  user.scramPassthroughValid = true;
}

export function userRecord(user: PgGlobalUser): UserRecord {
  return { k: 'user', ...secretRecord(user.credentials) };
}

export function readUser(record: UserRecord): void {
  const known = findGlobalUser(record.name);
  if (known !== null) readSecret(record, known.credentials);
}
