/*
 * The record of a user, and the secrets of users in it and in the record of a database. The new process knows the users
 * from its own config; from the old process it adopts the SCRAM keys, and the passwords that LDAP has accepted.
 */

import { usesLdap } from '../../core/login/hba-rules';
import type { PgCredentials, PgGlobalUser } from '../../core/pool/bouncer';
import { changePassword, findGlobalCredentials, findOrAddLoginUser } from '../../core/pool/user';
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
  /** PAM or LDAP has accepted the password; missing from older versions */
  externalPasswd?: boolean;
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
  const { credentials } = user;
  return { k: 'user', ...secretRecord(credentials), externalPasswd: credentials.externalPasswd };
}

/**
 * True if logins to servers need the password of the old process, because no client will tell it again. Where only
 * auth_file decides now, its password stays.
 */
function keepsPassword({ passwd, externalPasswd }: UserRecord, { dynamicPasswd }: PgCredentials): boolean {
  if (passwd === '') return false;
  if (usesLdap()) return externalPasswd ?? dynamicPasswd;
  return externalPasswd === true && dynamicPasswd;
}

function adoptUser(record: UserRecord, credentials: PgCredentials): void {
  if (keepsPassword(record, credentials)) {
    changePassword(credentials, record.passwd);
    credentials.externalPasswd = true;
  }
  readSecret(record, credentials);
}

/** Users whom this process does not know yet, by name. */
export type UnknownUsers = Map<string, UserRecord>;

export function readUser(record: UserRecord, unknown: UnknownUsers): void {
  const known = findGlobalCredentials(record.name);
  if (known === null) unknown.set(record.name, record);
  else adoptUser(record, known);
}

/** The credentials of a user of the old process; a user whom this process does not know is created. */
export function globalCredentials(name: string, unknown: UnknownUsers): PgCredentials {
  const known = findGlobalCredentials(name);
  if (known !== null) return known;
  const { credentials } = findOrAddLoginUser(name);
  const record = unknown.get(name);
  if (record !== undefined) adoptUser(record, credentials);
  return credentials;
}
